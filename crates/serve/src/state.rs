//! A session's state on disk (spec block-serving C.8): what a restart and the janitor read, and nothing else.

use std::io;

use serde::{Deserialize, Serialize};

use crate::folder::{Folder, read_small, replace};

/// The state's file.
pub const STATE_NAME: &str = "state.json";
const VERSION: u32 = 1;
const MAX_BYTES: u64 = 16 << 20;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Named; its overlays may not be there yet.
    Created,
    /// Its disks can be read and written.
    Serving,
    /// The base is being copied to the targets.
    Hydrating,
    /// All of it is there.
    Hydrated,
    /// The guest's writes follow.
    Draining,
    /// Disk by disk the targets take over.
    Switching,
    /// Every disk is its target.
    Local,
    /// The session's files are not needed any more.
    Finished,
    /// It is being discarded.
    Stopping,
    /// It was discarded.
    Discarded,
    /// It cannot go on without a person; the reason is beside it.
    Failed,
    /// Power was lost under a guest that runs on elsewhere: it may rely on writes that are gone, and has to be
    /// restarted before its disks are served again.
    NeedsRestart,
}

impl State {
    /// Whether a session may go from here to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use State::{
            Created, Discarded, Draining, Failed, Finished, Hydrated, Hydrating, Local, NeedsRestart, Serving,
            Stopping, Switching,
        };
        match (self, next) {
            (Discarded | Finished, _) => false,
            (Stopping, next) => next == Discarded,
            (_, Stopping | Failed) => true,
            (Created, Serving) | (Serving, Hydrating) | (Hydrating, Hydrated) | (Hydrated, Draining) => true,
            (Draining, Switching) | (Switching, Draining | Local) | (Local, Finished) => true,
            // How far hydration and drains were is in the map and the overlay: they are found again from here.
            (Failed | NeedsRestart, Serving) => true,
            (Serving | Hydrating | Hydrated | Draining | Switching | Local, NeedsRestart) => true,
            _ => false,
        }
    }

    /// Whether the disks can be used.
    pub fn is_serving(self) -> bool {
        use State::{Draining, Hydrated, Hydrating, Local, Serving, Switching};
        matches!(self, Serving | Hydrating | Hydrated | Draining | Switching | Local)
    }
}

/// `state.json`. What a newer program added is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionState {
    /// Version of the file; a higher one is refused.
    pub version: u32,
    /// The session's id, 32 hex digits.
    pub session: String,
    /// Where it stands.
    pub state: State,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The operating system's run that the session's writes were made in.
    pub boot_id: String,
    /// Whether guests may run on another machine, and so outlive this one's loss of power.
    pub guest_is_elsewhere: bool,
    /// Of the restore point.
    pub point_id: String,
    /// Of the VM.
    pub vm_id: String,
    /// Its disks.
    pub disks: Vec<DiskState>,
    /// Restarts after a kill and after a power loss.
    #[serde(default)]
    pub restarts: Restarts,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

/// How often a session was taken up again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// After a kill.
    pub kill: u64,
    /// After a power loss or a restart of the machine.
    pub power: u64,
}

/// A disk of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskState {
    /// 32 hex digits; the name of its folder, too.
    pub disk: String,
    /// The name it is served under.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Identity of the base, 64 hex digits.
    pub base: String,
    /// The file it is going to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether it is that file already.
    #[serde(default)]
    pub is_local: bool,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

impl SessionState {
    /// A session that was just named.
    pub fn new(session: [u8; 16], boot_id: &str, guest_is_elsewhere: bool, point_id: &str, vm_id: &str) -> Self {
        Self {
            version: VERSION,
            session: hex(&session),
            state: State::Created,
            reason: None,
            boot_id: boot_id.to_owned(),
            guest_is_elsewhere,
            point_id: point_id.to_owned(),
            vm_id: vm_id.to_owned(),
            disks: Vec::new(),
            restarts: Restarts::default(),
            others: serde_json::Map::new(),
        }
    }

    /// The state in a folder, durable as it is found; `None` when there is none.
    ///
    /// A process that was killed may have left it in the page cache only. What follows from it, such as writes to a disk
    /// that is local, must not outlive it.
    pub fn read(folder: &dyn Folder) -> io::Result<Option<Self>> {
        folder.sync()?;
        let Some(bytes) = read_small(folder, STATE_NAME, MAX_BYTES)? else { return Ok(None) };
        let state: Self = serde_json::from_slice(&bytes)?;
        if state.version > VERSION {
            let problem = format!("{STATE_NAME} has version {}, which this program does not know", state.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(Some(state))
    }

    /// Puts it in place of the old one, durably.
    pub fn write(&self, folder: &dyn Folder) -> io::Result<()> {
        replace(folder, STATE_NAME, &serde_json::to_vec_pretty(self)?)
    }
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of an id of 32 hex digits; `None` for any other text.
pub fn id_of(text: &str) -> Option<[u8; 16]> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex).map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::State::*;
    use super::*;

    const ALL: [State; 12] = [
        Created,
        Serving,
        Hydrating,
        Hydrated,
        Draining,
        Switching,
        Local,
        Finished,
        Stopping,
        Discarded,
        Failed,
        NeedsRestart,
    ];

    #[test]
    fn nothing_leads_past_a_step_or_out_of_the_end() {
        for from in ALL {
            let next: Vec<State> = ALL.into_iter().filter(|next| from.may_become(*next)).collect();
            let expected: &[State] = match from {
                Created => &[Serving, Stopping, Failed],
                Serving => &[Hydrating, Stopping, Failed, NeedsRestart],
                Hydrating => &[Hydrated, Stopping, Failed, NeedsRestart],
                Hydrated => &[Draining, Stopping, Failed, NeedsRestart],
                Draining => &[Switching, Stopping, Failed, NeedsRestart],
                Switching => &[Draining, Local, Stopping, Failed, NeedsRestart],
                Local => &[Finished, Stopping, Failed, NeedsRestart],
                Finished | Discarded => &[],
                Stopping => &[Discarded],
                Failed => &[Serving, Stopping, Failed],
                NeedsRestart => &[Serving, Stopping, Failed],
            };
            assert_eq!(next, expected, "from {from:?}");
        }
    }

    #[test]
    fn what_a_newer_program_added_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let folder = crate::folder::DiskFolder::open_or_create(place.path()).unwrap();
        assert_eq!(SessionState::read(&folder).unwrap(), None);
        let mut state = SessionState::new([7; 16], "boot", true, "point", "vm");
        state.others.insert("colour".into(), "green".into());
        state.write(&folder).unwrap();
        assert_eq!(SessionState::read(&folder).unwrap(), Some(state.clone()));
        state.version = 2;
        state.write(&folder).unwrap();
        assert!(SessionState::read(&folder).is_err(), "another version may mean something else");
    }

    #[test]
    fn ids_are_hex() {
        assert_eq!(id_of(&hex(&[0xAB; 16])), Some([0xAB; 16]));
        for text in ["", "abc", "+bababababababababababababababab", "zbababababababababababababababab"] {
            assert_eq!(id_of(text), None, "{text}");
        }
    }
}
