//! What a long piece of work tells while it goes on.

/// Receives events; calls come from several threads.
pub trait Observer: Send + Sync {
    /// Something happened. Must not block for long: data waits behind it.
    fn event(&self, event: Event<'_>);
}

/// An observer that does not care.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event<'_>) {}
}

/// Something that a person may want to see.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Work on a VM or a point goes on to another phase.
    Phase {
        /// VM name, or a point's label.
        subject: &'a str,
        /// What is done now.
        phase: &'a str,
    },
    /// Bytes of something are about to be moved.
    Started {
        /// VM and disk, or file.
        subject: &'a str,
        /// Bytes expected.
        total_bytes: u64,
        /// `full`, `incremental`, `restore`, …
        what: &'a str,
    },
    /// Some of them were.
    Advanced {
        /// As in `Started`.
        subject: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// All of them were.
    Finished {
        /// As in `Started`.
        subject: &'a str,
    },
    /// Something a person should read; the work goes on.
    Warning {
        /// VM name, or a point's label.
        subject: &'a str,
        /// A sentence.
        text: &'a str,
    },
}
