//! Retention beside stock Kopia: it reads our policies and pins, we read its, and both let the same points go.
//!
//! Needs stock Kopia (`E3_TEST_KOPIA`, or `kopia` in the PATH); without it one line says so.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use jiff::SignedDuration;
use kopia_repo::{ClientOptions, Repository, SessionOptions, Storage, StorageKind, WriteSession};
use serde_json::Value;
use support::{Desk, PASSWORD};

/// Kopia sees the limits in this order.
const LIMITS: [(&str, &str); 6] = [
    ("keep_latest", "keepLatest"),
    ("keep_hourly", "keepHourly"),
    ("keep_daily", "keepDaily"),
    ("keep_weekly", "keepWeekly"),
    ("keep_monthly", "keepMonthly"),
    ("keep_annual", "keepAnnual"),
];

struct Kopia<'d> {
    program: PathBuf,
    desk: &'d Desk,
}

impl<'d> Kopia<'d> {
    fn find(test: &str, desk: &'d Desk) -> Option<Self> {
        let named = std::env::var_os("E3_TEST_KOPIA").filter(|path| !path.is_empty()).map(PathBuf::from);
        let on_path = || {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|folder| folder.join("kopia")).find(|path| path.is_file())
        };
        let Some(program) = named.or_else(on_path) else {
            eprintln!("SKIPPED {test}: stock Kopia is not installed");
            return None;
        };
        Some(Self { program, desk })
    }

    /// Both streams: some of what Kopia has to say goes to standard error.
    fn run(&self, arguments: &[&str]) -> (String, String) {
        let output = Command::new(&self.program)
            .arg(format!("--config-file={}", self.desk.path("kopia.config").display()))
            .args(arguments)
            .env("KOPIA_PASSWORD", PASSWORD)
            .env("KOPIA_CHECK_FOR_UPDATES", "false")
            .env("KOPIA_CACHE_DIRECTORY", self.desk.path("kopia-cache"))
            .env("KOPIA_LOG_DIR", self.desk.path("kopia-log"))
            .env("HOME", self.desk.path("."))
            .env("TZ", "UTC")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "kopia {arguments:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments).0).unwrap()
    }

    /// Point id to its reasons and pins, of every snapshot.
    fn points(&self) -> BTreeMap<String, (Vec<String>, Vec<String>)> {
        let texts = |value: &Value| -> Vec<String> {
            let list = value.as_array().map_or(&[][..], Vec::as_slice);
            list.iter().map(|one| one.as_str().unwrap().to_owned()).collect()
        };
        let list = self.json(&["snapshot", "list", "--all", "--json", "--show-identical", "--max-results=1000"]);
        let one = |snapshot: &Value| {
            let id = snapshot["tags"]["tag:point-id"].as_str().unwrap().to_owned();
            (id, (texts(&snapshot["retentionReason"]), texts(&snapshot["pins"])))
        };
        list.as_array().unwrap().iter().map(one).collect()
    }
}

