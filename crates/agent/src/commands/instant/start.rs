//! `instant start`: begins a session, or takes one up again, and keeps it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup::{PointDisk, select_point};
use iscsi::{Authentication, Credentials, Secret};
use jiff::Timestamp;
use serde_json::{Value, json};
use serve::{Prefetch, SessionState, State, disk_id_of};
use zeroize::Zeroizing;

use super::{hyperv, refuse_idle, serving_json, short, uri};
use crate::cli::{InstantStartArgs, TransportArg};
use crate::commands::serve::tell;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::instant::qemu::{self, Bus, Machine};
use crate::instant::{Boot, CHAP_SECRET, Ending, Figures, Keeper, Record, RecordedDisk, Served, find, state_folder};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::serving::{IscsiPlace, Item, Offer, Place, Sources, Transport, disk_name, read_bytes, target_name};
use crate::units::{size, visible};

/// How often it is looked whether something is wanted.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What `--host` says for this machine with QEMU.
const QEMU: &str = "qemu";
/// What a login of a session is called.
pub(super) const CHAP_USER: &str = "e3";
/// As Windows takes it: 12 to 16 characters.
const SECRET_CHARACTERS: usize = 16;
/// How long a session whose disks have moved waits for its machine to come back, unless it is said.
const LINGER: Duration = Duration::from_secs(30);
/// Of a VM whose definition does not say more.
const MEMORY_MIB: u64 = 2048;

/// `instant start`
pub fn start(context: &Context, arguments: &InstantStartArgs) -> Result<Outcome, Failure> {
    let begun = Instant::now();
    let state = state_folder(arguments.state.folder.as_deref());
    // A session is taken up by any process, from any folder.
    let state = std::path::absolute(&state).unwrap_or(state);
    let resumed = arguments.resume.as_deref().map(|selector| find(&state, selector)).transpose()?;
    // A session is taken up on the host that it is on, whatever is said.
    let recorded = resumed.as_ref().map(|found| found.record.hyperv.as_ref().map_or(QEMU, |hyperv| &hyperv.host));
    let host = match recorded {
        Some(host) => host.to_owned(),
        None => host_of(context)?,
    };
    if host != QEMU {
        return hyperv::start(context, arguments, &host, &state, resumed, begun);
    }
    let selector = match (&resumed, &arguments.point) {
        (Some(found), _) => &found.record.point_id,
        (None, Some(point)) => point,
        (None, None) => unreachable!("the command line asks for one of them"),
    };
    let what = format!("run {selector} from the backup");
    let vm = &arguments.vm;
    let idle = [
        ("--name", vm.name.is_some()),
        ("--folder", vm.folder.is_some()),
        ("--same-id", vm.same_id),
        ("--network", !vm.network.is_empty()),
        ("--from-settings", vm.from_settings),
        ("--off", vm.off),
    ];
    refuse_idle(&what, "", "QEMU", &idle)?;
    let repo = context.repository_for_serving()?;
    let on = repo.display_name();
    let point = select_point(&repo, selector).attempt(&*what, &*on)?;
    let description = point.describe(&repo).attempt(&*what, &*on)?;
    let definition = point.definition(&repo).attempt(&*what, &*on)?;
    let sources = Sources::open(repo, point, description, &arguments.caches).attempt(&*what, &*on)?;

    let disks = sources.description.disks.clone();
    let (folder, mut record, id) = match &resumed {
        Some(found) => {
            let id = recorded_id(&found.record, &found.folder, &what)?;
            (found.folder.clone(), found.record.clone(), id)
        }
        None => {
            let id = serve::new_session_id();
            let session = serve::id_text(&id);
            let folder = state.join(&session);
            make_private(&folder).attempt(&*what, folder.display().to_string())?;
            let summary = definition.summary;
            let machine = Machine {
                generation: summary.generation,
                processors: summary.processors.unwrap_or(1),
                memory_mib: summary.memory_mib.unwrap_or(MEMORY_MIB),
                bus: arguments.bus.unwrap_or(Bus::Sata),
            };
            let served = place_for(arguments, &folder, &session).attempt(&*what, folder.display().to_string())?;
            (folder, new_record_of(&sources, session, served, machine), id)
        }
    };
    let on = folder.display().to_string();
    if resumed.is_none() {
        record.write(&folder).attempt(&*what, &*on)?;
    }

    let watched: RefCell<Vec<(PointDisk, Arc<Prefetch>)>> = RefCell::default();
    let item = |disk: &PointDisk| {
        let (disk, watched, sources) = (disk.clone(), &watched, &sources);
        let (id, name) = (disk_id_of(&disk), disk_name(&disk));
        let open = Box::new(move || {
            let base = sources.base(&disk)?;
            watched.borrow_mut().extend(base.prefetch.clone().map(|prefetch| (disk.clone(), prefetch)));
            Ok(base)
        });
        Item { id, name, open }
    };
    let items: Vec<Item<'_>> = disks.iter().map(item).collect();
    // The sockets and addresses that are served without more are this machine's.
    let session = sources.session(&items, &folder, id, false).attempt(&*what, &*on)?;
    drop(items);
    let offers: Vec<Offer> = session
        .disks()
        .zip(&disks)
        .map(|((name, device), disk)| Offer {
            name: name.to_owned(),
            description: format!("{} disk {}, instant session {}", record.vm_name, disk.number, short(&record.session)),
            device: device.clone(),
            read_only: false,
            is_thin: true,
            sector_bytes: disk.logical_sector_bytes,
            identity: format!("{}/{}", record.session, disk.virtual_disk_id),
        })
        .collect();
    let transport = Transport::listen(place_of(&record.served, &folder).attempt(&*what, &*on)?, &offers, &what)?;
    drop(offers);
    if let Some(bound) = transport.address()
        && record.served.bind_to(bound)
    {
        // From now on it is served there, and nowhere else.
        record.write(&folder).attempt(&*what, &*on)?;
    }
    if !session.state().is_serving() {
        session.serving().attempt(&*what, &*on)?;
    }
    announce(context, &record, &folder, session.describe());

    let interrupt = Interrupt::watch();
    let serving_since = Instant::now();
    let is_stopped =
        || interrupt.is_asked() || arguments.stop_after.is_some_and(|time| serving_since.elapsed() >= time);
    let mut told = Told { state: session.state(), trouble: Vec::new(), is_silent: context.global.json };
    let metrics = sources.metrics.clone();
    let keeper = Keeper {
        folder,
        sources,
        session: Arc::new(session),
        transport,
        boot: resumed.is_none().then(|| Boot::watch(watched.into_inner())),
        begun,
        linger: arguments.linger.unwrap_or(LINGER),
    };
    let ending = keeper.keep(&is_stopped, &mut |state, figures| told.tell(state, figures), LOOK_EVERY)?;
    conclude(context, &record, ending, read_bytes(&metrics));
    Ok(Outcome::DONE)
}

