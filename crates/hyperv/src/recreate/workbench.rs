//! The calls that change the settings of one system while it is put together.

use crate::checkpoint_list::LOOK_AGAIN_AFTER;
use crate::disk_file::unexpected;
use crate::host::MANAGEMENT_SERVICE;
use crate::inventory::COMPONENT;
use crate::job::{Ended, Invocation};
use crate::seam::{CimType, CimValue, Instance, ObjectPath};
use crate::{Error, Host, cim_xml, wql};

use super::Recreation;

/// One system and the service that changes it.
pub(super) struct Workbench<'a> {
    pub(super) host: &'a Host,
    pub(super) attempt: &'a str,
    pub(super) wanted: &'a Recreation,
    service: ObjectPath,
}

impl<'a> Workbench<'a> {
    pub(super) fn new(host: &'a Host, attempt: &'a str, wanted: &'a Recreation) -> Result<Self, Error> {
        Ok(Self { host, attempt, wanted, service: host.service(attempt, MANAGEMENT_SERVICE)? })
    }

    /// Calls a method of the management service and waits for its end. `what` names the step in errors.
    pub(super) fn run(
        &self,
        what: &str,
        method: &'static str,
        parameters: &[(&str, CimValue)],
    ) -> Result<Ended, Error> {
        self.run_on(&self.service, what, method, parameters)
    }

    /// The same on another service.
    pub(super) fn run_on(
        &self,
        service: &ObjectPath,
        what: &str,
        method: &'static str,
        parameters: &[(&str, CimValue)],
    ) -> Result<Ended, Error> {
        let attempt = format!("{}: {what}", self.attempt);
        if self.wanted.cancel.is_cancelled() {
            return Err(Error::Cancelled { attempt, job_ended: true });
        }
        self.host.invoke(&Invocation {
            attempt: &attempt,
            object: service,
            method,
            parameters,
            limits: self.wanted.limits,
            cancel: Some(&self.wanted.cancel),
        })
    }

    /// A call whose end must be known: what follows builds on it.
    pub(super) fn must(&self, what: &str, method: &'static str, parameters: &[(&str, CimValue)]) -> Result<(), Error> {
        let ended = self.run(what, method, parameters)?;
        self.known(what, ended).map(|_| ())
    }

    pub(super) fn known(&self, what: &str, ended: Ended) -> Result<Ended, Error> {
        match ended {
            Ended::Unknown { reason } => {
                let seen = "the VM is not put together further".to_owned();
                Err(Error::OutcomeUnknown { attempt: format!("{}: {what}", self.attempt), reason, seen })
            }
            ended => Ok(ended),
        }
    }

    pub(super) fn get(&self, path: &ObjectPath) -> Result<Instance, Error> {
        self.host.get(self.attempt, path)?.ok_or_else(|| self.missing(path.to_string()))
    }

    pub(super) fn missing(&self, what: String) -> Error {
        Error::Missing { attempt: self.attempt.to_owned(), what }
    }

    pub(super) fn unexpected(&self, problem: String) -> Error {
        unexpected(self.attempt, problem)
    }

    /// The devices of a configuration.
    pub(super) fn components(&self, settings: &ObjectPath, class: Option<&str>) -> Result<Vec<Instance>, Error> {
        self.host.find(self.attempt, &wql::associated(settings, COMPONENT, class))
    }

    /// `ModifySystemSettings` with the complete instance as it is now (spec 8.7).
    pub(super) fn modify_system(
        &self,
        what: &str,
        settings: &ObjectPath,
        changes: Vec<(&str, CimValue)>,
    ) -> Result<(), Error> {
        let now = self.get(settings)?;
        let text = self.text(&cim_xml::changed(&now, changes))?;
        self.must(what, "ModifySystemSettings", &[("SystemSettings", text)])
    }

    /// `ModifyResourceSettings` of one device, with the complete instance as read.
    pub(super) fn modify(&self, what: &str, device: &Instance, changes: Vec<(&str, CimValue)>) -> Result<(), Error> {
        let text = self.text(&cim_xml::changed(device, changes))?;
        let texts = CimValue::Array(CimType::String, vec![text]);
        self.must(what, "ModifyResourceSettings", &[("ResourceSettings", texts)])
    }

    /// `RemoveResourceSettings` of one device.
    pub(super) fn remove(&self, what: &str, device: &Instance) -> Result<(), Error> {
        let path = device.path.clone().ok_or_else(|| self.unexpected(format!("{what}: it has no path")))?;
        let references = CimValue::Array(CimType::Reference, vec![CimValue::Reference(path)]);
        self.must(what, "RemoveResourceSettings", &[("ResourceSettings", references)])
    }

    /// The defaults of a class and sub type, to be cloned (spec 1.7, 6.4).
    pub(super) fn template(&self, class: &str, sub_type: &str) -> Result<Instance, Error> {
        let found = self.host.find(self.attempt, &wql::template(class, sub_type))?;
        found.into_iter().next().ok_or_else(|| self.missing(format!("a default {sub_type} ({class})")))
    }

    /// `AddResourceSettings` of one device; returns it as the host made it.
    pub(super) fn add(
        &self,
        what: &str,
        settings: &ObjectPath,
        template: &Instance,
        changes: Vec<(&str, CimValue)>,
    ) -> Result<Instance, Error> {
        let class = template.class.as_str();
        let before = self.components(settings, Some(class))?;
        let text = self.text(&cim_xml::changed(template, changes))?;
        let parameters = [
            ("AffectedConfiguration", CimValue::Reference(settings.clone())),
            ("ResourceSettings", CimValue::Array(CimType::String, vec![text])),
        ];
        let ended = self.run(what, "AddResourceSettings", &parameters)?;
        let is_new = |device: &Instance| before.iter().all(|known| known.path != device.path);
        let (output, job) = match self.known(what, ended)? {
            Ended::Now(output) => (Some(output), None),
            Ended::Job { output, job, .. } => (Some(output), Some(job)),
            Ended::Unknown { .. } => (None, None),
        };
        let returned = output.as_ref().and_then(|output| output.get("ResultingResourceSettings").as_array());
        if let Some(path) = returned.and_then(|paths| paths.first()).and_then(CimValue::as_str)
            && let Some(device) = self.host.get(self.attempt, &ObjectPath::new(path))?
        {
            return Ok(device);
        }
        if let Some(job) = &job
            && let [device] = self.host.job_results(self.attempt, job, class, is_new)?.as_slice()
        {
            return Ok(device.clone());
        }
        for wait in &LOOK_AGAIN_AFTER[..2] {
            let mut now = self.components(settings, Some(class))?;
            now.retain(is_new);
            if let [device] = now.as_slice() {
                return Ok(device.clone());
            }
            self.host.seam.clock.sleep(*wait);
        }
        Err(self.unexpected(format!("{what}: the host reports success, but the device is not there")))
    }

    pub(super) fn text(&self, instance: &Instance) -> Result<CimValue, Error> {
        cim_xml::to_text(instance)
            .map(CimValue::String)
            .map_err(|source| Error::CimXml { attempt: self.attempt.to_owned(), source })
    }
}

/// A one-element array of strings, as `HostResource` and its like are.
pub(super) fn one_string(value: &str) -> CimValue {
    CimValue::Array(CimType::String, vec![CimValue::String(value.to_owned())])
}
