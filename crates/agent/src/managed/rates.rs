//! A job's limits as the server writes them (spec control-api 4.6): rates, and other uploads at some hours.

use control_api::Object;
use serde_json::Value;

use crate::limits::Limits;
use crate::service::{Day, time_of_day};

/// The limits of `throttle_json`, with `local_bandwidth_limit_kbps` where that is lower. A window that cannot be read
/// limits nothing, and the log says so.
pub fn limits(throttle: Option<&Object>, kilobytes_per_second: i64) -> Limits {
    let mut limits = Limits::default();
    let rate = |of: &Object, key: &str| of.get(key).and_then(Value::as_u64).filter(|rate| *rate > 0);
    let of_job = |key: &str| throttle.and_then(|throttle| rate(throttle, key));
    let kilobytes = u64::try_from(kilobytes_per_second).unwrap_or(0).saturating_mul(1000);
    let upload = [of_job("upload_bytes_per_sec"), Some(kilobytes).filter(|rate| *rate > 0)];
    if let Some(rate) = upload.into_iter().flatten().min() {
        limits.set_upload(rate);
    }
    limits.set_others(of_job("download_bytes_per_sec"), of_job("read_bytes_per_sec"));
    let windows = throttle.and_then(|throttle| throttle.get("windows")).and_then(Value::as_array);
    for window in windows.into_iter().flatten() {
        let Some(window) = window.as_object() else { continue };
        let hour = |key: &str| time_of_day(window.get(key).and_then(Value::as_str).unwrap_or_default());
        match (days(window), hour("from"), hour("to"), rate(window, "upload_bytes_per_sec")) {
            (Some(days), Ok(from), Ok(to), Some(rate)) => limits.add_upload_window(days, from, to, rate),
            _ => {
                tracing::warn!(window = %serde_json::Value::Object(window.clone()), "a window of a job's limits cannot be read")
            }
        }
    }
    limits
}

/// Numbers from 1, a Monday; none are all.
fn days(window: &Object) -> Option<Vec<Day>> {
    const WEEK: [Day; 7] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];
    let listed = window.get("days").and_then(Value::as_array);
    let day = |number: &Value| WEEK.get(usize::try_from(number.as_u64()?.checked_sub(1)?).ok()?).copied();
    listed.into_iter().flatten().map(day).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(throttle: Value, kilobytes_per_second: i64) -> Limits {
        limits(throttle.as_object(), kilobytes_per_second)
    }

    #[test]
    fn what_a_job_says_is_what_the_configuration_would_say() {
        let windows = json!([
            {"days": [1, 5], "from": "08:00", "to": "18:00", "upload_bytes_per_sec": 5000},
            {"from": "22:00", "to": "06:00", "upload_bytes_per_sec": 9000},
            {"days": [8], "from": "00:00", "to": "00:00", "upload_bytes_per_sec": 1},
            {"days": [1], "from": "later", "to": "00:00", "upload_bytes_per_sec": 1},
            {"days": [1], "from": "08:00", "to": "18:00"},
            "08:00",
        ]);
        for (throttle, kilobytes, expected) in [
            (Value::Null, 0, ""),
            (json!({}), 20, "upload = \"20000\""),
            (json!({"upload_bytes_per_sec": 30_000}), 20, "upload = \"20000\""),
            (json!({"upload_bytes_per_sec": 10_000}), 20, "upload = \"10000\""),
            (json!({"upload_bytes_per_sec": 0, "download_bytes_per_sec": -1}), 0, ""),
            (json!({"download_bytes_per_sec": 7, "read_bytes_per_sec": 8}), -5, "download = \"7\"\nread = \"8\""),
            (
                json!({"upload_bytes_per_sec": 100, "windows": windows}),
                0,
                "upload = \"100\"\n[[window]]\ndays = [\"mon\", \"fri\"]\nfrom = \"08:00\"\nto = \"18:00\"\n\
                 upload = \"5000\"\n[[window]]\nfrom = \"22:00\"\nto = \"06:00\"\nupload = \"9000\"",
            ),
        ] {
            let expected: Limits = toml::from_str(expected).unwrap();
            assert_eq!(of(throttle.clone(), kilobytes), expected, "{throttle}");
        }
    }
}
