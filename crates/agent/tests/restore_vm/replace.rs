//! The original's place taken, and the original kept.

use hyperv::VmState;
use hyperv_sim::VmOptions;

use super::*;

#[test]
fn scenario_10_the_replaced_vm_is_kept_until_its_days_are_over() {
    let desk = desk(VmOptions { tpm: true, ..VmOptions::default() });
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    guest_write(&desk, 2, 2);
    let latest = disks_of(&desk, "lab", VM);
    let id = vm(&desk, "lab", VM).id;
    let restore = ["restore", "vm", "DC01@1", "--replace", "--power-on"];

    let run = desk.fails(2, "USAGE", restore);
    assert!(run.stderr.contains("--confirm \"DC01\""), "{run:?}");
    desk.fails(2, "USAGE", restore.into_iter().chain(["--yes"]));
    desk.fails(2, "USAGE", restore.into_iter().chain(["--confirm", "dc01"]));
    assert_eq!((vm_names(&desk, "lab").len(), vm(&desk, "lab", VM).state), (1, VmState::Running));

    let result = desk.json(0, restore.into_iter().chain(["--confirm", VM]));
    assert_eq!((&result["vm_id"], &result["started"]), (&id.as_str().into(), &true.into()), "{result:#}");
    assert_same("the restored VM", &frozen, &disks_of(&desk, "lab", id.as_str()));
    assert_eq!(difference(&result, "disk SCSI 0:0: path")["why"], "wanted");
    let kept_name = result["kept"]["vm_name"].as_str().unwrap();
    let kept = vm(&desk, "lab", kept_name);
    assert!(kept_name.starts_with("DC01 (replaced, kept until "), "{kept_name}");
    assert_eq!((kept.state.clone(), kept.tpm), (VmState::Off, true));
    assert_ne!(kept.id, id);
    assert_same("the kept VM", &latest, &disks_of(&desk, "lab", kept.id.as_str()));
    assert_in_order(&desk, "lab", "after a replacement");
    let now = host(&desk, "lab").capture_definition(&kept).unwrap();
    let connections = now.settings.iter().filter(|one| one.class == "Msvm_EthernetPortAllocationSettingData");
    for connection in connections.map(|one| one.to_instance().unwrap()) {
        assert_eq!(connection.get("EnabledState").as_u64(), Some(3), "disconnected: {connection:?}");
    }

    // The restored VM is backed up in full, as its files are new ones.
    let backup = desk.json(0, ["backup", id.as_str()]);
    assert_eq!(backup["vms"][0]["disks"][0]["mode"], "full", "{backup:#}");

    // As long as its days are not over it stays; then it goes with its files, and with nothing else.
    desk.ok(["restore", "vm", "DC01@latest", "--name", "X"]);
    assert_eq!(vm(&desk, "lab", kept_name).id, kept.id);
    let over = desk.path("lab/e3-state/kept").read_dir().unwrap().next().unwrap().unwrap().path();
    let mut record: Value = serde_json::from_slice(&std::fs::read(&over).unwrap()).unwrap();
    record["until"] = "2020-01-01T00:00:00Z".into();
    std::fs::write(&over, record.to_string()).unwrap();
    let run = desk.ok(["restore", "vm", "DC01@latest", "--name", "Y"]);
    assert!(run.stderr.contains(&format!("note: removed {kept_name}")), "{run:?}");
    assert_eq!(vm_names(&desk, "lab"), [VM, "X", "Y"]);
    assert!(!over.exists());
    assert!(kept.disks.iter().all(|disk| !desk.lab().host_file(&disk.path).unwrap().exists()), "its disks went, too");
    assert_in_order(&desk, "lab", "after its days");
}

#[test]
fn a_kept_vm_that_somebody_took_up_stays() {
    let desk = desk(VmOptions { running: false, ..VmOptions::default() });
    // A guest that is off wrote nothing.
    desk.ok(["backup", VM]);
    let result = desk.json(0, ["restore", "vm", "DC01@1", "--replace", "--keep-old-days", "0", "--confirm", VM]);
    let kept_name = result["kept"]["vm_name"].as_str().unwrap();
    desk.lab().rename_vm(kept_name, "mine now").unwrap();
    let run = desk.ok(["restore", "vm", "DC01@latest", "--name", "X"]);
    assert!(run.stderr.contains("was changed by others, and stays"), "{run:?}");
    let mine = vm(&desk, "lab", "mine now");
    desk.lab().start_vm(mine.id.as_str()).unwrap();
}

#[test]
fn scenario_10_nothing_to_replace_is_the_vm_itself_again() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    let original = vm(&desk, "lab", VM);
    desk.lab().stop_vm(VM).unwrap();
    host(&desk, "lab").remove_vm(&original.path).unwrap();
    let result = desk.json(0, ["restore", "vm", "DC01@latest", "--replace", "--power-on"]);
    assert_eq!((&result["vm_id"], &result["kept"]), (&original.id.as_str().into(), &Value::Null));
    assert_same("the VM", &frozen, &disks_of(&desk, "lab", VM));
}
