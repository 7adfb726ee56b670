//! Servers that show devices to clients: NBD exports or the units of an iSCSI target.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use block_device::{Device, DeviceError};
use iscsi::{Authentication, BlockSize, Identity, Provisioning, TargetOptions, Targets, UnitOptions};
use nbd::{Export, Exports};

use super::login::Login;
use crate::failure::{Attempt as _, Code, Failure, chain_text};
use crate::output::note;

/// What names of our targets begin with. `internal` is nobody's domain, and kept for such names.
const TARGET_PREFIX: &str = "iqn.2026-01.internal.e3";

/// That clients are sent away is told so often.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Where clients come.
pub enum Place {
    /// NBD on an address of this machine.
    Nbd(SocketAddr),
    /// The same, over TLS and nothing else.
    NbdOverTls(SocketAddr, nbd::Tls),
    /// NBD on a Unix socket.
    NbdSocket(PathBuf),
    /// An iSCSI target.
    Iscsi(IscsiPlace),
}

/// An iSCSI target, and who may log in to it.
pub struct IscsiPlace {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its name.
    pub target: String,
    /// Whom it lets in; everyone on this machine without.
    pub login: Option<Authentication>,
    /// Whoever is on this machine may ask for its name. Windows' initiator does, before it logs in.
    pub is_listed: bool,
}

/// A disk to be shown.
pub struct Offer {
    /// What its export is called.
    pub name: String,
    /// For people.
    pub description: String,
    /// The disk.
    pub device: Arc<dyn Device>,
    /// Every write is refused.
    pub read_only: bool,
    /// Initiators may give space back. Not on a volume: Windows moves files about on thin disks (spec B.12).
    pub is_thin: bool,
    /// Logical sectors of the guest's disk.
    pub sector_bytes: u32,
    /// What its serial number follows from.
    pub identity: String,
}

/// A server that listens.
pub enum Transport {
    /// NBD.
    Nbd {
        /// The server.
        server: nbd::Server,
        /// What URIs of exports are made from.
        address: String,
    },
    /// iSCSI.
    Iscsi {
        /// The server.
        server: iscsi::Server,
        /// Where it listens.
        portal: SocketAddr,
        /// The target's name.
        target: String,
        /// How initiators log in.
        login: Login,
    },
}

impl Transport {
    /// Clients can connect when this returns.
    pub fn listen(place: Place, offers: &[Offer], what: &str) -> Result<Self, Failure> {
        match place {
            Place::Nbd(address) => listen_tcp(address, None, offers, what),
            Place::NbdOverTls(address, tls) => listen_tcp(address, Some(tls), offers, what),
            Place::NbdSocket(path) => {
                let mut server = nbd_server(offers, None, what)?;
                listen_unix(&mut server, &path, what)?;
                Ok(Self::Nbd { server, address: format!("nbd+unix://?socket={}", path.display()) })
            }
            Place::Iscsi(place) => listen_iscsi(place, offers, what),
        }
    }

    /// Where a client finds the `nth` disk.
    pub fn uri(&self, nth: usize, offer: &Offer) -> String {
        match self {
            Self::Nbd { address, .. } => match address.split_once('?') {
                Some((scheme, query)) => format!("{scheme}/{}?{query}", offer.name),
                None => format!("{address}/{}", offer.name),
            },
            Self::Iscsi { portal, target, .. } => format!("iscsi://{portal}/{target}/{nth}"),
        }
    }

    /// The address that it listens on; `None` for a socket with a name.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Nbd { address, .. } => address.split_once("://")?.1.parse().ok(),
            Self::Iscsi { portal, .. } => Some(*portal),
        }
    }

    /// Connections of clients.
    pub fn clients(&self) -> usize {
        match self {
            Self::Nbd { server, .. } => server.connections(),
            Self::Iscsi { server, .. } => server.connections(),
        }
    }

    /// Lets what is in flight finish, for at most `grace`, and flushes every disk.
    pub fn shutdown(self, grace: Duration) -> Result<(), DeviceError> {
        match self {
            Self::Nbd { server, .. } => server.shutdown(grace),
            Self::Iscsi { server, .. } => server.shutdown(grace),
        }
    }
}

/// The name of a target that belongs to what `id` names: a session or a point.
pub fn target_name(id: &str) -> String {
    format!("{TARGET_PREFIX}:{}", id.to_ascii_lowercase())
}