/// Where it is to run: this Windows host by default, on Windows.
fn host_of(context: &Context) -> Result<String, Failure> {
    match context.host_selector() {
        Ok(host) => Ok(host.to_owned()),
        Err(_) if cfg!(windows) => Ok("local".to_owned()),
        Err(failure) => Err(failure.with_steps(&[
            "say --host qemu, to run it on this machine",
            "say --host local, on a Hyper-V host",
            "say --host lab:DIR, on a simulated one",
        ])),
    }
}

/// What changes and what is wrong, once each.
pub(super) struct Told {
    pub(super) state: State,
    pub(super) trouble: Vec<String>,
    pub(super) is_silent: bool,
}

impl Told {
    pub(super) fn tell(&mut self, state: State, figures: &Figures) {
        if self.is_silent {
            return;
        }
        if state != std::mem::replace(&mut self.state, state) {
            let text = match state {
                State::Hydrating => "moving   what the backup holds is copied",
                State::Hydrated => "moved    what the backup holds is local; `instant switch` lets the files take over",
                State::Draining => "moving   what the guest wrote follows",
                State::Switching => "switch   the files take over",
                State::Local => "local    the disks are the files; the session ends when the machine is stopped",
                _ => "",
            };
            if !text.is_empty() {
                note(text);
            }
        }
        let mut trouble = figures.trouble.clone();
        trouble.extend(figures.refusal.iter().map(|refusal| refusal.text.clone()));
        tell(trouble, &mut self.trouble);
    }
}

fn announce(context: &Context, record: &Record, folder: &Path, state: SessionState) {
    let arguments = qemu::machine_arguments(&record.machine);
    let disks = qemu::served_disks(record, folder);
    if context.global.json {
        let qemu = json!({ "machine": arguments, "disks": disks });
        json_line(&serving_json(record, folder, state, qemu));
        return;
    }
    if context.global.quiet {
        return line(&record.session);
    }
    for (nth, disk) in record.disks.iter().enumerate() {
        line(&visible(&format!("serving  {}   disk {}, {}", uri(record, nth), disk.number, size(disk.size_bytes))));
    }
    let id = short(&record.session);
    let command = qemu::command_line(&[arguments, disks].concat());
    command.lines().for_each(|text| line(&visible(text)));
    note(&format!("session  {id}; the same for libvirt: `instant show {id}`"));
    note(&format!("next     `instant move {id} --to DIR` copies the disks while the machine runs"));
    note("until    Ctrl+C, which takes the disks away from the machine and keeps what it wrote");
}

