//! Faults that a test puts into the host.
//!
//! They are listed in `faults.json` beside `host.json` and read anew for every operation, so that a test can change them
//! while another process is at work.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::store::write_atomically;

/// Name of the side file.
const FILE: &str = "faults.json";

/// One thing that goes wrong until it is cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Fault {
    /// Reads that touch a range of a virtual disk fail, through every file of its chain.
    UnreadableRange {
        /// VM name or id.
        vm: String,
        /// Index of the disk, in slot order.
        disk: usize,
        /// Virtual offset.
        offset_bytes: u64,
        /// Length.
        len_bytes: u64,
        /// Win32 code: 23 (CRC), 1117 (device I/O).
        code: u32,
        /// How many reads fail before the range becomes readable; `None` for ever. Counted per opened disk.
        times: Option<u32>,
    },
    /// A method answers with this value and does nothing.
    MethodReturns {
        /// For example `CreateSnapshot`.
        method: String,
        /// For example 32775.
        return_value: u32,
    },
    /// A method fails below its `ReturnValue`: the service is gone, the transport broke.
    MethodUnreachable {
        /// For example `ConvertToReferencePoint`.
        method: String,
        /// For example 0x800706BA.
        hresult: u32,
    },
    /// A method starts a job, and the job ends in state 10. (Without jobs, the method answers 32768.)
    JobFails {
        /// For example `CreateSnapshot`.
        method: String,
        /// For `CreateSnapshot`: only for requests of this consistency level.
        consistency_level: Option<u8>,
        /// `Job.ErrorCode`.
        error_code: u16,
        /// `Job.ErrorDescription`, with its `(0x…)`.
        description: String,
    },
    /// Merges of this VM find a file in use.
    MergeBlocked {
        /// VM name or id.
        vm: String,
    },
    /// A query of changed ranges fails.
    ChangesFail {
        /// VM name or id.
        vm: String,
        /// Index of the disk.
        disk: usize,
        /// The error, as returned.
        code: u32,
    },
    /// The caller has no rights: queries find nothing.
    NoRights,
    /// A group policy took "Log on as a service" from the VMs' accounts: conversions fail with 0x8007052F, starts with
    /// 0x80070569.
    NoLogonRight,
}

pub(crate) fn load(root: &Path) -> Result<Vec<Fault>, LabError> {
    let path = root.join(FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LabError::io("read", path)(e)),
    };
    serde_json::from_slice(&text).map_err(|source| LabError::State { path, source })
}

pub(crate) fn save(root: &Path, faults: &[Fault]) -> Result<(), LabError> {
    let text = serde_json::to_vec_pretty(faults).expect("faults have a JSON form");
    write_atomically(&root.join(FILE), &text)
}
