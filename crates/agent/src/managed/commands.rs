//! Commands of the server, outside of backup runs (spec control-api 2.7).

use backup::evidence::{self, Check, Evidence, Outcome};
use backup::janitor::clean;
use backup::{HostSide, VerifyLevel, verify_by_restoring, verify_point};
use control_api::Object;
use control_api::command::{Command, CompleteCommand};
use control_api::hyperv::{Discover, DiscoverAnswer, Vm};
use control_api::id::Id;
use control_api::words::CommandStatus;
use serde_json::{Value, json};

use super::agent::Managed;
use super::outbox::Record;
use super::store::Store;
use super::vm_restores::{self, Wanted};
use super::work::{self, Work, put};
use crate::context::PROGRAM;
use crate::failure::{Attempt as _, Code, Failure};

/// What became of a command.
enum Answer {
    /// Done; there is nothing more to say than this.
    Text(String),
    /// A result.
    Result(Value),
    /// It comes again: this process ends in the middle of it.
    Later,
}

/// Does one command, and keeps its answer for the server.
pub fn perform(managed: &Managed<'_>, command: &Command) {
    let id = command.command_id;
    let answer = match command.kind.as_str() {
        "list_hyperv_vms" => list_vms(managed).map(Answer::Result),
        "list_hyperv_vm_details" => vm_details(managed, command).map(Answer::Result),
        "refresh_inventory" => refresh(managed, command).map(Answer::Text),
        "hyperv_preflight" => vm_restores::preflight(managed, command).map(Answer::Result),
        "hyperv_restore" => restore(managed, command),
        "verify_point" => verify(managed, command).map(Answer::Result),
        "hyperv_cleanup" => clean_up(managed).map(Answer::Result),
        "rotate_token" => managed.rotate_token().map(|()| Answer::Text("the token was changed".into())),
        _ => Err(Failure::new(format!("do {}", command.kind), "", Code::NotSupported, "unsupported_command")),
    };
    let (name, body) = match answer {
        Ok(Answer::Later) => return,
        // This process ends in the middle of it: the command comes again.
        Err(failure) if failure.code() == Code::Interrupted && managed.control.is_stopping() => return,
        Ok(Answer::Result(result)) => ("agent_report_browse.php", json!({ "command_id": id, "result": result })),
        Ok(Answer::Text(text)) => ("agent_complete_command.php", completed(id, CommandStatus::Completed, text)),
        Err(failure) if failure.code() == Code::NotSupported => {
            ("agent_complete_command.php", completed(id, CommandStatus::Failed, "unsupported_command".into()))
        }
        Err(failure) => {
            tracing::warn!(command_id = id, kind = %command.kind, %failure, "a command failed");
            ("agent_complete_command.php", completed(id, CommandStatus::Failed, failure.to_string()))
        }
    };
    // A restore's run is told of first: the end of the command alone would end the run with less to say.
    let subject = match Wanted::read(&command.payload).ok().and_then(|wanted| wanted.run_id()) {
        Some(run) if command.kind == "hyperv_restore" => work::subject(run),
        _ => format!("command-{id}"),
    };
    let name = name.to_owned();
    put(&managed.outbox, Record { subject, name, run_id: None, claim: None, is_event: false, body });
    managed.wake_outbox();
}

fn completed(command_id: i64, status: CommandStatus, text: String) -> Value {
    json!(CompleteCommand { command_id, status, result_message: Some(text.chars().take(4000).collect()) })
}

/// Whoever asks looks at the host as it is now: so does the server from then on.
fn list_vms(managed: &Managed<'_>) -> Result<Value, Failure> {
    let (vms, host) = managed.look_at_host()?;
    report(managed, None, vms.clone(), host)?;
    let vms: Vec<Value> = vms
        .iter()
        .map(|vm| {
            let mut value = json!(vm);
            value["disk_count"] = vm.disks.len().into();
            if let Some(value) = value.as_object_mut() {
                value.remove("disks");
            }
            value
        })
        .collect();
    Ok(json!({ "count": vms.len(), "vms": vms }))
}

fn vm_details(managed: &Managed<'_>, command: &Command) -> Result<Value, Failure> {
    let wanted: Vec<String> = command
        .payload
        .get("vm_ids")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|id| id.trim_matches(['{', '}']).to_ascii_uppercase())
        .collect();
    let (vms, _) = managed.look_at_host()?;
    let details: Vec<Value> = vms
        .iter()
        .filter(|vm| wanted.is_empty() || wanted.contains(&vm.id.to_ascii_uppercase()))
        .map(|vm| json!({ "id": vm.id, "name": vm.name, "disk_count": vm.disks.len(), "disks": vm.disks }))
        .collect();
    Ok(json!({ "count": details.len(), "details": details }))
}

fn refresh(managed: &Managed<'_>, command: &Command) -> Result<String, Failure> {
    let (vms, host) = managed.look_at_host()?;
    let job = command.payload.get("job_id").and_then(Value::as_i64).or(command.job_id);
    let count = vms.len();
    report(managed, job, vms, host)?;
    Ok(format!("{count} virtual machines"))
}

