//! Only what differs, into the disks that are there.

use hyperv_sim::VmOptions;

use super::*;

const IN_PLACE: [&str; 4] = ["restore", "vm", "DC01@1", "--in-place"];

#[test]
fn only_what_differs_is_written_and_the_next_backup_is_full() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    guest_write(&desk, 2, 1);
    let latest = disks_of(&desk, "lab", VM);
    desk.lab().stop_vm(VM).unwrap();

    let plan = desk.json(0, IN_PLACE.into_iter().chain(["--dry-run"]));
    let segments = |a: &[u8], b: &[u8]| a.chunks(1 << 20).zip(b.chunks(1 << 20)).filter(|(a, b)| a != b).count() as u64;
    for (number, disk) in plan["disks"].as_array().unwrap().iter().enumerate() {
        let differing = segments(&frozen[number], &latest[number]);
        assert!(disk["differing_bytes"].as_u64().unwrap() <= differing * MIB, "{disk} of {differing}");
        assert!(
            disk["differing_bytes"].as_u64().unwrap() > (differing.saturating_sub(1)) * MIB,
            "{disk} of {differing}"
        );
    }
    assert_same("a dry run", &latest, &disks_of(&desk, "lab", VM));
    desk.fails(2, "USAGE", IN_PLACE);

    let result = desk.json(0, IN_PLACE.into_iter().chain(["--confirm", VM, "--power-on"]));
    assert_eq!(result["disks"], plan["disks"]);
    assert_same("the disks", &frozen, &disks_of(&desk, "lab", VM));
    let safety = result["safety_point_id"].as_str().unwrap();
    assert_same("the safety point", &latest, &disks_in(&desk, safety));
    assert_in_order(&desk, "lab", "after a restore in place");

    for expected in ["full", "incremental"] {
        let backup = desk.json(0, ["backup", VM]);
        for disk in backup["vms"][0]["disks"].as_array().unwrap() {
            assert_eq!(disk["mode"], expected, "{backup:#}");
            if expected == "full" {
                assert_eq!(disk["reason"], "restored_in_place", "{backup:#}");
            }
        }
    }
    assert_same("the point behind it", &frozen, &disks_in(&desk, "DC01@latest"));
}

#[test]
fn what_cannot_be_written_in_place_is_refused_untouched() {
    type Prepare = fn(&Desk);
    let table: [(&str, Prepare, &str); 5] = [
        ("it runs", |desk| desk.lab().start_vm(VM).unwrap(), "vm_state"),
        ("a checkpoint", |desk| drop(desk.lab().create_user_checkpoint(VM).unwrap()), "checkpoints"),
        (
            "another product's checkpoint",
            |desk| drop(desk.lab().create_foreign_recovery_checkpoint(VM).unwrap()),
            "checkpoints",
        ),
        ("another size", |desk| desk.lab().resize_disk(VM, 0, 32 * MIB).unwrap(), "disks"),
        ("a disk that is gone", |desk| drop(desk.lab().remove_disk(VM, 1).unwrap()), "disks"),
    ];
    for (case, prepare, code) in table {
        let desk = desk(VmOptions::default());
        desk.ok(["backup", VM]);
        desk.lab().stop_vm(VM).unwrap();
        prepare(&desk);
        let before = disks_of(&desk, "lab", VM);
        let plan = desk.json(5, IN_PLACE.into_iter().chain(["--dry-run"]));
        assert_eq!(codes(&plan, "block"), [code.to_owned()].into(), "{case}: {plan:#}");
        desk.fails(5, "PREFLIGHT", IN_PLACE.into_iter().chain(["--confirm", VM, "--no-safety-point"]));
        assert_same(case, &before, &disks_of(&desk, "lab", VM));
    }
}

#[test]
fn a_vm_that_is_gone_is_restored_as_a_new_one() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    desk.lab().stop_vm(VM).unwrap();
    host(&desk, "lab").remove_vm(&vm(&desk, "lab", VM).path).unwrap();
    let run = desk.fails(6, "NOT_FOUND", IN_PLACE);
    assert!(run.stderr.contains("as a new VM instead"), "{run:?}");
}
