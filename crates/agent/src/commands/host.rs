//! `host check`, `host clean`: whether this host can be backed up, and what former runs left on it.

mod instant_check;
mod qemu_check;

use std::sync::Arc;

use backup::janitor::{Finding, Leftover, Verdict, clean, inspect};
use backup::{BackupContext, BackupOptions, HostSide, Silent};
use hyperv::{HostFacts, Protection};
use jiff::Timestamp;
use kopia_repo::Repository;
use serde_json::{Value, json};

use crate::cli::HostCommand;
use crate::confirm;
use crate::context::{Context, PROGRAM};
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line, note};
use crate::units::visible;

/// `host …`
pub fn run(context: &Context, command: &HostCommand) -> Result<Outcome, Failure> {
    match command {
        HostCommand::Check { state, .. } if context.host_selector()? == qemu_check::HOST => {
            qemu_check::check(context, state)
        }
        HostCommand::Check { from, .. } => check(context, from.as_deref()),
        HostCommand::Clean { from } => clean_up(context, from.as_deref()),
    }
}

fn check(context: &Context, from: Option<&str>) -> Result<Outcome, Failure> {
    let what = "check the host";
    // Opening it proves the service and the rights.
    let host = context.host()?;
    let facts = host.host.probe().attempt(what, &*host.name)?;
    let vms = host.host.list_vms().attempt(what, &*host.name)?;
    let (state, options) = (host.state()?, BackupOptions::new(PROGRAM));
    let side = HostSide { host: &host.host, state: &state, idle_wait: options.idle_wait };
    let findings = inspect(side, from).attempt(what, &*host.name)?;
    let impossible: Vec<_> = vms.iter().filter(|vm| matches!(vm.protection(), Protection::Impossible(_))).collect();
    let instant = instant_check::look(context, &host.host);
    let exit = if findings.is_empty() && impossible.is_empty() && instant.is_well() { 0 } else { 4 };
    if context.global.json {
        let vms: Vec<Value> = vms
            .iter()
            .map(|vm| {
                json!({
                    "vm_id": vm.id.to_string(),
                    "vm_name": vm.name,
                    "protection_text": vm.protection().to_string(),
                    "cautions": vm.cautions().iter().map(ToString::to_string).collect::<Vec<_>>(),
                })
            })
            .collect();
        json_document(&json!({
            "host": host.name,
            "os": facts.os_caption,
            "os_version": facts.os_version,
            "reference_points": facts.reference_points,
            "vms": vms,
            "findings": findings.iter().map(finding_json).collect::<Vec<_>>(),
            "instant": instant.json(),
        }));
        return Ok(Outcome { exit });
    }
    show_host(&host, &facts);
    let mut table = Table::new(&[("VM", Align::Left), ("BACKUP", Align::Left)]);
    for vm in &vms {
        table.row(vec![vm.name.clone(), vm.protection().to_string()]);
    }
    table.print();
    for vm in &vms {
        for caution in vm.cautions() {
            line(&visible(&format!("note         {}: {caution}", vm.name)));
        }
    }
    line("");
    instant.show();
    line("");
    if findings.is_empty() {
        line("leftovers    none");
    } else {
        show_findings(&findings);
        if findings.iter().any(|finding| finding.verdict == Verdict::Ours) {
            note("remove what is ours with `host clean`");
        }
    }
    Ok(Outcome { exit })
}

fn show_host(host: &OpenHost, facts: &HostFacts) {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let tracking = match facts.reference_points {
        true => "reference points and change tracking: backups after the first read only changes",
        false => {
            "no reference points (older than Server 2016, or a cluster of such a level): every backup is a full one"
        }
    };
    for (name, value) in [
        ("host", host.name.clone()),
        ("system", format!("{} ({})", text(&facts.os_caption), text(&facts.os_version))),
        ("service", "the Virtual Machine Management service runs and lets this account in".to_owned()),
        ("tracking", tracking.to_owned()),
    ] {
        line(&format!("{name:<12} {}", visible(&value)));
    }
    line("");
}

