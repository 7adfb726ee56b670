//! The label of a restore point.

use crate::{Consistency, GuestFamily, Vm, VmState};

/// What the frozen disks are worth to the software in the guest: the label of a restore point (spec 2.4, 3.6, 12 row 31).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reached {
    /// Applications were frozen, through VSS in a Windows guest.
    Application,
    /// File systems were frozen: Linux, or a guest that did not say what it is.
    FileSystem,
    /// As after a power cut.
    Crash,
    /// The VM was off.
    Offline,
}

impl Reached {
    /// What a checkpoint of `vm` reached when the request for `consistency` succeeded. `vm` as it was before.
    pub fn of(consistency: Consistency, vm: &Vm) -> Self {
        match (consistency, &vm.state, vm.guest.family) {
            (_, VmState::Off, _) => Self::Offline,
            (Consistency::Application, _, GuestFamily::Windows) => Self::Application,
            (Consistency::Application, ..) => Self::FileSystem,
            (Consistency::Crash, ..) => Self::Crash,
        }
    }

    /// The lower of this and what the reference point says: where the two differ, the lower is to be believed.
    pub fn and(self, reference_point: Option<Consistency>) -> Self {
        match (self, reference_point) {
            (Self::Application | Self::FileSystem, Some(Consistency::Crash)) => Self::Crash,
            (reached, _) => reached,
        }
    }
}

impl std::fmt::Display for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Application => "application",
            Self::FileSystem => "file system",
            Self::Crash => "crash",
            Self::Offline => "offline",
        })
    }
}
