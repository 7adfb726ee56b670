//! Mode pages: caching, control, informational exceptions (SPC-4 7.5, SBC-3 6.4).

use crate::scsi::Sense;
use crate::scsi::command::{Facts, ModeQuestion};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
const EXCEPTIONS: u8 = 0x1C;
const ALL: u8 = 0x3F;

/// Lengths behind the first two bytes of a page.
const PAGES: [(u8, usize); 3] = [(CACHING, 0x12), (CONTROL, 0x0A), (EXCEPTIONS, 0x0A)];

const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// What initiators can change, for all of them and until a reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Sense data is made of descriptors.
    pub(crate) descriptor_sense: bool,
    /// Writes are refused.
    pub(crate) write_protected: bool,
}

impl Mode {
    /// Answers MODE SENSE. `read_only` is a unit's that takes no writes whatever its mode.
    pub(crate) fn sense(self, question: ModeQuestion, facts: &Facts, read_only: bool) -> Result<Vec<u8>, Sense> {
        if ![0, 0xFF].contains(&question.subpage) {
            return Err(Sense::invalid_field(3));
        }
        let mut pages = Vec::new();
        for (code, _) in PAGES.iter().filter(|(code, _)| [*code, ALL].contains(&question.page)) {
            pages.extend(if question.changeable { changeable(*code) } else { self.page(*code) });
        }
        if pages.is_empty() {
            return Err(Sense::invalid_field(2));
        }
        let descriptor = if question.with_descriptor { descriptor(facts).to_vec() } else { Vec::new() };
        // DPO and FUA are supported.
        let specific = 0x10 | if read_only || self.write_protected { 0x80 } else { 0 };
        let mut data = match question.long {
            false => vec![0, 0, specific, descriptor.len() as u8],
            true => vec![0, 0, 0, specific, 0, 0, 0, descriptor.len() as u8],
        };
        data.extend(descriptor);
        data.extend(pages);
        match question.long {
            false => data[0] = (data.len() - 1) as u8,
            true => data[1] = (data.len() - 2) as u8,
        }
        Ok(data)
    }

