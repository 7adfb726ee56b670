//! Systems as a whole: finding the one a call has made, listing planned ones, removing one.

use crate::checkpoint_list::LOOK_AGAIN_AFTER;
use crate::host::MANAGEMENT_SERVICE;
use crate::inventory::SETTINGS;
use crate::job::Ended;
use crate::seam::{CimValue, Instance, ObjectPath};
use crate::{CreateError, Error, Host, VmId, wql};

use super::workbench::Workbench;

pub(super) const VM: &str = "Msvm_ComputerSystem";
pub(super) const PLANNED_VM: &str = "Msvm_PlannedComputerSystem";

/// A VM that was imported and never finished: it is in no list of the host's tools, and its id is taken (spec 6.3, 11
/// row 40).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedVm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// To remove it with [`Host::remove_vm`].
    pub path: ObjectPath,
}

impl Host {
    /// The planned VMs of the host, whoever made them.
    pub fn list_planned_vms(&self) -> Result<Vec<PlannedVm>, Error> {
        let found = self.find("list the planned VMs", &wql::all(PLANNED_VM))?;
        Ok(found
            .into_iter()
            .filter_map(|system| {
                let id = system.get("Name").as_str()?.parse().ok()?;
                let name = system.get("ElementName").as_str().unwrap_or_default().to_owned();
                Some(PlannedVm { id, name, path: system.path? })
            })
            .collect())
    }

    /// Removes a VM, planned or realized, from the host. A realized one must be off or saved. Disk files stay. One that
    /// is gone already is a success.
    pub fn remove_vm(&self, system: &ObjectPath) -> Result<(), Error> {
        let attempt = format!("remove the VM {system}");
        self.destroy(&attempt, MANAGEMENT_SERVICE, "DestroySystem", "AffectedSystem", system)
    }

    pub(super) fn systems(&self, attempt: &str, class: &str) -> Result<Vec<Instance>, Error> {
        self.find(attempt, &wql::all(class))
    }

    /// Removes what a failed re-creation has made: every system of either kind that was not there before and that `is_ours`.
    /// What cannot be removed is named.
    pub(super) fn roll_back(&self, error: Error, made: &[ObjectPath]) -> CreateError {
        let left_behind = made.iter().filter(|path| self.remove_vm(path).is_err()).cloned().collect();
        CreateError { error, left_behind }
    }
}

impl Workbench<'_> {
    /// The system that a method has made: what it returned, what its job is associated with, or the one that was not
    /// there before and that `is_ours` (as for checkpoints, spec 3.2).
    pub(super) fn made_system(
        &self,
        class: &'static str,
        parameter: &str,
        before: &[Instance],
        ended: Ended,
        is_ours: impl Fn(&Instance) -> bool,
    ) -> Result<Instance, Error> {
        let is_new = |system: &Instance| before.iter().all(|known| known.path != system.path) && is_ours(system);
        let (output, job, reason) = match ended {
            Ended::Now(output) => (Some(output), None, None),
            Ended::Job { output, job, .. } => (Some(output), Some(job), None),
            Ended::Unknown { reason } => (None, None, Some(reason)),
        };
        if let Some(path) = output.as_ref().and_then(|output| output.get(parameter).as_str())
            && let Some(system) = self.host.get(self.attempt, &ObjectPath::new(path))?
        {
            return Ok(system);
        }
        if let Some(job) = &job
            && let [system] = self.host.job_results(self.attempt, job, class, is_new)?.as_slice()
        {
            return Ok(system.clone());
        }
        let waits = if reason.is_some() { &LOOK_AGAIN_AFTER[..] } else { &LOOK_AGAIN_AFTER[..1] };
        for wait in waits {
            let mut now = self.host.systems(self.attempt, class)?;
            now.retain(is_new);
            match now.len() {
                0 => self.host.seam.clock.sleep(*wait),
                1 => return Ok(now.remove(0)),
                several => {
                    return Err(
                        self.unexpected(format!("{several} new systems appeared, and which is ours is not known"))
                    );
                }
            }
        }
        let seen = format!("no new {class} is there");
        Err(match reason {
            Some(reason) => Error::OutcomeUnknown { attempt: self.attempt.to_owned(), reason, seen },
            None => self.unexpected(format!("the host reports success, but {seen}")),
        })
    }

    /// The settings of a system.
    pub(super) fn settings_of(&self, system: &ObjectPath) -> Result<Instance, Error> {
        let query = wql::associated(system, "Msvm_SettingsDefineState", Some(SETTINGS));
        let found = self.host.find(self.attempt, &query)?.into_iter().next();
        found.ok_or_else(|| self.missing(format!("the settings of {system}")))
    }

    /// Directories and name, which every way of making a VM sets first. `GuestStateDataRoot` is younger than the others.
    pub(super) fn names_and_roots(&self, known: &[String]) -> Vec<(&'static str, CimValue)> {
        const ROOTS: &[&str] =
            &["ConfigurationDataRoot", "SnapshotDataRoot", "SuspendDataRoot", "SwapFileDataRoot", "GuestStateDataRoot"];
        let text = |text: &str| CimValue::String(text.to_owned());
        let mut changes = vec![("ElementName", text(&self.wanted.name))];
        for root in ROOTS.iter().filter(|root| known.iter().any(|known| known.eq_ignore_ascii_case(root))) {
            changes.push((root, text(&self.wanted.data_root)));
        }
        changes
    }
}
