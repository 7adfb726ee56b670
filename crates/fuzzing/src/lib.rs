//! Hostile inputs for parsers, out of honest ones.
//!
//! A *target* is a function that is given bytes, judges what the parser made of them, and panics when that is wrong. It
//! returns a *behaviour*: a number for what kind of thing happened. Inputs that showed a behaviour not seen before join
//! the corpus, so that the next ones are made out of them; no instrumented build is needed, and every toolchain will do.
//!
//! How a use flows: [`hunt`] in a test for a moment, as part of every run; [`hunt_long`] in an ignored one, for a minute
//! or what `E3_FUZZ_SECONDS` says. An input that fails is printed as a seed and in hex; it belongs into a table of the
//! parser's own tests then.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use random::SplitMix;

/// How long a long hunt is, in seconds.
const SECONDS: &str = "E3_FUZZ_SECONDS";
/// Inputs of a short hunt: as many on every machine.
const SHORT_ROUNDS: u64 = 3000;
/// Inputs that are kept to make others of; beyond it new ones take old ones' places.
const MAX_CORPUS: usize = 4096;
/// Bytes of an input that failed which are printed.
const SHOWN_BYTES: usize = 2048;

/// What a hunt looked at.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Inputs.
    pub inputs: u64,
    /// Behaviours among them.
    pub behaviours: usize,
}

/// A behaviour out of whatever tells it from others.
pub fn behaviour(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Judges the corpus itself, as it is, and a few thousand inputs made of it, the same in every run. None that is made is
/// longer than `max_bytes`.
pub fn hunt(corpus: &[Vec<u8>], max_bytes: usize, target: impl FnMut(&[u8]) -> u64) -> Seen {
    run(corpus, max_bytes, 1, |inputs| inputs < SHORT_ROUNDS, target)
}

/// The same for a minute, or for as long as `E3_FUZZ_SECONDS` says, from a seed that no run had before.
pub fn hunt_long(corpus: &[Vec<u8>], max_bytes: usize, target: impl FnMut(&[u8]) -> u64) -> Seen {
    let seconds =
        std::env::var(SECONDS).map_or(60, |text| text.parse().expect("E3_FUZZ_SECONDS is a number of seconds"));
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
    let seen = run(corpus, max_bytes, u64::from_le_bytes(random::bytes()), |_| begun.elapsed() < length, target);
    println!("{} inputs, {} behaviours in {seconds} s", seen.inputs, seen.behaviours);
    seen
}

fn run(
    corpus: &[Vec<u8>],
    max_bytes: usize,
    seed: u64,
    goes_on: impl Fn(u64) -> bool,
    mut target: impl FnMut(&[u8]) -> u64,
) -> Seen {
    let mut random = SplitMix::new(seed);
    let mut known: Vec<Vec<u8>> = corpus.to_vec();
    let mut behaviours = HashSet::new();
    let mut inputs = 0;
    while inputs < corpus.len() as u64 || goes_on(inputs) {
        let input = match corpus.get(inputs as usize) {
            Some(input) => input.clone(),
            None => changed(&mut random, &known, max_bytes),
        };
        match catch_unwind(AssertUnwindSafe(|| target(&input))) {
            Ok(seen) => {
                if behaviours.insert(seen) && inputs >= corpus.len() as u64 {
                    if known.len() < MAX_CORPUS {
                        known.push(input);
                    } else {
                        let place = random.below(MAX_CORPUS as u64) as usize;
                        known[place] = input;
                    }
                }
            }
            Err(panic) => {
                let shown: String = input.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect();
                eprintln!("input {inputs} of seed {seed:#x}, {} bytes: {shown}", input.len());
                resume_unwind(panic);
            }
        }
        inputs += 1;
    }
    Seen { inputs, behaviours: behaviours.len() }
}

/// One of the known inputs after a few changes.
fn changed(random: &mut SplitMix, known: &[Vec<u8>], max_bytes: usize) -> Vec<u8> {
    let pick = |random: &mut SplitMix| match known.len() as u64 {
        0 => Vec::new(),
        count => known[random.below(count) as usize].clone(),
    };
    let mut input = pick(random);
    for _ in 0..1 + random.below(4) {
        let len = input.len() as u64;
        let at = if len == 0 { 0 } else { random.below(len) as usize };
        let run = at + (1 + random.below(16) as usize).min(input.len().saturating_sub(at));
        match random.below(11) {
            0 if len > 0 => input[at] ^= 1 << random.below(8),
            1 if len > 0 => input[at] = random.next_u64() as u8,
            // Numbers at the borders of what fields can hold, in either order of bytes.
            2 | 3 if len > 0 => {
                let width = [1, 2, 4, 8][random.below(4) as usize].min(input.len() - at);
                let number = border(random);
                let bytes = if random.below(2) == 0 { number.to_be_bytes() } else { number.to_le_bytes() };
                let bytes = if random.below(2) == 0 { &bytes[8 - width..] } else { &bytes[..width] };
                input[at..at + width].copy_from_slice(bytes);
            }
            4 => drop(input.drain(at..run)),
            5 => input.truncate(at),
            6 => {
                let copy = input[at..run].to_vec();
                input.splice(at..at, copy);
            }
            7 => input.insert(at, random.next_u64() as u8),
            8 => input.splice(at..at, vec![random.next_u64() as u8; random.below(64) as usize]).for_each(drop),
            // The beginning of one and the end of another.
            9 => {
                let other = pick(random);
                let from = if other.is_empty() { 0 } else { random.below(other.len() as u64) as usize };
                input.truncate(at);
                input.extend(&other[from..]);
            }
            _ => input.extend(pick(random)),
        }
    }
    input.truncate(max_bytes);
    input
}

/// A power of two, or near one.
fn border(random: &mut SplitMix) -> u64 {
    let power = 1_u64 << random.below(64);
    match random.below(4) {
        0 => power,
        1 => power - 1,
        2 => power + 1,
        _ => power.wrapping_neg(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mistake that random bytes never meet: three conditions in a row, each a behaviour of its own.
    #[test]
    fn a_mistake_behind_several_conditions_is_found() {
        let target = |input: &[u8]| {
            let steps = [(0, b'e'), (1, b'3'), (5, 0xFF)];
            let fits = steps.iter().take_while(|(at, byte)| input.get(*at) == Some(byte)).count();
            assert!(fits < 3, "the mistake");
            fits as u64
        };
        let corpus = [vec![0; 8]];
        let found = catch_unwind(|| run(&corpus, 16, 7, |inputs| inputs < 300_000, target));
        assert!(found.is_err(), "{found:?}");
        // Without it, the same hunt ends.
        let seen = run(&corpus, 16, 7, |inputs| inputs < 20_000, |input| u64::from(input.len() > 16));
        assert_eq!((seen.inputs, seen.behaviours), (20_000, 1), "none is longer than was asked for");
    }
}
