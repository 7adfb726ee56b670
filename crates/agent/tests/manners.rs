//! Output, prompts, passwords, configuration and help.

mod support;

use support::{Desk, PASSWORD, finish};

#[test]
fn nobody_is_asked_without_a_terminal() {
    let desk = Desk::empty();
    for arguments in [&["repo", "create"][..], &["points", "list"], &["repo", "connect"]] {
        if arguments[0] == "points" {
            desk.ok(["repo", "create"]);
        }
        let run = finish(desk.command(arguments).env_remove("E3_PASSWORD"));
        run.expect_failure(2, "NO_PASSWORD");
        assert!(run.stderr.contains("--password-file"), "{run:?}");
    }
}

#[test]
fn passwords_come_from_a_file_or_the_environment() {
    let desk = Desk::empty();
    for (text, exit) in [("", 2), ("\n", 2), (" x\n", 2), ("x \n", 2), ("x\ty\n", 0)] {
        std::fs::write(desk.path("pw"), text).unwrap();
        let run = desk.run(["repo", "create", &format!("repo-{exit}"), "--password-file", "pw"]);
        assert_eq!(run.exit, Some(exit), "{text:?}: {run:?}");
    }
    // The file goes before the environment, and the end of its line does not count.
    std::fs::write(desk.path("pw"), "x\ty\r\n").unwrap();
    desk.ok(["repo", "status", "repo-0", "--password-file", "pw"]);
    desk.fails(12, "WRONG_PASSWORD", ["repo", "status", "repo-0"]);
    desk.fails(2, "USAGE", ["repo", "status", "repo-0", "--password-file", "no-such"]);
    let run = finish(desk.command(["repo", "create", "other"]).env("E3_PASSWORD", ""));
    run.expect_failure(2, "BAD_PASSWORD");
    assert!(!desk.path("other").exists(), "nothing was made");
    assert_eq!(desk.run(["repo", "status", "--password", "x"]).exit, Some(2), "there is no such argument");
}

#[test]
fn a_repository_gets_another_password() {
    let desk = Desk::new();
    let change = |old: &str, new: &str| {
        std::fs::write(desk.path("old"), old).unwrap();
        std::fs::write(desk.path("new"), new).unwrap();
        desk.run(["repo", "change-password", "--password-file", "old", "--new-password-file", "new"])
    };
    change("guess", "other").expect_failure(12, "WRONG_PASSWORD");
    change(PASSWORD, PASSWORD).expect_failure(2, "BAD_PASSWORD");
    change(PASSWORD, " x").expect_failure(2, "BAD_PASSWORD");
    change(PASSWORD, "").expect_failure(2, "BAD_PASSWORD");
    let nobody = desk.fails(2, "NO_PASSWORD", ["repo", "change-password"]);
    assert!(nobody.stderr.contains("--new-password-file"), "{nobody:?}");
    desk.ok(["repo", "status"]);

    let changed = change(PASSWORD, "other\n");
    assert_eq!(changed.exit, Some(0), "{changed:?}");
    assert!(changed.stderr.contains("repo kit") && changed.stderr.contains("every host"), "{changed:?}");
    desk.fails(12, "WRONG_PASSWORD", ["repo", "status"]);
    desk.ok(["repo", "status", "--password-file", "new"]);
    // Whoever did not learn that it was done does it again.
    let again = change(PASSWORD, "other");
    assert!(again.exit == Some(0) && again.stdout.contains("already"), "{again:?}");
}

