//! `host check --host qemu`: whether a machine could run straight from the backup here, before the night of need.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup::{Point, list_points};
use kopia_repo::Repository;
use serde_json::{Value, json};
use serve::Lane;
use serve::folder::{DiskFolder, Folder as _};

use crate::cli::{CacheArgs, StateArgs};
use crate::context::Context;
use crate::failure::{Attempt as _, Failure};
use crate::instant::{qemu, state_folder};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line};
use crate::serving::Sources;
use crate::units::{duration, size, visible};

/// What `--host` says for this machine as a QEMU host.
pub const HOST: &str = "qemu";
/// Longest name of a Unix socket on Linux, with its end.
const LONGEST_SOCKET: usize = 107;
/// Of a session's folder and its socket: an id, and `nbd.sock`.
const SESSION_NAME: usize = 1 + 32 + 1 + 8;
/// Room for what a guest writes before somebody looks.
const FREE_BYTES: u64 = 10 << 30;

/// One thing that was looked at.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) is_well: bool,
    pub(super) text: String,
}

/// A VM that could be run.
pub(super) struct Quote {
    point: Point,
    /// From the call to the first byte, or why there was none.
    pub(super) first_read: Result<Duration, String>,
    /// What its boot reads, and how long that takes to fetch here.
    boot: Option<(usize, Duration)>,
}

/// `host check --host qemu`
pub fn check(context: &Context, state: &StateArgs) -> Result<Outcome, Failure> {
    let repo = context.repository_for_serving()?;
    let quotes = quotes(&repo)?;
    let needs_uefi = quotes
        .iter()
        .any(|quote| quote.point.definition(&repo).is_ok_and(|definition| definition.summary.generation == 2));
    let state = state_folder(state.folder.as_deref());
    let checks = [program(), drivers(), acceleration(), firmware(needs_uefi), folder(&state)];
    let is_well = checks.iter().all(|check| check.is_well) && quotes.iter().all(|quote| quote.first_read.is_ok());
    let outcome = Outcome { exit: if is_well { 0 } else { 4 } };
    if context.global.json {
        json_document(&json!({
            "host": HOST,
            "checks": checks.iter().map(check_json).collect::<Vec<_>>(),
            "vms": quotes.iter().map(quote_json).collect::<Vec<_>>(),
        }));
        return Ok(outcome);
    }
    checks.iter().for_each(show_check);
    line("");
    show_quotes(&quotes);
    Ok(outcome)
}

/// What could be run from the repository, and how soon.
pub(super) fn quotes(repo: &Arc<Repository>) -> Result<Vec<Quote>, Failure> {
    let points = list_points(repo, None).attempt("check what could be run from the backup", repo.display_name())?;
    Ok(newest(points).into_iter().map(|point| quote(repo, point)).collect())
}

pub(super) fn show_check(Check { name, is_well, text }: &Check) {
    line(&visible(&format!("{name:<12} {}{text}", if *is_well { "" } else { "not well: " })));
}

pub(super) fn show_quotes(quotes: &[Quote]) {
    let columns =
        [("VM", Align::Left), ("FIRST READ", Align::Right), ("BOOT READS", Align::Right), ("FETCHED IN", Align::Right)];
    let mut table = Table::new(&columns);
    for Quote { point, first_read, boot } in quotes {
        let unknown = || "not known yet".to_owned();
        table.row(vec![
            point.vm_name.clone(),
            first_read.as_ref().map_or_else(Clone::clone, |time| duration(*time)),
            boot.as_ref().map_or_else(unknown, |(segments, _)| format!("{segments} segments")),
            boot.as_ref().map_or_else(unknown, |(_, time)| duration(*time)),
        ]);
    }
    table.print();
}

pub(super) fn check_json(check: &Check) -> Value {
    json!({ "name": check.name, "is_well": check.is_well, "text": check.text })
}

pub(super) fn quote_json(quote: &Quote) -> Value {
    let milliseconds = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    json!({
        "vm_id": quote.point.vm_id,
        "vm_name": quote.point.vm_name,
        "point_id": quote.point.id,
        "first_read_ms": quote.first_read.as_ref().ok().map(milliseconds),
        "boot_segments": quote.boot.as_ref().map(|(segments, _)| segments),
        "boot_fetch_ms": quote.boot.as_ref().map(|(_, time)| milliseconds(time)),
        "problem": quote.first_read.as_ref().err(),
    })
}

