//! Starting and stopping a VM (spec 1.2, 6.5, 6.7).

use std::time::Duration;

use crate::checkpoint_list::LOOK_AGAIN_AFTER;
use crate::inventory::{COMPONENT, MEDIA};
use crate::job::{Ended, Invocation, JobLimits};
use crate::seam::CimValue;
use crate::{Error, ErrorKind, Host, Vm, VmState, wql};

/// `RequestedState` (spec 1.2).
const START: u16 = 2;
const TURN_OFF: u16 = 3;
const SAVE: u16 = 6;

/// Time between looks at a guest that is shutting down.
const POLL: Duration = Duration::from_secs(2);

impl Host {
    /// Starts a VM, or resumes a saved or paused one. One that runs already is a success.
    ///
    /// [`Error::advice`] says what to do about the refusals that a restored VM meets: a user right that is missing, a
    /// disk file without its access entry, too little memory. A virtual TPM that may be the reason is named in
    /// [`Error::TpmMayNotOpen`].
    pub fn start_vm(&self, vm: &Vm) -> Result<(), Error> {
        let started = self.change_state(vm, "start", START, |state| *state == VmState::Running);
        started.map_err(|error| match error {
            Error::JobFailed { .. } if vm.tpm && error.advice().is_none() => {
                Error::TpmMayNotOpen { attempt: format!("start {}", vm.label()), source: Box::new(error) }
            }
            error => error,
        })
    }

    /// Switches a VM off as if its power was cut, or drops its saved state. One that is off already is a success.
    pub fn turn_off_vm(&self, vm: &Vm) -> Result<(), Error> {
        self.change_state(vm, "turn off", TURN_OFF, |state| *state == VmState::Off)
    }

    /// Saves a running VM with its memory. One that is saved already is a success.
    pub fn save_vm(&self, vm: &Vm) -> Result<(), Error> {
        self.change_state(vm, "save", SAVE, |state| *state == VmState::Saved)
    }

    /// Asks the guest to shut down, and waits until it has, at most `limit`. `false`: it still runs; turning it off is
    /// then a person's decision. `RequestStateChange(4)` would be the short way and is not reliable (spec 1.2).
    pub fn shut_down_guest(&self, vm: &Vm, reason: &str, limit: Duration) -> Result<bool, Error> {
        let attempt = format!("shut down the guest of {}", vm.label());
        let attempt = attempt.as_str();
        let is_off = || -> Result<bool, Error> { Ok(self.state_of(attempt, vm)? == VmState::Off) };
        if is_off()? {
            return Ok(true);
        }
        let found = self.find(attempt, &wql::by("Msvm_ShutdownComponent", "SystemName", vm.id.as_str()))?;
        let component = found.into_iter().find_map(|component| component.path).ok_or_else(|| Error::Missing {
            attempt: attempt.to_owned(),
            what: "the guest's shutdown service (off in the VM's integration services, or not running in the guest)"
                .to_owned(),
        })?;
        let parameters = [("Force", CimValue::Boolean(true)), ("Reason", CimValue::String(reason.to_owned()))];
        self.invoke(&Invocation {
            attempt,
            object: &component,
            method: "InitiateShutdown",
            parameters: &parameters,
            limits: JobLimits::DEFAULT,
            cancel: None,
        })?;
        let start = self.seam.clock.monotonic();
        loop {
            if is_off()? {
                return Ok(true);
            }
            if self.seam.clock.monotonic().saturating_sub(start) >= limit {
                return Ok(false);
            }
            self.seam.clock.sleep(POLL);
        }
    }

    /// Sets the files of a VM's disks once more, which makes the host give the VM its access entry on each: files that
    /// were copied into place have lost it, and the start fails with 0x80070005 (spec 6.7). The VM must be off.
    pub fn grant_disk_access(&self, vm: &Vm) -> Result<(), Error> {
        let attempt = format!("give {} access to its disk files", vm.label());
        let attempt = attempt.as_str();
        let media = self.find(attempt, &wql::associated(&vm.settings_path, COMPONENT, Some(MEDIA)))?;
        for medium in media {
            self.modify_medium(attempt, &medium, Vec::new())?;
        }
        Ok(())
    }

    fn change_state(
        &self,
        vm: &Vm,
        verb: &str,
        requested: u16,
        is_reached: impl Fn(&VmState) -> bool,
    ) -> Result<(), Error> {
        let attempt = format!("{verb} {}", vm.label());
        let attempt = attempt.as_str();
        let parameters = [("RequestedState", CimValue::Uint16(requested)), ("TimeoutPeriod", CimValue::Null)];
        let ended = self.invoke(&Invocation {
            attempt,
            object: &vm.path,
            method: "RequestStateChange",
            parameters: &parameters,
            limits: JobLimits::DEFAULT,
            cancel: None,
        });
        let reason = match ended {
            Ok(Ended::Unknown { reason }) => Some(reason),
            Ok(_) => None,
            // 32775 is also the answer to a state that is reached already (spec 1.2).
            Err(error) if error.kind() == ErrorKind::Busy && is_reached(&self.state_of(attempt, vm)?) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut state = self.state_of(attempt, vm)?;
        for wait in LOOK_AGAIN_AFTER {
            if is_reached(&state) {
                return Ok(());
            }
            self.seam.clock.sleep(wait);
            state = self.state_of(attempt, vm)?;
        }
        if is_reached(&state) {
            return Ok(());
        }
        let seen = format!("its state is {state:?}");
        Err(match reason {
            Some(reason) => Error::OutcomeUnknown { attempt: attempt.to_owned(), reason, seen },
            None => Error::Unexpected {
                attempt: attempt.to_owned(),
                problem: format!("the host reports success, but {seen}"),
            },
        })
    }

    fn state_of(&self, attempt: &str, vm: &Vm) -> Result<VmState, Error> {
        let system = self.get(attempt, &vm.path)?;
        let system = system.ok_or_else(|| Error::Missing { attempt: attempt.to_owned(), what: vm.label() })?;
        Ok(VmState::of(&system))
    }
}
