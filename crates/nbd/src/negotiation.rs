//! The handshake, as a state machine that is fed bytes (spec A.1, A.2).

use std::sync::Arc;

use crate::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, CLIENT_NO_ZEROES, EXPORT_NAME_PADDING, GREETING_MAGIC, HANDSHAKE_FLAGS,
    KNOWN_CLIENT_FLAGS, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, PREFERRED_BLOCK_BYTES,
    SECTOR_BYTES, answer, array_at, info, option, transmission,
};
use crate::{Export, Exports};

/// Options per connection.
const MAX_OPTIONS: u32 = 64;
/// Longest data of an option that is looked at.
const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Longest data of an option that is skipped; beyond it the connection ends.
const MAX_SKIPPED_BYTES: u32 = 1 << 20;
const OPTION_HEADER_BYTES: usize = 16;
const TLS_NEEDED: (u32, &str) = (answer::ERR_TLS_REQD, "this server speaks with nobody but over TLS: start it");

/// One client's handshake, from the server's side.
///
/// Holds at most one option's data, 64 KiB. How the client's bytes are cut makes no difference.
pub struct Negotiation<'a> {
    exports: &'a Exports,
    security: Security,
    /// What is said is sealed.
    is_secured: bool,
    expected: Expected,
    /// The part of what is expected that has arrived.
    arrived: Vec<u8>,
    option_count: u32,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected last.
    selected: Option<Arc<Export>>,
    draining: bool,
}

/// Whether a connection can be secured by TLS (spec A.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// There is no TLS.
    Plain,
    /// The client may ask for it.
    MayStartTls,
    /// Nothing is told to a client without it.
    MustStartTls,
}

/// How a handshake goes on.
#[derive(Debug)]
pub enum Step {
    /// With more of the client's bytes.
    More,
    /// The client's next byte is the first of TLS, and the rest is to be fed as it comes out of that.
    StartTls,
    /// Requests follow.
    Transmit(Agreement),
    /// Not at all.
    Close,
}

/// What client and server agreed on.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// What is served.
    pub export: Arc<Export>,
    /// Replies that can be long are structured.
    pub structured: bool,
    /// BLOCK_STATUS may be asked.
    pub allocation: bool,
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    ClientFlags,
    OptionHeader,
    OptionData {
        option: u32,
        len_bytes: u32,
    },
    /// Data of an option that is too long.
    Skipped {
        option: u32,
        left_bytes: u32,
    },
}

/// What comes back for an option, beside the answers that were written already.
enum Answer {
    Ack,
    Error(u32, &'static str),
    Close,
    AckAndClose,
    /// ACK is the last that is sent in the clear.
    StartTls,
    /// ACK is sent, and requests follow.
    Go(Agreement),
    /// Requests follow without ACK.
    GoSilently(Agreement),
}

impl<'a> Negotiation<'a> {
    /// Before the first byte.
    pub fn new(exports: &'a Exports, security: Security) -> Self {
        Self {
            exports,
            security,
            is_secured: false,
            expected: Expected::ClientFlags,
            arrived: Vec::new(),
            option_count: 0,
            no_zeroes: false,
            structured: false,
            selected: None,
            draining: false,
        }
    }

