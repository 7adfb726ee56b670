//! The stories of a few hundred seeds, and that a story always takes the same course.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use simulation::{Counts, Story, play};

/// Stories that every push plays, half a second of processor time each; `cargo xtask simulate` plays more.
const SEEDS: u64 = 300;

#[test]
fn no_law_is_broken_in_the_stories_of_the_first_seeds() {
    let next = AtomicU64::new(0);
    let all: Mutex<(Counts, Vec<String>)> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    let played = play(&Story::of_seed(seed));
                    let mut all = all.lock().unwrap();
                    for (what, count) in played.counts {
                        *all.0.entry(what).or_default() += count;
                    }
                    all.1.extend(played.violation.map(|violation| format!("seed {seed}: {violation}")));
                }
            });
        }
    });
    let (counts, violations) = all.into_inner().unwrap();
    assert!(
        violations.is_empty(),
        "cargo xtask simulate --seeds 1 --first-seed N shortens:\n{}",
        violations.join("\n")
    );
    for minimum in simulation::minimums() {
        let (seen, wanted) = (minimum.seen(&counts), minimum.wanted(SEEDS));
        assert!(seen >= wanted, "{}: {seen} times, and {wanted} are wanted", minimum.what);
    }
}

#[test]
fn stories_that_found_something_once_find_it_no_more() {
    // 514 and 827: an answer of the store that was cut short made the reader of metadata panic. 748: a point that was
    // deleted before the run that had made it was put in order came back. 2207: what was damaged once on its way was
    // kept by the reader of metadata, and failed later runs.
    for seed in [514, 748, 827, 2207] {
        let violation = play(&Story::of_seed(seed)).violation;
        assert!(violation.is_none(), "seed {seed}: {violation:?}");
    }
}

#[test]
fn a_story_takes_the_same_course_again() {
    let mut lines = 0;
    for seed in [0, 3, 7, 24, 37, 42] {
        let first = play(&Story::of_seed(seed));
        let second = play(&Story::of_seed(seed));
        assert_eq!((&first.history, first.lines), (&second.history, second.lines), "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
        lines += first.lines;
    }
    assert!(lines > 6 * 500, "{lines} lines are no story");
    assert_ne!(play(&Story::of_seed(0)).history, play(&Story::of_seed(1)).history);
}
