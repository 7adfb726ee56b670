//! `instant start` on a Hyper-V host: a VM is made whose disks stand on a volume that this process serves.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use backup::instant::{InstantStage, InstantVm, plan_instant, settle_instant};
use backup::{HostState, RestoreContext, RestorePlan, RestoreRequest, select_point};
use hyperv::{TargetLogin, TargetPortal, VmState};
use jiff::{SignedDuration, Timestamp};
use serve::{Session, volume_id};

use super::start::{
    CHAP_USER, LOOK_EVERY, Told, conclude, login_of, make_private, new_record_of, read_secret, recorded_id,
    write_secret,
};
use super::{refuse_idle, serving_json, short};
use crate::cli::InstantStartArgs;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure, chain_text};
use crate::host::OpenHost;
use crate::instant::hyperv::HypervKeeper;
use crate::instant::qemu::{Bus, Machine};
use crate::instant::{CHAP_SECRET, Ending, Found, HypervRecord, Record, Served, Wanted, all};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::serving::{IscsiPlace, Item, Offer, Place, Sources, Transport, identity_of, read_bytes, target_name};
use crate::units::{size, visible};

/// Requests in flight when a session that came to nothing is given up.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(1);
/// From a session's first file to its lock: the volume is opened in between, from the repository.
const BEGUN_WITHIN: SignedDuration = SignedDuration::from_mins(10);

/// Begins a session on `selector`, or takes one up again.
pub fn start(
    context: &Context,
    arguments: &InstantStartArgs,
    selector: &str,
    state: &Path,
    resumed: Option<Found>,
    begun: Instant,
) -> Result<Outcome, Failure> {
    let selector = absolute(selector);
    let host = OpenHost::open(&selector)?;
    let outcome = run(context, arguments, &host, &selector, state, resumed, begun);
    if let Some(hooks) = &host.hooks {
        hooks.write_counts()?;
    }
    outcome
}

