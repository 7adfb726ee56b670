//! A session in its full feature phase, as a state machine without a socket (spec B.3, B.6 to B.9).
//!
//! [`Session::handle`] takes what the initiator sent and says what follows at once. What needs the device becomes a
//! [`Job`], fetched with [`Session::next_job`], carried out by whoever has time (`job.rs`), and reported with
//! [`Session::finish`] before its answer goes out.

mod discovery;
mod exchange;
mod job;
mod task;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::login::{Parameters, Purpose};
use crate::pdu::Pdu;
use crate::scsi::Nexus;
use crate::session::exchange::TextExchange;
use crate::session::task::Task;
use crate::session::window::Window;
use crate::target::{Target, Targets};
use crate::wire::{Header, NO_TAG, at, flag, lun_number, opcode, reject};

pub(crate) use crate::session::job::Replies;
pub(crate) use crate::session::task::Job;

/// Commands of one session in progress and allowed ahead, together.
const MAX_COMMANDS: u32 = 128;
/// But no fewer than this, however long their immediate data.
const MIN_COMMANDS: u32 = 16;
/// What the immediate data of all commands that are allowed may take.
const IMMEDIATE_BYTES: u32 = 16 << 20;
/// Commands outside the window that are in progress at once.
const MAX_IMMEDIATE_COMMANDS: usize = 8;
/// An initiator that is silent this long is asked whether it lives, and after as long again given up.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);
/// An initiator that lives, but does not send the data we asked for, is given up after this.
const OVERDUE_DATA: Duration = Duration::from_secs(60);
/// How often that is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// A PDU to be sent. Whoever sends it enters the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) header: Header,
    pub(crate) data: Vec<u8>,
    pub(crate) stat_sn: StatSn,
}

/// What a PDU does to the count of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatSn {
    /// It carries the next number, and uses it up.
    Advance,
    /// It carries the next number.
    Repeat,
    /// It carries none.
    Absent,
}

impl Answer {
    fn new(header: Header) -> Self {
        Self { header, data: Vec::new(), stat_sn: StatSn::Advance }
    }
}

/// What follows from a PDU at once.
#[derive(Debug)]
pub(crate) enum Action {
    Send(Answer),
    /// Something that concerns other sessions of the target, too.
    Manage(Scope, Arc<Pending>),
    /// All that an answer waits for is known; it goes out when nobody else holds it.
    Release(Arc<Pending>),
    /// The initiator leaves: finish what runs, send this, close.
    Leave(Answer),
    /// Close without a word.
    Close,
}

/// What a task management function reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Tasks of all sessions on a unit.
    ClearTasks(u16),
    /// A unit: its tasks, and what its initiators changed.
    Unit(u16),
    /// All units.
    Target,
}

/// The answer to a task management function. It goes out when the last task that it stopped has let go of the device:
/// each of them holds a share of this.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Whose answer it is.
    pub(crate) session: u16,
    pub(crate) tag: u32,
    response: AtomicU8,
    /// Afterwards every connection to the target is closed.
    pub(crate) closes_target: bool,
}

impl Pending {
    pub(crate) fn answer(&self) -> Answer {
        let header = Header::new(opcode::TASK_MANAGEMENT_RESPONSE, flag::FINAL, self.tag);
        Answer::new(header.with_u8(at::RESPONSE, self.response.load(Ordering::SeqCst)))
    }
}

/// Responses to task management functions.
mod response {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_SUCH_TASK: u8 = 1;
    pub(super) const NO_SUCH_LUN: u8 = 2;
    pub(super) const NO_REASSIGNMENT: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
}

/// What a session is made of.
pub(crate) struct Settings {
    pub(crate) handle: u16,
    pub(crate) nexus: Nexus,
    pub(crate) cid: u16,
    pub(crate) purpose: Purpose,
    pub(crate) parameters: Parameters,
    pub(crate) first_cmd_sn: u32,
    pub(crate) targets: Arc<Targets>,
    /// Our address, as this connection sees it.
    pub(crate) portal: String,
    /// Data that the initiator may be asked to send, at once; at least the longest command's.
    pub(crate) payload_bytes: u64,
}

