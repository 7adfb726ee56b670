//! Both versions against Kopia's own bytes, and random indexes against a map.

use std::collections::BTreeMap;

use super::*;
use crate::format::test_vectors::{Rng, unhex};

const P: &str = "p0123456789abcdef0123456789abcdef-s0011223344556677122";
const Q: &str = "qfedcba9876543210fedcba9876543210-s0011223344556677122";

fn entry(id: &str, time: i64, pack: &str, offset: u32, lens: (u32, u32), compression: u32) -> IndexEntry {
    IndexEntry {
        id: id.parse().unwrap(),
        timestamp_seconds: time,
        deleted: false,
        pack: pack.into(),
        pack_offset: offset,
        original_len: lens.0,
        packed_len: lens.1,
        compression: CompressionId(compression),
        format_version: 3,
        encryption_key_id: 0,
    }
}

/// The entries of kopia-format 11.5, out of order.
fn kopias() -> Vec<IndexEntry> {
    let a = entry("00112233445566778899aabbccddeeff", 1_700_000_000, P, 32, (5, 33), 0);
    let b = entry("f0112233445566778899aabbccddeeff", 1_700_000_001, P, 65, (1_048_576, 4096), 0x1100);
    let mut c = entry("k00112233445566778899aabbccddeeff", 1_700_000_002, Q, 32, (700, 350), 0x1101);
    c.deleted = true;
    vec![c, a, b]
}

const V2: &str = "02110011000000030000000203000000000000112233445566778899aabbccddeeff6553f1000000002000000500002100000000f0112233445566778899aabbccddeeff6553f101000000411000000010000000016b00112233445566778899aabbccddeeff6553f102800000200002bc00015e000102360000009336000000c90000000003000000110003000000110103007030313233343536373839616263646566303132333435363738396162636465662d73303031313232333334343535363637373132327166656463626139383736353433323130666564636261393837363534333231302d7330303131323233333434353536363737313232";
const V1: &str = "01110014000000030000112233445566778899aabbccddeeff00006553f100033600000077000000200000002100f0112233445566778899aabbccddeeff00006553f10103360000007700000041000010006b00112233445566778899aabbccddeeff00006553f1020336000000ad800000200000015e7030313233343536373839616263646566303132333435363738396162636465662d73303031313232333334343535363637373132327166656463626139383736353433323130666564636261393837363534333231302d7330303131323233333434353536363737313232";
const V2_A: &str = "02110010000000010000000101000000000000112233445566778899aabbccddeeff6553f100000000200000050000210000360000003d0000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313232";
const V2_LONG: &str = "02110013000000010000000101000000000000112233445566778899aabbccddeeff6553f10000000020bcdef123456700000000a136000000400000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313232";

#[test]
fn version_2_agrees_with_kopia() {
    let mut entries = kopias();
    assert_eq!(build(2, &mut entries).unwrap(), unhex(V2));
    assert_eq!(build(2, &mut entries[..1]).unwrap(), unhex(V2_A));
    let layer = IndexLayer::parse(&unhex(V2), 28).unwrap();
    assert_eq!(layer.iter().collect::<Vec<_>>(), entries);

    entries.truncate(1);
    (entries[0].original_len, entries[0].packed_len) = (0x0abc_def1, 0x0123_4567);
    assert_eq!(build(2, &mut entries).unwrap(), unhex(V2_LONG));
    assert_eq!(IndexLayer::parse(&unhex(V2_LONG), 28).unwrap().iter().collect::<Vec<_>>(), entries);
}

/// What version 1 can say of an entry.
fn without_what_v1_loses(mut entry: IndexEntry) -> IndexEntry {
    entry.compression = CompressionId::NONE;
    entry.original_len = entry.packed_len - 28;
    entry
}

#[test]
fn version_1_agrees_with_kopia() {
    let mut entries: Vec<IndexEntry> = kopias().into_iter().map(without_what_v1_loses).collect();
    assert_eq!(build(1, &mut entries).unwrap(), unhex(V1));
    assert_eq!(IndexLayer::parse(&unhex(V1), 28).unwrap().iter().collect::<Vec<_>>(), entries);
    assert!(matches!(IndexLayer::parse(&unhex(V1), 34), Err(IndexError::PackedLength { entry: 0, packed_len: 33 })));
}