fn run(
    context: &Context,
    arguments: &InstantStartArgs,
    host: &OpenHost,
    selector: &str,
    state: &Path,
    resumed: Option<Found>,
    begun: Instant,
) -> Result<Outcome, Failure> {
    let idle = [
        ("--transport", arguments.transport.is_some()),
        ("--socket", arguments.socket.is_some()),
        ("--bus", arguments.bus.is_some()),
        ("--linger", arguments.linger.is_some()),
    ];
    refuse_idle("run a VM from the backup", &host.name, "Hyper-V", &idle)?;
    if let Some(listen) = arguments.listen.filter(|listen| !listen.ip().is_loopback()) {
        let why = "the volume is for this host's own initiator, which finds it without a login";
        return Err(Failure::new("run a VM from the backup", listen.to_string(), Code::Usage, why)
            .with_steps(&["leave out --listen", "give a loopback address, such as 127.0.0.1:0"]));
    }
    let host_state = host.state()?;
    let point = resumed.as_ref().map(|found| found.record.point_id.clone()).or_else(|| arguments.point.clone());
    let selected = point.unwrap_or_else(|| unreachable!("the command line asks for one of them"));
    let what = format!("run {selected} from the backup on {}", host.name);
    match put_in_order(host, &host_state, selector, state) {
        Ok(done) => done.iter().for_each(|text| note(&visible(&format!("note: {text}")))),
        // A VM waits for its disks: what others left does not keep it from them.
        Err(failure) if resumed.is_some() => note(&visible(&format!("warning: {failure}"))),
        Err(failure) => return Err(failure),
    }
    if let Some(found) = &resumed {
        check_is_there(found, &what, selector)?;
    }
    let repo = context.repository_for_serving()?;
    let on = repo.display_name();
    let point = select_point(&repo, &selected).attempt(&*what, &*on)?;
    let description = point.describe(&repo).attempt(&*what, &*on)?;
    let interrupt = Interrupt::watch();
    let progress = Progress::start("instant", &context.global);
    let restore = RestoreContext {
        host: &host.host,
        repo: &repo,
        state: &host_state,
        observer: &progress,
        cancel: interrupt.cancel(),
    };
    let on = format!("point {} in {on}, host {}", short(&point.id), host.name);
    let failed = |error: backup::BackupError| interrupt.explain(Failure::of(&*what, &*on, &error));
    let plan = match &resumed {
        Some(_) => None,
        None => Some(plan_instant(&restore, &point, &request(arguments)).map_err(failed)?),
    };
    let sources = Sources::open(repo.clone(), point, description, &arguments.caches).attempt(&*what, &*on)?;
    let (folder, mut record) = match (&resumed, &plan) {
        (Some(found), _) => (found.folder.clone(), found.record.clone()),
        (None, Some(plan)) => new_record(&sources, plan, selector, arguments.listen, state).attempt(&*what, &*on)?,
        (None, None) => unreachable!("a new session has a plan"),
    };
    let id = recorded_id(&record, &folder, &what)?;
    let item = Item { id: volume_id(), name: "volume".to_owned(), open: Box::new(|| sources.volume(id)) };
    let session = sources.session(&[item], &folder, id, false).attempt(&*what, folder.display().to_string())?;
    let Some(offer) = offer(&session, &record) else {
        let why = "its state names no volume: it is damaged";
        return Err(Failure::new(what, folder.display().to_string(), Code::Failed, why));
    };
    let (transport, login) = listen(&mut record, &folder, &offer, &what)?;
    if !session.state().is_serving() {
        session.serving().attempt(&*what, &*on)?;
    }

    let vm = match (&plan, resumed.is_some()) {
        (Some(plan), _) => make(&restore, plan, &record, &login, &identity_of(&offer).serial(), !arguments.vm.off),
        (None, _) => take_up(&restore, &record, &login, &folder, !arguments.vm.off),
    };
    drop(offer);
    let vm = match vm {
        Ok(vm) => vm,
        Err(problem) => {
            progress.pause();
            let flushed = transport.shutdown(GIVE_UP_WITHIN);
            if plan.is_some() {
                // A new session is taken back as a whole.
                if let Err(error) = session.discard() {
                    tracing::warn!(%error, "the files of a session that came to nothing are still there");
                }
            } else if let Err(error) = flushed {
                // One that was taken up stays as it is: what its guest wrote is nowhere else.
                note(&visible(&format!("warning: flush the volume of the session: {}", chain_text(&error))));
            }
            return Err(failed(problem));
        }
    };
    progress.pause();
    if let Some(hyperv) = record.hyperv.as_mut().filter(|hyperv| hyperv.vm_id.as_deref() != vm.vm_id()) {
        hyperv.vm_id = vm.vm_id().map(str::to_owned);
        // For messages only: the host's own journal knows the VM, and the VM needs its disks.
        if let Err(error) = record.write(&folder) {
            note(&visible(&format!("warning: write the VM's id to {}: {error}", folder.display())));
        }
    }
    announce(context, &record, &folder, &session, &vm);

    let serving_since = Instant::now();
    let is_stopped =
        || interrupt.is_asked() || arguments.stop_after.is_some_and(|time| serving_since.elapsed() >= time);
    let mut told = Told { state: session.state(), trouble: Vec::new(), is_silent: context.global.json };
    let metrics = sources.metrics.clone();
    let keeper = HypervKeeper { folder, sources, session, transport, host: &host.host, vm, begun };
    let ending = keeper.keep(&is_stopped, &mut |state, figures| told.tell(state, figures), LOOK_EVERY)?;
    if ending == Ending::Stopped && !context.global.json {
        note("note: the VM's disks are away until then; Hyper-V pauses it when it needs them");
    }
    conclude(context, &record, ending, read_bytes(&metrics));
    Ok(Outcome::DONE)
}

/// `lab:DIR` that still means the same from another folder.
fn absolute(selector: &str) -> String {
    match selector.split_once(':') {
        Some(("lab", dir)) if !dir.is_empty() => {
            let dir = std::path::absolute(dir).map_or_else(|_| dir.to_owned(), |dir| dir.display().to_string());
            format!("lab:{dir}")
        }
        _ => selector.to_owned(),
    }
}

/// Whether a session that is to be taken up is there after what former ones left was put in order.
fn check_is_there(found: &Found, what: &str, selector: &str) -> Result<(), Failure> {
    let was_made = found.record.hyperv.as_ref().is_some_and(|hyperv| hyperv.vm_id.is_some());
    let (why, step) = if found.folder.exists() {
        if found.state.is_some() {
            return Ok(());
        }
        ("it is only being begun, or was cut off at once", "look at `instant list` again in some minutes")
    } else if was_made {
        ("it had ended on the host already; what was left of its files is removed", "look at the VM with `vm list`")
    } else {
        ("it was cut off before its VM was made, and has been taken back", "start it again")
    };
    Err(Failure::new(what, selector, Code::NotFound, why).with_steps(&[step]))
}

