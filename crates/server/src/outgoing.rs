//! Calls of this server to addresses that others name: webhooks, sign-in providers (spec control-api 10.2). Stores, which
//! `bucket` calls, are judged alike: [`bucket::Network`].
//!
//! Who names an address uses the place of this server in its network. On a server that several clients share that place is
//! not theirs: without a setting of the operator only addresses of the public network are called.

use std::net::IpAddr;
use std::time::Duration;

use bucket::Network;
use ureq::config::Config;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use url::{Host, Url};

/// What may be called, and whose certificates are believed instead of the public ones.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Which addresses.
    pub network: Network,
    /// Certificates as PEM.
    pub roots_pem: Option<String>,
}

impl Reach {
    /// Everything, or the public network; `flag` is the setting that allows the rest.
    pub fn new(allow_private: bool, flag: &'static str) -> Self {
        let network = if allow_private { Network::Any } else { Network::Public { unless: flag } };
        Self { network, roots_pem: None }
    }

    /// Whether the address is, as it is written, one that may not be called. What a name leads to is seen when it is called.
    pub fn forbids(&self, url: &Url) -> bool {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return false,
        };
        !self.network.allows(address)
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
        let mut config = Config::builder()
            .timeout_global(Some(patience))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls.build());
        if self.network != Network::Any {
            // A proxy would look the name up by itself.
            config = config.proxy(None);
        }
        Ok(ureq::Agent::with_parts(config.build(), DefaultConnector::default(), self.network.resolver()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_judged_by_what_it_leads_to() {
        let closed = Reach::new(false, "--allow-private-webhooks");
        let url = Url::parse("https://localhost:9/").expect("address");
        assert!(!closed.forbids(&url), "as it is written it says nothing");
        let failed = closed.agent(Duration::from_secs(5)).expect("agent").get(url.as_str()).call();
        let why = failed.expect_err("nothing is called").to_string();
        assert!(why.contains("private") && why.contains("--allow-private-webhooks"), "{why}");
        let open = Reach::new(true, "");
        let failed = open.agent(Duration::from_secs(5)).expect("agent").get(url.as_str()).call();
        assert!(matches!(failed, Err(ureq::Error::Io(_))), "nobody listens there: {failed:?}");
    }
}