    /// What the server says first.
    pub fn greeting() -> [u8; 18] {
        let mut greeting = [0; 18];
        greeting[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
        greeting[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        greeting[16..].copy_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
        greeting
    }

    /// From now on every option but ABORT is told that the server ends.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Takes bytes of the client and appends the answer to `output`. Gives how many bytes it took, at most up to the
    /// end of one option, so that an answer is one write (spec A.1); the rest is fed again, or is the first request.
    pub fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> (usize, Step) {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            if let Expected::Skipped { option, left_bytes } = self.expected {
                let len = rest.len().min(left_bytes as usize);
                taken += len;
                // No more than was left, which is 32 bits.
                let left_bytes = left_bytes - len as u32;
                if left_bytes > 0 {
                    self.expected = Expected::Skipped { option, left_bytes };
                    return (taken, Step::More);
                }
                self.expected = Expected::OptionHeader;
                let (code, text) = match self.needs_tls(option) {
                    true => TLS_NEEDED,
                    false => (answer::ERR_TOO_BIG, "the data of this option is longer than 64 KiB"),
                };
                write_answer(output, option, code, text.as_bytes());
                return (taken, Step::More);
            }
            let wanted = match self.expected {
                Expected::ClientFlags => 4,
                Expected::OptionHeader => OPTION_HEADER_BYTES,
                Expected::OptionData { len_bytes, .. } | Expected::Skipped { left_bytes: len_bytes, .. } => {
                    len_bytes as usize
                }
            };
            let len = rest.len().min(wanted - self.arrived.len());
            self.arrived.extend_from_slice(&rest[..len]);
            taken += len;
            if self.arrived.len() < wanted {
                return (taken, Step::More);
            }
            let arrived = std::mem::take(&mut self.arrived);
            if let Expected::OptionData { option, .. } = self.expected {
                self.expected = Expected::OptionHeader;
                return (taken, self.answer(option, &arrived, output));
            }
            if !self.take_header(&arrived) {
                return (taken, Step::Close);
            }
        }
    }

    /// The client's flags, or the header of an option. False ends the connection.
    fn take_header(&mut self, bytes: &[u8]) -> bool {
        if let Expected::ClientFlags = self.expected {
            let flags = u32::from_be_bytes(array_at(bytes, 0));
            self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
            self.expected = Expected::OptionHeader;
            return flags & !KNOWN_CLIENT_FLAGS == 0;
        }
        let magic = u64::from_be_bytes(array_at(bytes, 0));
        let option = u32::from_be_bytes(array_at(bytes, 8));
        let len_bytes = u32::from_be_bytes(array_at(bytes, 12));
        self.option_count += 1;
        self.expected = match len_bytes {
            0..=MAX_OPTION_BYTES => Expected::OptionData { option, len_bytes },
            _ => Expected::Skipped { option, left_bytes: len_bytes },
        };
        magic == OPTION_MAGIC && self.option_count <= MAX_OPTIONS && len_bytes <= MAX_SKIPPED_BYTES
    }

    fn answer(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Step {
        let answer = match option {
            option::ABORT => Answer::AckAndClose,
            option::EXPORT_NAME if self.draining || self.needs_tls(option) => Answer::Close,
            _ if self.draining => Answer::Error(answer::ERR_SHUTDOWN, "the server is shutting down"),
            option::EXPORT_NAME => self.export_name(data, output),
            _ if self.needs_tls(option) => Answer::Error(TLS_NEEDED.0, TLS_NEEDED.1),
            option::LIST => self.list(data, output),
            option::STARTTLS if !data.is_empty() => no_data_allowed(),
            option::STARTTLS if self.is_secured => Answer::Error(answer::ERR_INVALID, "TLS was started before"),
            option::STARTTLS if self.security == Security::Plain => {
                Answer::Error(answer::ERR_POLICY, "TLS is not set up on this server")
            }
            option::STARTTLS => {
                // What was agreed on in the clear, anybody may have said.
                (self.is_secured, self.structured, self.selected) = (true, false, None);
                Answer::StartTls
            }
            option::INFO | option::GO => self.info(option, data, output),
            option::STRUCTURED_REPLY if !data.is_empty() => no_data_allowed(),
            option::STRUCTURED_REPLY => {
                self.structured = true;
                Answer::Ack
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data, output),
            _ => Answer::Error(answer::ERR_UNSUP, "this server does not know the option"),
        };
        match answer {
            Answer::Error(code, text) => write_answer(output, option, code, text.as_bytes()),
            Answer::Ack | Answer::AckAndClose | Answer::StartTls | Answer::Go(_) => {
                write_answer(output, option, answer::ACK, &[])
            }
            Answer::Close | Answer::GoSilently(_) => {}
        }
        match answer {
            Answer::Ack | Answer::Error(..) => Step::More,
            Answer::StartTls => Step::StartTls,
            Answer::Close | Answer::AckAndClose => Step::Close,
            Answer::Go(agreement) | Answer::GoSilently(agreement) => Step::Transmit(agreement),
        }
    }

    fn needs_tls(&self, option: u32) -> bool {
        let is_free = matches!(option, option::STARTTLS | option::ABORT);
        self.security == Security::MustStartTls && !self.is_secured && !is_free
    }

    /// The option of the oldest clients: no way to answer but with the export itself.
    fn export_name(&mut self, name: &[u8], output: &mut Vec<u8>) -> Answer {
        let Some(export) = text(name).and_then(|name| self.exports.find(name)) else { return Answer::Close };
        output.extend(export.device.size_bytes().to_be_bytes());
        output.extend(transmission_flags(export, self.structured).to_be_bytes());
        if !self.no_zeroes {
            output.extend([0; EXPORT_NAME_PADDING]);
        }
        Answer::GoSilently(self.agreement(export))
    }

    fn list(&self, data: &[u8], output: &mut Vec<u8>) -> Answer {
        if !data.is_empty() {
            return no_data_allowed();
        }
        for export in self.exports.iter() {
            let name = export.name.as_bytes();
            // Names are at most 4096 bytes.
            let parts = [&(name.len() as u32).to_be_bytes(), name, export.description.as_bytes()];
            write_answer(output, option::LIST, answer::SERVER, &parts.concat());
        }
        Answer::Ack
    }

    /// INFO and GO differ in what follows only.
    fn info(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Answer {
        let mut fields = Fields(data);
        let parsed = fields.string().and_then(|name| {
            let count = fields.u16()?;
            let wanted = fields.bytes(usize::from(count) * 2)?;
            fields.is_at_end().then_some((name, wanted))
        });
        let Some((name, wanted)) = parsed else { return malformed() };
        let Some(export) = self.exports.find(name) else { return unknown() };
        let wants = |kind: u16| wanted.chunks_exact(2).any(|pair| pair == kind.to_be_bytes());
        let mut write = |kind: u16, parts: &[&[u8]]| {
            write_answer(output, option, answer::INFO, &[&kind.to_be_bytes(), &*parts.concat()].concat());
        };
        let flags = transmission_flags(export, self.structured);
        write(info::EXPORT, &[&export.device.size_bytes().to_be_bytes(), &flags.to_be_bytes()]);
        if wants(info::NAME) {
            write(info::NAME, &[export.name.as_bytes()]);
        }
        if wants(info::DESCRIPTION) {
            write(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        let sizes = [SECTOR_BYTES as u32, PREFERRED_BLOCK_BYTES, MAX_PAYLOAD_BYTES].map(u32::to_be_bytes);
        write(info::BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
        match option {
            option::GO => Answer::Go(self.agreement(export)),
            _ => Answer::Ack,
        }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], output: &mut Vec<u8>) -> Answer {
        let selects = option == option::SET_META_CONTEXT;
        if selects {
            self.selected = None;
        }
        if !self.structured {
            return Answer::Error(answer::ERR_INVALID, "contexts need structured replies, which were not agreed on");
        }
        let mut fields = Fields(data);
        let parsed = fields.string().and_then(|name| {
            let mut queries = Vec::new();
            for _ in 0..fields.u32()? {
                queries.push(fields.string()?);
            }
            fields.is_at_end().then_some((name, queries))
        });
        let Some((name, queries)) = parsed else { return malformed() };
        let Some(export) = self.exports.find(name) else { return unknown() };
        let matches = match selects {
            true => queries.contains(&BASE_ALLOCATION),
            false => queries.is_empty() || queries.iter().any(|query| matches!(*query, BASE_ALLOCATION | "base:")),
        };
        if matches {
            let id = if selects { BASE_ALLOCATION_ID } else { 0 };
            let parts = [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()];
            write_answer(output, option, answer::META_CONTEXT, &parts.concat());
        }
        if matches && selects {
            self.selected = Some(export.clone());
        }
        Answer::Ack
    }

    fn agreement(&self, export: &Arc<Export>) -> Agreement {
        let allocation = self.selected.as_ref().is_some_and(|selected| Arc::ptr_eq(selected, export));
        Agreement { export: export.clone(), structured: self.structured, allocation }
    }
}

/// What the client is told that it may send (spec A.3).
fn transmission_flags(export: &Export, structured: bool) -> u16 {
    use transmission as t;
    // CAN_MULTI_CONN is what the contract of `Device` says of flushes and reads.
    let always = t::HAS_FLAGS | t::SEND_FLUSH | t::SEND_FUA | t::CAN_MULTI_CONN | t::SEND_CACHE;
    let writing = match export.read_only {
        true => t::READ_ONLY,
        false => t::SEND_TRIM | t::SEND_WRITE_ZEROES | t::SEND_FAST_ZERO,
    };
    always | writing | if structured { t::SEND_DF } else { 0 }
}

fn no_data_allowed() -> Answer {
    Answer::Error(answer::ERR_INVALID, "this option has no data")
}

fn malformed() -> Answer {
    Answer::Error(answer::ERR_INVALID, "the lengths in this option's data do not add up")
}

fn unknown() -> Answer {
    Answer::Error(answer::ERR_UNKNOWN, "there is no such export; list them to see the names")
}

fn write_answer(output: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend(option.to_be_bytes());
    output.extend(kind.to_be_bytes());
    // Built here, from strings of at most 4096 bytes.
    output.extend((data.len() as u32).to_be_bytes());
    output.extend(data);
}

fn text(bytes: &[u8]) -> Option<&str> {
    let is_string = bytes.len() <= MAX_STRING_BYTES && !bytes.contains(&0);
    std::str::from_utf8(bytes).ok().filter(|_| is_string)
}

/// Reads the data of an option from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|bytes| u16::from_be_bytes(array_at(bytes, 0)))
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|bytes| u32::from_be_bytes(array_at(bytes, 0)))
    }

    /// A length, and that many bytes of text.
    fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len).and_then(text)
    }

    fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
