//! `serve nbd` and `serve iscsi`: the disks of a point as block devices, until stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backup::{PointDisk, select_point};
use serde_json::{Value, json};
use serve::{BaseError, LayeredDevice, Session, SessionError, State, disk_id_of, volume_id};

use super::restore::find_disk;
use crate::cli::{ServeCommand, ServeIscsiArgs, ServeNbdArgs, ServedArgs};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::serving::{
    IscsiPlace, Item, Offer, Place, Sources, Transport, authentication, disk_name, identity_of, read_bytes, target_name,
};
use crate::units::{size, visible};

/// How long requests in flight may take when the program is stopped.
const GRACE: Duration = Duration::from_secs(10);
/// How often overlays are tended.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `serve …`
pub fn run(context: &Context, command: ServeCommand) -> Result<Outcome, Failure> {
    match command {
        ServeCommand::Nbd(arguments) => serve_nbd(context, arguments),
        ServeCommand::Iscsi(arguments) => serve_iscsi(context, arguments),
    }
}

fn serve_nbd(context: &Context, arguments: ServeNbdArgs) -> Result<Outcome, Failure> {
    let ServeNbdArgs { served, listen, socket, tls } = arguments;
    let what = format!("serve {} over NBD", served.point);
    let tls = crate::serving::tls(&tls)?;
    // What other machines reach outlives this one.
    let guest_is_elsewhere = socket.is_none() && !listen.ip().is_loopback();
    serve(context, &served, &what, guest_is_elsewhere, |_| match (socket, tls) {
        (Some(path), _) => Place::NbdSocket(path),
        (None, Some(tls)) => Place::NbdOverTls(listen, tls),
        (None, None) => Place::Nbd(listen),
    })
}

fn serve_iscsi(context: &Context, arguments: ServeIscsiArgs) -> Result<Outcome, Failure> {
    let ServeIscsiArgs { served, listen, target, login } = arguments;
    let what = format!("serve {} over iSCSI", served.point);
    let login = authentication(&login)?;
    // What other machines reach outlives this one.
    let guest_is_elsewhere = !listen.ip().is_loopback();
    serve(context, &served, &what, guest_is_elsewhere, |id| {
        Place::Iscsi(IscsiPlace { listen, target: target.unwrap_or_else(|| target_name(id)), login, is_listed: false })
    })
}

/// `place` is told the id of the session, or without one of the point.
fn serve(
    context: &Context,
    arguments: &ServedArgs,
    what: &str,
    guest_is_elsewhere: bool,
    place: impl FnOnce(&str) -> Place,
) -> Result<Outcome, Failure> {
    let repo = context.repository_for_serving()?;
    let on = repo.display_name();
    let point = select_point(&repo, &arguments.point).attempt(what, &*on)?;
    let description = point.describe(&repo).attempt(what, &*on)?;
    let disks = match &arguments.disk {
        Some(disk) => vec![find_disk(&description.disks, Some(disk), what, &on)?.clone()],
        None => description.disks.clone(),
    };
    let sources = Sources::open(repo, point, description, &arguments.cache).attempt(what, &*on)?;
    let id = session_id(&sources, arguments).attempt(what, &*on)?;
    let shown = if arguments.volume { vec![Shown::Volume] } else { disks.iter().map(Shown::Disk).collect() };
    let items: Vec<Item<'_>> = shown.iter().map(|shown| shown.item(&sources, id)).collect();
    let served = Served::open(&sources, &items, arguments, id, guest_is_elsewhere, what)?;
    drop(items);
    let id = served.session.as_ref().map_or(sources.point.id.clone(), |session| session.describe().session);
    let offers = served.offers(&sources, &shown, &id);
    let transport = Transport::listen(place(&id), &offers, what)?;
    if let Some(session) = served.session.as_ref().filter(|session| !session.state().is_serving()) {
        session.serving().attempt(what, &*on)?;
    }
    announce(context, &sources, &shown, &offers, &transport, arguments);

    let interrupt = Interrupt::watch();
    let begun = Instant::now();
    let is_over = || interrupt.is_asked() || arguments.stop_after.is_some_and(|time| begun.elapsed() >= time);
    let mut told = Vec::new();
    let mut until_tended = Duration::ZERO;
    while !is_over() {
        std::thread::sleep(LOOK_EVERY);
        until_tended += LOOK_EVERY;
        if until_tended >= TEND_EVERY {
            until_tended = Duration::ZERO;
            tell(served.tend(), &mut told);
        }
    }
    transport.shutdown(GRACE).attempt(what, on)?;
    if context.global.json {
        json_line(&json!({
            "type": "result",
            "point_id": sources.point.id,
            "vm_id": sources.point.vm_id,
            "vm_name": sources.point.vm_name,
            "read_bytes": read_bytes(&sources.metrics),
            "exit": 0,
        }));
    } else if let Some(folder) = &arguments.writes {
        note(&format!("kept     what was written is in {}; the same command goes on with it", folder.display()));
    }
    Ok(Outcome::DONE)
}

