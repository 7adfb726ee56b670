//! `instant move`, `instant switch` and `instant discard`: what the operator wants to become of a session.
//!
//! It is written down first, durably; the session's keeper does it. Here it is only waited for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup::{Event, Observer as _};
use serve::State;

use super::show::targets;
use super::{refuse_idle, session_json, short};
use crate::cli::{FormatArg, InstantMoveArgs, StateArgs};
use crate::confirm;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::instant::{Figures, Found, Wanted, find, qemu, state_folder};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::units::visible;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A keeper looks twenty times a second; one that has not taken up what is wanted by then is told of.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(20);
/// The same of one that ends a VM: a host takes its time over that.
const HOST_ENDS_WITHIN: Duration = Duration::from_secs(600);
/// How long the files of a session that has ended may take to be removed.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);

/// `instant move`
pub fn move_disks(context: &Context, arguments: &InstantMoveArgs) -> Result<Outcome, Failure> {
    let found = find(&state_folder(arguments.state.folder.as_deref()), &arguments.session)?;
    let what = format!("move the disks of {}", found.record.vm_name);
    if found.record.hyperv.is_some() {
        return move_on_host(context, arguments, &found, &what);
    }
    let Some(to) = &arguments.to else {
        return Err(Failure::new(what, "", Code::Usage, "it is not said where to").with_steps(&["say --to DIR"]));
    };
    let to = std::path::absolute(to).attempt(&*what, to.display().to_string())?;
    let format = arguments.format.unwrap_or(FormatArg::Raw);
    let files = files_in(&to, &found, format);
    if let Some(socket) = &arguments.qmp {
        return move_by_qemu(context, &found, socket, &files, format, &what);
    }
    let mut wanted = Wanted::read(&found.folder).attempt(&*what, found.folder.display().to_string())?;
    match &wanted.move_to {
        Some(known) if *known != files => {
            let why = format!("it is on its way to {} already", known[0].display());
            return Err(Failure::new(what, found.folder.display().to_string(), Code::Busy, why)
                .with_steps(&["say the same --to and --format", "discard the session"]));
        }
        Some(_) => {}
        None => {
            if let Some(file) = files.iter().find(|file| file.exists()) {
                let on = file.display().to_string();
                return Err(Failure::new(what, on, Code::TargetExists, "the file exists"));
            }
            std::fs::create_dir_all(&to).attempt(&*what, to.display().to_string())?;
        }
    }
    wanted.move_to = Some(files);
    wanted.bytes_per_second = arguments.rate.or(wanted.bytes_per_second);
    ask(context, &found, &what, &wanted, arguments.no_wait, |state| {
        matches!(state, State::Hydrated | State::Draining | State::Switching | State::Local | State::Finished)
    })
}

/// Under Hyper-V the files' places are known: they lie in the VM's own folder.
fn move_on_host(context: &Context, arguments: &InstantMoveArgs, found: &Found, what: &str) -> Result<Outcome, Failure> {
    let on = found.folder.display().to_string();
    if arguments.to.is_some() || arguments.qmp.is_some() {
        let why = "the disks of a VM under Hyper-V go into the VM's own folder";
        return Err(Failure::new(what, on, Code::Usage, why).with_steps(&["leave out --to and --qmp"]));
    }
    refuse_idle(what, &on, "Hyper-V", &[("--format raw", arguments.format == Some(FormatArg::Raw))])?;
    let mut wanted = Wanted::read(&found.folder).attempt(what, &*on)?;
    let local = found.record.hyperv.iter().flat_map(|hyperv| &hyperv.local);
    wanted.move_to = Some(local.map(PathBuf::from).collect());
    wanted.bytes_per_second = arguments.rate.or(wanted.bytes_per_second);
    ask(context, found, what, &wanted, arguments.no_wait, |state| {
        matches!(state, State::Hydrated | State::Switching | State::Local | State::Finished)
    })
}