#[test]
fn what_a_version_cannot_hold_is_refused() {
    let good = || kopias().remove(1);
    let refused = |version: u8, change: &dyn Fn(&mut IndexEntry)| {
        let mut entry = good();
        change(&mut entry);
        build(version, &mut [entry]).err()
    };
    assert_eq!(refused(1, &|_| {}), None);
    assert_eq!(refused(2, &|_| {}), None);
    let long_name: Arc<str> = "p".repeat(256).into();
    type Change<'a> = (&'static str, &'a dyn Fn(&mut IndexEntry));
    let changes: [Change<'_>; 5] = [
        ("pack offset", &|entry| entry.pack_offset = 1 << 30),
        ("pack name length", &|entry| entry.pack = "".into()),
        ("pack name length", &|entry| entry.pack = long_name.clone()),
        ("timestamp", &|entry| entry.timestamp_seconds = -1),
        ("encryption key", &|entry| entry.encryption_key_id = 1),
    ];
    for (wanted, change) in changes {
        for version in [1, 2] {
            let error = refused(version, change);
            assert!(
                matches!(error, Some(BuildIndexError::OutOfRange { field, .. }) if field == wanted),
                "version {version}, {wanted}: {error:?}"
            );
        }
    }
    assert!(refused(2, &|entry| entry.timestamp_seconds = 1 << 32).is_some());
    assert!(refused(1, &|entry| entry.timestamp_seconds = 1 << 32).is_none());
    assert!(refused(1, &|entry| entry.timestamp_seconds = 1 << 48).is_some());
    assert!(refused(2, &|entry| entry.packed_len = 1 << 28).is_some());
    assert!(refused(2, &|entry| entry.original_len = 1 << 28).is_some());
    assert!(refused(1, &|entry| entry.original_len = 6).is_some());
    assert!(refused(1, &|entry| entry.compression = CompressionId::ZSTD).is_some());
    assert_eq!(refused(3, &|_| {}), Some(BuildIndexError::UnknownVersion { version: 3 }));
    assert_eq!(build_v2(&mut []), Err(BuildIndexError::Empty));
    assert_eq!(build_v1(&mut []), Err(BuildIndexError::Empty));
    let mixed = &mut [good(), entry("00ff", 1, P, 0, (5, 33), 0)];
    assert!(matches!(build_v2(mixed), Err(BuildIndexError::MixedHashLengths { .. })));
    let formats: Vec<IndexEntry> = (0..=255u8)
        .map(|n| IndexEntry { format_version: n, ..entry(&format!("{n:02x}"), 1, P, 0, (5, 33), 0) })
        .collect();
    assert!(matches!(build_v2(&mut formats.clone()), Err(BuildIndexError::TooMany { what: "formats", count: 256 })));
    assert!(build_v2(&mut formats[1..].to_vec()).is_ok());
}

#[test]
fn a_base_timestamp_is_added_and_trailing_bytes_are_ignored() {
    let mut bytes = unhex(V2);
    bytes[13..17].copy_from_slice(&0x8000_0000u32.to_be_bytes());
    bytes.extend_from_slice(&[0xaa; 32]);
    let layer = IndexLayer::parse(&bytes, 28).unwrap();
    let times: Vec<i64> = layer.iter().map(|entry| entry.timestamp_seconds - 0x8000_0000).collect();
    assert_eq!(times, [1_700_000_000, 1_700_000_001, 1_700_000_002]);
}

#[test]
fn more_than_65536_packs_need_a_third_byte() {
    let count = 65_540;
    let mut entries: Vec<IndexEntry> =
        (0..count).map(|n| entry(&format!("{n:08x}"), n, &format!("p{n}"), n as u32, (5, 33), 0)).collect();
    let bytes = build_v2(&mut entries).unwrap();
    assert_eq!(bytes[2..4], [0, 18]);
    let layer = IndexLayer::parse(&bytes, 28).unwrap();
    assert_eq!(layer.iter().collect::<Vec<_>>(), entries);
    entries.truncate(65_536);
    assert_eq!(build_v2(&mut entries).unwrap()[2..4], [0, 16]);
}

