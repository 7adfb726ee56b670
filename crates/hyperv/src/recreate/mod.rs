//! Making a VM again on a host: by importing its configuration files, or from its settings (spec 6.3 to 6.7).
//!
//! ```text
//! Host::preflight ── all obstacles at once, before anything is written
//!        │
//!        ├── import_vm   .vmcx → planned VM → settings, disks, networks → validate → realize
//!        └── build_vm    settings → new VM → devices one by one          (where the .vmcx cannot be imported)
//!                │
//!        differences ── the new definition against the stored one, and why they differ
//! ```
//!
//! An import keeps everything, guest-visible identities and a virtual TPM included, and works only where the host knows
//! the configuration version. What is built from settings gets a new id, new device identities, and an empty TPM.
//! Either is all or nothing: after an error, what had been made is removed again.

mod build;
mod difference;
mod firmware;
mod former;
mod import;
mod network;
mod preflight;
mod system;
mod versions;
mod wanted;
mod warning;
mod workbench;

pub use difference::{Difference, Why};
pub use preflight::{Obstacle, ObstacleCode, Severity, Way};
pub use system::PlannedVm;
pub use versions::ConfigurationVersions;
pub use wanted::{Identity, MacChoice, NetworkChoice, Recreation, RestoredDisk, TpmChoice};
pub use warning::RecreateWarning;

use crate::seam::Instance;
use crate::{Definition, Error, Vm};

/// A VM that was made again. It is off, or saved if its saved state was imported.
#[derive(Clone, Debug, PartialEq)]
pub struct Recreated {
    /// The VM, as the host lists it now.
    pub vm: Vm,
    /// What a person has to know of it.
    pub warnings: Vec<RecreateWarning>,
}

/// Every restored disk must be one of the definition, or a misspelt id would leave it out silently.
fn check_disks(attempt: &str, definition: &Definition, wanted: &Recreation) -> Result<(), Error> {
    for disk in &wanted.disks {
        let slot = crate::slot_part(&disk.instance_id);
        if !definition.disks.iter().any(|known| crate::slot_part(&known.instance_id).eq_ignore_ascii_case(slot)) {
            let problem = format!("{} was restored for a disk {:?} that the VM never had", disk.path, disk.instance_id);
            return Err(Error::Unexpected { attempt: attempt.to_owned(), problem });
        }
    }
    Ok(())
}

/// Start-up memory of another size, with the limits of dynamic memory moved so that it lies between them.
fn memory_changes(memory: &Instance, mib: u64) -> Vec<(&'static str, crate::seam::CimValue)> {
    use crate::seam::CimValue::Uint64;
    let number = |name| memory.get(name).as_u64();
    let mut changes = vec![("VirtualQuantity", Uint64(mib))];
    if number("Reservation").is_some_and(|least| least > mib) {
        changes.push(("Reservation", Uint64(mib)));
    }
    if number("Limit").is_some_and(|most| most < mib) {
        changes.push(("Limit", Uint64(mib)));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::CimValue::Uint64;

    #[test]
    fn the_limits_of_dynamic_memory_stay_around_its_start() {
        let properties = [("Reservation".to_owned(), Uint64(512)), ("Limit".to_owned(), Uint64(2048))];
        let memory = Instance { class: "Msvm_MemorySettingData".into(), path: None, properties: properties.into() };
        for (mib, expected) in [
            (1024, vec![("VirtualQuantity", Uint64(1024))]),
            (256, vec![("VirtualQuantity", Uint64(256)), ("Reservation", Uint64(256))]),
            (4096, vec![("VirtualQuantity", Uint64(4096)), ("Limit", Uint64(4096))]),
        ] {
            assert_eq!(memory_changes(&memory, mib), expected, "{mib}");
        }
    }
}
