use super::*;
use crate::target::{Credentials, Secret, TargetOptions};
use crate::text::binary;

const TARGET: &str = "iqn.2026-01.test:e3";
const INITIATOR: &str = "iqn.2026-01.test:guest";

fn targets(with_login: bool) -> Targets {
    let authentication = with_login.then(|| Authentication {
        initiator: Credentials { name: "alice".into(), secret: Secret::new("secretsecret12") },
        target: None,
    });
    let target = TargetOptions {
        name: TARGET.into(),
        alias: "a disk".into(),
        authentication: authentication.clone(),
        ..TargetOptions::default()
    };
    let closed = TargetOptions {
        name: "iqn.2026-01.test:closed".into(),
        initiators: vec!["iqn.2026-01.test:other".into()],
        ..TargetOptions::default()
    };
    Targets::new([target, closed], authentication).unwrap()
}

fn login(targets: &Targets, draining: bool) -> Login<'_> {
    Login::new(Host { targets, has_session: &|tsih| tsih == 7, draining })
}

/// A request; flags in hex as `T`, `C`, current and next stage.
fn request(flags: u8) -> Header {
    Header::new(opcode::LOGIN | 0x40, flags, 1).with_u32(at::CMD_SN, 100)
}

fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

const NAMES: [(&str, &str); 2] = [("InitiatorName", INITIATOR), ("TargetName", TARGET)];

fn answered(step: Step) -> (u8, String) {
    match step {
        Step::Answer(header, text) => (header.0[at::FLAGS], String::from_utf8(text).unwrap().replace('\0', " ")),
        Step::Done(done) => (done.answer.0[at::FLAGS], String::from_utf8(done.text).unwrap().replace('\0', " ")),
        Step::Refuse(header) => panic!("refused with {:#06x}", header.u16(at::DATA_SN)),
        Step::Close => panic!("closed"),
    }
}

fn status(step: &Step) -> u16 {
    match step {
        Step::Refuse(header) => header.u16(at::DATA_SN),
        Step::Answer(..) | Step::Done(_) => 0,
        Step::Close => 0xFFFF,
    }
}

#[test]
fn one_request_is_enough_without_a_secret() {
    let targets = targets(false);
    let offer = [NAMES[0], NAMES[1], ("HeaderDigest", "CRC32C,None"), ("MaxRecvDataSegmentLength", "65536")];
    let step = login(&targets, false).handle(&request(0x87), &text(&offer));
    let Step::Done(done) = step else { panic!("status {:#x}", status(&step)) };
    assert!(done.parameters.header_digest);
    assert_eq!(done.parameters.max_send_bytes, 65_536);
    assert_eq!((done.initiator.as_str(), done.cmd_sn), (INITIATOR, 100));
    assert_eq!(
        answered(Step::Done(done)),
        (0x87, "TargetPortalGroupTag=1 TargetAlias=a disk HeaderDigest=CRC32C MaxRecvDataSegmentLength=262144 ".into())
    );
}

/// The two ways seen: open-iscsi asks to move on only after its proof, libiscsi with every request.
#[test]
fn chap_in_both_manners() {
    for (what, first, second) in [("open-iscsi", 0x00, 0x00), ("libiscsi", 0x81, 0x81)] {
        let targets = targets(true);
        let mut login = login(&targets, false);
        let mut offer = NAMES.to_vec();
        offer.push(("AuthMethod", "CHAP,None"));
        let (flags, said) = answered(login.handle(&request(first), &text(&offer)));
        assert_eq!((flags, said.as_str()), (0, "TargetPortalGroupTag=1 TargetAlias=a disk AuthMethod=CHAP "), "{what}");
        let (flags, said) = answered(login.handle(&request(second), &text(&[("CHAP_A", "5")])));
        assert_eq!(flags, 0, "{what}");
        let value = |key: &str| said.split(' ').find_map(|pair| pair.strip_prefix(key)).unwrap().to_owned();
        let challenge = binary(&value("CHAP_C=")).unwrap();
        let identifier: u8 = value("CHAP_I=").parse().unwrap();
        let response = {
            use md5::Digest as _;
            let whole = [&[identifier][..], b"secretsecret12", &challenge].concat();
            crate::text::to_hex(&md5::Md5::digest(&whole))
        };
        let proof = [("CHAP_N", "alice"), ("CHAP_R", response.as_str())];
        assert_eq!(answered(login.handle(&request(0x81), &text(&proof))), (0x81, String::new()), "{what}");
        // libiscsi says its names again.
        let (flags, said) = answered(login.handle(&request(0x87), &text(&NAMES)));
        assert_eq!((flags, said.as_str()), (0x87, "MaxRecvDataSegmentLength=262144 "), "{what}");
    }
}

