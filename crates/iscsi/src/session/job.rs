//! Carrying a job out, and telling the initiator: data, status, residuals (spec B.7).

use std::io;
use std::sync::atomic::Ordering;

use crate::login::Parameters;
use crate::scsi::{Command, Nexus, Outcome, Sense, inquire_nothing, read_failed, status};
use crate::session::{Job, StatSn};
use crate::target::Target;
use crate::wire::{Header, NO_TAG, at, flag, opcode};

/// Bytes read from the device at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Where answers go. Called by several threads, a PDU at a time.
pub(crate) trait Replies {
    /// Sends a PDU, after its numbers were entered.
    fn send(&self, header: Header, data: &[u8], stat_sn: StatSn) -> io::Result<()>;
}

/// How a job ended. The data it still has to send goes out with the status.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    status: u8,
    sense: Vec<u8>,
    residual: Residual,
    data: &'a [u8],
    stream: Stream,
    /// The medium is not what it was.
    pub(crate) changed: bool,
}

/// What was to be moved and was not, or could not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Residual {
    flag: u8,
    count: u32,
}

impl Residual {
    const NONE: Self = Self { flag: 0, count: 0 };

    /// Of a command that has `there` bytes to move where `expected` were.
    fn of(there: u64, expected: u32) -> Self {
        let expected = u64::from(expected);
        let count = u32::try_from(there.abs_diff(expected)).unwrap_or(u32::MAX);
        match there.cmp(&expected) {
            std::cmp::Ordering::Less => Self { flag: flag::UNDERFLOW, count },
            std::cmp::Ordering::Equal => Self::NONE,
            std::cmp::Ordering::Greater => Self { flag: flag::OVERFLOW, count },
        }
    }
}

/// Data-In of one command.
#[derive(Debug)]
struct Stream {
    tag: u32,
    max_bytes: usize,
    max_burst_bytes: usize,
    burst_left_bytes: usize,
    next_sn: u32,
    offset: u32,
}

impl Stream {
    fn new(tag: u32, parameters: &Parameters) -> Self {
        let max_burst_bytes = parameters.max_burst_bytes as usize;
        let max_bytes = parameters.max_send_bytes as usize;
        Self { tag, max_bytes, max_burst_bytes, burst_left_bytes: max_burst_bytes, next_sn: 0, offset: 0 }
    }

    /// Sends `data`; the last of it with a good status when `closing` has the residual for it.
    fn send(&mut self, mut data: &[u8], closing: Option<Residual>, replies: &impl Replies) -> io::Result<()> {
        while !data.is_empty() {
            let (part, rest) = data.split_at(data.len().min(self.max_bytes).min(self.burst_left_bytes));
            data = rest;
            self.burst_left_bytes -= part.len();
            let mut header = Header::new(opcode::DATA_IN, 0, self.tag)
                .with_u32(at::TTT, NO_TAG)
                .with_u32(at::DATA_SN, self.next_sn)
                .with_u32(at::OFFSET, self.offset);
            let mut stat_sn = StatSn::Absent;
            match closing {
                Some(residual) if data.is_empty() => {
                    header.0[at::FLAGS] = flag::FINAL | flag::STATUS | residual.flag;
                    header.set_u32(at::RESIDUAL, residual.count);
                    stat_sn = StatSn::Advance;
                }
                _ if self.burst_left_bytes == 0 => header.0[at::FLAGS] = flag::FINAL,
                _ => {}
            }
            if self.burst_left_bytes == 0 {
                self.burst_left_bytes = self.max_burst_bytes;
            }
            replies.send(header, part, stat_sn)?;
            self.next_sn += 1;
            self.offset = self.offset.wrapping_add(part.len() as u32);
        }
        Ok(())
    }
}

