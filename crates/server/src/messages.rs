//! The text of a run's events (spec control-api 3.7): agents send ids and parameters, words are ours.

use control_api::Object;
use serde_json::Value;

/// Templates by message id; `{name}` is a parameter.
const TEMPLATES: &[(&str, &str)] = &[
    ("BACKUP_STARTING", "Backup starts ({engine})"),
    ("HYPERV_VM_STARTING", "{vm_name}: backup starts"),
    ("HYPERV_VM_FAILED", "{vm_name}: failed: {error}"),
    ("HYPERV_VM_COMPLETE", "{vm_name}: stored ({backup_type})"),
    ("HYPERV_VM_MOVED", "{vm_name}: moved to another host, whose run takes it"),
    ("HYPERV_NO_VMS", "No VM to back up"),
    ("HYPERV_DISK_STARTING", "{vm_name}: reading {disk_path}"),
    ("HYPERV_CHAIN_BROKEN", "{vm_name}: {disk_path} is read in full: {full_reason}"),
    ("HYPERV_CONSISTENCY_DEGRADED", "{vm_name}: {actual} instead of {requested}: {reason}"),
    ("HYPERV_DISK_EXCLUDED", "{vm_name}: {disk_path} is left out: {reason}"),
    ("HYPERV_CHECKPOINT_CREATED", "{vm_name}: checkpoint made ({consistency})"),
    ("HYPERV_MERGE_PENDING", "{vm_name}: merge not seen yet"),
    ("HYPERV_SAMPLE_MISMATCH", "{vm_name}: change tracking missed a change in {disk_path}"),
    ("HYPERV_RESTORE_QUEUED", "{vm_name}: restore queued"),
    ("HYPERV_RESTORE_COMPLETE", "Restore done: {restored_disks} of {total_disks} disks"),
    ("HYPERV_RESTORE_FAILED", "Restore failed: {message}"),
    ("COMPLETED_SUCCESS", "Done"),
    ("COMPLETED_WARNING", "Done, with warnings"),
    ("COMPLETED_FAILED", "Failed: {error}"),
    ("CANCEL_REQUESTED", "Somebody asked for the end of the run"),
    ("CANCELLED", "Cancelled"),
    ("RUN_RESUMED", "The agent begins again (attempt {attempt})"),
    ("EVENTS_TRUNCATED", "More than {cap} events: the rest is not kept"),
];

/// The text of an event. What a parameter says is somebody's text: control characters are made visible, and pages
/// escape the whole.
pub fn render(message_id: &str, params: &Object) -> String {
    let template = TEMPLATES.iter().find(|(id, _)| *id == message_id).map(|(_, template)| *template);
    let Some(template) = template else {
        // An id of a newer agent: its own words, if it brought any.
        let own = params.get("message").and_then(Value::as_str).unwrap_or(message_id);
        return visible(own);
    };
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        text += before;
        match params.get(name) {
            Some(Value::String(value)) => text += &visible(value),
            Some(Value::Null) | None => text.push('?'),
            Some(other) => text += &other.to_string(),
        }
        rest = after;
    }
    text + rest
}

fn visible(text: &str) -> String {
    let is_hidden = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().take(2000).map(|letter| if is_hidden(letter) { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_text_and_nothing_else() {
        for (id, params, expected) in [
            ("HYPERV_VM_FAILED", json!({"vm_name": "DC{error}", "error": "x"}), "DC{error}: failed: x"),
            ("HYPERV_VM_FAILED", json!({"vm_name": "DC01"}), "DC01: failed: ?"),
            ("RUN_RESUMED", json!({"attempt": 2}), "The agent begins again (attempt 2)"),
            ("NEW_ID", json!({"message": "some\u{202e}thing\n"}), "some\u{fffd}thing\u{fffd}"),
            ("NEW_ID", json!({}), "NEW_ID"),
        ] {
            assert_eq!(render(id, params.as_object().expect("object")), expected, "{id} {params}");
        }
    }
}
