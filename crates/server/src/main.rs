//! `e3-server`: the command line of the server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use server::adopt;
use server::settings::{Mail, Settings};

/// The control plane of e3: jobs, schedules, agents and what is safe.
#[derive(Debug, Parser)]
#[command(name = "e3-server", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until stopped. Works without any setting.
    Serve(Serve),
    /// What the database knows of repositories
    #[command(subcommand)]
    Repo(Repo),
}

#[derive(Debug, Subcommand)]
enum Repo {
    /// Read every point of a repository into the database: after the server was lost, or coming from the command line.
    ///
    /// Keys of S3 come from the environment, as for the agent: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Doing it again
    /// changes only what differs.
    Adopt(Adopt),
}

#[derive(Debug, Args)]
struct Adopt {
    /// Where the repository lies: a folder, or s3://BUCKET/PREFIX/?endpoint=URL
    #[arg(value_name = "URL")]
    url: String,

    /// The server's data folder.
    #[arg(long, env = "E3_SERVER_DATA", default_value = "e3-server-data", value_name = "FOLDER")]
    data: PathBuf,

    /// The server's database, where it is not SQLite in the data folder.
    #[arg(long, env = "E3_SERVER_DATABASE", hide_env_values = true, value_name = "ADDRESS")]
    database: Option<String>,

    /// File that holds the repository password (or set E3_PASSWORD)
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Into whose catalogue; not needed while there is one client at most.
    #[arg(long, value_name = "ID")]
    client: Option<i64>,

    /// Into which of that client's tenants.
    #[arg(long, value_name = "SLUG")]
    tenant: Option<String>,

    /// What to call the destination.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Serve {
    /// Where the database, the certificate and the key of the stored secrets are kept.
    #[arg(long, env = "E3_SERVER_DATA", default_value = "e3-server-data", value_name = "FOLDER")]
    data: PathBuf,

    /// Where to listen.
    #[arg(long, env = "E3_SERVER_LISTEN", default_value = "[::]:8443", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// A database that several servers share, `mysql://USER:PASSWORD@HOST:PORT/NAME`; without it, SQLite in the data folder.
    #[arg(long, env = "E3_SERVER_DATABASE", hide_env_values = true, value_name = "ADDRESS")]
    database: Option<String>,

    #[arg(
        long,
        env = "E3_SERVER_PUBLIC_URL",
        value_name = "URL",
        help = "The address that agents and browsers use, for example https://backup.example.com"
    )]
    public_url: Option<String>,

    /// Lets agents be enrolled with a person's password; without it by token or code only.
    #[arg(long)]
    agent_password_login: bool,

    /// Lets people sign in at providers in private networks, and on this machine.
    #[arg(long)]
    allow_private_sign_in: bool,

    /// Lets this server try endpoints in private networks for tenants, and for clients where there are several.
    #[arg(long)]
    allow_private_endpoints: bool,

    /// How logs are written: for people, or one JSON object a line.
    #[arg(long, env = "E3_SERVER_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,

    /// How mail is sent, `smtps://USER:PASSWORD@HOST` or `smtp://HOST:587?tls=required`; needs --mail-from.
    #[arg(long, env = "E3_SERVER_MAIL_RELAY", hide_env_values = true, value_name = "URL", requires = "mail_from")]
    mail_relay: Option<String>,

    /// Who sends mail, for example "e3 <backup@example.com>".
    #[arg(long, env = "E3_SERVER_MAIL_FROM", value_name = "ADDRESS")]
    mail_from: Option<String>,

    /// Lets webhooks go to private and link-local addresses.
    #[arg(long)]
    allow_private_webhooks: bool,

    /// A file of certificates (PEM) that receivers of webhooks may have, instead of the public ones.
    #[arg(long, value_name = "FILE")]
    webhook_roots: Option<PathBuf>,

    /// A file of certificates (PEM) that sign-in providers may have, instead of the public ones.
    #[arg(long, value_name = "FILE")]
    sign_in_roots: Option<PathBuf>,

    /// A proxy in front, whose X-Forwarded-For is believed; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    trusted_proxy: Vec<IpAddr>,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("E3_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let format = match &command {
        Command::Serve(options) => options.log_format,
        Command::Repo(_) => LogFormat::Text,
    };
    match format {
        LogFormat::Text => log.with_ansi(is_terminal).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("start the server", &error.into()),
    };
    let (what, done) = match command {
        Command::Serve(options) => ("start the server", runtime.block_on(serve(options))),
        Command::Repo(Repo::Adopt(options)) => ("adopt the repository", runtime.block_on(adopt(options))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(what, &error),
    }
}

