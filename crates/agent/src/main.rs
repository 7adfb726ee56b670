//! `e3-backup-agent`: the operator's command line.
//!
//! It backs up Hyper-V virtual machines into a repository in Kopia's format and brings their disks back, without any
//! server. Arguments are in `cli.rs`; every command is a function in `commands/`, which gets a [`context::Context`]
//! (flags, environment and configuration, already weighed) and answers with an [`outcome::Outcome`] or a
//! [`failure::Failure`].
//!
//! Results go to standard output, everything else to standard error. Which error ends with which exit code, and what
//! a person is told to do about it, is one table in `failure.rs`.

mod batch;
mod cli;
mod commands;
mod completion;
mod config;
mod confirm;
mod context;
mod failure;
mod host;
mod instant;
mod interrupt;
mod lab_hooks;
mod limits;
mod managed;
mod outcome;
mod output;
mod password;
mod progress;
mod restores;
mod service;
mod serving;
mod topics;
mod units;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_appender::rolling::{RollingFileAppender, Rotation};

use crate::cli::{Cli, Command, ServiceCommand};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::outcome::Outcome;

fn main() -> ExitCode {
    completion::answer_the_shell();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    output::set_color(cli.global.color);
    let is_service = matches!(cli.command, Command::Service(ServiceCommand::Main));
    start_tracing(cli.global.verbose, is_service);
    let json = cli.global.json;
    let verbose = cli.global.verbose > 0;
    match run(cli) {
        Ok(outcome) => ExitCode::from(outcome.exit),
        Err(failure) => {
            failure.report(json, verbose);
            ExitCode::from(failure.exit())
        }
    }
}

fn run(cli: Cli) -> Result<Outcome, Failure> {
    let Cli { global, command } = cli;
    // These need no configuration, and must work when it is broken.
    let command = match command {
        Command::Version => return commands::about::version(&global),
        Command::Completion { shell } => return commands::about::completion(shell),
        Command::Help { topic } => return topics::help(&topic),
        // The running agent reads it itself, and again when asked.
        Command::Man { dir } => return commands::about::man(&global, &dir),
        Command::Config(command) => return commands::config::run(global, &command),
        Command::Enroll(arguments) => return managed::enroll(global, &arguments),
        Command::Run => return service::run_in_foreground(&global),
        Command::Service(command) => return service::run(&global, &command),
        command => command,
    };
    let context = Context::new(global)?;
    match command {
        Command::Repo(command) => commands::repo::run(&context, command),
        Command::Lab(command) => commands::lab::run(&context, command),
        Command::Vm(command) => commands::vm::run(&context, command),
        Command::Host(command) => commands::host::run(&context, &command),
        Command::Audit(arguments) => commands::audit::run(&context, &arguments),
        Command::Backup(arguments) => commands::backup::run(&context, &arguments),
        Command::Points(command) => commands::points::run(&context, command),
        Command::Retention(command) => commands::retention::run(&context, command),
        Command::Restore(command) => commands::restore::run(&context, command),
        Command::Serve(command) => commands::serve::run(&context, command),
        Command::Instant(command) => commands::instant::run(&context, command),
        Command::Verify(arguments) => commands::verify::run(&context, &arguments),
        Command::Snapshot(command) => commands::snapshot::run(&context, command),
        Command::Status => commands::status::run(&context),
        Command::Vhd(command) => commands::vhd::run(&context, command),
        Command::Version
        | Command::Completion { .. }
        | Command::Help { .. }
        | Command::Man { .. }
        | Command::Config(_)
        | Command::Enroll(_)
        | Command::Run
        | Command::Service(_) => unreachable!("answered above"),
    }
}

/// Help that was asked for goes to standard output; mistakes go to standard error, and with `--json` as an object to
/// standard output.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let why = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Failure::new("read the command line", "", Code::Usage, why).report(true, false);
    } else {
        // A closed pipe behind `--help` is nobody's problem.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Traces go to standard error, those of a service to files; `E3_LOG` takes a filter such as `info` or `backup=debug`.
fn start_tracing(verbose: u8, is_service: bool) {
    let filter = std::env::var("E3_LOG").ok().filter(|filter| !filter.is_empty()).unwrap_or_else(|| {
        match verbose {
            0 if !is_service => "error",
            0 | 1 => "info",
            2 => "debug",
            _ => "trace",
        }
        .to_owned()
    });
    let subscriber = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::new(filter));
    if is_service && let Ok(files) = log_files() {
        return subscriber.with_writer(files).with_ansi(false).init();
    }
    subscriber.with_writer(std::io::stderr).with_ansi(output::is_colored()).init();
}

/// A file a day beside the service's journals, for two weeks.
fn log_files() -> Result<RollingFileAppender, tracing_appender::rolling::InitError> {
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("agent")
        .filename_suffix("log")
        .max_log_files(14)
        .build(config::machine_folder().join("log"))
}
