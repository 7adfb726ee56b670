//! Five fields: minute, hour, day of the month, month, day of the week. Both day fields restrict (spec control-api 4.4).

use std::collections::BTreeSet;
use std::str::FromStr;

use jiff::civil::Date;

/// A rule of five fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    minutes: BTreeSet<i8>,
    hours: BTreeSet<i8>,
    days: BTreeSet<i8>,
    months: BTreeSet<i8>,
    /// 1 is Monday, 7 is Sunday.
    weekdays: BTreeSet<i8>,
}

impl Cron {
    /// At that time of these days of the week.
    pub fn at(hour: i8, minute: i8, weekdays: BTreeSet<i8>) -> Cron {
        Cron { minutes: [minute].into(), hours: [hour].into(), weekdays, ..Cron::hourly(minute) }
    }

    /// At that minute of every hour.
    pub fn hourly(minute: i8) -> Cron {
        Cron {
            minutes: [minute].into(),
            hours: (0..24).collect(),
            days: (1..32).collect(),
            months: (1..13).collect(),
            weekdays: (1..8).collect(),
        }
    }

    /// Whether it goes by the hours that pass rather than by hours of the day.
    pub fn is_every_hour(&self) -> bool {
        self.hours.len() == 24
    }

    /// Whether it has slots on that day.
    pub fn fits_day(&self, date: Date) -> bool {
        self.days.contains(&date.day())
            && self.months.contains(&date.month())
            && self.weekdays.contains(&date.weekday().to_monday_one_offset())
    }

    /// Whether it has slots at that minute of an hour.
    pub fn fits_minute(&self, minute: i8) -> bool {
        self.minutes.contains(&minute)
    }

    /// Its times of day.
    pub fn times(&self) -> impl Iterator<Item = (i8, i8)> {
        self.hours.iter().flat_map(|hour| self.minutes.iter().map(|minute| (*hour, *minute)))
    }
}

impl FromStr for Cron {
    type Err = String;

    fn from_str(text: &str) -> Result<Cron, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("{text:?} has not five fields"));
        };
        // 0 and 7 are both Sunday.
        let weekdays = field(weekday, 0, 7, "day of the week")?;
        let weekdays = weekdays.into_iter().map(|day| if day == 0 { 7 } else { day }).collect();
        Ok(Cron {
            minutes: field(minute, 0, 59, "minute")?,
            hours: field(hour, 0, 23, "hour")?,
            days: field(day, 1, 31, "day of the month")?,
            months: field(month, 1, 12, "month")?,
            weekdays,
        })
    }
}

/// A list of numbers, ranges and steps.
fn field(text: &str, least: i8, most: i8, name: &str) -> Result<BTreeSet<i8>, String> {
    let wrong = |part: &str| format!("{name}: {part:?} is not {least} to {most}, a range, a step or a list of them");
    let mut values = BTreeSet::new();
    for part in text.split(',') {
        let number = |text: &str| -> Result<i8, String> {
            let number = text.parse().ok().filter(|number| (least..=most).contains(number));
            number.filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(|| wrong(part))
        };
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u8>().ok().filter(|step| *step > 0).ok_or_else(|| wrong(part))?;
                (range, Some(step))
            }
            None => (part, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (least, most),
            Some((from, to)) => (number(from)?, number(to)?),
            // `5/10` means from 5 on.
            None if step.is_some() => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return Err(wrong(part));
        }
        values.extend((from..=to).step_by(usize::from(step.unwrap_or(1))));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_lists_ranges_and_steps() {
        for (text, expected) in [
            ("*", Some((0..60).collect())),
            ("5", Some(vec![5])),
            ("1,3,5", Some(vec![1, 3, 5])),
            ("10-12", Some(vec![10, 11, 12])),
            ("*/20", Some(vec![0, 20, 40])),
            ("5/25", Some(vec![5, 30, 55])),
            ("1-9/4,50", Some(vec![1, 5, 9, 50])),
            ("60", None),
            ("-1", None),
            ("5-1", None),
            ("*/0", None),
            ("a", None),
            ("", None),
            ("1,", None),
            ("+5", None),
        ] {
            let parsed = field(text, 0, 59, "minute").ok().map(|values| values.into_iter().collect::<Vec<i8>>());
            assert_eq!(parsed, expected, "{text:?}");
        }
    }

    #[test]
    fn sunday_has_two_numbers() {
        let (zero, seven): (Cron, Cron) = ("0 0 * * 0".parse().expect("0"), "0 0 * * 7".parse().expect("7"));
        assert_eq!(zero, seven);
        assert!(zero.fits_day(jiff::civil::date(2026, 11, 29)));
        assert!(!zero.fits_day(jiff::civil::date(2026, 11, 30)));
        assert!("0 0 * *".parse::<Cron>().is_err());
    }
}