/// Takes back sessions of this host that were cut off before their VM was made, and removes the files of those that
/// nothing is left of on the host.
pub fn put_in_order(
    host: &OpenHost,
    host_state: &HostState,
    selector: &str,
    state: &Path,
) -> Result<Vec<String>, Failure> {
    let what = "put in order what former instant sessions left";
    let settled = settle_instant(&host.host, host_state).attempt(what, &*host.name)?;
    let mut done: Vec<String> = settled.into_iter().map(|(vm, text)| format!("{vm}: {text}")).collect();
    for found in all(state)? {
        let is_here = found.record.hyperv.as_ref().is_some_and(|hyperv| hyperv.host == selector);
        // One that another process begins just now has neither its lock nor a journal on the host.
        let is_young = found.state.is_none() && Timestamp::now().duration_since(found.record.begun) < BEGUN_WITHIN;
        if !is_here || found.is_served || is_young {
            continue;
        }
        let known = InstantVm::open(&host.host, host_state, &found.record.session);
        if matches!(known, Ok(None)) {
            serve::discard_session(&found.folder).attempt(what, found.folder.display().to_string())?;
            let session = short(&found.record.session);
            done.push(format!("{}: removed the files of session {session}", found.record.vm_name));
        }
    }
    Ok(done)
}

/// Ends a session on its host that nobody keeps.
pub fn take_back(record: &HypervRecord, session: &str) -> Result<(), Failure> {
    let what = format!("take back VM {}", record.vm_name);
    let host = OpenHost::open(&record.host)?;
    let state = host.state()?;
    let vm = InstantVm::open(&host.host, &state, session).attempt(&*what, &*host.name)?;
    let Some(vm) = vm else { return Ok(()) };
    vm.discard().attempt(&*what, &*host.name).map(drop)
}

fn request(arguments: &InstantStartArgs) -> RestoreRequest {
    let vm = &arguments.vm;
    RestoreRequest {
        name: vm.name.clone(),
        folder: vm.folder.clone(),
        keep_id: vm.same_id,
        network: vm.network.iter().cloned().collect(),
        from_settings: vm.from_settings,
        ..RestoreRequest::default()
    }
}

fn new_record(
    sources: &Sources,
    plan: &RestorePlan,
    selector: &str,
    listen: Option<SocketAddr>,
    state: &Path,
) -> std::io::Result<(std::path::PathBuf, Record)> {
    let session = serve::id_text(&serve::new_session_id());
    let folder = state.join(&session);
    make_private(&folder)?;
    write_secret(&folder.join(CHAP_SECRET))?;
    let summary = &plan.definition.summary;
    let served = Served::Iscsi {
        portal: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
        target: target_name(&session),
        user: CHAP_USER.to_owned(),
    };
    let machine = Machine {
        generation: summary.generation,
        processors: summary.processors.unwrap_or(1),
        memory_mib: summary.memory_mib.unwrap_or_default(),
        bus: Bus::Scsi,
    };
    let hyperv = HypervRecord {
        host: selector.to_owned(),
        vm_name: plan.wanted.name.clone(),
        directory: plan.wanted.data_root.clone(),
        local: plan.disks.iter().map(|disk| disk.path.clone()).collect(),
        vm_id: None,
    };
    let record = Record { hyperv: Some(hyperv), ..new_record_of(sources, session, served, machine) };
    record.write(&folder)?;
    Ok((folder, record))
}

/// The volume; `None` where the session's files know of none.
fn offer(session: &Session, record: &Record) -> Option<Offer> {
    let (name, device) = session.disks().next()?;
    Some(Offer {
        name: name.to_owned(),
        description: format!("{}, instant session {}", record.vm_name, short(&record.session)),
        device: device.clone(),
        read_only: false,
        is_thin: false,
        sector_bytes: 512,
        identity: format!("{}/volume", record.session),
    })
}

