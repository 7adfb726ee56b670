//! `e3-server`: the command line of the server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use server::settings::Settings;

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

    /// A proxy in front, whose X-Forwarded-For is believed; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    trusted_proxy: Vec<IpAddr>,
}

fn main() -> ExitCode {
    let Cli { command: Command::Serve(options) } = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("E3_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(serve(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: start the server");
    eprintln!("  why  {error:#}");
    ExitCode::FAILURE
}

async fn serve(options: Serve) -> anyhow::Result<()> {
    let Serve { data, listen, database, public_url, trusted_proxy } = options;
    let settings = Settings { listen, database, public_url, trusted_proxies: trusted_proxy, ..Settings::new(data) };
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
