//! Who may do what: unit attentions that are due first, then reservations, old and persistent (spec B.10, B.13).

use crate::scsi::opcodes::{Access, access};
use crate::scsi::unit::State;
use crate::scsi::{Nexus, Outcome, status};

impl State {
    /// Whether a command of `nexus` may be looked at. The refusal is its answer.
    pub(crate) fn admit(&mut self, nexus: &Nexus, cdb: &[u8; 16]) -> Result<(), Outcome> {
        let access = access(cdb);
        if access == Access::Always {
            return Ok(());
        }
        if let Some(news) = self.attentions.take(nexus) {
            return Err(Outcome::Check(news));
        }
        let held_by_another = self.reserved_by.as_ref().is_some_and(|holder| holder != nexus);
        // RELEASE by somebody else is no error, and does nothing.
        let is_release = matches!(cdb[0], 0x17 | 0x57);
        let conflict = match access {
            Access::OldReservation if self.persistent.has_registrations() => true,
            _ if held_by_another => !is_release,
            Access::Read => self.persistent.keeps_from_reading(nexus),
            Access::Write => self.persistent.keeps_from_writing(nexus),
            Access::Always | Access::Look | Access::OldReservation | Access::PersistentReservation => false,
        };
        if conflict { Err(Outcome::Status(status::RESERVATION_CONFLICT)) } else { Ok(()) }
    }

    pub(crate) fn reserve(&mut self, nexus: &Nexus) -> Outcome {
        self.reserved_by = Some(nexus.clone());
        Outcome::Good
    }

    pub(crate) fn release(&mut self, nexus: &Nexus) -> Outcome {
        if self.reserved_by.as_ref() == Some(nexus) {
            self.reserved_by = None;
        }
        Outcome::Good
    }
}
