//! The thread that copies the files of a volume to where they stay, at a pace, until they are there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyperv::Host;
use serve::{GRAIN_BYTES, Hydrated, Pace, StreamCopy, StreamCopyError};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    host: Host,
    files: Vec<CopiedFile>,
    /// Of files that were whole before.
    before: Hydrated,
    pace: Mutex<Pace>,
    stops: AtomicBool,
    is_done: AtomicBool,
    trouble: Mutex<Option<String>>,
}

impl Copying {
    /// Begins, or goes on; at most so many bytes a second, 0 for no limit. `before` counts files that are whole already.
    pub fn start(host: Host, files: Vec<CopiedFile>, before: Hydrated, bytes_per_second: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            host,
            files,
            before,
            pace: Mutex::new(Pace::new(bytes_per_second)),
            stops: AtomicBool::new(false),
            is_done: AtomicBool::new(false),
            trouble: Mutex::new(None),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("copying".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Every file is whole, and has its name.
    pub fn is_done(&self) -> bool {
        self.shared.is_done.load(Ordering::Acquire)
    }

    /// How far all of them are.
    pub fn copied(&self) -> Hydrated {
        self.shared.copied()
    }

    /// Why the last attempt to go on failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().expect("no panic while held").clone()
    }

    /// How long the rest will take at the rate of the last minute, if that is known.
    pub fn time_left(&self) -> Option<Duration> {
        let Hydrated { done_bytes, total_bytes } = self.copied();
        self.shared.pace.lock().expect("no panic while held").time_left(total_bytes.saturating_sub(done_bytes))
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there is the thread's own; the copy goes on with the next keeper.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut retry = FIRST_RETRY;
        for file in &self.files {
            loop {
                if self.stops.load(Ordering::Relaxed) {
                    return;
                }
                match self.go_on(file) {
                    Ok(true) => break,
                    Ok(false) => retry = FIRST_RETRY,
                    Err(None) => return,
                    Err(Some(problem)) => {
                        tracing::warn!(%problem, file = file.local, "copying a disk failed; it is tried again");
                        *self.trouble.lock().expect("no panic while held") = Some(problem);
                        self.rest(retry);
                        retry = (retry * 2).min(LONGEST_RETRY);
                        continue;
                    }
                }
                *self.trouble.lock().expect("no panic while held") = None;
            }
        }
        *self.trouble.lock().expect("no panic while held") = None;
        self.is_done.store(true, Ordering::Release);
    }

    /// The next piece of a file; whether it is whole and has its name. An error without a text is a stop.
    fn go_on(&self, file: &CopiedFile) -> Result<bool, Option<String>> {
        let copied = file.copy.advance(&|cost| self.pause(cost)).map_err(|error| match error {
            StreamCopyError::Stopped => None,
            error => Some(match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }),
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

    fn pause(&self, cost: bool) -> bool {
        let mut pace = self.pace.lock().expect("no panic while held");
        let rest = if cost { pace.moved(GRAIN_BYTES) } else { Duration::ZERO };
        if !cost {
            pace.skipped(GRAIN_BYTES);
        }
        drop(pace);
        self.rest(rest);
        !self.stops.load(Ordering::Relaxed)
    }

    fn copied(&self) -> Hydrated {
        self.files.iter().fold(self.before, |sum, file| {
            let Hydrated { done_bytes, total_bytes } = file.copy.copied();
            Hydrated { done_bytes: sum.done_bytes + done_bytes, total_bytes: sum.total_bytes + total_bytes }
        })
    }

    fn rest(&self, time: Duration) {
        let deadline = Instant::now() + time;
        while !self.stops.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}
