//! `config show`, `config check`.

use bucket::{Location, S3Environment};
use serde_json::{Value, json};

use crate::cli::{ConfigCommand, Global};
use crate::config::{Config, Layer};
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line};
use crate::password;
use crate::service;
use crate::units::duration;

/// `config …`
pub fn run(global: Global, command: &ConfigCommand) -> Result<Outcome, Failure> {
    match command {
        ConfigCommand::Show { origin } => show(&global, *origin),
        ConfigCommand::Check => check(global),
    }
}

/// A value that counts, and where it is from.
struct Effective {
    key: String,
    value: Value,
    origin: &'static str,
    /// The flag, variable or file; empty for what is built in.
    place: String,
}

fn show(global: &Global, with_origin: bool) -> Result<Outcome, Failure> {
    let values = effective(global, &Config::layers(global.config.as_deref())?);
    if global.json {
        let values: Vec<Value> = values
            .iter()
            .map(|one| json!({ "key": one.key, "value": one.value, "origin": one.origin, "place": one.place }))
            .collect();
        json_document(&json!({ "values": values }));
        return Ok(Outcome::DONE);
    }
    let mut columns = vec![("KEY", Align::Left), ("VALUE", Align::Left)];
    if with_origin {
        columns.push(("ORIGIN", Align::Left));
    }
    let mut table = Table::new(&columns);
    for one in values {
        let value = match &one.value {
            Value::Null => "–".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut row = vec![one.key, value];
        if with_origin {
            row.push(format!("{}   {}", one.origin, one.place).trim_end().to_owned());
        }
        table.row(row);
    }
    table.print();
    Ok(Outcome::DONE)
}

fn effective(global: &Global, layers: &[Layer]) -> Vec<Effective> {
    let mut values = Vec::new();
    let mut add = |key: &str, found: Option<(Value, &'static str, String)>, built_in: Value| {
        let (value, origin, place) = found.unwrap_or((built_in, "built-in", String::new()));
        values.push(Effective { key: key.to_owned(), value, origin, place });
    };
    let of_files = |get: &dyn Fn(&Config) -> Option<Value>| {
        layers.iter().find_map(|layer| Some((get(&layer.config)?, layer.origin, layer.path.display().to_string())))
    };
    let repository = global.repo.as_deref().map(|url| (location_text(url), "E3_REPOSITORY", "--repo"));
    let host = global.host.as_deref().map(|host| (json!(host), "E3_HOST", "--host"));
    let of_command = |given: Option<(Value, &str, &str)>| {
        let (value, variable, flag) = given?;
        Some(match is_flag_given(flag) {
            true => (value, "flag", flag.to_owned()),
            false => (value, "environment", variable.to_owned()),
        })
    };
    add(
        "repository",
        of_command(repository).or_else(|| of_files(&|config| config.repository.as_deref().map(location_text))),
        Value::Null,
    );
    add(
        "host",
        of_command(host).or_else(|| of_files(&|config| config.host.as_ref().map(|host| json!(host)))),
        Value::Null,
    );
    let password = match &global.password_file {
        Some(_) => Some((json!("set"), "flag", "--password-file".to_owned())),
        None if password::is_in_environment() => Some((json!("set"), "environment", "E3_PASSWORD".to_owned())),
        None => {
            of_files(&|config| config.password_file.as_ref().map(|file| json!(format!("set ({})", file.display()))))
        }
    };
    add("password", password, Value::Null);
    let keys = S3Environment::from_process().credentials.map(|_| match std::env::var("AWS_SECRET_ACCESS_KEY") {
        Ok(key) if !key.trim().is_empty() => (json!("set"), "environment", "AWS_SECRET_ACCESS_KEY".to_owned()),
        _ => (json!("set"), "user file", "the AWS credentials file".to_owned()),
    });
    add("s3_keys", keys, Value::Null);
    let timeout = global.timeout.map(|time| (json!(duration(time)), "flag", "--timeout".to_owned()));
    add("timeout", timeout, json!("5 min, for backups 30 min"));

    // The limits of one file replace those of the other as a whole.
    let limits = layers.iter().find(|layer| layer.config.limits != crate::limits::Limits::default());
    let stored = limits.map_or(Value::Null, |layer| json!(layer.config.limits));
    let defaults = crate::limits::Limits::default();
    for (name, built_in) in [
        ("upload", Value::Null),
        ("download", Value::Null),
        ("read", Value::Null),
        ("read_latency", Value::Null),
        ("vms_at_once", json!(defaults.vms_at_once())),
        ("disks_at_once", json!(defaults.disks_at_once())),
        ("window", Value::Null),
    ] {
        let of_file = || {
            let layer = limits?;
            Some((stored.get(name)?.clone(), layer.origin, layer.path.display().to_string()))
        };
        let of_flag = global.limit.filter(|_| name == "upload");
        let found = of_flag.map(|rate| (json!(rate), "flag", "--limit".to_owned())).or_else(of_file);
        add(&format!("limits.{name}"), found, built_in);
    }
    // So are the jobs.
    if let Some(layer) = layers.iter().find(|layer| !layer.config.jobs.is_empty()) {
        for job in &layer.config.jobs {
            let place = layer.path.display().to_string();
            add(&format!("job.{}", job.name), Some((json!(job.schedule()), layer.origin, place)), Value::Null);
        }
    }
    values
}

/// A URL that is none may hold keys: it is not shown.
fn location_text(url: &str) -> Value {
    match bucket::parse_url(url) {
        Ok(location) => json!(location.to_string()),
        Err(error) => json!(format!("set, but no location: {error}")),
    }
}

/// Whether the command line has it: what clap read may also be from the environment.
fn is_flag_given(flag: &str) -> bool {
    std::env::args_os().any(|argument| {
        let argument = argument.to_string_lossy();
        argument == flag || argument.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
    })
}

/// What a start of the agent would say.
fn check(global: Global) -> Result<Outcome, Failure> {
    service::check_configuration(&global)?;
    let context = Context::new(global)?;
    let what = "check the configuration";
    let location = context.location(None)?;
    let host = context.host_selector()?;
    crate::host::state_dir(host)?;
    if !password::is_given(&context.global)? {
        let why = "no password is given, and a job can ask nobody";
        return Err(Failure::new(what, location.to_string(), Code::NoPassword, why).with_steps(&[
            "put `password_file` into the configuration",
            "give --password-file FILE",
            "set E3_PASSWORD",
        ]));
    }
    if matches!(location, Location::S3(_)) && S3Environment::from_process().credentials.is_none() {
        let why = "the repository is on S3, and no access keys are given";
        return Err(Failure::new(what, location.to_string(), Code::BadLocation, why)
            .with_steps(&["set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "write ~/.aws/credentials"]));
    }
    let jobs: Vec<Value> =
        context.jobs().iter().map(|job| json!({ "name": job.name, "schedule": job.schedule() })).collect();
    if context.global.json {
        json_document(&json!({ "repository": location.to_string(), "host": host, "jobs": jobs }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        return Ok(Outcome::DONE);
    }
    line(&format!("repository  {location}"));
    line(&format!("host        {host}"));
    for job in context.jobs() {
        line(&crate::units::visible(&format!("job         {} {}", job.name, job.schedule())));
    }
    line("a start would find nothing wrong; nothing was opened");
    Ok(Outcome::DONE)
}