/// Ours: point id to the rules that keep it, without what only we know.
fn planned(plan: &Value) -> BTreeMap<String, Vec<String>> {
    let points = plan["vms"].as_array().unwrap().iter().flat_map(|vm| vm["points"].as_array().unwrap());
    points
        .map(|point| {
            let reasons = point["reasons"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
            let of_policy = reasons.filter(|one| !["held", "newest-sound"].contains(one)).map(str::to_owned);
            (point["point_id"].as_str().unwrap().to_owned(), of_policy.collect())
        })
        .collect()
}

/// Copies of the newest point, three years of nights back, some missed and some twice.
fn add_history(desk: &Desk) -> Arc<Repository> {
    let bucket = bucket::Folder::open(desk.path("repo")).unwrap();
    let storage = Storage { bucket: Arc::new(bucket), kind: StorageKind::Folder };
    let repo = Repository::open(&storage, PASSWORD, ClientOptions::new("tester", "here")).unwrap();
    let newest = repo.snapshots(&[]).unwrap().pop().unwrap();
    let session = WriteSession::new(repo.clone(), SessionOptions::default()).unwrap();
    for night in (1..3 * 365_i64).filter(|night| night % 5 != 0 && night % 17 < 9) {
        for twin in 0..=i64::from(night % 4 == 0) {
            let mut manifest = newest.manifest.clone();
            let back = SignedDuration::from_mins(night * 1440 + night % 31 - twin * 20);
            manifest.start_time -= back;
            manifest.end_time -= back;
            manifest.tags.insert("tag:point-id".into(), format!("night{night}-{twin}"));
            session.put_snapshot(&manifest);
        }
    }
    session.flush().unwrap();
    drop(session);
    repo
}

#[test]
fn stock_and_we_keep_the_same() {
    let desk = Desk::new();
    let Some(kopia) = Kopia::find("stock_and_we_keep_the_same", &desk) else { return };
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);
    add_history(&desk);
    kopia.run(&["repository", "connect", "filesystem", "--path", desk.path("repo").to_str().unwrap()]);
    let source = &desk.json(0, ["retention", "plan"])["vms"][0]["source"];
    let text = |key: &str| source[key].as_str().unwrap();
    let source = format!("{}@{}:{}", text("user"), text("host"), text("path"));
    let all = kopia.points().len();
    assert!(all > 400, "{all}");

    // As every VM begins: stock, too, keeps all of them.
    assert_eq!(planned(&desk.json(0, ["retention", "plan"])).values().filter(|reasons| reasons.is_empty()).count(), 0);
    assert!(kopia.points().values().all(|(reasons, _)| !reasons.is_empty()));
    let (out, err) = kopia.run(&["snapshot", "expire", "--all"]);
    assert!(format!("{out}{err}").contains("Nothing to delete"), "{out}{err}");

    for flags in [
        &["--keep-latest", "3", "--keep-daily", "14", "--keep-weekly", "8", "--keep-monthly", "12"][..],
        &["--keep-weekly", "60", "--keep-monthly", "36", "--keep-annual", "2"],
        &["--keep-hourly", "200"],
        &[
            "--keep-latest",
            "10",
            "--keep-hourly",
            "48",
            "--keep-daily",
            "7",
            "--keep-weekly",
            "4",
            "--keep-monthly",
            "24",
        ],
    ] {
        desk.ok([&["retention", "set", "--all", "--confirm", "all"], flags].concat());
        let plan = desk.json(0, ["retention", "plan"]);
        // Our policy, read by stock.
        let shown = kopia.json(&["policy", "show", &source, "--json"]);
        for (ours, theirs) in LIMITS {
            assert_eq!(shown["retention"][theirs], plan["vms"][0]["policy"][ours], "{theirs}: {flags:?}");
        }
        // The same points for the same reasons, and as many that go.
        let theirs: BTreeMap<String, Vec<String>> =
            kopia.points().into_iter().map(|(id, (reasons, _))| (id, reasons)).collect();
        assert_eq!(planned(&plan), theirs, "{flags:?}");
        let (out, err) = kopia.run(&["snapshot", "expire", "--all"]);
        let would = format!("{out}{err}");
        assert!(would.contains(&format!("{} snapshot(s)", plan["let_go"])), "{flags:?}: {would}");
    }

    // Stock's policy, read by us.
    kopia.run(&["policy", "set", &source, "--keep-daily=5", "--keep-latest=inherit", "--keep-weekly=0"]);
    let plan = desk.json(0, ["retention", "plan"]);
    let shown = kopia.json(&["policy", "show", &source, "--json"]);
    for (ours, theirs) in LIMITS {
        assert_eq!(shown["retention"][theirs], plan["vms"][0]["policy"][ours], "{theirs}");
    }
    // What the policy leaves open comes from the global one.
    assert_eq!((&shown["retention"]["keepLatest"], &shown["retention"]["keepDaily"]), (&10.into(), &5.into()));
    let theirs: BTreeMap<String, Vec<String>> =
        kopia.points().into_iter().map(|(id, (reasons, _))| (id, reasons)).collect();
    assert_eq!(planned(&plan), theirs);

    // Pins, in both directions.
    let go = |plan: &Value| -> Vec<String> {
        planned(plan).into_iter().filter(|(_, reasons)| reasons.is_empty()).map(|(id, _)| id).collect()
    };
    let doomed = go(&plan);
    desk.ok(["points", "hold", &doomed[0], "--reason", "ticket 4711", "--until", "2999-01-31"]);
    assert_eq!(kopia.points()[&doomed[0]].1, ["hold until 2999-01-31T00:00:00Z: ticket 4711"]);
    let list = kopia.json(&["snapshot", "list", "--all", "--json", "--show-identical", "--max-results=1000"]);
    let manifest = |id: &str| {
        let found = list.as_array().unwrap().iter().find(|one| one["tags"]["tag:point-id"] == id).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    kopia.run(&["snapshot", "pin", &manifest(&doomed[1]), "--add", "by hand"]);
    let held = desk.json(0, ["points", "show", &doomed[1]]);
    assert_eq!(held["point"]["holds"][0]["hold_reason"], "by hand");
    let plan = desk.json(0, ["retention", "plan"]);
    let (out, err) = kopia.run(&["snapshot", "expire", "--all"]);
    assert_eq!(plan["let_go"], doomed.len() - 2);
    assert!(format!("{out}{err}").contains(&format!("{} snapshot(s)", doomed.len() - 2)), "{out}{err}");

    // We let them go; stock finds nothing more, and a whole repository.
    desk.ok(["retention", "apply", "--confirm", "all"]);
    let (out, err) = kopia.run(&["snapshot", "expire", "--all"]);
    assert!(format!("{out}{err}").contains("Nothing to delete"), "{out}{err}");
    assert_eq!(kopia.points().len(), all - (doomed.len() - 2));
    kopia.run(&["maintenance", "set", "--owner=me"]);
    kopia.run(&["maintenance", "run", "--full", "--safety=none"]);
    kopia.run(&["snapshot", "verify", "--verify-files-percent=100"]);
    // And the other way round: stock releases and lets go, and we see it.
    kopia.run(&["snapshot", "expire", "--all", "--delete"]);
    desk.ok(["points", "release", &doomed[0], &doomed[1]]);
    kopia.run(&["snapshot", "expire", "--all", "--delete"]);
    assert_eq!(desk.json(0, ["retention", "plan"])["let_go"], 0);
    desk.ok(["verify", "DC01@latest", "--level", "full"]);
}
