//! The border to the operating system: three small traits, and nothing of Hyper-V in them.
//!
//! [`Wmi`] carries queries and method calls, [`VirtDisk`] is `virtdisk.dll`, [`HostFiles`] reads the few files that
//! neither of them delivers (a checkpoint's configuration, the members of a frozen chain), and writes what a restore
//! brings back. Which class, which method,
//! in which order and what an error means is decided above; so it is compiled and tested on every platform, and an
//! implementation below stays a thin layer that can be trusted after one reading.
//!
//! All calls block. Implementations are `Send + Sync`; thread rules of the operating system (COM apartments) are their
//! own business.

mod clock;
mod files;
mod observe;
mod value;
mod virt_disk;
mod wmi;

pub use clock::{Clock, SystemClock};
pub use files::{FileFacts, HostFile, HostFiles, HostWrites, LocalWrites};
pub use observe::{ReadObserver, observe_reads};
pub use value::{CimType, CimValue, Instance, ObjectPath};
pub use virt_disk::{ChangedPage, ChangedRange, TrackingState, VirtDisk, VirtDiskError, VirtDiskHandle, VirtDiskInfo};
pub use wmi::{MethodOutput, Namespace, Wmi, WmiError};

use std::sync::Arc;

/// One host, as everything above the seam sees it.
#[derive(Clone)]
pub struct Seam {
    /// Queries and methods.
    pub wmi: Arc<dyn Wmi>,
    /// Virtual disk files through the driver that tracks their changes.
    pub virt_disk: Arc<dyn VirtDisk>,
    /// Plain files of the host.
    pub files: Arc<dyn HostFiles>,
    /// The time that job polling and limits use: virtual in tests.
    pub clock: Arc<dyn Clock>,
}
