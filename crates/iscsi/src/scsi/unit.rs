//! A logical unit: a device, how it is shown, and what its initiators changed about it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use crate::Device;
use crate::error::UnitError;
use crate::scsi::attention::{self, Attentions};
use crate::scsi::command::Facts;
use crate::scsi::mode::Mode;
use crate::scsi::persistent::Persistent;

/// The size of a logical block, and of the physical ones behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes, both.
    N512,
    /// 512 bytes, on physical blocks of 4096.
    E512,
    /// 4096 bytes, both.
    N4096,
}

impl BlockSize {
    pub(crate) fn logical_bytes(self) -> u32 {
        match self {
            Self::N512 | Self::E512 => 512,
            Self::N4096 => 4096,
        }
    }

    pub(crate) fn physical_bytes(self) -> u32 {
        match self {
            Self::N512 => 512,
            Self::E512 | Self::N4096 => 4096,
        }
    }
}

/// Whether initiators are told that they can give space back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provisioning {
    /// They can; Windows then also moves files about to free whole slabs (spec B.12).
    Thin,
    /// They cannot.
    Thick,
}

/// What a unit says it is. Two units of one identity are taken for two ways to one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub(crate) vendor: String,
    pub(crate) product: String,
    pub(crate) revision: String,
    hash: [u8; 32],
}

impl Identity {
    /// Inquiry strings of at most 8, 16 and 4 ASCII characters; serial number and world-wide name follow from `seed`.
    pub fn new(
        vendor: impl Into<String>,
        product: impl Into<String>,
        revision: impl Into<String>,
        seed: &[u8],
    ) -> Self {
        let (vendor, product, revision) = (vendor.into(), product.into(), revision.into());
        Self { vendor, product, revision, hash: Sha256::digest(seed).into() }
    }

    /// The unit serial number (VPD page 80): 28 upper-case hex digits.
    pub fn serial(&self) -> String {
        self.hash[..14].iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// The NAA designator (VPD page 83). Locally assigned, for it is nobody's registered number.
    pub fn naa(&self) -> [u8; 8] {
        let mut name = std::array::from_fn(|at| self.hash[14 + at]);
        name[0] = 0x30 | name[0] & 0x0F;
        name
    }

    fn is_valid(&self) -> bool {
        let fits = |text: &str, len| text.len() <= len && text.bytes().all(|byte| (0x20..0x7F).contains(&byte));
        fits(&self.vendor, 8) && fits(&self.product, 16) && fits(&self.revision, 4)
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new("", "", "", b"")
    }
}

/// How a device is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitOptions {
    /// Sizes of blocks.
    pub block_size: BlockSize,
    /// Thin or not.
    pub provisioning: Provisioning,
    /// Every write is refused.
    pub read_only: bool,
    /// What it is called.
    pub identity: Identity,
}

/// One initiator's session with one target (SAM-5: I_T nexus), told apart by name and session id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Nexus {
    pub(crate) initiator: Arc<str>,
    pub(crate) isid: [u8; 6],
}

/// A unit. Lock order: `whole`, then `state`; neither is held while anything is sent.
pub(crate) struct Unit {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) options: UnitOptions,
    pub(crate) facts: Facts,
    pub(crate) target: String,
    /// Held shared by writes, and alone by what must read and write in one step.
    pub(crate) whole: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) attentions: Attentions,
    pub(crate) mode: Mode,
    /// Who holds an old reservation (RESERVE).
    pub(crate) reserved_by: Option<Nexus>,
    pub(crate) persistent: Persistent,
}

impl Unit {
    pub(crate) fn new(device: Arc<dyn Device>, options: UnitOptions, target: String) -> Result<Self, UnitError> {
        let block_bytes = options.block_size.logical_bytes();
        let size_bytes = device.size_bytes();
        if size_bytes == 0 || !size_bytes.is_multiple_of(block_bytes.into()) {
            return Err(UnitError::Size { size_bytes, block_bytes });
        }
        if !options.identity.is_valid() {
            return Err(UnitError::Identity);
        }
        let thin = options.provisioning == Provisioning::Thin;
        let facts = Facts { block_bytes, blocks: size_bytes / u64::from(block_bytes), thin };
        Ok(Self { device, options, facts, target, whole: RwLock::default(), state: Mutex::default() })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins.
    pub(crate) fn attach(&self, nexus: &Nexus) {
        self.state().attentions.attach(nexus);
    }

    /// A session ended: old reservations end with it, persistent ones do not.
    pub(crate) fn detach(&self, nexus: &Nexus) {
        let mut state = self.state();
        state.attentions.detach(nexus);
        if state.reserved_by.as_ref() == Some(nexus) {
            state.reserved_by = None;
        }
    }

    /// LOGICAL UNIT RESET: everything but persistent reservations is as at the start, and everybody is told.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.mode = Mode::default();
        state.reserved_by = None;
        state.attentions.tell_all(attention::RESET);
    }

    /// CLEAR TASK SET took away tasks of others than `by`.
    pub(crate) fn tasks_cleared(&self, by: &Nexus) {
        self.state().attentions.tell_others(by, attention::TASKS_CLEARED);
    }

    pub(crate) fn has_descriptor_sense(&self) -> bool {
        self.state().mode.descriptor_sense
    }
}
