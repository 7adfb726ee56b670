//! Obstacles that follow from the facts of a host.

use super::*;
use crate::recreate::ConfigurationVersions;
use crate::seam::{CimValue, Instance};
use crate::{ClusteredVm, Definition, DefinitionHost, DefinitionSummary, RestoredDisk, Setting};

const ID: &str = "0A1B2C3D-0000-1111-2222-333344445555";

fn definition() -> Definition {
    Definition {
        summary: DefinitionSummary {
            vm_id: ID.into(),
            name: "web".into(),
            generation: 2,
            configuration_version: "9.0".into(),
            processors: Some(2),
            memory_mib: Some(1024),
            secure_boot: true,
            tpm: true,
            network_adapters: vec![],
        },
        disks: vec![],
        system: Setting { class: "Msvm_VirtualSystemSettingData".into(), properties: Default::default() },
        settings: vec![],
        key_protector: None,
        host: DefinitionHost {
            name: Some("HV01".into()),
            processor_vendor: Some("GenuineIntel".into()),
            ..DefinitionHost::default()
        },
    }
}

/// The severity of one code, and what is said about it, after `change` worked on what is known.
fn judge(
    code: ObstacleCode,
    way: Way,
    change: impl FnOnce(&mut Former<'_>, &mut Recreation, &mut HostState),
) -> (Severity, String) {
    let definition = definition();
    let mut former = Former::of("test", &definition).unwrap();
    let mut wanted = Recreation::as_original("web", r"C:\R", Vec::<RestoredDisk>::new());
    let mut host = HostState {
        name: "hv01".into(),
        versions: ConfigurationVersions::of_windows("10.0.20348"),
        processor_vendor: Some("GenuineIntel".into()),
        ..HostState::default()
    };
    change(&mut former, &mut wanted, &mut host);
    let found = Checks { former: &former, wanted: &wanted, way, host: &host }.run();
    let of_code: Vec<_> = found.into_iter().filter(|obstacle| obstacle.code == code).collect();
    assert_eq!(of_code.len(), 1, "{code:?}: {of_code:?}");
    (of_code[0].severity, of_code[0].why.clone())
}

#[test]
fn an_id_is_taken_by_a_vm_an_unfinished_one_or_another_node() {
    type Change = fn(&mut Former<'_>, &mut Recreation, &mut HostState);
    let taken_here: Change = |_, _, host| host.vms.push((ID.to_lowercase(), "db".into()));
    let cases: [(Way, Change, Severity, &str); 6] = [
        (Way::Import, |_, _, _| {}, Severity::Passed, ""),
        (Way::Import, taken_here, Severity::Block, "\"db\""),
        (Way::Import, |_, _, host| host.planned.push(ID.into()), Severity::Block, "never finished"),
        (
            Way::Import,
            |_, _, host| host.role = Some(ClusteredVm { resource: "r".into(), owner_node: "HV02".into() }),
            Severity::Block,
            "HV02",
        ),
        (Way::Build, taken_here, Severity::Decide, "new id"),
        (
            Way::Import,
            |_, wanted, host| {
                wanted.identity = Identity::New;
                host.vms.push((ID.into(), "db".into()));
            },
            Severity::Passed,
            "",
        ),
    ];
    for (number, (way, change, severity, word)) in cases.into_iter().enumerate() {
        let (found, why) = judge(ObstacleCode::VmId, way, change);
        assert_eq!(found, severity, "case {number}: {why}");
        assert!(why.contains(word), "case {number}: {why}");
    }
}

#[test]
fn what_depends_on_the_former_host_is_decided_by_a_person() {
    let set = |instance: &mut Instance, name: &str, value| {
        instance.properties.insert(name.into(), value);
    };
    let shielded = Instance {
        class: "Msvm_SecuritySettingData".into(),
        path: None,
        properties: [("ShieldingRequested".to_owned(), CimValue::Boolean(true))].into(),
    };
    type Change<'a> = Box<dyn FnOnce(&mut Former<'_>, &mut Recreation, &mut HostState) + 'a>;
    let template = |id: &'static str| -> Change<'_> {
        Box::new(move |former, _, _| {
            set(&mut former.system, "SecureBootEnabled", CimValue::Boolean(true));
            set(&mut former.system, "SecureBootTemplateId", CimValue::String(id.into()));
        })
    };
    let other_maker: Change<'_> = Box::new(|former, _, host| {
        set(&mut former.system, "IsSaved", CimValue::Boolean(true));
        host.processor_vendor = Some("AuthenticAMD".into());
    });
    let with_shield =
        |shielded: Instance| -> Change<'_> { Box::new(move |former, _, _| former.settings.push(shielded)) };
    let cases: Vec<(ObstacleCode, Way, Change<'_>, Severity)> = vec![
        (ObstacleCode::Tpm, Way::Import, Box::new(|_, _, _| {}), Severity::Passed),
        (ObstacleCode::Tpm, Way::Import, Box::new(|_, _, host| host.name = "HV02".into()), Severity::Decide),
        (ObstacleCode::Tpm, Way::Build, Box::new(|_, _, _| {}), Severity::Decide),
        (ObstacleCode::SecureBoot, Way::Import, template("1734C6E8-3154-4dda-ba5f-a874cc483422"), Severity::Passed),
        (ObstacleCode::SecureBoot, Way::Import, template("4292ae2b-ee2c-42b5-a969-dd8f8689f6f3"), Severity::Decide),
        (ObstacleCode::SavedState, Way::Import, Box::new(|_, _, _| {}), Severity::Passed),
        (ObstacleCode::SavedState, Way::Import, other_maker, Severity::Decide),
        (ObstacleCode::Shielding, Way::Import, with_shield(shielded.clone()), Severity::Decide),
        (ObstacleCode::Shielding, Way::Build, with_shield(shielded), Severity::Block),
        (
            ObstacleCode::ConfigurationVersion,
            Way::Import,
            Box::new(|_, _, host| host.versions = None),
            Severity::Decide,
        ),
        (
            ObstacleCode::ConfigurationVersion,
            Way::Import,
            Box::new(|_, _, host| host.versions = ConfigurationVersions::of_windows("10.0.14393")),
            Severity::Block,
        ),
        (
            ObstacleCode::ConfigurationVersion,
            Way::Build,
            Box::new(|_, _, host| host.versions = ConfigurationVersions::of_windows("10.0.14393")),
            Severity::Decide,
        ),
    ];
    for (number, (code, way, change, severity)) in cases.into_iter().enumerate() {
        let (found, why) = judge(code, way, change);
        assert_eq!(found, severity, "case {number}, {code:?} {way:?}: {why}");
    }
}
