//! One-time codes from the clock (RFC 6238: HMAC-SHA-1, six digits, 30 seconds), and codes for who lost them.

use jiff::Timestamp;
use ring::hmac;

use crate::secret::{self, SecretError};

/// A code is good for so long.
const STEP_SECS: i64 = 30;
/// Clocks may differ by so many steps.
const SKEW_STEPS: i64 = 1;
/// Bytes of a secret, as RFC 4226 recommends.
pub const SECRET_BYTES: usize = 20;
/// So many recovery codes are made at a time.
pub const RECOVERY_CODES: usize = 10;

/// The step that `code` belongs to: one near `now`, and later than the last one that was used, so that no code serves
/// twice.
pub fn step_of(secret: &[u8], code: &str, now: Timestamp, last_used: i64) -> Option<i64> {
    let code: String = code.chars().filter(|letter| !letter.is_whitespace()).collect();
    let current = now.as_second().div_euclid(STEP_SECS);
    // Every step is compared, in a time that does not tell which was near.
    let steps = (current - SKEW_STEPS..=current + SKEW_STEPS).filter(|step| {
        let is_right = secret::same(self::code(secret, *step).as_bytes(), code.as_bytes());
        is_right && *step > last_used
    });
    steps.max()
}

/// The code of a step.
pub fn code(secret: &[u8], step: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    let at = usize::from(tag[tag.len() - 1] & 0xf);
    let number = u32::from_be_bytes([tag[at] & 0x7f, tag[at + 1], tag[at + 2], tag[at + 3]]);
    format!("{:06}", number % 1_000_000)
}

/// What an authenticator reads out of a QR code.
pub fn uri(secret: &[u8], email: &str) -> String {
    let account: String = url::form_urlencoded::byte_serialize(email.as_bytes()).collect();
    format!("otpauth://totp/e3:{account}?secret={}&issuer=e3", base32(secret))
}

/// Bytes in base32 without padding (RFC 4648).
pub fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let mut padded = [0; 5];
        padded[..group.len()].copy_from_slice(group);
        let bits = padded.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        let letters = (group.len() * 8).div_ceil(5);
        text.extend((0..letters).map(|at| char::from(LETTERS[(bits >> (35 - 5 * at) & 31) as usize])));
    }
    text
}

/// A recovery code: 80 random bits in four groups of four letters.
pub fn recovery_code() -> Result<String, SecretError> {
    let text = base32(&secret::random::<10>()?).to_lowercase();
    let groups: Vec<&str> = [0, 4, 8, 12].iter().map(|at| &text[*at..at + 4]).collect();
    Ok(groups.join("-"))
}

/// What is kept of a recovery code, however it was typed.
pub fn recovery_hash(code: &str) -> [u8; 32] {
    let plain: String = code.chars().filter(char::is_ascii_alphanumeric).collect();
    secret::hash(&plain.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238 appendix B, the last six of its eight digits.
    #[test]
    fn codes_are_those_of_the_rfc() {
        for (second, expected) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code(b"12345678901234567890", second / 30), expected, "second {second}");
        }
    }

    #[test]
    fn a_code_is_taken_near_its_time_and_once() {
        let secret = b"12345678901234567890";
        let at = |second: i64| Timestamp::from_second(second).expect("time");
        for (case, code, second, last_used, expected) in [
            ("in its step", "287082", 59, 0, Some(1)),
            ("with a blank, as it is shown", "287 082", 59, 0, Some(1)),
            ("a step early", "287082", 29, 0, Some(1)),
            ("a step late", "287082", 89, 0, Some(1)),
            ("two steps late", "287082", 90, 0, None),
            ("used before", "287082", 59, 1, None),
            ("older than one that was used", "287082", 89, 2, None),
            ("another one", "287083", 59, 0, None),
            ("too short", "28708", 59, 0, None),
            ("nothing", "", 59, 0, None),
        ] {
            assert_eq!(step_of(secret, code, at(second), last_used), expected, "{case}");
        }
    }

    /// RFC 4648 section 10, without padding.
    #[test]
    fn base32_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text, "{bytes}");
        }
    }

    #[test]
    fn a_recovery_code_may_be_typed_in_any_way() {
        let code = recovery_code().expect("random bytes");
        assert_eq!(code.len(), 19, "{code}");
        assert_eq!(recovery_hash(&code), recovery_hash(&format!(" {} ", code.to_uppercase().replace('-', " "))));
        assert_ne!(recovery_hash(&code), recovery_hash(&recovery_code().expect("random bytes")));
    }
}