fn failed(what: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {what}");
    eprintln!("  why  {error:#}");
    ExitCode::FAILURE
}

async fn adopt(options: Adopt) -> anyhow::Result<()> {
    let location = bucket::parse_url(&options.url)?;
    let location = match location {
        // The database keeps the place, and knows nothing of this program's folder.
        bucket::Location::Folder(path) => bucket::Location::Folder(std::path::absolute(&path)?),
        other => other,
    };
    let password = match &options.password_file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("read the password file {}", path.display()))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
        None => std::env::var("E3_PASSWORD").context("no password: give --password-file FILE or set E3_PASSWORD")?,
    };
    let (db, vault) = server::open_store(&options.data, options.database.as_deref()).await?;
    let environment = bucket::S3Environment::from_process();
    let key = password.clone();
    let found = tokio::task::spawn_blocking(move || adopt::read(location, environment, &key)).await??;
    let into = adopt::Into { client: options.client, tenant: options.tenant, name: options.name };
    let adopted = adopt::adopt(&db, &vault, &found, &password, &into, server::clock::Clock::default().now()).await?;
    db.close().await;
    println!("{}: {} points of {} VMs", found.location, adopted.points, adopted.vms);
    println!("  new          {}", adopted.new_points);
    println!("  not there    {} rows whose point is gone", adopted.gone);
    println!("  jobs         one for each of {}; give it an agent and activate it to go on", adopted.hosts.join(", "));
    for (point, why) in &found.unreadable {
        println!("  left out     point {point}: {why}");
    }
    Ok(())
}

async fn serve(options: Serve) -> anyhow::Result<()> {
    let mail = options.mail_relay.zip(options.mail_from).map(|(relay, from)| Mail { relay, from });
    if let Some(mail) = &mail {
        server::alerts::mail::check(mail).map_err(|why| anyhow::anyhow!("--mail-relay and --mail-from: {why}"))?;
    }
    let roots = |option: &str, path: Option<PathBuf>| {
        let read =
            |path: PathBuf| std::fs::read_to_string(&path).with_context(|| format!("read {option} {}", path.display()));
        path.map(read).transpose()
    };
    let settings = Settings {
        listen: options.listen,
        database: options.database,
        public_url: options.public_url,
        trusted_proxies: options.trusted_proxy,
        agent_password_login: options.agent_password_login,
        allow_private_endpoints: options.allow_private_endpoints,
        allow_private_sign_in: options.allow_private_sign_in,
        mail,
        allow_private_webhooks: options.allow_private_webhooks,
        webhook_roots_pem: roots("--webhook-roots", options.webhook_roots)?,
        sign_in_roots_pem: roots("--sign-in-roots", options.sign_in_roots)?,
        ..Settings::new(options.data)
    };
    let server = server::start(settings).await?;
    println!("e3-server {}", env!("CARGO_PKG_VERSION"));
    println!("  address      {}", server.app.public_url());
    println!("  fingerprint  {} (SHA-256 of the certificate)", server.fingerprint);
    if let Some(link) = &server.setup_link {
        println!("  set-up link  {link}");
        println!("               makes the first account; good once, for a day");
    }
    println!("Stop with Ctrl-C.");
    stop_asked().await?;
    println!("stopping");
    server.stop().await;
    Ok(())
}

/// Ctrl-C, or what a service manager sends.
async fn stop_asked() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = tokio::signal::ctrl_c() => done,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}
