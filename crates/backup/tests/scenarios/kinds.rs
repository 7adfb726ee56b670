//! One VM of each awkward kind is reported as what it is, and its backups are what was said.

use backup::{Cancel, FullReason};
use hyperv::Host;
use hyperv_sim::{DiskSource, LabHost, LabOptions, VmOptions};

use crate::support::{Rig, full_reasons, quick_lab};

/// What two backups in a row are.
enum Backups {
    /// The second reads changes of these disks; the others each time everything, for that reason.
    Made(&'static [Option<FullReason>]),
    /// There is none, and the text says why.
    Refused(&'static str),
}

struct Kind {
    name: &'static str,
    disks: Vec<DiskSource>,
    options: VmOptions,
    arrange: fn(&LabHost, &str),
    /// In what a person is told beforehand.
    protection: &'static str,
    caution: Option<&'static str>,
    backups: Backups,
}

#[test]
fn each_awkward_kind_is_reported_as_what_it_is_and_backed_up_so() {
    let rig = Rig::without_vm(LabOptions { physical_disks: 1, ..quick_lab() });
    let golden = rig.dir.path().join("golden.raw");
    std::fs::write(&golden, (0..3 << 20_u32).map(|at| (at / 4096) as u8).collect::<Vec<_>>()).unwrap();
    let empty = || DiskSource::Empty { size_bytes: 4 << 20 };
    let vhd = || DiskSource::Vhd { size_bytes: 2 << 20 };
    let defaults = VmOptions::default;
    let nothing: fn(&LabHost, &str) = |_, _| {};
    let tracked = Backups::Made(&[None]);
    let untracked = Backups::Made(&[Some(FullReason::NoBaseId)]);
    let kinds = [
        Kind {
            name: "ordinary",
            disks: vec![empty()],
            options: defaults(),
            arrange: nothing,
            protection: "Incremental: after the first backup only changes are read.",
            caution: None,
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "configuration version 5.0",
            disks: vec![empty()],
            options: VmOptions { version: "5.0".into(), generation: 1, ..defaults() },
            arrange: nothing,
            protection: "Full each time: configuration version 5.0 tracks no changes",
            caution: None,
            backups: untracked,
        },
        Kind {
            name: "VHD disk",
            disks: vec![vhd()],
            options: VmOptions { generation: 1, ..defaults() },
            arrange: nothing,
            protection: "it is a VHD, and only VHDX files record their changes",
            caution: None,
            backups: Backups::Made(&[Some(FullReason::NoBaseId)]),
        },
        Kind {
            name: "one VHD among VHDX",
            disks: vec![empty(), vhd()],
            options: VmOptions { generation: 1, ..defaults() },
            arrange: nothing,
            protection: "Incremental, but the disk at",
            caution: None,
            backups: Backups::Made(&[None, Some(FullReason::NoBaseId)]),
        },
        Kind {
            name: "pass-through",
            disks: vec![empty()],
            options: VmOptions { physical_disks: vec![0], ..defaults() },
            arrange: nothing,
            protection: "Incremental",
            caution: Some("it is a physical disk of the host"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "only shared disks",
            disks: vec![empty()],
            options: VmOptions { shared_disks: vec![0], ..defaults() },
            arrange: nothing,
            protection: "No backup is possible:",
            caution: Some("The VM shares disks with others"),
            backups: Backups::Refused("no disk of it can be backed up"),
        },
        Kind {
            name: "a shared disk",
            disks: vec![empty(), empty()],
            options: VmOptions { shared_disks: vec![1], ..defaults() },
            arrange: nothing,
            protection: "Incremental",
            caution: Some("several VMs may write to it"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "VHD set",
            disks: vec![empty(), DiskSource::VhdSet { size_bytes: 4 << 20 }],
            options: defaults(),
            arrange: nothing,
            protection: "Incremental",
            caution: Some("it is a VHD set"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "differencing parent",
            disks: vec![DiskSource::ChildOf(golden)],
            options: defaults(),
            arrange: nothing,
            protection: "Incremental",
            caution: Some("a backup holds the content of both"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "replica",
            disks: vec![empty()],
            options: VmOptions { replication_mode: 2, ..defaults() },
            arrange: nothing,
            protection: "Incremental",
            caution: Some("This is a replica of Hyper-V Replica"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "shielded",
            disks: vec![empty()],
            options: VmOptions { shielded: true, tpm: true, ..defaults() },
            arrange: nothing,
            protection: "Incremental",
            caution: Some("The VM is shielded"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "fibre channel",
            disks: vec![empty()],
            options: VmOptions { fibre_channel: true, ..defaults() },
            arrange: nothing,
            protection: "Incremental",
            caution: Some("virtual fibre channel adapter"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "saved",
            disks: vec![empty()],
            options: defaults(),
            arrange: |lab, vm| lab.save_vm(vm).unwrap(),
            protection: "Incremental",
            caution: Some("The VM is saved"),
            backups: Backups::Made(&[None]),
        },
        Kind {
            name: "paused",
            disks: vec![empty()],
            options: defaults(),
            arrange: |lab, vm| lab.pause_vm(vm).unwrap(),
            protection: "Incremental",
            caution: Some("The VM is paused"),
            backups: tracked,
        },
        Kind {
            name: "storage lost",
            disks: vec![empty()],
            options: defaults(),
            arrange: |lab, vm| lab.set_storage_lost(vm, true).unwrap(),
            protection: "No backup is possible: the VM has lost its storage",
            caution: None,
            backups: Backups::Refused("its storage is lost"),
        },
        Kind {
            name: "no disk",
            disks: vec![],
            options: defaults(),
            arrange: nothing,
            protection: "No backup is possible: the VM has no disk.",
            caution: None,
            backups: Backups::Refused("no disk of it can be backed up"),
        },
    ];
    for kind in &kinds {
        rig.lab.add_vm(kind.name, &kind.disks, kind.options.clone()).unwrap();
        for disk in 0..kind.disks.len() {
            rig.lab.guest_write_at(kind.name, disk, 1 << 20, b"before").unwrap();
        }
        (kind.arrange)(&rig.lab, kind.name);
    }
    for kind in &kinds {
        let vm = Host::new(rig.lab.seam()).find_vm(kind.name).unwrap();
        let (protection, cautions) = (vm.protection().to_string(), vm.cautions());
        assert!(protection.contains(kind.protection), "{}: {protection}", kind.name);
        let told: Vec<String> = cautions.iter().map(ToString::to_string).collect();
        match kind.caution {
            Some(caution) => assert!(told.iter().any(|text| text.contains(caution)), "{}: {told:?}", kind.name),
            None => assert!(told.is_empty(), "{}: {told:?}", kind.name),
        }
        let back_up = || rig.back_up_as(kind.name, rig.lab.seam(), &Cancel::default());
        let expected = match kind.backups {
            Backups::Refused(why) => {
                let error = back_up().expect_err(kind.name).to_string();
                assert!(error.contains(why), "{}: {error}", kind.name);
                continue;
            }
            Backups::Made(expected) => expected,
        };
        // Of the guest's disks those that a checkpoint takes along come first here.
        let state = || rig.guest_disks(kind.name)[..expected.len()].to_vec();
        for round in 0..2 {
            let label = format!("{}, round {round}", kind.name);
            let state = state();
            let report = back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
            rig.assert_restores(&label, &report.point, &state);
            if round == 0 {
                continue;
            }
            assert_eq!(full_reasons(&report), expected, "{label}");
        }
    }
}
