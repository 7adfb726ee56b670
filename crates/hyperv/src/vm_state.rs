//! What a VM is doing (spec 1.2).

use crate::inventory::number;
use crate::seam::Instance;

/// `EnabledState` (spec 1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmState {
    /// 2.
    Running,
    /// 3.
    Off,
    /// 6, or 32769 in older tooling.
    Saved,
    /// 9, or 32768 in older tooling.
    Paused,
    /// Starting, stopping, saving and the like, with the number and `OtherEnabledState`.
    InTransition {
        /// `EnabledState`.
        value: u16,
        /// `OtherEnabledState`.
        text: String,
    },
    /// 32781 to 32792: its storage is lost. No backup is possible.
    Critical(u16),
    /// Anything else.
    Unknown(u16),
}

impl VmState {
    /// The state that a VM's instance shows.
    pub(crate) fn of(system: &Instance) -> Self {
        let other = system.get("OtherEnabledState").as_str().unwrap_or_default();
        Self::from_wmi(number(system, "EnabledState"), other)
    }

    fn from_wmi(value: u16, other: &str) -> Self {
        match value {
            2 => Self::Running,
            3 => Self::Off,
            6 | 32769 => Self::Saved,
            9 | 32768 => Self::Paused,
            1 | 4 | 10 | 32770..=32780 => Self::InTransition { value, text: other.to_owned() },
            32781..=32792 => Self::Critical(value),
            other => Self::Unknown(other),
        }
    }
}

/// `OperationalStatus[1]` (spec 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// 32768.
    CreatingCheckpoint,
    /// 32769.
    ApplyingCheckpoint,
    /// 32770.
    DeletingCheckpoint,
    /// 32771.
    WaitingToStart,
    /// 32772.
    MergingDisks,
    /// 32773.
    Exporting,
    /// 32774.
    Migrating,
    /// A number we have no name for.
    Other(u16),
}

impl Operation {
    /// The operation that a VM's instance shows.
    pub(crate) fn of(system: &Instance) -> Option<Self> {
        let status = system.get("OperationalStatus").as_array()?.get(1)?.as_u64()?;
        Some(match u16::try_from(status).unwrap_or(0) {
            32768 => Self::CreatingCheckpoint,
            32769 => Self::ApplyingCheckpoint,
            32770 => Self::DeletingCheckpoint,
            32771 => Self::WaitingToStart,
            32772 => Self::MergingDisks,
            32773 => Self::Exporting,
            32774 => Self::Migrating,
            other => Self::Other(other),
        })
    }
}
