//! A job's limits as a person writes them (`throttle_json`, spec control-api 4.6). Agents keep to them; what an agent could
//! not read would limit nothing, so it is refused here.

use control_api::Object;
use serde_json::Value;

use crate::schedule;

/// What is wrong with the limits, if anything: the field and why.
pub fn check(throttle: &Object) -> Result<(), (String, String)> {
    let wrong = |field: &str, why: &str| Err((format!("throttle_json.{field}"), why.to_owned()));
    for key in ["upload_bytes_per_sec", "download_bytes_per_sec", "read_bytes_per_sec", "max_concurrent_reads"] {
        if throttle.get(key).is_some_and(|value| !value.is_null() && value.as_u64().is_none()) {
            return wrong(key, "is a whole number; 0 is no limit");
        }
    }
    let windows = match throttle.get("windows") {
        None | Some(Value::Null) => return Ok(()),
        Some(windows) => windows.as_array(),
    };
    let Some(windows) = windows else { return wrong("windows", "is a list") };
    for window in windows {
        let parsed =
            serde_json::from_value::<control_api::job::Window>(window.clone()).map_err(|error| error.to_string());
        if let Err(why) = parsed.and_then(|window| schedule::Window::parse(&window)) {
            return wrong("windows", &why);
        }
        if window["upload_bytes_per_sec"].as_u64().is_none_or(|rate| rate == 0) {
            return wrong("windows", "each has upload_bytes_per_sec, a whole number above 0");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_agent_could_not_read_is_refused() {
        let window = |change: Value| {
            let mut window = json!({"days": [1, 5], "from": "08:00", "to": "18:00", "upload_bytes_per_sec": 5000});
            for (key, value) in change.as_object().expect("object") {
                window[key] = value.clone();
            }
            json!({ "windows": [window] })
        };
        for (throttle, field) in [
            (json!({}), None),
            (json!({"upload_bytes_per_sec": 0, "read_bytes_per_sec": null}), None),
            (json!({"upload_bytes_per_sec": -1}), Some("throttle_json.upload_bytes_per_sec")),
            (json!({"download_bytes_per_sec": "fast"}), Some("throttle_json.download_bytes_per_sec")),
            (json!({"windows": null}), None),
            (json!({"windows": {}}), Some("throttle_json.windows")),
            (json!({"windows": ["08:00"]}), Some("throttle_json.windows")),
            (window(json!({})), None),
            (window(json!({"days": []})), None),
            (window(json!({"days": [0]})), Some("throttle_json.windows")),
            (window(json!({"to": "18.00"})), Some("throttle_json.windows")),
            (window(json!({"upload_bytes_per_sec": 0})), Some("throttle_json.windows")),
            (window(json!({"upload_bytes_per_sec": null})), Some("throttle_json.windows")),
        ] {
            let wrong = check(throttle.as_object().expect("object")).err();
            assert_eq!(wrong.as_ref().map(|(field, _)| field.as_str()), field, "{throttle}: {wrong:?}");
        }
    }
}