/// `instant switch`
pub fn switch(
    context: &Context,
    selector: &str,
    shut_down: bool,
    no_wait: bool,
    state: &StateArgs,
) -> Result<Outcome, Failure> {
    let found = find(&state_folder(state.folder.as_deref()), selector)?;
    let what = format!("let the local files of {} take over", found.record.vm_name);
    let on = found.folder.display().to_string();
    let wanted = Wanted::read(&found.folder).attempt(&*what, &*on)?;
    if wanted.move_to.is_none() {
        let why = "there are no files yet";
        return Err(Failure::new(what, on, Code::Usage, why).with_steps(&["begin with `instant move SESSION`"]));
    }
    if shut_down && found.record.hyperv.is_none() {
        let why = "a guest under QEMU runs on meanwhile";
        return Err(Failure::new(what, on, Code::Usage, why).with_steps(&["leave out --shut-down"]));
    }
    let wanted = Wanted { switch: true, shut_down: shut_down || wanted.shut_down, ..wanted };
    ask(context, &found, &what, &wanted, no_wait, |state| matches!(state, State::Local | State::Finished))
}

/// `instant discard`
pub fn discard(context: &Context, selector: &str, given: Option<&str>, state: &StateArgs) -> Result<Outcome, Failure> {
    let found = find(&state_folder(state.folder.as_deref()), selector)?;
    let name = &found.record.vm_name;
    let what = format!("discard the instant session of {name}");
    let loss = "what the guest wrote since the session began is lost; disks that are local files already stay";
    confirm::name_typed(&context.global, given, name, loss)?;
    end(&found, &what)?;
    conclude(context, &found, "discarded", None);
    Ok(Outcome::DONE)
}

