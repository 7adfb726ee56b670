//! What the running agent says of itself, in a file that others read: `service status`, support, monitoring.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The file, in the folder of the host's journals.
const FILE: &str = "agent-status.json";

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Process that wrote it.
    pub process_id: u32,
    /// Name and version of the program.
    pub program: String,
    /// When the agent started.
    pub started: Timestamp,
    /// What it does.
    pub state: State,
    /// The job that runs, if one does.
    #[serde(default)]
    pub running: Option<Running>,
    /// What it cannot do at present, in a sentence.
    #[serde(default)]
    pub problem: Option<String>,
    /// The server that says what is done; none where the configuration does.
    #[serde(default)]
    pub server: Option<String>,
    /// By name of the job; of jobs that are gone, too, until the next start.
    #[serde(default)]
    pub jobs: BTreeMap<String, JobStatus>,
}

/// What an agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits for a job to be due.
    Waiting,
    /// A job runs.
    Running,
    /// No job begins until it is resumed.
    Paused,
    /// It ended.
    Stopped,
}

impl State {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The job that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its name.
    pub job: String,
    /// The VM at which it is.
    pub vm: Option<String>,
    /// What is done to it.
    pub phase: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// What became of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// When it runs, in words.
    pub schedule: String,
    /// When it is due.
    pub due: Option<Timestamp>,
    /// When it last began.
    pub last_started: Option<Timestamp>,
    /// When it last ended.
    pub last_ended: Option<Timestamp>,
    /// Exit code that the same run would have had on the command line.
    pub last_exit: Option<u8>,
    /// A sentence about the last run.
    pub last_result: Option<String>,
}

impl Status {
    /// Reads it; `None` where no agent ever ran.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(folder.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces it as a whole: a reader sees the old one or the new one.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let path = folder.join(FILE);
        let temporary: PathBuf = path.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        std::fs::rename(&temporary, &path)
    }
}
