//! What must have happened in many stories: a simulation that never dies at a commit proves nothing about commits.

use crate::Counts;

/// How often something must happen, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minimum {
    /// Everything whose name begins so counts.
    pub what: &'static str,
    /// In a thousand stories.
    pub per_thousand: u64,
}

/// For every kind of fault, of act, of death, of tracking and of judgement.
pub fn minimums() -> &'static [Minimum] {
    MINIMUMS
}

impl Minimum {
    /// How often it happened.
    pub fn seen(&self, counts: &Counts) -> u64 {
        counts.iter().filter(|(what, _)| what.starts_with(self.what)).map(|(_, count)| count).sum()
    }

    /// How often it must have happened in so many stories. Few stories may well miss what is rare.
    pub fn wanted(&self, stories: u64) -> u64 {
        self.per_thousand * stories / 1000
    }
}

const MINIMUMS: &[Minimum] = &[
    Minimum { what: "judged law 1", per_thousand: 3000 },
    Minimum { what: "judged law 2", per_thousand: 400 },
    Minimum { what: "judged law 3", per_thousand: 10 },
    Minimum { what: "judged law 4", per_thousand: 900 },
    Minimum { what: "judged law 5", per_thousand: 3000 },
    Minimum { what: "judged law 8", per_thousand: 150 },
    Minimum { what: "incremental", per_thousand: 400 },
    Minimum { what: "full ", per_thousand: 800 },
    Minimum { what: "outcome point", per_thousand: 1000 },
    Minimum { what: "outcome died", per_thousand: 100 },
    Minimum { what: "outcome failed", per_thousand: 200 },
    Minimum { what: "outcome adopted", per_thousand: 5 },
    Minimum { what: "crash before call", per_thousand: 10 },
    Minimum { what: "crash after call", per_thousand: 10 },
    Minimum { what: "crash before query", per_thousand: 20 },
    Minimum { what: "crash after query", per_thousand: 20 },
    Minimum { what: "crash before store", per_thousand: 20 },
    Minimum { what: "crash after store", per_thousand: 20 },
    Minimum { what: "fault Unreadable", per_thousand: 4 },
    Minimum { what: "fault DeviceLost", per_thousand: 4 },
    Minimum { what: "fault CheckpointRefused", per_thousand: 4 },
    Minimum { what: "fault CheckpointFails", per_thousand: 4 },
    Minimum { what: "fault GuestRefuses", per_thousand: 4 },
    Minimum { what: "fault ConvertFails", per_thousand: 4 },
    Minimum { what: "fault ConvertUnreachable", per_thousand: 4 },
    Minimum { what: "fault ConvertFailsAfterPoint", per_thousand: 4 },
    Minimum { what: "fault ReferencePointIds", per_thousand: 4 },
    Minimum { what: "fault NoLogonRight", per_thousand: 4 },
    Minimum { what: "fault NoRights", per_thousand: 4 },
    Minimum { what: "fault MergeBlocked", per_thousand: 4 },
    Minimum { what: "fault ChangesFail", per_thousand: 4 },
    Minimum { what: "fault ChangesOmit", per_thousand: 4 },
    Minimum { what: "fault ServiceRestarts", per_thousand: 4 },
    Minimum { what: "fault LeavesFile", per_thousand: 4 },
    Minimum { what: "fault DestroyUnreachable", per_thousand: 4 },
    Minimum { what: "store FailBefore", per_thousand: 4 },
    Minimum { what: "store FailAfter", per_thousand: 4 },
    Minimum { what: "store AccessDenied", per_thousand: 4 },
    Minimum { what: "store NoSpace", per_thousand: 4 },
    Minimum { what: "store Cut", per_thousand: 4 },
    Minimum { what: "store FlipBit", per_thousand: 4 },
    Minimum { what: "tracking superset", per_thousand: 20 },
    Minimum { what: "tracking short ranges", per_thousand: 20 },
    Minimum { what: "tracking refuses whole disk", per_thousand: 20 },
    Minimum { what: "tracking reuses ids", per_thousand: 20 },
    Minimum { what: "tracking lies after apply", per_thousand: 20 },
    Minimum { what: "tracking kept after move", per_thousand: 20 },
    Minimum { what: "tracking lost after move", per_thousand: 20 },
    Minimum { what: "tracking kept but wrong after move", per_thousand: 20 },
    Minimum { what: "tracking keeps markers", per_thousand: 20 },
    Minimum { what: "tracking granularity", per_thousand: 20 },
    Minimum { what: "act BackUp", per_thousand: 4 },
    Minimum { what: "act Settle", per_thousand: 4 },
    Minimum { what: "act RestartAgent", per_thousand: 4 },
    Minimum { what: "act Write", per_thousand: 4 },
    Minimum { what: "act Zero", per_thousand: 4 },
    Minimum { what: "act StartVm", per_thousand: 4 },
    Minimum { what: "act StopVm", per_thousand: 4 },
    Minimum { what: "act PowerCut", per_thousand: 4 },
    Minimum { what: "act MoveVm", per_thousand: 4 },
    Minimum { what: "act MakeCheckpoint", per_thousand: 4 },
    Minimum { what: "act DeleteCheckpoint", per_thousand: 4 },
    Minimum { what: "act ApplyCheckpoint", per_thousand: 4 },
    Minimum { what: "act CopyDisk", per_thousand: 4 },
    Minimum { what: "act RevertDisk", per_thousand: 4 },
    Minimum { what: "act LoseTracking", per_thousand: 4 },
    Minimum { what: "act MoveDiskFiles", per_thousand: 4 },
    Minimum { what: "act ResizeDisk", per_thousand: 4 },
    Minimum { what: "act AddDisk", per_thousand: 4 },
    Minimum { what: "act RemoveDisk", per_thousand: 4 },
    Minimum { what: "act RenameVm", per_thousand: 4 },
    Minimum { what: "act ForeignCheckpoint", per_thousand: 4 },
    Minimum { what: "act ForeignReferencePoint", per_thousand: 4 },
    Minimum { what: "act Break", per_thousand: 4 },
    Minimum { what: "act Mend", per_thousand: 4 },
    Minimum { what: "act Wait", per_thousand: 4 },
    Minimum { what: "act SetClock", per_thousand: 4 },
    Minimum { what: "act DeletePoint", per_thousand: 4 },
    Minimum { what: "act Maintain", per_thousand: 4 },
    Minimum { what: "meanwhile Write", per_thousand: 4 },
    Minimum { what: "meanwhile BackUp", per_thousand: 4 },
    Minimum { what: "meanwhile MakeCheckpoint", per_thousand: 4 },
    Minimum { what: "meanwhile DeletePoint", per_thousand: 4 },
    Minimum { what: "meanwhile Maintain", per_thousand: 4 },
    Minimum { what: "meanwhile RestartHostService", per_thousand: 4 },
];
