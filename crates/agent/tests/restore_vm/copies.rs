//! New VMs: beside the original, and on another host.

use hyperv::VmState;
use hyperv_sim::{LabHost, LabOptions, LabSwitch, VmOptions};

use super::*;

#[test]
fn scenario_10_a_copy_beside_the_original_has_its_disks_and_an_identity_of_its_own() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    guest_write(&desk, 2, 2);
    let original = disks_of(&desk, "lab", VM);

    let plan = desk.json(0, ["restore", "vm", "DC01@latest", "--dry-run"]);
    assert_eq!((codes(&plan, "block").len(), codes(&plan, "decide").len()), (0, 0), "{plan:#}");
    assert_eq!(plan["vm_name"], "DC01-restored");
    assert_eq!(vm_names(&desk, "lab"), [VM], "a dry run makes nothing");
    let data: u64 = plan["disks"].as_array().unwrap().iter().map(|disk| disk["data_bytes"].as_u64().unwrap()).sum();
    assert!(plan["quote"]["bytes"].as_u64().unwrap() >= data && data > 0, "{plan:#}");

    let result = desk.json(0, ["restore", "vm", "DC01@latest"]);
    let copy = vm(&desk, "lab", "DC01-restored");
    assert_eq!(copy.state, VmState::Off);
    assert_eq!(result["vm_id"], copy.id.as_str());
    assert_ne!(copy.id, vm(&desk, "lab", VM).id);
    assert_same("the copy", &frozen, &disks_of(&desk, "lab", "DC01-restored"));
    assert_same("the point", &frozen, &disks_in(&desk, "DC01@latest"));
    assert_same("the original", &original, &disks_of(&desk, "lab", VM));
    assert_eq!(difference(&result, "name")["is"], "DC01-restored");
    assert_eq!(difference(&result, "id")["why"], "wanted");
    let switch = difference(&result, "network adapter Network Adapter: switch");
    assert_eq!((&switch["was"], &switch["is"]), (&"LAN".into(), &Value::Null));
    let unexplained = result["settings_diff"].as_array().unwrap().iter().filter(|one| one["why"] == "unexplained");
    assert_eq!(unexplained.count(), 0, "{result:#}");
    assert_in_order(&desk, "lab", "after a restore");
    assert!(
        !files_of(&desk, "lab").iter().any(|file| file.contains("e3-import")),
        "what only the import needed is gone"
    );

    // For people: the same in a table, and the id alone when that is all that is asked for.
    let shown = desk.ok(["restore", "vm", "DC01@latest", "--name", "Second", "--power-on", "--network", "LAN=LAN"]);
    assert!(shown.stdout.starts_with("done     Second ("), "{shown:?}");
    assert!(shown.stdout.contains("started\nSETTING"), "{shown:?}");
    assert!(shown.stderr.contains("plan     DC01 of point "), "{shown:?}");
    assert_eq!(vm(&desk, "lab", "Second").state, VmState::Running);
    let quiet = desk.ok(["restore", "vm", "DC01@latest", "--name", "Third", "--quiet"]);
    assert_eq!(quiet.stdout.trim(), vm(&desk, "lab", "Third").id.as_str());
    // It is a VM like any other.
    desk.ok(["backup", "Second"]);
}

#[test]
fn one_disk_of_several_is_enough_when_that_is_said() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    let result = desk.json(4, ["restore", "vm", "DC01@latest", "--disk", "1", "--yes"]);
    assert!(result["warnings"].as_array().unwrap().iter().any(|one| one.as_str().unwrap().contains("not restored")));
    assert_same("the copy", &frozen[1..], &disks_of(&desk, "lab", "DC01-restored"));
    let again = ["restore", "vm", "DC01@latest", "--disk", "1", "--yes", "--name", "Again", "--warnings-ok"];
    desk.ok(again);
}

