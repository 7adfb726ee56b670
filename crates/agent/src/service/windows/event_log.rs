//! The Application event log of Windows.
//!
//! The texts come with the events; the message file is that of `EventCreate.exe`, which has "%1" for every id up to
//! 1000, so that no message file of our own must be compiled and kept.

use std::path::Path;

use super::super::NAME;
use super::super::events::{EventKind, Events, Gravity};
use super::ffi;

const SOURCE_KEY: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application";
const MESSAGE_FILE: &str = r"%SystemRoot%\System32\EventCreate.exe";
/// Error, warning and information.
const TYPES_SUPPORTED: u32 = 7;

/// Makes the log show our texts without a complaint that a description is missing.
pub fn register(executable: &Path) -> windows_registry::Result<()> {
    let key = windows_registry::LOCAL_MACHINE.create(format!(r"{SOURCE_KEY}\{NAME}"))?;
    key.set_expand_string("EventMessageFile", MESSAGE_FILE)?;
    key.set_u32("TypesSupported", TYPES_SUPPORTED)?;
    // For people who meet the key.
    key.set_string("Program", executable.display().to_string())
}

/// Undoes [`register`].
pub fn unregister() -> windows_registry::Result<()> {
    windows_registry::LOCAL_MACHINE.create(SOURCE_KEY)?.remove_tree(NAME)
}

/// Our source in the log; closed when it is dropped.
pub struct EventLog {
    source: Option<ffi::EventSource>,
}

impl EventLog {
    /// Opens it. Without the log the agent works all the same, and its own log file has the texts.
    pub fn open() -> Self {
        let source = ffi::EventSource::open(NAME)
            .inspect_err(|error| tracing::warn!(%error, "the event log cannot be written"))
            .ok();
        Self { source }
    }
}

impl Events for EventLog {
    fn tell(&self, kind: EventKind, text: &str) {
        match kind.gravity() {
            Gravity::Information => tracing::info!(event = kind.id(), "{text}"),
            Gravity::Warning => tracing::warn!(event = kind.id(), "{text}"),
            Gravity::Error => tracing::error!(event = kind.id(), "{text}"),
        }
        if let Some(source) = &self.source
            && let Err(error) = source.report(kind.gravity(), kind.id().into(), text)
        {
            tracing::warn!(%error, "the event log does not take an event");
        }
    }
}
