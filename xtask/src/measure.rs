//! What a program costs: its time, and the memory that it held.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{last_words, typed};

/// What a program took.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the start to the end of the process.
    pub time: Duration,
    /// The most physical memory it ever held, as the kernel counted it (Linux only).
    pub peak_memory_bytes: Option<u64>,
    /// What it wrote to stdout.
    pub stdout: String,
}

/// Runs `command` silently and measures it; an error ends with the last it wrote to stderr.
pub fn measure(command: &mut Command) -> Result<Measured> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", typed(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut peak_memory_bytes = None;
    let (status, time, stdout, stderr) = thread::scope(|scope| {
        let stdout = scope.spawn(move || stdout.map(read_all));
        let stderr = scope.spawn(move || stderr.map(read_all));
        let status = loop {
            match child.try_wait() {
                Ok(None) => {}
                ended => break ended,
            }
            // The kernel keeps the high-water mark, so the last look before the end is nearly the whole truth.
            peak_memory_bytes = memory_high_water_mark(child.id()).or(peak_memory_bytes);
            thread::sleep(Duration::from_millis(5));
        };
        let time = begun.elapsed();
        let text =
            |reader: thread::ScopedJoinHandle<'_, Option<String>>| reader.join().ok().flatten().unwrap_or_default();
        (status, time, text(stdout), text(stderr))
    });
    match status.with_context(|| format!("wait for {}", typed(command)))? {
        Some(status) if status.success() => Ok(Measured { time, peak_memory_bytes, stdout }),
        status => {
            bail!("{}: {}: {}", typed(command), status.map_or_else(String::new, |s| s.to_string()), last_words(&stderr))
        }
    }
}

fn read_all(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // A pipe that breaks early has still said what it said.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn memory_high_water_mark(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
