//! The fields in `docs/cli-json.md` are those that the program prints.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use support::{Desk, finish};

/// Maps whose keys are data.
const OPEN_MAPS: [&str; 2] = ["tags", "agent.jobs"];

#[test]
fn documents_have_the_fields_that_are_documented() {
    let documented = documented();
    let desk = Desk::empty();
    let mut seen = BTreeSet::new();
    let mut check = |name: &'static str, found: &Value| {
        let expected = documented.get(name).unwrap_or_else(|| panic!("{name} is not documented"));
        compare(name, expected, found);
        seen.insert(name.to_owned());
    };

    check("repo create", &desk.json(0, ["repo", "create"]));
    check("repo connect", &desk.json(0, ["repo", "connect", "repo"]));
    check("lab create", &desk.json(0, ["lab", "create", "lab"]));
    desk.raw_file("d.raw", 4, 1);
    check("lab add-vm", &desk.json(0, ["lab", "add-vm", "lab", "DC01", "--disk", "d.raw"]));
    check("lab write", &desk.json(0, ["lab", "write", "lab", "DC01", "--mib", "1"]));
    desk.ok(["lab", "create", "lab2"]);
    check("lab move-vm", &desk.json(0, ["lab", "move-vm", "lab", "DC01", "--to", "lab2"]));
    desk.ok(["lab", "move-vm", "lab2", "DC01", "--to", "lab"]);
    check("vm list", &desk.json(0, ["vm", "list"]));
    check("vm show", &desk.json(0, ["vm", "show", "DC01"]));
    let backup = finish(desk.command(["backup", "DC01"]).arg("--json")).json_lines();
    check("backup, each VM", &backup[0]);
    check("backup", &backup[1]);
    desk.ok(["verify", "DC01@1", "--level", "full"]);
    check("points list", &desk.json(0, ["points", "list"]));
    check("audit", &desk.json(0, ["audit"]));
    check("host check", &desk.json(0, ["host", "check"]));
    check("host clean", &desk.json(0, ["host", "clean", "--yes"]));
    check("points show", &desk.json(0, ["points", "show", "DC01@1"]));
    check("points hold, release, delete", &desk.json(0, ["points", "hold", "DC01@1", "--reason", "x"]));
    check("retention plan", &desk.json(0, ["retention", "plan"]));
    check("retention set", &desk.json(0, ["retention", "set", "DC01", "--keep-latest", "1"]));
    desk.ok(["backup", "DC01"]);
    desk.ok(["points", "release", "DC01@2"]);
    let applied = finish(desk.command(["retention", "apply", "--confirm", "all"]).arg("--json")).json_lines();
    check("retention apply, each VM", &applied[0]);
    check("retention apply", &applied[1]);
    check("repo status", &desk.json(0, ["repo", "status"]));
    check("repo kit", &desk.json(0, ["repo", "kit", "--to", "kit.txt"]));
    std::fs::write(desk.path("new.txt"), "another one").unwrap();
    let change = ["repo", "change-password", "--new-password-file", "new.txt"];
    check("repo change-password", &desk.json(0, change));
    std::fs::write(desk.path("old.txt"), support::PASSWORD).unwrap();
    desk.ok(["repo", "change-password", "--password-file", "new.txt", "--new-password-file", "old.txt"]);
    check("restore disk", &desk.json(0, ["restore", "disk", "DC01@1", "--to", "a.vhdx"]));
    check("restore disk, plan", &desk.json(0, ["restore", "disk", "DC01@1", "--to", "b.vhdx", "--dry-run"]));
    let serve = ["serve", "nbd", "DC01@1", "--listen", "127.0.0.1:0", "--for", "1s"];
    let served = finish(desk.command(serve).arg("--json")).json_lines();
    check("serve nbd, what is served", &served[0]);
    check("serve nbd, serve iscsi", &served[1]);
    let serve = ["serve", "iscsi", "DC01@1", "--listen", "127.0.0.1:0", "--for", "1s"];
    let served = finish(desk.command(serve).arg("--json")).json_lines();
    check("serve iscsi, what is served", &served[0]);
    check("serve nbd, serve iscsi", &served[1]);
    instant(&desk, &mut check);
    let restore = ["restore", "vm", "DC01@1", "--replace", "--confirm", "DC01"];
    check("restore vm, plan", &desk.json(0, restore.into_iter().chain(["--dry-run"])));
    check("restore vm", &desk.json(0, restore));
    let in_place = ["restore", "vm", "DC01@1", "--in-place", "--confirm", "DC01"];
    check("restore vm, in place, plan", &desk.json(0, in_place.into_iter().chain(["--dry-run"])));
    check("restore vm, in place", &desk.json(0, in_place));
    let verify = finish(desk.command(["verify", "DC01@1"]).arg("--json")).json_lines();
    check("verify, each point", &verify[0]);
    check("verify", &verify[1]);
    let snapshots = desk.json(0, ["snapshot", "list"]);
    check("snapshot list", &snapshots);
    let id = snapshots["snapshots"][0]["snapshot_id"].as_str().unwrap();
    check("snapshot restore", &desk.json(0, ["snapshot", "restore", id, "--to", "out"]));
    check("vhd info", &desk.json(0, ["vhd", "info", "a.vhdx"]));
    check("vhd convert", &desk.json(0, ["vhd", "convert", "a.vhdx", "a.raw"]));
    std::fs::write(desk.path("config.toml"), "[[job]]\nname = \"nightly\"\nat = \"22:00\"\n").unwrap();
    let (service_status, status) = status_of_an_agent(&desk);
    check("service status", &service_status);
    check("status", &status);
    check("config show", &desk.json(0, ["config", "show", "--origin"]));
    check("config check", &desk.json(0, ["config", "check"]));
    check("man", &desk.json(0, ["man", "man"]));
    check("version", &desk.json(0, ["version"]));
    check("error", &desk.json(6, ["points", "show", "zz"]));

    // It needs a server: the suite `managed` compares it.
    seen.insert("enroll".to_owned());
    let all: BTreeSet<String> = documented.keys().cloned().collect();
    assert_eq!(seen, all, "every documented document was compared");
}