#[test]
fn a_recovery_kit_and_this_program_are_enough() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);
    let printed = desk.ok(["repo", "kit"]).stdout;
    for wanted in
        [PASSWORD, "repo connect", "points list", "restore vm VM@latest", "kopia repository connect filesystem"]
    {
        assert!(printed.contains(wanted), "{wanted}: {printed}");
    }
    assert!(printed.lines().all(|line| line.chars().count() <= 120 || line.contains("/")), "fits a sheet: {printed}");

    let written = desk.ok(["repo", "kit", "--to", "kit.txt"]);
    assert!(written.stderr.contains("delete"), "{written:?}");
    desk.fails(5, "TARGET_EXISTS", ["repo", "kit", "--to", "kit.txt"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(desk.path("kit.txt")).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // Another machine, with the sheet alone: the commands as they stand on it.
    let kit = std::fs::read_to_string(desk.path("kit.txt")).unwrap();
    let typed = kit.lines().filter_map(|line| line.trim().strip_prefix("e3-backup-agent "));
    let typed: Vec<String> =
        typed.map(|line| line.replace("VM@latest", "DC01@latest").replace("D:\\VMs", "D:\\New")).collect();
    assert_eq!(typed.len(), 3, "{kit}");
    let other = Desk::empty();
    std::fs::copy(desk.path("kit.txt"), other.path("kit.txt")).unwrap();
    other.ok(["lab", "create", "lab"]);
    for line in typed {
        let words = line.replace("--host local", "--host lab:lab");
        let mut command = other.command(words.split_whitespace().map(|word| word.trim_matches('"')));
        let run = finish(command.env_remove("E3_PASSWORD").env_remove("E3_REPOSITORY"));
        assert_eq!(run.exit, Some(0), "{words}: {run:?}");
    }
    assert_eq!(other.lab().disk_count("DC01").unwrap(), 1);
}

#[test]
fn connect_remembers_the_place_and_not_the_password() {
    let desk = Desk::new();
    desk.fails(10, "NO_REPOSITORY", ["repo", "connect", "nowhere"]);
    let mut wrong = desk.command(["repo", "connect", "repo"]);
    finish(wrong.env("E3_PASSWORD", "guess")).expect_failure(12, "WRONG_PASSWORD");
    assert!(!desk.path("config.toml").exists());
    desk.ok(["repo", "connect", "repo"]);
    let config = std::fs::read_to_string(desk.path("config.toml")).unwrap();
    assert!(config.contains(desk.path("repo").to_str().unwrap()) && !config.contains(PASSWORD), "{config}");

    let mut remembered = desk.command(["repo", "status", "--json"]);
    remembered.env_remove("E3_REPOSITORY").current_dir("/");
    let status = finish(&mut remembered);
    assert_eq!(status.exit, Some(0), "{status:?}");
    // The environment goes before the file, the flag before the environment.
    desk.fails(10, "NO_REPOSITORY", ["repo", "status", "--repo", "nowhere"]);
    finish(desk.command(["repo", "status"]).env("E3_REPOSITORY", "nowhere")).expect_failure(10, "NO_REPOSITORY");

    std::fs::write(desk.path("config.toml"), "repositry = \"x\"\n").unwrap();
    let run = desk.fails(2, "USAGE", ["repo", "status"]);
    assert!(run.stderr.contains("repositry"), "{run:?}");
    desk.ok(["version"]);
}

#[test]
fn help_is_there_and_mistakes_are_met() {
    let desk = Desk::empty();
    let short = desk.ok(["-h"]).stdout;
    assert!(short.lines().count() <= 40 && short.contains("Examples:"), "{short}");
    let long = desk.ok(["backup", "--help"]).stdout;
    assert!(long.contains("--progress") && long.contains("--segment-size 256KiB"), "{long}");
    assert_eq!(desk.ok(["help", "backup"]).stdout, long);
    for (topic, word) in
        [("exit-codes", "wrong repository password"), ("points", "@latest"), ("environment", "E3_PASSWORD")]
    {
        assert!(desk.ok(["help", topic]).stdout.contains(word), "{topic}");
    }
    desk.fails(2, "USAGE", ["help", "nonsense"]);
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(desk.ok(["completion", shell]).stdout.contains("e3-backup-agent"), "{shell}");
    }
    for (arguments, suggestion) in
        [(&["bakcup", "X"][..], "backup"), (&["backup", "X", "--ful"], "--full"), (&["points", "lst"], "list")]
    {
        let run = desk.run(arguments);
        assert_eq!((run.exit, &*run.stdout), (Some(2), ""), "{run:?}");
        assert!(run.stderr.contains("similar") && run.stderr.contains(suggestion), "{run:?}");
    }
    let error = finish(&mut desk.command(["bakcup", "--json"]));
    assert_eq!((error.exit, &*error.stderr), (Some(2), ""), "{error:?}");
    assert_eq!(error.json()["code"], "USAGE");
    for arguments in
        [&["backup"][..], &["verify"], &["points", "show"], &["backup", "X", "--all"], &["lab", "add-vm", "lab", "X"]]
    {
        assert_eq!(desk.run(arguments).exit, Some(2), "{arguments:?}");
    }
}