impl Job {
    /// Carries the command out. Long reads send what they have as they go; `buf` keeps the last piece for
    /// [`Ending::send`]. An error is one of `replies`.
    pub(crate) fn run<'a>(
        &self,
        nexus: &Nexus,
        target: &Target,
        parameters: &Parameters,
        replies: &impl Replies,
        buf: &'a mut Vec<u8>,
    ) -> io::Result<Ending<'a>> {
        let mut stream = Stream::new(self.tag, parameters);
        let outcome = match self.admitted(nexus) {
            Ok(Command::Read(blocks)) => {
                let unit = self.unit.as_ref();
                let range = unit.map_or(0..0, |unit| unit.bytes(*blocks));
                let there = range.end - range.start;
                let wanted = there.min(self.room_bytes.into());
                let mut sent = 0;
                let outcome = loop {
                    let piece = (wanted - sent).min(PIECE_BYTES);
                    let Some(unit) = unit.filter(|_| piece > 0) else { break Outcome::Good };
                    // Whole blocks are read, whatever room there is for the last.
                    let len = piece.next_multiple_of(unit.facts.block_bytes.into()) as usize;
                    if buf.len() < len {
                        buf.resize(len, 0);
                    }
                    let at = range.start + sent;
                    if let Err(error) = unit.device.read_at(&mut buf[..len], at) {
                        break read_failed(&error, at / u64::from(unit.facts.block_bytes));
                    }
                    if sent + piece == wanted || self.stopped.load(Ordering::SeqCst) {
                        let residual = Residual::of(there, self.room_bytes);
                        let data = &buf[..piece as usize];
                        return Ok(Ending { residual, data, ..Ending::new(status::GOOD, stream) });
                    }
                    stream.send(&buf[..piece as usize], None, replies)?;
                    sent += piece;
                };
                let residual = match outcome {
                    Outcome::Good => Residual::of(there, self.room_bytes),
                    _ => Residual::of(sent, self.room_bytes),
                };
                return Ok(self.ending(outcome, residual, stream));
            }
            Ok(Command::ReportLuns { select, allocation }) => {
                let mut data = report_luns(target, *select);
                data.truncate(*allocation as usize);
                Outcome::Data(data)
            }
            Ok(command) => match &self.unit {
                Some(unit) => unit.perform(command, &self.data, self.announced_bytes, nexus),
                None => self.without_unit(command, target),
            },
            Err(outcome) => outcome,
        };
        if let Outcome::Data(data) = outcome {
            let residual = Residual::of(data.len() as u64, self.room_bytes);
            *buf = data;
            let len = buf.len().min(self.room_bytes as usize);
            return Ok(Ending { residual, data: &buf[..len], ..Ending::new(status::GOOD, stream) });
        }
        let residual = match outcome {
            Outcome::Good if self.writes_bytes() > 0 || self.announced_bytes > 0 => {
                Residual::of(self.writes_bytes(), self.announced_bytes)
            }
            Outcome::Good => Residual::of(0, self.room_bytes),
            // Everything that was announced came, though it was of no use.
            _ if self.announced_bytes > 0 => Residual::of(self.received_bytes.into(), self.announced_bytes),
            _ => Residual::of(0, self.room_bytes),
        };
        Ok(self.ending(outcome, residual, stream))
    }

    /// The command, when nothing speaks against it: in the order of spec B.10.
    fn admitted(&self, nexus: &Nexus) -> Result<&Command, Outcome> {
        if let Some(refusal) = self.refusal {
            return Err(refusal.into());
        }
        if let Some(unit) = &self.unit {
            unit.state().admit(nexus, &self.cdb)?;
        } else if !matches!(
            self.command,
            Ok(Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. })
        ) {
            return Err(Sense::NO_SUCH_UNIT.into());
        }
        self.command.as_ref().map_err(|sense| (*sense).into())
    }

    /// What can be said where there is no unit.
    fn without_unit(&self, command: &Command, target: &Target) -> Outcome {
        let (mut data, allocation) = match *command {
            Command::Inquiry { page, allocation } => {
                let identity = target.units.values().next().map(|unit| &unit.options.identity);
                match inquire_nothing(identity, page) {
                    Ok(data) => (data, allocation),
                    Err(sense) => return sense.into(),
                }
            }
            Command::RequestSense { descriptors, allocation } => (Sense::NO_SUCH_UNIT.encode(descriptors), allocation),
            _ => return Sense::NO_SUCH_UNIT.into(),
        };
        data.truncate(allocation as usize);
        Outcome::Data(data)
    }

    /// What a write that succeeded wanted, whether or not it was announced.
    fn writes_bytes(&self) -> u64 {
        match (&self.command, &self.unit) {
            (Ok(command), Some(unit)) => command.data_out_bytes(&unit.facts),
            _ => 0,
        }
    }

    fn ending(&self, outcome: Outcome, residual: Residual, stream: Stream) -> Ending<'static> {
        match outcome {
            Outcome::Good | Outcome::Data(_) => {
                let changed = self.command.as_ref().is_ok_and(Command::changes_medium);
                Ending { residual, changed, ..Ending::new(status::GOOD, stream) }
            }
            Outcome::Status(status) => Ending { residual, ..Ending::new(status, stream) },
            Outcome::Check(sense) => {
                let descriptors = self.unit.as_ref().is_some_and(|unit| unit.has_descriptor_sense());
                let sense = sense.encode(descriptors);
                Ending { residual, sense, ..Ending::new(status::CHECK_CONDITION, stream) }
            }
        }
    }
}

impl Ending<'_> {
    fn new(status: u8, stream: Stream) -> Self {
        Self { status, sense: Vec::new(), residual: Residual::NONE, data: &[], stream, changed: false }
    }

    /// Tells the initiator.
    pub(crate) fn send(mut self, replies: &impl Replies) -> io::Result<()> {
        if self.status == status::GOOD && !self.data.is_empty() {
            // The status of a success comes with the last of the data.
            return self.stream.send(self.data, Some(self.residual), replies);
        }
        let mut data = Vec::new();
        if !self.sense.is_empty() {
            data.extend((self.sense.len() as u16).to_be_bytes());
            data.append(&mut self.sense);
        }
        let header = Header::new(opcode::SCSI_RESPONSE, flag::FINAL | self.residual.flag, self.stream.tag)
            .with_u8(at::STATUS, self.status)
            .with_u32(at::DATA_SN, self.stream.next_sn)
            .with_u32(at::RESIDUAL, self.residual.count);
        replies.send(header, &data, StatSn::Advance)
    }
}

/// Units by number. Well-known ones (`select` 1) there are none.
fn report_luns(target: &Target, select: u8) -> Vec<u8> {
    let mut data = vec![0; 8];
    if select != 1 {
        for number in target.units.keys() {
            data.extend([0, *number, 0, 0, 0, 0, 0, 0]);
        }
    }
    let len = data.len() as u32 - 8;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}
