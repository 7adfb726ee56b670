//! The thread that copies the files of a volume to where they stay, at a pace, until they are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyperv::Host;
use serve::{GRAIN_BYTES, Hydrated, Steered, Steering, StreamCopy, StreamCopyError};

use crate::failure::chain_text;

/// One file: the copy while it grows, and the name that it gets when it is whole.
pub struct CopiedFile {
    /// The copy.
    pub copy: StreamCopy,
    /// The host's names for it, before and after.
    pub partial: String,
    /// See `partial`.
    pub local: String,
}

/// Copies files one after another; what fails is tried again. Ends when all are whole, or when this is dropped.
pub struct Copying {
    work: Arc<Work>,
    thread: Steered,
}

struct Work {
    host: Host,
    files: Vec<CopiedFile>,
    /// Of files that were whole before.
    before: Hydrated,
    is_done: AtomicBool,
}

impl Copying {
    /// Begins, or goes on; at most so many bytes a second, 0 for no limit. `before` counts files that are whole already.
    pub fn start(host: Host, files: Vec<CopiedFile>, before: Hydrated, bytes_per_second: u64) -> std::io::Result<Self> {
        let work = Arc::new(Work { host, files, before, is_done: AtomicBool::new(false) });
        let shared = work.clone();
        let thread = Steered::start("copying", bytes_per_second, move |steering| shared.run(steering))?;
        Ok(Self { work, thread })
    }

    /// Every file is whole, and has its name.
    pub fn is_done(&self) -> bool {
        self.work.is_done.load(Ordering::Acquire)
    }

    /// How far all of them are.
    pub fn copied(&self) -> Hydrated {
        self.work.copied()
    }

    /// Another rate, from now on.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.thread.set_rate(bytes_per_second);
    }

    /// Why the last attempt to go on failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.thread.trouble()
    }

    /// How long the rest will take at the rate of the last minute, if that is known.
    pub fn time_left(&self) -> Option<Duration> {
        let Hydrated { done_bytes, total_bytes } = self.copied();
        self.thread.time_left(total_bytes.saturating_sub(done_bytes))
    }
}

impl Work {
    fn run(&self, steering: &Steering) {
        for file in &self.files {
            loop {
                match self.go_on(file, steering) {
                    Ok(is_whole) => {
                        steering.goes_on();
                        if is_whole {
                            break;
                        }
                    }
                    Err(None) => return,
                    Err(Some(problem)) => {
                        tracing::warn!(%problem, file = file.local, "copying a disk failed; it is tried again");
                        steering.fails(problem);
                        steering.rest_after_failure();
                    }
                }
                if steering.is_stopped() {
                    return;
                }
            }
        }
        self.is_done.store(true, Ordering::Release);
    }

    /// The next piece of a file; whether it is whole and has its name. An error without a text is a stop.
    fn go_on(&self, file: &CopiedFile, steering: &Steering) -> Result<bool, Option<String>> {
        let pause = |cost: bool| {
            if cost {
                steering.moved(GRAIN_BYTES)
            } else {
                steering.skipped(GRAIN_BYTES)
            }
            !steering.is_stopped()
        };
        let copied = file.copy.advance(&pause).map_err(|error| match error {
            StreamCopyError::Stopped => None,
            error => Some(chain_text(&error)),
        })?;
        if !copied.is_complete() {
            return Ok(false);
        }
        let writes = self.host.seam().files.writes();
        let writes = writes.ok_or_else(|| Some("files of the host cannot be written from here".to_owned()))?;
        // It gets its name only when every byte of it is durable.
        let renamed = writes.rename(&file.partial, &file.local);
        renamed.map(|()| true).map_err(|error| Some(format!("rename {}: {error}", file.partial)))
    }

    fn copied(&self) -> Hydrated {
        self.files.iter().fold(self.before, |sum, file| {
            let Hydrated { done_bytes, total_bytes } = file.copy.copied();
            Hydrated { done_bytes: sum.done_bytes + done_bytes, total_bytes: sum.total_bytes + total_bytes }
        })
    }
}