#[test]
fn text_in_pieces_and_rounds() {
    let targets = targets(false);
    let mut login = login(&targets, false);
    assert_eq!(answered(login.handle(&request(0x44), b"InitiatorName=iqn.2026-01.te")), (0x04, String::new()));
    let rest = b"st:guest\0TargetName=iqn.2026-01.test:e3\0MaxBurstLength=4096\0";
    let (flags, said) = answered(login.handle(&request(0x04), rest));
    assert_eq!(flags, 0x04);
    assert!(said.ends_with("MaxBurstLength=4096 MaxRecvDataSegmentLength=262144 "), "{said}");
    assert_eq!(answered(login.handle(&request(0x87), b"ImmediateData=No\0")), (0x87, "ImmediateData=No ".into()));
}

#[test]
fn every_refusal() {
    let names = text(&NAMES);
    let initiator = text(&NAMES[..1]);
    let with = |pairs: &[(&str, &str)]| [initiator.clone(), text(pairs)].concat();
    let many = format!("{}InitiatorAlias=a\0InitiatorAlias=a\0", String::from_utf8(names.clone()).unwrap());
    let version = request(0x87).with_u8(3, 1);
    let joining = |tsih| request(0x87).with_u16(at::TSIH, tsih);
    for (what, with_login, draining, header, data, expected) in [
        ("right", false, false, request(0x87), names.clone(), 0),
        ("no login", false, false, Header::new(opcode::TEXT, 0x80, 1), names.clone(), 0xFFFF),
        ("version", false, false, version, names.clone(), 0x0205),
        ("another connection", false, false, joining(7), names.clone(), 0x0206),
        ("unknown session", false, false, joining(8), names.clone(), 0x020A),
        ("no name", false, false, request(0x87), text(&NAMES[1..]), 0x0207),
        ("empty name", false, false, request(0x87), text(&[("InitiatorName", ""), NAMES[1]]), 0x0207),
        ("no target", false, false, request(0x87), initiator.clone(), 0x0207),
        ("unknown target", false, false, request(0x87), with(&[("TargetName", "iqn.x")]), 0x0203),
        ("not allowed", false, false, request(0x87), with(&[("TargetName", "iqn.2026-01.test:closed")]), 0x0202),
        ("session type", false, false, request(0x87), with(&[("SessionType", "Odd")]), 0x0209),
        ("discovery", false, false, request(0x87), with(&[("SessionType", "Discovery")]), 0),
        ("discovery without a proof", true, false, request(0x87), with(&[("SessionType", "Discovery")]), 0x0201),
        ("draining", false, true, request(0x87), names.clone(), 0x0301),
        ("no proof", true, false, request(0x87), names.clone(), 0x0201),
        ("terms before the proof", true, false, request(0x04), names.clone(), 0x0201),
        ("no method", true, false, request(0x81), names.clone(), 0x0201),
        ("None only", true, false, request(0x81), with(&[NAMES[1], ("AuthMethod", "None")]), 0x0201),
        ("CHAP only", false, false, request(0x81), with(&[NAMES[1], ("AuthMethod", "CHAP")]), 0x0201),
        ("a proof nobody wants", false, false, request(0x81), with(&[NAMES[1], ("CHAP_N", "x")]), 0x0201),
        ("stage 2", false, false, request(0x88), names.clone(), 0x0200),
        ("full feature", false, false, request(0x8F), names.clone(), 0x0200),
        ("back to security", false, false, request(0x84), names.clone(), 0x0200),
        ("transit with more to come", false, false, request(0xC7), names.clone(), 0x0200),
        ("no text", false, false, request(0x87), b"InitiatorName".to_vec(), 0x0200),
        ("two names", false, false, request(0x87), with(&[NAMES[1], ("InitiatorName", "iqn.other")]), 0x0200),
        ("a key twice", false, false, request(0x87), many.into_bytes(), 0x0200),
    ] {
        let targets = targets(with_login);
        let step = login(&targets, draining).handle(&header, &data);
        assert_eq!(status(&step), expected, "{what}");
    }
}

