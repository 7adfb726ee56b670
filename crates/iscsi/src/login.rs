//! Logging in, as a state machine without a socket: who it is, to what, and on which terms (RFC 7143 6.3, spec B.4).

mod chap;
mod parameters;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::login::chap::{Chap, Keys};
use crate::login::parameters::Answer;
use crate::target::{Authentication, Target, Targets};
use crate::text::{Pieces, Text, pairs};
use crate::wire::{Header, MAX_TEXT_BYTES, PORTAL_GROUP, at, flag, opcode};

pub(crate) use crate::login::parameters::Parameters;

/// Requests of one login, at most.
const MAX_ROUNDS: usize = 20;
/// Commands that the answers to a login allow ahead; the session sets its own window afterwards.
const LOGIN_WINDOW: u32 = 32;
/// Longest name of an initiator (RFC 7143 4.2.7.1).
const MAX_NAME_BYTES: usize = 223;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// Class and detail of an answer that ends a login (RFC 7143 11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginStatus {
    InitiatorError = 0x0200,
    AuthenticationFailed = 0x0201,
    NotAllowed = 0x0202,
    NoSuchTarget = 0x0203,
    UnsupportedVersion = 0x0205,
    TooManyConnections = 0x0206,
    MissingParameter = 0x0207,
    UnsupportedSessionType = 0x0209,
    NoSuchSession = 0x020A,
    ServiceUnavailable = 0x0301,
    OutOfResources = 0x0302,
}

/// What a login sees of the server it is for.
pub(crate) struct Host<'a> {
    pub(crate) targets: &'a Targets,
    /// Whether there is a session with that handle.
    pub(crate) has_session: &'a dyn Fn(u16) -> bool,
    /// Nobody is let in any more.
    pub(crate) draining: bool,
}

/// A login on its way.
pub(crate) struct Login<'a> {
    host: Host<'a>,
    rounds: usize,
    text_bytes: usize,
    pieces: Pieces,
    first: Option<First>,
    stage: u8,
    who: Who,
    settled: BTreeSet<String>,
    /// Known from the first complete text on.
    purpose: Option<Purpose>,
    authentication: Proof,
    introduced: bool,
    declared: bool,
    parameters: Parameters,
}

/// Fields that all requests of a login share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct First {
    isid: [u8; 6],
    tag: u32,
    cid: u16,
    cmd_sn: u32,
}

#[derive(Debug, Default)]
struct Who {
    initiator: Option<String>,
    session_type: Option<String>,
    target: Option<String>,
}

#[derive(Debug)]
enum Proof {
    NotWanted,
    /// Wanted; the method is not agreed on yet.
    Wanted(Authentication),
    Chap(Chap),
}

/// What a session is for.
#[derive(Clone)]
pub(crate) enum Purpose {
    /// To list targets.
    Discovery,
    /// To use one.
    Normal(Arc<Target>),
}

/// What follows from a request.
pub(crate) enum Step {
    /// Send it, and wait for the next request.
    Answer(Header, Vec<u8>),
    /// Send it, and close.
    Refuse(Header),
    /// The login is complete, once the session's handle is entered into the answer and that is sent.
    Done(Box<Established>),
    /// Close without a word: this is no login.
    Close,
}

/// What was logged in.
pub(crate) struct Established {
    pub(crate) initiator: String,
    pub(crate) isid: [u8; 6],
    pub(crate) cid: u16,
    pub(crate) purpose: Purpose,
    pub(crate) parameters: Parameters,
    /// Number of the first command.
    pub(crate) cmd_sn: u32,
    pub(crate) answer: Header,
    pub(crate) text: Vec<u8>,
}

impl Established {
    /// The answer that refuses it after all.
    pub(crate) fn refused(&self, status: LoginStatus) -> Header {
        let mut header = self.answer.clone();
        header.0[at::FLAGS] &= 0x0C;
        with_status(header, status)
    }
}

impl<'a> Login<'a> {
    pub(crate) fn new(host: Host<'a>) -> Self {
        Self {
            host,
            rounds: 0,
            text_bytes: 0,
            pieces: Pieces::default(),
            first: None,
            stage: SECURITY,
            who: Who::default(),
            settled: BTreeSet::new(),
            purpose: None,
            authentication: Proof::NotWanted,
            introduced: false,
            declared: false,
            parameters: Parameters::default(),
        }
    }

    /// Takes the next PDU. After anything but [`Step::Answer`] there is none.
    pub(crate) fn handle(&mut self, request: &Header, data: &[u8]) -> Step {
        if request.opcode() != opcode::LOGIN {
            return Step::Close;
        }
        match self.answer(request, data) {
            Ok(step) => step,
            Err(status) => {
                let stage = request.0[at::FLAGS] & 0x0C;
                Step::Refuse(with_status(self.response(request, stage), status))
            }
        }
    }

