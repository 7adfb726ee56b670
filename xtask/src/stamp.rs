//! What was made once, and from which inputs: so that it is made again when they change.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Remembers from which pinned inputs a thing was made.
pub struct Stamp {
    /// Where that is written.
    pub file: PathBuf,
    /// The inputs.
    pub pinned: String,
}

impl Stamp {
    /// Whether the thing was made from these inputs.
    pub fn matches(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|found| found == self.pinned)
    }

    /// Says that it now is.
    pub fn write(&self) -> Result<()> {
        fs::write(&self.file, &self.pinned).with_context(|| format!("write {}", self.file.display()))
    }
}

/// The contents of `files`, one after another.
pub fn read_pinned(files: &[&Path]) -> Result<String> {
    let read = |file: &&Path| fs::read_to_string(file).with_context(|| format!("read {}", file.display()));
    files.iter().map(read).collect()
}
