//! Times as the format writes them.

use jiff::Timestamp;

/// RFC 3339 in UTC with `Z`, to the nanosecond, trailing zeros of the fraction trimmed (kopia-format 0).
///
/// `serde` writes [`Timestamp`] in the same form and reads any offset.
pub fn format_utc(time: Timestamp) -> String {
    time.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (text, written) in [
            ("2026-01-02T03:04:05.6Z", "2026-01-02T03:04:05.6Z"),
            ("2026-01-02T03:04:05.600000000Z", "2026-01-02T03:04:05.6Z"),
            ("2026-01-02T03:04:05.000000Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.120450Z", "2026-01-02T03:04:05.12045Z"),
            ("2026-01-02T03:04:05.000000001+02:00", "2026-01-02T01:04:05.000000001Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("1754-08-30T22:43:41.128654848Z", "1754-08-30T22:43:41.128654848Z"),
            ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.5Z"),
            ("2100-01-01T00:00:00-07:00", "2100-01-01T07:00:00Z"),
        ] {
            let time: Timestamp = serde_json::from_str(&format!("{text:?}")).expect(text);
            assert_eq!(format_utc(time), written, "{text}");
            assert_eq!(serde_json::to_string(&time).unwrap(), format!("{written:?}"), "{text}");
        }
    }
}