    fn answer(&mut self, request: &Header, data: &[u8]) -> Result<Step, LoginStatus> {
        let flags = request.0[at::FLAGS];
        let (transit, more) = (flags & flag::FINAL != 0, flags & flag::CONTINUE != 0);
        let (stage, next) = (flags >> 2 & 3, flags & 3);
        self.check_order(request, stage)?;
        let next_is_valid = (stage == SECURITY && next == OPERATIONAL) || next == FULL_FEATURE;
        if transit && (more || !next_is_valid) {
            return Err(LoginStatus::InitiatorError);
        }
        self.text_bytes += data.len();
        if self.text_bytes > MAX_TEXT_BYTES {
            return Err(LoginStatus::InitiatorError);
        }
        self.pieces.add(data).map_err(|_| LoginStatus::InitiatorError)?;
        if more {
            return Ok(Step::Answer(self.response(request, stage << 2), Vec::new()));
        }

        let text = self.pieces.take();
        let pairs = pairs(&text).map_err(|_| LoginStatus::InitiatorError)?;
        let mut answer = Text::default();
        self.take_names(&pairs)?;
        let purpose = self.settle_purpose()?;
        self.introduce(&purpose, &mut answer);
        self.take_security(stage, &pairs, &mut answer)?;
        self.take_parameters(stage, &pairs, &mut answer)?;

        let proven = self.is_proven();
        // The method just agreed on has its own rounds to go; without one there will be no proof.
        if !proven && (stage == OPERATIONAL || (transit && matches!(self.authentication, Proof::Wanted(_)))) {
            return Err(LoginStatus::AuthenticationFailed);
        }
        if !(transit && proven) {
            return Ok(Step::Answer(self.response(request, stage << 2), answer.into_bytes()));
        }
        self.stage = next;
        let header = self.response(request, flag::FINAL | stage << 2 | next);
        if next != FULL_FEATURE {
            return Ok(Step::Answer(header, answer.into_bytes()));
        }
        let (Some(first), Some(initiator)) = (&self.first, &self.who.initiator) else {
            return Err(LoginStatus::InitiatorError);
        };
        Ok(Step::Done(Box::new(Established {
            initiator: initiator.clone(),
            isid: first.isid,
            cid: first.cid,
            purpose,
            parameters: self.parameters.clone(),
            cmd_sn: first.cmd_sn,
            answer: header,
            text: answer.into_bytes(),
        })))
    }

    /// Whether this request may follow what there was.
    fn check_order(&mut self, request: &Header, stage: u8) -> Result<(), LoginStatus> {
        self.rounds += 1;
        // The lowest version that the initiator speaks; there is only version 0.
        if request.0[3] != 0 {
            return Err(LoginStatus::UnsupportedVersion);
        }
        let tsih = request.u16(at::TSIH);
        if tsih != 0 {
            let known = (self.host.has_session)(tsih);
            return Err(if known { LoginStatus::TooManyConnections } else { LoginStatus::NoSuchSession });
        }
        let this = First {
            isid: request.isid(),
            tag: request.tag(),
            cid: request.u16(at::CID),
            cmd_sn: request.u32(at::CMD_SN),
        };
        let consistent = match &self.first {
            Some(first) => {
                first.isid == this.isid && first.tag == this.tag && first.cid == this.cid && self.stage == stage
            }
            None => stage == SECURITY || stage == OPERATIONAL,
        };
        if !consistent || self.rounds > MAX_ROUNDS {
            return Err(LoginStatus::InitiatorError);
        }
        if self.first.is_none() {
            self.first = Some(this);
            self.stage = stage;
        }
        Ok(())
    }

    /// Names may be said in every stage, but not differently.
    fn take_names(&mut self, pairs: &[(&str, &str)]) -> Result<(), LoginStatus> {
        for (key, value) in pairs {
            let slot = match *key {
                "InitiatorName" => &mut self.who.initiator,
                "SessionType" => &mut self.who.session_type,
                "TargetName" => &mut self.who.target,
                _ => continue,
            };
            if slot.as_ref().is_some_and(|known| known != value) || value.len() > MAX_NAME_BYTES {
                return Err(LoginStatus::InitiatorError);
            }
            *slot = Some((*value).to_owned());
        }
        Ok(())
    }

    fn settle_purpose(&mut self) -> Result<Purpose, LoginStatus> {
        if let Some(purpose) = &self.purpose {
            return Ok(purpose.clone());
        }
        let initiator = self.who.initiator.as_deref().filter(|name| !name.is_empty());
        let initiator = initiator.ok_or(LoginStatus::MissingParameter)?;
        let purpose = match self.who.session_type.as_deref() {
            Some("Discovery") => Purpose::Discovery,
            None | Some("Normal") => {
                let name = self.who.target.as_deref().ok_or(LoginStatus::MissingParameter)?;
                let target = self.host.targets.find(name).ok_or(LoginStatus::NoSuchTarget)?;
                if !target.allows(initiator) {
                    return Err(LoginStatus::NotAllowed);
                }
                if target.closing.load(Ordering::SeqCst) {
                    return Err(LoginStatus::ServiceUnavailable);
                }
                Purpose::Normal(target.clone())
            }
            Some(_) => return Err(LoginStatus::UnsupportedSessionType),
        };
        if self.host.draining {
            return Err(LoginStatus::ServiceUnavailable);
        }
        let wanted = match &purpose {
            Purpose::Discovery => &self.host.targets.discovery,
            Purpose::Normal(target) => &target.authentication,
        };
        self.authentication = wanted.clone().map_or(Proof::NotWanted, Proof::Wanted);
        self.purpose = Some(purpose.clone());
        Ok(purpose)
    }

