//! `serve nbd` and `serve iscsi`: the disks of a point as block devices, until stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backup::{PointDisk, select_point};
use serde_json::{Value, json};
use serve::{BaseError, LayeredDevice, Session, State};

use super::restore::find_disk;
use crate::cli::{ServeCommand, ServeIscsiArgs, ServeNbdArgs, ServedArgs};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::serving::{
    IscsiPlace, Offer, Place, Sources, Transport, authentication, disk_name, identity_of, read_bytes, target_name,
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
    let ServeNbdArgs { served, listen, socket } = arguments;
    let what = format!("serve {} over NBD", served.point);
    serve(context, &served, &what, false, |_| match socket {
        Some(path) => Place::NbdSocket(path),
        None => Place::Nbd(listen),
    })
}

fn serve_iscsi(context: &Context, arguments: ServeIscsiArgs) -> Result<Outcome, Failure> {
    let ServeIscsiArgs { served, listen, target, login } = arguments;
    let what = format!("serve {} over iSCSI", served.point);
    let login = authentication(&login)?;
    // What other machines reach outlives this one.
    let guest_is_elsewhere = !listen.ip().is_loopback();
    serve(context, &served, &what, guest_is_elsewhere, |id| {
        Place::Iscsi(IscsiPlace { listen, target: target.unwrap_or_else(|| target_name(id)), login })
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
    let served = Served::open(&sources, &disks, arguments, guest_is_elsewhere, what)?;
    let id = served.session.as_ref().map_or(sources.point.id.clone(), |session| session.describe().session);
    let offers = served.offers(&sources, &disks, &id);
    let transport = Transport::listen(place(&id), &offers, what)?;
    if let Some(session) = served.session.as_ref().filter(|session| !session.state().is_serving()) {
        session.serving().attempt(what, &*on)?;
    }
    announce(context, &sources, &disks, &offers, &transport, arguments);

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
    disks: &[PointDisk],
    offers: &[Offer],
    transport: &Transport,
    arguments: &ServedArgs,
) {
    let shown: Vec<(usize, &PointDisk, &Offer, String)> = disks
        .iter()
        .zip(offers)
        .enumerate()
        .map(|(nth, (disk, offer))| (nth, disk, offer, transport.uri(nth, offer)))
        .collect();
    if context.global.json {
        let mut told = json!({
            "type": "serving",
            "point_id": sources.point.id,
            "vm_id": sources.point.vm_id,
            "vm_name": sources.point.vm_name,
            "writes": arguments.writes.as_ref().map(|folder| folder.display().to_string()),
        });
        let each = |(nth, disk, offer, uri): &(usize, &PointDisk, &Offer, String)| {
            let mut one = json!({
                "uri": uri,
                "disk": disk.number,
                "virtual_disk_id": disk.virtual_disk_id,
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
    for (_, disk, offer, uri) in &shown {
        if context.global.quiet {
            line(uri);
        } else {
            let slot = &disk.slot;
            let bytes = size(offer.device.size_bytes());
            line(&visible(&format!("serving  {uri}   disk {}, {slot}, {bytes}", disk.number)));
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

/// Devices in the order of their disks, with the session they belong to.
struct Served {
    devices: Vec<Arc<LayeredDevice>>,
    session: Option<Session>,
}

impl Served {
    fn open(
        sources: &Sources,
        disks: &[PointDisk],
        arguments: &ServedArgs,
        guest_is_elsewhere: bool,
        what: &str,
    ) -> Result<Self, Failure> {
        let Some(folder) = &arguments.writes else {
            let devices: Result<_, BaseError> = disks.iter().map(|disk| sources.read_only(disk)).collect();
            let devices = devices.attempt(what, sources.repo.display_name())?;
            return Ok(Self { devices, session: None });
        };
        let on = folder.display().to_string();
        let new = serve::new_session_id();
        let session = sources.session(disks, folder, new, guest_is_elsewhere, &|disk| sources.base(disk));
        let session = session.attempt(what, &*on)?;
        if session.state() == State::NeedsRestart && !arguments.guest_restarted {
            let why = "power was lost here under a guest of another machine: it may rely on writes that are gone";
            return Err(Failure::new(what, on, Code::NotConfirmed, why)
                .with_steps(&["stop or restart the VM, then say --guest-restarted", "delete the folder"]));
        }
        if session.disks().count() != disks.len() {
            let why = "the session there serves other disks than those asked for";
            return Err(Failure::new(what, on, Code::Usage, why)
                .with_steps(&["give the same --disk as when it was begun", "give --writes another folder"]));
        }
        let devices = session.disks().map(|(_, device)| device.clone()).collect();
        Ok(Self { devices, session: Some(session) })
    }

    fn offers(&self, sources: &Sources, disks: &[PointDisk], id: &str) -> Vec<Offer> {
        let offer = |(disk, device): (&PointDisk, &Arc<LayeredDevice>)| Offer {
            name: disk_name(disk),
            description: format!("{} disk {} of point {}", sources.point.vm_name, disk.number, sources.point.id),
            device: device.clone(),
            read_only: self.session.is_none(),
            sector_bytes: disk.logical_sector_bytes,
            identity: format!("{id}/{}", disk.virtual_disk_id),
        };
        disks.iter().zip(&self.devices).map(offer).collect()
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
