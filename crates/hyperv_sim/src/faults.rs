//! Faults that a test puts into the host.
//!
//! They are listed in `faults.json` beside `host.json` and read anew for every operation, so that a test can change them
//! while another process is at work.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::host::Tx;
use crate::state::Vm;
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
        /// Win32 code: 23 (CRC), 1117 (device I/O), 38 (short read).
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
    /// The same for so many runs: until as many recovery checkpoints of the VM are gone.
    MergeBlockedForRuns {
        /// VM name or id.
        vm: String,
        /// Runs to come.
        runs: u32,
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
    /// A query of changed ranges leaves out one 64 KiB of what changed: a lie.
    ChangesOmit {
        /// VM name or id.
        vm: String,
        /// Index of the disk.
        disk: usize,
        /// Which of the changed ones; counted from the start, and from there again behind the last.
        unit: u64,
    },
    /// An open disk is lost: after some reads every call on it fails.
    DeviceLost {
        /// VM name or id.
        vm: String,
        /// Index of the disk.
        disk: usize,
        /// Reads that succeed, counted per opened disk.
        after_reads: u32,
        /// For example 1167 (device not connected) or 55 (no longer available).
        code: u32,
    },
    /// The management service restarts in the middle of a call. Strikes once.
    ServiceRestarts {
        /// Only calls of this method count; `None` for every query, look-up and method.
        method: Option<String>,
        /// How many such calls pass before.
        after_calls: u64,
        /// How far the call has come.
        phase: RestartPhase,
        /// How long the service is away.
        down_ms: u64,
    },
    /// A checkpoint fails, and the file `<disk>-AutoRecovery.avhdx` stays. While it is there, further ones fail with
    /// 0x80070050. Strikes once.
    CreateLeavesFile {
        /// VM name or id.
        vm: String,
    },
    /// A checkpoint that is called off is made all the same.
    CancelTooLate {
        /// `None`: its job goes on and completes. Else the job ends as cancelled, and the checkpoint appears so much later.
        appears_after_ms: Option<u64>,
    },
    /// A conversion makes the reference point, and its job fails.
    ConvertFailsAfterPoint {
        /// The checkpoint is still there.
        checkpoint_stays: bool,
    },
    /// The id array of new reference points is not complete.
    ReferencePointIds {
        /// How many are missing at its end; more than there are for all.
        missing: usize,
    },
    /// The caller has no rights: queries find nothing.
    NoRights,
    /// A group policy took "Log on as a service" from the VMs' accounts: conversions fail with 0x8007052F, starts with
    /// 0x80070569.
    NoLogonRight,
}

/// How far a call has come when the management service restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPhase {
    /// It has not been carried out.
    Before,
    /// A method has started its job; the job is lost with its work undone.
    During,
    /// The work of the method is done; the caller does not learn it.
    After,
}

impl Fault {
    /// Failures of `CreateSnapshot` as the field knows them, by the row of the failure matrix that describes them.
    pub fn checkpoint_failures() -> Vec<(u8, Fault)> {
        let returns = |row, return_value| (row, Fault::MethodReturns { method: "CreateSnapshot".into(), return_value });
        let fails = |row, consistency_level, error_code, text: &str| {
            let description = format!("The operation failed. {text}");
            let method = "CreateSnapshot".into();
            (row, Fault::JobFails { method, consistency_level, error_code, description })
        };
        let mut list = vec![
            returns(7, 32775),
            returns(7, 32774),
            fails(8, None, 32774, "Could not create auto virtual hard disk. (0x80070020)"),
            fails(9, None, 32768, "The file exists: disk-AutoRecovery.avhdx. (0x80070050)"),
            fails(10, None, 32768, "Cannot create the storage required for the checkpoint. (0x80070002)"),
            fails(11, None, 32768, "There is not enough space on the disk. (0x80070070)"),
            fails(12, None, 32768, "Access is denied. (0x80070005)"),
        ];
        for code in ["0x800423F2", "0x800423F3", "0x80042316", "0x80042314"] {
            list.push(fails(13, Some(1), 32768, &format!("({code})")));
        }
        for code in ["0x800423F4", "0x8004231F", "0x80042317", "0x80042306"] {
            list.push(fails(14, Some(1), 32768, &format!("({code})")));
        }
        list.extend([returns(18, 32770), returns(19, 32768), returns(19, 32770), returns(19, 32775)]);
        list
    }

    /// Whether this is about a VM, by name or id.
    pub(crate) fn names(vm: &Vm, given: &str) -> bool {
        given == vm.active.name || given.eq_ignore_ascii_case(&vm.id)
    }
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

/// A backup run of a VM has come to its end: merges that are blocked for some runs are so for one less.
pub(crate) fn count_run(tx: &Tx<'_>, of: &Vm) -> Result<(), LabError> {
    let mut faults = tx.faults()?;
    let mut counted = false;
    for fault in &mut faults {
        if let Fault::MergeBlockedForRuns { vm, runs } = fault
            && Fault::names(of, vm)
        {
            *runs = runs.saturating_sub(1);
            counted = true;
        }
    }
    if counted { save(tx.store.root(), &faults) } else { Ok(()) }
}

/// Whether a fault that strikes once is there; it is not any more afterwards.
pub(crate) fn strike(tx: &Tx<'_>, wanted: impl Fn(&Fault) -> bool) -> Result<bool, LabError> {
    let mut faults = tx.faults()?;
    let Some(index) = faults.iter().position(wanted) else { return Ok(false) };
    faults.remove(index);
    save(tx.store.root(), &faults)?;
    Ok(true)
}

pub(crate) fn save(root: &Path, faults: &[Fault]) -> Result<(), LabError> {
    let text = serde_json::to_vec_pretty(faults).expect("faults have a JSON form");
    write_atomically(&root.join(FILE), &text)
}
