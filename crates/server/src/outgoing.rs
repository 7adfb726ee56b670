//! Calls of this server to addresses that others name: webhooks, sign-in providers, stores (spec control-api 10.2).
//!
//! Who names an address uses the place of this server in its network. On a server that several clients share that place is
//! not theirs: without a setting of the operator only addresses of the public network are called.

use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs as _};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use url::{Host, Url};

/// Whether private addresses may be called, and whose certificates are believed instead of the public ones.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Private and link-local addresses, and this machine, too.
    pub allow_private: bool,
    /// Certificates as PEM.
    pub roots_pem: Option<String>,
}

impl Reach {
    /// Whether the address is, as it is written, one that may not be called. What a name leads to is seen when it is called.
    pub fn forbids(&self, url: &Url) -> bool {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return false,
        };
        !self.allow_private && !is_public(address)
    }

    /// Calls what may be called, goes where no answer sends it, and gives up after that time.
    pub fn agent(&self, patience: Duration) -> Result<ureq::Agent, String> {
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &self.roots_pem {
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
            .timeout_global(Some(patience))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .tls_config(tls.build())
            .build();
        let resolver = Checked { inner: DefaultResolver::default(), allow_private: self.allow_private };
        Ok(ureq::Agent::with_parts(config, DefaultConnector::default(), resolver))
    }
}

/// Fails unless every address of the endpoint's host is of the public network.
pub fn check_public(endpoint: &str) -> Result<(), String> {
    let url = Url::parse(endpoint).map_err(|error| error.to_string())?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let addresses = (host.as_str(), port).to_socket_addrs().map_err(|_| format!("{host} is not found"))?;
    if addresses.into_iter().all(|address| is_public(address.ip())) {
        return Ok(());
    }
    Err(format!(
        "{host} is an address of a private network, which this server was not allowed to try (--allow-private-endpoints)"
    ))
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
    fn a_name_is_judged_by_what_it_leads_to() {
        let closed = Reach::default();
        let url = Url::parse("https://localhost:9/").expect("address");
        assert!(!closed.forbids(&url), "as it is written it says nothing");
        let failed = closed.agent(Duration::from_secs(5)).expect("agent").get(url.as_str()).call();
        assert!(matches!(failed, Err(ureq::Error::HostNotFound)), "{failed:?}");
        let open = Reach { allow_private: true, ..Reach::default() };
        let failed = open.agent(Duration::from_secs(5)).expect("agent").get(url.as_str()).call();
        assert!(matches!(failed, Err(ureq::Error::Io(_))), "nobody listens there: {failed:?}");
    }
}