#[test]
fn a_login_stays_the_same_and_ends() {
    let other_tag = Header::new(opcode::LOGIN | 0x40, 0x04, 2).with_u32(at::CMD_SN, 100);
    for (what, second) in [
        ("tag", other_tag),
        ("connection", request(0x04).with_u16(at::CID, 1)),
        ("session", request(0x04).with_u8(at::ISID, 1)),
        ("stage", request(0x00)),
    ] {
        let targets = targets(false);
        let mut login = login(&targets, false);
        answered(login.handle(&request(0x04), &text(&NAMES)));
        assert_eq!(status(&login.handle(&second, b"")), 0x0200, "{what}");
    }
    let targets = targets(false);
    let mut endless = login(&targets, false);
    let rounds = (0..100).take_while(|_| status(&endless.handle(&request(0x04), &text(&NAMES))) == 0).count();
    assert_eq!(rounds, MAX_ROUNDS);
    let mut long = login(&targets, false);
    let piece = vec![b'x'; 8192];
    let pieces = (0..100).take_while(|_| status(&long.handle(&request(0x44), &piece)) == 0).count();
    assert_eq!(pieces, MAX_TEXT_BYTES / piece.len());
}

/// No text, however broken, does anything but continue, be refused, or log in with the names it has.
#[test]
fn hostile_text_against_the_names_it_holds() {
    let mut random = crate::testing::Random(11);
    let words = [
        "InitiatorName=",
        "TargetName=",
        INITIATOR,
        TARGET,
        "\0",
        "=",
        "SessionType=",
        "Discovery",
        "Normal",
        "AuthMethod=",
        "CHAP",
        "None",
        ",",
        "CHAP_A=5",
        "CHAP_N=alice",
        "CHAP_R=0x00",
        "MaxBurstLength=",
        "0x",
        "99999999999999999999",
        "HeaderDigest=",
        "CRC32C",
        "é",
    ];
    let with_login = targets(true);
    let without = targets(false);
    let (mut logged_in, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let wants_login = random.below(2) == 0;
        let mut login = login(if wants_login { &with_login } else { &without }, false);
        let mut all = Vec::new();
        for _ in 0..4 {
            let mut data: Vec<u8> = Vec::new();
            if random.below(2) == 0 {
                data.extend(text(&NAMES));
            }
            for _ in 0..random.below(8) {
                data.extend(words[random.below(words.len() as u64) as usize].bytes());
            }
            if random.below(4) == 0 && !data.is_empty() {
                let at = random.below(data.len() as u64) as usize;
                data[at] = random.below(256) as u8;
            }
            all.extend(&data);
            let flags = [0x87, 0x81, 0x04, 0x44, 0x00][random.below(5) as usize];
            match login.handle(&request(flags), &data) {
                Step::Answer(..) => {}
                Step::Done(done) => {
                    assert!(!wants_login, "nobody gave a proof: {}", String::from_utf8_lossy(&all));
                    let named = format!("InitiatorName={}", done.initiator);
                    assert!(String::from_utf8_lossy(&all).contains(&named), "{}", String::from_utf8_lossy(&all));
                    logged_in += 1;
                    break;
                }
                Step::Refuse(_) => {
                    refused += 1;
                    break;
                }
                Step::Close => panic!("it was a login"),
            }
        }
    }
    assert!(logged_in > 300 && refused > 3000, "{logged_in} logged in, {refused} refused");
}

