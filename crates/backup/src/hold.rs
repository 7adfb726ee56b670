//! Holds: what keeps a point whatever the policy says. A hold is a pin of the Kopia snapshot, so stock Kopia keeps the
//! point too, shows why, and carries the hold along when it rewrites the manifest (spec kopia-format 6.2).

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use kopia_repo::{Repository, SessionOptions, WriteSession};

use crate::BackupError;
use crate::error::SelectError;
use crate::point::{Point, list_points};

/// Longest reason, in bytes: it stands in a manifest that every client loads.
pub const MAX_REASON_BYTES: usize = 500;

/// A reason to keep a point.
///
/// As a pin: `hold`, `hold: REASON`, `hold until TIME` or `hold until TIME: REASON`. Any other pin, such as one set with
/// `kopia snapshot pin`, is a hold without end whose reason is the pin itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hold {
    reason: String,
    until: Option<Timestamp>,
    pin: String,
}

/// Why a text is no reason of a hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reason is one line of at most {MAX_REASON_BYTES} bytes")]
pub struct ReasonError;

impl Hold {
    /// A hold for `reason`, which may be empty, up to and without the instant `until`; without one, until it is
    /// released.
    pub fn new(reason: &str, until: Option<Timestamp>) -> Result<Self, ReasonError> {
        let reason = reason.trim();
        if reason.len() > MAX_REASON_BYTES || reason.chars().any(char::is_control) {
            return Err(ReasonError);
        }
        let mut pin = "hold".to_owned();
        if let Some(until) = until {
            pin += &format!(" until {until}");
        }
        if !reason.is_empty() {
            pin += &format!(": {reason}");
        }
        Ok(Self { reason: reason.to_owned(), until, pin })
    }

    /// The hold that a pin stands for.
    pub fn of_pin(pin: &str) -> Self {
        let foreign = || Self { reason: pin.to_owned(), until: None, pin: pin.to_owned() };
        let (head, reason) = pin.split_once(": ").unwrap_or((pin, ""));
        let until = match head.strip_prefix("hold until ") {
            Some(time) => match time.parse() {
                Ok(time) => Some(time),
                // Nothing that is not understood ends by itself.
                Err(_) => return foreign(),
            },
            None if head == "hold" => None,
            None => return foreign(),
        };
        Self { reason: reason.to_owned(), until, pin: pin.to_owned() }
    }

    /// In a person's words; may be empty.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// When it ends by itself.
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }

    /// As it stands in the manifest.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Whether it has ended by itself. The pin is still there, and still binds stock Kopia, until it is released.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.reason, self.until) {
            ("", None) => f.write_str("without a reason or an end"),
            ("", Some(until)) => write!(f, "until {until}"),
            (reason, None) => f.write_str(reason),
            (reason, Some(until)) => write!(f, "{reason}, until {until}"),
        }
    }
}

/// The holds of a point, in order of their pins.
pub fn holds_of(point: &Point) -> Vec<Hold> {
    point.snapshot.manifest.pins.iter().map(|pin| Hold::of_pin(pin)).collect()
}

/// Holds points, by their ids. One that has this very hold stays as it is. Returns the points as they are now.
pub fn hold_points(repo: &Arc<Repository>, ids: &[String], hold: &Hold) -> Result<Vec<Point>, BackupError> {
    change_pins(repo, ids, |pins| {
        pins.push(hold.pin.clone());
        pins.sort();
        pins.dedup();
    })
}

/// Ends every hold of points, by their ids, whoever set it. Returns the points as they are now.
pub fn release_points(repo: &Arc<Repository>, ids: &[String]) -> Result<Vec<Point>, BackupError> {
    change_pins(repo, ids, Vec::clear)
}

/// Rewrites the manifests whose pins change, all with one flush: all points or none.
fn change_pins(
    repo: &Arc<Repository>,
    ids: &[String],
    change: impl Fn(&mut Vec<String>),
) -> Result<Vec<Point>, BackupError> {
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
    let mut is_changed = false;
    for point in fresh_points(repo, ids)? {
        let mut manifest = point.snapshot.manifest.clone();
        change(&mut manifest.pins);
        if manifest.pins != point.snapshot.manifest.pins {
            session.replace_snapshot(&point.snapshot, &manifest);
            is_changed = true;
        }
    }
    if is_changed {
        session.flush()?;
    }
    drop(session);
    fresh_points(repo, ids)
}

/// The points with these ids, in that order, as the repository has them now: their manifests may have been rewritten
/// since they were listed.
pub(crate) fn fresh_points(repo: &Repository, ids: &[String]) -> Result<Vec<Point>, BackupError> {
    repo.refresh()?;
    let points = list_points(repo, None)?;
    let find = |id: &String| {
        points.iter().find(|point| point.id == *id).cloned().ok_or_else(|| {
            let hint = " any more: it went in the meantime".to_owned();
            BackupError::Select(SelectError::NotFound { what: "point", selector: id.clone(), hint })
        })
    };
    ids.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_pins_and_come_back() {
        let until: Timestamp = "2027-01-31T00:00:00Z".parse().unwrap();
        for (reason, until, pin) in [
            ("", None, "hold"),
            ("audit of 2026: see ticket 7", None, "hold: audit of 2026: see ticket 7"),
            ("", Some(until), "hold until 2027-01-31T00:00:00Z"),
            (" a, b ", Some(until), "hold until 2027-01-31T00:00:00Z: a, b"),
            ("until noon", None, "hold: until noon"),
        ] {
            let hold = Hold::new(reason, until).unwrap();
            assert_eq!(hold.pin(), pin);
            assert_eq!(Hold::of_pin(pin), hold, "{pin}");
            assert_eq!((hold.reason(), hold.until()), (reason.trim(), until), "{pin}");
        }
        for reason in ["two\nlines", "\u{1b}[2J", &"x".repeat(MAX_REASON_BYTES + 1)] {
            assert_eq!(Hold::new(reason, None), Err(ReasonError), "{reason:?}");
        }
    }

    #[test]
    fn pins_of_others_hold_without_end() {
        for pin in ["", "keep", "holder", "hold until tomorrow", "hold until tomorrow: soon", "HOLD", "hold:x"] {
            let hold = Hold::of_pin(pin);
            assert_eq!((hold.reason(), hold.until(), hold.pin()), (pin, None, pin));
            assert!(!hold.is_over(Timestamp::MAX), "{pin:?}");
        }
    }

    #[test]
    fn a_hold_ends_at_its_instant() {
        let until: Timestamp = "2027-01-31T00:00:00Z".parse().unwrap();
        let hold = Hold::new("", Some(until)).unwrap();
        let before = until - jiff::SignedDuration::from_nanos(1);
        assert_eq!((hold.is_over(before), hold.is_over(until)), (false, true));
    }
}
