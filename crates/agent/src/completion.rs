//! What Tab offers: commands and flags from their definitions, names and ids from what earlier commands saw.
//!
//! A key press never waits for a host or a store, so what lists show is remembered in a file of the user's. The file is
//! a convenience: whatever goes wrong with it is no error of the command.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use backup::Point;
use clap::CommandFactory as _;
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use serde::{Deserialize, Serialize};

use crate::cli::Cli;
use crate::failure::{Attempt as _, Code, Failure};

/// The variable by which a shell's script asks.
const ASKED_BY: &str = "COMPLETE";
const PROGRAM: &str = "e3-backup-agent";
/// Of each kind; nobody looks for one of thousands by Tab.
const MOST: usize = 2000;

/// What earlier commands saw.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Seen {
    vms: BTreeSet<String>,
    /// Newest first.
    points: Vec<SeenPoint>,
    snapshots: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SeenPoint {
    id: String,
    vm: String,
    started: jiff::Timestamp,
}

/// Answers a shell that asks what could come next, and ends the process; otherwise does nothing.
pub fn answer_the_shell() {
    CompleteEnv::with_factory(Cli::command).var(ASKED_BY).bin(PROGRAM).complete();
}

/// The script that makes a shell ask.
pub fn script(shell: &str) -> Result<Vec<u8>, Failure> {
    let what = "write a completion script";
    let shells = Shells::builtins();
    let Some(of_shell) = shells.completer(shell) else {
        return Err(Failure::new(what, shell, Code::Usage, "the shell is not known")
            .with_steps(&["take bash, zsh, fish, powershell or elvish"]));
    };
    let mut script = Vec::new();
    of_shell.write_registration(ASKED_BY, PROGRAM, PROGRAM, PROGRAM, &mut script).attempt(what, shell)?;
    Ok(script)
}

/// The virtual machines of a host, for the next Tab.
pub fn remember_vms<'a>(names: impl Iterator<Item = &'a str>) {
    let names: BTreeSet<String> = names.take(MOST).map(str::to_owned).collect();
    remember(|seen| seen.vms = names);
}

/// The points of a repository, oldest first as they are listed.
pub fn remember_points(points: &[Point]) {
    let newest = points.iter().rev().take(MOST);
    let points: Vec<SeenPoint> = newest
        .map(|point| SeenPoint { id: point.id.clone(), vm: point.vm_name.clone(), started: point.started() })
        .collect();
    remember(|seen| seen.points = points);
}

/// The snapshots of a repository, newest first.
pub fn remember_snapshots<'a>(ids: impl Iterator<Item = &'a str>) {
    let ids: Vec<String> = ids.take(MOST).map(str::to_owned).collect();
    remember(|seen| seen.snapshots = ids);
}

/// Names of virtual machines.
pub fn vms() -> Vec<CompletionCandidate> {
    let seen = recall();
    let of_points = seen.points.iter().map(|point| &point.vm);
    let names: BTreeSet<&String> = seen.vms.iter().chain(of_points).collect();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// `VM@latest` of each VM, and ids with what they are.
pub fn points() -> Vec<CompletionCandidate> {
    let seen = recall();
    let vms: BTreeSet<&String> = seen.points.iter().map(|point| &point.vm).collect();
    let latest = vms.into_iter().map(|vm| CompletionCandidate::new(format!("{vm}@latest")));
    let by_id = seen.points.iter().map(|point| {
        CompletionCandidate::new(&point.id).help(Some(format!("{} {:.0}", point.vm, point.started).into()))
    });
    latest.chain(by_id).collect()
}

/// Ids of snapshots.
pub fn snapshots() -> Vec<CompletionCandidate> {
    recall().snapshots.iter().map(CompletionCandidate::new).collect()
}

fn recall() -> Seen {
    file().map(|file| read(&file)).unwrap_or_default()
}

fn read(file: &Path) -> Seen {
    std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn remember(change: impl FnOnce(&mut Seen)) {
    let Some(file) = file() else { return };
    if let Err(error) = update(&file, change) {
        tracing::debug!(file = %file.display(), %error, "not remembered for completion");
    }
}

fn update(file: &Path, change: impl FnOnce(&mut Seen)) -> std::io::Result<()> {
    let before = read(file);
    let mut seen = read(file);
    change(&mut seen);
    if seen == before {
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Two commands may end at the same time: each writes a file of its own.
    let temporary = folder.join(format!("completion.{}.tmp", std::process::id()));
    let text = serde_json::to_vec(&seen)?;
    let written = std::fs::File::create(&temporary)
        .and_then(|mut new| new.write_all(&text))
        .and_then(|()| std::fs::rename(&temporary, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Where this system keeps what a user's programs may lose.
fn file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else {
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))
    };
    Some(base?.join("e3").join("completion.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_kept_kind_by_kind_and_damage_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new").join("completion.json");
        assert_eq!(read(&file), Seen::default());
        update(&file, |seen| seen.vms = ["DC01".to_owned()].into()).unwrap();
        update(&file, |seen| seen.snapshots = vec!["3b1f".into()]).unwrap();
        let seen = read(&file);
        assert_eq!((seen.vms.len(), seen.snapshots.len()), (1, 1));
        assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "no temporary file stays");
        std::fs::write(&file, "{\"vms\": 7").unwrap();
        assert_eq!(read(&file), Seen::default());
    }
}
