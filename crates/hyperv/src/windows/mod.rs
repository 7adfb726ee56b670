//! The seam on Windows: WMI over COM, `virtdisk.dll`, and the host's files.
//!
//! [`local_seam`] is this machine. Below it, `unsafe` lies in two modules that decide nothing: `com.rs` (COM and WMI)
//! and `calls.rs` (`virtdisk.dll`, `kernel32.dll`). Both hand out safe functions and plain data; what the data means
//! is the business of their neighbours, of which `automation.rs` and `workers.rs` are tested on every platform.
//!
//! Read `wmi.rs`, then `virt_disk.rs`. Remote hosts are out of scope: the agent runs on the host.

#![cfg_attr(not(windows), allow(dead_code))]

mod automation;
mod object_path;
mod workers;

#[cfg(windows)]
mod calls;
#[cfg(windows)]
mod com;
#[cfg(windows)]
mod files;
#[cfg(windows)]
mod virt_disk;
#[cfg(windows)]
mod wmi;

#[cfg(windows)]
pub use files::{WindowsFiles, mark_sparse};
#[cfg(windows)]
pub use virt_disk::VirtDiskDll;
#[cfg(windows)]
pub use wmi::{EventStream, WmiCom};

/// The Hyper-V of this machine.
#[cfg(windows)]
pub fn local_seam() -> crate::seam::Seam {
    use std::sync::Arc;
    crate::seam::Seam {
        wmi: Arc::new(WmiCom::new()),
        virt_disk: Arc::new(VirtDiskDll::new()),
        files: Arc::new(WindowsFiles),
        clock: Arc::new(crate::seam::SystemClock::default()),
    }
}