    /// What an initiator is told of a target in the first answer; some insist on the portal group.
    fn introduce(&mut self, purpose: &Purpose, answer: &mut Text) {
        if let (Purpose::Normal(target), false) = (purpose, self.introduced) {
            answer.push("TargetPortalGroupTag", &PORTAL_GROUP.to_string());
            if !target.alias.is_empty() {
                answer.push("TargetAlias", &target.alias);
            }
        }
        self.introduced = true;
    }

    fn take_security(&mut self, stage: u8, pairs: &[(&str, &str)], answer: &mut Text) -> Result<(), LoginStatus> {
        let mut keys = Keys::default();
        let mut any = false;
        for (key, value) in pairs {
            let slot = match *key {
                "CHAP_A" => &mut keys.algorithms,
                "CHAP_N" => &mut keys.name,
                "CHAP_R" => &mut keys.response,
                "CHAP_I" => &mut keys.identifier,
                "CHAP_C" => &mut keys.challenge,
                "AuthMethod" => {
                    self.settle(key)?;
                    self.agree_on_method(value, answer)?;
                    continue;
                }
                _ => continue,
            };
            any = true;
            if slot.replace(value).is_some() {
                return Err(LoginStatus::InitiatorError);
            }
        }
        match &mut self.authentication {
            Proof::Chap(chap) if stage == SECURITY => {
                chap.handle(&keys, answer).map_err(|_| LoginStatus::AuthenticationFailed)
            }
            _ if any => Err(LoginStatus::AuthenticationFailed),
            _ => Ok(()),
        }
    }

    fn agree_on_method(&mut self, offer: &str, answer: &mut Text) -> Result<(), LoginStatus> {
        let offers = |method| offer.split(',').any(|one| one == method);
        match &self.authentication {
            Proof::Wanted(authentication) if offers("CHAP") => {
                self.authentication = Proof::Chap(Chap::new(authentication.clone()));
                answer.push("AuthMethod", "CHAP");
                Ok(())
            }
            Proof::NotWanted if offers("None") => {
                answer.push("AuthMethod", "None");
                Ok(())
            }
            _ => Err(LoginStatus::AuthenticationFailed),
        }
    }

    fn is_proven(&self) -> bool {
        match &self.authentication {
            Proof::NotWanted => true,
            Proof::Wanted(_) => false,
            Proof::Chap(chap) => chap.is_done(),
        }
    }

    fn take_parameters(&mut self, stage: u8, pairs: &[(&str, &str)], answer: &mut Text) -> Result<(), LoginStatus> {
        let max_burst = pairs.iter().find(|(key, _)| *key == "MaxBurstLength").map(|(_, value)| *value);
        for (key, value) in pairs {
            match *key {
                "InitiatorName" | "SessionType" | "TargetName" | "AuthMethod" => {}
                key if key.starts_with("CHAP_") => {}
                "InitiatorAlias" => self.settle(key)?,
                key => {
                    self.settle(key)?;
                    if let Answer::Value(value) = self.parameters.negotiate(key, value, max_burst) {
                        answer.push(key, &value);
                    }
                }
            }
        }
        if stage == OPERATIONAL && !std::mem::replace(&mut self.declared, true) {
            let (key, value) = parameters::declared();
            answer.push(key, &value);
        }
        Ok(())
    }

    /// A key is negotiated once.
    fn settle(&mut self, key: &str) -> Result<(), LoginStatus> {
        if self.settled.insert(key.to_owned()) { Ok(()) } else { Err(LoginStatus::InitiatorError) }
    }

    fn response(&self, request: &Header, flags: u8) -> Header {
        // All requests of a login are immediate, so the first command has their number.
        let cmd_sn = self.first.as_ref().map_or(request.u32(at::CMD_SN), |first| first.cmd_sn);
        let mut header = Header::new(opcode::LOGIN_RESPONSE, flags, request.tag())
            .with_u32(at::EXP_CMD_SN, cmd_sn)
            .with_u32(at::MAX_CMD_SN, cmd_sn.wrapping_add(LOGIN_WINDOW - 1));
        header.0[at::ISID..at::TSIH + 2].copy_from_slice(&request.0[at::ISID..at::TSIH + 2]);
        header
    }
}

fn with_status(header: Header, status: LoginStatus) -> Header {
    header.with_u16(at::DATA_SN, status as u16)
}