/// Problems are told when they begin and when they end.
pub fn tell(problems: Vec<String>, told: &mut Vec<String>) {
    for problem in problems.iter().filter(|problem| !told.contains(problem)) {
        note(&visible(&format!("trouble  {problem}; what is here goes on being served")));
    }
    if problems.is_empty() && !told.is_empty() {
        note("well     the trouble is over");
    }
    *told = problems;
}

fn announce(
    context: &Context,
    sources: &Sources,
    shown: &[Shown<'_>],
    offers: &[Offer],
    transport: &Transport,
    arguments: &ServedArgs,
) {
    let shown: Vec<(usize, &Shown<'_>, &Offer, String)> = shown
        .iter()
        .zip(offers)
        .enumerate()
        .map(|(nth, (shown, offer))| (nth, shown, offer, transport.uri(nth, offer)))
        .collect();
    if context.global.json {
        let mut told = json!({
            "type": "serving",
            "point_id": sources.point.id,
            "vm_id": sources.point.vm_id,
            "vm_name": sources.point.vm_name,
            "writes": arguments.writes.as_ref().map(|folder| folder.display().to_string()),
        });
        let each = |(nth, shown, offer, uri): &(usize, &Shown<'_>, &Offer, String)| {
            let mut one = json!({
                "uri": uri,
                "disk": shown.disk().map(|disk| disk.number),
                "virtual_disk_id": shown.disk().map(|disk| &disk.virtual_disk_id),
                "size_bytes": offer.device.size_bytes(),
            });
            match transport {
                Transport::Nbd { .. } => one["name"] = json!(offer.name),
                Transport::Iscsi { .. } => {
                    one["lun"] = json!(nth);
                    one["serial"] = json!(identity_of(offer).serial());
                }
            }
            one
        };
        let each: Vec<Value> = shown.iter().map(each).collect();
        match transport {
            Transport::Nbd { .. } => told["exports"] = json!(each),
            Transport::Iscsi { portal, target, login, .. } => {
                told["units"] = json!(each);
                told["portal"] = json!(portal);
                told["target"] = json!(target);
                told["login"] = json!(login.name());
            }
        }
        json_line(&told);
        return;
    }
    for (_, shown, offer, uri) in &shown {
        if context.global.quiet {
            line(uri);
        } else {
            let bytes = size(offer.device.size_bytes());
            let text = match shown {
                Shown::Disk(disk) => format!("disk {}, {}, {bytes}", disk.number, disk.slot),
                Shown::Volume => format!("NTFS volume, {bytes}, with {} .vhdx", sources.description.disks.len()),
            };
            line(&visible(&format!("serving  {uri}   {text}")));
        }
    }
    if let Transport::Iscsi { portal, .. } = transport
        && !portal.ip().is_loopback()
    {
        note("plain    iSCSI encrypts nothing: whoever can watch this network reads the disks; use one of its own");
    }
    let writes = &arguments.writes;
    let writes = writes.as_ref().map_or("read-only".into(), |folder| format!("writes go to {}", folder.display()));
    note(&visible(&format!("until    Ctrl+C; {writes}")));
}

/// What one device is.
enum Shown<'a> {
    /// A disk of the VM.
    Disk(&'a PointDisk),
    /// A volume with all of them as files.
    Volume,
}

impl Shown<'_> {
    fn disk(&self) -> Option<&PointDisk> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Volume => None,
        }
    }

    fn name(&self) -> String {
        self.disk().map_or("volume".to_owned(), disk_name)
    }

    fn item<'s>(&'s self, sources: &'s Sources, id: [u8; 16]) -> Item<'s> {
        match self {
            Self::Disk(disk) => {
                let open = Box::new(|| sources.base(disk));
                Item { id: disk_id_of(disk), name: self.name(), open }
            }
            Self::Volume => Item { id: volume_id(), name: self.name(), open: Box::new(move || sources.volume(id)) },
        }
    }
}

