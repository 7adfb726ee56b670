//! A stretch of each of some days, by the wall clock.

use std::collections::BTreeSet;

use jiff::civil::{DateTime, Time};

/// From one time of day to another; past midnight where the second is not after the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    days: BTreeSet<i64>,
    from: Time,
    to: Time,
}

/// `HH:MM`.
pub fn clock(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let is_plain = |part: &str| !part.is_empty() && part.len() <= 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain(hour) || !is_plain(minute) {
        return None;
    }
    Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
}

impl Window {
    /// Understands a window.
    pub fn parse(window: &control_api::job::Window) -> Result<Window, String> {
        let time = |text: &str| clock(text).ok_or_else(|| format!("{text:?} is no time of day like 22:00"));
        if let Some(day) = window.days.iter().find(|day| !(1..=7).contains(*day)) {
            return Err(format!("day {day} is not 1 to 7"));
        }
        let days = if window.days.is_empty() { (1..=7).collect() } else { window.days.iter().copied().collect() };
        Ok(Window { days, from: time(&window.from)?, to: time(&window.to)? })
    }

    /// Whether that local time lies in it. A window belongs to the day on which it begins.
    pub fn contains(&self, at: DateTime) -> bool {
        let today = i64::from(at.weekday().to_monday_one_offset());
        let yesterday = if today == 1 { 7 } else { today - 1 };
        let time = at.time();
        if self.from < self.to {
            return self.days.contains(&today) && self.from <= time && time < self.to;
        }
        (self.days.contains(&today) && self.from <= time) || (self.days.contains(&yesterday) && time < self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_belongs_to_the_day_on_which_it_begins() {
        let window = |days: &[i64], from: &str, to: &str| {
            let window = control_api::job::Window { days: days.to_vec(), from: from.into(), to: to.into() };
            Window::parse(&window).expect("window")
        };
        // 27 November 2026 is a Friday.
        for (case, window, at, expected) in [
            ("inside", window(&[5], "08:00", "18:00"), "2026-11-27T08:00:00", true),
            ("its end is outside", window(&[5], "08:00", "18:00"), "2026-11-27T18:00:00", false),
            ("another day", window(&[1], "08:00", "18:00"), "2026-11-27T09:00:00", false),
            ("every day", window(&[], "08:00", "18:00"), "2026-11-27T09:00:00", true),
            ("past midnight", window(&[5], "22:00", "06:00"), "2026-11-28T05:59:00", true),
            ("before it begins", window(&[5], "22:00", "06:00"), "2026-11-27T05:59:00", false),
            ("the whole day", window(&[5], "00:00", "00:00"), "2026-11-27T12:00:00", true),
            ("of Sunday into Monday", window(&[7], "22:00", "06:00"), "2026-11-30T01:00:00", true),
        ] {
            assert_eq!(window.contains(at.parse().expect("time")), expected, "{case}");
        }
        for wrong in ["24:00", "8", "08:60", "-1:00", "+8:00", "008:00", ""] {
            assert!(clock(wrong).is_none(), "{wrong:?}");
        }
    }
}
