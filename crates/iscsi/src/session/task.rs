//! Commands on their way: data that must come first, carrying them out in order, and stopping them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::pdu::Pdu;
use crate::scsi::{Command, Facts, Sense, Unit};
use crate::session::{
    Action, Answer, MAX_IMMEDIATE_COMMANDS, OVERDUE_DATA, Pending, Session, StatSn, rejected, response,
};
use crate::wire::{Header, NO_TAG, at, flag, lun_number, opcode, reject};

/// Data for a task that ended is not answered for this long.
const REMEMBER_ENDED: Duration = Duration::from_secs(30);
/// Ended tasks that are remembered at once.
const MAX_ENDED: usize = 256;
/// The attribute of a command that waits for all before it, and lets none after it begin.
const ORDERED: u8 = 2;

/// A command in progress.
pub(crate) struct Task {
    tag: u32,
    lun: Option<u16>,
    immediate: bool,
    ordered: bool,
    /// How much of the session's room its data may take.
    held_bytes: u64,
    /// None while it runs.
    job: Option<Job>,
    transfer: Option<Transfer>,
    stopped: Arc<AtomicBool>,
    stop: Option<Stop>,
}

/// Data that we asked for.
#[derive(Debug)]
struct Transfer {
    tag: u32,
    /// Number of the next transfer of this task.
    next_sn: u32,
    data_sn: u32,
    /// What is still to come of it.
    left_bytes: u32,
    since: Instant,
}

#[derive(Debug, Default)]
struct Stop {
    /// By ABORT TASK only, which has to say whether it came too late.
    only_this: bool,
    waiting: Vec<Arc<Pending>>,
}

/// A command that can be carried out: all its data is there.
pub(crate) struct Job {
    pub(crate) order: u64,
    pub(crate) tag: u32,
    pub(crate) lun_field: [u8; 8],
    pub(crate) unit: Option<Arc<Unit>>,
    pub(crate) cdb: [u8; 16],
    /// What to do, or why that was refused before anything else was looked at.
    pub(crate) command: Result<Command, Sense>,
    /// The transport failed it; nothing is looked at.
    pub(crate) refusal: Option<Sense>,
    /// What the initiator has room for.
    pub(crate) room_bytes: u32,
    /// What the initiator announced to send.
    pub(crate) announced_bytes: u32,
    /// What the command wants of that.
    pub(crate) wanted_bytes: u64,
    /// What came.
    pub(crate) received_bytes: u32,
    pub(crate) data: Vec<u8>,
    /// Set when nobody waits for the outcome any more.
    pub(crate) stopped: Arc<AtomicBool>,
}

/// What follows when a job has ended.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    /// The initiator is told of the outcome.
    pub(crate) respond: bool,
    /// To be released after that.
    pub(crate) waiting: Vec<Arc<Pending>>,
    /// To be sent: there may be room for the data of others now.
    pub(crate) answers: Vec<Answer>,
}

impl Session {
    pub(crate) fn command(&mut self, pdu: Pdu, now: Instant, actions: &mut Vec<Action>) {
        let header = &pdu.header;
        let tag = header.tag();
        if tag == NO_TAG || self.by_tag.contains_key(&tag) {
            return actions.push(rejected(&pdu, reject::PROTOCOL_ERROR));
        }
        let immediate = header.is_immediate();
        if immediate && self.immediate == MAX_IMMEDIATE_COMMANDS {
            return actions.push(rejected(&pdu, reject::TOO_MANY_IMMEDIATE));
        }
        let ordered = header.0[at::FLAGS] & 7 == ORDERED;
        let lun = lun_number(header.lun_field());
        let order = self.next_order;
        self.next_order += 1;
        let job = self.job(order, pdu);
        let missing = job.missing_bytes();
        let stopped = job.stopped.clone();
        if missing == 0 {
            self.ready.push_back(order);
        } else {
            self.for_room.push_back(order);
        }
        if job.refusal.is_some() {
            self.remember(tag, now);
        }
        let task =
            Task { tag, lun, immediate, ordered, held_bytes: 0, job: Some(job), transfer: None, stopped, stop: None };
        self.tasks.insert(order, task);
        self.ordered += usize::from(ordered);
        self.immediate += usize::from(immediate);
        self.by_tag.insert(tag, order);
        actions.extend(self.ask_for_data(now).into_iter().map(Action::Send));
    }

