//! `serve nbd`: the disks of a point as block devices, until stopped.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup::{Point, PointDescription, PointDisk, select_point};
use kopia_repo::Repository;
use nbd::{Device, Export, Exports, Server, ServerOptions};
use serde_json::json;
use serve::overlay::OverlayOptions;
use serve::{
    About, BaseError, CachedBase, DiskBase, DiskCache, LayeredDevice, MemoryCache, Metrics, NewDisk, PointBase,
    Prefetch, Session, SessionParts, Source, disk_id_of, os_boot_id, overlay_secret, read_boot_set,
};

use super::restore::find_disk;
use crate::cli::{ServeCommand, ServeNbdArgs};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
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
        ServeCommand::Nbd(arguments) => serve_nbd(context, &arguments),
    }
}

fn serve_nbd(context: &Context, arguments: &ServeNbdArgs) -> Result<Outcome, Failure> {
    let selector = &arguments.point;
    let what = format!("serve {selector} over NBD");
    let repo = context.repository()?;
    let on = repo.display_name();
    let point = select_point(&repo, selector).attempt(&*what, &*on)?;
    let description = point.describe(&repo).attempt(&*what, &*on)?;
    let all: Vec<&PointDisk> = description.disks.iter().collect();
    let disks = match &arguments.disk {
        Some(disk) => vec![find_disk(&description.disks, Some(disk), &what, &on)?],
        None => all,
    };
    let metrics = Arc::new(Metrics::default());
    let bases = Bases::open(&repo, &point, &description, arguments, &metrics).attempt(&*what, &*on)?;
    let served = match &arguments.writes {
        Some(folder) => bases.with_writes(&disks, folder, &what)?,
        None => bases.read_only(&disks).attempt(&*what, &*on)?,
    };
    let exports = served.devices.iter().zip(&disks).map(|((name, device), disk)| Export {
        name: name.clone(),
        description: format!("{} disk {} of point {}", point.vm_name, disk.number, point.id),
        device: device.clone(),
        read_only: arguments.writes.is_none(),
    });
    let exports = Exports::new(exports).attempt(&*what, &*on)?;
    let mut server = Server::start(exports, ServerOptions::default());
    let address = listen(&mut server, arguments).map_err(|failure| failure.with_what(&what))?;
    if let Some(session) = served.session.as_ref().filter(|session| !session.state().is_serving()) {
        session.serving().attempt(&*what, &*on)?;
    }
    announce(context, &point, &disks, &served, &address, arguments.writes.as_deref());

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
    server.shutdown(GRACE).attempt(what, on)?;
    if context.global.json {
        let read = |source| metrics.bytes_from(source);
        json_line(&json!({
            "type": "result",
            "point_id": point.id,
            "vm_id": point.vm_id,
            "vm_name": point.vm_name,
            "read_bytes": {
                "overlay": read(Source::Overlay),
                "target": read(Source::Target),
                "memory": read(Source::Memory),
                "disk_cache": read(Source::DiskCache),
                "repository": read(Source::Repository),
                "zero": read(Source::Zero),
            },
            "exit": 0,
        }));
    } else if let Some(folder) = &arguments.writes {
        note(&format!("kept     what was written is in {}; the same command goes on with it", folder.display()));
    }
    Ok(Outcome::DONE)
}

/// Problems are told when they begin and when they end.
fn tell(problems: Vec<String>, told: &mut Vec<String>) {
    for problem in problems.iter().filter(|problem| !told.contains(problem)) {
        note(&visible(&format!("trouble  {problem}; what is here goes on being served")));
    }
    if problems.is_empty() && !told.is_empty() {
        note("well     the trouble is over");
    }
    *told = problems;
}