pub(super) fn conclude(context: &Context, record: &Record, ending: Ending, read: Value) {
    let name = match ending {
        Ending::Stopped => "stopped",
        Ending::Finished => "finished",
        Ending::Discarded => "discarded",
    };
    if context.global.json {
        return json_line(&json!({
            "type": "result",
            "session_id": record.session,
            "point_id": record.point_id,
            "vm_id": record.vm_id,
            "vm_name": record.vm_name,
            "ending": name,
            "read_bytes": read,
            "exit": 0,
        }));
    }
    let id = short(&record.session);
    match ending {
        Ending::Stopped => note(&format!("kept     `instant start --resume {id}` serves it again")),
        Ending::Finished => note("done     the disks are plain files, and the session is gone"),
        Ending::Discarded => note("gone     the session and what its guest wrote"),
    }
}

/// The record of a session that begins now.
pub(super) fn new_record_of(sources: &Sources, session: String, served: Served, machine: Machine) -> Record {
    let disk = |disk: &PointDisk| RecordedDisk {
        number: disk.number,
        name: disk_name(disk),
        virtual_disk_id: disk.virtual_disk_id.clone(),
        size_bytes: disk.size_bytes,
    };
    Record {
        session,
        point_id: sources.point.id.clone(),
        vm_id: sources.point.vm_id.clone(),
        vm_name: sources.point.vm_name.clone(),
        begun: Timestamp::now(),
        served,
        machine,
        disks: sources.description.disks.iter().map(disk).collect(),
        hyperv: None,
    }
}

/// The id of the session that a record is about.
pub(super) fn recorded_id(record: &Record, folder: &Path, what: &str) -> Result<[u8; 16], Failure> {
    let why = || format!("its record is damaged: {:?} is no session's id", record.session);
    let on = || folder.display().to_string();
    serve::id_of(&record.session).ok_or_else(|| Failure::new(what, on(), Code::Failed, why()))
}

/// A folder that its owner alone may enter: who reaches a socket in it has the disks.
pub(super) fn make_private(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Where a new session is served.
fn place_for(arguments: &InstantStartArgs, folder: &Path, session: &str) -> std::io::Result<Served> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    Ok(match arguments.transport.unwrap_or(TransportArg::Nbd) {
        TransportArg::Iscsi => {
            write_secret(&folder.join(CHAP_SECRET))?;
            Served::Iscsi {
                portal: arguments.listen.unwrap_or(anywhere),
                target: target_name(session),
                user: CHAP_USER.to_owned(),
            }
        }
        TransportArg::Nbd => match (&arguments.socket, arguments.listen) {
            (Some(socket), _) => Served::NbdSocket(std::path::absolute(socket)?),
            (None, Some(address)) => Served::Nbd(address),
            (None, None) if cfg!(unix) => Served::NbdSocket(folder.join("nbd.sock")),
            (None, None) => Served::Nbd(anywhere),
        },
    })
}

/// A secret that QEMU reads from this file, readable for its owner alone.
pub(super) fn write_secret(path: &Path) -> std::io::Result<()> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0; SECRET_CHARACTERS];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let text: Vec<u8> = random.iter().map(|byte| LETTERS[usize::from(byte % 32)]).collect();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    std::io::Write::write_all(&mut options.open(path)?, &text)
}

/// What [`write_secret`] wrote for a session.
pub(super) fn read_secret(folder: &Path) -> std::io::Result<Zeroizing<String>> {
    std::fs::read_to_string(folder.join(CHAP_SECRET)).map(Zeroizing::new)
}

/// How initiators log in to a session's target.
pub(super) fn login_of(user: &str, secret: &str) -> Authentication {
    Authentication {
        initiator: Credentials { name: user.to_owned(), secret: Secret::new(secret.to_owned()) },
        target: None,
    }
}

/// Where a session is served, as servers understand it.
fn place_of(served: &Served, folder: &Path) -> std::io::Result<Place> {
    Ok(match served {
        Served::Nbd(address) => Place::Nbd(*address),
        Served::NbdSocket(path) => {
            remove_stale(path)?;
            Place::NbdSocket(path.clone())
        }
        Served::Iscsi { portal, target, user } => {
            let login = Some(login_of(user, &read_secret(folder)?));
            Place::Iscsi(IscsiPlace { listen: *portal, target: target.clone(), login, is_listed: false })
        }
    })
}

/// A keeper that was killed leaves its socket behind. Whoever holds the session's lock may take its place; what is no
/// socket, or answers, is somebody else's.
#[cfg(unix)]
fn remove_stale(path: &PathBuf) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn remove_stale(_: &PathBuf) -> std::io::Result<()> {
    Ok(())
}
