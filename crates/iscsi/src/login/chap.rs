//! CHAP: each side proves that it knows a secret without sending it (RFC 1994, RFC 7143 12.1.3, spec B.5).

use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::target::Authentication;
use crate::text::{Text, binary, number, to_hex};

/// Longest challenge that an initiator may send.
const MAX_CHALLENGE_BYTES: usize = 1024;
/// Random bytes that we send.
const CHALLENGE_BYTES: usize = 16;

/// A digest of both numbers, the secret and the challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha256,
}

impl Algorithm {
    /// The first of an initiator's list that we know.
    fn choose(list: &str) -> Option<Self> {
        list.split(',').find_map(|one| match number(one) {
            Some(5) => Some(Self::Md5),
            Some(7) => Some(Self::Sha256),
            _ => None,
        })
    }

    fn number(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha256 => 7,
        }
    }

    fn response(self, identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        match self {
            Self::Md5 => {
                Md5::new().chain_update([identifier]).chain_update(secret).chain_update(challenge).finalize().to_vec()
            }
            Self::Sha256 => Sha256::new()
                .chain_update([identifier])
                .chain_update(secret)
                .chain_update(challenge)
                .finalize()
                .to_vec(),
        }
    }
}

/// Our side of an exchange, from the moment the method was agreed on.
#[derive(Debug)]
pub(crate) struct Chap {
    authentication: Authentication,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The initiator names algorithms next.
    Chosen,
    Challenged(Challenge),
    Done,
}

#[derive(Debug, Clone)]
struct Challenge {
    algorithm: Algorithm,
    identifier: u8,
    bytes: [u8; CHALLENGE_BYTES],
}

/// The initiator did not prove who it is, or not in a way that we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// CHAP keys of one text.
#[derive(Debug, Default, Clone)]
pub(crate) struct Keys<'a> {
    pub(crate) algorithms: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
    pub(crate) response: Option<&'a str>,
    pub(crate) identifier: Option<&'a str>,
    pub(crate) challenge: Option<&'a str>,
}

impl Chap {
    pub(crate) fn new(authentication: Authentication) -> Self {
        Self { authentication, state: State::Chosen }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes one text's keys and adds our answer to `answer`. Text without such keys changes nothing.
    pub(crate) fn handle(&mut self, keys: &Keys<'_>, answer: &mut Text) -> Result<(), Refused> {
        let mut fresh = random::bytes::<{ CHALLENGE_BYTES + 1 }>();
        let state = std::mem::replace(&mut self.state, State::Chosen);
        self.state = match (state, keys) {
            (State::Chosen, Keys { algorithms: Some(list), name: None, response: None, .. }) => {
                let algorithm = Algorithm::choose(list).ok_or(Refused)?;
                let identifier = std::mem::take(&mut fresh[CHALLENGE_BYTES]);
                let bytes: [u8; CHALLENGE_BYTES] = std::array::from_fn(|at| fresh[at]);
                answer.push("CHAP_A", &algorithm.number().to_string());
                answer.push("CHAP_I", &identifier.to_string());
                answer.push("CHAP_C", &to_hex(&bytes));
                State::Challenged(Challenge { algorithm, identifier, bytes })
            }
            (
                State::Challenged(challenge),
                Keys { algorithms: None, name: Some(name), response: Some(response), .. },
            ) => {
                self.check(&challenge, name, response)?;
                self.prove(&challenge, keys, answer)?;
                State::Done
            }
            (state, Keys { algorithms: None, name: None, response: None, identifier: None, challenge: None }) => state,
            _ => return Err(Refused),
        };
        Ok(())
    }

    fn check(&self, challenge: &Challenge, name: &str, response: &str) -> Result<(), Refused> {
        let known = &self.authentication.initiator;
        let expected = challenge.algorithm.response(challenge.identifier, known.secret.bytes(), &challenge.bytes);
        let given = binary(response).ok_or(Refused)?;
        // Both are looked at in full, so that the time taken says nothing of which was wrong, or where.
        let same =
            equal_in_constant_time(&expected, &given) & equal_in_constant_time(known.name.as_bytes(), name.as_bytes());
        if same { Ok(()) } else { Err(Refused) }
    }

    /// Answers the initiator's own challenge, if there is one.
    fn prove(&self, ours: &Challenge, keys: &Keys<'_>, answer: &mut Text) -> Result<(), Refused> {
        let (identifier, challenge) = match (keys.identifier, keys.challenge) {
            (None, None) => return Ok(()),
            (Some(identifier), Some(challenge)) => (identifier, challenge),
            _ => return Err(Refused),
        };
        let credentials = self.authentication.target.as_ref().ok_or(Refused)?;
        let identifier = number(identifier).and_then(|number| u8::try_from(number).ok()).ok_or(Refused)?;
        let challenge = binary(challenge).filter(|bytes| (1..=MAX_CHALLENGE_BYTES).contains(&bytes.len()));
        let challenge = challenge.ok_or(Refused)?;
        // An initiator that gives us our own challenge back wants us to do its work.
        if challenge == ours.bytes {
            return Err(Refused);
        }
        let response = ours.algorithm.response(identifier, credentials.secret.bytes(), &challenge);
        answer.push("CHAP_N", &credentials.name);
        answer.push("CHAP_R", &to_hex(&response));
        Ok(())
    }
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Credentials, Secret};
    use crate::text::pairs;