/// One initiator at one target, or one that lists targets.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    window: Window,
    /// By the order in which they came.
    tasks: BTreeMap<u64, Task>,
    by_tag: HashMap<u32, u64>,
    /// Tasks among them that wait for all before them.
    ordered: usize,
    /// Tasks that came outside the window.
    immediate: usize,
    next_order: u64,
    next_transfer_tag: u32,
    free_payload_bytes: u64,
    /// Tasks that wait until there is room for their data.
    for_room: VecDeque<u64>,
    ready: VecDeque<u64>,
    /// Tags of tasks that ended while data for them was still under way, and when.
    ended_early: VecDeque<(u32, Instant)>,
    text: TextExchange,
    heard: Instant,
    asked: bool,
    checked: Instant,
}

impl Session {
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        let immediate = settings.parameters.max_immediate_bytes().max(1);
        let limit = (IMMEDIATE_BYTES / immediate).clamp(MIN_COMMANDS, MAX_COMMANDS);
        Self {
            window: Window::new(settings.first_cmd_sn, limit),
            free_payload_bytes: settings.payload_bytes,
            settings,
            tasks: BTreeMap::new(),
            by_tag: HashMap::new(),
            ordered: 0,
            immediate: 0,
            next_order: 0,
            next_transfer_tag: 0,
            for_room: VecDeque::new(),
            ready: VecDeque::new(),
            ended_early: VecDeque::new(),
            text: TextExchange::default(),
            heard: now,
            asked: false,
            checked: now,
        }
    }

    /// The number of the next command, and the last that may be sent.
    pub(crate) fn window(&self) -> (u32, u32) {
        (self.window.expected(), self.window.max())
    }

    pub(crate) fn target(&self) -> Option<&Arc<Target>> {
        match &self.settings.purpose {
            Purpose::Normal(target) => Some(target),
            Purpose::Discovery => None,
        }
    }

    /// Takes a PDU.
    pub(crate) fn handle(&mut self, pdu: Pdu, now: Instant) -> Vec<Action> {
        self.heard = now;
        self.asked = false;
        let mut actions = Vec::new();
        if now.saturating_duration_since(self.checked) >= CHECK_EVERY {
            self.checked = now;
            if self.data_is_overdue(now) {
                return vec![Action::Close];
            }
        }
        let kind = pdu.header.opcode();
        let counted = matches!(
            kind,
            opcode::NOP_OUT | opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT | opcode::TEXT | opcode::LOGOUT
        );
        if counted && !pdu.header.is_immediate() && !self.window.take(pdu.header.u32(at::CMD_SN)) {
            return actions;
        }
        let of_disks = matches!(kind, opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT | opcode::DATA_OUT);
        match kind {
            _ if of_disks && self.target().is_none() => actions.push(rejected(&pdu, reject::PROTOCOL_ERROR)),
            opcode::NOP_OUT => actions.extend(self.nop(&pdu)),
            opcode::SCSI_COMMAND => self.command(pdu, now, &mut actions),
            opcode::DATA_OUT => self.data_out(pdu, now, &mut actions),
            opcode::TASK_MANAGEMENT => self.manage(&pdu.header, now, &mut actions),
            opcode::TEXT => actions.push(self.text_request(pdu)),
            opcode::LOGOUT => actions.push(self.logout(&pdu.header)),
            opcode::LOGIN => actions.push(rejected(&pdu, reject::PROTOCOL_ERROR)),
            _ => actions.push(rejected(&pdu, reject::NOT_SUPPORTED)),
        }
        self.open_window();
        actions
    }

    /// To be called when nothing came for a while: asks whether the initiator lives, or gives it up.
    pub(crate) fn silence(&mut self, now: Instant) -> Option<Action> {
        if self.data_is_overdue(now) {
            return Some(Action::Close);
        }
        if now.saturating_duration_since(self.heard) < SILENCE {
            return None;
        }
        if std::mem::replace(&mut self.asked, true) {
            return Some(Action::Close);
        }
        self.heard = now;
        // Our tag asks for an answer, whatever number it is.
        let header = Header::new(opcode::NOP_IN, flag::FINAL, NO_TAG).with_u32(at::TTT, self.transfer_tag());
        Some(Action::Send(Answer { stat_sn: StatSn::Repeat, ..Answer::new(header) }))
    }

    /// Asks the initiator to log out within `seconds` (asynchronous event 1).
    pub(crate) fn ask_to_leave(seconds: u16) -> Answer {
        let header = Header::new(opcode::ASYNC_MESSAGE, flag::FINAL, NO_TAG);
        Answer::new(header.with_u8(at::DATA_SN, 1).with_u16(at::OFFSET + 2, seconds))
    }

    fn open_window(&mut self) {
        self.window.open((self.tasks.len() - self.immediate) as u32);
    }

    fn transfer_tag(&mut self) -> u32 {
        let tag = self.next_transfer_tag;
        self.next_transfer_tag = if tag >= NO_TAG - 1 { 0 } else { tag + 1 };
        tag
    }

    fn nop(&self, pdu: &Pdu) -> Option<Action> {
        if pdu.header.tag() == NO_TAG {
            return None;
        }
        if !pdu.data_intact {
            return Some(rejected(pdu, reject::DATA_DIGEST));
        }
        let room = self.settings.parameters.max_send_bytes as usize;
        let header = Header::new(opcode::NOP_IN, flag::FINAL, pdu.header.tag())
            .with_lun(pdu.header.lun_field())
            .with_u32(at::TTT, NO_TAG);
        Some(Action::Send(Answer { data: pdu.data[..pdu.data.len().min(room)].to_vec(), ..Answer::new(header) }))
    }

    fn text_request(&mut self, pdu: Pdu) -> Action {
        let tag = self.transfer_tag();
        let settings = &self.settings;
        let compose = |text: &[u8]| {
            discovery::answer(text, &settings.targets, &settings.nexus.initiator, &settings.purpose, &settings.portal)
        };
        match self.text.handle(&pdu, tag, settings.parameters.max_send_bytes as usize, compose) {
            Ok(answer) => Action::Send(answer),
            Err(reason) => rejected(&pdu, reason),
        }
    }

    fn logout(&mut self, request: &Header) -> Action {
        let reason = request.0[at::FLAGS] & 0x7F;
        let (response, leaves) = match reason {
            0 => (0, true),
            1 if request.u16(at::CID) == self.settings.cid => (0, true),
            1 => (1, false),
            2 => (2, false),
            _ => (3, false),
        };
        let header = Header::new(opcode::LOGOUT_RESPONSE, flag::FINAL, request.tag()).with_u8(at::RESPONSE, response);
        let answer = Answer::new(header);
        if leaves { Action::Leave(answer) } else { Action::Send(answer) }
    }

    /// Task management (spec B.8). What other sessions must hear of is left to the caller.
    fn manage(&mut self, request: &Header, now: Instant, actions: &mut Vec<Action>) {
        let function = request.0[at::FLAGS] & 0x7F;
        let unit = self.target().and_then(|target| target.unit(request.lun_field()));
        let lun = unit.and(lun_number(request.lun_field()));
        let pending = |response, closes_target| {
            Arc::new(Pending {
                session: self.settings.handle,
                tag: request.tag(),
                response: AtomicU8::new(response),
                closes_target,
            })
        };
        let complete = pending(response::COMPLETE, function == 7);
        let action = match (function, lun) {
            (1, _) => {
                let (tag, number) = (request.u32(at::REFERENCED_TAG), request.u32(at::REF_CMD_SN));
                actions.extend(self.abort_task(tag, number, &complete, now).into_iter().map(Action::Send));
                Action::Release(complete)
            }
            (2, Some(lun)) => {
                actions.extend(self.abort_tasks(Some(lun), &complete, now).into_iter().map(Action::Send));
                Action::Release(complete)
            }
            (4, Some(lun)) => Action::Manage(Scope::ClearTasks(lun), complete),
            (5, Some(lun)) => Action::Manage(Scope::Unit(lun), complete),
            (2 | 4 | 5, None) => Action::Release(pending(response::NO_SUCH_LUN, false)),
            (6 | 7, _) => Action::Manage(Scope::Target, complete),
            (8, _) => Action::Release(pending(response::NO_REASSIGNMENT, false)),
            _ => Action::Release(pending(response::NOT_SUPPORTED, false)),
        };
        actions.push(action);
    }
}

fn rejected(pdu: &Pdu, reason: u8) -> Action {
    let header = Header::new(opcode::REJECT, flag::FINAL, NO_TAG).with_u8(at::RESPONSE, reason);
    Action::Send(Answer { data: pdu.header.0.to_vec(), ..Answer::new(header) })
}