    fn job(&self, order: u64, pdu: Pdu) -> Job {
        let header = &pdu.header;
        let unit = self.target().and_then(|target| target.unit(header.lun_field())).cloned();
        let (reads, writes) = (header.has(flag::READ), header.has(flag::WRITE));
        let expected = header.u32(at::EXPECTED_LEN);
        let announced_bytes = if writes { expected } else { 0 };
        let nothing = Facts { block_bytes: 512, blocks: 0, thin: false };
        let facts = unit.as_ref().map_or(nothing, |unit| unit.facts);
        let cdb = header.cdb();
        let command = Command::decode(&cdb, &facts);
        let received_bytes = pdu.data.len() as u32;
        let limit = self.settings.parameters.max_immediate_bytes().min(announced_bytes);
        let refusal = if pdu.has_additional || (reads && writes) {
            // Longer CDBs, and data in both directions.
            Some(Sense::INVALID_OPCODE)
        } else if !pdu.data_intact {
            Some(Sense::DATA_DIGEST)
        } else if received_bytes > limit || (writes && !header.has(flag::FINAL)) {
            // We agreed on data that was asked for.
            Some(Sense::UNEXPECTED_UNSOLICITED_DATA)
        } else {
            None
        };
        let wanted_bytes = match (&command, refusal) {
            (Ok(command), None) => command.data_out_bytes(&facts).min(announced_bytes.into()),
            _ => 0,
        };
        // What nobody wants is not kept.
        let mut data = pdu.data;
        data.truncate(wanted_bytes as usize);
        Job {
            order,
            tag: header.tag(),
            lun_field: header.lun_field(),
            unit,
            cdb,
            command,
            refusal,
            room_bytes: if reads { expected } else { 0 },
            announced_bytes,
            wanted_bytes,
            received_bytes,
            data,
            stopped: Arc::default(),
        }
    }

    pub(crate) fn data_out(&mut self, pdu: Pdu, now: Instant, actions: &mut Vec<Action>) {
        let header = &pdu.header;
        let order = self.by_tag.get(&header.tag()).copied();
        let task = order.and_then(|order| self.tasks.get_mut(&order));
        let (Some(order), Some(task)) = (order, task) else {
            if !self.remembers(header.tag(), now) {
                actions.push(rejected(&pdu, reject::INVALID_FIELD));
            }
            return;
        };
        // What comes for a transfer that failed, or was never asked for, is let pass.
        let (Some(transfer), Some(job)) = (&mut task.transfer, &mut task.job) else { return };
        let len = pdu.data.len() as u32;
        let is_last = header.has(flag::FINAL);
        let in_order = header.u32(at::TTT) == transfer.tag
            && header.u32(at::DATA_SN) == transfer.data_sn
            && u64::from(header.u32(at::OFFSET)) == job.data.len() as u64
            && (1..=transfer.left_bytes).contains(&len)
            && is_last == (len == transfer.left_bytes);
        if !in_order || !pdu.data_intact {
            job.refusal = Some(if in_order { Sense::DATA_DIGEST } else { Sense::DATA_PHASE });
            job.data = Vec::new();
            task.transfer = None;
            self.ready.push_back(order);
            if !is_last {
                self.remember(header.tag(), now);
            }
            return;
        }
        job.data.extend_from_slice(&pdu.data);
        job.received_bytes += len;
        transfer.data_sn += 1;
        transfer.left_bytes -= len;
        transfer.since = now;
        if !is_last {
            return;
        }
        if job.missing_bytes() == 0 {
            task.transfer = None;
            self.ready.push_back(order);
        } else {
            actions.extend(self.ask(order, now).map(Action::Send));
        }
    }

