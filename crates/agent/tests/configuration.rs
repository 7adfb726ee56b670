//! `config show`, `config check`, `status` and `man`.

mod support;

use serde_json::Value;
use support::{Desk, finish};

fn value_of<'v>(shown: &'v Value, key: &str) -> (&'v Value, &'v str) {
    let one = shown["values"].as_array().unwrap().iter().find(|one| one["key"] == key);
    let one = one.unwrap_or_else(|| panic!("{key} in {shown}"));
    (&one["value"], one["origin"].as_str().unwrap())
}

#[test]
fn every_value_says_where_it_is_from() {
    let desk = Desk::empty();
    std::fs::write(desk.path("config.toml"), "host = \"lab:other\"\n[limits]\nupload = \"1MiB\"\n").unwrap();
    let shown = desk.json(0, ["config", "show"]);
    assert_eq!(value_of(&shown, "repository").1, "environment");
    assert_eq!(value_of(&shown, "host"), (&"lab:lab".into(), "environment"));
    assert_eq!(value_of(&shown, "password"), (&"set".into(), "environment"));
    assert_eq!(value_of(&shown, "limits.upload").1, "user file");
    assert_eq!(value_of(&shown, "limits.vms_at_once"), (&2.into(), "built-in"));
    let flags = ["config", "show", "--host", "lab:third", "--limit=2MiB", "--password-file", "pw"];
    let shown = desk.json(0, flags);
    for key in ["host", "limits.upload", "password"] {
        assert_eq!(value_of(&shown, key).1, "flag", "{key}");
    }
    let shown = finish(desk.command(["config", "show", "--json"]).env_remove("E3_HOST")).json();
    assert_eq!(value_of(&shown, "host"), (&"lab:other".into(), "user file"));

    // A URL with keys in it is refused everywhere, and not shown here.
    let shown = desk.ok(["config", "show", "--origin", "--repo", "s3://key:hush@bucket/"]);
    assert!(shown.stdout.contains("--repo") && !shown.stdout.contains("hush"), "{shown:?}");
}

#[test]
fn a_check_says_what_a_start_would() {
    let desk = Desk::empty();
    desk.ok(["config", "check"]);
    finish(desk.command(["config", "check"]).env_remove("E3_PASSWORD")).expect_failure(2, "NO_PASSWORD");
    desk.fails(2, "BAD_LOCATION", ["config", "check", "--repo", "s3://bucket/"]);
    std::fs::write(desk.path("config.toml"), "[[job]]\nname = \"nightly\"\n").unwrap();
    assert!(desk.fails(2, "USAGE", ["config", "check"]).stderr.contains("neither `at` nor `every`"));
}

#[test]
fn status_sees_another_shell_at_work() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    assert_eq!(desk.json(0, ["status"]), serde_json::json!({ "agent": null, "work": [] }));
    let id = desk.json(0, ["vm", "list"])["vms"][0]["vm_id"].as_str().unwrap().to_owned();
    let state = backup::HostState::open(&desk.path("lab/e3-state")).unwrap();
    let lock = state.lock_vm(&id, "DC01").unwrap();
    let work = &desk.json(0, ["status"])["work"][0];
    assert_eq!(work["vm_name"], "DC01", "{work}");
    if cfg!(unix) {
        assert_eq!(work["process_id"], std::process::id());
    }
    drop(lock);
    assert!(desk.ok(["status"]).stdout.contains("work     none"));
}

#[test]
fn every_command_has_a_manual_page() {
    let desk = Desk::empty();
    desk.ok(["man", "pages"]);
    for page in ["e3-backup-agent", "e3-backup-agent-restore-vm", "e3-backup-agent-config-show"] {
        let text = std::fs::read_to_string(desk.path("pages").join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME") && text.contains("Examples:"), "{page}: {text}");
    }
    assert!(desk.ok(["help", "recovery"]).stdout.contains("restore vm VM@latest"));
}
