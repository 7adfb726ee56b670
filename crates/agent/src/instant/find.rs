//! The sessions of this machine.

use std::io;
use std::path::{Path, PathBuf};

use serve::{SessionState, State};

use super::record::{Figures, Record};
use crate::config::machine_folder;
use crate::failure::{Attempt as _, Code, Failure};

/// A session, as its files say.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// How it is served.
    pub record: Record,
    /// Where it stands; `None` when it died before it was begun.
    pub state: Option<SessionState>,
    /// A keeper serves it now.
    pub is_served: bool,
    /// What its last keeper told.
    pub figures: Option<Figures>,
}

impl Found {
    /// Where its disks stand; `None` when it died before it was begun.
    pub fn standing(&self) -> Option<State> {
        let state = self.state.as_ref()?.state;
        let stage = self.figures.as_ref().and_then(|figures| figures.stage);
        Some(if self.record.hyperv.is_some() { stage.unwrap_or(state) } else { state })
    }
}

/// The folder that sessions have theirs in.
pub fn state_folder(given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| machine_folder().join("instant"), Path::to_owned)
}

/// All of them, the newest first.
pub fn all(state: &Path) -> Result<Vec<Found>, Failure> {
    let what = "list the instant sessions";
    let entries = match std::fs::read_dir(state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::of(what, state.display().to_string(), &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry.attempt(what, state.display().to_string())?.path();
        let on = folder.display().to_string();
        // What is no session's is left alone.
        let Some(record) = Record::read(&folder).attempt(what, &*on)? else { continue };
        found.push(Found {
            state: serve::read_session(&folder).attempt(what, &*on)?,
            is_served: serve::is_served(&folder).attempt(what, &*on)?,
            figures: Figures::read(&folder),
            folder,
            record,
        });
    }
    found.sort_by_key(|found| std::cmp::Reverse(found.record.begun));
    Ok(found)
}

/// The one that `selector` names: a unique beginning of its id, or the name of its VM.
pub fn find(state: &Path, selector: &str) -> Result<Found, Failure> {
    let what = format!("find the instant session {selector}");
    let on = state.display().to_string();
    let is_named = |found: &Found| {
        let id = selector.to_ascii_lowercase();
        found.record.session.starts_with(&id) || found.record.vm_name.eq_ignore_ascii_case(selector)
    };
    let mut named: Vec<Found> = all(state)?.into_iter().filter(is_named).collect();
    match (named.len(), named.pop()) {
        (1, Some(found)) if !selector.is_empty() => Ok(found),
        (0, _) | (_, None) => Err(Failure::new(what, on, Code::NotFound, "no session of this machine has this name")
            .with_steps(&["look at `instant list`", "give --state the folder that it was started with"])),
        (_, Some(last)) => {
            let ids: Vec<&str> = named.iter().chain([&last]).map(|found| found.record.session.as_str()).collect();
            Err(Failure::new(what, on, Code::Ambiguous, format!("several sessions: {}", ids.join(", "))))
        }
    }
}
