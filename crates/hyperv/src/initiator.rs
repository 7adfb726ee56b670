//! The iSCSI initiator of Windows, through `root\Microsoft\Windows\Storage` (spec 7.2).
//!
//! Sessions are never persistent: after a restart of the host the target is not there yet, and a persistent login would
//! hold up the boot. Every step can be repeated, and touches only what carries the caller's target name or portal.

use std::time::Duration;

use crate::disk_file::unexpected;
use crate::seam::{CimValue, Instance, MethodOutput, Namespace, ObjectPath};
use crate::{Error, Host, wql};

const SERVICE: &str = "MSiSCSI";
const PORTAL: &str = "MSFT_iSCSITargetPortal";
const TARGET: &str = "MSFT_iSCSITarget";
const SESSION: &str = "MSFT_iSCSISession";

pub(crate) const START_SERVICE: &str = "StartService";

/// "The target has already been logged in via an iSCSI session": what was wanted (spec 7.2).
pub(crate) const SESSION_EXISTS: u32 = 0xEFFF_0016;
/// "The session is in use": worth another try (spec 7.2).
pub(crate) const SESSION_BUSY: u32 = 0xEFFF_001F;

/// How often a target that does not appear, or a session that is busy, is asked for again.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Where a target listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPortal {
    /// Address, in numbers.
    pub address: String,
    /// TCP port.
    pub port: u16,
}

/// A target, and how to log in to it with one-way CHAP.
#[derive(Clone, PartialEq, Eq)]
pub struct TargetLogin {
    /// Where it listens.
    pub portal: TargetPortal,
    /// Its name (IQN).
    pub target: String,
    /// Who logs in.
    pub user: String,
    /// 12 to 16 characters, or Windows refuses it (spec 7.2).
    pub secret: String,
}

// By hand: a secret is not for traces.
impl std::fmt::Debug for TargetLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetLogin")
            .field("portal", &self.portal)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// The initiator's service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitiatorService {
    /// `Running`, `Stopped`, …
    pub state: String,
    /// `Auto`, `Manual`, `Disabled`.
    pub start_mode: String,
}

impl InitiatorService {
    /// Whether it can be used now.
    pub fn is_running(&self) -> bool {
        self.state == "Running"
    }

    /// Whether it could be started.
    pub fn can_start(&self) -> bool {
        self.is_running() || self.start_mode != "Disabled"
    }
}

/// A session of the host with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitiatorSession {
    /// Its id.
    pub id: String,
    /// The target's name.
    pub target: String,
    /// Whether it is connected now; one that is not tries again by itself.
    pub is_connected: bool,
}

impl Host {
    /// The initiator's service; `None` where Windows lacks it.
    pub fn initiator_service(&self) -> Result<Option<InitiatorService>, Error> {
        Ok(self.service_instance("look at the iSCSI initiator's service")?.as_ref().map(initiator_service))
    }

    /// Starts the initiator's service if it does not run; `true` when it had to be started. Its start type stays: sessions
    /// are not persistent, so nothing has to come back after a restart.
    pub fn start_initiator(&self) -> Result<bool, Error> {
        let attempt = "start the iSCSI initiator's service";
        let Some(instance) = self.service_instance(attempt)? else {
            return Err(Error::Missing { attempt: attempt.to_owned(), what: format!("the service {SERVICE}") });
        };
        let service = initiator_service(&instance);
        if service.is_running() {
            return Ok(false);
        }
        if !service.can_start() {
            return Err(unexpected(
                attempt,
                format!("the service {SERVICE} is disabled; set its start type to manual"),
            ));
        }
        let path = instance.path.ok_or_else(|| unexpected(attempt, "the service has no object path".into()))?;
        let output = self.call_once(attempt, Namespace::Cimv2, &path, START_SERVICE, &[])?;
        // 10: it runs already.
        match output.return_value {
            0 | 10 => {}
            code => return Err(Error::Refused { attempt: attempt.to_owned(), method: START_SERVICE, code }),
        }
        for _ in 0..TRIES {
            if self.initiator_service()?.is_some_and(|service| service.is_running()) {
                return Ok(true);
            }
            self.seam.clock.sleep(BETWEEN_TRIES);
        }
        Err(unexpected(attempt, "it was started, and does not run".into()))
    }

    fn service_instance(&self, attempt: &str) -> Result<Option<Instance>, Error> {
        let found = self.query(attempt, Namespace::Cimv2, &wql::by("Win32_Service", "Name", SERVICE))?;
        Ok(found.into_iter().next())
    }

    /// Whether the initiator knows a portal.
    pub fn knows_portal(&self, portal: &TargetPortal) -> Result<bool, Error> {
        Ok(!self.portals("look at the portals of the iSCSI initiator", portal)?.is_empty())
    }

    /// Tells the initiator where a target listens. A portal that it knows is a success.
    pub fn add_portal(&self, portal: &TargetPortal) -> Result<(), Error> {
        let attempt = format!("make the portal {}:{} known to the iSCSI initiator", portal.address, portal.port);
        if !self.portals(&attempt, portal)?.is_empty() {
            return Ok(());
        }
        let parameters =
            [("TargetPortalAddress", text(&portal.address)), ("TargetPortalPortNumber", CimValue::Uint16(portal.port))];
        self.storage(&attempt, &ObjectPath::of_class(PORTAL), "New", &parameters).map(drop)
    }

    /// Takes a portal out of the initiator again. One that it does not know is a success.
    pub fn remove_portal(&self, portal: &TargetPortal) -> Result<(), Error> {
        let attempt = format!("take the portal {}:{} out of the iSCSI initiator", portal.address, portal.port);
        for path in self.portals(&attempt, portal)? {
            self.storage(&attempt, &path, "Remove", &[])?;
        }
        Ok(())
    }

