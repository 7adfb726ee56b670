//! Overlays and hydration maps out of which somebody made something else.

mod support;

use std::sync::OnceLock;

use serve::overlay::OverlayOptions;
use serve::{GRAIN_BYTES, HydrateMap, MAP_NAME, MapIdentity};
use support::base::{MemoryBase, SECTOR};
use support::device::{create, device, read, recover, write};
use support::machine::{Forgets, Machine};

const SIZE: u64 = 64 << 10;
const SECTORS: u64 = SIZE / SECTOR;

/// An overlay of several segments: its files, and what the disk held after each write.
struct Written {
    files: Vec<(String, Vec<u8>)>,
    instants: Vec<Vec<u64>>,
}

fn base() -> std::sync::Arc<MemoryBase> {
    std::sync::Arc::new(MemoryBase::new(SIZE, 64 << 10))
}

fn written() -> &'static Written {
    static WRITTEN: OnceLock<Written> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let machine = Machine::new(1, Forgets::default());
        let options = OverlayOptions {
            segment_bytes: 16 << 10,
            compact_from_bytes: 1 << 20,
            limit_bytes: None,
            reserve_bytes: 0,
        };
        let device = device(base(), Some(create(machine.folder(), &base(), options)));
        let mut instants = vec![read(&device, 0, SECTORS).unwrap()];
        for nth in 1..16_u64 {
            write(&device, nth * 37 % (SECTORS - 12), &vec![nth; 1 + (nth * 5 % 11) as usize]).unwrap();
            instants.push(read(&device, 0, SECTORS).unwrap());
        }
        drop(device);
        Written { files: machine.files(), instants }
    })
}

/// Changes the files as `input` says, seven bytes a change: what, in which file, where, how much, with what.
fn changed(input: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = written().files.clone();
    for [what, file, high, low, len, value, other] in input.as_chunks::<7>().0 {
        if files.is_empty() {
            break;
        }
        let (nth, count) = (usize::from(*file) % files.len(), files.len());
        let bytes = &mut files[nth].1;
        let at = (usize::from(*high) << 8 | usize::from(*low)).min(bytes.len());
        let end = (at + usize::from(*len)).min(bytes.len());
        match what % 8 {
            0 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= value),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.splice(at..at, vec![*value; usize::from(*len)]).for_each(drop),
            4 => bytes.extend(vec![*value; usize::from(*len)]),
            5 => drop(files.remove(nth)),
            // A segment in another's place, and a record in another's.
            6 => files[nth].1 = files[usize::from(*other) % count].1.clone(),
            _ => {
                let from = files[usize::from(*other) % count].1.clone();
                let piece = &from[at.min(from.len())..end.min(from.len())];
                files[nth].1.splice(at..at, piece.iter().copied()).for_each(drop);
            }
        }
    }
    files
}

/// Whatever was done to the files: an error, or what was written before some instant; never other bytes.
fn overlay(input: &[u8]) -> u64 {
    let machine = Machine::new(1, Forgets::default());
    let folder = machine.folder();
    for (name, bytes) in changed(input) {
        folder.create(&name).unwrap().write_all_at(&bytes, 0).unwrap();
    }
    let overlay = match recover(folder, &base()) {
        Ok(overlay) => overlay,
        Err(error) => {
            return fuzzing::behaviour(error.to_string().chars().filter(char::is_ascii_alphabetic).collect::<String>());
        }
    };
    let device = device(base(), Some(overlay));
    let seen: Vec<Option<u64>> = (0..SECTORS).map(|sector| Some(read(&device, sector, 1).ok()?[0])).collect();
    let instants = &written().instants;
    // One write may be several records, so the end may be inside of one.
    let fits = |nth: usize| {
        let after = instants.get(nth + 1).unwrap_or(&instants[nth]);
        let sectors = seen.iter().zip(instants[nth].iter().zip(after));
        sectors.into_iter().all(|(seen, (before, after))| seen.is_none_or(|seen| seen == *before || seen == *after))
    };
    let instant = (0..instants.len()).find(|nth| fits(*nth));
    assert!(instant.is_some(), "no instant was like this: {seen:?}");
    fuzzing::behaviour((instant, seen.iter().filter(|sector| sector.is_none()).count()))
}

fn changes() -> Vec<Vec<u8>> {
    let one = |what: u8, file: u8, at: u16| [&[what, file][..], &at.to_be_bytes(), &[64, 0xFF, 0]].concat();
    let each = (0..8).flat_map(|what| [one(what, 0, 100), one(what, 1, 4096 + 64), one(what, 2, 4096)]);
    each.chain([vec![]]).collect()
}

#[test]
fn fuzz_overlay() {
    let seen = fuzzing::hunt(&changes(), 70, overlay);
    assert!(seen.behaviours > 10, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_overlay_long() {
    fuzzing::hunt_long(&changes(), 140, overlay);
}

const IDENTITY: MapIdentity =
    MapIdentity { session: [1; 16], grain_bytes: GRAIN_BYTES, size_bytes: 100 * GRAIN_BYTES - 512, base: [2; 32] };
const HEADER_BYTES: usize = 4096;

/// A map is taken only with its owner's header and all of its bits, which are those of the file and no others.
fn map(input: &[u8]) -> u64 {
    let machine = Machine::new(1, Forgets::default());
    let folder = machine.folder();
    folder.create(MAP_NAME).unwrap().write_all_at(input, 0).unwrap();
    let is_whole = input.len() >= HEADER_BYTES + 13 && input[..HEADER_BYTES] == maps()[0][..HEADER_BYTES];
    let map = match HydrateMap::open(&*folder, &IDENTITY) {
        Ok(map) => map,
        Err(error) => {
            assert!(!is_whole, "a map was refused: {error}");
            return fuzzing::behaviour(error.kind());
        }
    };
    assert!(is_whole, "what is no map of this session was taken");
    assert_eq!(map.grains(), 100);
    let bit = |grain: u64| input[HEADER_BYTES + grain as usize / 8] >> (grain % 8) & 1 == 1;
    let set = (0..100).filter(|grain| map.is_hydrated(*grain)).count() as u64;
    assert!((0..100).all(|grain| map.is_hydrated(grain) == bit(grain)));
    assert_eq!(map.hydrated(), set, "only grains that there are count");
    assert_eq!(map.next_missing(0), (0..100).find(|grain| !bit(*grain)));
    fuzzing::behaviour(set)
}

fn maps() -> &'static [Vec<u8>] {
    static MAPS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MAPS.get_or_init(|| {
        let machine = Machine::new(1, Forgets::default());
        HydrateMap::create(&*machine.folder(), &IDENTITY).unwrap();
        let empty = machine.files().remove(0).1;
        let mut full = empty.clone();
        full[HEADER_BYTES..].fill(0xFF);
        let some = (1..12).map(|bytes| {
            let mut some = empty.clone();
            some[HEADER_BYTES..HEADER_BYTES + bytes].fill(0x55);
            some
        });
        some.chain([full]).chain([empty.clone()]).rev().collect()
    })
}

#[test]
fn fuzz_map() {
    let seen = fuzzing::hunt(maps(), HEADER_BYTES + 64, map);
    assert!(seen.behaviours > 10, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_map_long() {
    fuzzing::hunt_long(maps(), HEADER_BYTES + 64, map);
}
