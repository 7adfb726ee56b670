//! The files of a session that say how it is served, what is wanted of it, and how it is.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serve::folder::{DiskFolder, read_small, replace};
use serve::{Hydrated, Session, State};

use super::qemu::Machine;
use crate::serving::{Sources, Transport, read_bytes};

/// File with the secret of a session's iSCSI target, as QEMU reads it.
pub const CHAP_SECRET: &str = "chap-secret";
const RECORD: &str = "instant.json";
const WANTED: &str = "wanted.json";
const FIGURES: &str = "figures.json";
const MAX_BYTES: u64 = 1 << 20;

/// How a session is served: enough to serve it again, under the same names, after whatever happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The session's id, and its folder's name.
    pub session: String,
    /// The restore point.
    pub point_id: String,
    /// The VM.
    pub vm_id: String,
    /// Its name when it was backed up.
    pub vm_name: String,
    /// When the session began.
    pub begun: Timestamp,
    /// Where clients come.
    pub served: Served,
    /// The machine that is to run.
    pub machine: Machine,
    /// Its disks.
    pub disks: Vec<RecordedDisk>,
    /// Where its VM is, when it runs under Hyper-V.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperv: Option<HypervRecord>,
}

/// A VM that runs under Hyper-V. What was done to its host is in the host's own journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervRecord {
    /// The host, as `--host` names it.
    pub host: String,
    /// What the VM is called there.
    pub vm_name: String,
    /// The host's folder that is the VM's alone.
    pub directory: String,
    /// Where its disks are going to be, in their order.
    pub local: Vec<String>,
    /// The VM's id there, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
}

/// Where clients of a session come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Served {
    /// NBD on an address of this machine.
    Nbd(SocketAddr),
    /// NBD on a Unix socket.
    NbdSocket(PathBuf),
    /// An iSCSI target with a login.
    Iscsi {
        /// Where it listens.
        portal: SocketAddr,
        /// Its name.
        target: String,
        /// Who logs in; the secret lies beside the record.
        user: String,
    },
}

/// A disk of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedDisk {
    /// Its number in the point.
    pub number: u32,
    /// The name it is served under.
    pub name: String,
    /// Its identity.
    pub virtual_disk_id: String,
    /// Its size.
    pub size_bytes: u64,
}

/// What the operator wants to become of a session. It is done as soon as it can be, and again after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// Copy the base to these files, one for each disk.
    pub move_to: Option<Vec<PathBuf>>,
    /// No faster than this.
    pub bytes_per_second: Option<u64>,
    /// Let the files take over when they hold the base.
    pub switch: bool,
    /// Under Hyper-V: shut the guest down for that, and start it again.
    pub shut_down: bool,
    /// End the session, with all that its guest wrote.
    pub discard: bool,
}

/// How a session is, as its keeper saw it a moment ago.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// The keeper.
    pub process_id: u32,
    /// When.
    pub at: Timestamp,
    /// Connections of clients.
    pub clients: usize,
    /// From `instant start` to the first read.
    pub first_read_ms: Option<u64>,
    /// Where bytes that the guest read came from.
    pub read_bytes: Value,
    /// What its writes take.
    pub overlay_live_bytes: u64,
    /// Bytes of the base that are in the targets, once they are being copied.
    pub moved_bytes: Option<u64>,
    /// All of them.
    pub total_bytes: Option<u64>,
    /// Until they are.
    pub seconds_left: Option<u64>,
    /// What is wrong at present.
    pub trouble: Vec<String>,
    /// Why what was wanted is not done.
    pub refusal: Option<Refusal>,
    /// What has to come from outside before what was wanted goes on.
    #[serde(skip)]
    pub waits_for: Option<String>,
    /// Under Hyper-V: where the disks stand. The session's own state is that of the volume, which never moves.
    pub stage: Option<State>,
    /// Everything, in Prometheus' text format.
    pub metrics: String,
}

/// Why what was wanted is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// There is no room for it.
    pub is_no_space: bool,
    /// For the operator.
    pub text: String,
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { is_no_space: false, text }
    }
}

/// What is wanted, as it was read last: while the file cannot be read, nothing changes.
#[derive(Debug, Default)]
pub struct LastWanted {
    last: Wanted,
    trouble: Option<String>,
}

impl LastWanted {
    /// Reads it again.
    pub fn look(&mut self, folder: &Path) -> Wanted {
        match Wanted::read(folder) {
            Ok(wanted) => (self.last, self.trouble) = (wanted, None),
            Err(error) => {
                self.trouble = Some(format!("read what is wanted in {}: {error}", folder.display()));
            }
        }
        self.last.clone()
    }

    /// Why it could not be read.
    pub fn trouble(&self) -> Option<&String> {
        self.trouble.as_ref()
    }
}

impl Served {
    /// Notes the address that was found free; false when it was known.
    pub fn bind_to(&mut self, bound: SocketAddr) -> bool {
        let (Self::Nbd(address) | Self::Iscsi { portal: address, .. }) = self else { return false };
        std::mem::replace(address, bound) != bound
    }
}

impl Record {
    /// `None` where nothing was recorded.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        read(folder, RECORD)
    }

    /// Durable when it returns.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        replace(&DiskFolder::open_or_create(folder)?, RECORD, &serde_json::to_vec_pretty(self)?)
    }
}

impl Wanted {
    /// Nothing, where nothing was asked for.
    pub fn read(folder: &Path) -> io::Result<Self> {
        Ok(read(folder, WANTED)?.unwrap_or_default())
    }

    /// Durable when it returns: what was promised to the operator outlives the keeper.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        replace(&DiskFolder::open_or_create(folder)?, WANTED, &serde_json::to_vec_pretty(self)?)
    }
}

impl Figures {
    /// `None` before the first were told, and where a loss of power left nothing that can be read: they are of a moment.
    pub fn read(folder: &Path) -> Option<Self> {
        read(folder, FIGURES).ok().flatten()
    }

    /// Notes how long the first read took to come, once it has.
    pub fn note_first_read(&mut self, begun: Instant, sources: &Sources) {
        if self.first_read_ms.is_none() && sources.metrics.reads() > 0 {
            self.first_read_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        }
    }

    /// How a served session is now; what was wrong before is forgotten.
    pub fn observe(&mut self, transport: &Transport, sources: &Sources, session: &Session) {
        self.at = Timestamp::now();
        self.clients = transport.clients();
        self.read_bytes = read_bytes(&sources.metrics);
        self.overlay_live_bytes = session.overlay_stats().live_bytes;
        self.trouble = session.tend();
        self.metrics = session.render_metrics();
    }

    /// How far its disks have moved, if they do.
    pub fn note_moved(&mut self, moved: Option<Hydrated>, time_left: Option<Duration>) {
        self.moved_bytes = moved.map(|moved| moved.done_bytes);
        self.total_bytes = moved.map(|moved| moved.total_bytes);
        self.seconds_left = time_left.map(|left| left.as_secs());
    }

    /// Writes them, if that is possible: a session is served for its guest, whatever can be told of it.
    pub fn publish(&mut self, folder: &Path) {
        if let Err(error) = self.write(folder) {
            self.trouble.push(format!("write how the session is to {}: {error}", folder.display()));
        }
    }

    /// A reader sees the former ones or these. Not durable: they are of a moment.
    fn write(&self, folder: &Path) -> io::Result<()> {
        let path = folder.join(FIGURES);
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(temporary, path)
    }
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> io::Result<Option<T>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let bytes = read_small(&DiskFolder::open_or_create(folder)?, name, MAX_BYTES)?;
    bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)).transpose()
}
