//! `instant list` and `instant show`.

use std::time::Duration;

use serde_json::json;

use super::{session_json, short, state_name, uri};
use crate::cli::StateArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::instant::{Figures, Found, all, find, qemu, state_folder};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line, print};
use crate::units::{duration, size, visible};

/// `instant list`
pub fn list(context: &Context, state: &StateArgs) -> Result<Outcome, Failure> {
    let sessions = all(&state_folder(state.folder.as_deref()))?;
    if context.global.json {
        json_document(&json!({ "sessions": sessions.iter().map(session_json).collect::<Vec<_>>() }));
    } else if context.global.quiet {
        sessions.iter().for_each(|found| line(&found.record.session));
    } else {
        let mut table = Table::new(&[
            ("SESSION", Align::Left),
            ("VM", Align::Left),
            ("BEGUN", Align::Left),
            ("STATE", Align::Left),
            ("MOVED", Align::Right),
            ("LEFT", Align::Right),
            ("SERVED", Align::Left),
        ]);
        for found in &sessions {
            table.row(vec![
                short(&found.record.session).to_owned(),
                found.record.vm_name.clone(),
                context.time(found.record.begun),
                state_name(found),
                percent(found.figures.as_ref()).unwrap_or_else(|| "–".to_owned()),
                time_left(found).unwrap_or_else(|| "–".to_owned()),
                served(found).to_owned(),
            ]);
        }
        table.print();
    }
    Ok(Outcome::DONE)
}

/// `instant show`
pub fn show(context: &Context, selector: &str, metrics: bool, state: &StateArgs) -> Result<Outcome, Failure> {
    let found = find(&state_folder(state.folder.as_deref()), selector)?;
    if metrics {
        print(found.figures.as_ref().map_or("", |figures| &figures.metrics));
        return Ok(Outcome::DONE);
    }
    let record = &found.record;
    let figures = found.figures.clone().unwrap_or_default();
    let machine = qemu::machine_arguments(&record.machine);
    let disks = qemu::served_disks(record, &found.folder);
    let local = targets(&found).map(|files| qemu::local_disks(record, &files));
    if context.global.json {
        let mut session = session_json(&found);
        session["read_bytes"] = figures.read_bytes;
        session["overlay_live_bytes"] = json!(figures.overlay_live_bytes);
        session["first_read_ms"] = json!(figures.first_read_ms);
        session["trouble"] = json!(figures.trouble);
        session["refused"] = json!(figures.refusal.map(|refusal| refusal.text));
        session["restarts"] = json!(found.state.as_ref().map(|state| state.restarts).unwrap_or_default());
        let is_qemu = record.hyperv.is_none();
        session["qemu"] = json!(is_qemu.then(|| json!({ "machine": machine, "disks": disks, "local_disks": local })));
        session["libvirt"] = json!(is_qemu.then(|| qemu::libvirt(record)));
        json_document(&json!({ "session": session }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(&state_name(&found));
        return Ok(Outcome::DONE);
    }
    let begun = context.time(record.begun);
    line(&visible(&format!(
        "session  {}   {} at point {}, begun {begun}",
        record.session, record.vm_name, record.point_id
    )));
    let restarts = found.state.as_ref().map(|state| state.restarts).unwrap_or_default();
    line(&format!(
        "state    {}, {}   {} restarts after a kill, {} after a loss of power",
        state_name(&found),
        served(&found),
        restarts.kill,
        restarts.power
    ));
    if let Some(hyperv) = &record.hyperv {
        line(&visible(&format!("vm       {} on {}, in {}", hyperv.vm_name, hyperv.host, hyperv.directory)));
    }
    for (nth, disk) in record.disks.iter().enumerate() {
        let local = record.hyperv.as_ref().and_then(|hyperv| hyperv.local.get(nth).cloned());
        let target = found.state.as_ref().and_then(|state| state.disks.get(nth)?.target.clone());
        let target = local.or(target).map_or(String::new(), |target| format!(" → {target}"));
        line(&visible(&format!("disk     {}   {}{target}", uri(record, nth), size(disk.size_bytes))));
    }
    if let (Some(percent), Some(moved), Some(total)) =
        (percent(Some(&figures)), figures.moved_bytes, figures.total_bytes)
    {
        let left = time_left(&found).map_or(String::new(), |left| format!("   ~{left} left"));
        line(&format!("moved    {percent}   {} of {}{left}", size(moved), size(total)));
    }
    let read: Vec<String> = [
        ("the guest's own writes", "overlay"),
        ("local files", "target"),
        ("memory", "memory"),
        ("disk cache", "disk_cache"),
        ("repository", "repository"),
    ]
    .iter()
    .filter_map(|(words, field)| {
        let bytes = figures.read_bytes.get(*field)?.as_u64().filter(|bytes| *bytes > 0)?;
        Some(format!("{} {words}", size(bytes)))
    })
    .collect();
    if !read.is_empty() {
        line(&format!("read     {}", read.join(", ")));
    }
    line(&format!("written  {} kept for the guest", size(figures.overlay_live_bytes)));
    let refused = figures.refusal.iter().map(|refusal| &refusal.text);
    figures.trouble.iter().chain(refused).for_each(|text| line(&visible(&format!("trouble  {text}"))));
    if record.hyperv.is_some() {
        return Ok(Outcome::DONE);
    }
    let is_local = found.state.as_ref().is_some_and(|state| state.disks.iter().all(|disk| disk.is_local));
    match local.filter(|_| is_local) {
        Some(local) => {
            line("start    from now on, after the machine was stopped, with:");
            print_lines(&qemu::command_line(&[machine, local].concat()));
        }
        None => {
            line("start    with QEMU:");
            print_lines(&qemu::command_line(&[machine, disks].concat()));
            line("start    with libvirt, in <devices>:");
            print_lines(&qemu::libvirt(record));
        }
    }
    Ok(Outcome::DONE)
}

fn print_lines(text: &str) {
    text.lines().for_each(|text| line(&visible(text)));
}

/// The files that the disks are going to be, when they are known.
pub fn targets(found: &Found) -> Option<Vec<String>> {
    found.state.as_ref()?.disks.iter().map(|disk| disk.target.clone()).collect()
}

fn served(found: &Found) -> &'static str {
    if found.is_served { "served" } else { "not served" }
}

fn percent(figures: Option<&Figures>) -> Option<String> {
    let figures = figures?;
    let (moved, total) = (figures.moved_bytes?, figures.total_bytes?);
    Some(format!("{} %", u128::from(moved) * 100 / u128::from(total.max(1))))
}

fn time_left(found: &Found) -> Option<String> {
    let seconds = found.figures.as_ref().filter(|_| found.is_served)?.seconds_left?;
    Some(duration(Duration::from_secs(seconds)))
}