fn listen(server: &mut Server, arguments: &ServeNbdArgs) -> Result<String, Failure> {
    let Some(socket) = &arguments.socket else {
        let address = server.listen_tcp(arguments.listen).map_err(|error| {
            Failure::of("listen", arguments.listen.to_string(), &error).with_code(Code::Usage).with_steps(&[
                "give --listen a free address of this machine, such as 127.0.0.1:0",
                "give --socket PATH",
            ])
        })?;
        return Ok(format!("nbd://{address}"));
    };
    listen_unix(server, socket)?;
    Ok(format!("nbd+unix://?socket={}", socket.display()))
}

#[cfg(unix)]
fn listen_unix(server: &mut Server, socket: &Path) -> Result<(), Failure> {
    server.listen_unix(socket).map_err(|error| {
        Failure::of("listen", socket.display().to_string(), &error)
            .with_steps(&["give --socket a name that is not there yet, in a folder that is"])
    })
}

#[cfg(not(unix))]
fn listen_unix(_: &mut Server, socket: &Path) -> Result<(), Failure> {
    let why = "this system has no sockets with names that NBD clients use";
    Err(Failure::new("listen", socket.display().to_string(), Code::NotSupported, why)
        .with_steps(&["give --listen an address"]))
}

fn uri(address: &str, export: &str) -> String {
    match address.split_once('?') {
        Some((scheme, query)) => format!("{scheme}/{export}?{query}"),
        None => format!("{address}/{export}"),
    }
}

fn announce(
    context: &Context,
    point: &Point,
    disks: &[&PointDisk],
    served: &Served,
    address: &str,
    writes: Option<&Path>,
) {
    let uris: Vec<String> = served.devices.iter().map(|(name, _)| uri(address, name)).collect();
    if context.global.json {
        let exports = disks.iter().zip(&served.devices).zip(&uris).map(|((disk, (name, device)), uri)| {
            json!({
                "name": name,
                "uri": uri,
                "disk": disk.number,
                "virtual_disk_id": disk.virtual_disk_id,
                "size_bytes": device.size_bytes(),
            })
        });
        json_line(&json!({
            "type": "serving",
            "point_id": point.id,
            "vm_id": point.vm_id,
            "vm_name": point.vm_name,
            "writes": writes.map(|folder| folder.display().to_string()),
            "exports": exports.collect::<Vec<_>>(),
        }));
        return;
    }
    for ((disk, (_, device)), uri) in disks.iter().zip(&served.devices).zip(&uris) {
        if context.global.quiet {
            line(uri);
        } else {
            let slot = &disk.slot;
            line(&visible(&format!("serving  {uri}   disk {}, {slot}, {}", disk.number, size(device.size_bytes()))));
        }
    }
    let writes = writes.map_or("read-only".into(), |folder| format!("writes go to {}", folder.display()));
    note(&visible(&format!("until    Ctrl+C; {writes}")));
}

/// What the bases of a point's disks are opened with.
struct Bases<'a> {
    repo: &'a Arc<Repository>,
    point: &'a Point,
    boot_set: Option<serve::BootSet>,
    cache: Option<Arc<DiskCache>>,
    memory: Arc<MemoryCache>,
    metrics: &'a Arc<Metrics>,
    guest_is_elsewhere: bool,
}

/// Devices by the names of their exports, with the session they belong to.
struct Served {
    devices: Vec<(String, Arc<LayeredDevice>)>,
    session: Option<Session>,
}

impl Served {
    fn tend(&self) -> Vec<String> {
        let mut problems: Vec<String> = match &self.session {
            Some(session) => session.tend(),
            None => self.devices.iter().filter_map(|(_, device)| device.base().trouble()).collect(),
        };
        problems.sort();
        problems.dedup();
        problems
    }
}