/// A login out of bytes: the kind of server, then requests of flags, a byte of the header to be changed and its value,
/// length, and text. `@R` in a text stands for the right answer to the last challenge: nobody else can give it.
fn fuzzed(input: &[u8]) -> u64 {
    use md5::Digest as _;
    let Some((kind, mut rest)) = input.split_first() else { return 0 };
    let wants_login = kind & 1 != 0;
    let targets = targets(wants_login);
    let mut login = login(&targets, kind & 2 != 0);
    let (mut challenge, mut is_proven) = (String::new(), false);
    let mut told = Vec::new();
    while let Some((&[flags, at, value, high, low], after)) = rest.split_first_chunk::<5>() {
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (text, after) = after.split_at(len.min(after.len()));
        rest = after;
        let mut text = text.to_vec();
        let value_of = |key: &str| challenge.split('\0').find_map(|pair| pair.strip_prefix(key)).map(str::to_owned);
        if let (Some(here), Some(bytes), Some(identifier)) =
            (text.windows(2).position(|pair| pair == b"@R"), value_of("CHAP_C="), value_of("CHAP_I="))
        {
            let whole = [&[identifier.parse().unwrap()][..], b"secretsecret12", &binary(&bytes).unwrap()].concat();
            let response = crate::text::to_hex(&md5::Md5::digest(&whole));
            text.splice(here..here + 2, response.into_bytes());
            is_proven = true;
        }
        let mut header = request(flags);
        // Its opcode is read before, and its lengths are those of the text.
        if matches!(usize::from(at), 1..4 | 8..48) {
            header.0[usize::from(at)] = value;
        }
        let tag = header.tag();
        let step = login.handle(&header, &text);
        assert!(login.text_bytes <= MAX_TEXT_BYTES, "what a login holds has a bound");
        let answer = match &step {
            Step::Answer(header, _) | Step::Refuse(header) => header,
            Step::Done(done) => &done.answer,
            Step::Close => break,
        };
        assert_eq!((answer.opcode(), answer.tag()), (opcode::LOGIN_RESPONSE, tag));
        told.push((status(&step), answer.0[at::FLAGS]));
        match step {
            Step::Answer(_, said) => {
                assert!(told.len() <= MAX_ROUNDS, "a login has an end");
                assert!(said.len() <= 16 << 10 && pairs(&said).is_ok(), "our text is text");
                let said = String::from_utf8(said).unwrap();
                if said.contains("CHAP_C=") {
                    challenge = said;
                }
            }
            Step::Done(done) => {
                let is_open = matches!(&done.purpose, Purpose::Normal(target) if target.name.ends_with(":closed"));
                assert!(!wants_login || is_proven || is_open, "nobody comes in without the secret");
                assert!(!is_open || done.initiator == "iqn.2026-01.test:other", "nor who is not named");
                assert!((1..=MAX_NAME_BYTES).contains(&done.initiator.len()));
                assert!((512..1 << 24).contains(&done.parameters.max_send_bytes));
                assert!((512..1 << 24).contains(&done.parameters.max_burst_bytes));
                told.push((1, u8::from(done.parameters.header_digest) | u8::from(done.parameters.data_digest) << 1));
                break;
            }
            Step::Refuse(_) | Step::Close => break,
        }
    }
    told.truncate(8);
    fuzzing::behaviour((wants_login, told))
}

fn recorded() -> Vec<Vec<u8>> {
    let of = |kind: u8, requests: &[(u8, &[u8])]| {
        let request =
            |(flags, text): &(u8, &[u8])| [&[*flags, 0, 0][..], &(text.len() as u16).to_be_bytes(), text].concat();
        [vec![kind], requests.iter().flat_map(request).collect()].concat()
    };
    let names = b"InitiatorName=iqn.2026-01.test:guest\0TargetName=iqn.2026-01.test:e3\0SessionType=Normal\0AuthMethod=CHAP,None\0";
    let closed = b"InitiatorName=iqn.2026-01.test:other\0TargetName=iqn.2026-01.test:closed\0AuthMethod=None\0";
    let discovery = b"InitiatorName=iqn.2026-01.test:guest\0SessionType=Discovery\0AuthMethod=CHAP,None\0";
    let terms = b"HeaderDigest=CRC32C,None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=16776192\0\
                  FirstBurstLength=262144\0MaxOutstandingR2T=1\0MaxConnections=1\0DataPDUInOrder=Yes\0ErrorRecoveryLevel=0\0\
                  MaxRecvDataSegmentLength=262144\0";
    let proof = b"CHAP_N=alice\0CHAP_R=@R\0";
    let both = [&names[..], terms].concat();
    vec![
        // open-iscsi, libiscsi, and QEMU's, which is libiscsi.
        of(1, &[(0x00, names), (0x00, b"CHAP_A=5\0"), (0x81, proof), (0x87, terms)]),
        of(1, &[(0x81, names), (0x81, b"CHAP_A=5\0"), (0x81, proof), (0x87, &both)]),
        of(0, &[(0x87, &both)]),
        of(0, &[(0x81, names), (0x87, terms)]),
        of(1, &[(0x81, discovery), (0x81, b"CHAP_A=5\0"), (0x81, proof), (0x87, b"")]),
        of(0, &[(0x87, closed)]),
        of(1, &[(0x87, closed)]),
        of(3, &[(0x44, &both[..20]), (0x04, &both[20..])]),
        of(0, &[(0x44, &both[..20]), (0x04, &both[20..]), (0x87, b"")]),
    ]
}

#[test]
fn fuzz_login() {
    let seen = fuzzing::hunt(&recorded(), 1 << 14, fuzzed);
    assert!(seen.behaviours > 50, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_login_long() {
    fuzzing::hunt_long(&recorded(), 1 << 15, fuzzed);
}
