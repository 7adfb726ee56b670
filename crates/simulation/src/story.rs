//! A story as data: the world it begins in, and what happens, one act after the other.
//!
//! Numbers in acts are taken modulo what there is, and an act that the world refuses has no effect: so a story stays a
//! story when acts are taken out of it.

/// A whole story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// From which ids, nonces, samples and data follow.
    pub seed: u64,
    /// The world at the beginning.
    pub setup: Setup,
    /// What happens.
    pub acts: Vec<Act>,
}

/// The world at the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Each VM's disks, as sizes in units of 512 KiB.
    pub vms: Vec<Vec<u8>>,
    /// How change tracking behaves.
    pub tracking: TrackingMode,
    /// Methods answer at once instead of by jobs.
    pub synchronous: bool,
    /// References are null and ids short, as on Server 2025.
    pub null_references: bool,
    /// Segments of 512 KiB instead of 256 KiB.
    pub long_segments: bool,
}

/// How change tracking behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackingMode {
    /// Logarithm of the granularity in bytes: 9 to 20.
    pub granularity: u8,
    /// Answers hold random ranges besides.
    pub superset: bool,
    /// Answers are cut into ranges of at most 64 KiB.
    pub short_ranges: bool,
    /// A query for the whole disk is refused.
    pub refuses_whole_disk: bool,
    /// Ids are given out again after the storage went back in time.
    pub reuses_ids: bool,
    /// Ids of an abandoned branch go on answering, wrongly.
    pub lies_after_apply: bool,
    /// What is left of tracking when files are moved.
    pub after_move: AfterMove,
    /// Ids of destroyed reference points go on answering.
    pub keeps_markers: bool,
}

/// What is left of tracking when files are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the words of hyperv_sim
pub enum AfterMove {
    Kept,
    Lost,
    KeptButWrong,
}

/// Something that happens. `vm`, `disk` and `which` are taken modulo what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // fields are named for what they are
pub enum Act {
    /// The agent backs a VM up.
    BackUp {
        vm: u8,
        run: Run,
    },
    /// The agent puts in order what a run left.
    Settle {
        vm: u8,
    },
    /// The agent is started anew.
    RestartAgent,
    /// The guest writes `units` of 4 KiB at a unit, ending `odd` bytes earlier.
    Write {
        vm: u8,
        disk: u8,
        at: u16,
        units: u16,
        odd: u16,
        data: u32,
    },
    /// The guest zeroes `units` of 4 KiB.
    Zero {
        vm: u8,
        disk: u8,
        at: u16,
        units: u16,
    },
    StartVm {
        vm: u8,
    },
    StopVm {
        vm: u8,
    },
    /// The power fails; the VM starts again.
    PowerCut {
        vm: u8,
    },
    /// The VM goes to the other host.
    MoveVm {
        vm: u8,
    },
    MakeCheckpoint {
        vm: u8,
    },
    DeleteCheckpoint {
        vm: u8,
        which: u8,
    },
    ApplyCheckpoint {
        vm: u8,
        which: u8,
    },
    /// The storage remembers a disk.
    CopyDisk {
        vm: u8,
        disk: u8,
    },
    /// A disk goes back to what the storage remembers.
    RevertDisk {
        which: u8,
        how: Revert,
    },
    LoseTracking {
        vm: u8,
        disk: u8,
    },
    MoveDiskFiles {
        vm: u8,
        disk: u8,
    },
    /// Units of 512 KiB.
    ResizeDisk {
        vm: u8,
        disk: u8,
        units: u8,
    },
    AddDisk {
        vm: u8,
        units: u8,
    },
    RemoveDisk {
        vm: u8,
        disk: u8,
    },
    AttachDisk {
        vm: u8,
        which: u8,
    },
    RenameVm {
        vm: u8,
    },
    /// Another product's checkpoint appears, and stays.
    ForeignCheckpoint {
        vm: u8,
    },
    /// Another product's checkpoint becomes its reference point.
    ForeignReferencePoint {
        vm: u8,
    },
    DeleteForeignCheckpoint {
        vm: u8,
    },
    RestartHostService {
        down_ms: u16,
    },
    /// Something goes wrong on the host until it is mended.
    Break {
        vm: u8,
        fault: HostFault,
    },
    /// Everything that is broken is mended.
    Mend,
    Wait {
        seconds: u32,
    },
    /// The host's clock is set: so far from the true time.
    SetClock {
        seconds: i16,
    },
    /// Somebody's retention deletes a point.
    DeletePoint {
        which: u8,
    },
    /// Somebody's maintenance collects what no snapshot names.
    Maintain,
}

/// How a disk goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revert {
    /// The same file with its tracking.
    WithTracking,
    /// The same file, its tracking gone.
    TrackingRemoved,
    /// Another file under the name, beside the newer tracking.
    OtherFile,
}

/// One run of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Asked to read everything.
    pub full: bool,
    /// The agent dies at this call to host or store.
    pub crash: Option<Crash>,
    /// Somebody asks the run to stop, at this call.
    pub cancel: Option<u16>,
    /// What the store does wrong, by its calls.
    pub store: Vec<(u16, StoreFault)>,
    /// What happens meanwhile, by calls to host and store.
    pub meanwhile: Vec<(u16, Act)>,
}

/// The death of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Calls that come before.
    pub at: u16,
    /// The call is done; the agent does not learn it.
    pub after: bool,
}

/// What the store does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the words of bucket::Fault
pub enum StoreFault {
    FailBefore,
    FailAfter,
    AccessDenied,
    NoSpace,
    Cut,
    FlipBit,
}

/// What the host does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the words of hyperv_sim::Fault
pub enum HostFault {
    /// Reads of `units` of 4 KiB fail; `times` of 0 is for ever.
    Unreadable {
        disk: u8,
        at: u16,
        units: u16,
        times: u8,
    },
    DeviceLost {
        disk: u8,
        after_reads: u8,
    },
    CheckpointRefused,
    CheckpointFails,
    GuestRefuses,
    ConvertFails,
    ConvertUnreachable,
    ConvertFailsAfterPoint {
        checkpoint_stays: bool,
    },
    ReferencePointIds {
        missing: u8,
    },
    NoLogonRight,
    NoRights,
    MergeBlocked,
    ChangesFail {
        disk: u8,
        which: u8,
    },
    ChangesOmit {
        disk: u8,
        unit: u8,
    },
    ServiceRestarts {
        after_calls: u8,
        phase: u8,
    },
    LeavesFile,
    DestroyUnreachable,
}