fn report(managed: &Managed<'_>, job: Option<i64>, vms: Vec<Vm>, host: Object) -> Result<(), Failure> {
    let what = "report what is on the host";
    let report = Discover { job_id: job.map(Id::from), vms, host: Some(host) };
    let answer = managed.client.post::<DiscoverAnswer>("agent_hyperv_discover.php", None, &report);
    answer.map(drop).map_err(|error| Failure::new(what, "", Code::ServerUnreachable, error.to_string()))
}

fn restore(managed: &Managed<'_>, command: &Command) -> Result<Answer, Failure> {
    let wanted = Wanted::read(&command.payload)?;
    let Some(run_id) = wanted.run_id().or(command.run_id) else {
        let why = "the command names no run";
        return Err(Failure::new("restore", "", Code::Usage, why));
    };
    let claim = command.lease_token.clone().unwrap_or_default();
    let work = managed.begin(Work::new(run_id, claim, wanted.vms()));
    let done = vm_restores::perform(managed, command, &work);
    managed.finish(run_id);
    match done {
        _ if work.is_lost() => Ok(Answer::Later),
        Err(failure) if failure.code() == Code::Interrupted && !work.is_cancel_asked() => Ok(Answer::Later),
        done => done.map(Answer::Text),
    }
}

/// The result stays with the point: on the server, which is told, and, where damage was found, in the repository.
fn verify(managed: &Managed<'_>, command: &Command) -> Result<Value, Failure> {
    let what = "verify a point";
    let missing = || Failure::new(what, "", Code::Usage, "the command names no point");
    let id = command.payload.get("backup_point_id").and_then(Value::as_i64).ok_or_else(missing)?;
    let word = command.payload.get("level").and_then(Value::as_str).unwrap_or("structure");
    let host = managed.context.host()?;
    let store = Store::of_command(command.job_context.as_ref(), &managed.folder)?;
    store.wait_until_reached(managed.control.cancel())?;
    let repo = store.open(host.hooks.as_ref(), &managed.throttles)?;
    let point = vm_restores::point(managed, &repo, id)?;
    let cancel = managed.control.cancel();
    let on = format!("point {id} of {}", point.vm_name);
    let (check, report) = match word {
        "restore" => {
            let folder = managed.folder.join("verify");
            std::fs::create_dir_all(&folder).attempt(what, folder.display().to_string())?;
            (Check::Restore, verify_by_restoring(&repo, &point, &folder, &backup::Silent, cancel))
        }
        "full" => (Check::Full, verify_point(&repo, &point, VerifyLevel::Full, &backup::Silent, cancel)),
        "sample" => (Check::Sample, verify_point(&repo, &point, VerifyLevel::Sample, &backup::Silent, cancel)),
        _ => (Check::Structure, verify_point(&repo, &point, VerifyLevel::Structure, &backup::Silent, cancel)),
    };
    let report = report.attempt(what, &*on)?;
    let evidence = Evidence {
        point_id: point.id.clone(),
        vm_id: point.vm_id.clone(),
        check,
        outcome: if report.is_sound() { Outcome::Sound } else { Outcome::Damaged },
        at: jiff::Timestamp::now(),
        program: PROGRAM.to_owned(),
        entries: report.entries,
        segments: report.segments,
        read_bytes: report.read_bytes,
        volumes: report.volumes.clone(),
        problems: report.damage.clone(),
    };
    if let Err(error) = evidence::record(&repo, &[evidence]) {
        // The server is told all the same.
        managed.problem(&Failure::of("keep what a check found", on, &error).to_string());
    }
    Ok(json!({
        "backup_point_id": id,
        "level": word,
        "status": if report.is_sound() { "ok" } else { "damaged" },
        "damage": report.damage,
        "entries": report.entries,
        "segments_read": report.segments.0,
        "segments": report.segments.1,
        "read_bytes": report.read_bytes,
    }))
}

/// Removes what is proven to be ours; what another run works on is left out.
fn clean_up(managed: &Managed<'_>) -> Result<Value, Failure> {
    let host = managed.context.host()?;
    let state = host.state()?;
    let options = backup::BackupOptions::new(PROGRAM);
    let side = HostSide { host: &host.host, state: &state, idle_wait: options.idle_wait };
    let done = clean(side, None, None).attempt("clean the host", &*host.name)?;
    let done: Vec<Value> = done.into_iter().map(|(vm, text)| json!({ "vm_name": vm, "text": text })).collect();
    Ok(json!({ "count": done.len(), "removed": done }))
}

/// At the start: what a former process left on the host goes, as far as that needs no repository.
pub fn clean_at_start(managed: &Managed<'_>) {
    match clean_up(managed) {
        Ok(done) => {
            for one in done["removed"].as_array().into_iter().flatten() {
                let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
                managed.settled(&format!("{}: {}", text("vm_name"), text("text")));
            }
        }
        Err(failure) => managed.problem(&failure.to_string()),
    }
}
