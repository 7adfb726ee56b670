//! This machine's clock beside the server's (spec control-api 0.6). A clock that is wrong makes maintenance of a repository
//! delete what is in use: then none is done here.

use std::sync::atomic::{AtomicI64, Ordering};

use control_api::envelope::Health;
use jiff::Timestamp;
use serde_json::json;

use super::agent::Managed;
use crate::failure::{Code, Failure};

/// More is skew.
const MOST_MS: i64 = 5 * 60 * 1000;

/// How far this machine is ahead of the server.
#[derive(Debug)]
pub struct Skew(AtomicI64);

/// Not compared yet.
const UNKNOWN: i64 = i64::MIN;

impl Default for Skew {
    fn default() -> Self {
        Self(AtomicI64::new(UNKNOWN))
    }
}

impl Skew {
    /// Whether the clocks were not compared yet.
    pub fn is_unknown(&self) -> bool {
        self.0.load(Ordering::Relaxed) == UNKNOWN
    }

    /// Fails while the clocks differ by too much, and while nobody knows whether they do.
    pub fn check(&self, what: &str) -> Result<(), Failure> {
        let ahead_ms = self.0.load(Ordering::Relaxed);
        if ahead_ms == UNKNOWN {
            let why = "the clock of this machine could not be compared with the server's";
            return Err(Failure::new(what, "this machine", Code::ServerUnreachable, why));
        }
        if !is_skew(ahead_ms) {
            return Ok(());
        }
        let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
        let why = format!("the clock of this machine is {} s {side} the server's", ahead_ms.unsigned_abs() / 1000);
        Err(Failure::new(what, "this machine", Code::ClockSkew, why))
    }
}

fn is_skew(ahead_ms: i64) -> bool {
    ahead_ms != UNKNOWN && ahead_ms.abs() > MOST_MS
}

/// How far the middle of a call is ahead of the time that was answered.
fn ahead_ms(asked: Timestamp, told: Timestamp, answered: Timestamp) -> i64 {
    let middle = asked.as_millisecond().midpoint(answered.as_millisecond());
    middle.saturating_sub(told.as_millisecond())
}

/// Asks the server for the time, and tells it of the difference: at first, where it becomes too large, and where it is none
/// any more.
pub fn compare(managed: &Managed<'_>) {
    let asked = Timestamp::now();
    let told = match managed.client.get::<Health>("health.php", "") {
        Ok(answer) => answer.body.time,
        Err(error) => return tracing::info!(%error, "the clocks cannot be compared"),
    };
    let Ok(told) = told.parse::<Timestamp>() else {
        return tracing::warn!(%told, "the server's time is none");
    };
    let ahead_ms = ahead_ms(asked, told, Timestamp::now());
    let former = managed.skew.0.swap(ahead_ms, Ordering::Relaxed);
    if former != UNKNOWN && is_skew(ahead_ms) == is_skew(former) {
        return;
    }
    let level = if is_skew(ahead_ms) { "warn" } else { "info" };
    managed.agent_event(level, "CLOCK_SKEW", json!({ "skew_ms": ahead_ms }));
    if let Err(failure) = managed.skew.check("compare the clocks") {
        managed.problem(&failure.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_minutes_in_either_direction_are_too_much() {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        for (asked, told, answered, expected, too_much) in [
            (0, 0, 0, 0, false),
            (0, 5, 10, 0, false),
            (300, 0, 300, 300_000, false),
            (301, 0, 301, 301_000, true),
            (0, 302, 0, -302_000, true),
        ] {
            let ahead = ahead_ms(at(asked), at(told), at(answered));
            assert_eq!((ahead, is_skew(ahead)), (expected, too_much), "{asked} {told} {answered}");
            let skew = Skew(AtomicI64::new(ahead));
            assert_eq!(skew.check("maintain").is_err(), too_much);
        }
        assert!(Skew::default().check("maintain").is_err(), "nothing is known yet");
    }
}
