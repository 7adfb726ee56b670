//! Which locks of a host are held at this moment, and by whom.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

/// A look takes a lock for an instant; whoever wants it meanwhile asks again this often.
const LOOKS: usize = 5;
/// Far longer than a look takes.
const LOOK_TIME: Duration = Duration::from_millis(20);

/// A lock that some process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// What it is for: the id of a VM, or of a restore.
    pub subject: String,
    /// The process, where it is known: on Windows nobody can read a file that is locked.
    pub process_id: Option<u32>,
}

/// The locks in a folder of journals that are held; none where there is no folder.
pub fn held_locks(folder: &Path) -> io::Result<Vec<HeldLock>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut held = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(subject) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else { continue };
        if is_held(&entry.path())? {
            let mut holder = String::new();
            // Only to name it; a holder that has not written yet stays unnamed.
            let _ = File::open(entry.path()).and_then(|file| file.take(64).read_to_string(&mut holder));
            let process_id = holder.trim().strip_prefix("process ").and_then(|id| id.parse().ok());
            held.push(HeldLock { subject: subject.to_owned(), process_id });
        }
    }
    held.sort_by(|a, b| a.subject.cmp(&b.subject));
    Ok(held)
}

/// Whether a process holds the lock that is this file. Looks do not disturb each other.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes a lock that nobody holds, past those who only look at it.
pub fn try_lock_past_looks(file: &File) -> Result<(), TryLockError> {
    for _ in 0..LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_TIME),
            other => return other,
        }
    }
    file.try_lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostState;

    #[test]
    fn held_locks_are_seen_and_looking_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(held_locks(&dir.path().join("none")).unwrap(), []);
        let state = HostState::open(dir.path()).unwrap();
        let vm = "F37E254E-7426-46AA-A13D-86E83D09C34B";
        let lock = state.lock_vm(vm, "DC01").unwrap();
        drop(state.lock_vm("A47E254E-7426-46AA-A13D-86E83D09C34B", "DC02").unwrap());
        let found = held_locks(dir.path()).unwrap();
        assert_eq!(found.iter().map(|lock| &*lock.subject).collect::<Vec<_>>(), [vm]);
        // Windows keeps the name from readers, Wine does not.
        let is_unnamed = cfg!(windows) && found[0].process_id.is_none();
        assert!(is_unnamed || found[0].process_id == Some(std::process::id()), "{found:?}");
        assert!(state.lock_vm(vm, "DC01").is_err());
        drop(lock);
        assert_eq!(held_locks(dir.path()).unwrap(), []);

        // A look that is going on keeps nobody from the lock.
        let look = File::open(dir.path().join(format!("{vm}.lock"))).unwrap();
        look.try_lock_shared().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(LOOK_TIME);
                drop(look);
            });
            state.lock_vm(vm, "DC01").unwrap();
        });
    }
}
