//! Jobs: rows, their checks, and their shape on the wire (spec control-api 4).

use control_api::Object;
use control_api::id::Id;
use control_api::job::{Job, JobRequest, Schedule, Selection};
use control_api::words::{Engine, JobStatus, ScheduleType};
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::schedule::Plan;
use crate::store::{Row, Value, time_text};

/// The condition that names a job, and its value.
pub fn named(column: &str, id: &Id) -> (String, Value) {
    match id {
        Id::Number(number) => (format!("{column}id = ?"), (*number).into()),
        Id::Uuid(uuid) => (format!("{column}job_uuid = ?"), uuid.into()),
    }
}

/// The schedule and zone of a job's row.
pub fn schedule_of(job: &Row) -> Result<(Schedule, String), Failure> {
    let schedule = job.opt_json("schedule_json")?.unwrap_or_default();
    Ok((schedule, job.opt_text("timezone")?.unwrap_or_else(|| "UTC".into())))
}

/// The plan of a job's row; what was stored was understood before.
pub fn plan_of(job: &Row) -> Result<Plan, Failure> {
    let (schedule, zone) = schedule_of(job)?;
    Plan::parse(&schedule, &zone).map_err(|(field, why)| Failure::internal(format!("stored {field}: {why}")))
}

/// A row on the wire.
pub fn on_wire(row: &Row) -> Result<Job, Failure> {
    let (schedule_json, timezone) = schedule_of(row)?;
    Ok(Job {
        job_id: row.int("id")?,
        job_uuid: row.text("job_uuid")?,
        tenant_id: row.opt_int("tenant_id")?,
        name: row.text("name")?,
        engine: row.word("engine", Engine::of_word)?,
        source_type: row.text("source_type")?,
        status: row.word("status", JobStatus::of_word)?,
        pause_reason: row.opt_text("pause_reason")?,
        version: row.int("version")?,
        agent_id: row.opt_int("agent_id")?,
        host_group_id: row.opt_int("host_group_id")?,
        dest_bucket_id: row.opt_int("dest_bucket_id")?,
        repository_id: row.opt_text("repository_id")?,
        schedule_json,
        timezone,
        retention_json: row.opt_json("retention_json")?,
        throttle_json: row.opt_json("throttle_json")?,
        local_bandwidth_limit_kbps: row.int("local_bandwidth_limit_kbps")?,
        hyperv_config: row.opt_json("hyperv_config")?,
        rpo_target_hours: row.opt_int("rpo_target_hours")?,
        select: row.opt_json("select_json")?,
        next_run_at: row.opt_time("next_run_at")?.map(time_text),
        created_at: time_text(row.time("created_at")?),
        updated_at: time_text(row.time("updated_at")?),
    })
}