/// What a unit says it is: the same disk of the same session, or point, is the same disk to initiators.
pub fn identity_of(offer: &Offer) -> Identity {
    Identity::new("E3", "Restore point", "1", offer.identity.as_bytes())
}

fn listen_tcp(address: SocketAddr, tls: Option<nbd::Tls>, offers: &[Offer], what: &str) -> Result<Transport, Failure> {
    let scheme = if tls.is_some() { "nbds" } else { "nbd" };
    let mut server = nbd_server(offers, tls, what)?;
    let bound = server.listen_tcp(address).map_err(|error| {
        Failure::of(what, address.to_string(), &error).with_code(Code::Usage).with_steps(&[
            "give --listen a free address of this machine, such as 127.0.0.1:0",
            "give --socket PATH",
            "for other machines give --tls-cert, --tls-key and --tls-ca",
        ])
    })?;
    Ok(Transport::Nbd { server, address: format!("{scheme}://{bound}") })
}

fn nbd_server(offers: &[Offer], tls: Option<nbd::Tls>, what: &str) -> Result<nbd::Server, Failure> {
    let exports = offers.iter().map(|offer| Export {
        name: offer.name.clone(),
        description: offer.description.clone(),
        device: offer.device.clone(),
        read_only: offer.read_only,
    });
    let exports = Exports::new(exports).attempt(what, "")?;
    let options = nbd::ServerOptions { on_refused: tell_of_refused(), ..nbd::ServerOptions::default() };
    Ok(nbd::Server::start_with_tls(exports, options, tls))
}

/// Tells the operator why clients do not come in; not of each, for anyone who reaches the server can be one.
fn tell_of_refused() -> nbd::OnRefused {
    let last = Mutex::new(None::<Instant>);
    nbd::OnRefused::new(move |error| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= REFUSED_TOLD_EVERY) {
            *last = Some(Instant::now());
            note(&format!("warning: a client was sent away: {}", chain_text(error)));
        }
    })
}

fn listen_iscsi(place: IscsiPlace, offers: &[Offer], what: &str) -> Result<Transport, Failure> {
    let IscsiPlace { listen, target, login, is_listed } = place;
    let how = Login::of(login.as_ref());
    let unit = |(number, offer): (u8, &Offer)| {
        let block_size = if offer.sector_bytes == 4096 { BlockSize::N4096 } else { BlockSize::E512 };
        let options = UnitOptions {
            block_size,
            provisioning: if offer.is_thin { Provisioning::Thin } else { Provisioning::Thick },
            read_only: offer.read_only,
            identity: identity_of(offer),
        };
        (number, offer.device.clone(), options)
    };
    let options = TargetOptions {
        name: target.clone(),
        alias: offers.first().map(|offer| offer.description.clone()).unwrap_or_default(),
        authentication: login.clone(),
        initiators: Vec::new(),
        units: (0..=u8::MAX).zip(offers).map(unit).collect(),
    };
    let discovery = if is_listed && listen.ip().is_loopback() { None } else { login };
    let targets = Targets::new([options], discovery).map_err(|error| {
        Failure::of(what, &*target, &error).with_code(Code::Usage).with_steps(&[
            "give secrets of at least 12 characters, another one for each direction",
            "give --target a name such as iqn.2026-01.com.example:dc01",
        ])
    })?;
    let mut server = iscsi::Server::start(targets, iscsi::ServerOptions::default());
    let portal = server.listen(listen).map_err(|error| {
        Failure::of(what, listen.to_string(), &error).with_code(Code::Usage).with_steps(&[
            "give --listen a free address of this machine, such as 127.0.0.1:0",
            "give --chap-user and --chap-secret-file, so that others may be let in",
        ])
    })?;
    Ok(Transport::Iscsi { server, portal, target, login: how })
}

#[cfg(unix)]
fn listen_unix(server: &mut nbd::Server, socket: &Path, what: &str) -> Result<(), Failure> {
    server.listen_unix(socket).map_err(|error| {
        Failure::of(what, socket.display().to_string(), &error)
            .with_steps(&["give --socket a name that is not there yet, in a folder that is"])
    })
}

#[cfg(not(unix))]
fn listen_unix(_: &mut nbd::Server, socket: &Path, what: &str) -> Result<(), Failure> {
    let why = "this system has no sockets with names that NBD clients use";
    Err(Failure::new(what, socket.display().to_string(), Code::NotSupported, why)
        .with_steps(&["give --listen an address"]))
}
