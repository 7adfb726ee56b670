//! INQUIRY: what the unit is (SPC-4 6.6, SBC-3 6.6; spec B.11).

use crate::scsi::Sense;
use crate::scsi::command::Facts;
use crate::scsi::unit::{Identity, UnitOptions};

/// What an answer is made of.
pub(crate) struct Subject<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) options: &'a UnitOptions,
    pub(crate) target: &'a str,
}

const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2];

/// Blocks that one UNMAP may name in all; the suite of libiscsi wants no more than this.
pub(crate) const MAX_UNMAP_BLOCKS: u64 = 1 << 20;
/// Descriptors that one UNMAP may have.
pub(crate) const MAX_UNMAP_DESCRIPTORS: usize = 256;

impl Subject<'_> {
    pub(crate) fn inquire(&self, page: Option<u8>) -> Result<Vec<u8>, Sense> {
        let Some(page) = page else { return Ok(standard(&self.options.identity, 0x00)) };
        let content = match page {
            0x00 => PAGES.to_vec(),
            0x80 => self.options.identity.serial().into_bytes(),
            0x83 => self.designators(),
            // Simple, ordered, head of queue; the write cache is volatile.
            0x86 => padded(&[0, 0x07, 0x01]),
            0xB0 => self.limits(),
            // Does not rotate.
            0xB1 => padded(&[0x00, 0x01]),
            0xB2 => self.provisioning(),
            _ => return Err(Sense::invalid_field(2)),
        };
        let mut data = vec![0, page];
        data.extend((content.len() as u16).to_be_bytes());
        data.extend(content);
        Ok(data)
    }

    fn designators(&self) -> Vec<u8> {
        let identity = &self.options.identity;
        let mut list = Vec::new();
        let mut add = |head: [u8; 2], content: &[u8]| {
            list.extend([head[0], head[1], 0, content.len() as u8]);
            list.extend(content);
        };
        add([0x01, 0x03], &identity.naa());
        add([0x02, 0x01], format!("{:8}{}", identity.vendor, identity.serial()).as_bytes());
        add([0x51, 0x94], &[0, 0, 0, 1]);
        add([0x51, 0x95], &[0, 0, 0, 1]);
        add([0x53, 0x98], &zero_ended(&format!("{},t,0x0001", self.target)));
        add([0x53, 0xA8], &zero_ended(self.target));
        list
    }

    fn limits(&self) -> Vec<u8> {
        let mut page = padded(&[]);
        let physical = self.options.block_size.physical_bytes() / self.facts.block_bytes;
        let mut set = |at: usize, bytes: &[u8]| page[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
        // A count of 0 is refused by WRITE SAME.
        set(4, &[0x01]);
        set(5, &[0xFF]);
        set(6, &(4096 / self.facts.block_bytes as u16).to_be_bytes());
        set(8, &self.facts.max_transfer_blocks().to_be_bytes());
        set(12, &((1 << 20) / self.facts.block_bytes).to_be_bytes());
        if self.facts.thin && !self.options.read_only {
            set(20, &(MAX_UNMAP_BLOCKS as u32).to_be_bytes());
            set(24, &(MAX_UNMAP_DESCRIPTORS as u32).to_be_bytes());
            set(28, &physical.max(1).to_be_bytes());
            // The alignment, of 0, is valid.
            set(32, &0x8000_0000_u32.to_be_bytes());
        }
        set(36, &u64::from(self.facts.max_transfer_blocks()).to_be_bytes());
        page
    }

    fn provisioning(&self) -> Vec<u8> {
        // UNMAP, WRITE SAME(16) and (10) give space back, and such blocks read as zeroes.
        if self.facts.thin && !self.options.read_only { vec![0, 0xE4, 0x02, 0] } else { vec![0; 4] }
    }
}

/// For a unit that is not there, in the words of one that is.
pub(crate) fn inquire_nothing(identity: Option<&Identity>, page: Option<u8>) -> Result<Vec<u8>, Sense> {
    match page {
        None => Ok(standard(identity.unwrap_or(&Identity::default()), 0x7F)),
        Some(0) => Ok(vec![0x7F, 0, 0, 1, 0]),
        Some(_) => Err(Sense::invalid_field(2)),
    }
}

fn standard(identity: &Identity, peripheral: u8) -> Vec<u8> {
    let mut data = vec![0; 96];
    data[0] = peripheral;
    // SPC-4; hierarchical LUNs, this format.
    data[2] = 0x06;
    data[3] = 0x12;
    data[4] = 0x5B;
    data[6] = 0x10;
    data[7] = 0x02;
    data[8..16].copy_from_slice(format!("{:8}", identity.vendor).as_bytes());
    data[16..32].copy_from_slice(format!("{:16}", identity.product).as_bytes());
    data[32..36].copy_from_slice(format!("{:4}", identity.revision).as_bytes());
    // iSCSI, SPC-4, SBC-3.
    data[58..64].copy_from_slice(&[0x09, 0x60, 0x04, 0x60, 0x04, 0xC0]);
    data
}

/// Pages of 60 bytes, mostly empty.
fn padded(start: &[u8]) -> Vec<u8> {
    let mut page = start.to_vec();
    page.resize(60, 0);
    page
}

fn zero_ended(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes
}
