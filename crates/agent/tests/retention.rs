//! `retention` and the verbs of `points` that change something, as a user meets them.

mod support;

use serde_json::Value;
use support::{Desk, Run};

/// A VM with this many points.
fn desk_with_points(points: u64) -> Desk {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    for seed in 0..points {
        if seed > 0 {
            desk.guest_writes("DC01", seed, 1);
        }
        desk.ok(["backup", "DC01"]);
    }
    desk
}

/// Ids, newest first.
fn ids(desk: &Desk) -> Vec<String> {
    desk.ok(["points", "list", "--quiet"]).stdout.lines().map(str::to_owned).collect()
}

/// Ids that a plan lets go, and reasons of those it keeps, newest first.
fn planned(plan: &Value) -> (Vec<String>, Vec<Vec<String>>) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let points = plan["vms"][0]["points"].as_array().unwrap();
    let (keep, go): (Vec<&Value>, Vec<&Value>) = points.iter().partition(|point| point["keep"] == true);
    let reasons = |point: &&Value| point["reasons"].as_array().unwrap().iter().map(text).collect();
    (go.iter().map(|point| text(&point["point_id"])).collect(), keep.iter().map(reasons).collect())
}

fn refused_naming(run: &Run, flag: &str) {
    run.expect_failure(2, "NOT_CONFIRMED");
    assert!(run.stderr.contains(flag), "{run:?}");
}

#[test]
fn a_policy_is_tried_stored_and_applied() {
    let desk = desk_with_points(4);
    let all = ids(&desk);
    // Every new VM keeps everything.
    let plan = desk.json(0, ["retention", "plan"]);
    assert_eq!((&plan["keep"], &plan["let_go"]), (&4.into(), &0.into()));
    assert_eq!(plan["vms"][0]["policy_origin"], "repository");
    let run = desk.ok(["retention", "apply"]);
    assert!(run.stderr.contains("nothing goes"), "{run:?}");

    // Tried with flags, which change nothing.
    let (go, kept) = planned(&desk.json(0, ["retention", "plan", "DC01", "--keep-latest", "2"]));
    assert_eq!(
        (go.as_slice(), kept),
        (&all[2..], vec![vec!["latest-1".into(), "newest-sound".into()], vec!["latest-2".into()]])
    );
    let run = desk.ok(["retention", "apply", "--dry-run", "--keep-latest", "2", "--quiet"]);
    assert_eq!(run.stdout.lines().collect::<Vec<_>>(), all[2..]);
    assert_eq!(ids(&desk), all);

    // Stored, which shortens what is kept, and so is confirmed.
    let set = ["retention", "set", "DC01", "--keep-latest", "3"];
    refused_naming(&desk.run(set), "--confirm DC01");
    refused_naming(&desk.run([&set[..], &["--yes"]].concat()), "--confirm DC01");
    refused_naming(&desk.run([&set[..], &["--confirm", "DC02"]].concat()), "--confirm DC01");
    assert_eq!(desk.json(0, [&set[..], &["--dry-run"]].concat())["is_stored"], false);
    assert_eq!(desk.json(0, ["retention", "plan"])["let_go"], 0, "not stored yet");
    let stored = desk.json(0, [&set[..], &["--confirm", "DC01"]].concat());
    assert_eq!((&stored["is_stored"], &stored["newly_let_go"]), (&true.into(), &serde_json::json!([all[3]])));
    assert_eq!(planned(&desk.json(0, ["retention", "plan"])).0, all[3..]);

    // Applied: by name for a VM, by `all` for all of them.
    refused_naming(&desk.run(["retention", "apply"]), "--confirm all");
    refused_naming(&desk.run(["retention", "apply", "DC01", "--confirm", "all"]), "--confirm DC01");
    assert_eq!(ids(&desk), all);
    let applied = desk.json(0, ["retention", "apply", "--confirm", "all"]);
    assert_eq!((&applied["gone"], &applied["vms"][0]["gone"]), (&1.into(), &serde_json::json!([all[3]])));
    assert_eq!(ids(&desk), all[..3]);
    let run = desk.ok(["retention", "apply", "DC01", "--keep-latest", "1", "--confirm", "DC01"]);
    assert!(run.stdout.matches("gone").count() >= 2 && run.stderr.contains("maintenance"), "{run:?}");
    assert_eq!(ids(&desk), all[..1]);

    // What is left is whole, and the next backup goes on from it.
    let expected = desk.guest_writes("DC01", 99, 1);
    let backup = desk.json(0, ["backup", "DC01"]);
    assert_eq!(backup["vms"][0]["disks"][0]["mode"], "incremental");
    assert_eq!(desk.restored_hash("DC01@latest", 0), expected[0]);
    desk.ok(["verify", "--all", "--level", "full"]);
    // Longer again is nobody's loss.
    desk.ok(["retention", "set", "--all", "--keep-all"]);
    assert_eq!(desk.json(0, ["retention", "plan"])["let_go"], 0);
}

