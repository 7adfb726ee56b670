//! Streams as Kopia writes them, in other spellings, cut anywhere and damaged.

use serde::Deserialize;

use super::super::content_id::ContentId;
use super::super::hashing::ContentHasher;
use super::super::json;
use super::super::test_vectors::{Rng, secret};
use super::parser::RawEntry;
use super::*;

fn in_pieces(entries: &[IndirectEntry], per_piece: usize) -> Vec<Vec<u8>> {
    let last = entries.len().div_ceil(per_piece) - 1;
    let groups = entries.chunks(per_piece).enumerate();
    groups.map(|(number, group)| write_piece(group, number == 0, number == last)).collect()
}

fn hasher() -> ContentHasher {
    ContentHasher::new("BLAKE2B-256-128", &secret()).unwrap()
}

fn content(prefix: Option<u8>, text: &[u8]) -> ContentId {
    ContentId::new(prefix, hasher().digest(text).as_ref()).unwrap()
}

/// Segments one after the other.
fn segments(of: &[(u64, &str)]) -> Vec<IndirectEntry> {
    let mut start = 0;
    of.iter()
        .map(|(len, object)| {
            let entry = IndirectEntry { start, len: *len, object: object.parse().unwrap() };
            start += len;
            entry
        })
        .collect()
}

