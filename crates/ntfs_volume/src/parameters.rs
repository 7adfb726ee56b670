//! What a volume is made of.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Files at most.
pub const MOST_FILES: usize = 1024;
/// A file that is kept in its record has at most so many bytes.
pub const MOST_RESIDENT_BYTES: usize = 600;
const MOST_LABEL_UNITS: usize = 32;

/// Everything that the bytes of a disk follow from. The same parameters make the same disk for ever: they are kept with
/// the session, and the disk is made from them again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// In the order in which they lie on the disk.
    pub files: Vec<VolumeFile>,
    /// Of the volume, up to 32 UTF-16 units.
    pub label: String,
    /// The volume's serial number.
    pub serial: u64,
    /// All times on the volume: 100 ns since 1601-01-01.
    pub file_time: u64,
    /// Of the disk.
    pub disk_guid: Uuid,
    /// Of the partition.
    pub partition_guid: Uuid,
    /// `$LogFile`, at least 256 KiB, or `chkdsk` complains.
    pub log_bytes: u64,
    /// Space behind the files for what Windows puts on a volume.
    pub free_bytes: u64,
    /// Space behind the master file table, so that it can grow in one piece.
    pub gap_bytes: u64,
}

/// A file in the root folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFile {
    /// 1 to 255 UTF-16 units that Windows takes as a name.
    pub name: String,
    /// Where its bytes are.
    pub content: FileContent,
    /// Whether it is marked so.
    pub is_read_only: bool,
}

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileContent {
    /// Whoever serves the disk has them.
    External {
        /// At least 1.
        size_bytes: u64,
    },
    /// In the metadata; up to [`MOST_RESIDENT_BYTES`].
    Resident {
        /// The bytes.
        bytes: Vec<u8>,
    },
}

impl Parameters {
    /// The usual ones. Serial number and ids follow from the session alone, never from the restore point: two sessions
    /// of one point may meet on a host.
    pub fn for_session(session: Uuid, file_time: u64, files: Vec<VolumeFile>) -> Self {
        let derived = |purpose: &str| -> [u8; 32] {
            Sha256::new().chain_update(purpose).chain_update([0]).chain_update(session.as_bytes()).finalize().into()
        };
        let guid = |purpose: &str| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&derived(purpose)[..16]);
            uuid::Builder::from_custom_bytes(bytes).into_uuid()
        };
        let mut serial = [0; 8];
        serial.copy_from_slice(&derived("e3-ntfs-serial")[..8]);
        Self {
            files,
            label: "e3 restore".into(),
            serial: u64::from_le_bytes(serial),
            file_time,
            disk_guid: guid("e3-gpt-disk"),
            partition_guid: guid("e3-gpt-part"),
            log_bytes: 64 << 20,
            free_bytes: 4 << 30,
            gap_bytes: 16 << 20,
        }
    }

    /// What is wrong with them, if anything.
    pub(crate) fn check(&self) -> Result<(), ParameterError> {
        if self.files.len() > MOST_FILES {
            return Err(ParameterError::TooManyFiles { files: self.files.len() });
        }
        if self.label.encode_utf16().count() > MOST_LABEL_UNITS {
            return Err(ParameterError::Label { label: self.label.clone() });
        }
        let mut total = self.log_bytes.saturating_add(self.free_bytes).saturating_add(self.gap_bytes);
        for file in &self.files {
            let problem = name_problem(&file.name).or(match &file.content {
                FileContent::External { size_bytes: 0 } => Some("it is empty, and an empty file has no place"),
                FileContent::Resident { bytes } if bytes.len() > MOST_RESIDENT_BYTES => {
                    Some("it does not fit into its record")
                }
                _ => None,
            });
            if let Some(problem) = problem {
                return Err(ParameterError::File { name: file.name.clone(), problem });
            }
            if let FileContent::External { size_bytes } = file.content {
                total = total.saturating_add(size_bytes);
            }
        }
        // Far beyond what NTFS holds; here it only keeps sums from overflowing.
        if total > 1 << 60 {
            return Err(ParameterError::TooLarge { bytes: total });
        }
        Ok(())
    }
}

/// Why Windows would not take a name.
fn name_problem(name: &str) -> Option<&'static str> {
    const DEVICES: [&str; 4] = ["CON", "PRN", "AUX", "NUL"];
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_numbered = |port: &str| {
        let number = stem.strip_prefix(port).and_then(|rest| rest.chars().next().filter(|_| rest.chars().count() == 1));
        number.is_some_and(|digit| matches!(digit, '1'..='9' | '¹' | '²' | '³'))
    };
    if !(1..=255).contains(&name.encode_utf16().count()) {
        Some("a name has 1 to 255 UTF-16 units")
    } else if name.chars().any(|c| c < ' ' || "\"*/:<>?\\|".contains(c)) {
        Some("a name has none of \" * / : < > ? \\ | and no control characters")
    } else if name.ends_with(['.', ' ']) {
        Some("a name ends neither in a dot nor in a space")
    } else if name.starts_with('$') {
        Some("names that begin with $ are the file system's own")
    } else if DEVICES.contains(&stem.as_str()) || is_numbered("COM") || is_numbered("LPT") {
        Some("it is the name of a device")
    } else {
        None
    }
}

/// Why no volume is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// Too many.
    #[error("make an NTFS volume of {files} files: it holds {MOST_FILES}")]
    TooManyFiles {
        /// How many were asked for.
        files: usize,
    },
    /// A file cannot be on it.
    #[error("put {name:?} on an NTFS volume: {problem}")]
    File {
        /// Its name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// Windows does not tell the names apart.
    #[error("put {name:?} on an NTFS volume: another file has that name, but for upper and lower case")]
    SameName {
        /// The second of them.
        name: String,
    },
    /// The label is too long.
    #[error("name an NTFS volume {label:?}: a label has at most 32 UTF-16 units")]
    Label {
        /// The label.
        label: String,
    },
    /// NTFS ends before that.
    #[error("make an NTFS volume of {bytes} bytes: with clusters of 64 KiB it ends at 256 TiB")]
    TooLarge {
        /// What it would take.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_windows_takes() {
        for good in ["a", "DATA disk ünï.vhdx", ".hidden", "console", "COM10", "com", "nul_.vhdx", "💾.vhdx"] {
            assert_eq!(name_problem(good), None, "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", &long, "a/b", "a\u{1}", "a.", "a ", "$MFT", "con", "NUL.vhdx", "com1.txt", "lpt³", "aux .x"] {
            assert!(name_problem(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn ids_follow_from_the_session() {
        let of = |session: u128| Parameters::for_session(Uuid::from_u128(session), 7, Vec::new());
        assert_eq!(of(1), of(1));
        let (one, two) = (of(1), of(2));
        assert!(one.serial != two.serial && one.disk_guid != two.disk_guid && one.disk_guid != one.partition_guid);
        assert_eq!((one.disk_guid.get_version_num(), one.partition_guid.get_version_num()), (8, 8));
    }
}