    fn authentication(mutual: bool) -> Authentication {
        let credentials = |name: &str, secret: &str| Credentials { name: name.into(), secret: Secret::new(secret) };
        Authentication {
            initiator: credentials("alice", "secretsecret12"),
            target: mutual.then(|| credentials("target1", "mutualsecret12")),
        }
    }

    /// Values made with `printf '\x2a%s\x01\x02\x03' secretsecret12 | md5sum`, and sha256sum.
    #[test]
    fn responses_as_other_programs_make_them() {
        for (algorithm, expected) in [
            (Algorithm::Md5, "c426635184960789bfa085ebaabc6f07"),
            (Algorithm::Sha256, "df1dca6e27aad23b42ab37fb78fc6ed3f2b4052e1b65a3cafca861d4c42c55fc"),
        ] {
            assert_eq!(to_hex(&algorithm.response(42, b"secretsecret12", &[1, 2, 3])), format!("0x{expected}"));
        }
    }

    #[test]
    fn algorithms_in_the_initiators_order() {
        for (list, chosen) in [
            ("5", Some(Algorithm::Md5)),
            ("7,5", Some(Algorithm::Sha256)),
            ("6,8,5,7", Some(Algorithm::Md5)),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(Algorithm::choose(list), chosen, "{list}");
        }
    }

    /// Every way in which an exchange can go, after a challenge.
    #[test]
    fn only_the_right_answer_is_taken() {
        struct Case {
            what: &'static str,
            name: &'static str,
            secret: &'static [u8],
            /// The initiator's own challenge; none of its bytes stands for ours given back.
            mutual: Option<&'static str>,
            we_can_prove: bool,
            taken: bool,
        }
        let right = Case {
            what: "right",
            name: "alice",
            secret: b"secretsecret12",
            mutual: None,
            we_can_prove: false,
            taken: true,
        };
        for case in [
            Case { what: "wrong secret", secret: b"secretsecret13", taken: false, ..right },
            Case {
                what: "the other side's secret",
                secret: b"mutualsecret12",
                we_can_prove: true,
                taken: false,
                ..right
            },
            Case { what: "wrong name", name: "bob", taken: false, ..right },
            Case { what: "a longer name", name: "alice2", taken: false, ..right },
            Case { what: "mutual", mutual: Some("0x0102"), we_can_prove: true, ..right },
            Case { what: "mutual without a secret of ours", mutual: Some("0x0102"), taken: false, ..right },
            Case { what: "reflected", mutual: Some("ours"), we_can_prove: true, taken: false, ..right },
            Case { what: "empty challenge", mutual: Some("0x"), we_can_prove: true, taken: false, ..right },
            Case { what: "no binary value", mutual: Some("12"), we_can_prove: true, taken: false, ..right },
            right,
        ] {
            let mut chap = Chap::new(authentication(case.we_can_prove));
            let mut said = Text::default();
            chap.handle(&Keys { algorithms: Some("5"), ..Keys::default() }, &mut said).unwrap();
            let said = said.into_bytes();
            let said = pairs(&said).unwrap();
            assert_eq!(said[0], ("CHAP_A", "5"));
            let (identifier, challenge) = (said[1].1.parse().unwrap(), said[2].1);
            let response = to_hex(&Algorithm::Md5.response(identifier, case.secret, &binary(challenge).unwrap()));
            let own = case.mutual.map(|own| if own == "ours" { challenge } else { own });
            let keys = Keys {
                name: Some(case.name),
                response: Some(&response),
                identifier: own.map(|_| "9"),
                challenge: own,
                ..Keys::default()
            };
            let mut proof = Text::default();
            assert_eq!(chap.handle(&keys, &mut proof).is_ok(), case.taken, "{}", case.what);
            assert_eq!(chap.is_done(), case.taken, "{}", case.what);
            if case.what == "mutual" {
                let expected = to_hex(&Algorithm::Md5.response(9, b"mutualsecret12", &[1, 2]));
                let proof = proof.into_bytes();
                assert_eq!(pairs(&proof).unwrap(), [("CHAP_N", "target1"), ("CHAP_R", &expected)]);
            }
        }
    }

    #[test]
    fn keys_out_of_turn_are_refused() {
        for keys in [
            Keys { name: Some("alice"), response: Some("0x00"), ..Keys::default() },
            Keys { algorithms: Some("5"), name: Some("alice"), ..Keys::default() },
            Keys { challenge: Some("0x00"), ..Keys::default() },
            Keys { algorithms: Some("6"), ..Keys::default() },
        ] {
            let mut chap = Chap::new(authentication(false));
            assert_eq!(chap.handle(&keys, &mut Text::default()), Err(Refused), "{keys:?}");
        }
    }
}
