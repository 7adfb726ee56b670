//! Persistent reservations, kept in memory for as long as the unit lives (SPC-4 5.9, spec B.13).

use std::collections::BTreeMap;

use crate::scsi::attention::{Attentions, REGISTRATIONS_PREEMPTED, RESERVATIONS_PREEMPTED, RESERVATIONS_RELEASED};
use crate::scsi::command::PERSISTENT_LIST_LEN;
use crate::scsi::{Nexus, Outcome, Sense, status};

/// Registrations at once. Each initiator can have as many as it likes to invent session ids for.
const MAX_REGISTRATIONS: usize = 256;

mod action {
    pub(super) const REGISTER: u8 = 0;
    pub(super) const RESERVE: u8 = 1;
    pub(super) const RELEASE: u8 = 2;
    pub(super) const CLEAR: u8 = 3;
    pub(super) const PREEMPT: u8 = 4;
    pub(super) const PREEMPT_AND_ABORT: u8 = 5;
    pub(super) const REGISTER_AND_IGNORE: u8 = 6;
}

/// What a reservation keeps from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl Kind {
    fn new(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess | Self::ExclusiveAccessRegistrantsOnly | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Who registered is as good as the holder.
    fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Every registrant is the holder.
    fn is_of_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reservation {
    holder: Nexus,
    kind: Kind,
}

/// Registrations of one unit, and the reservation that one of them may hold.
#[derive(Debug, Default)]
pub(crate) struct Persistent {
    generation: u32,
    keys: BTreeMap<Nexus, u64>,
    reservation: Option<Reservation>,
}

/// PERSISTENT RESERVE OUT, but for the parameter list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) action: u8,
    pub(crate) scope: u8,
    pub(crate) kind: u8,
}

impl Persistent {
    pub(crate) fn has_registrations(&self) -> bool {
        !self.keys.is_empty()
    }

