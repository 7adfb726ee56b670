//! Disks as SCSI knows them: commands, sense, inquiry, mode pages, reservations (SPC-4, SBC-3, spec B.10 to B.13).

mod attention;
mod command;
mod inquiry;
mod mode;
mod opcodes;
mod perform;
mod persistent;
mod reservation;
mod sense;
#[cfg(test)]
mod tests;
mod unit;

pub(crate) use command::{Command, Facts, MAX_TRANSFER_BYTES};
pub(crate) use inquiry::inquire_nothing;
#[cfg(test)]
pub(crate) use opcodes::ENTRIES as OPCODES;
pub(crate) use perform::{Outcome, read_failed};
pub(crate) use sense::{Sense, status};
pub use unit::{BlockSize, Identity, Provisioning, UnitOptions};
pub(crate) use unit::{Nexus, Unit};
