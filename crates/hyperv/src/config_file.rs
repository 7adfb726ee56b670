//! Reading a checkpoint's configuration files (spec 3.5).

use std::io;
use std::time::Duration;

use crate::error::is_sharing_violation;
use crate::seam::{FileFacts, HostFile};
use crate::{Checkpoint, Error, Host};

/// An open configuration file.
pub struct ConfigFile {
    /// Host path.
    pub path: String,
    /// Its length and times when it was opened.
    pub facts: FileFacts,
    /// Its bytes. A `.vmrs` can be as large as the guest's memory: read it in pieces.
    pub file: HostFile,
}

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigFile").field("path", &self.path).field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// `vmms` opens these files briefly; this often, and this far apart, a sharing violation is waited out.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

impl Host {
    /// Opens the `.vmcx`, `.vmrs` and `.vmgs` of a checkpoint, in this order. Those that a host or a generation does not
    /// have are left out; without a `.vmcx` there is no definition, so its absence is an error.
    pub fn open_config_files(&self, checkpoint: &Checkpoint) -> Result<Vec<ConfigFile>, Error> {
        let attempt = format!("read the configuration of VM {:?} ({})", checkpoint.vm_name, checkpoint.vm_id);
        let paths = &checkpoint.config_files;
        let mut opened = Vec::new();
        for (path, required) in [(&paths.vmcx, true), (&paths.vmrs, false), (&paths.vmgs, false)] {
            match self.open_patiently(path) {
                Ok(file) => opened.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
                Err(source) => return Err(Error::File { attempt, path: path.clone(), source }),
            }
        }
        Ok(opened)
    }

    fn open_patiently(&self, path: &str) -> io::Result<ConfigFile> {
        let mut tries_left = TRIES;
        loop {
            let opened = self.seam.files.open_read(path).and_then(|file| Ok((self.seam.files.facts(path)?, file)));
            match opened {
                Ok((facts, file)) => return Ok(ConfigFile { path: path.to_owned(), facts, file }),
                Err(error) if is_sharing_violation(&error) && tries_left > 1 => {
                    tries_left -= 1;
                    self.seam.clock.sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