#[test]
fn damaged_headers_and_tables_are_named() {
    let good = unhex(V2);
    let parse = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        IndexLayer::parse(&bytes, 28).err()
    };
    // Entries begin at 17 and have 34 bytes; pack records follow at 119, format records at 129.
    assert_eq!(parse(&|_| {}), None);
    assert!(matches!(parse(&|b| b.truncate(7)), Some(IndexError::TooShort { needed: 8, .. })));
    assert!(matches!(parse(&|b| b.truncate(16)), Some(IndexError::TooShort { needed: 17, .. })));
    assert!(matches!(parse(&|b| b.truncate(146)), Some(IndexError::TooShort { needed: 147, .. })));
    assert!(matches!(parse(&|b| b[4] = 0xff), Some(IndexError::TooShort { .. })));
    assert!(matches!(parse(&|b| b[8] = 0xff), Some(IndexError::TooShort { .. })));
    assert_eq!(parse(&|b| b[0] = 3), Some(IndexError::UnknownVersion { version: 3 }));
    assert_eq!(parse(&|b| b[1] = 1), Some(IndexError::KeySize { key_size: 1 }));
    assert_eq!(parse(&|b| b[1] = 34), Some(IndexError::KeySize { key_size: 34 }));
    assert_eq!(parse(&|b| b[3] = 15), Some(IndexError::EntrySize { version: 2, entry_size: 15 }));
    assert_eq!(parse(&|b| b[3] = 20), Some(IndexError::EntrySize { version: 2, entry_size: 20 }));
    assert_eq!(parse(&|b| b[51 + 1] = 0), Some(IndexError::Unsorted { entry: 1 }));
    assert_eq!(parse(&|b| b[85] = b'a'), Some(IndexError::Prefix { entry: 2, prefix: b'a' }));
    assert_eq!(parse(&|b| b[17 + 17 + 15] = 2), Some(IndexError::Pack { entry: 0, pack: 2, packs: 2 }));
    assert_eq!(parse(&|b| b[17 + 17 + 16] = 3), Some(IndexError::Format { entry: 0, format: 3, formats: 3 }));
    assert_eq!(parse(&|b| b[119 + 1] = 1), Some(IndexError::PackName { offset: 0x0100_0093, len: 54 }));
    assert!(matches!(parse(&|b| *b.last_mut().unwrap() = 0xff), Some(IndexError::PackName { .. })));
    assert_eq!(parse(&|b| b[129 + 5] = 1), Some(IndexError::EncryptionKey { key_id: 1 }));
}

