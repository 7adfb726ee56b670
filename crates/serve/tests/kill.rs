//! A process that writes is killed again and again; what it was told is done is there (I4), with real files.
#![cfg(unix)]

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nbd::Device;
use random::SplitMix;
use serve::folder::DiskFolder;
use serve::overlay::{Overlay, OverlayOptions};
use support::base::MemoryBase;
use support::device::{device, identity, key, read, write};

const SIZE: u64 = 64 << 20;
const PLACE: &str = "E3_SERVE_KILL_PLACE";
const SEED: &str = "E3_SERVE_KILL_SEED";

fn base() -> Arc<MemoryBase> {
    Arc::new(MemoryBase::new(SIZE, 1 << 20))
}

fn options() -> OverlayOptions {
    OverlayOptions { segment_bytes: 1 << 20, compact_from_bytes: 8 << 20, limit_bytes: None, reserve_bytes: 0 }
}

fn open(place: &Path) -> Overlay {
    let folder = Arc::new(DiskFolder::open_or_create(place).unwrap());
    match Overlay::create(folder.clone(), identity(&base()), key(), options()) {
        Err(serve::overlay::OverlayError::Exists { .. }) => {
            Overlay::recover(folder, identity(&base()), key(), options()).unwrap()
        }
        created => created.unwrap(),
    }
}

/// The process that is killed: writes, and tells each write before it begins and once it is acknowledged.
#[test]
fn child() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let device = device(base(), Some(open(Path::new(&place))));
    let mut random = SplitMix::new(seed);
    let mut out = std::io::stdout();
    for nth in 0.. {
        let first = random.below(SIZE / 512 - 64);
        let count = 1 + random.below(64);
        let value = (seed << 32) | (nth + 1);
        writeln!(out, "\nbegin {first} {count} {value}").unwrap();
        write(&device, first, &vec![value; count as usize]).unwrap();
        writeln!(out, "done").unwrap();
        match random.below(40) {
            0 => device.flush().unwrap(),
            1 => drop(device.overlay().unwrap().compact().unwrap()),
            _ => {}
        }
    }
}

#[test]
fn kills_lose_nothing_that_was_acknowledged() {
    let place = tempfile::tempdir().unwrap();
    let base = base();
    let mut random = SplitMix::new(3);
    let mut values: HashMap<u64, u64> = HashMap::new();
    let rounds = std::env::var("E3_SERVE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let mut acknowledged = 0;
    for round in 1..=rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(PLACE, place.path())
            .env(SEED, u64::to_string(&round))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut writes: Vec<(u64, u64, u64, bool)> = Vec::new();
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Some(rest) = line.strip_prefix("begin ") {
                    let numbers: Vec<u64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
                    // The last line may be cut.
                    if let [first, count, value] = numbers[..] {
                        writes.push((first, count, value, false));
                    }
                } else if line == "done" {
                    writes.last_mut().unwrap().3 = true;
                }
            }
            writes
        });
        std::thread::sleep(Duration::from_millis(150 + random.below(400)));
        child.kill().unwrap();
        child.wait().unwrap();
        let writes = reader.join().unwrap();
        let device = device(base.clone(), Some(open(place.path())));
        let mut begun: HashMap<u64, u64> = HashMap::new();
        for (first, count, value, is_done) in writes {
            let to = if is_done { &mut values } else { &mut begun };
            to.extend((first..first + count).map(|sector| (sector, value)));
            acknowledged += u64::from(is_done);
        }
        for first in (0..SIZE / 512).step_by(2048) {
            let seen = read(&device, first, 2048).unwrap();
            for (sector, seen) in (first..).zip(seen) {
                let expected = values.get(&sector).copied().unwrap_or(base.value(sector));
                // The write that was cut off may be there, and is from now on what was written.
                if begun.get(&sector) == Some(&seen) {
                    values.insert(sector, seen);
                } else {
                    assert_eq!(seen, expected, "round {round}, sector {sector}");
                }
            }
        }
    }
    println!("{acknowledged} writes acknowledged in {rounds} lives");
    assert!(acknowledged > 100 * rounds, "{acknowledged}");
}
