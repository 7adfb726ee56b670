//! Text requests and answers that may take several PDUs each (RFC 7143 11.10, 11.11).

use crate::pdu::Pdu;
use crate::session::{Answer, StatSn};
use crate::text::{MalformedText, Pieces};
use crate::wire::{Header, NO_TAG, at, flag, opcode, reject};

/// Where one exchange is.
#[derive(Debug, Default)]
pub(crate) struct TextExchange {
    /// Our tag of it, while it goes on.
    tag: Option<u32>,
    asked: Pieces,
    /// The rest of an answer.
    rest: Vec<u8>,
}

impl TextExchange {
    /// Takes a request. `tag` is fresh, `room` the longest data segment that the initiator takes, and `compose` makes
    /// an answer out of complete text. A refusal is the reason of a rejection, and ends the exchange.
    pub(crate) fn handle(
        &mut self,
        pdu: &Pdu,
        tag: u32,
        room: usize,
        compose: impl FnOnce(&[u8]) -> Result<Vec<u8>, MalformedText>,
    ) -> Result<Answer, u8> {
        let answer = self.answer(pdu, tag, room, compose);
        if answer.is_err() {
            *self = Self::default();
        }
        answer
    }

    fn answer(
        &mut self,
        pdu: &Pdu,
        tag: u32,
        room: usize,
        compose: impl FnOnce(&[u8]) -> Result<Vec<u8>, MalformedText>,
    ) -> Result<Answer, u8> {
        if !pdu.data_intact {
            return Err(reject::DATA_DIGEST);
        }
        match pdu.header.u32(at::TTT) {
            // A new exchange takes the place of one that was not finished.
            NO_TAG => *self = Self::default(),
            ours if self.tag == Some(ours) => {}
            _ => return Err(reject::INVALID_FIELD),
        }
        let (is_final, has_more) = (pdu.header.has(flag::FINAL), pdu.header.has(flag::CONTINUE));
        if is_final && has_more {
            return Err(reject::PROTOCOL_ERROR);
        }
        let is_asking_on = !self.rest.is_empty() && pdu.data.is_empty();
        if !is_asking_on {
            self.rest.clear();
            self.asked.add(&pdu.data).map_err(|_| reject::PROTOCOL_ERROR)?;
            if has_more {
                return Ok(self.part(pdu, tag, 0, Vec::new()));
            }
            self.rest = compose(&self.asked.take()).map_err(|_| reject::PROTOCOL_ERROR)?;
        }
        let later = self.rest.split_off(self.rest.len().min(room));
        let part = std::mem::replace(&mut self.rest, later);
        let flags = match self.rest.is_empty() {
            false => flag::CONTINUE,
            true if is_final => flag::FINAL,
            true => 0,
        };
        Ok(self.part(pdu, tag, flags, part))
    }

    fn part(&mut self, pdu: &Pdu, tag: u32, flags: u8, data: Vec<u8>) -> Answer {
        self.tag = (flags & flag::FINAL == 0).then_some(tag);
        let header = Header::new(opcode::TEXT_RESPONSE, flags, pdu.header.tag())
            .with_lun(pdu.header.lun_field())
            .with_u32(at::TTT, self.tag.unwrap_or(NO_TAG));
        Answer { header, data, stat_sn: StatSn::Advance }
    }
}
