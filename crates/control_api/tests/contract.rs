//! The contract's own JSON as data: read into the types and written again, with unknown fields beside, and with each
//! required field taken away.

#![recursion_limit = "256"]

use std::fmt::Debug;

use control_api::envelope::{Answer, Done, Problem};
use control_api::{agent, catalogue, command, enrolment, events, hyperv, job, progress, repository, restore, run};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A value without its nulls and defaults: `null` and missing say the same wherever the contract does not tell them apart.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().filter(|(_, value)| !is_empty(value)).map(|(k, v)| (k.clone(), bare(v))).collect()
        }
        Value::Array(values) => values.iter().map(bare).collect(),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(example: Value, required: &[&str]) {
    let read: T = serde_json::from_value(example.clone()).unwrap_or_else(|error| panic!("{error}: {example}"));
    let written = serde_json::to_value(&read).expect("JSON");
    assert_eq!(bare(&written), bare(&example), "what was read is what is written");
    assert_eq!(serde_json::from_value::<T>(written).expect("again"), read, "reading it again gives the same");

    let mut newer = example.clone();
    newer["a_field_of_a_newer_peer"] = json!({"x": [1]});
    assert_eq!(serde_json::from_value::<T>(newer).expect("unknown fields are ignored"), read);

    for field in required {
        let mut without = example.clone();
        assert!(without.as_object_mut().expect("object").remove(*field).is_some(), "the example has no {field}");
        let error = serde_json::from_value::<T>(without).expect_err("a required field is missing").to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
}

#[test]
fn answers_say_both_status_and_success() {
    // 0.5, as it stands there.
    check::<Problem>(
        json!({"status": "fail", "success": false, "code": "run_not_found", "message": "Run not found", "request_id": "01J…", "details": {}}),
        &["status", "success", "code", "message", "request_id"],
    );
    for (status, success) in [("success", true), ("no_run", true), ("pending", true), ("fail", false), ("error", false)]
    {
        let answer = serde_json::to_value(Answer::new(status, Done {})).expect("JSON");
        assert_eq!(answer, json!({"status": status, "success": success}));
    }
    // 2.2: the answer without a run.
    let none: Answer<run::NextRunAnswer> =
        serde_json::from_value(json!({"status": "no_run", "success": true})).expect("no run");
    assert_eq!(none.body.run, None);
}

#[test]
fn enrolment() {
    check::<enrolment::Enroll>(
        json!({
            "token": "enr_x", "hostname": "HV01", "device_id": "d", "install_id": "i", "device_name": "n",
            "agent_version": "0.1.0", "agent_os": "windows", "agent_arch": "x86_64", "agent_build": "b", "host_role": "hyperv_host",
        }),
        &["token", "hostname"],
    );
    check::<enrolment::Enrolled>(
        json!({
            "message": "m", "agent_id": 7, "agent_uuid": "u", "agent_token": "agt_x", "client_id": 1, "tenant_id": null,
            "api_base_url": "https://e3.example.com/api", "server_key_pins": ["p"],
        }),
        &["agent_id", "agent_uuid", "agent_token", "client_id", "api_base_url"],
    );
    check::<enrolment::ToggleAgent>(json!({"agent_id": 7, "status": "disabled"}), &["status"]);
    check::<enrolment::RotatedToken>(
        json!({"agent_token": "agt_x", "rotate_after": "2026-11-27T00:00:00Z"}),
        &["agent_token"],
    );
}

#[test]
fn a_run_for_its_agent() {
    check::<run::Run>(
        json!({
            "run_id": 123, "job_id": 4, "run_uuid": "r", "job_uuid": "j", "engine": "hyperv", "source_type": "hyperv", "source_path": "",
            "local_bandwidth_limit_kbps": 0, "dest_type": "s3", "dest_bucket_name": "b", "dest_prefix": "p/",
            "dest_endpoint": "https://s3.example.com", "dest_region": "us-east-1", "dest_access_key": "a",
            "dest_secret_key": "s", "bucket_auto_create": true, "dest_auto_create_bucket": true,
            "repository_id": "abc", "repository_password": "p", "repo_password_mode": "v2", "payload_version": "v2",
            "compression_enabled": true, "resume": true, "claim_id": "00ff", "attempt": 2, "lease_seconds": 180,
            "hyperv_config": {"backup_all_vms": true, "unknown_key": 1},
            "hyperv_vms": [{
                "vm_id": 456, "vm_name": "DC01", "vm_guid": "6A1B", "last_checkpoint_id": "c", "last_rct_ids": {"C:\\a.vhdx": "rct"},
                "last_reference_point_id": "Microsoft:6A1B\\C", "base_backup_point_id": 789, "committed": true,
                "last_disks": [{"virtual_disk_id": "d", "path": "C:\\a.vhdx", "slot": "SCSI 0:0", "rct_id": "rct", "virtual_size_bytes": 1_073_741_824}],
            }],
        }),
        &["run_id", "job_id", "engine"],
    );
    // 0.4: an empty list where a map is meant.
    let vm: run::RunVm =
        serde_json::from_value(json!({"vm_id": 1, "vm_name": "a", "vm_guid": "g", "last_rct_ids": []})).expect("VM");
    assert!(vm.last_rct_ids.is_empty());
    assert!(
        serde_json::from_value::<run::RunVm>(json!({"vm_id": 1, "vm_name": "a", "vm_guid": "g", "last_rct_ids": [1]}))
            .is_err()
    );
    check::<run::NextRun>(json!({"engines": ["hyperv", "kopia"], "slots": 2, "boot_id": "b"}), &[]);
}

#[test]
fn progress_and_results() {
    check::<progress::UpdateRun>(
        json!({
            "run_id": "0190a1b2-0000-7000-8000-00000000000f", "status": "running", "progress_pct": 12.5, "bytes_processed": 0,
            "eta_seconds": 60, "current_item": "VM 1/2: DC01", "claim_id": "00ff", "seq": 3, "stats_json": {"a": {"b": 1}},
            "hyperv_results": [{"vm_id": 456, "backup_type": "Incremental", "consistency_level": "Application", "rct_ids": {"C:\\a.vhdx": "r"}}],
        }),
        &["run_id"],
    );
    check::<progress::VmResult>(
        json!({
            "vm_id": 456, "vm_name": "DC01", "backup_type": "Full", "checkpoint_id": "c", "rct_ids": {"p": "r"}, "changed_bytes": 5,
            "consistency_level": "Crash", "disk_manifests": {"p": "m", "_config": "c"}, "total_bytes": 9, "warnings": ["w"],
            "warning_code": "CHECKPOINTS_DISABLED", "reference_point_id": "r", "snapshot_time": "2026-11-27T01:02:03.004Z",
            "disks": [{"virtual_disk_id": "d", "path": "p", "controller_type": "SCSI", "controller_number": 0, "read_mode": "full"}],
        }),
        &["vm_id"],
    );
    check::<progress::UpdateCheckpoint>(
        json!({"run_id": 1, "phase": "commit", "vm_id": 456, "manifest_id": "m", "backup_type": "Full"}),
        &["run_id", "vm_id"],
    );
}

/// 0.4: a missing number means unchanged, 0 means zero, `null` means unknown.
#[test]
fn missing_zero_and_null_are_three_things() {
    for (body, expected) in [
        (json!({"run_id": 1}), None),
        (json!({"run_id": 1, "bytes_total": 0}), Some(Some(0))),
        (json!({"run_id": 1, "bytes_total": null}), Some(None)),
    ] {
        let update: progress::UpdateRun = serde_json::from_value(body.clone()).expect("update");
        assert_eq!(update.figures.bytes_total, expected, "{body}");
        let written = serde_json::to_value(&update).expect("JSON");
        assert_eq!(written.get("bytes_total"), body.get("bytes_total"), "{written}");
    }
}

#[test]
fn events_and_commands() {
    check::<events::PushEvents>(
        json!({
            "run_id": 1, "batch_id": "b", "logs": [{"level": "info", "message": "m"}],
            "events": [{"type": "progress", "level": "warn", "message_id": "HYPERV_VM_STARTING", "params_json": {"vm_name": "DC01"}, "seq": 4}],
        }),
        &["run_id"],
    );
    let event: events::Event = serde_json::from_value(json!({"message_id": "CANCELLED"})).expect("event");
    assert_eq!((event.kind.as_str(), event.level.as_str()), ("info", "info"));
    check::<events::AgentEvent>(
        json!({"source": "agent", "level": "warn", "code": "CLOCK_SKEW", "dedupe_key": "k"}),
        &["code"],
    );
    check::<events::PushLogChunk>(
        json!({"run_id": 1, "chunk_seq": 0, "content_b64": "H4s", "encoding": "gzip", "source": "run", "line_count": 3}),
        &["run_id", "chunk_seq", "content_b64", "encoding"],
    );
    check::<command::PollAnswer>(
        json!({
            "poll_version": 1, "next_poll_secs": 15, "run_available": true, "cancel_runs": [3], "config_epoch": 2,
            "commands": [{"command_id": 5, "type": "browse_directory", "payload": {"path": "C:\\"}, "lease_token": "l"}],
            "repo_operation": null,
        }),
        &["poll_version", "commands", "next_poll_secs"],
    );
    check::<command::RunCommands>(json!({"commands": [{"type": "cancel"}]}), &["commands"]);
    check::<command::CompleteCommand>(
        json!({"command_id": 5, "status": "completed", "result_message": "m"}),
        &["command_id", "status"],
    );
    check::<command::ReportBrowse>(json!({"command_id": 5, "result": {"entries": [1]}}), &["command_id"]);
    check::<repository::CompleteRepoOperation>(
        json!({"operation_id": 1, "operation_token": "t", "status": "success", "result_json": {"deleted_count": 2}}),
        &["operation_id", "operation_token", "status"],
    );
    check::<agent::ReportVolumes>(json!({"volumes": [{"path": "C:\\", "size_bytes": 5}]}), &["volumes"]);
}

#[test]
fn hosts_points_and_restores() {
    check::<hyperv::Discover>(
        json!({
            "job_id": 4, "host": {"version": "10.0"},
            "vms": [{
                "id": "6A1B", "name": "DC01", "state": "Running", "generation": 2, "cpu_count": 4, "memory_mb": 4096, "is_linux": true,
                "rct_enabled": true, "backupable": true, "guest_family": "linux",
                "disks": [{"controller_type": "SCSI", "controller_number": 0, "path": "C:\\a.vhdx", "size_bytes": 5, "vhd_format": "VHDX", "rct_enabled": true}],
            }],
        }),
        &[],
    );
    check::<hyperv::RestoreInfo>(
        json!({
            "backup_point": {"id": 789, "vm_name": "DC01", "backup_type": "Incremental", "manifest_id": "m", "disk_manifests": {"p": "m"}},
            "restore_chain": [{"id": 789, "type": "Full", "manifest_id": "m"}],
        }),
        &["backup_point", "restore_chain"],
    );
    check::<restore::StartRestore>(
        json!({
            "backup_point_id": 789, "restore_type": "full", "target_vm_name": "DC01-r", "target_host": "HV02",
            "restore_options": {"power_on": true, "connect_network": true, "network_map": {"LAN": "Test"}},
        }),
        &[],
    );
    check::<catalogue::HoldPoint>(
        json!({"backup_point_id": 1, "hold": true, "reason": "audit"}),
        &["backup_point_id", "hold"],
    );
    check::<job::JobRequest>(
        json!({
            "name": "nightly", "engine": "hyperv", "agent_id": 7, "dest_bucket_id": 2, "timezone": "Europe/Berlin", "rpo_target_hours": 26,
            "schedule_json": {"type": "weekly", "time": "22:00", "weekday": [1, 5], "blackout": [{"days": [6], "from": "08:00", "to": "18:00"}]},
            "retention_json": {"delete_all": true}, "select": {"mode": "tags", "tags": ["sql"], "except": ["x"]},
            "hyperv_config": {"vms": ["DC01"], "enable_rct": true, "max_parallel_vms": 2},
        }),
        &[],
    );
}
