//! Reservations, old and persistent, of three initiators.

use super::*;

const KEYS: [u64; 3] = [0x11, 0x22, 0x33];
const CONFLICT: (u8, u16) = (0xFF, 0x18);
const GOOD: (u8, u16) = (0, 0);

const READ: &[u8] = &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: &[u8] = &[0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const RESERVE: &[u8] = &[0x16, 0, 0, 0, 0, 0];
const RELEASE: &[u8] = &[0x17, 0, 0, 0, 0, 0];

/// A unit and three initiators that have heard all news.
fn three() -> (Unit, [Nexus; 3]) {
    let unit = unit(Provisioning::Thick, false);
    let all = ["alice", "bob", "carol"].map(nexus);
    for one in &all {
        unit.attach(one);
        assert_eq!(sense(ask(&unit, one, &[0; 6], &[])), (6, 0x2900));
    }
    (unit, all)
}

fn out(unit: &Unit, who: &Nexus, action: u8, kind: u8, key: u64, other: u64) -> (u8, u16) {
    let list = [&key.to_be_bytes()[..], &other.to_be_bytes(), &[0; 8]].concat();
    sense(ask(unit, who, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list))
}

fn report(unit: &Unit, who: &Nexus, action: u8) -> Vec<u8> {
    data(ask(unit, who, &[0x5E, action, 0, 0, 0, 0, 0, 4, 0, 0], &[]))
}

fn write(unit: &Unit, who: &Nexus) -> (u8, u16) {
    sense(ask(unit, who, WRITE, &[1; 512]))
}

/// News, or none.
fn news(unit: &Unit, who: &Nexus) -> u16 {
    let said = data(ask(unit, who, &[0x03, 0, 0, 0, 18, 0], &[]));
    u16::from(said[12]) << 8 | u16::from(said[13])
}

#[test]
fn an_old_reservation_keeps_all_others_out() {
    let (unit, [alice, bob, _]) = three();
    assert_eq!(sense(ask(&unit, &alice, RESERVE, &[])), GOOD);
    assert_eq!(sense(ask(&unit, &alice, RESERVE, &[])), GOOD, "again");
    let mode_sense = [0x1A, 0, 0x3F, 0, 255, 0];
    for cdb in [RESERVE, READ, WRITE, &[0; 6], &mode_sense, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0]] {
        assert_eq!(sense(ask(&unit, &bob, cdb, &[1; 512])), CONFLICT, "{cdb:02x?}");
    }
    for cdb in [&[0x12, 0, 0, 0, 96, 0][..], &[0x03, 0, 0, 0, 18, 0], RELEASE] {
        assert_eq!(sense(ask(&unit, &bob, cdb, &[])), GOOD, "{cdb:02x?}");
    }
    assert_eq!(write(&unit, &bob), CONFLICT, "his release had no effect");
    assert_eq!(write(&unit, &alice), GOOD);
    for end in ["release", "logout", "reset"] {
        assert_eq!(sense(ask(&unit, &alice, RESERVE, &[])), GOOD);
        match end {
            "release" => assert_eq!(sense(ask(&unit, &alice, RELEASE, &[])), GOOD),
            "logout" => {
                unit.detach(&alice);
                unit.attach(&alice);
                assert_eq!(news(&unit, &alice), 0x2900);
            }
            _ => {
                unit.reset();
                assert_eq!((news(&unit, &alice), news(&unit, &bob)), (0x2903, 0x2903));
            }
        }
        assert_eq!(write(&unit, &bob), GOOD, "after a {end}");
    }
    assert_eq!(out(&unit, &bob, 0, 0, 0, KEYS[1]), GOOD);
    assert_eq!(sense(ask(&unit, &alice, RESERVE, &[])), CONFLICT, "both kinds at once there cannot be");
}

