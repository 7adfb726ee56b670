//! Which addresses may be connected to, for programs that call what others name.

use std::net::{IpAddr, Ipv4Addr};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Which addresses may be connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// All of them.
    #[default]
    Any,
    /// Those of the public network: not this machine, nor what is private or link-local.
    Public {
        /// The setting that allows the others, for messages.
        unless: &'static str,
    },
}

impl Network {
    /// Whether an address may be connected to.
    pub fn allows(self, address: IpAddr) -> bool {
        self == Self::Any || is_public(address)
    }

    /// Looks names up, and leaves out what may not be connected to. After the look-up, so that no name leads elsewhere
    /// later. To be used without a proxy, which would look the name up by itself.
    pub fn resolver(self) -> JudgingResolver {
        JudgingResolver { inner: DefaultResolver::default(), network: self }
    }
}

/// See [`Network::resolver`].
#[derive(Debug)]
pub struct JudgingResolver {
    inner: DefaultResolver,
    network: Network,
}

impl Resolver for JudgingResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in found.iter().filter(|address| self.network.allows(address.ip())) {
            allowed.push(*address);
        }
        match self.network {
            Network::Public { unless } if allowed.is_empty() => {
                let host = uri.host().unwrap_or_default();
                let why = format!(
                    "{host} is of this machine or a private network, and may not be called ({unless} allows it)"
                );
                Err(ureq::Error::Other(why.into()))
            }
            _ => Ok(allowed),
        }
    }
}

/// Whether an address is one of the public network's.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_broadcast()
                || address.is_documentation()
                || address.is_multicast()
                || a == 0
                // Carriers' own, benchmarks, protocols' own, relays of IPv6, reserved.
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (b == 18 || b == 19))
                || [a, b, c] == [192, 0, 0]
                || [a, b, c] == [192, 88, 99]
                || a >= 240
                // What Azure's own services are for each machine there.
                || address == Ipv4Addr::new(168, 63, 129, 16))
        }
        IpAddr::V6(address) => {
            let words = address.segments();
            !(address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_multicast()
                // None, this machine, and what holds an address of IPv4.
                || words[..6] == [0; 6]
                || words[..2] == [0x64, 0xff9b]
                || words[..2] == [0x2001, 0]
                || words[0] == 0x2002
                // Documentation, and what was local to a site.
                || words[..2] == [0x2001, 0xdb8]
                || words[0] & 0xffc0 == 0xfec0)
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
            ("192.0.0.192", false),
            ("192.0.1.1", true),
            ("192.88.99.1", false),
            ("168.63.129.16", false),
            ("168.63.129.17", true),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::10.0.0.1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("fd00::1", false),
            ("::ffff:10.0.0.1", false),
            ("64:ff9b::a00:1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2001:4860:4860::8888", true),
            ("2002:a00:1::", false),
        ] {
            let network = Network::Public { unless: "--allow" };
            assert_eq!(network.allows(address.parse().unwrap()), expected, "{address}");
            assert!(Network::Any.allows(address.parse().unwrap()));
        }
    }
}
