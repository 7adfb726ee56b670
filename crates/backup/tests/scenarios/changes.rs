//! 2: checkpoints, disks and sizes change between two runs.

use backup::FullReason;
use hyperv_sim::{DiskSource, GuestWrites, Spread};

use crate::support::{Rig, full_reasons, quick_lab};

/// What happens between two runs, and why each disk is then read in full, if it is.
struct Step {
    name: &'static str,
    act: fn(&Rig, &mut Memory),
    expected: &'static [Option<FullReason>],
}

/// What a later step needs of an earlier one.
#[derive(Default)]
struct Memory {
    checkpoint: String,
    removed_file: String,
}

const VM: &str = "DC01";

#[test]
fn scenario_02_checkpoints_disks_and_sizes_change_between_runs() {
    use FullReason::{ChainChanged, First, Resized, UserCheckpoints};
    let steps = [
        Step { name: "first", act: |_, _| {}, expected: &[Some(First), Some(First)] },
        Step { name: "nothing", act: |_, _| {}, expected: &[None, None] },
        Step {
            name: "a user checkpoint is made",
            act: |rig, memory| memory.checkpoint = rig.lab.create_user_checkpoint(VM).unwrap(),
            expected: &[Some(UserCheckpoints), Some(UserCheckpoints)],
        },
        Step { name: "and stays", act: |_, _| {}, expected: &[None, None] },
        Step {
            name: "it is applied",
            act: |rig, memory| {
                rig.lab.apply_user_checkpoint(VM, &memory.checkpoint).unwrap();
                rig.lab.start_vm(VM).unwrap();
            },
            // The set of checkpoints is what it was, and so is the one from which the disks branch off.
            expected: &[Some(ChainChanged), Some(ChainChanged)],
        },
        Step { name: "and that stays", act: |_, _| {}, expected: &[None, None] },
        Step {
            name: "it is deleted",
            act: |rig, memory| {
                rig.lab.delete_checkpoint(VM, &memory.checkpoint).unwrap();
                rig.wait_for_rest(VM);
            },
            expected: &[Some(UserCheckpoints), Some(UserCheckpoints)],
        },
        Step {
            name: "a disk is added",
            act: |rig, _| assert_eq!(rig.lab.add_disk(VM, &DiskSource::Empty { size_bytes: 8 << 20 }).unwrap(), 2),
            expected: &[None, None, Some(First)],
        },
        Step {
            name: "a disk moves to another slot",
            act: |rig, _| assert_eq!(rig.lab.move_disk_to(VM, 0, 9).unwrap(), 2),
            expected: &[None, None, None],
        },
        Step {
            name: "a disk is removed",
            act: |rig, memory| memory.removed_file = rig.lab.remove_disk(VM, 1).unwrap(),
            expected: &[None, None],
        },
        Step {
            name: "and comes back",
            act: |rig, memory| assert_eq!(rig.lab.attach_disk(VM, &memory.removed_file, 20).unwrap(), 2),
            // The last point does not have it, and the ids of an earlier one belong to a superseded reference point.
            expected: &[None, None, Some(First)],
        },
        Step {
            name: "a disk grows",
            act: |rig, _| rig.lab.resize_disk(VM, 0, 48 << 20).unwrap(),
            expected: &[Some(Resized), None, None],
        },
        Step {
            name: "the power fails",
            act: |rig, _| {
                rig.lab.unclean_stop(VM).unwrap();
                rig.lab.start_vm(VM).unwrap();
            },
            expected: &[None, None, None],
        },
        Step {
            name: "the VM is renamed and back",
            act: |rig, _| {
                rig.lab.rename_vm(VM, "DC02").unwrap();
                rig.lab.rename_vm("DC02", VM).unwrap();
            },
            expected: &[None, None, None],
        },
        Step { name: "the VM is off", act: |rig, _| rig.lab.stop_vm(VM).unwrap(), expected: &[None, None, None] },
    ];
    let disks = [64 << 20, 32 << 20].map(|size_bytes| DiskSource::Empty { size_bytes });
    let rig = Rig::with(quick_lab(), &disks);
    rig.guest_write(1, 40);
    let mut memory = Memory::default();
    let mut kept = Vec::new();
    for (number, step) in (10..).zip(&steps) {
        (step.act)(&rig, &mut memory);
        if step.name != "the VM is off" {
            let writes = GuestWrites { seed: number, mib: 2, spread: Spread::Scattered };
            rig.lab.guest_write_only(VM, writes).unwrap();
        }
        let state = rig.guest_disks(VM);
        let report = rig.back_up().unwrap_or_else(|error| panic!("{}: {error:?}", step.name));
        assert_eq!(full_reasons(&report), step.expected, "{}", step.name);
        rig.assert_restores(step.name, &report.point, &state);
        kept.push((step.name, report.point, state));
        rig.wait_for_rest(VM);
    }
    for (name, point, state) in &kept {
        rig.assert_restores(&format!("{name}, at the end"), point, state);
    }
    rig.assert_host_is_clean("at the end");
}