/// Every kind of reservation by alice, with bob registered and carol not: who can read and write.
#[test]
fn who_is_kept_out_by_each_kind() {
    for (kind, bob_reads, bob_writes, carol_reads) in [
        (1, true, false, true),
        (3, false, false, false),
        (5, true, true, true),
        (6, true, true, false),
        (7, true, true, true),
        (8, true, true, false),
    ] {
        let (unit, [alice, bob, carol]) = three();
        for (who, key) in [(&alice, KEYS[0]), (&bob, KEYS[1])] {
            assert_eq!(out(&unit, who, 0, 0, 0, key), GOOD);
        }
        assert_eq!(out(&unit, &carol, 1, kind, 0, 0), CONFLICT, "carol has not registered");
        assert_eq!(out(&unit, &alice, 1, kind, KEYS[0] + 1, 0), CONFLICT, "the wrong key");
        assert_eq!(out(&unit, &alice, 1, kind, KEYS[0], 0), GOOD);
        assert_eq!(out(&unit, &alice, 1, kind, KEYS[0], 0), GOOD, "again");
        let expected = |allowed| if allowed { GOOD } else { CONFLICT };
        let read = |who| sense(ask(&unit, who, READ, &[]));
        assert_eq!((read(&alice), write(&unit, &alice)), (GOOD, GOOD), "kind {kind}");
        assert_eq!((read(&bob), write(&unit, &bob)), (expected(bob_reads), expected(bob_writes)), "kind {kind}");
        assert_eq!((read(&carol), write(&unit, &carol)), (expected(carol_reads), CONFLICT), "kind {kind}");
        assert_eq!(sense(ask(&unit, &carol, &[0; 6], &[])), GOOD, "TEST UNIT READY under kind {kind}");

        let of_all = kind >= 7;
        let held = report(&unit, &carol, 1);
        let key = u64::from_be_bytes(held[8..16].try_into().unwrap());
        assert_eq!((key, held[21]), (if of_all { 0 } else { KEYS[0] }, kind));
        assert_eq!(out(&unit, &bob, 1, kind, KEYS[1], 0), expected(of_all), "bob reserves, too");
        assert_eq!(out(&unit, &bob, 2, kind, KEYS[1], 0), GOOD);
        assert_eq!(write(&unit, &carol), expected(of_all), "bob released");
        if of_all {
            assert_eq!((news(&unit, &alice), news(&unit, &bob), news(&unit, &carol)), (0x2A04, 0, 0));
            continue;
        }
        let other = if kind == 1 { 3 } else { 1 };
        assert_eq!(out(&unit, &alice, 2, other, KEYS[0], 0), (5, 0x2604), "the wrong kind");
        assert_eq!(out(&unit, &alice, 2, kind, KEYS[0], 0), GOOD);
        let told = if kind >= 5 { 0x2A04 } else { 0 };
        assert_eq!((news(&unit, &alice), news(&unit, &bob), news(&unit, &carol)), (0, told, 0), "kind {kind}");
        assert_eq!(write(&unit, &carol), GOOD);
    }
}

#[test]
fn registrations_come_go_and_are_counted() {
    let (unit, [alice, bob, carol]) = three();
    assert_eq!(out(&unit, &alice, 0, 0, 5, KEYS[0]), CONFLICT, "no key is 5");
    assert_eq!(out(&unit, &alice, 0, 0, 0, KEYS[0]), GOOD);
    assert_eq!(out(&unit, &alice, 0, 0, 0, KEYS[0]), CONFLICT, "there is a key now");
    assert_eq!(out(&unit, &alice, 6, 0, 0, 0x44), GOOD, "whatever it was");
    assert_eq!(out(&unit, &bob, 6, 0, 0, KEYS[1]), GOOD);
    let keys = report(&unit, &carol, 0);
    assert_eq!(keys[..8], [0, 0, 0, 3, 0, 0, 0, 16]);
    assert_eq!(keys[8..], [0x44_u64.to_be_bytes(), KEYS[1].to_be_bytes()].concat());
    assert_eq!(report(&unit, &carol, 2), [0, 8, 0, 0x80, 0xEA, 1, 0, 0]);

    assert_eq!(out(&unit, &alice, 1, 5, 0x44, 0), GOOD);
    let full = report(&unit, &carol, 3);
    let id = b"iqn.2026-01.test:alice,i,0x00023d000001\0";
    assert_eq!((full[20], full[21]), (1, 5), "alice holds it");
    assert_eq!(full[28..32], (id.len() as u32 + 4).to_be_bytes());
    assert_eq!(full[32..36], [0x45, 0, 0, id.len() as u8]);
    assert_eq!(full[36..36 + id.len()], id[..]);
    // It survives resets and the end of the session.
    unit.reset();
    unit.detach(&alice);
    assert_eq!(news(&unit, &bob), 0x2903);
    assert_eq!(news(&unit, &carol), 0x2903);
    assert_eq!(write(&unit, &carol), CONFLICT);
    unit.attach(&alice);
    assert_eq!(news(&unit, &alice), 0x2900);
    // It ends with the registration of its holder; the other registrant hears of it, the sender does not.
    assert_eq!(out(&unit, &alice, 0, 0, 0x44, 0), GOOD);
    assert_eq!((news(&unit, &alice), news(&unit, &bob), news(&unit, &carol)), (0, 0x2A04, 0));
    assert_eq!(write(&unit, &carol), GOOD);
    assert_eq!(out(&unit, &bob, 3, 0, KEYS[1], 0), GOOD, "clear");
    assert_eq!(report(&unit, &carol, 0)[..8], [0, 0, 0, 5, 0, 0, 0, 0]);
}

