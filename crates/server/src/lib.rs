//! The control plane: told once what to protect, it says every night what is safe.
//!
//! [`start`] opens the database, brings its schema up to date, and serves on TLS until the [`Server`] is stopped. Any
//! number of servers may share one MySQL database: what must happen once is a conditional update or a unique key, never
//! something that a process remembers.
//!
//! Every decision is a pure function beside its rows: [`schedule`] (when), [`selection`] (which VMs), [`runs::transition`]
//! (what may follow), [`protection`] (how safe). Read `http/routes.rs` for what can be asked, then `runs/`.
//!
//! Not here: backing anything up. Agents do that; what they store lies in the repositories, and rows about it are a cache.

pub mod access;
pub mod adopt;
pub mod agent_api;
pub mod alerts;
pub mod changes;
pub mod client_api;
pub mod clock;
pub mod deletion;
pub mod failure;
pub mod http;
pub mod jobs;
pub mod limits;
pub mod live;
pub mod messages;
pub mod metrics;
pub mod oidc;
pub mod outgoing;
pub mod policy;
pub mod protection;
pub mod pruning;
pub mod report;
pub mod retention;
pub mod runs;
pub mod schedule;
pub mod scheduler;
pub mod secret;
pub mod selection;
pub mod settings;
pub mod store;
pub mod throttle;
pub mod tls;
pub mod vault;
pub mod vm_status;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::clock::Clock;
use crate::http::limit::{Attempts, Buckets};
use crate::secret::Vault;
use crate::settings::Settings;
use crate::store::Db;

/// What every call needs.
#[derive(Debug)]
pub struct App {
    /// How the server runs.
    pub settings: Settings,
    /// The database.
    pub db: Db,
    /// Time.
    pub clock: Clock,
    /// What is wrapped at rest.
    pub vault: Vault,
    /// What callers are allowed.
    pub limits: RateLimits,
    /// Which agents called since that was last written down.
    pub heard: access::heard::Heard,
    /// What is known of sign-in providers.
    pub oidc: Arc<oidc::Cache>,
    /// What pages that are open listen to.
    pub live: live::Hub,
    /// Agents that wait for news.
    pub waiting: agent_api::waiting::Waiting,
    /// Where it listens.
    pub address: SocketAddr,
    /// `server_key_pins` of an enrolment.
    pub key_pins: Vec<String>,
}

/// Rate limits in memory; each instance has its own.
#[derive(Debug)]
pub struct RateLimits {
    /// Calls of an agent.
    pub agents: Buckets<i64>,
    /// Calls of an address.
    pub addresses: Buckets<IpAddr>,
    /// Enrolments of an address.
    pub enrolments: Attempts<IpAddr>,
    /// Failed logins, by address or account.
    pub logins: Attempts<String>,
}

impl App {
    /// The address that agents and browsers use, without a path; never what a caller says (1.2).
    pub fn public_url(&self) -> String {
        match &self.settings.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None if self.address.ip().is_unspecified() => format!("https://localhost:{}", self.address.port()),
            None => format!("https://{}", self.address),
        }
    }

    /// `api_base_url` of an enrolment.
    pub fn api_base_url(&self) -> String {
        format!("{}/api", self.public_url())
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// What its calls use.
    pub app: Arc<App>,
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// Its certificate.
    pub certificate_pem: String,
    /// The link that makes the first account, where there is none.
    pub setup_link: Option<String>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Opens the database, brought up to date, and the key of the stored secrets.
pub async fn open_store(data: &Path, database: Option<&str>) -> Result<(Db, Vault)> {
    fs::create_dir_all(data).with_context(|| format!("make the data folder {}", data.display()))?;
    let address = match database {
        Some(address) => address.to_owned(),
        None => format!("sqlite:{}", data.join("e3-server.sqlite").display()),
    };
    Ok((Db::open(&address).await?, Vault::open(&data.join("secrets.key"))?))
}

/// Starts a server; it serves when this returns.
pub async fn start(settings: Settings) -> Result<Server> {
    let (db, vault) = open_store(&settings.data, settings.database.as_deref()).await?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = settings.public_url.as_ref().and_then(|url| url::Url::parse(url).ok()?.host_str().map(str::to_owned));
    names.extend(host);
    let identity = tls::identity(&settings.data, &names)?;
    let tcp = TcpListener::bind(settings.listen).await.with_context(|| format!("listen on {}", settings.listen))?;
    let listener = tls::TlsListener::new(tcp, identity.config.clone()).context("listen")?;
    let address = axum::serve::Listener::local_addr(&listener).context("find the own address")?;

    let rates = settings.rates;
    let app = Arc::new(App {
        clock: settings.clock.clone(),
        limits: RateLimits {
            agents: Buckets::new(rates.agent),
            addresses: Buckets::new(rates.address),
            enrolments: Attempts::new(rates.enrolments_per_minute),
            logins: Attempts::new(rates.failed_logins),
        },
        oidc: Arc::new(oidc::Cache::new(outgoing::Reach {
            roots_pem: settings.sign_in_roots_pem.clone(),
            ..outgoing::Reach::new(settings.allow_private_sign_in, "--allow-private-sign-in")
        })),
        live: live::Hub::default(),
        waiting: agent_api::waiting::Waiting::default(),
        settings,
        db,
        vault,
        heard: access::heard::Heard::default(),
        address,
        key_pins: identity.key_pin.into_iter().collect(),
    });
    let setup_link = client_api::setup::offer(&app).await.map_err(describe)?;

    let (stop, stopped) = watch::channel(false);
    let service = http::router(app.clone()).into_make_service_with_connect_info::<http::Peer>();
    let mut until = stopped.clone();
    let serve = tokio::spawn(async move {
        let wait = async move { drop(until.wait_for(|stop| *stop).await) };
        if let Err(failed) = axum::serve(listener, service).with_graceful_shutdown(wait).await {
            error!("serving ended: {failed}");
        }
    });
    let work = tokio::spawn(scheduler::run(app.clone(), stopped.clone()));
    let watch = tokio::spawn(live::run(app.clone(), stopped.clone()));
    let tell = tokio::spawn(agent_api::waiting::run(app.clone(), stopped.clone()));
    let post = tokio::spawn(alerts::outbox::run(app.clone(), stopped));
    info!(%address, "serving");
    Ok(Server {
        app,
        fingerprint: identity.fingerprint,
        certificate_pem: identity.certificate_pem,
        setup_link,
        stop,
        tasks: vec![serve, work, watch, tell, post],
    })
}

/// A failure of a call, for people at a terminal.
pub(crate) fn describe(failure: failure::Failure) -> anyhow::Error {
    anyhow::anyhow!("{}: {:?}", failure.message, failure.cause)
}

impl Server {
    /// Lets calls in progress end, at most two seconds, and stops.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        for task in self.tasks {
            let abort = task.abort_handle();
            if tokio::time::timeout(std::time::Duration::from_secs(2), task).await.is_err() {
                abort.abort();
            }
        }
        self.app.db.close().await;
    }

    /// Where it can be reached on this machine.
    pub fn address(&self) -> SocketAddr {
        self.app.address
    }
}

/// Bytes in hexadecimal, lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
