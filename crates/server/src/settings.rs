//! What a server is told when it starts.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Clock;

/// How a server runs. Every setting has one default.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the database, the certificate and the key of the secrets are kept.
    pub data: PathBuf,
    /// `mysql://…`, or SQLite in the data folder.
    pub database: Option<String>,
    /// The address that agents and browsers use, without a path at its end.
    pub public_url: Option<String>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Agents below this version are turned away.
    pub min_agent_version: String,
    /// What is allowed to one caller.
    pub rates: Rates,
    /// How often schedules, silent runs and protection states are looked at.
    pub tick: Duration,
    /// Longest wait of a poll that has nothing to tell.
    pub long_poll: Duration,
    /// How long a body may take to come.
    pub body_patience: Duration,
    /// How mail is sent; without it nobody gets any.
    pub mail: Option<Mail>,
    /// Whether webhooks may go to private and link-local addresses (spec control-api 10.2).
    pub allow_private_webhooks: bool,
    /// Certificates beside the public ones that webhooks' receivers may have, as PEM.
    pub webhook_roots_pem: Option<String>,
    /// Starts of different agents are spread over so many seconds (spec control-api 4.4).
    pub jitter_secs: i64,
    /// Whether sign-in providers may lie on this machine, there also without TLS, and in private networks (spec control-api
    /// 10.2).
    pub allow_private_sign_in: bool,
    /// Certificates in place of the public ones that sign-in providers may have, as PEM.
    pub sign_in_roots_pem: Option<String>,
    /// Whether an agent may be enrolled with a person's password (spec control-api 1.3, 11).
    pub agent_password_login: bool,
    /// Whether this server tries endpoints in private networks that tenants name, or clients where there are several (spec
    /// control-api 10.2).
    pub allow_private_endpoints: bool,
    /// The clock.
    pub clock: Clock,
}

/// How mail is sent.
#[derive(Clone)]
pub struct Mail {
    /// `smtps://USER:PASSWORD@HOST`, `smtp://HOST:PORT?tls=required`, or `smtp://HOST` without TLS.
    pub relay: String,
    /// Who sends it.
    pub from: String,
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The relay's address holds its password.
        f.debug_struct("Mail").field("from", &self.from).finish_non_exhaustive()
    }
}

/// Calls per second, and how many may come at once (spec control-api 1.7).
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Per agent.
    pub agent: (f64, f64),
    /// Per address.
    pub address: (f64, f64),
    /// Enrolments per minute and address, before a quarter of an hour without.
    pub enrolments_per_minute: u32,
    /// Failed logins of one account or address, before a quarter of an hour without.
    pub failed_logins: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Rates { agent: (8.0, 40.0), address: (60.0, 200.0), enrolments_per_minute: 10, failed_logins: 8 }
    }
}

impl Settings {
    /// The defaults, for that data folder.
    pub fn new(data: PathBuf) -> Settings {
        Settings {
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 8443),
            data,
            database: None,
            public_url: None,
            trusted_proxies: Vec::new(),
            min_agent_version: "0.1.0".into(),
            rates: Rates::default(),
            tick: Duration::from_secs(1),
            long_poll: Duration::from_secs(25),
            body_patience: Duration::from_secs(30),
            mail: None,
            allow_private_webhooks: false,
            webhook_roots_pem: None,
            jitter_secs: 60,
            allow_private_sign_in: false,
            sign_in_roots_pem: None,
            agent_password_login: false,
            allow_private_endpoints: false,
            clock: Clock::default(),
        }
    }
}