/// The newest point of each VM, by name.
fn newest(points: Vec<Point>) -> Vec<Point> {
    let mut newest: Vec<Point> = Vec::new();
    // Oldest first.
    for point in points {
        newest.retain(|other| other.vm_id != point.vm_id);
        newest.push(point);
    }
    newest.sort_by(|a, b| a.vm_name.cmp(&b.vm_name));
    newest
}

/// What `instant start` does, up to the first read.
fn quote(repo: &Arc<Repository>, point: Point) -> Quote {
    let begun = Instant::now();
    let opened = point.clone();
    let open = || -> Result<(Sources, Duration), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let description = opened.describe(repo).map_err(|error| text(&error))?;
        let caches = CacheArgs { cache: None, cache_size: 0, memory: 64 << 20 };
        let sources = Sources::open(repo.clone(), opened, description, &caches).map_err(|error| text(&error))?;
        let mut read = Duration::ZERO;
        for disk in &sources.description.disks {
            let base = sources.base(disk).map_err(|error| text(&error))?;
            let before = Instant::now();
            base.base.read_exact_at(&mut [0; 512], 0, Lane::Foreground).map_err(|error| text(&error))?;
            read = read.max(before.elapsed());
        }
        Ok((sources, read))
    };
    match open() {
        Ok((sources, read)) => {
            let segments = sources.boot_segments();
            let boot = segments.map(|segments| (segments, read * u32::try_from(segments).unwrap_or(u32::MAX)));
            Quote { point, first_read: Ok(begun.elapsed()), boot }
        }
        Err(problem) => Quote { point, first_read: Err(problem), boot: None },
    }
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn program() -> Check {
    let version = said("qemu-system-x86_64", &["--version"]);
    let text = version.as_deref().and_then(|text| text.lines().next()).map(str::to_owned);
    Check {
        name: "QEMU",
        is_well: text.is_some(),
        text: text.unwrap_or_else(|| "qemu-system-x86_64 is not there (Debian package qemu-system-x86)".to_owned()),
    }
}

fn drivers() -> Check {
    let help = said("qemu-img", &["--help"]).unwrap_or_default();
    let formats = help.split("Supported formats:").nth(1).unwrap_or_default();
    let missing: Vec<&str> =
        ["nbd", "iscsi"].into_iter().filter(|name| !formats.split_whitespace().any(|one| one == *name)).collect();
    Check {
        name: "drivers",
        is_well: missing.is_empty(),
        text: match missing.as_slice() {
            [] => "nbd, iscsi".to_owned(),
            missing => format!("{} missing (Debian packages qemu-utils, qemu-block-extra)", missing.join(", ")),
        },
    }
}

fn acceleration() -> Check {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    Check {
        name: "KVM",
        is_well: opened.is_ok(),
        text: match opened {
            Ok(_) => "this account may use it".to_owned(),
            Err(error) => format!("/dev/kvm: {error}; machines run, many times slower"),
        },
    }
}

fn firmware(is_needed: bool) -> Check {
    let is_there = Path::new(qemu::UEFI).exists();
    Check {
        name: "UEFI",
        is_well: is_there || !is_needed,
        text: match (is_there, is_needed) {
            (true, _) => qemu::UEFI.to_owned(),
            (false, true) => format!("{} is not there (Debian package ovmf); generation 2 needs it", qemu::UEFI),
            (false, false) => "not there, and no VM here needs it".to_owned(),
        },
    }
}

/// Where what guests write is kept.
fn folder(state: &Path) -> Check {
    let name = "sessions";
    let not_well = |text: String| Check { name, is_well: false, text: format!("{}: {text}", state.display()) };
    let opened = match DiskFolder::open_or_create(state) {
        Ok(folder) => folder,
        Err(error) => return not_well(error.to_string()),
    };
    let probe = ".e3-check";
    // Left by a check that was killed.
    let _ = opened.remove(probe);
    if let Err(error) = opened.create(probe).and_then(|_| opened.remove(probe)) {
        return not_well(error.to_string());
    }
    let path = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
    if path.as_os_str().len() + SESSION_NAME > LONGEST_SOCKET {
        return not_well("too long a name for sockets in it; sessions need --socket or --listen".to_owned());
    }
    match opened.free_bytes() {
        Some(free) if free < FREE_BYTES => not_well(format!("{} free for what guests write", size(free))),
        Some(free) => Check { name, is_well: true, text: format!("{}, {} free", state.display(), size(free)) },
        None => Check { name, is_well: true, text: state.display().to_string() },
    }
}
