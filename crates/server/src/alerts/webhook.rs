//! A message as a signed call of the receiver's address (spec control-api 4.10).
//!
//! The receiver takes the header `X-E3-Signature: t=SECONDS,v1=HEX`, computes HMAC-SHA256 of `SECONDS.BODY` with the key
//! that the rule showed when it was made, compares, and refuses what is older than it likes. `X-E3-Delivery` is the same
//! for a message that comes twice.

use std::io::Read as _;
use std::time::Duration;

use jiff::Timestamp;
use ring::hmac;

use super::outbox::Trouble;
use crate::outgoing::Reach;

/// A receiver that does not answer within this is away.
const PATIENCE: Duration = Duration::from_secs(20);

/// One call.
#[derive(Debug)]
pub struct Call<'a> {
    /// Where to.
    pub url: &'a str,
    /// The message's id.
    pub delivery: i64,
    /// What happened.
    pub event: &'a str,
    /// JSON.
    pub body: &'a str,
    /// The key in clear.
    pub key: &'a str,
    /// Now.
    pub at: Timestamp,
}

/// The value of `X-E3-Signature`.
pub fn signature(key: &str, at: Timestamp, body: &str) -> String {
    let seconds = at.as_second();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    format!("t={seconds},v1={}", crate::hex(tag.as_ref()))
}

/// An address that a rule may name.
pub fn check(url: &str, reach: &Reach) -> Result<(), String> {
    let parsed = url::Url::parse(url).map_err(|error| error.to_string())?;
    if parsed.scheme() != "https" || parsed.host().is_none() {
        return Err("is no https:// address".into());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("holds a user name or password; the signature says who calls".into());
    }
    if reach.forbids(&parsed) { Err("is a private address".into()) } else { Ok(()) }
}

/// Calls, and waits for the answer: its status and the beginning of what it says.
pub fn send(call: &Call<'_>, reach: &Reach) -> Result<String, Trouble> {
    check(call.url, reach).map_err(Trouble::lasting)?;
    let agent = reach.agent(PATIENCE).map_err(Trouble::lasting)?;
    let request = agent
        .post(call.url)
        .header("content-type", "application/json")
        .header("user-agent", concat!("e3-server/", env!("CARGO_PKG_VERSION")))
        .header("x-e3-delivery", call.delivery.to_string())
        .header("x-e3-event", call.event)
        .header("x-e3-signature", signature(call.key, call.at, call.body));
    let mut response = request.send(call.body).map_err(|error| Trouble::passing(error.to_string()))?;
    let status = response.status().as_u16();
    let mut said = Vec::new();
    // Best effort: the status is the answer.
    let _ = response.body_mut().as_reader().take(300).read_to_end(&mut said);
    let answer = format!("{status} {}", super::text::line(&String::from_utf8_lossy(&said), 300));
    match status {
        200..=299 => Ok(answer),
        408 | 425 | 429 | 500.. => Err(Trouble::passing(answer)),
        _ => Err(Trouble::lasting(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_addresses_of_others() {
        let closed = Reach::new(false, "--allow-private-webhooks");
        let open = Reach::new(true, "");
        for (url, public, private) in [
            ("https://hooks.example.com/a?b=c", true, true),
            ("http://hooks.example.com/", false, false),
            ("https://169.254.169.254/latest", false, true),
            ("https://[::1]:9/", false, true),
            ("https://user:word@hooks.example.com/", false, false),
            ("ftp://hooks.example.com", false, false),
            ("hooks.example.com", false, false),
            ("", false, false),
        ] {
            assert_eq!(check(url, &closed).is_ok(), public, "{url}");
            assert_eq!(check(url, &open).is_ok(), private, "{url}, private allowed");
        }
    }

    /// The tag is of Python: hmac.new(b"key", b"1764244800.{}", hashlib.sha256).hexdigest().
    #[test]
    fn a_signature_is_of_time_and_body() {
        let at = Timestamp::from_second(1_764_244_800).expect("time");
        assert_eq!(
            signature("key", at, "{}"),
            "t=1764244800,v1=738b32e9fe2bb4e0ef696334944cb8ad389e6142f02d256bc5456b59a110afef"
        );
        assert_ne!(signature("key", at, "{ }"), signature("key", at, "{}"));
        assert_ne!(signature("other", at, "{}"), signature("key", at, "{}"));
    }
}