/// What is wrong with the values of a request, field by field; references are checked by the query that finds them.
pub fn check(asked: &JobRequest, engine: Engine, zone: &str) -> Vec<(String, String)> {
    let mut wrong: Vec<(String, String)> = Vec::new();
    let mut say = |field: &str, why: &str| wrong.push((field.to_owned(), why.to_owned()));
    if asked.name.as_ref().is_some_and(|name| name.trim().is_empty() || name.chars().count() > 191) {
        say("name", "has 1 to 191 characters");
    }
    if asked.parallelism.is_some_and(|parallelism| !(1..=64).contains(&parallelism)) {
        say("parallelism", "is 1 to 64");
    }
    if asked.local_bandwidth_limit_kbps.is_some_and(|limit| !(0..=2_000_000_000).contains(&limit)) {
        say("local_bandwidth_limit_kbps", "is 0 (unlimited) to 2,000,000,000 kilobytes per second");
    }
    if asked.rpo_target_hours.is_some_and(|hours| !(1..=24 * 400).contains(&hours)) {
        say("rpo_target_hours", "is 1 to 9600");
    }
    if asked.status == Some(JobStatus::Deleted) {
        say("status", "is set to deleted by cloudbackup_delete_job.php");
    }
    for (field, text, most) in [
        ("source_display_name", &asked.source_display_name, 191),
        ("source_path", &asked.source_path, 1024),
        ("compression", &asked.compression, 64),
        ("notify_override_email", &asked.notify_override_email, 255),
    ] {
        if text.as_ref().is_some_and(|text| text.chars().count() > most) {
            say(field, "is longer than it can be");
        }
    }
    if let Some(policy) = &asked.retention_json
        && let Err(why) = crate::retention::Policy::parse(policy)
    {
        say("retention_json", &why);
    }
    if let Some((field, why)) = asked.throttle_json.as_ref().and_then(|limits| crate::throttle::check(limits).err()) {
        say(&field, &why);
    }
    if let Some(select) = &asked.select {
        check_selection(select, &mut say);
    }
    if let Some(config) = &asked.hyperv_config {
        if engine != Engine::Hyperv {
            say("hyperv_config", "belongs to jobs of engine hyperv only");
        }
        check_config(config, asked.select.is_some(), &mut say);
    }
    if let Err(why) = Plan::parse(asked.schedule_json.as_ref().unwrap_or(&Schedule::default()), zone) {
        wrong.push(why);
    }
    wrong
}

fn check_selection(select: &Selection, say: &mut impl FnMut(&str, &str)) {
    let (is_known, list) = match select.mode.as_str() {
        "all" => (true, None),
        "list" => (true, Some(&select.vms)),
        "patterns" => (true, Some(&select.patterns)),
        "tags" => (true, Some(&select.tags)),
        _ => (false, None),
    };
    if !is_known {
        say("select.mode", "is all, list, patterns or tags");
    }
    if list.is_some_and(Vec::is_empty) {
        say("select", "chooses nothing");
    }
}

/// The ranges of 4.9. Unknown keys are kept and not interpreted.
fn check_config(config: &Object, has_select: bool, say: &mut impl FnMut(&str, &str)) {
    let mut wrong = |key: &str, why: &str| say(&format!("hyperv_config.{key}"), why);
    for key in ["vms", "exclude_vms"] {
        let Some(value) = config.get(key) else { continue };
        let list = value.as_array().filter(|list| list.len() <= 2000);
        let words: Option<Vec<String>> = list.and_then(|list| {
            let words = list.iter().map(|word| word.as_str().filter(|word| (1..=255).contains(&word.chars().count())));
            words.map(|word| word.map(str::to_lowercase)).collect()
        });
        match words {
            None => wrong(key, "is a list of at most 2,000 names or GUIDs of 1 to 255 characters"),
            Some(mut words) => {
                let count = words.len();
                words.sort_unstable();
                words.dedup();
                if words.len() != count {
                    wrong(key, "names a VM twice");
                }
            }
        }
    }
    let flag = |key: &str| config.get(key).and_then(Json::as_bool);
    let is_empty = |key: &str| config.get(key).and_then(Json::as_array).is_none_or(Vec::is_empty);
    if flag("backup_all_vms") != Some(true) {
        if is_empty("vms") && !has_select {
            wrong("vms", "names no VM, and backup_all_vms is not set");
        }
        if !is_empty("exclude_vms") {
            wrong("exclude_vms", "goes only with backup_all_vms");
        }
    }
    for key in ["backup_all_vms", "enable_rct", "instant_restore_enabled"] {
        if config.get(key).is_some_and(|value| !value.is_boolean()) {
            wrong(key, "is true or false");
        }
    }
    for (key, least, most) in [
        ("quiesce_timeout_seconds", 30, 3600),
        ("max_parallel_vms", 1, 16),
        ("max_parallel_disks", 1, 32),
        ("force_full_every_days", 7, 365),
    ] {
        let value = config.get(key).filter(|value| !value.is_null());
        if value.is_some_and(|value| value.as_i64().is_none_or(|value| !(least..=most).contains(&value))) {
            wrong(key, &format!("is {least} to {most}"));
        }
    }
    for (key, words) in [
        ("consistency_level", &["application", "crash", "application_required"][..]),
        ("verify_after_backup", &["none", "structure", "sample"]),
        ("on_excluded_disk", &["warn", "fail"]),
    ] {
        if config.get(key).is_some_and(|value| value.as_str().is_none_or(|word| !words.contains(&word))) {
            wrong(key, &format!("is one of {}", words.join(", ")));
        }
    }
    let sample = config.get("sample_check_pct");
    if sample.is_some_and(|value| value.as_f64().is_none_or(|value| !(0.0..=100.0).contains(&value))) {
        wrong("sample_check_pct", "is 0 to 100");
    }
}