/// The id of the session that is there, of a new one, or where nothing is written the point's: what is made up for a
/// volume follows from it.
fn session_id(sources: &Sources, arguments: &ServedArgs) -> Result<[u8; 16], SessionError> {
    // Nothing but the look of a volume follows from a point's.
    let Some(folder) = &arguments.writes else { return Ok(serve::id_of(&sources.point.id).unwrap_or_default()) };
    match serve::read_session(folder)? {
        Some(state) => serve::id_of(&state.session)
            .ok_or_else(|| SessionError::Damaged { folder: folder.clone(), problem: "its id is no id" }),
        None => Ok(serve::new_session_id()),
    }
}

/// Devices in the order of their disks, with the session they belong to.
struct Served {
    devices: Vec<Arc<LayeredDevice>>,
    session: Option<Session>,
}

impl Served {
    fn open(
        sources: &Sources,
        items: &[Item<'_>],
        arguments: &ServedArgs,
        id: [u8; 16],
        guest_is_elsewhere: bool,
        what: &str,
    ) -> Result<Self, Failure> {
        let Some(folder) = &arguments.writes else {
            let devices: Result<_, BaseError> = items.iter().map(|item| sources.read_only(item)).collect();
            let devices = devices.attempt(what, sources.repo.display_name())?;
            return Ok(Self { devices, session: None });
        };
        let on = folder.display().to_string();
        let session = sources.session(items, folder, id, guest_is_elsewhere).attempt(what, &*on)?;
        if session.state() == State::NeedsRestart && !arguments.guest_restarted {
            let why = "power was lost here under a guest of another machine: it may rely on writes that are gone";
            return Err(Failure::new(what, on, Code::NotConfirmed, why)
                .with_steps(&["stop or restart the VM, then say --guest-restarted", "delete the folder"]));
        }
        if session.disks().count() != items.len() {
            let why = "the session there serves other disks than those asked for";
            return Err(Failure::new(what, on, Code::Usage, why)
                .with_steps(&["give the same --disk as when it was begun", "give --writes another folder"]));
        }
        let devices = session.disks().map(|(_, device)| device.clone()).collect();
        Ok(Self { devices, session: Some(session) })
    }

    fn offers(&self, sources: &Sources, shown: &[Shown<'_>], id: &str) -> Vec<Offer> {
        let offer = |(shown, device): (&Shown<'_>, &Arc<LayeredDevice>)| Offer {
            name: shown.name(),
            description: format!("{} {} of point {}", sources.point.vm_name, shown.name(), sources.point.id),
            device: device.clone(),
            read_only: self.session.is_none(),
            is_thin: shown.disk().is_some(),
            sector_bytes: shown.disk().map_or(512, |disk| disk.logical_sector_bytes),
            identity: format!("{id}/{}", shown.disk().map_or("volume", |disk| &disk.virtual_disk_id)),
        };
        shown.iter().zip(&self.devices).map(offer).collect()
    }

    fn tend(&self) -> Vec<String> {
        let mut problems: Vec<String> = match &self.session {
            Some(session) => session.tend(),
            None => self.devices.iter().filter_map(|device| device.base().trouble()).collect(),
        };
        problems.sort();
        problems.dedup();
        problems
    }
}
