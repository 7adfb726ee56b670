//! Windows paths, mapped into the sandbox folder.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A path as the host shows it: `C:\VMs\web\web.vhdx`. Compares without case, as NTFS does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct WinPath(String);

impl WinPath {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder, without a backslash at its end.
    pub(crate) fn folder(&self) -> WinPath {
        Self(self.0.rsplit_once('\\').map_or("", |(folder, _)| folder).to_owned())
    }

    pub(crate) fn file_name(&self) -> &str {
        self.0.rsplit('\\').next().unwrap_or("")
    }

    pub(crate) fn join(&self, name: &str) -> WinPath {
        Self(format!("{}\\{name}", self.0))
    }

    /// This path with text behind it: companion files.
    pub(crate) fn with_suffix(&self, suffix: &str) -> WinPath {
        Self(format!("{}{suffix}", self.0))
    }

    /// What paths are compared by.
    pub(crate) fn key(&self) -> String {
        self.0.replace('/', "\\").to_lowercase()
    }

    /// The file below `root`, or `None` when this is not an absolute drive path or tries to leave it.
    pub(crate) fn in_sandbox(&self, root: &Path) -> Option<PathBuf> {
        let mut parts = self.0.split(['\\', '/']);
        let drive = parts.next()?;
        let mut letters = drive.chars();
        let letter = letters.next().filter(char::is_ascii_alphabetic)?;
        if letters.next() != Some(':') || letters.next().is_some() {
            return None;
        }
        let mut path = root.join(letter.to_ascii_lowercase().to_string());
        for part in parts {
            if part.is_empty() || part == "." || part == ".." || part.contains('\0') {
                return None;
            }
            path.push(existing_name(&path, part));
        }
        Some(path)
    }
}

impl PartialEq for WinPath {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for WinPath {}

/// The Windows form of a file below `root`.
pub(crate) fn from_sandbox(root: &Path, file: &Path) -> Option<WinPath> {
    let mut parts = file.strip_prefix(root).ok()?.iter();
    let mut text = format!("{}:", parts.next()?.to_str()?.to_ascii_uppercase());
    for part in parts {
        text.push('\\');
        text.push_str(part.to_str()?);
    }
    Some(WinPath(text))
}

/// `name` as the folder spells it, or as given when nothing there matches without case.
fn existing_name(folder: &Path, name: &str) -> OsString {
    if folder.join(name).symlink_metadata().is_ok() {
        return name.into();
    }
    let wanted = name.to_lowercase();
    let spelled = fs::read_dir(folder).ok().and_then(|entries| {
        entries.flatten().map(|entry| entry.file_name()).find(|found| found.to_string_lossy().to_lowercase() == wanted)
    });
    spelled.unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_without_case_and_never_leave_the_sandbox() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("c").join("VMs");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("Web.vhdx"), b"x").unwrap();

        let found = WinPath::new(r"c:\vms\WEB.VHDX").in_sandbox(root.path()).unwrap();
        assert_eq!(fs::read(&found).unwrap(), b"x");
        // A file system without case leaves the name as it was asked for.
        if cfg!(unix) {
            assert_eq!(found, folder.join("Web.vhdx"));
        }
        let made = from_sandbox(root.path(), &folder.join("Web.vhdx")).unwrap();
        assert_eq!(made.as_str(), r"C:\VMs\Web.vhdx");
        for path in [r"VMs\a", r"C:\..\a", r"C:\VMs\..\..\a", r"\\server\share\a", r"CC:\a", "", r"C:\\a", r"C:\.\a"] {
            assert_eq!(WinPath::new(path).in_sandbox(root.path()), None, "{path:?}");
        }
    }
}