    /// Asks for the data of as many tasks as there is room for.
    fn ask_for_data(&mut self, now: Instant) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(order) = self.for_room.front().copied() {
            let missing = self.tasks.get(&order).and_then(|task| task.job.as_ref()).map_or(0, Job::missing_bytes);
            if missing > self.free_payload_bytes {
                break;
            }
            self.for_room.pop_front();
            self.free_payload_bytes -= missing;
            if let Some(task) = self.tasks.get_mut(&order) {
                task.held_bytes = missing;
            }
            answers.extend(self.ask(order, now));
        }
        answers
    }

    fn ask(&mut self, order: u64, now: Instant) -> Option<Answer> {
        let tag = self.transfer_tag();
        let max = u64::from(self.settings.parameters.max_burst_bytes);
        let task = self.tasks.get_mut(&order)?;
        let job = task.job.as_ref()?;
        let len = job.missing_bytes().min(max) as u32;
        let sn = task.transfer.as_ref().map_or(0, |transfer| transfer.next_sn);
        let header = Header::new(opcode::READY_TO_TRANSFER, flag::FINAL, job.tag)
            .with_lun(job.lun_field)
            .with_u32(at::TTT, tag)
            .with_u32(at::DATA_SN, sn)
            .with_u32(at::OFFSET, job.data.len() as u32)
            .with_u32(at::RESIDUAL, len);
        task.transfer = Some(Transfer { tag, next_sn: sn.wrapping_add(1), data_sn: 0, left_bytes: len, since: now });
        Some(Answer { header, data: Vec::new(), stat_sn: StatSn::Repeat })
    }

    /// Whether an initiator owes us data for too long.
    pub(crate) fn data_is_overdue(&self, now: Instant) -> bool {
        let mut transfers = self.tasks.values().filter_map(|task| task.transfer.as_ref());
        transfers.any(|transfer| now.saturating_duration_since(transfer.since) >= OVERDUE_DATA)
    }

    /// Whether [`next_job`](Self::next_job) would give one.
    pub(crate) fn has_job(&self) -> bool {
        self.next_ready().is_some()
    }

    /// A command to be carried out now.
    pub(crate) fn next_job(&mut self) -> Option<Job> {
        let index = self.next_ready()?;
        let order = self.ready.remove(index)?;
        self.tasks.get_mut(&order)?.job.take()
    }

    fn next_ready(&self) -> Option<usize> {
        if self.ordered == 0 {
            return (!self.ready.is_empty()).then_some(0);
        }
        let first_ordered = self.tasks.iter().find(|(_, task)| task.ordered).map(|(order, _)| *order)?;
        let is_first = self.tasks.keys().next() == Some(&first_ordered);
        self.ready.iter().position(|order| *order < first_ordered || (*order == first_ordered && is_first))
    }

    /// A job has ended, and has `changed` the medium or not. Must be called before its answer is sent, so that this
    /// says how the window opened.
    pub(crate) fn finish(&mut self, order: u64, changed: bool, now: Instant) -> Finished {
        let Some(task) = self.remove(order) else { return Finished::default() };
        let mut finished = Finished { respond: task.stop.is_none(), ..Finished::default() };
        if let Some(stop) = task.stop {
            if stop.only_this && changed {
                // The abort came too late: the initiator is told so, after the outcome.
                finished.respond = true;
                for pending in &stop.waiting {
                    pending.response.store(response::NO_SUCH_TASK, Ordering::SeqCst);
                }
            }
            finished.waiting = stop.waiting;
        }
        finished.answers = self.ask_for_data(now);
        finished
    }

    fn remove(&mut self, order: u64) -> Option<Task> {
        let task = self.tasks.remove(&order)?;
        self.by_tag.remove(&task.tag);
        self.ordered -= usize::from(task.ordered);
        self.immediate -= usize::from(task.immediate);
        self.free_payload_bytes += task.held_bytes;
        self.open_window();
        Some(task)
    }

    pub(crate) fn abort_task(&mut self, tag: u32, cmd_sn: u32, pending: &Arc<Pending>, now: Instant) -> Vec<Answer> {
        match self.by_tag.get(&tag).copied() {
            Some(order) => self.stop(order, true, pending, now),
            // A command that will never come counts as taken.
            None if self.window.skip(cmd_sn) => {}
            None => pending.response.store(response::NO_SUCH_TASK, Ordering::SeqCst),
        }
        self.ask_for_data(now)
    }

    /// Stops all tasks, or those of one unit.
    pub(crate) fn abort_tasks(&mut self, lun: Option<u16>, pending: &Arc<Pending>, now: Instant) -> Vec<Answer> {
        let orders: Vec<u64> = self.tasks.keys().copied().collect();
        for order in orders {
            if lun.is_none() || self.tasks.get(&order).and_then(|task| task.lun) == lun {
                self.stop(order, false, pending, now);
            }
        }
        self.ask_for_data(now)
    }

    /// Nobody listens any more: drops what has not begun, and lets what runs know.
    pub(crate) fn end(&mut self) {
        let waiting: Vec<u64> =
            self.tasks.iter().filter(|(_, task)| task.job.is_some()).map(|(order, _)| *order).collect();
        waiting.into_iter().for_each(|order| drop(self.remove(order)));
        self.ready.clear();
        self.for_room.clear();
        self.tasks.values().for_each(|task| task.stopped.store(true, Ordering::SeqCst));
    }

    fn stop(&mut self, order: u64, only_this: bool, pending: &Arc<Pending>, now: Instant) {
        let Some(task) = self.tasks.get_mut(&order) else { return };
        if task.job.is_none() {
            task.stopped.store(true, Ordering::SeqCst);
            let stop = task.stop.get_or_insert(Stop { only_this, ..Stop::default() });
            stop.only_this &= only_this;
            stop.waiting.push(pending.clone());
            return;
        }
        let tag = task.tag;
        if task.transfer.is_some() {
            self.remember(tag, now);
        }
        self.ready.retain(|ready| *ready != order);
        self.for_room.retain(|waiting| *waiting != order);
        self.remove(order);
    }

    /// Data for this tag may still be under way.
    fn remember(&mut self, tag: u32, now: Instant) {
        if self.ended_early.len() == MAX_ENDED {
            self.ended_early.pop_front();
        }
        self.ended_early.push_back((tag, now));
    }

    fn remembers(&mut self, tag: u32, now: Instant) -> bool {
        self.ended_early.retain(|(_, since)| now.saturating_duration_since(*since) < REMEMBER_ENDED);
        self.ended_early.iter().any(|(ended, _)| *ended == tag)
    }
}

impl Job {
    /// What is still to come before it can be carried out.
    fn missing_bytes(&self) -> u64 {
        if self.refusal.is_some() { 0 } else { self.wanted_bytes.saturating_sub(self.data.len() as u64) }
    }
}
