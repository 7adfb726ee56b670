//! Every obstacle that a host can be given, alone and together: all in one answer, and nothing is touched.

use hyperv_sim::VmOptions;

use super::*;

type Prepare = fn(&Desk);

/// What is done to the host first, arguments, severity and code.
const TABLE: &[(&str, Prepare, &[&str], &str, &str)] = &[
    ("the original has the id", |_| (), &["--same-id"], "block", "vm_id"),
    ("a folder without a drive", |_| (), &["--folder", "VMs"], "block", "paths"),
    ("no such volume", |_| (), &["--folder", "VMs"], "block", "folder"),
    (
        "a file where the folder should be",
        |desk| std::fs::write(desk.path("lab/c/VMs/taken"), b"x").unwrap(),
        &["--folder", r"C:\VMs\taken"],
        "block",
        "folder",
    ),
    (
        "a full volume",
        |desk| desk.lab().set_options(|options| options.free_bytes = MIB).unwrap(),
        &[],
        "block",
        "space",
    ),
    (
        "a volume that is full once the disks are",
        |desk| desk.lab().set_options(|options| options.free_bytes = 30 * MIB).unwrap(),
        &[],
        "decide",
        "space_when_full",
    ),
    ("a switch that never was", |_| (), &["--network", "WAN=LAN"], "block", "switches"),
    ("a switch that is not here", |_| (), &["--network", "LAN=WAN"], "decide", "switches"),
    ("more memory than the host has", |_| (), &["--memory", "1TiB"], "block", "memory"),
    ("more processors than the host has", |_| (), &["--processors", "99"], "block", "processors"),
    ("a name that is taken", |_| (), &["--name", VM], "decide", "vm_name"),
    ("a disk that is not in the point", |_| (), &["--disk", "7"], "block", "disk_files"),
    ("a disk left out", |_| (), &["--disk", "0"], "decide", "disks_left_out"),
    (
        "a VM to be replaced with checkpoints",
        |desk| drop(desk.lab().create_user_checkpoint(VM).unwrap()),
        &["--replace"],
        "block",
        "replaced_vm",
    ),
    (
        "a VM to be replaced with another product's checkpoint",
        |desk| drop(desk.lab().create_foreign_recovery_checkpoint(VM).unwrap()),
        &["--replace"],
        "block",
        "replaced_vm",
    ),
    ("a new id by building", |_| (), &["--same-id", "--from-settings"], "decide", "vm_id"),
];

#[test]
fn scenario_10_each_obstacle_is_found_and_nothing_is_touched() {
    let fresh = desk(VmOptions::default());
    fresh.ok(["backup", VM]);
    let before = fresh.lab().options().unwrap();
    for (case, prepare, arguments, severity, code) in TABLE {
        prepare(&fresh);
        let files = files_of(&fresh, "lab");
        let restore = || ["restore", "vm", "DC01@latest"].into_iter().chain(arguments.iter().copied());
        let exit = if *severity == "block" { 5 } else { 0 };
        let plan = fresh.json(exit, restore().chain(["--dry-run"]));
        assert!(codes(&plan, severity).contains(*code), "{case}: {plan:#}");

        // Without an answer it is refused as well, in the same words.
        let run = fresh.fails(5, "PREFLIGHT", restore().chain(["--confirm", VM]));
        let line = run.stderr.lines().find(|line| line.starts_with("  why  ")).unwrap_or_default();
        assert!(line.contains(code), "{case}: {line}");
        assert_eq!(vm_names(&fresh, "lab"), [VM], "{case}");
        assert_eq!(files_of(&fresh, "lab"), files, "{case}");
        assert_in_order_of(&fresh, case);

        let lab = fresh.lab();
        lab.set_options(|options| *options = before.clone()).unwrap();
        let (user, recovery) = lab.checkpoints(VM).unwrap();
        for checkpoint in user.iter().chain(&recovery) {
            lab.delete_checkpoint(VM, checkpoint).unwrap();
            while !lab.is_at_rest(VM).unwrap() {
                lab.clock().sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}

/// As after any refusal, whatever checkpoints the case has made.
fn assert_in_order_of(desk: &Desk, case: &str) {
    assert!(host(desk, "lab").list_planned_vms().unwrap().is_empty(), "{case}");
    let journals = desk.path("lab/e3-state/restores");
    assert!(std::fs::read_dir(journals).map_or(0, Iterator::count) == 0, "{case}");
}

#[test]
fn all_obstacles_are_in_one_answer() {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let all = ["--same-id", "--folder", "VMs", "--memory", "1TiB", "--processors", "99", "--network", "WAN=LAN"];
    let restore = || ["restore", "vm", "DC01@latest"].into_iter().chain(all);
    let expected: BTreeSet<String> =
        ["vm_id", "paths", "folder", "memory", "processors", "switches"].map(str::to_owned).into();
    let plan = desk.json(5, restore().chain(["--dry-run"]));
    assert_eq!(codes(&plan, "block"), expected, "{plan:#}");
    let lines = support::finish(desk.command(restore()).arg("--json")).json_lines();
    assert_eq!(codes(&lines[0], "block"), expected);
    assert_eq!(
        (&lines[1]["type"], &lines[1]["code"], &lines[1]["exit"]),
        (&"error".into(), &"PREFLIGHT".into(), &5.into())
    );
    // Those that block come first.
    let shown = desk.run(restore().chain(["--dry-run"]));
    assert_eq!(shown.exit, Some(5));
    let groups: Vec<&str> = shown.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let (solve, decide) =
        (groups.iter().rposition(|one| *one == "solve"), groups.iter().position(|one| *one == "decide"));
    assert!(solve.unwrap() < decide.unwrap(), "{shown:?}");
}

#[test]
fn flags_that_exclude_each_other_are_wrong_usage() {
    let desk = desk(VmOptions::default());
    for flags in [
        &["--new-id", "--same-id"][..],
        &["--new-id", "--replace"],
        &["--disconnect", "--network", "A=B"],
        &["--in-place", "--replace"],
        &["--in-place", "--name", "X"],
        &["--no-safety-point"],
        &["--network", "LAN"],
    ] {
        let run = desk.run(["restore", "vm", "DC01@latest"].into_iter().chain(flags.iter().copied()));
        assert_eq!(run.exit, Some(2), "{flags:?}: {run:?}");
    }
    desk.fails(6, "NOT_FOUND", ["restore", "vm", "DC01@latest"]);
}
