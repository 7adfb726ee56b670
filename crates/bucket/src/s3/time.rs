//! Points in time as S3 spells them: ISO 8601 in listings and lock dates, HTTP dates in headers.

use std::time::{Duration, SystemTime};

const SECONDS_PER_DAY: i64 = 86_400;
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads `2026-11-26T19:43:28.123Z`; the fraction may be missing and is kept to the nanosecond.
pub(super) fn parse_iso8601(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{fraction:0<9}").parse().ok()?;
    let since_epoch = at(year, month, day, time)? + Duration::from_nanos(nanoseconds);
    Some(SystemTime::UNIX_EPOCH + since_epoch)
}

/// Reads `Thu, 26 Nov 2026 19:43:28 GMT` (RFC 9110 5.6.7, IMF-fixdate).
pub(super) fn parse_http_date(text: &str) -> Option<SystemTime> {
    let (_weekday, rest) = text.split_once(", ")?;
    let mut fields = rest.strip_suffix(" GMT")?.split(' ');
    let (day, month, year, time) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let since_epoch = at(number(year)?, month, number(day)?, time)?;
    Some(SystemTime::UNIX_EPOCH + since_epoch)
}

/// Writes `2026-11-26T19:43:28Z`, rounding up to whole seconds: a lock must not end early. `None` outside of
/// the years 1970 to 9999.
pub(super) fn format_iso8601(time: SystemTime) -> Option<String> {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since_epoch.as_secs()).ok()?.checked_add(i64::from(since_epoch.subsec_nanos() > 0))?;
    let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY)?;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

fn at(year: i64, month: i64, day: i64, time: &str) -> Option<Duration> {
    let [hour, minute, second] = numbers(time, ':')?;
    // 60 is a leap second; the next minute is near enough.
    if !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    let days = days_from_civil(year, month, day)?;
    u64::try_from(days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second).ok().map(Duration::from_secs)
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let found = [number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?];
    parts.next().is_none().then_some(found)
}

/// Up to four digits, without a sign.
fn number(text: &str) -> Option<i64> {
    (matches!(text.len(), 1..=4) && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days since 1970-01-01 of a date in the Gregorian calendar, years 1970 to 9999.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let leap_days = |before_year: i64| (before_year - 1) / 4 - (before_year - 1) / 100 + (before_year - 1) / 400;
    let in_year: i64 = (1..month).map(|earlier| days_in_month(year, earlier)).sum();
    Some((year - 1970) * 365 + leap_days(year) - leap_days(1970) + in_year + day - 1)
}

fn civil_from_days(mut days: i64) -> Option<(i64, i64, i64)> {
    // Too late by the leap days at most, so a few steps back find the year.
    let mut year = (1970 + days / 365).min(9999);
    while days_from_civil(year, 1, 1)? > days {
        year -= 1;
    }
    days -= days_from_civil(year, 1, 1)?;
    for month in 1..=12 {
        if days < days_in_month(year, month) {
            return Some((year, month, days + 1));
        }
        days -= days_in_month(year, month);
    }
    None
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds by `date -u +%s -d …`.
    const CASES: [(&str, &str, u64); 7] = [
        ("1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("2000-02-29T23:59:59Z", "Tue, 29 Feb 2000 23:59:59 GMT", 951_868_799),
        ("2024-12-31T12:00:00Z", "Tue, 31 Dec 2024 12:00:00 GMT", 1_735_646_400),
        ("2026-11-26T19:43:28Z", "Thu, 26 Nov 2026 19:43:28 GMT", 1_795_722_208),
        ("2100-03-01T00:00:00Z", "Mon, 01 Mar 2100 00:00:00 GMT", 4_107_542_400),
        ("2400-02-29T00:00:00Z", "Tue, 29 Feb 2400 00:00:00 GMT", 13_574_563_200),
        ("9999-12-31T23:59:59Z", "Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
    ];

    #[test]
    fn known_dates_are_read_and_written() {
        for (iso, http, seconds) in CASES {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse_iso8601(iso), Some(time), "{iso}");
            assert_eq!(parse_http_date(http), Some(time), "{http}");
            assert_eq!(format_iso8601(time).as_deref(), Some(iso), "{seconds}");
        }
    }

    #[test]
    fn every_day_survives_a_round_trip() {
        let mut last = None;
        for days in 0..120_000 {
            let (year, month, day) = civil_from_days(days).unwrap();
            assert_eq!(days_from_civil(year, month, day), Some(days));
            assert!(last < Some((year, month, day)), "day {days}");
            last = Some((year, month, day));
        }
    }

    #[test]
    fn fractions_are_read_and_round_up() {
        let time = parse_iso8601("2026-11-26T19:43:28.25Z").unwrap();
        assert_eq!(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis(), 1_795_722_208_250);
        assert_eq!(format_iso8601(time).unwrap(), "2026-11-26T19:43:29Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "Z",
            "2026-11-26",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "1969-12-31T00:00:00Z",
            "99999-01-01T00:00:00Z",
            "2026-01-01T00:00:00.1234567890Z",
            "2026-1-+1T00:00:00Z",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:00:00Z",
            "2026-01-01T00:00:00.xZ",
        ] {
            assert_eq!(parse_iso8601(text), None, "{text:?}");
        }
        for text in ["", "Thu, 26 Nov 2026", "Thu, 26 Nix 2026 19:43:28 GMT", "26 Nov 2026 19:43:28 GMT"] {
            assert_eq!(parse_http_date(text), None, "{text:?}");
        }
        assert_eq!(format_iso8601(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(format_iso8601(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)), None);
    }
}