#[test]
fn progress_has_its_forms() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    let plain = desk.ok(["backup", "DC01"]);
    assert!(plain.stderr.contains(" backup DC01: creating the checkpoint\n"), "{plain:?}");
    assert!(!plain.stderr.contains('\r') && !plain.stderr.contains('\u{1b}'), "{plain:?}");
    assert_eq!(desk.ok(["backup", "DC01", "--progress", "none"]).stderr, "");
    assert_eq!(desk.ok(["backup", "DC01", "--quiet"]).stderr, "");
    let json = desk.ok(["backup", "DC01", "--progress", "json"]).stderr;
    for line in json.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{json}"));
        assert!(["phase", "progress"].contains(&object["type"].as_str().unwrap()), "{object}");
    }
    let bar = desk.ok(["verify", "--all", "--progress", "bar"]);
    assert!(bar.stdout.contains("every part is there"), "{bar:?}");
}

#[test]
fn traces_and_causes_are_for_those_who_ask() {
    let desk = Desk::new();
    let calm = desk.fails(6, "NOT_FOUND", ["points", "show", "zz"]);
    assert!(!calm.stderr.contains("cause"), "{calm:?}");
    assert!(calm.stderr.lines().count() <= 6, "{calm:?}");
    let chatty = desk.fails(6, "NOT_FOUND", ["points", "show", "zz", "-v"]);
    assert!(chatty.stderr.contains("  cause  "), "{chatty:?}");
    let colored = desk.run(["points", "show", "zz", "--color", "always"]);
    assert!(colored.stderr.contains("\u{1b}[") && !calm.stderr.contains('\u{1b}'), "{colored:?}");
}

/// Hostile names must not reach a terminal as they are.
#[test]
fn names_cannot_move_the_cursor() {
    let desk = Desk::new();
    let name = "evil\u{1b}[2J\u{202e}x";
    desk.ok(["lab", "add-vm", "lab", name, "--size", "4MiB"]);
    for run in [desk.ok(["vm", "list"]), desk.ok(["backup", name]), desk.ok(["points", "list"])] {
        let text = run.stdout + &run.stderr;
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text:?}");
        assert!(text.contains("evil\u{fffd}[2J\u{fffd}x"), "{text:?}");
    }
}

#[test]
fn tab_offers_what_earlier_commands_saw() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 3);
    desk.add_vm("SQL 01", 8, 4);
    // As fish asks: the words so far, the last of them unfinished.
    let offered = |words: &[&str]| {
        let mut command = desk.command(["--", "e3-backup-agent"]);
        let run = finish(command.args(words).env("COMPLETE", "fish"));
        assert_eq!((run.exit, &*run.stderr), (Some(0), ""), "{run:?}");
        run.stdout.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(offered(&["back"]).contains(&"backup".to_owned()));
    assert!(offered(&["backup", "--fu"]).contains(&"--full".to_owned()));
    let has = |words: &[&str], value: &str| offered(words).iter().any(|one| one == value);
    assert!(!has(&["backup", ""], "DC01"), "nothing was seen yet");

    desk.ok(["vm", "list"]);
    assert!(has(&["backup", ""], "DC01") && has(&["backup", "DC01", "SQL"], "SQL 01"));
    let made = desk.json(0, ["backup", "DC01"]);
    let id = made["vms"][0]["point_id"].as_str().unwrap();
    desk.ok(["points", "list"]);
    for words in [&["restore", "disk", ""][..], &["restore", "vm", ""], &["points", "show", ""], &["verify", ""]] {
        assert!(has(words, id) && has(words, "DC01@latest"), "{words:?}: {:?}", offered(words));
    }
    assert!(!has(&["snapshot", "restore", ""], id));
    let listed = desk.json(0, ["snapshot", "list"]);
    assert!(has(&["snapshot", "restore", ""], listed["snapshots"][0]["snapshot_id"].as_str().unwrap()));
}