fn clean_up(context: &Context, from: Option<&str>) -> Result<Outcome, Failure> {
    let what = "clean the host";
    let host = context.host()?;
    let (state, options) = (host.state()?, BackupOptions::new(PROGRAM));
    let side = HostSide { host: &host.host, state: &state, idle_wait: options.idle_wait };
    let findings = inspect(side, from).attempt(what, &*host.name)?;
    let ours = findings.iter().filter(|finding| finding.verdict == Verdict::Ours).count();
    if !context.global.json {
        show_findings(&findings);
    }
    if ours > 0 {
        confirm(&host.name, ours, context)?;
    }
    let repo = match findings.iter().any(|finding| matches!(finding.what, Leftover::UnfinishedRun { .. })) {
        true => repository_if_there_is_one(context),
        false => None,
    };
    let interrupt = Interrupt::watch();
    let backup = repo.as_ref().map(|repo| BackupContext {
        host: &host.host,
        host_name: &host.name,
        repo,
        state: &state,
        options: &options,
        observer: &Silent,
        cancel: interrupt.cancel(),
    });
    let done = clean(side, backup.as_ref(), from).attempt(what, &*host.name)?;
    if context.global.json {
        let done: Vec<Value> = done.iter().map(|(vm, text)| json!({ "vm_name": vm, "text": text })).collect();
        let left = inspect(side, from).attempt(what, &*host.name)?;
        let left: Vec<Value> = left.iter().map(finding_json).collect();
        json_document(&json!({ "host": host.name, "done": done, "left": left }));
    } else if done.is_empty() {
        line("nothing of ours was left on the host");
    } else {
        done.iter().for_each(|(vm, text)| line(&visible(&format!("{vm}  {text}"))));
    }
    Ok(Outcome::DONE)
}

/// Whether the point of a run that did not end is whole, only the repository knows. A checkpoint grows on the host
/// meanwhile, so it goes also when the store cannot be reached.
fn repository_if_there_is_one(context: &Context) -> Option<Arc<Repository>> {
    match context.repository() {
        Ok(repo) => Some(repo),
        Err(failure) => {
            note(&format!(
                "only checkpoints are removed; the rest waits for the next backup: {}",
                visible(&failure.to_string())
            ));
            None
        }
    }
}

/// Removing a checkpoint makes the host merge files, so it is asked for.
fn confirm(host: &str, count: usize, context: &Context) -> Result<(), Failure> {
    if confirm::agreed(&context.global, &format!("Remove {count} of these (those that are ours)?"))? {
        return Ok(());
    }
    let why = "removing needs a yes, and nobody gave it; nothing was removed";
    Err(Failure::new("clean the host", host, Code::Usage, why).with_steps(&["say --yes"]))
}

fn show_findings(findings: &[Finding]) {
    if findings.is_empty() {
        return;
    }
    let mut table = Table::new(&[("VM", Align::Left), ("FOUND", Align::Left), ("WHOSE", Align::Left)]);
    for finding in findings {
        table.row(vec![finding.vm_name.clone(), describe(&finding.what), whose(finding.verdict).to_owned()]);
    }
    table.print();
}

fn describe(what: &Leftover) -> String {
    match what {
        Leftover::UnfinishedRun { run_id, started } => format!("run {run_id} of {started:.0} that did not end"),
        Leftover::Checkpoint { name, created, .. } => {
            let created = created.and_then(|time| Timestamp::try_from(time).ok());
            let created = created.map(|time| format!(" of {time:.0}")).unwrap_or_default();
            format!("backup checkpoint {name:?}{created}")
        }
        Leftover::ReferencePoint { .. } => "reference point that no backup goes on from".to_owned(),
        Leftover::UnmergedDisk { path, files } => format!("{path} is {files} files deep: a merge is not done"),
        Leftover::Journal => "journal of a VM that is not on this host".to_owned(),
        Leftover::InstantSession { session, has_vm: true } => {
            let id = session.get(..8).unwrap_or(session);
            format!("runs from a backup, and nobody keeps session {id}: `instant start --resume {id}`, or discard it")
        }
        Leftover::InstantSession { session, .. } => {
            format!("instant session {} that was cut off", session.get(..8).unwrap_or(session))
        }
    }
}

fn whose(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ours => "ours: `host clean` removes it",
        Verdict::OtherAgent => "another agent's: --from AGENT takes it for ours",
        Verdict::Foreign => "another program's: left alone",
        Verdict::Unproven => "not proven: left alone",
        Verdict::News => "nothing to remove",
    }
}

fn finding_json(finding: &Finding) -> Value {
    let (kind, path) = match &finding.what {
        Leftover::UnfinishedRun { .. } => ("unfinished_run", None),
        Leftover::Checkpoint { path, .. } => ("checkpoint", Some(path)),
        Leftover::ReferencePoint { path } => ("reference_point", Some(path)),
        Leftover::UnmergedDisk { path, .. } => ("unmerged_disk", Some(path)),
        Leftover::Journal => ("journal", None),
        Leftover::InstantSession { .. } => ("instant_session", None),
    };
    let verdict = match finding.verdict {
        Verdict::Ours => "ours",
        Verdict::OtherAgent => "other_agent",
        Verdict::Foreign => "foreign",
        Verdict::Unproven => "unproven",
        Verdict::News => "news",
    };
    json!({
        "vm_id": finding.vm_id,
        "vm_name": finding.vm_name,
        "kind": kind,
        "path": path,
        "text": describe(&finding.what),
        "verdict": verdict,
    })
}
