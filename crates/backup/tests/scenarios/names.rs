//! 8: names that are not unique, and names that a careless query would take for something else.

use backup::{Cancel, list_points};
use hyperv::Host;
use hyperv_sim::{DiskSource, VmOptions};

use crate::support::{Rig, quick_lab};

#[test]
fn scenario_08_names_that_repeat_and_names_that_bite() {
    let rig = Rig::without_vm(quick_lab());
    let disk = [DiskSource::Empty { size_bytes: 4 << 20 }];
    let names = [
        "plain",
        "twin",
        "twin",
        "O'Brien's \"server\"",
        "[brackets] {and} (more)",
        "100 % _wild*card?",
        r"back\slash \\ and / slash",
        "Übung – 名前 🦀",
        "' OR Name LIKE '%",
    ];
    let ids: Vec<String> = (0..)
        .zip(names)
        .map(|(number, name)| {
            let folder = format!(r"C:\Virtual Machines\it's no. {number} & co");
            rig.lab.add_vm(name, &disk, VmOptions { folder: Some(folder), ..VmOptions::default() }).unwrap()
        })
        .collect();
    for (number, id) in (0_u64..).zip(&ids) {
        rig.lab.guest_write_at(id, 0, number * 4096, format!("this is VM {number}").as_bytes()).unwrap();
    }

    let found = Host::new(rig.lab.seam()).find_vm("twin").unwrap_err().to_string();
    assert!(found.contains(&ids[1]) && found.contains(&ids[2]), "{found}");
    assert!(rig.back_up_as("twin", rig.lab.seam(), &Cancel::default()).is_err());
    assert!(rig.points().is_empty());

    for round in 0..2 {
        for (number, (name, id)) in names.iter().zip(&ids).enumerate() {
            let selector = if *name == "twin" { id } else { *name };
            let label = format!("{name}, round {round}");
            rig.lab.guest_write_at(id, 0, 1 << 20, &[round + 1; 512]).unwrap();
            let state = rig.guest_disks(id);
            let report = rig
                .back_up_as(selector, rig.lab.seam(), &Cancel::default())
                .unwrap_or_else(|error| panic!("{label}: {error:?}"));
            assert_eq!((&*report.description.vm_id, &*report.description.vm_name), (&**id, *name), "{label}");
            rig.assert_restores(&label, &report.point, &state);
            rig.assert_vm_is_clean(&label, id);
            assert_eq!(list_points(&rig.repo, Some(id)).unwrap().len(), usize::from(round) + 1, "{label}, VM {number}");
        }
    }
}
