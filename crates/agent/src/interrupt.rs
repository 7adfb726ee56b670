//! Ctrl+C: once stops cleanly, twice at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backup::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{Code, Failure};
use crate::output::note;

/// How soon a signal is passed on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Watches for signals while long work goes on.
pub struct Interrupt {
    cancel: Cancel,
    asked: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on the first signal asks the work to stop, and the second ends the program.
    pub fn watch() -> Self {
        let this =
            Self { cancel: Cancel::default(), asked: Arc::default(), terminated: Arc::default(), over: Arc::default() };
        // The order counts: the first signal finds the flag down, raises it, and the second finds it up.
        let registered = flag::register_conditional_shutdown(SIGINT, 130, this.asked.clone())
            .and_then(|_| flag::register_conditional_shutdown(SIGTERM, 143, this.asked.clone()))
            .and_then(|_| flag::register(SIGTERM, this.terminated.clone()))
            .and_then(|_| flag::register(SIGINT, this.asked.clone()))
            .and_then(|_| flag::register(SIGTERM, this.asked.clone()));
        if let Err(error) = registered {
            // The system's own reaction stays: the program ends, and the next run puts things in order.
            tracing::warn!(%error, "signals cannot be watched");
            return this;
        }
        let (asked, over, cancel) = (this.asked.clone(), this.over.clone(), this.cancel.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if asked.load(Ordering::Relaxed) {
                    cancel.cancel();
                    note("stopping cleanly; again to stop at once and leave the rest to the next run");
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        this
    }

    /// What the work asks.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// The same as a plain flag.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// Whether a signal came.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// A failure as it ends the program: whatever broke because of the request to stop is that request.
    pub fn explain(&self, failure: Failure) -> Failure {
        if self.terminated.load(Ordering::Relaxed) && failure.code() == Code::Interrupted {
            return failure.with_code(Code::Terminated);
        }
        failure
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
