//! Progress on standard error: one line that is overwritten on a terminal, calm lines elsewhere.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backup::{Event, Observer};
use jiff::Timestamp;
use serde_json::json;

use crate::cli::{Global, ProgressStyle};
use crate::output::terminal_width;
use crate::units::{duration, size, stamp, visible};

/// The rate shown is the mean of this time, and no time left is told before it.
const RATE_WINDOW: Duration = Duration::from_secs(10);
const PAINT_EVERY: Duration = Duration::from_millis(250);
/// Plain lines come at most this often, except at a change of phase.
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Of the lines for each 10 %, those of a quick piece of work are left out.
const LINES_APART: Duration = Duration::from_secs(5);

/// Shows what a piece of work tells. Ends with [`Progress::finish`], or when it is dropped.
pub struct Progress {
    shared: Arc<Shared>,
    painter: Option<JoinHandle<()>>,
}

struct Shared {
    style: ProgressStyle,
    /// `backup`, `restore`, `verify`.
    what: &'static str,
    utc: bool,
    silent: bool,
    state: Mutex<State>,
    end: Condvar,
    print_now: Arc<AtomicBool>,
}

struct State {
    done_bytes: u64,
    total_bytes: u64,
    /// Work that has begun and not ended: name, kind, bytes expected, bytes done.
    active: Vec<(String, String, u64, u64)>,
    phase: String,
    /// `VM 2 of 5`.
    part: String,
    /// Instants and bytes done, over the last seconds.
    samples: VecDeque<(Instant, u64)>,
    bar_is_up: bool,
    last_line: Instant,
    last_tenth: u64,
    ended: bool,
}

