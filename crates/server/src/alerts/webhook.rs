//! A message as a signed call of the receiver's address (spec control-api 4.10).
//!
//! The receiver takes the header `X-E3-Signature: t=SECONDS,v1=HEX`, computes HMAC-SHA256 of `SECONDS.BODY` with the key
//! that the rule showed when it was made, compares, and refuses what is older than it likes. `X-E3-Delivery` is the same
//! for a message that comes twice.

use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use jiff::Timestamp;
use ring::hmac;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::outbox::Trouble;

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

/// Whether webhooks may go to private addresses, and whose certificates are believed beside the public ones.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Private and link-local addresses too.
    pub allow_private: bool,
    /// Certificates as PEM.
    pub roots_pem: Option<String>,
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
    let address = match parsed.host() {
        Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    match address {
        Some(address) if !reach.allow_private && !is_public(address) => Err("is a private address".into()),
        _ => Ok(()),
    }
}

/// Calls, and waits for the answer: its status and the beginning of what it says.
pub fn send(call: &Call<'_>, reach: &Reach) -> Result<String, Trouble> {
    check(call.url, reach).map_err(Trouble::lasting)?;
    let agent = agent(reach).map_err(Trouble::lasting)?;
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

fn agent(reach: &Reach) -> Result<ureq::Agent, String> {
    let mut tls = TlsConfig::builder();
    if let Some(pem) = &reach.roots_pem {
        let items = ureq::tls::parse_pem(pem.as_bytes());
        let certificates: Vec<Certificate<'static>> = items
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(error.to_string())),
            })
            .collect::<Result<_, _>>()?;
        tls = tls.root_certs(RootCerts::from(certificates));
    }
    let config = Config::builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .tls_config(tls.build())
        .build();
    let resolver = Checked { inner: DefaultResolver::default(), allow_private: reach.allow_private };
    Ok(ureq::Agent::with_parts(config, DefaultConnector::default(), resolver))
}

/// Looks a name up, and leaves out what may not be called. After the look-up, so that no name leads elsewhere later.
#[derive(Debug)]
struct Checked {
    inner: DefaultResolver,
    allow_private: bool,
}

impl Resolver for Checked {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter().filter(|address| self.allow_private || is_public(address.ip())) {
            allowed.push(*address);
        }
        if allowed.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(allowed) }
    }
}

/// Whether an address is one of the public network's.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_broadcast()
                || address.is_documentation()
                || address.is_multicast()
                || a == 0
                // Carriers' own, benchmarks, reserved.
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (b == 18 || b == 19))
                || a >= 240)
        }
        IpAddr::V6(address) => {
            !(address == Ipv6Addr::UNSPECIFIED
                || address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_multicast()
                // Translations lead to addresses of IPv4.
                || address.segments()[0] == 0x2002
                || address.segments()[..2] == [0x64, 0xff9b])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_called() {
        for (address, expected) in [
            ("93.184.216.34", true),
            ("2606:2800:220:1::1", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.0.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("::ffff:10.0.0.1", false),
            ("64:ff9b::a00:1", false),
            ("2002:a00:1::", false),
        ] {
            assert_eq!(is_public(address.parse().expect("address")), expected, "{address}");
        }
    }

    #[test]
    fn rules_name_addresses_of_others() {
        let closed = Reach::default();
        let open = Reach { allow_private: true, ..Reach::default() };
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
