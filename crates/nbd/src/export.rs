//! Devices under names.

use std::fmt;
use std::sync::Arc;

use crate::Device;
use crate::wire::{MAX_STRING_BYTES, SECTOR_BYTES};

/// A device as clients find it.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for. UTF-8 without NUL, at most 4096 bytes; may be empty.
    pub name: String,
    /// For people who list the exports; the same limits.
    pub description: String,
    /// What is served.
    pub device: Arc<dyn Device>,
    /// Writes are refused before they reach the device.
    pub read_only: bool,
}

/// Everything that a server offers.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    list: Vec<Arc<Export>>,
}

impl Exports {
    /// In this order they are listed.
    pub fn new(exports: impl IntoIterator<Item = Export>) -> Result<Self, ExportError> {
        let mut list: Vec<Arc<Export>> = Vec::new();
        for export in exports {
            let name = export.name.clone();
            let is_string = |text: &str| text.len() <= MAX_STRING_BYTES && !text.contains('\0');
            if !is_string(&export.name) || !is_string(&export.description) {
                return Err(ExportError::Text { name });
            }
            if list.iter().any(|other| other.name == name) {
                return Err(ExportError::Duplicate { name });
            }
            let size_bytes = export.device.size_bytes();
            if !size_bytes.is_multiple_of(SECTOR_BYTES) || i64::try_from(size_bytes).is_err() {
                return Err(ExportError::Size { name, size_bytes });
            }
            list.push(Arc::new(export));
        }
        Ok(Self { list })
    }

    /// The export of that name. The empty name also means the only export, when there is exactly one (spec A.2).
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Export>> {
        let named = self.list.iter().find(|export| export.name == name);
        named.or_else(|| match (&*self.list, name) {
            ([only], "") => Some(only),
            _ => None,
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.list.iter()
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("name", &self.name).field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// Why exports cannot be offered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Two have one name.
    #[error("offer exports: {name:?} is there twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Name or description are no strings of the protocol.
    #[error("offer the export {name:?}: name and description need at most 4096 bytes, none of them NUL")]
    Text {
        /// The name.
        name: String,
    },
    /// The protocol's requests could not reach all of the device.
    #[error("offer the export {name:?}: its size of {size_bytes} bytes is not a multiple of 512 below 2^63")]
    Size {
        /// The name.
        name: String,
        /// What the device says.
        size_bytes: u64,
    },
}