/// Ends a session, by its keeper or, where there is none, here.
fn end(found: &Found, what: &str) -> Result<(), Failure> {
    let on = found.folder.display().to_string();
    let wanted = Wanted::read(&found.folder).attempt(what, &*on)?;
    Wanted { discard: true, ..wanted }.write(&found.folder).attempt(what, &*on)?;
    let begun = Instant::now();
    let within = if found.record.hyperv.is_some() { HOST_ENDS_WITHIN } else { TAKEN_UP_WITHIN };
    while serve::is_served(&found.folder).attempt(what, &*on)? {
        if begun.elapsed() > within {
            let why = "the process that serves it does not end it";
            return Err(Failure::new(what, on, Code::Busy, why)
                .with_steps(&["stop that process, then run this again", "stop the machine first"]));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    // The keeper removes the session's files after it has let go of it, or it died before it could.
    let begun = Instant::now();
    while found.is_served && found.folder.exists() && begun.elapsed() < REMOVED_WITHIN {
        std::thread::sleep(LOOK_EVERY);
    }
    if !found.folder.exists() {
        return Ok(());
    }
    if let Some(hyperv) = &found.record.hyperv {
        super::hyperv::take_back(hyperv, &found.record.session)?;
    }
    serve::discard_session(&found.folder).attempt(what, on)
}

/// The disks' files: named after the VM, as far as a file can be.
fn files_in(folder: &Path, found: &Found, format: FormatArg) -> Vec<PathBuf> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
    let vm: String = found.record.vm_name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let extension = match format {
        FormatArg::Raw => "raw",
        FormatArg::Vhdx => "vhdx",
    };
    let disks = found.record.disks.iter();
    disks.map(|disk| folder.join(format!("{}-{}.{extension}", vm.trim_matches(['.', ' ']), disk.name))).collect()
}

/// Whether a session that nobody serves any more has come to where it was to come: it may have ended between two looks,
/// and a keeper lets go of a session before it removes its files.
fn is_done_soon(found: &Found, what: &str, is_there: &impl Fn(State) -> bool) -> Result<bool, Failure> {
    let begun = Instant::now();
    while !standing(found, what)?.is_none_or(is_there) {
        if begun.elapsed() >= REMOVED_WITHIN {
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(true)
}

/// Writes down what is wanted, and waits until the session has come to where `is_there` says so.
fn ask(
    context: &Context,
    found: &Found,
    what: &str,
    wanted: &Wanted,
    no_wait: bool,
    is_there: impl Fn(State) -> bool,
) -> Result<Outcome, Failure> {
    let on = found.folder.display().to_string();
    let folder = &found.folder;
    if !found.is_served {
        let why = "no process serves this session now";
        let resume = format!("`instant start --resume {}`", short(&found.record.session));
        return Err(Failure::new(what, on, Code::HostFailed, why).with_steps(&[&resume]));
    }
    wanted.write(folder).attempt(what, &*on)?;
    let asked = jiff::Timestamp::now();
    if no_wait {
        conclude(context, found, "asked", None);
        return Ok(Outcome::DONE);
    }
    let interrupt = Interrupt::watch();
    let progress = Progress::start("move", &context.global);
    let mut shown = 0;
    let subject = found.record.vm_name.as_str();
    let mut is_started = false;
    let mut seen = State::Serving;
    // A session that is gone was finished: what was asked for is done.
    while let Some(state) = standing(found, what)? {
        if is_there(state) {
            break;
        }
        if state != seen {
            seen = state;
            progress.event(Event::Phase { subject, phase: phase_of(seen) });
        }
        let figures = Figures::read(folder).unwrap_or_default();
        if let Some(refusal) = figures.refusal.filter(|_| figures.at > asked) {
            // Not to be tried again and again without somebody who reads of it, nor to follow from what is asked for later.
            let nothing = Wanted { move_to: None, switch: false, shut_down: false, ..wanted.clone() };
            nothing.write(folder).attempt(what, &*on)?;
            let code = if refusal.is_no_space { Code::TargetFull } else { Code::Failed };
            return Err(Failure::new(what, on, code, refusal.text));
        }
        if let (Some(moved), Some(total_bytes)) = (figures.moved_bytes, figures.total_bytes) {
            if !std::mem::replace(&mut is_started, true) {
                progress.event(Event::Started { subject, total_bytes, what: "move" });
            }
            progress.event(Event::Advanced { subject, bytes: moved.saturating_sub(shown) });
            shown = shown.max(moved);
        }
        if !serve::is_served(folder).attempt(what, &*on)? {
            if is_done_soon(found, what, &is_there)? {
                break;
            }
            let why = "the process that served this session has ended; what was asked for goes on with the next";
            let resume = format!("`instant start --resume {}`", short(&found.record.session));
            return Err(Failure::new(what, on, Code::HostFailed, why).with_steps(&[&resume]));
        }
        if interrupt.is_asked() {
            let why = "no longer waited for; it goes on without this command";
            return Err(interrupt.explain(Failure::new(what, on, Code::Interrupted, why)));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    progress.finish();
    let now = Found { state: serve::read_session(folder).attempt(what, &*on)?, ..reread(found) };
    conclude(context, &now, "done", wanted.move_to.as_deref());
    Ok(Outcome::DONE)
}

/// Where the disks stand now; `None` when the session is gone.
fn standing(found: &Found, what: &str) -> Result<Option<State>, Failure> {
    let on = found.folder.display().to_string();
    let state = serve::read_session(&found.folder).attempt(what, on)?;
    Ok(Found { state, ..reread(found) }.standing())
}

fn reread(found: &Found) -> Found {
    Found {
        folder: found.folder.clone(),
        record: found.record.clone(),
        state: None,
        is_served: serve::is_served(&found.folder).unwrap_or(false),
        figures: Figures::read(&found.folder),
    }
}

fn phase_of(state: State) -> &'static str {
    match state {
        State::Hydrating => "copying what the backup holds",
        State::Hydrated => "what the backup holds is local",
        State::Draining => "what the guest wrote follows",
        State::Switching => "the files take over",
        _ => "waiting",
    }
}

/// Without `done` it was only asked for.
fn conclude(context: &Context, found: &Found, done: &str, files: Option<&[PathBuf]>) {
    if context.global.json {
        let mut result = session_json(found);
        result["type"] = "result".into();
        result["done"] = done.into();
        match done {
            "discarded" => result["state"] = "DISCARDED".into(),
            _ if found.state.is_none() => result["state"] = "FINISHED".into(),
            _ => {}
        }
        result["exit"] = 0.into();
        return json_line(&result);
    }
    let name = &found.record.vm_name;
    let id = short(&found.record.session);
    let is_local = found.state.as_ref().is_some_and(|state| state.state == State::Local);
    match done {
        "asked" => note(&format!("asked    {name}; look with `instant show {id}`")),
        "discarded" => line(&visible(&format!("gone     the session of {name}, with what its guest wrote"))),
        _ => files.unwrap_or_default().iter().for_each(|file| line(&visible(&format!("local    {}", file.display())))),
    }
    if done == "done" && is_local {
        note("next     when the machine was stopped the session ends by itself; start it from then on with");
        let files = targets(found).unwrap_or_default();
        let local = qemu::local_disks(&found.record, &files);
        let command = qemu::command_line(&[qemu::machine_arguments(&found.record.machine), local].concat());
        command.lines().for_each(note);
    } else if done == "done" && found.state.is_some() {
        let when = match found.record.hyperv {
            Some(_) => "once the VM is off; with --shut-down it sees to that",
            None => "while the guest runs",
        };
        note(&format!("next     `instant switch {id}` lets the files take over, {when}"));
    }
}

#[cfg(unix)]
fn move_by_qemu(
    context: &Context,
    found: &Found,
    socket: &Path,
    files: &[PathBuf],
    format: FormatArg,
    what: &str,
) -> Result<Outcome, Failure> {
    use crate::instant::qmp::{Mirror, Qmp};

    let on = socket.display().to_string();
    if format != FormatArg::Raw {
        let why = "QEMU is asked to write raw files only";
        return Err(Failure::new(what, on, Code::Usage, why).with_steps(&["say --format raw"]));
    }
    if found.state.as_ref().is_none_or(|state| state.state != State::Serving) {
        let why = "its disks are on their way already";
        return Err(Failure::new(what, on, Code::Busy, why).with_steps(&["go on with `instant switch`"]));
    }
    if let Some(folder) = files[0].parent() {
        std::fs::create_dir_all(folder).attempt(what, folder.display().to_string())?;
    }
    let mut qmp = Qmp::connect(socket).attempt(what, &*on)?;
    let interrupt = Interrupt::watch();
    let progress = Progress::start("move", &context.global);
    for (disk, file) in found.record.disks.iter().zip(files) {
        let mirror = Mirror { node: &disk.name, file, size_bytes: disk.size_bytes };
        mirror.run(&mut qmp, &progress, &|| interrupt.is_asked()).attempt(what, &*on)?;
    }
    progress.finish();
    // The machine has left; what it wrote is in the files.
    if found.is_served {
        wait_until_nobody_is_connected(found, what)?;
    }
    end(found, what)?;
    let gone = reread(found);
    conclude(context, &gone, "done", Some(files));
    Ok(Outcome::DONE)
}

#[cfg(unix)]
fn wait_until_nobody_is_connected(found: &Found, what: &str) -> Result<(), Failure> {
    let on = found.folder.display().to_string();
    let begun = Instant::now();
    loop {
        let clients = Figures::read(&found.folder).map(|figures| figures.clients);
        if clients == Some(0) {
            return Ok(());
        }
        if begun.elapsed() > TAKEN_UP_WITHIN {
            let clients = clients.map_or("perhaps".to_owned(), |clients| clients.to_string());
            let why = format!("{clients} clients are still connected to the session; it was left as it is");
            return Err(Failure::new(what, on, Code::Busy, why)
                .with_steps(&["disconnect them, then `instant discard SESSION`"]));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(not(unix))]
fn move_by_qemu(
    _: &Context,
    _: &Found,
    socket: &Path,
    _: &[PathBuf],
    _: FormatArg,
    what: &str,
) -> Result<Outcome, Failure> {
    let why = "QEMU's control socket has a name of the file system, which this system does not know";
    Err(Failure::new(what, socket.display().to_string(), Code::NotSupported, why))
}
