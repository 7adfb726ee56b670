//! The deterministic simulation: one process holds the agent's engine, two simulated hosts, a store in memory and their
//! time, and a seed decides what happens.
//!
//! [`Story::of_seed`] makes a story: guests that write, hosts and stores that fail, an agent that dies at any call to
//! either, checkpoints, reverts, moves, other people's retention and maintenance. [`play`] plays it and asks after every
//! run whether the laws of the design still hold; `laws.rs` has a judge for each, who knows only what really happened
//! (`model.rs`). [`shrink`] makes a story that fails as short as it can be.
//!
//! The same story takes the same course, byte for byte: the thread's random bytes are seeded, nothing runs on another
//! thread, time moves by sleeping only, and the machine's file numbers are replaced. [`Played::history`] is the digest
//! of everything that crossed the border between the agent and the rest.
//!
//! Not here: anything that the product uses. Read `story.rs`, then `world.rs` and `laws.rs`.

mod acts;
mod agent;
mod border;
mod generate;
mod host;
mod laws;
mod maintenance;
mod minimums;
mod model;
mod shrink;
mod store;
mod story;
mod world;

pub use laws::{Law, Violation};
pub use minimums::{Minimum, minimums};
pub use shrink::shrink;
pub use story::{Act, AfterMove, Crash, HostFault, Revert, Run, Setup, StoreFault, Story, TrackingMode};
pub use world::Counts;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

/// A story that was played.
#[derive(Clone, Debug)]
pub struct Played {
    /// The first law that was broken, if one was.
    pub violation: Option<Violation>,
    /// How often each thing happened.
    pub counts: Counts,
    /// Digest of the history.
    pub history: String,
    /// Its length in lines.
    pub lines: u64,
}

/// Plays a story to its end, or to the first act after which a law is broken.
pub fn play(story: &Story) -> Played {
    play_as(story, false)
}

/// The same; the whole history is printed.
pub fn play_aloud(story: &Story) -> Played {
    play_as(story, true)
}

fn play_as(story: &Story, aloud: bool) -> Played {
    let _seeded = random::seed_this_thread(story.seed);
    let world = World::new(story, aloud);
    let played = catch_unwind(AssertUnwindSafe(|| {
        for (number, act) in story.acts.iter().enumerate() {
            world.border.tell(&format!("act {number}: {act:?}"));
            world.act(act);
            if world.found().is_some() {
                return;
            }
        }
        world.border.tell("the end");
        laws::check_end(&world);
    }));
    if let Err(payload) = played {
        world.find(Law::Progress, format!("panic: {}", world::text_of(&*payload)));
    }
    let (history, lines) = world.border.history();
    Played { violation: world.found(), counts: world.counts(), history, lines }
}
