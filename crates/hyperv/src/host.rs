//! One Hyper-V host: the way in, and the calls that everything else is made of.

use std::time::Duration;

use crate::error::{INVALID_NAMESPACE, NOT_FOUND, service_is_gone};
use crate::seam::{Instance, MethodOutput, Namespace, ObjectPath, Seam, WmiError};
use crate::{Error, ErrorKind, wql};

/// One Hyper-V host. Cheap to clone; calls block, and may run concurrently for different VMs.
///
/// Calls that change a VM must not overlap on the same VM (spec 8.3): the caller holds a lock per VM.
#[derive(Clone)]
pub struct Host {
    pub(crate) seam: Seam,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// What a host can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The computer's name.
    pub name: String,
    /// `Win32_OperatingSystem.Caption`, if it answered.
    pub os_caption: Option<String>,
    /// `Win32_OperatingSystem.Version`, such as `10.0.20348`.
    pub os_version: Option<String>,
    /// Reference points exist, hence incremental backups: Server 2016 or later, in its cluster too. Otherwise every backup is a full one.
    pub reference_points: bool,
}

/// Why a host cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The namespace is not there.
    #[error("probe Hyper-V: this machine does not have the Hyper-V role")]
    NoHyperV,
    /// `vmms` is installed and not running.
    #[error("probe Hyper-V: the Virtual Machine Management service is {state}")]
    ServiceStopped {
        /// `Win32_Service.State`.
        state: String,
    },
    /// `vmms` runs, but shows nothing to this account (spec 2.1: an empty result, not an error).
    #[error("probe Hyper-V: access denied; run elevated, as an administrator or a member of Hyper-V Administrators")]
    AccessDenied,
    /// The service class is empty, and it cannot be learned whether `vmms` is stopped or access is denied.
    #[error(
        "probe Hyper-V: the Virtual Machine Management service does not answer; it is stopped, or this account has no access"
    )]
    NoAnswer,
    /// The probe itself failed.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Waits between attempts to reach a service that went away (spec 11, row 3).
const RECONNECT_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

impl Host {
    /// The host behind a seam. Asks nothing yet; [`Host::probe`] does.
    pub fn new(seam: Seam) -> Self {
        Self { seam }
    }

    /// The seam, for what is not wrapped here.
    pub fn seam(&self) -> &Seam {
        &self.seam
    }

    /// Finds out whether this is a Hyper-V host that we may use, and what it can do (spec 2.1).
    pub fn probe(&self) -> Result<HostFacts, ProbeError> {
        let attempt = "probe Hyper-V";
        let services = match self.query(attempt, Namespace::Virtualization, &wql::all(MANAGEMENT_SERVICE)) {
            Ok(services) => services,
            Err(Error::Wmi { source, .. }) if source.hresult == INVALID_NAMESPACE => return Err(ProbeError::NoHyperV),
            Err(error) if error.kind() == ErrorKind::AccessDenied => return Err(ProbeError::AccessDenied),
            Err(error) => return Err(error.into()),
        };
        let Some(service) = services.first() else { return Err(self.why_no_service()) };
        let reference_points = self.makes_reference_points(attempt)?;
        let os = self.query(attempt, Namespace::Cimv2, &wql::all("Win32_OperatingSystem")).unwrap_or_default();
        let os_text = |name| os.first().and_then(|os| os.get(name).as_str()).map(str::to_owned);
        Ok(HostFacts {
            name: service.get("SystemName").as_str().unwrap_or_default().to_owned(),
            os_caption: os_text("Caption"),
            os_version: os_text("Version"),
            reference_points,
        })
    }

    /// The folder that new VMs go to when nobody says another.
    pub fn default_vm_folder(&self) -> Result<Option<String>, Error> {
        let attempt = "look for the host's folder for VMs";
        let found = self.find(attempt, &wql::all("Msvm_VirtualSystemManagementServiceSettingData"))?;
        let folder =
            found.first().and_then(|settings| settings.get("DefaultExternalDataRoot").as_str().map(str::to_owned));
        Ok(folder.filter(|folder| !folder.is_empty()))
    }

    fn why_no_service(&self) -> ProbeError {
        let query = wql::by("Win32_Service", "Name", "vmms");
        match self.query("probe Hyper-V", Namespace::Cimv2, &query).unwrap_or_default().first() {
            None => ProbeError::NoAnswer,
            Some(service) => match service.get("State").as_str() {
                Some("Running") => ProbeError::AccessDenied,
                state => ProbeError::ServiceStopped { state: state.unwrap_or("in an unknown state").to_owned() },
            },
        }
    }

    /// A query; waits for a service that is restarting.
    pub(crate) fn query(&self, attempt: &str, namespace: Namespace, wql: &str) -> Result<Vec<Instance>, Error> {
        self.patiently(attempt, || self.seam.wmi.query(namespace, wql))
    }

    /// A query in Hyper-V's own namespace.
    pub(crate) fn find(&self, attempt: &str, wql: &str) -> Result<Vec<Instance>, Error> {
        self.query(attempt, Namespace::Virtualization, wql)
    }

    /// An object by path, or `None` when it is gone.
    pub(crate) fn get(&self, attempt: &str, path: &ObjectPath) -> Result<Option<Instance>, Error> {
        match self.patiently(attempt, || self.seam.wmi.get(Namespace::Virtualization, path)) {
            Ok(instance) => Ok(Some(instance)),
            Err(Error::Wmi { source, .. }) if source.hresult == NOT_FOUND => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn class_properties(&self, attempt: &str, class: &str) -> Result<Option<Vec<String>>, Error> {
        self.patiently(attempt, || self.seam.wmi.class_properties(Namespace::Virtualization, class))
    }

    /// The one instance of a service class (spec 1.1: never built by hand).
    pub(crate) fn service(&self, attempt: &str, class: &'static str) -> Result<ObjectPath, Error> {
        let found = self.find(attempt, &wql::all(class))?;
        found
            .into_iter()
            .find_map(|service| service.path)
            .ok_or_else(|| Error::NoService { attempt: attempt.to_owned(), class })
    }

    /// A method that only reads, so that it may be repeated.
    pub(crate) fn read_method(
        &self,
        attempt: &str,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, crate::seam::CimValue)],
    ) -> Result<MethodOutput, Error> {
        self.patiently(attempt, || self.seam.wmi.call(Namespace::Virtualization, object, method, parameters))
    }

    fn patiently<T>(&self, attempt: &str, mut call: impl FnMut() -> Result<T, WmiError>) -> Result<T, Error> {
        let mut waits = RECONNECT_AFTER.iter();
        loop {
            match call() {
                Ok(answer) => return Ok(answer),
                Err(error)
                    if service_is_gone(error.hresult)
                        && let Some(wait) = waits.next() =>
                {
                    self.seam.clock.sleep(*wait);
                }
                Err(source) => return Err(Error::Wmi { attempt: attempt.to_owned(), source }),
            }
        }
    }
}

pub(crate) const MANAGEMENT_SERVICE: &str = "Msvm_VirtualSystemManagementService";
pub(crate) const SNAPSHOT_SERVICE: &str = "Msvm_VirtualSystemSnapshotService";
pub(crate) const REFERENCE_POINT_SERVICE: &str = "Msvm_VirtualSystemReferencePointService";
pub(crate) const IMAGE_SERVICE: &str = "Msvm_ImageManagementService";