impl Progress {
    /// Starts to show work of the kind `what`.
    pub fn start(what: &'static str, global: &Global) -> Self {
        let style = match global.progress {
            ProgressStyle::Auto if global.json || global.quiet => ProgressStyle::None,
            // Traces and a line that is overwritten do not go together.
            ProgressStyle::Auto if !io::stderr().is_terminal() || global.verbose > 0 => ProgressStyle::Plain,
            ProgressStyle::Auto => ProgressStyle::Bar,
            style => style,
        };
        let now = Instant::now();
        let shared = Arc::new(Shared {
            style,
            what,
            utc: global.utc,
            silent: global.json,
            state: Mutex::new(State {
                done_bytes: 0,
                total_bytes: 0,
                active: Vec::new(),
                phase: String::new(),
                part: String::new(),
                samples: VecDeque::from([(now, 0)]),
                bar_is_up: false,
                last_line: now,
                last_tenth: 0,
                ended: false,
            }),
            end: Condvar::new(),
            print_now: Arc::default(),
        });
        #[cfg(unix)]
        // Without the signal there is only no line on demand.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGUSR1, shared.print_now.clone());
        let painter = (style != ProgressStyle::None).then(|| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.paint_until_end())
        });
        Self { shared, painter }
    }

    /// Which of several parts the work is at.
    pub fn part(&self, text: String) {
        self.shared.lock().part = text;
    }

    /// Prints a line beside the progress.
    pub fn note(&self, text: &str) {
        let mut state = self.shared.lock();
        self.shared.clear_bar(&mut state);
        // Standard error that is closed leaves nobody to tell.
        let _ = writeln!(io::stderr(), "{}", visible(text));
    }

    /// Takes the line away; results follow.
    pub fn finish(self) {
        drop(self);
    }

    /// Takes the line away until something happens again, so that results can be printed.
    pub fn pause(&self) {
        let mut state = self.shared.lock();
        self.shared.clear_bar(&mut state);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.end.notify_all();
        if let Some(painter) = self.painter.take() {
            // A painter that panicked has said so already.
            let _ = painter.join();
        }
        let mut state = self.shared.lock();
        self.shared.clear_bar(&mut state);
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        let shared = &*self.shared;
        match event {
            Event::Phase { subject, phase } => {
                shared.lock().phase = format!("{subject}: {phase}");
                shared.say_phase(subject, phase);
            }
            Event::Started { subject, total_bytes, what } => {
                let mut state = shared.lock();
                if state.active.is_empty() && state.done_bytes >= state.total_bytes {
                    // A rate over the pause between two disks would say little about the next.
                    let done = state.done_bytes;
                    state.samples = VecDeque::from([(Instant::now(), done)]);
                }
                state.total_bytes += total_bytes;
                state.active.push((subject.to_owned(), what.to_owned(), total_bytes, 0));
                drop(state);
                shared.say_phase(subject, &format!("{what}, {}", size(total_bytes)));
            }
            Event::Advanced { subject, bytes } => {
                let mut state = shared.lock();
                state.done_bytes += bytes;
                if let Some(active) = state.active.iter_mut().find(|active| active.0 == subject) {
                    active.3 += bytes;
                }
            }
            Event::Finished { subject } => {
                let mut state = shared.lock();
                if let Some(at) = state.active.iter().position(|active| active.0 == subject) {
                    let (_, _, total, done) = state.active.remove(at);
                    // What was announced was an estimate; now it is known.
                    state.total_bytes = (state.total_bytes + done).saturating_sub(total);
                }
            }
            Event::Warning { subject, text } if !shared.silent => self.note(&format!("warning: {subject}: {text}")),
            _ => {}
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Progress is decoration: whoever panicked while holding it left nothing that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paint_until_end(&self) {
        let mut state = self.lock();
        loop {
            state = self.end.wait_timeout(state, PAINT_EVERY).unwrap_or_else(PoisonError::into_inner).0;
            if state.ended {
                return;
            }
            let now = Instant::now();
            state.sample(now);
            let asked = self.print_now.swap(false, Ordering::Relaxed);
            match self.style {
                ProgressStyle::Bar => self.paint(&mut state),
                ProgressStyle::Plain if asked || state.line_is_due(now) => self.print_line(&mut state, now),
                ProgressStyle::Json if asked || now - state.last_line >= Duration::from_secs(1) => {
                    self.print_object(&mut state, now);
                }
                _ => {}
            }
        }
    }

    fn paint(&self, state: &mut State) {
        let text = visible(&self.bar(state));
        let width = terminal_width(&io::stderr()).unwrap_or(120).saturating_sub(1);
        let text: String = text.chars().take(width).collect();
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
        state.bar_is_up = true;
    }

    fn bar(&self, state: &State) -> String {
        let mut parts = vec![self.what.to_owned()];
        if state.active.is_empty() {
            parts.push(state.phase.clone());
        } else {
            parts.push(format!("{:3} %", state.percent()));
            parts.push(format!("{} of {}", size(state.done_bytes), size(state.total_bytes.max(state.done_bytes))));
            parts.push(state.rate().map_or("–".into(), |rate| format!("{}/s", size(rate))));
            parts.push(
                state
                    .seconds_left()
                    .map_or("–".into(), |left| format!("~{} left", duration(Duration::from_secs(left)))),
            );
            parts.extend(state.active.iter().take(8).map(|(subject, what, ..)| format!("{subject} {what}")));
        }
        if !state.part.is_empty() {
            parts.push(state.part.clone());
        }
        parts.join("  ")
    }

    fn clear_bar(&self, state: &mut State) {
        if state.bar_is_up {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
            state.bar_is_up = false;
        }
    }

    fn say_phase(&self, subject: &str, phase: &str) {
        match self.style {
            ProgressStyle::Plain => {
                let now = stamp(Timestamp::now(), self.utc);
                let _ = writeln!(io::stderr(), "{now} {} {}", self.what, visible(&format!("{subject}: {phase}")));
            }
            ProgressStyle::Json => {
                let object = json!({ "type": "phase", "work": self.what, "subject": subject, "phase": phase });
                let _ = writeln!(io::stderr(), "{object}");
            }
            _ => {}
        }
    }

    fn print_line(&self, state: &mut State, now: Instant) {
        let mut line = format!(
            "{} {} {} % {}/{}",
            stamp(Timestamp::now(), self.utc),
            self.what,
            state.percent(),
            size(state.done_bytes),
            size(state.total_bytes.max(state.done_bytes))
        );
        if let Some(rate) = state.rate() {
            line += &format!(" {}/s", size(rate));
        }
        if let Some(left) = state.seconds_left() {
            line += &format!(" eta {}", duration(Duration::from_secs(left)));
        }
        if !state.part.is_empty() {
            line += &format!(" {}", state.part);
        }
        let _ = writeln!(io::stderr(), "{}", visible(&line));
        state.last_line = now;
        state.last_tenth = state.percent() / 10;
    }

    fn print_object(&self, state: &mut State, now: Instant) {
        let subjects: Vec<&str> = state.active.iter().map(|(subject, ..)| subject.as_str()).collect();
        let object = json!({
            "type": "progress",
            "work": self.what,
            "subjects": subjects,
            "done_bytes": state.done_bytes,
            "total_bytes": state.total_bytes,
            "bytes_per_second": state.rate(),
            "seconds_left": state.seconds_left(),
        });
        let _ = writeln!(io::stderr(), "{object}");
        state.last_line = now;
    }
}

impl State {
    fn sample(&mut self, now: Instant) {
        self.samples.push_back((now, self.done_bytes));
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes per second over the window; `None` before there is anything to tell.
    fn rate(&self) -> Option<u64> {
        let (from, to) = (self.samples.front()?, self.samples.back()?);
        let seconds = to.0.duration_since(from.0).as_secs_f64();
        (seconds >= 0.5).then(|| ((to.1 - from.1) as f64 / seconds) as u64)
    }

    fn seconds_left(&self) -> Option<u64> {
        let (from, to) = (self.samples.front()?, self.samples.back()?);
        let rate = self.rate().filter(|rate| *rate > 0)?;
        let long_enough = to.0.duration_since(from.0) + PAINT_EVERY >= RATE_WINDOW;
        long_enough.then(|| self.total_bytes.saturating_sub(self.done_bytes) / rate)
    }

    fn percent(&self) -> u64 {
        match self.total_bytes {
            0 => 0,
            total => (u128::from(self.done_bytes) * 100 / u128::from(total)).min(100) as u64,
        }
    }

    fn line_is_due(&self, now: Instant) -> bool {
        let since = now.duration_since(self.last_line);
        !self.active.is_empty()
            && (since >= LINE_EVERY || (since >= LINES_APART && self.percent() / 10 > self.last_tenth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(done: u64, total: u64) -> State {
        State {
            done_bytes: done,
            total_bytes: total,
            active: vec![("DC01 SCSI 0:0".into(), "full".into(), total, done)],
            phase: String::new(),
            part: String::new(),
            samples: VecDeque::new(),
            bar_is_up: false,
            last_line: Instant::now(),
            last_tenth: 0,
            ended: false,
        }
    }

    #[test]
    fn the_rate_is_the_mean_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut state = state(0, 1 << 30);
        for second in 0..=30 {
            // 1 MiB/s for 20 s, then 4 MiB/s.
            state.done_bytes = if second <= 20 { second << 20 } else { (20 + 4 * (second - 20)) << 20 };
            state.sample(start + Duration::from_secs(second));
            if second < 9 {
                assert_eq!(state.seconds_left(), None, "after {second} s");
            }
        }
        assert_eq!(state.rate(), Some(4 << 20));
        assert_eq!(state.seconds_left(), Some((1024 - 60) / 4));
    }

    #[test]
    fn lines_are_calm() {
        let start = Instant::now();
        let mut state = state(0, 100);
        state.last_line = start;
        for (seconds, done, due) in [(1, 50, false), (6, 9, false), (6, 10, true), (59, 9, false), (60, 9, true)] {
            state.done_bytes = done;
            assert_eq!(state.line_is_due(start + Duration::from_secs(seconds)), due, "{done} % after {seconds} s");
        }
    }

    #[test]
    fn nothing_expected_is_no_division() {
        assert_eq!(state(0, 0).percent(), 0);
        assert_eq!(state(5, 4).percent(), 100);
    }
}