#[test]
fn preempting() {
    for action in [4, 5] {
        let (unit, [alice, bob, carol]) = three();
        for (who, key) in [(&alice, KEYS[0]), (&bob, KEYS[1]), (&carol, KEYS[2])] {
            assert_eq!(out(&unit, who, 0, 0, 0, key), GOOD);
        }
        assert_eq!(out(&unit, &alice, 1, 1, KEYS[0], 0), GOOD);
        assert_eq!(out(&unit, &bob, action, 1, KEYS[1], 0x99), CONFLICT, "nobody has that key");
        assert_eq!(out(&unit, &bob, action, 1, KEYS[1], 0), (5, 0x2600));
        // Of one that holds nothing: only its registration.
        assert_eq!(out(&unit, &bob, action, 1, KEYS[1], KEYS[2]), GOOD);
        assert_eq!((news(&unit, &alice), news(&unit, &bob), news(&unit, &carol)), (0, 0, 0x2A05));
        assert_eq!((write(&unit, &alice), write(&unit, &bob)), (GOOD, CONFLICT));
        // Of the holder: its reservation, too.
        assert_eq!(out(&unit, &bob, action, 3, KEYS[1], KEYS[0]), GOOD);
        assert_eq!((news(&unit, &alice), news(&unit, &bob)), (0x2A05, 0));
        assert_eq!((write(&unit, &alice), write(&unit, &bob)), (CONFLICT, GOOD));
        assert_eq!(report(&unit, &bob, 0)[8..], KEYS[1].to_be_bytes());
        assert_eq!(report(&unit, &bob, 1)[21], 3);
    }
    // From all registrants, by key 0.
    let (unit, [alice, bob, carol]) = three();
    for (who, key) in [(&alice, KEYS[0]), (&bob, KEYS[1]), (&carol, KEYS[2])] {
        assert_eq!(out(&unit, who, 0, 0, 0, key), GOOD);
    }
    assert_eq!(out(&unit, &alice, 1, 8, KEYS[0], 0), GOOD);
    assert_eq!(out(&unit, &carol, 4, 1, KEYS[2], 0), GOOD);
    assert_eq!((news(&unit, &alice), news(&unit, &bob), news(&unit, &carol)), (0x2A05, 0x2A05, 0));
    assert_eq!((write(&unit, &alice), write(&unit, &bob), write(&unit, &carol)), (CONFLICT, CONFLICT, GOOD));
}

#[test]
fn orders_that_are_refused() {
    let (unit, [alice, ..]) = three();
    assert_eq!(out(&unit, &alice, 0, 0, 0, KEYS[0]), GOOD);
    for kind in [0, 2, 4, 9, 0x11] {
        assert_eq!(out(&unit, &alice, 1, kind, KEYS[0], 0), (5, 0x2400), "scope and kind {kind:#x}");
    }
    assert_eq!(out(&unit, &alice, 7, 1, KEYS[0], 0), (5, 0x2400), "no such action");
    for (flags, expected) in [(8, (5, 0x2600)), (4, (5, 0x2600)), (1, (5, 0x2600)), (0, GOOD)] {
        let mut list = [0; 24];
        list[15] = 1;
        list[20] = flags;
        assert_eq!(sense(ask(&unit, &alice, &[0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0], &list)), expected);
    }
    for len in [0, 23, 25] {
        let outcome = ask(&unit, &alice, &[0x5F, 6, 0, 0, 0, 0, 0, 0, len, 0], &vec![0; len.into()]);
        assert_eq!(sense(outcome), (5, 0x1A00), "{len} bytes");
    }
}

#[test]
fn registrations_are_bounded() {
    let (unit, [alice, ..]) = three();
    let mut taken = 0;
    for number in 0..1000_u32 {
        let invented = Nexus { isid: [9, 9, 0, 0, (number >> 8) as u8, number as u8], ..alice.clone() };
        taken += u32::from(out(&unit, &invented, 6, 0, 0, 1) == GOOD);
    }
    assert_eq!(taken, 256);
}