/// A session from its beginning to its end.
fn instant(desk: &Desk, check: &mut impl FnMut(&'static str, &Value)) {
    let call = |arguments: &[&str]| desk.command([arguments, &["--state", "sessions", "--json"]].concat());
    let start = ["instant", "start", "DC01@1", "--host", "qemu", "--listen", "127.0.0.1:0", "--for", "5s"];
    let keeper = call(&start).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let answer = |arguments: &[&str]| finish(&mut call(arguments)).json();
    let is_served = |list: &Value| list["sessions"][0]["is_served"] == true;
    let list = (0..1000).map(|_| answer(&["instant", "list"])).find(is_served).expect("a session that is served");
    check("instant list", &list);
    // Not all of it need be well on the machine of a test.
    check("host check, with --host qemu", &answer(&["host", "check", "--host", "qemu"]));
    check("instant move, switch, discard", &answer(&["instant", "move", "DC01", "--to", "vms"]));
    check("instant show", &answer(&["instant", "show", "DC01"]));
    let said = String::from_utf8(keeper.wait_with_output().unwrap().stdout).unwrap();
    let said: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    check("instant start, what is served", &said[0]);
    check("instant start", &said[1]);
    check("instant move, switch, discard", &answer(&["instant", "discard", "DC01", "--confirm", "DC01"]));
}

/// `service status` and `status`, as soon as an agent has looked at its jobs.
fn status_of_an_agent(desk: &Desk) -> (Value, Value) {
    let mut agent = desk.command(["run"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let status = (0..1000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let run = desk.run(["service", "status", "--json"]);
        (run.exit == Some(0)).then(|| run.json()).filter(|status| status["jobs"]["nightly"]["due"].is_string())
    });
    let all = desk.json(0, ["status"]);
    agent.kill().unwrap();
    agent.wait().unwrap();
    (status.expect("an agent that runs"), all)
}

/// The JSON block under each heading.
fn documented() -> BTreeMap<String, Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli-json.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut documents = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let name = section.lines().next().unwrap();
        let (_, block) = section.split_once("```json\n").unwrap_or_else(|| panic!("{name} has no example"));
        let (block, _) = block.split_once("```").unwrap();
        let value = serde_json::from_str(block).unwrap_or_else(|error| panic!("{name}: {error}"));
        documents.insert(name.to_owned(), value);
    }
    documents
}

/// The same fields, down to the first element of each list; null says nothing about what else may be there.
fn compare(at: &str, expected: &Value, found: &Value) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            if OPEN_MAPS.iter().any(|name| at.ends_with(&format!(".{name}"))) {
                return;
            }
            let names = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(names(expected), names(found), "fields of {at}: documented, printed");
            for (name, value) in expected {
                compare(&format!("{at}.{name}"), value, &found[name]);
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            if let (Some(expected), Some(found)) = (expected.first(), found.first()) {
                compare(&format!("{at}[]"), expected, found);
            }
        }
        (Value::Null, _) | (_, Value::Null) => {}
        (expected, found) => {
            let kind = |value: &Value| std::mem::discriminant(value);
            assert_eq!(kind(expected), kind(found), "{at}: {expected} documented, {found} printed");
        }
    }
}
