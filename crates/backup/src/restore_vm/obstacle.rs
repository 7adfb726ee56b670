//! What stands in the way of a restore, whoever found it.

use hyperv::{Obstacle, Severity};

/// One thing that was looked at before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreObstacle {
    /// What was looked at; stable, as `configuration_version` or `space`.
    pub code: &'static str,
    /// Whether it stands in the way.
    pub severity: Severity,
    /// The disk, adapter, file or VM that it is about.
    pub on: String,
    /// What was found, as a sentence.
    pub why: String,
    /// What can be done about it.
    pub options: Vec<&'static str>,
}

impl RestoreObstacle {
    pub(crate) fn new(
        code: &'static str,
        severity: Severity,
        on: impl Into<String>,
        why: impl Into<String>,
        options: &[&'static str],
    ) -> Self {
        Self { code, severity, on: on.into(), why: why.into(), options: options.to_vec() }
    }

    pub(crate) fn block(
        code: &'static str,
        on: impl Into<String>,
        why: impl Into<String>,
        options: &[&'static str],
    ) -> Self {
        Self::new(code, Severity::Block, on, why, options)
    }

    pub(crate) fn passed(code: &'static str, on: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(code, Severity::Passed, on, why, &[])
    }
}

impl From<Obstacle> for RestoreObstacle {
    fn from(obstacle: Obstacle) -> Self {
        let Obstacle { code, severity, on, why, options } = obstacle;
        Self { code: code.as_str(), severity, on, why, options }
    }
}

/// The worst first, otherwise as found.
pub(crate) fn sort(obstacles: &mut [RestoreObstacle]) {
    obstacles.sort_by_key(|obstacle| (obstacle.severity, obstacle.code));
}
