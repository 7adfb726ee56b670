//! Conversations as lists of bytes: a table of answers, and a model that judges random and damaged ones.

use std::ops::Range;

use super::*;
use crate::wire::{answer, option};
use crate::{Device, DeviceError, Extent, Zeroing};

/// Only its size matters here.
struct Sized(u64);

impl Device for Sized {
    fn size_bytes(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), DeviceError> {
        unreachable!("a handshake reads nothing")
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<(), DeviceError> {
        unreachable!("a handshake writes nothing")
    }

    fn zero(&self, _: Range<u64>, _: Zeroing) -> Result<(), DeviceError> {
        unreachable!("a handshake zeroes nothing")
    }

    fn flush(&self) -> Result<(), DeviceError> {
        unreachable!("a handshake flushes nothing")
    }

    fn extents(&self, _: Range<u64>, _: usize) -> Result<Vec<Extent>, DeviceError> {
        unreachable!("a handshake maps nothing")
    }
}

fn exports(names: &[&str]) -> Exports {
    let export = |(index, name): (usize, &&str)| Export {
        name: (*name).to_owned(),
        description: format!("disk {index}"),
        device: Arc::new(Sized(512 << index)),
        read_only: index % 2 == 1,
    };
    Exports::new(names.iter().enumerate().map(export)).unwrap()
}

/// An option as a client sends it.
fn sent(option: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn packed(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let wanted: Vec<u8> = wanted.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [&packed(name)[..], &(wanted.len() as u16 / 2).to_be_bytes(), &wanted].concat()
}

fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries_bytes: Vec<u8> = queries.iter().flat_map(|query| packed(query)).collect();
    [&packed(name)[..], &(queries.len() as u32).to_be_bytes(), &queries_bytes].concat()
}

/// How a conversation ended.
#[derive(Debug, PartialEq, Eq, Clone)]
enum End {
    Open,
    Closed,
    /// Export, structured, allocation, and the bytes that were taken by then.
    Transmits(String, bool, bool, usize),
}

/// Feeds a conversation, cut at `cuts`, and gives the whole output.
fn feed(exports: &Exports, input: &[u8], cuts: impl Fn(usize) -> usize) -> (Vec<u8>, End) {
    feed_with(Security::Plain, exports, input, cuts)
}

/// The same where there is TLS. What is fed after its start is taken for what comes out of it.
fn feed_with(security: Security, exports: &Exports, input: &[u8], cuts: impl Fn(usize) -> usize) -> (Vec<u8>, End) {
    let mut negotiation = Negotiation::new(exports, security);
    let mut output = Vec::new();
    let (mut at, mut available) = (0, 0);
    while available < input.len() {
        available = (available + cuts(available).max(1)).min(input.len());
        while at < available {
            let (taken, step) = negotiation.feed(&input[at..available], &mut output);
            assert!(negotiation.arrived.len() <= MAX_OPTION_BYTES as usize, "memory is bounded");
            at += taken;
            match step {
                Step::More => assert!(taken > 0, "the machine goes on"),
                Step::StartTls => assert!(taken > 0 && security != Security::Plain, "TLS starts where there is some"),
                Step::Close => return (output, End::Closed),
                Step::Transmit(Agreement { export, structured, allocation }) => {
                    return (output, End::Transmits(export.name.clone(), structured, allocation, at));
                }
            }
        }
    }
    (output, End::Open)
}

/// Option, type of the answer, data.
type Answered = (u32, u32, Vec<u8>);

/// Cuts the output into answers. What is left is the answer to EXPORT_NAME.
fn answers(mut output: &[u8]) -> (Vec<Answered>, Vec<u8>) {
    let mut answers = Vec::new();
    while output.starts_with(&OPTION_REPLY_MAGIC.to_be_bytes()) {
        let field = |at| u32::from_be_bytes(array_at(output, at));
        let end = 20 + field(16) as usize;
        answers.push((field(8), field(12), output[20..end].to_vec()));
        output = &output[end..];
    }
    (answers, output.to_vec())
}

#[test]
fn options_get_the_answers_of_the_table() {
    let two = exports(&["rp/disk0", "rp/disk1"]);
    let one = exports(&["only"]);
    let flags = [0, 0, 0, 3];
    let ack = |option| (option, answer::ACK, vec![]);
    let structured = || sent(option::STRUCTURED_REPLY, &[]);
    let export =
        |size: u64, flags: u16| (answer::INFO, [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat());
    let sizes = (answer::INFO, vec![0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    let under = |option: u32, (kind, data): (u32, Vec<u8>)| (option, kind, data);
    let context = |id: u32| (answer::META_CONTEXT, [&id.to_be_bytes()[..], b"base:allocation"].concat());
    let set = |name: &str, queries: &[&str]| sent(option::SET_META_CONTEXT, &context_data(name, queries));
    let go = |name: &str| sent(option::GO, &info_data(name, &[]));
    type Case<'a> = (&'a str, &'a Exports, Vec<Vec<u8>>, Vec<Answered>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("abort", &two, vec![sent(option::ABORT, b"bye")], vec![ack(option::ABORT)], "closed"),
        (
            "list",
            &two,
            vec![sent(option::LIST, &[])],
            vec![
                (option::LIST, answer::SERVER, b"\0\0\0\x08rp/disk0disk 0".to_vec()),
                (option::LIST, answer::SERVER, b"\0\0\0\x08rp/disk1disk 1".to_vec()),
                ack(option::LIST),
            ],
            "open",
        ),
        (
            "info with everything, read-only, simple replies",
            &two,
            vec![sent(option::INFO, &info_data("rp/disk1", &[3, 2, 1, 99]))],
            vec![
                under(option::INFO, export(1024, 0x050F)),
                (option::INFO, answer::INFO, b"\0\x01rp/disk1".to_vec()),
                (option::INFO, answer::INFO, b"\0\x02disk 1".to_vec()),
                under(option::INFO, sizes.clone()),
                ack(option::INFO),
            ],
            "open",
        ),
        (
            "go, writable, simple replies",
            &two,
            vec![go("rp/disk0")],
            vec![under(option::GO, export(512, 0x0D6D)), under(option::GO, sizes.clone()), ack(option::GO)],
            "rp/disk0 simple",
        ),
        (
            "go, writable, structured, with context",
            &two,
            vec![structured(), set("rp/disk0", &["x:y", "base:allocation"]), go("rp/disk0")],
            vec![
                ack(option::STRUCTURED_REPLY),
                under(option::SET_META_CONTEXT, context(1)),
                ack(option::SET_META_CONTEXT),
                under(option::GO, export(512, 0x0DED)),
                under(option::GO, sizes.clone()),
                ack(option::GO),
            ],
            "rp/disk0 structured allocation",
        ),
        (
            "a context of another export does not count",
            &two,
            vec![structured(), set("rp/disk0", &["base:allocation"]), go("rp/disk1")],
            vec![
                ack(option::STRUCTURED_REPLY),
                under(option::SET_META_CONTEXT, context(1)),
                ack(option::SET_META_CONTEXT),
                under(option::GO, export(1024, 0x058F)),
                under(option::GO, sizes.clone()),
                ack(option::GO),
            ],
            "rp/disk1 structured",
        ),
        (
            "a failed selection replaces the earlier one",
            &one,
            vec![structured(), set("only", &["base:allocation"]), set("none", &["base:allocation"]), go("")],
            vec![
                ack(option::STRUCTURED_REPLY),
                under(option::SET_META_CONTEXT, context(1)),
                ack(option::SET_META_CONTEXT),
                (option::SET_META_CONTEXT, answer::ERR_UNKNOWN, vec![]),
                under(option::GO, export(512, 0x0DED)),
                under(option::GO, sizes.clone()),
                ack(option::GO),
            ],
            "only structured",
        ),
        (
            "listing contexts: all, by namespace, by name, another's",
            &one,
            [&[][..], &["base:"], &["base:allocation"], &["qemu:"]]
                .map(|queries| sent(option::LIST_META_CONTEXT, &context_data("only", queries)))
                .into_iter()
                .fold(vec![structured()], |mut all, one| {
                    all.push(one);
                    all
                }),
            vec![
                ack(option::STRUCTURED_REPLY),
                under(option::LIST_META_CONTEXT, context(0)),
                ack(option::LIST_META_CONTEXT),
                under(option::LIST_META_CONTEXT, context(0)),
                ack(option::LIST_META_CONTEXT),
                under(option::LIST_META_CONTEXT, context(0)),
                ack(option::LIST_META_CONTEXT),
                ack(option::LIST_META_CONTEXT),
            ],
            "open",
        ),
        (
            "contexts before structured replies",
            &one,
            vec![set("only", &["base:allocation"])],
            vec![(option::SET_META_CONTEXT, answer::ERR_INVALID, vec![])],
            "open",
        ),
        ("the empty name among several", &two, vec![go("")], vec![(option::GO, answer::ERR_UNKNOWN, vec![])], "open"),
        (
            "no TLS, no extended headers, no data where none belongs",
            &one,
            vec![
                sent(option::STARTTLS, &[]),
                sent(option::STARTTLS, &[0]),
                sent(11, &[]),
                sent(option::LIST, &[0]),
                sent(option::STRUCTURED_REPLY, &[0]),
                sent(0xFFFF_FFFF, b"whatever"),
            ],
            vec![
                (option::STARTTLS, answer::ERR_POLICY, vec![]),
                (option::STARTTLS, answer::ERR_INVALID, vec![]),
                (11, answer::ERR_UNSUP, vec![]),
                (option::LIST, answer::ERR_INVALID, vec![]),
                (option::STRUCTURED_REPLY, answer::ERR_INVALID, vec![]),
                (0xFFFF_FFFF, answer::ERR_UNSUP, vec![]),
            ],
            "open",
        ),
        (
            "lengths that do not add up",
            &one,
            vec![
                sent(option::GO, &[]),
                sent(option::GO, &packed("only")),
                sent(option::GO, &[&info_data("only", &[]), &b"x"[..]].concat()),
                sent(option::GO, &[&[0xFF; 4], &b"only\0\0"[..]].concat()),
                sent(option::GO, &[&packed("only")[..], &[0xFF, 0xFF, 0, 3]].concat()),
                sent(option::GO, &info_data("on\0ly", &[])),
                sent(option::GO, &info_data(&"x".repeat(4097), &[])),
            ],
            vec![(option::GO, answer::ERR_INVALID, vec![]); 7],
            "open",
        ),
        (
            "too much data, and the option after it",
            &one,
            vec![sent(option::LIST, &vec![7; (64 << 10) + 1]), sent(option::ABORT, &[])],
            vec![(option::LIST, answer::ERR_TOO_BIG, vec![]), ack(option::ABORT)],
            "closed",
        ),
        ("far too much data", &one, vec![sent(option::LIST, &vec![7; (1 << 20) + 1])], vec![], "closed"),
        ("wrong magic", &one, vec![b"IHAVEOPX\0\0\0\x03\0\0\0\0".to_vec()], vec![], "closed"),
        ("unknown export name", &one, vec![sent(option::EXPORT_NAME, b"none")], vec![], "closed"),
        ("too many options", &one, vec![structured(); 65], vec![ack(option::STRUCTURED_REPLY); 64], "closed"),
    ];
    for (case, exports, options, expected, expected_end) in cases {
        let input = [&flags[..], &options.concat()].concat();
        let (output, end) = feed(exports, &input, |_| usize::MAX >> 1);
        let (found, rest) = answers(&output);
        assert_eq!(found.len(), expected.len(), "{case}: {found:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.0, found.1), (expected.0, expected.1), "{case}");
            match found.1 >> 31 {
                0 => assert_eq!(found.2, expected.2, "{case}"),
                _ => assert!(!found.2.is_empty() && std::str::from_utf8(&found.2).is_ok(), "{case}: a reason"),
            }
        }
        assert_eq!(rest, [], "{case}");
        let end = match end {
            End::Open => "open".to_owned(),
            End::Closed => "closed".to_owned(),
            End::Transmits(name, structured, allocation, taken) => {
                assert_eq!(taken, input.len(), "{case}");
                let kind = if structured { "structured" } else { "simple" };
                format!("{name} {kind}{}", if allocation { " allocation" } else { "" })
            }
        };
        assert_eq!(end, expected_end, "{case}");
    }
}

#[test]
fn export_name_is_answered_with_the_export_itself() {
    let exports = exports(&["only"]);
    for (client_flags, padding) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let input = [&[0, 0, 0, client_flags], &sent(option::EXPORT_NAME, b"only")[..], b"first request"].concat();
        let (output, end) = feed(&exports, &input, |_| usize::MAX >> 1);
        let expected = [&512_u64.to_be_bytes()[..], &[0x0D, 0x6D], &vec![0; padding]].concat();
        assert_eq!(output, expected, "client flags {client_flags}");
        assert_eq!(end, End::Transmits("only".into(), false, false, input.len() - b"first request".len()));
    }
    for client_flags in [4, 1 << 31] {
        let input = [&u32::to_be_bytes(client_flags)[..], &sent(option::ABORT, &[])].concat();
        assert_eq!(feed(&exports, &input, |_| usize::MAX >> 1), (vec![], End::Closed), "unknown client flags");
    }
}

#[test]
fn a_server_that_ends_says_so() {
    let exports = exports(&["only"]);
    let mut negotiation = Negotiation::new(&exports, Security::Plain);
    negotiation.drain();
    let mut output = Vec::new();
    negotiation.feed(&[0, 0, 0, 3], &mut output);
    for (option, code, closes) in [
        (option::LIST, answer::ERR_SHUTDOWN, false),
        (option::GO, answer::ERR_SHUTDOWN, false),
        (option::ABORT, answer::ACK, true),
    ] {
        output.clear();
        let (_, step) = negotiation.feed(&sent(option, &[]), &mut output);
        assert_eq!(answers(&output).0[0].1, code, "option {option}");
        assert_eq!(matches!(step, Step::Close), closes, "option {option}");
    }
}

/// Spec A.9, option by option, in the clear and after TLS was started.
#[test]
fn tls_is_started_once_and_nothing_is_told_before_where_it_has_to_be() {
    let exports = exports(&["only"]);
    let tls = || sent(option::STARTTLS, &[]);
    let structured = || sent(option::STRUCTURED_REPLY, &[]);
    let go = || sent(option::GO, &info_data("only", &[]));
    let context = || sent(option::SET_META_CONTEXT, &context_data("only", &["base:allocation"]));
    let (ack, needed) = (answer::ACK, answer::ERR_TLS_REQD);
    for (case, security, options, codes, end) in [
        ("no TLS here", Security::Plain, vec![tls()], vec![answer::ERR_POLICY], "open"),
        ("asked for", Security::MayStartTls, vec![tls(), tls(), go()], vec![ack, answer::ERR_INVALID, ack], "simple"),
        ("not asked for", Security::MayStartTls, vec![structured(), go()], vec![ack, ack], "structured"),
        ("with data", Security::MayStartTls, vec![sent(option::STARTTLS, b"x")], vec![answer::ERR_INVALID], "open"),
        (
            "what was agreed on before is forgotten",
            Security::MayStartTls,
            vec![structured(), context(), tls(), go()],
            vec![ack, ack, ack, ack],
            "simple",
        ),
        (
            "nothing before it",
            Security::MustStartTls,
            vec![sent(option::LIST, &[]), go(), structured(), sent(99, b"?"), sent(option::LIST, &vec![0; 70_000])],
            vec![needed; 5],
            "open",
        ),
        (
            "not even by the oldest option",
            Security::MustStartTls,
            vec![sent(option::EXPORT_NAME, b"only")],
            vec![],
            "closed",
        ),
        ("but the end", Security::MustStartTls, vec![sent(option::ABORT, &[])], vec![ack], "closed"),
        (
            "after it, everything",
            Security::MustStartTls,
            vec![tls(), structured(), go()],
            vec![ack, ack, ack],
            "structured",
        ),
    ] {
        let input = [&[0, 0, 0, 3][..], &options.concat()].concat();
        let (output, found) = feed_with(security, &exports, &input, |_| usize::MAX >> 1);
        let last = |kind: u32| kind == answer::ACK || kind >> 31 == 1;
        let told: Vec<u32> = answers(&output).0.iter().map(|answer| answer.1).filter(|kind| last(*kind)).collect();
        assert_eq!(told, codes, "{case}");
        let found = match found {
            End::Open => "open",
            End::Closed => "closed",
            End::Transmits(_, true, _, _) => "structured",
            End::Transmits(_, false, allocation, _) => {
                assert!(!allocation, "{case}");
                "simple"
            }
        };
        assert_eq!(found, end, "{case}");
    }
}

/// What spec A.2 says of a whole conversation, told a second time and in another way: the last answer to each option,
/// and how it ends.
fn model(security: Security, exports: &[&str], input: &[u8]) -> (Vec<(u32, u32)>, End) {
    let mut told = Vec::new();
    let mut secured = false;
    let (mut structured, mut selected) = (false, None);
    let resolve = |name: Option<String>| {
        let name = name?;
        if name.is_empty() && exports.len() == 1 {
            return Some(exports[0].to_owned());
        }
        exports.contains(&name.as_str()).then_some(name)
    };
    let Some(flags) = input.get(..4) else { return (told, End::Open) };
    if flags[..3] != [0, 0, 0] || flags[3] > 3 {
        return (told, End::Closed);
    }
    let mut at = 4;
    for number in 1.. {
        let Some(header) = input.get(at..at + 16) else { return (told, End::Open) };
        let option = u32::from_be_bytes(header[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(header[12..].try_into().unwrap()) as usize;
        if &header[..8] != b"IHAVEOPT" || number > 64 || len > 1 << 20 {
            return (told, End::Closed);
        }
        at += 16;
        let Some(data) = input.get(at..at + len) else { return (told, End::Open) };
        at += len;
        if security == Security::MustStartTls && !secured && !matches!(option, 2 | 5) {
            if option == 1 && len <= 64 << 10 {
                return (told, End::Closed);
            }
            told.push((option, answer::ERR_TLS_REQD));
            continue;
        }
        if len > 64 << 10 {
            told.push((option, answer::ERR_TOO_BIG));
            continue;
        }
        let mut rest = data;
        let code = match option {
            1 => {
                return match resolve(string(data)) {
                    Some(name) => {
                        let allocation = selected == Some(name.clone());
                        (told, End::Transmits(name, structured, allocation, at))
                    }
                    None => (told, End::Closed),
                };
            }
            2 => {
                told.push((2, answer::ACK));
                return (told, End::Closed);
            }
            3 | 5 | 8 if len > 0 => answer::ERR_INVALID,
            3 => answer::ACK,
            5 if secured => answer::ERR_INVALID,
            5 if security == Security::Plain => answer::ERR_POLICY,
            5 => {
                (secured, structured, selected) = (true, false, None);
                answer::ACK
            }
            8 => {
                structured = true;
                answer::ACK
            }
            6 | 7 => {
                let name = take_string(&mut rest);
                let adds_up = name.is_some()
                    && rest.len() >= 2
                    && rest.len() == 2 + 2 * usize::from(u16::from_be_bytes([rest[0], rest[1]]));
                match resolve(name) {
                    _ if !adds_up => answer::ERR_INVALID,
                    None => answer::ERR_UNKNOWN,
                    Some(_) if option == 6 => answer::ACK,
                    Some(name) => {
                        told.push((7, answer::ACK));
                        let allocation = selected == Some(name.clone());
                        return (told, End::Transmits(name, structured, allocation, at));
                    }
                }
            }
            9 | 10 => {
                let name = take_string(&mut rest);
                let mut queries_left = take_u32(&mut rest);
                let mut wants = false;
                while queries_left.is_some_and(|left| left > 0) {
                    let query = take_string(&mut rest);
                    wants |= query.as_deref() == Some("base:allocation");
                    queries_left = query.and(queries_left).map(|left| left - 1);
                }
                let adds_up = name.is_some() && queries_left.is_some() && rest.is_empty();
                let export = resolve(name);
                if option == 10 {
                    selected = export.clone().filter(|_| structured && adds_up && wants);
                }
                match export {
                    _ if !structured || !adds_up => answer::ERR_INVALID,
                    None => answer::ERR_UNKNOWN,
                    Some(_) => answer::ACK,
                }
            }
            _ => answer::ERR_UNSUP,
        };
        told.push((option, code));
    }
    unreachable!("the loop ends with the input")
}

fn string(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8(bytes.to_vec()).ok()?;
    (text.len() <= 4096 && !text.contains('\0')).then_some(text)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let value = u32::from_be_bytes(rest.get(..4)?.try_into().unwrap());
    *rest = &rest[4..];
    Some(value)
}

fn take_string(rest: &mut &[u8]) -> Option<String> {
    let len = take_u32(rest)? as usize;
    let text = string(rest.get(..len)?)?;
    *rest = &rest[len..];
    Some(text)
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * limit as u128) >> 64) as usize
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn option(&mut self) -> Vec<u8> {
        let name = self.pick(&["", "a", "b", "none", "a\0", "é"]);
        let query = self.pick(&["base:allocation", "base:", "qemu:x", ""]);
        let queries = vec![query; self.below(3)];
        match self.below(12) {
            0 => sent(option::LIST, &[]),
            1 | 2 => sent(option::STRUCTURED_REPLY, &[]),
            3 => sent(option::INFO, &info_data(name, &[self.below(5) as u16])),
            4 => sent(option::GO, &info_data(name, &[3, 1])),
            5 | 6 => sent(option::SET_META_CONTEXT, &context_data(name, &queries)),
            7 => sent(option::LIST_META_CONTEXT, &context_data(name, &queries)),
            8 => sent(option::STARTTLS, &[]),
            9 => sent(option::EXPORT_NAME, name.as_bytes()),
            10 => sent(self.below(20) as u32, &vec![0; self.below(40)]),
            _ => sent(option::LIST, &vec![1; self.pick(&[1, 64 << 10, (64 << 10) + 1, 1 << 20])]),
        }
    }

    fn damage(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.below(5) {
            0 => input[at] ^= 1 << self.below(8),
            1 => input[at] = self.below(256) as u8,
            2 => drop(input.remove(at)),
            3 => input.insert(at, self.below(256) as u8),
            _ => input.truncate(at + 1),
        }
    }
}

/// One damaged conversation: answered as the model says, however it is cut. Gives how it ended.
fn judge(security: Security, names: &[&str], input: &[u8], seed: usize) -> End {
    let exports = exports(names);
    let (output, end) = feed_with(security, &exports, input, |_| usize::MAX >> 1);
    let (expected, expected_end) = model(security, names, input);
    let (found, rest) = answers(&output);
    // INFO, SERVER and META_CONTEXT come before the last answer to their option.
    let last = |kind: u32| kind == answer::ACK || kind >> 31 == 1;
    let told: Vec<(u32, u32)> =
        found.iter().filter(|(_, kind, _)| last(*kind)).map(|(option, kind, _)| (*option, *kind)).collect();
    assert_eq!((told, &end), (expected, &expected_end), "{:?}", input.get(..300));
    assert!(found.last().is_none_or(|(_, kind, _)| last(*kind)), "no answer is left open");
    assert!(matches!(rest.len(), 0 | 10 | 134), "{} bytes beside the answers", rest.len());
    let by_bytes = |_: usize| 1;
    let at_random = |at: usize| (at ^ seed) % 500;
    let short: &dyn Fn(usize) -> usize = if input.len() < 4096 { &by_bytes } else { &at_random };
    for (cuts, cut) in [("by bytes, if it is short", short), ("at random", &at_random)] {
        let again = feed_with(security, &exports, input, cut);
        assert_eq!(again, (output.clone(), end.clone()), "cut {cuts}");
    }
    end
}

const SECURITIES: [Security; 3] = [Security::Plain, Security::MayStartTls, Security::MustStartTls];

#[test]
fn damaged_conversations_are_answered_as_the_model_says_however_they_are_cut() {
    let mut ends = [0; 3];
    for round in 0..6000 {
        let mut random = Random(round);
        let security = random.pick(&SECURITIES);
        let names: &[&str] = if random.below(2) == 0 { &["a"] } else { &["a", "b"] };
        let mut input = vec![0, 0, 0, random.pick(&[3, 3, 3, 1, 0, 4])];
        for _ in 0..random.below(8) {
            input.extend(random.option());
        }
        for _ in 0..random.below(3) {
            if !input.is_empty() {
                random.damage(&mut input);
            }
        }
        ends[match judge(security, names, &input, random.below(1 << 20)) {
            End::Open => 0,
            End::Closed => 1,
            End::Transmits(..) => 2,
        }] += 1;
    }
    assert!(ends.iter().all(|&count| count > 300), "every end was reached often: {ends:?}");
}

/// What libnbd's and QEMU's clients say, and one that tries everything: a byte for the kind of server, then a
/// conversation.
fn conversations() -> Vec<Vec<u8>> {
    let context = |number| sent(number, &context_data("a", &["base:allocation"]));
    let of = |client_flags: u8, options: Vec<Vec<u8>>| [&[0, 0, 0, 0, client_flags], &*options.concat()].concat();
    let structured = || sent(option::STRUCTURED_REPLY, &[]);
    vec![
        of(
            3,
            vec![
                sent(11, &[]),
                structured(),
                context(option::SET_META_CONTEXT),
                sent(option::GO, &info_data("a", &[])),
            ],
        ),
        of(3, vec![structured(), context(option::SET_META_CONTEXT), sent(option::GO, &info_data("a", &[3]))]),
        of(3, vec![sent(option::LIST, &[]), sent(option::INFO, &info_data("a", &[1, 2, 3])), sent(option::ABORT, &[])]),
        of(1, vec![sent(option::EXPORT_NAME, b"a")]),
        of(
            3,
            vec![
                sent(option::STARTTLS, &[]),
                structured(),
                context(option::LIST_META_CONTEXT),
                sent(option::ABORT, &[]),
            ],
        ),
    ]
}

fn fuzzed(input: &[u8]) -> u64 {
    let Some((kind, conversation)) = input.split_first() else { return 0 };
    let names: &[&str] = if kind & 4 == 0 { &["a"] } else { &["a", "b"] };
    let end = judge(SECURITIES[usize::from(kind % 3)], names, conversation, usize::from(*kind) + 1);
    let (answers, _) = model(SECURITIES[usize::from(kind % 3)], names, conversation);
    fuzzing::behaviour((answers, format!("{end:?}")))
}

#[test]
fn fuzz_negotiation() {
    let seen = fuzzing::hunt(&conversations(), 1 << 16, fuzzed);
    assert!(seen.behaviours > 50, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_negotiation_long() {
    fuzzing::hunt_long(&conversations(), 1 << 17, fuzzed);
}