impl<'a> Bases<'a> {
    fn open(
        repo: &'a Arc<Repository>,
        point: &'a Point,
        description: &PointDescription,
        arguments: &ServeNbdArgs,
        metrics: &'a Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let cache = match &arguments.cache {
            Some(folder) => Some(Arc::new(DiskCache::open(folder, arguments.cache_size)?)),
            None => None,
        };
        // A hint: without it the first reads wait a little longer.
        let boot_set = read_boot_set(repo, &description.vm_id).ok().flatten();
        let memory = MemoryCache::new(arguments.memory);
        // Only this machine can connect: neither TLS nor another transport is there.
        Ok(Self { repo, point, boot_set, cache, memory, metrics, guest_is_elsewhere: false })
    }

    fn base(&self, disk: &PointDisk) -> Result<DiskBase, BaseError> {
        let failed = |error: &dyn std::fmt::Display| BaseError {
            is_unreachable: false,
            message: format!("open disk {} of the point: {error}", disk.number),
        };
        let object = self.point.open_disk(self.repo, disk).map_err(|error| failed(&error))?;
        let base = Arc::new(PointBase::new(object, disk, self.cache.clone()));
        let base = Arc::new(CachedBase::new(base, self.memory.clone(), self.metrics.clone()));
        let order = self.boot_set.as_ref().map_or(&[][..], |set| set.order(&disk.virtual_disk_id, disk.segment_bytes));
        let prefetch = Prefetch::start(base.clone(), self.metrics.clone(), order).map_err(|error| failed(&error))?;
        Ok(DiskBase { base, prefetch: Some(prefetch) })
    }

    fn read_only(&self, disks: &[&PointDisk]) -> Result<Served, BaseError> {
        let mut devices = Vec::new();
        for disk in disks {
            let DiskBase { base, prefetch } = self.base(disk)?;
            let mut device = LayeredDevice::new(base, None, self.metrics.clone());
            if let Some(prefetch) = prefetch {
                device = device.with_prefetch(prefetch);
            }
            devices.push((export_name(disk), Arc::new(device)));
        }
        Ok(Served { devices, session: None })
    }

    /// With a session in `folder`: the one that is there, or a new one.
    fn with_writes(&self, disks: &[&PointDisk], folder: &Path, what: &str) -> Result<Served, Failure> {
        let on = folder.display().to_string();
        let parts = SessionParts {
            folder: folder.to_owned(),
            secret: *overlay_secret(self.repo),
            // Without an id every restart counts as a loss of power.
            boot_id: os_boot_id().unwrap_or_else(random_id),
            options: OverlayOptions::default(),
            metrics: self.metrics.clone(),
        };
        let session = if folder.join(serve::STATE_NAME).exists() {
            Session::resume(parts, &|state| {
                let disk = disks.iter().find(|disk| serve::id_text(&disk_id_of(disk)) == state.disk);
                let Some(disk) = disk else {
                    let message = format!("{} is not among the disks of this point that were asked for", state.name);
                    return Err(BaseError { is_unreachable: false, message });
                };
                self.base(disk)
            })
            .attempt(what, &*on)?
        } else {
            let about = About {
                point_id: self.point.id.clone(),
                vm_id: self.point.vm_id.clone(),
                guest_is_elsewhere: self.guest_is_elsewhere,
            };
            let new = |disk: &&PointDisk| -> Result<NewDisk, BaseError> {
                Ok(NewDisk { disk: disk_id_of(disk), name: export_name(disk), base: self.base(disk)? })
            };
            let disks = disks.iter().map(new).collect::<Result<_, _>>().attempt(what, &*on)?;
            Session::create(parts, serve::new_session_id(), &about, disks).attempt(what, &*on)?
        };
        if session.disks().count() != disks.len() {
            let why = "the session there serves other disks than those asked for";
            return Err(Failure::new(what, on, Code::Usage, why)
                .with_steps(&["give the same --disk as when it was begun", "give --writes another folder"]));
        }
        let devices = session.disks().map(|(name, device)| (name.to_owned(), device.clone())).collect();
        Ok(Served { devices, session: Some(session) })
    }
}

fn export_name(disk: &PointDisk) -> String {
    format!("disk{}", disk.number)
}

fn random_id() -> String {
    serve::id_text(&serve::new_session_id())
}