    /// The mode after MODE SELECT with this parameter list.
    pub(crate) fn select(self, list: &[u8], long: bool, facts: &Facts) -> Result<Self, Sense> {
        if list.is_empty() {
            return Ok(self);
        }
        let header_len = if long { 8 } else { 4 };
        let header = list.get(..header_len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let descriptor_len = match long {
            false => usize::from(header[3]),
            true => usize::from(header[6]) << 8 | usize::from(header[7]),
        };
        let mut left = &list[header_len..];
        if descriptor_len != 0 {
            let given = left.get(..descriptor_len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            left = &left[descriptor_len..];
            let ours = descriptor(facts);
            // No count means: as it is.
            if descriptor_len != 8 || given[4..] != ours[4..] || (given[..4] != ours[..4] && given[..4] != [0; 4]) {
                return Err(Sense::INVALID_PARAMETER);
            }
        }
        let mut mode = self;
        while let [first, len, ..] = left {
            let known = PAGES.iter().find(|(code, _)| *code == first & 0x7F);
            let (code, expected) = *known.ok_or(Sense::INVALID_PARAMETER)?;
            if usize::from(*len) != expected {
                return Err(Sense::INVALID_PARAMETER);
            }
            let given = left.get(..2 + expected).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            mode.take_page(code, given)?;
            left = &left[2 + expected..];
        }
        if left.is_empty() { Ok(mode) } else { Err(Sense::PARAMETER_LIST_LENGTH) }
    }

    fn take_page(&mut self, code: u8, given: &[u8]) -> Result<(), Sense> {
        let (current, mask) = (self.page(code), changeable(code));
        let fixed = |at: usize| (given[at] ^ current[at]) & !mask[at] == 0;
        if !(2..given.len()).all(fixed) {
            return Err(Sense::INVALID_PARAMETER);
        }
        if code == CONTROL {
            *self = Self { descriptor_sense: given[2] & D_SENSE != 0, write_protected: given[4] & SWP != 0 };
        }
        Ok(())
    }

    fn page(self, code: u8) -> Vec<u8> {
        let mut page = empty(code);
        match code {
            // The write cache is on: durable is what was flushed.
            CACHING => page[2] = 0x04,
            CONTROL => {
                page[2] = if self.descriptor_sense { D_SENSE } else { 0 };
                // Commands may be reordered.
                page[3] = 0x10;
                page[4] = if self.write_protected { SWP } else { 0 };
                page[8..10].fill(0xFF);
            }
            _ => {}
        }
        page
    }
}

fn changeable(code: u8) -> Vec<u8> {
    let mut page = empty(code);
    if code == CONTROL {
        page[2] = D_SENSE;
        page[4] = SWP;
    }
    page
}

fn empty(code: u8) -> Vec<u8> {
    let len = PAGES.iter().find(|(known, _)| *known == code).map_or(0, |(_, len)| *len);
    let mut page = vec![0; 2 + len];
    page[0] = code;
    page[1] = len as u8;
    page
}

/// The block descriptor: how many blocks, of which length.
fn descriptor(facts: &Facts) -> [u8; 8] {
    let blocks = u32::try_from(facts.blocks).unwrap_or(u32::MAX).to_be_bytes();
    let len = facts.block_bytes.to_be_bytes();
    [blocks[0], blocks[1], blocks[2], blocks[3], len[0], len[1], len[2], len[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { block_bytes: 512, blocks: 1 << 33, thin: false };

    fn question(page: u8, long: bool) -> ModeQuestion {
        ModeQuestion { long, page, subpage: 0, changeable: false, with_descriptor: true }
    }

    #[test]
    fn what_was_sensed_can_be_selected_and_changes_what_it_says() {
        for long in [false, true] {
            let mode = Mode::default();
            let mut list = mode.sense(question(ALL, long), &FACTS, false).unwrap();
            let header_len = if long { 8 } else { 4 };
            let said = if long { usize::from(list[1]) + 2 } else { usize::from(list[0]) + 1 };
            assert_eq!(list.len(), said, "long {long}");
            assert_eq!(mode.select(&list, long, &FACTS), Ok(mode));
            let control = header_len + 8 + 20;
            assert_eq!(list[control..control + 2], [CONTROL, 0x0A]);
            list[control + 4] = SWP;
            let protected = mode.select(&list, long, &FACTS).unwrap();
            assert_eq!(protected, Mode { write_protected: true, descriptor_sense: false });
            let specific = protected.sense(question(CONTROL, long), &FACTS, false).unwrap()[if long { 3 } else { 2 }];
            assert_eq!(specific, 0x90);
            // Anything else may not differ.
            for at in header_len..list.len() {
                let mut other = list.clone();
                other[at] ^= 0x02;
                let same_anyhow = (header_len..header_len + 4).contains(&at);
                let refused = mode.select(&other, long, &FACTS).is_err();
                assert!(refused || same_anyhow, "long {long}, byte {at}");
            }
            for len in 1..list.len() {
                let cut = mode.select(&list[..len], long, &FACTS);
                let between_pages = [header_len + 8, control, control + 12].contains(&len);
                // A header whose descriptor is not there is cut, too.
                assert_eq!(cut.is_ok(), between_pages, "long {long}, {len} bytes");
            }
        }
    }

    #[test]
    fn pages_that_are_not_there() {
        for (page, subpage, expected) in [(0x1A, 0, 2), (0x00, 0, 2), (ALL, 1, 3)] {
            let asked = ModeQuestion { subpage, ..question(page, false) };
            assert_eq!(Mode::default().sense(asked, &FACTS, false), Err(Sense::invalid_field(expected)));
        }
    }
}
