//! What the running agent tells the machine's administrator: lines in the foreground, the event log as a service.

use jiff::Timestamp;

use crate::output::note;
use crate::units::stamp;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The agent started.
    Started,
    /// It stopped.
    Stopped,
    /// It read its configuration again.
    Reloaded,
    /// It put in order what a former run left.
    Settled,
    /// A job is done.
    JobDone,
    /// A job is done, with warnings.
    JobWarned,
    /// A job failed, in part or as a whole.
    JobFailed,
    /// The server answers again.
    Reconnected,
    /// Something it cannot do at present.
    Problem,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gravity {
    /// Good to know.
    Information,
    /// To be read.
    Warning,
    /// To be acted upon.
    Error,
}

impl EventKind {
    /// Stable number, by which monitoring filters: the event id in the Windows event log.
    #[cfg_attr(not(windows), expect(dead_code, reason = "lines in the foreground have words enough"))]
    pub fn id(self) -> u16 {
        match self {
            Self::Started => 1,
            Self::Stopped => 2,
            Self::Reloaded => 3,
            Self::Settled => 10,
            Self::JobDone => 100,
            Self::JobWarned => 101,
            Self::JobFailed => 102,
            Self::Reconnected => 20,
            Self::Problem => 200,
        }
    }

    /// How much it matters.
    pub fn gravity(self) -> Gravity {
        match self {
            Self::Started | Self::Stopped | Self::Reloaded | Self::Settled | Self::Reconnected | Self::JobDone => {
                Gravity::Information
            }
            Self::JobWarned => Gravity::Warning,
            Self::JobFailed | Self::Problem => Gravity::Error,
        }
    }
}

/// Takes events; never fails, since nobody could be told.
pub trait Events: Sync {
    /// Something happened.
    fn tell(&self, kind: EventKind, text: &str);
}

/// To standard error.
#[derive(Debug)]
pub struct ToStandardError;

impl Events for ToStandardError {
    fn tell(&self, kind: EventKind, text: &str) {
        let word = match kind.gravity() {
            Gravity::Information => "",
            Gravity::Warning => "warning: ",
            Gravity::Error => "error: ",
        };
        let mut lines = text.lines();
        note(&format!("{} {word}{}", stamp(Timestamp::now(), false), lines.next().unwrap_or_default()));
        lines.for_each(|line| note(&format!("  {line}")));
    }
}