#[test]
fn empty_indexes_are_read() {
    for bytes in [
        &[1, 255, 0, 20, 0, 0, 0, 0][..],
        &[1, 17, 0, 20, 0, 0, 0, 0],
        &[2, 17, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let layer = IndexLayer::parse(bytes, 28).unwrap();
        assert!(layer.is_empty());
        assert_eq!(layer.find(&"00ff".parse().unwrap()), Ok(None));
        assert_eq!(layer.iter_prefix(None).count(), 0);
        assert_eq!(merge(&[&layer, &layer]).unwrap().len(), 0);
    }
    assert!(IndexLayer::parse(&[], 28).is_err());
}

#[test]
fn look_ups_find_what_is_there_and_refuse_other_lengths() {
    let layer = IndexLayer::parse(&unhex(V2), 28).unwrap();
    for wanted in layer.iter() {
        assert_eq!(layer.find(&wanted.id), Ok(Some(wanted)));
    }
    for absent in
        ["00112233445566778899aabbccddeefe", "ffff2233445566778899aabbccddeeff", "g0000000000000000000000000000000f"]
    {
        assert_eq!(layer.find(&absent.parse().unwrap()), Ok(None), "{absent}");
    }
    let other = layer.find(&"00ff".parse().unwrap());
    assert_eq!(other, Err(KeyLengthMismatch { asked: 2, held: 16 }));
    let of = |prefix| layer.iter_prefix(prefix).map(|entry| entry.id.to_string()).collect::<Vec<_>>();
    assert_eq!(of(Some(b'k')), ["k00112233445566778899aabbccddeeff"]);
    assert_eq!(of(None).len(), 2);
    assert_eq!((of(Some(b'g')).len(), of(Some(b'z')).len()), (0, 0));
}

#[test]
fn the_entry_that_counts_is_the_later_then_the_living_then_the_greater_pack() {
    let base = entry("00ff", 10, "p5", 0, (5, 33), 0);
    let with =
        |time, deleted, pack: &str| IndexEntry { timestamp_seconds: time, deleted, pack: pack.into(), ..base.clone() };
    for (greater, lesser) in [
        (with(11, true, "p0"), with(10, false, "p9")),
        (with(10, false, "p0"), with(10, true, "p9")),
        (with(10, false, "p6"), with(10, false, "p5")),
        (with(10, true, "p6"), with(10, true, "p5")),
    ] {
        assert_eq!(newer_wins(&greater, &lesser), Ordering::Greater);
        assert_eq!(newer_wins(&lesser, &greater), Ordering::Less);
        for order in [[&greater, &lesser], [&lesser, &greater]] {
            let layers = order.map(|entry| IndexLayer::from_entries(vec![entry.clone()]).unwrap());
            let merged = merge(&[&layers[0], &layers[1]]).unwrap();
            assert_eq!(merged.iter().collect::<Vec<_>>(), std::slice::from_ref(&greater));
            let mut both = order.map(IndexEntry::clone);
            let built = IndexLayer::parse(&build_v2(&mut both).unwrap(), 28).unwrap();
            assert_eq!(built.iter().collect::<Vec<_>>(), std::slice::from_ref(&greater));
            let held = IndexLayer::from_entries(order.map(IndexEntry::clone).to_vec()).unwrap();
            assert_eq!(held.iter().collect::<Vec<_>>(), std::slice::from_ref(&greater));
        }
    }
    assert_eq!(newer_wins(&base, &base), Ordering::Equal);
}

/// Random indexes against a map: merging, look-ups, and both encodings.
#[test]
fn random_indexes_behave_as_a_map() {
    let mut rng = Rng(5);
    for round in 0..200 {
        let mut model: BTreeMap<ContentId, IndexEntry> = BTreeMap::new();
        let mut layers = Vec::new();
        for _ in 0..rng.below(6) {
            let mut entries = Vec::new();
            for _ in 0..rng.below(60) {
                let prefix = [None, Some(b'k'), Some(b'x')][rng.below(3)];
                let packed = rng.below(1 << 20) as u32 + 28;
                let entry = IndexEntry {
                    id: ContentId::new(prefix, &[rng.below(4) as u8, rng.below(8) as u8]).unwrap(),
                    timestamp_seconds: rng.below(5) as i64,
                    deleted: rng.below(2) == 0,
                    pack: format!("p{}", rng.below(7)).into(),
                    pack_offset: rng.below(1 << 30) as u32,
                    packed_len: packed,
                    original_len: packed - 28,
                    compression: CompressionId::NONE,
                    format_version: rng.below(3) as u8 + 1,
                    encryption_key_id: 0,
                };
                // Equal in all that counts and yet different does not occur: a pack holds a content once.
                if entries
                    .iter()
                    .chain(model.values())
                    .any(|has: &IndexEntry| has.id == entry.id && newer_wins(has, &entry).is_eq())
                {
                    continue;
                }
                entries.push(entry);
            }
            if entries.is_empty() {
                continue;
            }
            let mut sorted = entries.clone();
            let version = rng.below(2) as u8 + 1;
            layers.push(IndexLayer::parse(&build(version, &mut sorted).unwrap(), 28).unwrap());
            for entry in entries {
                match model.get(&entry.id) {
                    Some(has) if newer_wins(has, &entry).is_gt() => {}
                    _ => {
                        model.insert(entry.id, entry);
                    }
                }
            }
        }
        let merged = merge(&layers.iter().collect::<Vec<_>>()).unwrap();
        let expected: Vec<IndexEntry> = model.values().cloned().collect();
        assert_eq!(merged.iter().collect::<Vec<_>>(), expected, "round {round}");
        for prefix in [None, Some(b'k'), Some(b'x'), Some(b'm')] {
            for hash in 0..32u8 {
                let id = ContentId::new(prefix, &[hash / 8, hash % 8]).unwrap();
                assert_eq!(merged.find(&id).unwrap().as_ref(), model.get(&id), "round {round}, {id}");
            }
            let count = model.keys().filter(|id| id.prefix() == prefix).count();
            assert_eq!(merged.iter_prefix(prefix).count(), count, "round {round}");
        }
        assert!(merged.memory_bytes() >= merged.len() * 24);
    }
}

#[test]
fn indexes_of_different_hash_lengths_do_not_merge() {
    let two = IndexLayer::from_entries(vec![entry("00ff", 1, P, 0, (5, 33), 0)]).unwrap();
    let three = IndexLayer::from_entries(vec![entry("00ffff", 1, P, 0, (5, 33), 0)]).unwrap();
    assert_eq!(merge(&[&two, &three]).err(), Some(MergeError::MixedHashLengths { first: 2, other: 3 }));
    assert_eq!(merge(&[]).unwrap().len(), 0);
    assert_eq!(merge(&[&IndexLayer::empty(), &three]).unwrap().len(), 1);
}

/// Whatever the bytes, the answer is an error or an index that is in order and says nothing impossible.
#[test]
fn changed_bytes_give_an_error_or_a_sound_index() {
    let mut rng = Rng(6);
    let mut accepted = 0;
    for seed in [V1, V2, V2_A, V2_LONG].map(unhex) {
        for _ in 0..20_000 {
            let changed = rng.mutate(&seed);
            let Ok(layer) = IndexLayer::parse(&changed, 28) else { continue };
            accepted += 1;
            assert!(layer.len() <= changed.len() / 18);
            let entries: Vec<IndexEntry> = layer.iter().collect();
            assert!(entries.is_sorted_by(|a, b| a.id < b.id));
            for entry in &entries {
                assert_eq!(layer.find(&entry.id).unwrap().as_ref(), Some(entry));
                assert!(entry.pack_offset < 1 << 31 && (0..1 << 48).contains(&entry.timestamp_seconds));
            }
            assert_eq!(merge(&[&layer, &layer]).unwrap().iter().collect::<Vec<_>>(), entries);
        }
    }
    assert!(accepted > 1000, "mutations that are still indexes: {accepted}");
}