/// The columns of a schedule: derived from its JSON, which alone is true (4.4).
pub fn schedule_columns(schedule: &Schedule) -> Vec<(&'static str, Value)> {
    let weekday = schedule.weekday.as_ref().map(|days| match days {
        Json::Array(days) => days.iter().map(Json::to_string).collect::<Vec<_>>().join(","),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    });
    vec![
        ("schedule_type", schedule.kind.unwrap_or(ScheduleType::Manual).word().into()),
        ("schedule_time", schedule.time.clone().into()),
        ("schedule_weekday", weekday.into()),
        ("schedule_cron", schedule.cron.clone().into()),
        ("schedule_json", json!(schedule).into()),
    ]
}

/// When a job of that status runs next.
pub fn next_run(plan: &Plan, status: JobStatus, now: Timestamp) -> Option<Timestamp> {
    if status == JobStatus::Active { plan.next_after(now) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named_with_the_reason() {
        let base = json!({"name": "nightly", "hyperv_config": {"backup_all_vms": true}});
        let cases = [
            (json!({}), None),
            (json!({"name": ""}), Some("name")),
            (json!({"parallelism": 65}), Some("parallelism")),
            (json!({"local_bandwidth_limit_kbps": -1}), Some("local_bandwidth_limit_kbps")),
            (json!({"rpo_target_hours": 0}), Some("rpo_target_hours")),
            (json!({"status": "deleted"}), Some("status")),
            (json!({"hyperv_config": {}}), Some("hyperv_config.vms")),
            (json!({"hyperv_config": {"vms": ["a", "A"]}}), Some("hyperv_config.vms")),
            (json!({"hyperv_config": {"vms": ["a"]}}), None),
            (json!({"hyperv_config": {"vms": ["a"], "exclude_vms": ["b"]}}), Some("hyperv_config.exclude_vms")),
            (json!({"hyperv_config": {}, "select": {"mode": "all"}}), None),
            (json!({"select": {"mode": "tags"}}), Some("select")),
            (json!({"select": {"mode": "some"}}), Some("select.mode")),
            (json!({"hyperv_config": {"vms": ["a"], "max_parallel_vms": 17}}), Some("hyperv_config.max_parallel_vms")),
            (
                json!({"hyperv_config": {"vms": ["a"], "consistency_level": "some"}}),
                Some("hyperv_config.consistency_level"),
            ),
            (json!({"hyperv_config": {"vms": ["a"], "force_full_every_days": null}}), None),
            (json!({"hyperv_config": {"vms": ["a"], "unknown": 1}}), None),
            (json!({"schedule_json": {"type": "daily"}}), Some("schedule_json.time")),
            (json!({"retention_json": {"daily": -1}}), Some("retention_json")),
            (json!({"throttle_json": {"windows": [{}]}}), Some("throttle_json.windows")),
        ];
        for (change, field) in cases {
            let mut request = base.clone();
            for (key, value) in change.as_object().expect("object") {
                request[key] = value.clone();
            }
            let asked: JobRequest = serde_json::from_value(request).expect("request");
            let wrong = check(&asked, Engine::Hyperv, "UTC");
            assert_eq!(wrong.first().map(|(field, _)| field.as_str()), field, "{change}: {wrong:?}");
        }
    }
}