#[test]
fn holds_are_shown_keep_points_and_end() {
    let desk = desk_with_points(3);
    let all = ids(&desk);
    let run = desk.ok(["points", "hold", "DC01@3", "--reason", "ticket 4711", "--until", "2999-01-31"]);
    assert!(run.stdout.contains("held   ticket 4711, until 2999-01-31"), "{run:?}");
    desk.ok(["points", "hold", "DC01@2"]);
    let list = desk.ok(["points", "list"]).stdout;
    assert!(list.contains("HELD") && list.contains("ticket 4711, until 2999-01-31 00:00:00"), "{list}");
    assert!(desk.ok(["points", "show", "DC01@3"]).stdout.contains("held         ticket 4711"));
    let held = &desk.json(0, ["points", "show", "DC01@3"])["point"]["holds"][0];
    assert_eq!((&held["hold_reason"], &held["until"]), (&"ticket 4711".into(), &"2999-01-31T00:00:00Z".into()));

    let (go, kept) = planned(&desk.json(0, ["retention", "plan", "--keep-latest", "1"]));
    assert!(go.is_empty());
    assert_eq!(kept[1..], [vec!["held".to_owned()], vec!["held".to_owned()]]);

    // Every obstacle at once, nothing done.
    let run = desk.fails(5, "POINT_PROTECTED", ["points", "delete", "DC01@1", "DC01@2", "DC01@3", "--confirm", "DC01"]);
    for text in [&all[0], &all[1], &all[2], "ticket 4711", "last sound"] {
        assert!(run.stderr.contains(text), "{text}: {run:?}");
    }
    assert_eq!(ids(&desk), all);

    let run = desk.ok(["points", "release", "DC01@2", "DC01@3", "DC01@1"]);
    assert!(run.stdout.contains("was held: ticket 4711") && run.stdout.contains("was not held"), "{run:?}");
    let run = desk.ok(["points", "delete", "DC01@2", "--dry-run"]);
    assert!(run.stdout.contains("would be deleted"), "{run:?}");
    refused_naming(&desk.run(["points", "delete", "DC01@2"]), "--confirm DC01");
    let deleted = desk.json(0, ["points", "delete", "DC01@2", "DC01@3", "--confirm", "DC01"]);
    assert_eq!(deleted["points"].as_array().unwrap().len(), 2);
    assert_eq!(ids(&desk), all[..1]);
    desk.fails(5, "POINT_PROTECTED", ["points", "delete", "DC01@1", "--confirm", "DC01"]);
    desk.ok(["verify", "--all", "--level", "full"]);
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_done() {
    let desk = Desk::new();
    let run = desk.ok(["retention", "plan"]);
    assert!(run.stderr.contains("holds no points yet"), "{run:?}");
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);
    desk.fails(6, "NOT_FOUND", ["retention", "plan", "DC02"]);
    desk.fails(6, "NOT_FOUND", ["points", "hold", "ffff"]);
    desk.fails(2, "USAGE", ["retention", "plan", "--keep-latest", "0"]);
    desk.fails(2, "USAGE", ["points", "hold", "DC01@1", "--until", "2001-01-01"]);
    desk.fails(2, "USAGE", ["points", "hold", "DC01@1", "--reason", "two\nlines"]);
    for wrong in [
        &["retention", "plan", "--keep-latest", "-1"][..],
        &["retention", "set", "DC01"],
        &["retention", "set", "--keep-daily", "3"],
        &["retention", "set", "DC01", "--keep-all", "--keep-daily", "3"],
        &["points", "hold", "DC01@1", "--until", "soon"],
        &["points", "delete"],
    ] {
        assert_eq!(desk.run(wrong).exit, Some(2), "{wrong:?}");
    }

    // A name that two VMs have.
    desk.add_vm("TWIN", 4, 2);
    desk.add_vm("TWIN", 4, 3);
    desk.ok(["backup", "--all"]);
    desk.fails(6, "AMBIGUOUS", ["retention", "plan", "TWIN"]);
    let vms = desk.json(0, ["retention", "plan"]);
    let twin = vms["vms"].as_array().unwrap().iter().find(|vm| vm["vm_name"] == "TWIN").unwrap();
    let one = desk.json(0, ["retention", "plan", twin["vm_id"].as_str().unwrap()]);
    assert_eq!(one["vms"].as_array().unwrap().len(), 1);
}
