//! Figures of what is served (spec block-serving C.10).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where bytes that a guest reads come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What it wrote itself.
    Overlay,
    /// What was hydrated.
    Target,
    /// The memory cache.
    Memory,
    /// The disk cache.
    DiskCache,
    /// The repository.
    Repository,
    /// Nowhere: known to be zero.
    Zero,
}

impl Source {
    const ALL: [(Self, &str); 6] = [
        (Self::Overlay, "overlay"),
        (Self::Target, "target"),
        (Self::Memory, "memory"),
        (Self::DiskCache, "disk_cache"),
        (Self::Repository, "repository"),
        (Self::Zero, "zero"),
    ];
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read,
    /// A write or zeroing.
    Write,
    /// A flush.
    Flush,
}

/// Upper bounds of the histograms, in microseconds.
const BOUNDS_US: [u64; 10] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000];

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

/// Counters, added to from everywhere.
#[derive(Default)]
pub struct Metrics {
    read_bytes: [AtomicU64; Source::ALL.len()],
    read: Histogram,
    write: Histogram,
    flush: Histogram,
    drained_bytes: AtomicU64,
    prefetched: [AtomicU64; 4],
    prefetch_used: [AtomicU64; 4],
}

/// Why a segment is prefetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PrefetchKind {
    /// This VM read it when it booted last time.
    BootSet,
    /// Partition tables and the like.
    Structure,
    /// A guest reads one segment after the other.
    Sequential,
    /// Asked for by the client.
    Asked,
}

impl PrefetchKind {
    const ALL: [(Self, &str); 4] = [
        (Self::BootSet, "boot_set"),
        (Self::Structure, "structure"),
        (Self::Sequential, "sequential"),
        (Self::Asked, "asked"),
    ];
}

impl Metrics {
    /// Bytes were found there.
    pub fn read_from(&self, source: Source, bytes: u64) {
        self.read_bytes[source as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes found there so far.
    pub fn bytes_from(&self, source: Source) -> u64 {
        self.read_bytes[source as usize].load(Ordering::Relaxed)
    }

    /// An operation took so long.
    pub fn took(&self, operation: Operation, time: Duration) {
        let histogram = match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
        };
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BOUNDS_US.iter().position(|bound| time_us <= *bound) {
            histogram.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        histogram.count.fetch_add(1, Ordering::Relaxed);
        histogram.sum_us.fetch_add(time_us, Ordering::Relaxed);
    }

    /// Reads that guests had answered so far.
    pub fn reads(&self) -> u64 {
        self.read.count.load(Ordering::Relaxed)
    }

    /// Bytes went from an overlay to its target.
    pub fn drained(&self, bytes: u64) {
        self.drained_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A segment was prefetched.
    pub fn prefetched(&self, kind: PrefetchKind) {
        self.prefetched[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A prefetched segment was asked for.
    pub fn prefetch_used(&self, kind: PrefetchKind) {
        self.prefetch_used[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The figures in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (source, name) in Source::ALL {
            let bytes = self.bytes_from(source);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "e3_serve_read_bytes_total{{source=\"{name}\"}} {bytes}");
        }
        for (name, histogram) in [("read", &self.read), ("write", &self.write), ("flush", &self.flush)] {
            let mut below = 0;
            for (bound_us, bucket) in BOUNDS_US.iter().zip(&histogram.buckets) {
                below += load(bucket);
                let bound = *bound_us as f64 / 1e6;
                let _ = writeln!(text, "e3_serve_{name}_seconds_bucket{{le=\"{bound}\"}} {below}");
            }
            let count = load(&histogram.count);
            let sum = load(&histogram.sum_us) as f64 / 1e6;
            let _ = writeln!(text, "e3_serve_{name}_seconds_bucket{{le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "e3_serve_{name}_seconds_sum {sum}\ne3_serve_{name}_seconds_count {count}");
        }
        let _ = writeln!(text, "e3_serve_drained_bytes_total {}", load(&self.drained_bytes));
        for (name, counters) in [("segments", &self.prefetched), ("used", &self.prefetch_used)] {
            for (kind, label) in PrefetchKind::ALL {
                let count = load(&counters[kind as usize]);
                let _ = writeln!(text, "e3_serve_prefetch_{name}_total{{kind=\"{label}\"}} {count}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rendered() {
        let metrics = Metrics::default();
        metrics.read_from(Source::DiskCache, 4096);
        metrics.took(Operation::Flush, Duration::from_millis(2));
        metrics.took(Operation::Flush, Duration::from_secs(60));
        metrics.prefetched(PrefetchKind::Sequential);
        let text = metrics.render();
        for line in [
            "e3_serve_read_bytes_total{source=\"disk_cache\"} 4096",
            "e3_serve_flush_seconds_bucket{le=\"0.001\"} 0",
            "e3_serve_flush_seconds_bucket{le=\"0.003\"} 1",
            "e3_serve_flush_seconds_bucket{le=\"10\"} 1",
            "e3_serve_flush_seconds_bucket{le=\"+Inf\"} 2",
            "e3_serve_flush_seconds_count 2",
            "e3_serve_prefetch_segments_total{kind=\"sequential\"} 1",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} in\n{text}");
        }
    }
}
