//! Whom to tell of what, and when: pure functions of rules, alerts and the clock.

use control_api::words::{AlertChannel, AlertKind};
use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

use crate::failure::Failure;
use crate::schedule::window::clock;
use crate::store::Row;

/// A rule as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its id.
    pub id: i64,
    /// Only this tenant's alerts.
    pub tenant: Option<i64>,
    /// Only these; none means every kind.
    pub kinds: Vec<AlertKind>,
    /// This bad or worse.
    pub max_severity: i64,
    /// By mail or webhook.
    pub channel: AlertChannel,
    /// To whom.
    pub target: String,
    /// The key that signs webhooks.
    pub secret: Option<i64>,
    /// Not before it is so old.
    pub after_minutes: i64,
    /// Again as long as it is open; 0 is never.
    pub repeat_hours: i64,
    /// Not between these times of day.
    pub quiet: Option<(Time, Time)>,
    /// Also when it is over.
    pub on_resolved: bool,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// The kind.
    pub kind: AlertKind,
    /// The tenant.
    pub tenant: Option<i64>,
    /// 1 is worst.
    pub severity: i64,
}

impl Rule {
    /// A row.
    pub fn of(row: &Row) -> Result<Rule, Failure> {
        let quiet = (row.opt_text("quiet_from")?, row.opt_text("quiet_to")?);
        let quiet = match quiet {
            (Some(from), Some(to)) => clock(&from).zip(clock(&to)),
            _ => None,
        };
        Ok(Rule {
            id: row.int("id")?,
            tenant: row.opt_int("tenant_id")?,
            kinds: row.opt_json("kinds_json")?.unwrap_or_default(),
            max_severity: row.int("max_severity")?,
            channel: row.word("channel", AlertChannel::of_word)?,
            target: row.text("target")?,
            secret: row.opt_int("secret_id")?,
            after_minutes: row.int("after_minutes")?,
            repeat_hours: row.opt_int("repeat_hours")?.unwrap_or(0),
            quiet,
            on_resolved: row.flag("on_resolved")?,
        })
    }

    /// Whether it is about that alert.
    pub fn takes(&self, about: About) -> bool {
        (self.tenant.is_none() || self.tenant == about.tenant)
            && (self.kinds.is_empty() || self.kinds.contains(&about.kind))
            && about.severity <= self.max_severity
    }

    /// When a message of an alert opened at `opened` goes out.
    pub fn goes_out(&self, opened: Timestamp, zone: &TimeZone, now: Timestamp) -> Timestamp {
        let delay = SignedDuration::from_mins(self.after_minutes);
        let earliest = opened.saturating_add(delay).unwrap_or(Timestamp::MAX).max(now);
        self.quiet.and_then(|quiet| end_of_quiet(quiet, zone, earliest)).unwrap_or(earliest)
    }

    /// Whether it is time to tell again of what is open, last told then.
    pub fn repeats(&self, last: Timestamp, now: Timestamp) -> bool {
        self.repeat_hours > 0 && now.duration_since(last) >= SignedDuration::from_hours(self.repeat_hours)
    }
}

/// When the quiet time that `at` lies in ends; none outside of it.
fn end_of_quiet((from, to): (Time, Time), zone: &TimeZone, at: Timestamp) -> Option<Timestamp> {
    let local = zone.to_datetime(at);
    let time = local.time();
    let is_quiet = if from < to { from <= time && time < to } else { from <= time || time < to };
    if !is_quiet {
        return None;
    }
    let day = if time < to { local.date() } else { local.date().checked_add(1.day()).ok()? };
    zone.to_timestamp(day.to_datetime(to)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Rule {
        Rule {
            id: 1,
            tenant: None,
            kinds: Vec::new(),
            max_severity: 4,
            channel: AlertChannel::Mail,
            target: "a@example.com".into(),
            secret: None,
            after_minutes: 0,
            repeat_hours: 0,
            quiet: None,
            on_resolved: true,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("time")
    }

    #[test]
    fn a_rule_takes_what_it_names() {
        let about = About { kind: AlertKind::RunFailed, tenant: Some(3), severity: 2 };
        for (case, rule, expected) in [
            ("everything", rule(), true),
            ("that kind", Rule { kinds: vec![AlertKind::RunFailed], ..rule() }, true),
            ("another kind", Rule { kinds: vec![AlertKind::AgentSilent], ..rule() }, false),
            ("that bad", Rule { max_severity: 2, ..rule() }, true),
            ("only worse", Rule { max_severity: 1, ..rule() }, false),
            ("that tenant", Rule { tenant: Some(3), ..rule() }, true),
            ("another tenant", Rule { tenant: Some(4), ..rule() }, false),
        ] {
            assert_eq!(rule.takes(about), expected, "{case}");
        }
    }

    #[test]
    fn a_message_waits_for_its_delay_and_the_end_of_the_quiet() {
        let zone = TimeZone::get("Europe/Berlin").expect("zone");
        let quiet = |from: &str, to: &str| clock(from).zip(clock(to));
        // Berlin is an hour ahead in November, two in summer.
        for (case, after, quiet, now, expected) in [
            ("at once", 0, None, "2026-11-27T12:00:00Z", "2026-11-27T12:00:00Z"),
            ("later", 30, None, "2026-11-27T12:00:00Z", "2026-11-27T12:30:00Z"),
            ("in the night", 0, quiet("22:00", "07:00"), "2026-11-27T23:00:00Z", "2026-11-28T06:00:00Z"),
            ("in the evening", 0, quiet("22:00", "07:00"), "2026-11-27T21:30:00Z", "2026-11-28T06:00:00Z"),
            ("before it", 0, quiet("22:00", "07:00"), "2026-11-27T20:59:00Z", "2026-11-27T20:59:00Z"),
            ("its end is outside", 0, quiet("22:00", "07:00"), "2026-11-28T06:00:00Z", "2026-11-28T06:00:00Z"),
            ("delayed into it", 60, quiet("22:00", "07:00"), "2026-11-27T20:30:00Z", "2026-11-28T06:00:00Z"),
            ("over noon", 0, quiet("12:00", "13:00"), "2026-11-27T11:10:00Z", "2026-11-27T12:00:00Z"),
            ("through the clock change", 0, quiet("22:00", "07:00"), "2026-10-24T22:00:00Z", "2026-10-25T06:00:00Z"),
        ] {
            let rule = Rule { after_minutes: after, quiet, ..rule() };
            assert_eq!(rule.goes_out(at(now), &zone, at(now)), at(expected), "{case}");
        }
        let late = rule().goes_out(at("2026-11-27T10:00:00Z"), &zone, at("2026-11-27T12:00:00Z"));
        assert_eq!(late, at("2026-11-27T12:00:00Z"), "never in the past");
    }

    #[test]
    fn an_open_alert_is_repeated_by_the_clock() {
        for (hours, last, expected) in [
            (0, "2026-11-20T12:00:00Z", false),
            (4, "2026-11-27T08:01:00Z", false),
            (4, "2026-11-27T08:00:00Z", true),
            (4, "2026-11-27T13:00:00Z", false),
        ] {
            let rule = Rule { repeat_hours: hours, ..rule() };
            assert_eq!(rule.repeats(at(last), at("2026-11-27T12:00:00Z")), expected, "{hours} h, {last}");
        }
    }
}
