//! Unit attentions: news that each initiator hears once, before its next command is carried out.

use std::collections::{HashMap, VecDeque};

use crate::scsi::{Nexus, Sense};

pub(crate) const POWER_ON: Sense = Sense::attention(0x29, 0x00);
pub(crate) const RESET: Sense = Sense::attention(0x29, 0x03);
pub(crate) const MODE_CHANGED: Sense = Sense::attention(0x2A, 0x01);
pub(crate) const RESERVATIONS_PREEMPTED: Sense = Sense::attention(0x2A, 0x03);
pub(crate) const RESERVATIONS_RELEASED: Sense = Sense::attention(0x2A, 0x04);
pub(crate) const REGISTRATIONS_PREEMPTED: Sense = Sense::attention(0x2A, 0x05);
pub(crate) const TASKS_CLEARED: Sense = Sense::attention(0x2F, 0x00);

/// What each initiator that is logged in still has to hear, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Attentions(HashMap<Nexus, VecDeque<Sense>>);

impl Attentions {
    /// From now on there is something to tell it, beginning with the fact that this is a new disk to it.
    pub(crate) fn attach(&mut self, nexus: &Nexus) {
        self.0.insert(nexus.clone(), VecDeque::from([POWER_ON]));
    }

    pub(crate) fn detach(&mut self, nexus: &Nexus) {
        self.0.remove(nexus);
    }

    /// Initiators that are not logged in hear nothing: they learn of everything when they come.
    pub(crate) fn tell(&mut self, nexus: &Nexus, news: Sense) {
        if let Some(queue) = self.0.get_mut(nexus) {
            push(queue, news);
        }
    }

    pub(crate) fn tell_all(&mut self, news: Sense) {
        self.0.values_mut().for_each(|queue| push(queue, news));
    }

    pub(crate) fn tell_others(&mut self, than: &Nexus, news: Sense) {
        self.0.iter_mut().filter(|(nexus, _)| *nexus != than).for_each(|(_, queue)| push(queue, news));
    }

    pub(crate) fn take(&mut self, nexus: &Nexus) -> Option<Sense> {
        self.0.get_mut(nexus)?.pop_front()
    }
}

/// The same twice says no more than once, and keeps the queue short.
fn push(queue: &mut VecDeque<Sense>, news: Sense) {
    if !queue.contains(&news) {
        queue.push_back(news);
    }
}