    /// Logs in to a target whose portal is known. A session that there is already is a success.
    pub fn connect_target(&self, login: &TargetLogin) -> Result<(), Error> {
        let attempt = format!("log in to the iSCSI target {}", login.target);
        let attempt = attempt.as_str();
        if self.target_sessions(&login.target)?.iter().any(|session| session.is_connected) {
            return Ok(());
        }
        let target = self.discovered(attempt, login)?;
        self.storage(attempt, &target, "Update", &[])?;
        let parameters = [
            ("NodeAddress", text(&login.target)),
            ("TargetPortalAddress", text(&login.portal.address)),
            ("TargetPortalPortNumber", CimValue::Uint16(login.portal.port)),
            ("IsDataDigest", CimValue::Boolean(false)),
            ("IsHeaderDigest", CimValue::Boolean(false)),
            ("ReportToPnP", CimValue::Boolean(true)),
            ("AuthenticationType", text("ONEWAYCHAP")),
            ("ChapUsername", text(&login.user)),
            ("ChapSecret", text(&login.secret)),
            ("IsMultipathEnabled", CimValue::Boolean(false)),
            ("IsPersistent", CimValue::Boolean(false)),
        ];
        match self.storage(attempt, &ObjectPath::of_class(TARGET), "Connect", &parameters) {
            Ok(_) => Ok(()),
            Err(Error::Refused { code: SESSION_EXISTS, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The host's sessions with a target.
    pub fn target_sessions(&self, target: &str) -> Result<Vec<InitiatorSession>, Error> {
        let attempt = format!("look at the sessions with the iSCSI target {target}");
        let query = wql::by(SESSION, "TargetNodeAddress", target);
        let found = self.query(&attempt, Namespace::Storage, &query)?;
        Ok(found
            .iter()
            .map(|session| InitiatorSession {
                id: session.get("SessionIdentifier").as_str().unwrap_or_default().to_owned(),
                target: session.get("TargetNodeAddress").as_str().unwrap_or_default().to_owned(),
                is_connected: session.get("IsConnected").as_bool() == Some(true),
            })
            .collect())
    }

    /// Logs out of a target. Without a session it is a success; its disks must be off-line.
    pub fn disconnect_target(&self, target: &str) -> Result<(), Error> {
        let attempt = format!("log out of the iSCSI target {target}");
        for session in self.target_sessions(target)? {
            let found = self.query(&attempt, Namespace::Storage, &wql::by(TARGET, "NodeAddress", target))?;
            let Some(path) = found.into_iter().find_map(|target| target.path) else {
                return Err(unexpected(&attempt, "the host has a session with it, and does not list it".into()));
            };
            let mut tries = 0;
            loop {
                match self.storage(&attempt, &path, "Disconnect", &[("SessionIdentifier", text(&session.id))]) {
                    Ok(_) => break,
                    Err(Error::Refused { code: SESSION_BUSY, .. }) if tries < TRIES => {
                        tries += 1;
                        self.seam.clock.sleep(BETWEEN_TRIES);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn portals(&self, attempt: &str, portal: &TargetPortal) -> Result<Vec<ObjectPath>, Error> {
        let query = wql::by(PORTAL, "TargetPortalAddress", &portal.address);
        let found = self.query(attempt, Namespace::Storage, &query)?;
        let is_it = |port: Option<u64>| port == Some(portal.port.into());
        let found = found.into_iter().filter(|one| is_it(one.get("TargetPortalPortNumber").as_u64()));
        Ok(found.filter_map(|one| one.path).collect())
    }

    /// The target among those that the portals told of; they are asked again while it is not there.
    fn discovered(&self, attempt: &str, login: &TargetLogin) -> Result<ObjectPath, Error> {
        for _ in 0..TRIES {
            let found = self.query(attempt, Namespace::Storage, &wql::by(TARGET, "NodeAddress", &login.target))?;
            if let Some(path) = found.into_iter().find_map(|target| target.path) {
                return Ok(path);
            }
            for portal in self.portals(attempt, &login.portal)? {
                self.storage(attempt, &portal, "Update", &[])?;
            }
            self.seam.clock.sleep(BETWEEN_TRIES);
        }
        let TargetPortal { address, port } = &login.portal;
        Err(unexpected(attempt, format!("{address}:{port} does not list it")))
    }

    /// A method of the storage namespace; anything but 0 is a refusal.
    pub(crate) fn storage(
        &self,
        attempt: &str,
        object: &ObjectPath,
        method: &'static str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, Error> {
        let output = self.call_once(attempt, Namespace::Storage, object, method, parameters)?;
        match output.return_value {
            0 => Ok(output),
            code => Err(Error::Refused { attempt: attempt.to_owned(), method, code }),
        }
    }

    /// A method that changes something, called once: whether a lost call was done shows only when it is looked again.
    fn call_once(
        &self,
        attempt: &str,
        namespace: Namespace,
        object: &ObjectPath,
        method: &'static str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, Error> {
        let called = self.seam.wmi.call(namespace, object, method, parameters);
        called.map_err(|source| Error::Wmi { attempt: attempt.to_owned(), source })
    }
}

fn initiator_service(instance: &Instance) -> InitiatorService {
    let text = |name| instance.get(name).as_str().unwrap_or_default().to_owned();
    InitiatorService { state: text("State"), start_mode: text("StartMode") }
}

fn text(value: &str) -> CimValue {
    CimValue::String(value.to_owned())
}