fn write(entries: &[IndirectEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    write_header(&mut out);
    for (n, entry) in entries.iter().enumerate() {
        write_entry(&mut out, n == 0, entry);
    }
    write_footer(&mut out);
    out
}

const Z: &str = "5ebc32a6136d1d8c88c1656b43d9819a";
const A: &str = "b708f50b2e2a4931d2a0914290b81efc";
const B: &str = "dd2bc6e4a494074b870d474c1a4a5ea8";
const MIB: u64 = 1 << 20;

#[test]
fn the_stream_of_zeros_agrees_with_kopia() {
    let zeros = "93fad06bc0266dfbedf4211b7a8c6f61";
    let stream = write(&segments(&[(2 * MIB, zeros); 6]));
    assert_eq!(stream.len(), 419);
    assert_eq!(content(Some(b'x'), &stream).to_string(), "x76add993b05454a5e8b726d917fae528");
}

#[test]
fn streams_cut_between_entries_agree_with_kopia() {
    let entries = segments(&[(MIB, Z), (MIB, A), (MIB, Z), (MIB, Z), (1000, B)]);
    let whole = write(&entries);
    assert_eq!(whole.len(), 350);
    assert_eq!(content(Some(b'x'), &whole).to_string(), "x660abdee581116b13b01927e8975dbf2");

    let pieces = in_pieces(&entries, 2);
    assert_eq!(pieces.concat(), whole);
    let named: Vec<(u64, String)> =
        pieces.iter().map(|piece| (piece.len() as u64, content(Some(b'x'), piece).to_string())).collect();
    let expected = [
        (155, "x0b9481f633cc0486b34db41dd2cad76c"),
        (130, "xce310a15b96a8a03032fc2ba170b6c72"),
        (65, "xb4b6f441ce02c05c20b3709892f7d95e"),
    ];
    assert_eq!(named, expected.map(|(len, name)| (len, name.to_owned())));
    let second_level = write(&segments(&expected));
    assert_eq!(second_level.len(), 205);
    assert_eq!(content(Some(b'x'), &second_level).to_string(), "x0f2ef38a9659d4a5425eb18a6cd042d5");

    assert_eq!(parse_piece(&pieces[0], true, false).unwrap(), entries[..2]);
    assert_eq!(parse_piece(&pieces[1], false, false).unwrap(), entries[2..4]);
    assert_eq!(parse_piece(&pieces[2], false, true).unwrap(), entries[4..]);
    assert_eq!(parse_piece(&whole, true, true).unwrap(), entries);
    assert!(parse_piece(&pieces[0], true, true).is_err());
    assert!(parse_piece(&pieces[1], true, false).is_err());
    assert!(parse_piece(&pieces[2], false, false).is_err());
    assert!(parse_piece(&pieces[1][..100], false, false).is_err());
    assert!(parse_piece(b"", false, false).is_err());
}

#[test]
fn pieces_are_cut_after_every_group_and_the_last_one_closes() {
    for (count, per_piece, pieces) in [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (3, 1024, 1)] {
        let entries = segments(&vec![(5, Z); count]);
        let out = in_pieces(&entries, per_piece);
        assert_eq!(out.len(), pieces, "{count} entries by {per_piece}");
        assert_eq!(out.concat(), write(&entries), "{count} entries by {per_piece}");
    }
}

#[test]
fn any_json_of_the_right_shape_is_read() {
    let two = segments(&[(5, Z), (7, A)]);
    for text in [
        format!(r#"{{"stream":"kopia:indirect","entries":[{{"l":5,"o":"{Z}"}},{{"s":5,"l":7,"o":"{A}"}}]}}"#),
        format!(
            "{{\n \"entries\" : [ {{ \"o\" : \"{Z}\" , \"l\" : 5 }} ,\r\n\t{{\"l\":7,\"s\":5,\"o\":\"{A}\"}} ] }}\n trailing"
        ),
        format!(
            r#"{{"x":{{"entries":[1,"]}}\""]}},"y":null,"z":-1.5e3,"entries":[{{"l":5,"o":"{Z}","q":[{{}}]}},{{"s":5,"l":7,"o":"{A}"}}],"t":true}}"#
        ),
        format!(r#"{{"entries":[{{"s":null,"l":5,"o":"{Z}"}},{{"s":5,"l":7,"o":"\u0062{}"}}]}}{{"#, &A[1..]),
    ] {
        assert_eq!(parse_entries(text.as_bytes()).expect(&text), two, "{text}");
        // However it is cut, the entries are the same.
        for step in 1..40 {
            let mut parser = EntryParser::new();
            let mut entries = Vec::new();
            for piece in text.as_bytes().chunks(step) {
                parser.feed(piece, &mut entries).unwrap();
            }
            parser.finish().unwrap();
            assert_eq!(entries, two, "{text} in pieces of {step}");
        }
    }
    let odd = format!(r#"{{"entries":[{{"o":"Ix{Z}"}},{{"s":9,"o":"Z{A}"}}]}}"#);
    let entries = parse_entries(odd.as_bytes()).unwrap();
    assert_eq!((entries[0].start, entries[0].len, entries[0].object.indirection), (0, 0, 1));
    assert_eq!((entries[1].start, entries[1].len, entries[1].object.compressed), (9, 0, true));
}

#[test]
fn what_is_no_index_stream_is_refused() {
    for text in [
        "",
        " ",
        "[]",
        "null",
        "{}",
        r#"{"stream":"kopia:indirect"}"#,
        r#"{"entries":[]}"#,
        r#"{"entries":null}"#,
        r#"{"entries":5}"#,
        r#"{"entries":[5]}"#,
        r#"{"entries":[{"l":5}]}"#,
        r#"{"entries":[{"l":5,"o":"zz"}]}"#,
        r#"{"entries":[{"l":-5,"o":"00ff"}]}"#,
        r#"{"entries":[{"s":-5,"o":"00ff"}]}"#,
        r#"{"entries":[{"l":1.5,"o":"00ff"}]}"#,
        r#"{"entries":[{"l":05,"o":"00ff"}]}"#,
        r#"{"entries":[{"s":9223372036854775807,"l":1,"o":"00ff"}]}"#,
        r#"{"entries":[{"s":99999999999999999999,"o":"00ff"}]}"#,
        r#"{"entries":[{"o":"00ff"} {"o":"00ff"}]}"#,
        r#"{"entries":[,{"o":"00ff"}]}"#,
        r#"{"entries":[{"o":"00ff"}"#,
        r#"{"entries":[{"o":"00ff"}]"#,
        r#"{"entries":[{"o":"00ff"}],"entries":[]}"#,
        r#"{"entries":[{"o":"00ff"}],}"#,
        r#"{"entries":[{"o":"00ff"}]x}"#,
        r#"{"a":x,"entries":[{"o":"00ff"}]}"#,
        r#"{"a":,"entries":[{"o":"00ff"}]}"#,
        r#"{"a" "entries":[{"o":"00ff"}]}"#,
        r#"{a:1,"entries":[{"o":"00ff"}]}"#,
    ] {
        assert!(parse_entries(text.as_bytes()).is_err(), "{text}");
    }
    assert!(parse_entries(br#"{"entries":[{"o":"00ff"}]}"#).is_ok());
}

#[test]
fn an_item_without_end_is_not_kept() {
    let mut parser = EntryParser::new();
    let mut entries = Vec::new();
    parser.feed(br#"{"entries":[{"o":""#, &mut entries).unwrap();
    let fed = (0..40).find(|_| parser.feed(&[b'0'; 100_000], &mut entries).is_err());
    assert!(fed.is_some_and(|fed| fed < 12), "{fed:?}");
}

/// Against serde_json: both refuse, or both say the same.
#[test]
fn changed_streams_read_as_serde_json_reads_them() {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default, deserialize_with = "json::null_as_default")]
        entries: Vec<RawEntry>,
    }
    let mut rng = Rng(10);
    let seed = write(&segments(&[(5, Z), (7, &format!("Ix{A}")), (0, B)]));
    let mut accepted = 0;
    for round in 0..60_000 {
        let text = rng.mutate(&seed);
        let expected = serde_json::Deserializer::from_slice(&text).into_iter::<Whole>().next().and_then(|whole| {
            let whole = whole.ok()?.entries.into_iter().map(|raw| {
                raw.start.checked_add(raw.len)?;
                let (start, len) = (raw.start.try_into().ok()?, raw.len.try_into().ok()?);
                Some(IndirectEntry { start, len, object: raw.object.parse().ok()? })
            });
            whole.collect::<Option<Vec<_>>>().filter(|entries| !entries.is_empty())
        });
        let found = parse_entries(&text).ok();
        accepted += usize::from(found.is_some());
        assert_eq!(found, expected, "round {round}: {}", String::from_utf8_lossy(&text));
        let mut parser = EntryParser::new();
        let mut entries = Vec::new();
        let cut = rng.below(text.len() + 1);
        let pieces = [&text[..cut], &text[cut..]];
        let cut_in_two =
            pieces.iter().try_for_each(|piece| parser.feed(piece, &mut entries)).and_then(|()| parser.finish());
        assert_eq!(cut_in_two.ok().map(|()| entries), expected, "round {round}, cut at {cut}");
    }
    assert!(accepted > 2000, "{accepted}");
}

#[test]
fn numbers_are_written_whole() {
    for value in [0, 9, 10, 1_000_000, u64::MAX] {
        let mut out = Vec::new();
        write_decimal(&mut out, value);
        assert_eq!(out, value.to_string().into_bytes());
    }
}

/// A million entries, 70 MB: not a benchmark, but far from quadratic.
#[test]
fn a_million_entries_take_no_time() {
    let object: ObjectId = Z.parse().unwrap();
    let entries: Vec<_> = (0..1 << 20).map(|n| IndirectEntry { start: n * MIB, len: MIB, object }).collect();
    let pieces = in_pieces(&entries, 1024);
    let begun = std::time::Instant::now();
    let mut parser = EntryParser::new();
    let (mut entries, mut next) = (Vec::new(), 0);
    for piece in &pieces {
        entries.clear();
        parser.feed(piece, &mut entries).unwrap();
        for entry in &entries {
            assert_eq!(entry.start, next);
            next += entry.len;
        }
    }
    parser.finish().unwrap();
    assert_eq!(next, MIB << 20);
    let bytes: usize = pieces.iter().map(Vec::len).sum();
    eprintln!("{} entries, {bytes} bytes in {:?}", 1 << 20, begun.elapsed());
    assert!(begun.elapsed().as_secs() < 20);
}
