//! Sizes, times and durations, as people write and read them.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Reads `512MiB`, `1.5GiB`, `64k`, `1048576`. Units are binary, whatever their spelling.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unit {unit:?} is not known; there are B, KiB, MiB, GiB, TiB")),
    };
    let wrong = || format!("{text:?} is not a size such as 512MiB or 1.5GiB");
    let too_large = || format!("{text} is more than a disk can have");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 12 || fraction.contains('.') {
        return Err(wrong());
    }
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let scaled: u128 = fraction.parse().map_err(|_| wrong())?;
    let part = (scaled << shift) / 10u128.pow(fraction.len() as u32);
    let bytes = whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(part)).ok_or_else(too_large)?;
    u64::try_from(bytes).map_err(|_| too_large())
}

/// Reads `30s`, `10m`, `2h`, `500ms`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("unit {unit:?} is not known; there are ms, s, m, h")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a duration such as 30s or 10m"))?;
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text} is longer than anybody waits"))
}

/// `812 B`, `3.4 GiB`, `118 MiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        // What would be shown as 1024 belongs to the next unit.
        if value < 1023.5 {
            let digits = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} TiB")
}

/// `1 point`, `3 points`.
pub fn points(count: usize) -> String {
    if count == 1 { "1 point".to_owned() } else { format!("{count} points") }
}

/// `388 MiB/s`; a dash when nothing can be said.
pub fn rate(bytes: u64, time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds > 0.0 => format!("{}/s", size((bytes as f64 / seconds) as u64)),
        _ => "–".to_owned(),
    }
}

/// `0.4 s`, `41 s`, `41 min 3 s`, `2 h 10 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", time.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `2026-11-21 03:02:11`, in local time, or in UTC and then with a `Z`.
pub fn time(at: Timestamp, utc: bool) -> String {
    if utc {
        at.to_zoned_datetime(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%SZ").to_string()
    } else {
        at.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }
}

/// The same for traces and progress lines, with the offset.
pub fn stamp(at: Timestamp, utc: bool) -> String {
    let zone = if utc { TimeZone::UTC } else { TimeZone::system() };
    at.to_zoned_datetime(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text from a host or a repository with nothing in it that moves the cursor or reverses the line.
pub fn visible(text: &str) -> String {
    let is_hostile = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_hostile(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("1.5 g", 3 << 29),
            ("256KiB", 256 << 10),
            ("0.25MiB", 256 << 10),
            ("64TiB", 64 << 40),
            ("16B", 16),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1.GiB", ".5GiB", "1..5GiB", "1.2.3", "-1", "1 parsec", "1e3", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (812, "812 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (118 << 20, "118 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (8_700_000_000, "8.1 GiB"),
            (127 << 30, "127 GiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in
            [("30s", 30_000), ("2", 2_000), ("10m", 600_000), ("2h", 7_200_000), ("500ms", 500), (" 5 min", 300_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-3s", "1.5s", "3 days", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_shown() {
        for (ms, text) in
            [(400, "0.4 s"), (41_000, "41 s"), (2_463_000, "41 min 3 s"), (7_800_000, "2 h 10 min"), (59_999, "59 s")]
        {
            assert_eq!(duration(Duration::from_millis(ms)), text, "{ms} ms");
        }
    }

    #[test]
    fn times_name_their_zone() {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(time(at, true), "2023-11-14 22:13:20Z");
        assert_eq!(stamp(at, true), "2023-11-14T22:13:20+00:00");
    }

    #[test]
    fn hostile_names_stay_on_their_line() {
        assert_eq!(visible("a\u{1b}[2Jb\u{202e}c\nd ä"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d ä");
    }
}