#[test]
fn a_disk_is_quoted_before_it_is_written() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let restore = ["restore", "disk", "DC01@latest", "--disk", "0", "--to", "d.vhdx"];
    let plan = desk.json(0, restore.into_iter().chain(["--dry-run"]));
    assert!(!desk.path("d.vhdx").exists(), "a dry run writes nothing");
    assert_eq!(plan["size_bytes"], 24 * MIB);
    let shown = desk.ok(restore.into_iter().chain(["--dry-run"]));
    assert!(shown.stdout.starts_with("plan     disk 0, 24.0 MiB with "), "{shown:?}");
    let run = desk.ok(restore);
    assert!(run.stderr.contains("plan     disk 0, ") && run.stdout.starts_with("done     "), "{run:?}");
    assert_eq!(std::fs::metadata(desk.path("d.vhdx")).unwrap().len(), plan["len_bytes"]);
}

/// A host with other switches, that runs older VMs only.
fn other_host(desk: &Desk, newest: &str) {
    let switches = [("11111111", "Office"), ("22222222", "Test")]
        .map(|(id, name)| LabSwitch { id: format!("{id}-9B3C-408E-8E30-5E16A3AEB444"), name: name.into() });
    let options = LabOptions {
        host_name: "OTHER".into(),
        switches: switches.to_vec(),
        max_configuration_version: newest.into(),
        ..quick()
    };
    LabHost::create_with(desk.path("other"), options).unwrap();
}

const FOLDER: &str = r"D:\Restored VMs\it's here";

#[test]
fn scenario_10_another_host_has_other_switches_other_paths_and_an_older_version() {
    let desk = desk(VmOptions { tpm: true, ..VmOptions::default() });
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    other_host(&desk, "9.0");
    let there = ["restore", "vm", "DC01@latest", "--host", "lab:other", "--folder", FOLDER];

    let plan = desk.json(0, there.into_iter().chain(["--same-id", "--dry-run"]));
    let expected = ["switches", "tpm"].map(str::to_owned);
    assert_eq!(codes(&plan, "decide"), expected.into(), "{plan:#}");
    let run = desk.fails(5, "PREFLIGHT", there.into_iter().chain(["--same-id"]));
    assert!(run.stderr.contains("guardian") && run.stderr.contains("--yes"), "{run:?}");
    assert_eq!(files_of(&desk, "other"), BTreeSet::new(), "nothing is touched before it is decided");

    // This host's Windows should run the version, and it does not: the host says so, and nothing stays.
    let run = desk.run(there.into_iter().chain(["--yes"]));
    assert_eq!(run.exit, Some(9), "{run:?}");
    assert!(run.stderr.contains("10.0"), "{run:?}");
    assert_eq!((vm_names(&desk, "other"), files_of(&desk, "other")), (vec![], BTreeSet::new()));
    assert_in_order(&desk, "other", "after a failure");
    assert!(!desk.path("other/d/Restored VMs").exists(), "folders that were made go, too");

    let built = ["--from-settings", "--network", "LAN=Test", "--yes", "--power-on", "--name", "Neu"];
    let result = desk.json(4, there.into_iter().chain(built));
    assert_same("the VM", &frozen, &disks_of(&desk, "other", "Neu"));
    assert_eq!(result["started"], true, "{result:#}");
    assert_eq!(vm(&desk, "other", "Neu").disks[0].path, format!(r"{FOLDER}\Neu\Virtual Hard Disks\DC01.vhdx"));
    let version = difference(&result, "configuration version");
    assert_eq!((&version["was"], &version["is"]), (&"10.0".into(), &"9.0".into()));
    assert_eq!(difference(&result, "network adapter Network Adapter: switch")["is"], "Test");
    let warnings = result["warnings"].to_string();
    assert!(warnings.contains("9.0 instead of 10.0") && warnings.contains("TPM"), "{warnings}");
}

#[test]
fn scenario_10_a_version_that_the_host_does_not_run_is_known_before() {
    let desk = desk(VmOptions { version: "11.0".into(), ..VmOptions::default() });
    desk.ok(["backup", VM]);
    other_host(&desk, "10.0");
    let there = ["restore", "vm", "DC01@latest", "--host", "lab:other", "--folder", FOLDER, "--dry-run"];
    let plan = desk.json(5, there);
    assert_eq!(codes(&plan, "block"), ["configuration_version".to_owned()].into(), "{plan:#}");
    let plan = desk.json(0, there.into_iter().chain(["--from-settings"]));
    assert_eq!(codes(&plan, "decide"), ["configuration_version".to_owned()].into(), "{plan:#}");
}