/// The target, and how the host's initiator logs in to it.
fn listen(record: &mut Record, folder: &Path, offer: &Offer, what: &str) -> Result<(Transport, TargetLogin), Failure> {
    let on = folder.display().to_string();
    let Served::Iscsi { portal, target, user } = record.served.clone() else {
        return Err(Failure::new(what, on, Code::Failed, "its record is of another kind of session"));
    };
    let secret = read_secret(folder).attempt(what, &*on)?;
    let login = Some(login_of(&user, &secret));
    let place = Place::Iscsi(IscsiPlace { listen: portal, target: target.clone(), login, is_listed: true });
    let transport = Transport::listen(place, std::slice::from_ref(offer), what)?;
    let bound = transport.address().unwrap_or(portal);
    if record.served.bind_to(bound) {
        // From now on it is served there, and nowhere else.
        record.write(folder).attempt(what, on)?;
    }
    let portal = TargetPortal { address: bound.ip().to_string(), port: bound.port() };
    Ok((transport, TargetLogin { portal, target, user, secret: secret.to_string() }))
}

fn make<'h>(
    restore: &RestoreContext<'h>,
    plan: &RestorePlan,
    record: &Record,
    login: &TargetLogin,
    serial: &str,
    starts: bool,
) -> Result<InstantVm<'h>, backup::BackupError> {
    let mut vm = InstantVm::begin(restore, plan, &record.session, &login.target, serial)?;
    let made = vm.attach(login).and_then(|()| vm.make(restore, plan));
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            if let Err(problem) = vm.discard() {
                let why = chain_text(&problem);
                note(&visible(&format!("note: what was made is left to `host clean`: {why}")));
            }
            return Err(error);
        }
    };
    for warning in &made.warnings {
        note(&visible(&format!("warning: {}: {warning}", made.vm.name)));
    }
    // A VM that is there and does not start is for its operator to see to.
    if starts && let Err(error) = vm.start() {
        let why = chain_text(&error);
        note(&visible(&format!("warning: {} is there, but does not start: {why}", made.vm.name)));
    }
    Ok(vm)
}

fn take_up<'h>(
    restore: &RestoreContext<'h>,
    record: &Record,
    login: &TargetLogin,
    folder: &Path,
    starts: bool,
) -> Result<InstantVm<'h>, backup::BackupError> {
    let opened = InstantVm::open(restore.host, restore.state, &record.session)?;
    let mut vm = opened.ok_or_else(|| backup::BackupError::Obstructed {
        vm: record.vm_name.clone(),
        problem: "nothing is left of the session on the host; discard it".to_owned(),
    })?;
    if vm.needs_volume() {
        vm.attach(login)?;
    }
    // It may be on its way to its files: then it has to stay as it is.
    let is_switching = Wanted::read(folder).is_ok_and(|wanted| wanted.switch) || vm.stage() == InstantStage::Finishing;
    let is_down = vm.vm()?.is_some_and(|vm| vm.state != VmState::Running);
    if starts && !is_switching && is_down && vm.is_to_run() {
        vm.start()?;
    }
    Ok(vm)
}

fn announce(context: &Context, record: &Record, folder: &Path, session: &Session, vm: &InstantVm<'_>) {
    let is_running = vm.vm().ok().flatten().is_some_and(|vm| vm.state == VmState::Running);
    if context.global.json {
        let mut told = serving_json(record, folder, session.describe(), serde_json::Value::Null);
        told["hyperv"]["is_running"] = is_running.into();
        return json_line(&told);
    }
    if context.global.quiet {
        return line(&record.session);
    }
    let name = record.hyperv.as_ref().map_or("", |hyperv| &hyperv.vm_name);
    let word = if is_running { "running" } else { "made   " };
    line(&visible(&format!("{word}  {name} ({}) in {}", vm.vm_id().unwrap_or_default(), vm.directory())));
    for (disk, recorded) in vm.disks().iter().zip(&record.disks) {
        line(&visible(&format!("disk     {}   {}", disk.child, size(recorded.size_bytes))));
    }
    let id = short(&record.session);
    note(&format!("session  {id}"));
    note(&format!("next     `instant move {id}` copies the disks while the VM runs, then `instant switch {id}`"));
    note("until    Ctrl+C, which takes the disks away from the VM and keeps what it wrote");
}
