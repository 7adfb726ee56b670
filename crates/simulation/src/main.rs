//! `simulation`: plays the stories of many seeds; the program behind `cargo xtask simulate`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use simulation::{Counts, Played, Story, Violation, minimums, play, play_aloud, shrink};

/// Stories played at most to shorten one that fails.
const SHRINK_TRIES: usize = 400;

/// Plays the stories of many seeds, and judges them by the laws.
#[derive(Debug, Parser)]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Stories played at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Print the whole history; for a single seed.
    #[arg(long)]
    aloud: bool,
    /// Shorten the stories of so many seeds that fail.
    #[arg(long, default_value_t = 1)]
    shorten: usize,
    /// End at the first failure, print it in one line, and neither shorten it nor ask for minimum counts.
    #[arg(long)]
    first_failure: bool,
}

struct Failure {
    seed: u64,
    played: Played,
}

impl Failure {
    fn violation(&self) -> &Violation {
        self.played.violation.as_ref().expect("a failure breaks a law")
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.aloud {
        let story = Story::of_seed(options.first_seed);
        println!("{story:#?}");
        let played = play_aloud(&story);
        println!("history {} of {} lines; {:?}", played.history, played.lines, played.violation);
        return if played.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let start = Instant::now();
    let (counts, mut failures, played) = play_all(&options);
    failures.sort_by_key(|failure| failure.seed);
    if options.first_failure {
        let Some(failure) = failures.first() else {
            println!("nothing found in {played} seeds");
            return ExitCode::SUCCESS;
        };
        println!("seed {}: {}", failure.seed, failure.violation());
        return ExitCode::FAILURE;
    }
    for (what, count) in &counts {
        println!("{count:>9}  {what}");
    }
    let ms = start.elapsed().as_millis() as u64;
    println!("{played} seeds in {:.1} s, {:.1} ms each", ms as f64 / 1000.0, ms as f64 / played.max(1) as f64);
    for failure in failures.iter().take(options.shorten) {
        tell(failure);
    }
    let short: Vec<String> = minimums()
        .iter()
        .filter(|minimum| minimum.seen(&counts) < minimum.wanted(played))
        .map(|minimum| format!("{}: {} of {}", minimum.what, minimum.seen(&counts), minimum.wanted(played)))
        .collect();
    if !short.is_empty() {
        println!("happened too rarely: {}", short.join(", "));
    }
    if failures.is_empty() && short.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play_all(options: &Options) -> (Counts, Vec<Failure>, u64) {
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let all: Mutex<(Counts, Vec<Failure>)> = Mutex::new((BTreeMap::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= options.seeds {
                        break;
                    }
                    let seed = options.first_seed + number;
                    let played = play(&Story::of_seed(seed));
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut all = all.lock().expect("no panic while held");
                    for (what, count) in &played.counts {
                        *all.0.entry(what.clone()).or_default() += count;
                    }
                    if played.violation.is_some() {
                        let failure = Failure { seed, played };
                        if !options.first_failure {
                            println!("seed {seed} breaks {}", failure.violation());
                        }
                        all.1.push(failure);
                        stop.store(options.first_failure, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (counts, failures) = all.into_inner().expect("no panic while held");
    (counts, failures, done.into_inner())
}

fn tell(failure: &Failure) {
    let (story, violation) = shrink(&Story::of_seed(failure.seed), failure.violation(), SHRINK_TRIES);
    println!("\nseed {}: the shortest story found breaks {violation}", failure.seed);
    println!("  {:?}", story.setup);
    for act in &story.acts {
        println!("  {act:?}");
    }
    println!("replay the whole: cargo xtask simulate --seeds 1 --first-seed {} --aloud", failure.seed);
}
