//! `instant start` on a Hyper-V host: a VM is made whose disks stand on a volume that this process serves.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use backup::instant::{InstantStage, InstantVm, plan_instant, settle_instant};
use backup::{HostState, RestoreContext, RestorePlan, RestoreRequest, select_point};
use hyperv::{TargetLogin, TargetPortal, VmState};
use iscsi::{Authentication, Credentials, Secret};
use jiff::Timestamp;
use serve::{Session, volume_id};

use super::start::{CHAP_USER, LOOK_EVERY, Told, conclude, id_of, make_private, write_secret};
use super::{session_json, short};
use crate::cli::InstantStartArgs;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::instant::hyperv::HypervKeeper;
use crate::instant::qemu::{Bus, Machine};
use crate::instant::{CHAP_SECRET, Ending, Found, HypervRecord, Record, RecordedDisk, Served, Wanted, all};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::serving::{
    IscsiPlace, Item, Offer, Place, Sources, Transport, disk_name, identity_of, read_bytes, target_name,
};
use crate::units::{size, visible};

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
    let host_state = host.state()?;
    let point = resumed.as_ref().map(|found| found.record.point_id.clone()).or_else(|| arguments.point.clone());
    let point = point.unwrap_or_default();
    let what = format!("run {point} from the backup on {}", host.name);
    for text in put_in_order(host, &host_state, selector, state)? {
        note(&visible(&format!("note: {text}")));
    }
    if let Some(found) = &resumed
        && !found.folder.exists()
    {
        let why = "it was cut off before its VM was made, and has been taken back";
        return Err(Failure::new(what, selector, Code::NotFound, why).with_steps(&["start it again"]));
    }
    let repo = context.repository_for_serving()?;
    let on = repo.display_name();
    let point = select_point(&repo, &point).attempt(&*what, &*on)?;
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
    let id = id_of(&record.session);
    let item = Item { id: volume_id(), name: "volume".to_owned(), open: Box::new(|| sources.volume(id)) };
    let session = sources.session(&[item], &folder, id, false).attempt(&*what, folder.display().to_string())?;
    let offer = offer(&session, &record);
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
            // A new session is taken back as a whole; one that was taken up stays as it is.
            let shut = transport.shutdown(std::time::Duration::from_secs(1));
            if let (Some(_), Err(error)) = (&plan, session.discard()) {
                tracing::warn!(%error, "the files of a session that came to nothing are still there");
            }
            drop(shut);
            return Err(failed(problem));
        }
    };
    progress.pause();
    if let Some(hyperv) = record.hyperv.as_mut().filter(|hyperv| hyperv.vm_id.as_deref() != vm.vm_id()) {
        hyperv.vm_id = vm.vm_id().map(str::to_owned);
        record.write(&folder).attempt(&*what, &*on)?;
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
    let done = settled.into_iter().map(|(vm, text)| format!("{vm}: {text}")).collect();
    for found in all(state)? {
        let is_here = found.record.hyperv.as_ref().is_some_and(|hyperv| hyperv.host == selector);
        if !is_here || found.is_served {
            continue;
        }
        let known = InstantVm::open(&host.host, host_state, &found.record.session);
        if matches!(known, Ok(None)) {
            serve::discard_session(&found.folder).attempt(what, found.folder.display().to_string())?;
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
    let record = Record {
        served: Served::Iscsi {
            portal: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            target: target_name(&session),
            user: CHAP_USER.to_owned(),
        },
        session,
        point_id: sources.point.id.clone(),
        vm_id: sources.point.vm_id.clone(),
        vm_name: sources.point.vm_name.clone(),
        begun: Timestamp::now(),
        machine: Machine {
            generation: summary.generation,
            processors: summary.processors.unwrap_or(1),
            memory_mib: summary.memory_mib.unwrap_or_default(),
            bus: Bus::Scsi,
        },
        disks: sources
            .description
            .disks
            .iter()
            .map(|disk| RecordedDisk {
                number: disk.number,
                name: disk_name(disk),
                virtual_disk_id: disk.virtual_disk_id.clone(),
                size_bytes: disk.size_bytes,
            })
            .collect(),
        hyperv: Some(HypervRecord {
            host: selector.to_owned(),
            vm_name: plan.wanted.name.clone(),
            directory: plan.wanted.data_root.clone(),
            local: plan.disks.iter().map(|disk| disk.path.clone()).collect(),
            vm_id: None,
        }),
    };
    record.write(&folder)?;
    Ok((folder, record))
}

fn offer(session: &Session, record: &Record) -> Offer {
    let (name, device) = session.disks().next().expect("a session of this kind has one volume");
    Offer {
        name: name.to_owned(),
        description: format!("{}, instant session {}", record.vm_name, short(&record.session)),
        device: device.clone(),
        read_only: false,
        is_thin: false,
        sector_bytes: 512,
        identity: format!("{}/volume", record.session),
    }
}

/// The target, and how the host's initiator logs in to it.
fn listen(record: &mut Record, folder: &Path, offer: &Offer, what: &str) -> Result<(Transport, TargetLogin), Failure> {
    let on = folder.display().to_string();
    let Served::Iscsi { portal, target, user } = record.served.clone() else {
        return Err(Failure::new(what, on, Code::Failed, "its record is of another kind of session"));
    };
    let secret = std::fs::read_to_string(folder.join(CHAP_SECRET)).attempt(what, &*on)?;
    let initiator = Credentials { name: user.clone(), secret: Secret::new(secret.clone()) };
    let login = Some(Authentication { initiator, target: None });
    let place = Place::Iscsi(IscsiPlace { listen: portal, target: target.clone(), login, is_listed: true });
    let transport = Transport::listen(place, std::slice::from_ref(offer), what)?;
    let bound = transport.address().unwrap_or(portal);
    if record.served.bind_to(bound) {
        // From now on it is served there, and nowhere else.
        record.write(folder).attempt(what, on)?;
    }
    let portal = TargetPortal { address: bound.ip().to_string(), port: bound.port() };
    Ok((transport, TargetLogin { portal, target, user, secret }))
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
                note(&visible(&format!("note: what was made is left to `host clean`: {problem}")));
            }
            return Err(error);
        }
    };
    for warning in &made.warnings {
        note(&visible(&format!("warning: {}: {warning}", made.vm.name)));
    }
    // A VM that is there and does not start is for its operator to see to.
    if starts && let Err(error) = vm.start() {
        note(&visible(&format!("warning: {} is there, but does not start: {error}", made.vm.name)));
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
    if context.global.json {
        let found = Found {
            folder: folder.to_owned(),
            record: record.clone(),
            state: Some(session.describe()),
            is_served: true,
            figures: None,
        };
        let mut told = session_json(&found);
        told["type"] = "serving".into();
        told["restarts"] = serde_json::json!(session.describe().restarts);
        told["qemu"] = serde_json::Value::Null;
        return json_line(&told);
    }
    if context.global.quiet {
        return line(&record.session);
    }
    let name = record.hyperv.as_ref().map_or("", |hyperv| &hyperv.vm_name);
    line(&visible(&format!("running  {name} ({}) in {}", vm.vm_id().unwrap_or_default(), vm.directory())));
    for (disk, recorded) in vm.disks().iter().zip(&record.disks) {
        line(&visible(&format!("disk     {}   {}", disk.child, size(recorded.size_bytes))));
    }
    let id = short(&record.session);
    note(&format!("session  {id}"));
    note(&format!("next     `instant move {id}` copies the disks while the VM runs, then `instant switch {id}`"));
    note("until    Ctrl+C, which takes the disks away from the VM and keeps what it wrote");
}