    pub(crate) fn keeps_from_writing(&self, nexus: &Nexus) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| !self.is_privileged(reservation, nexus))
    }

    pub(crate) fn keeps_from_reading(&self, nexus: &Nexus) -> bool {
        let excludes = |reservation: &Reservation| reservation.kind.excludes_reads();
        self.reservation.as_ref().is_some_and(|one| excludes(one) && !self.is_privileged(one, nexus))
    }

    fn is_privileged(&self, reservation: &Reservation, nexus: &Nexus) -> bool {
        reservation.holder == *nexus || (reservation.kind.admits_registrants() && self.keys.contains_key(nexus))
    }

    fn is_holder(&self, reservation: &Reservation, nexus: &Nexus) -> bool {
        reservation.holder == *nexus || (reservation.kind.is_of_all() && self.keys.contains_key(nexus))
    }

    /// PERSISTENT RESERVE IN.
    pub(crate) fn report(&self, action: u8) -> Vec<u8> {
        let mut content = Vec::new();
        match action {
            0 => self.keys.values().for_each(|key| content.extend(key.to_be_bytes())),
            1 => {
                if let Some(reservation) = &self.reservation {
                    let of_one = self.keys.get(&reservation.holder).copied().unwrap_or(0);
                    let key = if reservation.kind.is_of_all() { 0 } else { of_one };
                    content.extend(key.to_be_bytes());
                    content.extend([0, 0, 0, 0, 0, reservation.kind as u8, 0, 0]);
                }
            }
            // Type masks are valid: all six kinds.
            2 => return vec![0, 8, 0, 0x80, 0xEA, 0x01, 0, 0],
            _ => self.keys.iter().for_each(|(nexus, key)| content.extend(self.full_status(nexus, *key))),
        }
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend((content.len() as u32).to_be_bytes());
        data.extend(content);
        data
    }

    fn full_status(&self, nexus: &Nexus, key: u64) -> Vec<u8> {
        let held = self.reservation.as_ref().filter(|reservation| self.is_holder(reservation, nexus));
        let mut data = key.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend([u8::from(held.is_some()), held.map_or(0, |reservation| reservation.kind as u8)]);
        data.extend([0; 4]);
        data.extend(1_u16.to_be_bytes());
        let id = transport_id(nexus);
        data.extend((id.len() as u32).to_be_bytes());
        data.extend(id);
        data
    }

    /// PERSISTENT RESERVE OUT.
    pub(crate) fn change(&mut self, order: Order, list: &[u8], nexus: &Nexus, attentions: &mut Attentions) -> Outcome {
        let Ok(list) = <&[u8; PERSISTENT_LIST_LEN]>::try_from(list) else {
            return Outcome::Check(Sense::PARAMETER_LIST_LENGTH);
        };
        // Other ports, and power loss: neither SPEC_I_PT, nor ALL_TG_PT, nor APTPL.
        if list[20] & 0x0D != 0 {
            return Outcome::Check(Sense::INVALID_PARAMETER);
        }
        let key = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| list[at + byte]));
        let (own, other) = (key(0), key(8));
        let known = self.keys.get(nexus).copied();
        let is_right = match order.action {
            action::REGISTER => known.unwrap_or(0) == own,
            action::REGISTER_AND_IGNORE => true,
            _ => known == Some(own),
        };
        if !is_right {
            return Outcome::Status(status::RESERVATION_CONFLICT);
        }
        let kind = Kind::new(order.kind).filter(|_| order.scope == 0);
        match (order.action, kind) {
            (action::REGISTER | action::REGISTER_AND_IGNORE, _) => self.register(nexus, other, attentions),
            (action::CLEAR, _) => self.clear(nexus, attentions),
            (_, None) => Outcome::Check(Sense::invalid_field(2)),
            (action::RESERVE, Some(kind)) => self.reserve(nexus, kind),
            (action::RELEASE, Some(kind)) => self.release(nexus, kind, attentions),
            (action::PREEMPT | action::PREEMPT_AND_ABORT, Some(kind)) => self.preempt(nexus, other, kind, attentions),
            _ => Outcome::Check(Sense::invalid_field(1)),
        }
    }

    fn register(&mut self, nexus: &Nexus, key: u64, attentions: &mut Attentions) -> Outcome {
        if key != 0 {
            if self.keys.len() >= MAX_REGISTRATIONS && !self.keys.contains_key(nexus) {
                return Outcome::Check(Sense::NO_ROOM_FOR_REGISTRATIONS);
            }
            self.keys.insert(nexus.clone(), key);
        } else if self.keys.remove(nexus).is_some() {
            self.reservation_after_leave(nexus, attentions);
        }
        self.generation = self.generation.wrapping_add(1);
        Outcome::Good
    }

    /// A reservation ends when its holder's registration does; one of all registrants with the last of them.
    fn reservation_after_leave(&mut self, nexus: &Nexus, attentions: &mut Attentions) {
        let Some(reservation) = &mut self.reservation else { return };
        if reservation.kind.is_of_all() {
            match self.keys.keys().next() {
                Some(next) if reservation.holder == *nexus => reservation.holder = next.clone(),
                Some(_) => {}
                None => self.reservation = None,
            }
        } else if reservation.holder == *nexus {
            if reservation.kind.admits_registrants() {
                self.keys.keys().for_each(|other| attentions.tell(other, RESERVATIONS_RELEASED));
            }
            self.reservation = None;
        }
    }

    fn clear(&mut self, nexus: &Nexus, attentions: &mut Attentions) -> Outcome {
        self.keys
            .keys()
            .filter(|other| *other != nexus)
            .for_each(|other| attentions.tell(other, RESERVATIONS_PREEMPTED));
        self.keys.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
        Outcome::Good
    }

    fn reserve(&mut self, nexus: &Nexus, kind: Kind) -> Outcome {
        match &self.reservation {
            None => {
                self.reservation = Some(Reservation { holder: nexus.clone(), kind });
                Outcome::Good
            }
            Some(reservation) if self.is_holder(reservation, nexus) && reservation.kind == kind => Outcome::Good,
            Some(_) => Outcome::Status(status::RESERVATION_CONFLICT),
        }
    }

    fn release(&mut self, nexus: &Nexus, kind: Kind, attentions: &mut Attentions) -> Outcome {
        let Some(reservation) = self.reservation.as_ref().filter(|one| self.is_holder(one, nexus)) else {
            return Outcome::Good;
        };
        if reservation.kind != kind {
            return Outcome::Check(Sense::INVALID_RELEASE);
        }
        self.reservation = None;
        if kind.admits_registrants() {
            let others = self.keys.keys().filter(|other| *other != nexus);
            others.for_each(|other| attentions.tell(other, RESERVATIONS_RELEASED));
        }
        Outcome::Good
    }

    /// Takes away the registrations that have the key `victim`, and the reservation if it was theirs (SPC-4 5.9.11.4).
    fn preempt(&mut self, nexus: &Nexus, victim: u64, kind: Kind, attentions: &mut Attentions) -> Outcome {
        let holders_key = self.reservation.as_ref().map(|one| match one.kind.is_of_all() {
            true => 0,
            false => self.keys.get(&one.holder).copied().unwrap_or(0),
        });
        let takes_over = holders_key == Some(victim);
        if !takes_over && victim == 0 {
            return Outcome::Check(Sense::INVALID_PARAMETER);
        }
        // Key 0 takes over from all registrants, whatever their keys.
        let is_victim = |other: &Nexus, key: u64| other != nexus && (key == victim || (takes_over && victim == 0));
        let victims: Vec<Nexus> =
            self.keys.iter().filter(|(other, key)| is_victim(other, **key)).map(|(other, _)| other.clone()).collect();
        let own_key_matches = self.keys.get(nexus) == Some(&victim);
        if victims.is_empty() && !own_key_matches && !takes_over {
            return Outcome::Status(status::RESERVATION_CONFLICT);
        }
        for gone in &victims {
            self.keys.remove(gone);
            attentions.tell(gone, REGISTRATIONS_PREEMPTED);
        }
        if takes_over {
            let old_kind = self.reservation.replace(Reservation { holder: nexus.clone(), kind }).map(|one| one.kind);
            if old_kind != Some(kind) {
                let others = self.keys.keys().filter(|other| *other != nexus);
                others.for_each(|other| attentions.tell(other, RESERVATIONS_RELEASED));
            }
        } else {
            victims.iter().for_each(|gone| self.reservation_after_leave(gone, attentions));
        }
        self.generation = self.generation.wrapping_add(1);
        Outcome::Good
    }
}

/// An initiator port's TransportID (SPC-4 7.6.4.6).
fn transport_id(nexus: &Nexus) -> Vec<u8> {
    let isid: String = nexus.isid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = format!("{},i,0x{isid}", nexus.initiator).into_bytes();
    name.resize((name.len() + 1).next_multiple_of(4).max(20), 0);
    let mut id = vec![0x45, 0];
    id.extend((name.len() as u16).to_be_bytes());
    id.extend(name);
    id
}
