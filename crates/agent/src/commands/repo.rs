//! `repo create`, `repo connect`, `repo status`, `repo change-password`.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use bucket::{Location, LockMode, S3Environment};
use kopia_repo::{CreateOptions, Description, PasswordChange, Repository};
use serde_json::{Value, json};

use super::kit::{self, Kit, from_anywhere};
use crate::cli::{LockModeArg, RepoCommand};
use crate::config::Config;
use crate::context::{Context, absolute, client, storage};
use crate::failure::{Attempt as _, Code, Failure};
use crate::outcome::Outcome;
use crate::output::{json_document, line, note};
use crate::password;
use crate::units::size;

/// Where the probe of a new store puts its objects; they are removed again.
const PROBE_PREFIX: &str = "e3-probe-";
/// Clocks that differ by more make other clients discard what is written.
const MAX_CLOCK_SKEW_SECONDS: u64 = 60;

/// `repo …`
pub fn run(context: &Context, command: RepoCommand) -> Result<Outcome, Failure> {
    match command {
        RepoCommand::Create { url, object_lock_days, mode } => {
            let lock = object_lock_days.map(|days| (days, mode.unwrap_or(LockModeArg::Governance)));
            create(context, &context.location(url.as_deref())?, lock)
        }
        RepoCommand::Connect { url } => connect(context, &context.location(url.as_deref())?),
        RepoCommand::Status { url } => status(context, &context.location(url.as_deref())?),
        RepoCommand::Kit { url, to } => kit::run(context, &context.location(url.as_deref())?, to.as_deref()),
        RepoCommand::ChangePassword { url, new_password_file } => {
            change_password(context, &context.location(url.as_deref())?, new_password_file.as_deref())
        }
    }
}

fn create(context: &Context, location: &Location, lock: Option<(u32, LockModeArg)>) -> Result<Outcome, Failure> {
    let what = "create a repository";
    let on = location.to_string();
    if lock.is_some() && matches!(location, Location::Folder(_)) {
        let why = "a folder cannot lock files against their owner";
        return Err(Failure::new(what, on, Code::StorageUnfit, why)
            .with_steps(&["leave --object-lock-days out", "use an S3 bucket with object lock"]));
    }
    let password = password::new(&context.global, &on)?;
    let bucket =
        bucket::create(location, &S3Environment::from_process(), context.retry_policy()).attempt(what, &*on)?;
    let found = bucket::probe(&*bucket, PROBE_PREFIX).attempt("try out the store", &*on)?;
    let missing = found.missing_essentials();
    if !missing.is_empty() {
        let why = format!("the store does not do what a repository needs: {}", missing.join(", "));
        return Err(Failure::new(what, on, Code::StorageUnfit, why));
    }
    if found.clock_ahead_seconds.unsigned_abs() > MAX_CLOCK_SKEW_SECONDS {
        let why = format!("the store's clock is {} s ahead of this machine's", found.clock_ahead_seconds);
        return Err(
            Failure::new(what, on, Code::StorageUnfit, why).with_steps(&["set the clock of this machine right"])
        );
    }

    let mut options = CreateOptions::new("e3");
    options.object_lock = lock.map(|(days, mode)| {
        let mode = match mode {
            LockModeArg::Governance => LockMode::Governance,
            LockModeArg::Compliance => LockMode::Compliance,
        };
        (mode, Duration::from_secs(u64::from(days) * 24 * 60 * 60))
    });
    let repo =
        Repository::create(&storage(location, bucket), &password.text, &options, client()).attempt(what, &*on)?;
    let facts = repo.describe();
    if context.global.json {
        let mut document = facts_json(&on, &facts);
        document["object_lock"] = match lock {
            Some((days, mode)) => json!({ "days": days, "mode": lock_mode_name(mode) }),
            None => Value::Null,
        };
        json_document(&document);
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(&facts.id);
    } else {
        line(&format!("created  {on}"));
        line(&format!("id       {}", facts.id));
        line(&format!("format   {}", format_text(&facts)));
        if let Some((days, mode)) = lock {
            line(&format!("lock     {days} days, {}", lock_mode_name(mode)));
        }
    }
    if password.made {
        let anywhere = from_anywhere(location, &S3Environment::from_process());
        show(&Kit { location: &anywhere, facts: &facts, password: &password.text });
    }
    if !context.global.quiet {
        note(
            "next     e3-backup-agent backup VM --host HOST     (or `lab create ./lab`: a simulated host to play with)",
        );
    }
    Ok(Outcome::DONE)
}

/// A password that was made here, and the kit with it.
fn show(kit: &Kit<'_>) {
    note("");
    note("The password of this repository. It is shown once and stored nowhere; without it the backups are lost:");
    note("");
    note(&format!("  {}", kit.password));
    note("");
    match kit.write_beside() {
        Ok(file) => note(&format!("recovery kit written to {}: print it, then delete it", file.display())),
        Err(error) => note(&format!("no recovery kit could be written here ({error}); `repo kit` makes one")),
    }
}

fn change_password(context: &Context, location: &Location, file: Option<&Path>) -> Result<Outcome, Failure> {
    let what = "change the password of the repository";
    let location = absolute(location);
    let on = location.to_string();
    let bucket = bucket::open(&location, &S3Environment::from_process(), context.retry_policy()).attempt(what, &*on)?;
    let old = password::existing(&context.global, &on)?;
    let new = password::another(&context.global, &on, file)?;
    if old == new.text {
        let why = "the new password is the old one";
        return Err(Failure::new(what, on, Code::BadPassword, why).with_steps(&["choose another one"]));
    }
    if new.made {
        // Before anything is written: cut off in the middle, nothing but the same change with it opens the repository.
        note("");
        note("The new password. Keep it before you go on; if this is cut off, change to it once more:");
        note("");
        note(&format!("  {}", new.text.as_str()));
        note("");
    }
    let found =
        Repository::change_password(&storage(&location, bucket), &old, &new.text, &client()).attempt(what, &*on)?;
    // Whatever was written, this is what counts.
    let facts = context.repository_with(&location, &new.text)?.describe();
    let is_changed = found == PasswordChange::Changed;
    if context.global.json {
        json_document(&json!({ "url": on, "id": facts.id, "changed": is_changed }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(&facts.id);
    } else {
        line(&format!("{}  {on}", if is_changed { "changed" } else { "it was the new one already" }));
    }
    if new.made {
        let anywhere = from_anywhere(&location, &S3Environment::from_process());
        show(&Kit { location: &anywhere, facts: &facts, password: &new.text });
    } else {
        note("recovery kits made before are void: `repo kit` prints a new one");
    }
    note("give the new password to every host that backs up to it, and to its server (`e3-server repo adopt`)");
    Ok(Outcome::DONE)
}

fn connect(context: &Context, location: &Location) -> Result<Outcome, Failure> {
    let location = absolute(location);
    let repo = context.repository_at(&location)?;
    let file = Config::remember_repository(context.global.config.as_deref(), &location.to_string())?;
    if context.global.json {
        json_document(&json!({ "url": location.to_string(), "id": repo.id(), "config": file.display().to_string() }));
    } else if context.global.quiet {
        line(&repo.id());
    } else {
        line(&format!("connected  {location}"));
        line(&format!("id         {}", repo.id()));
        note(&format!("the URL is in {}; the password is not: give it each time", file.display()));
    }
    Ok(Outcome::DONE)
}

fn status(context: &Context, location: &Location) -> Result<Outcome, Failure> {
    let on = location.to_string();
    let repo = context.repository_at(location)?;
    let facts = repo.describe();
    let points = backup::list_points(&repo, None).attempt("list the points", &*on)?;
    let snapshots = repo.snapshots(&[]).attempt("list the snapshots", &*on)?.len();
    let vms = points.iter().map(|point| &point.vm_id).collect::<HashSet<_>>().len();
    if context.global.json {
        let mut document = facts_json(&on, &facts);
        document["points"] = points.len().into();
        document["vms"] = vms.into();
        document["snapshots"] = snapshots.into();
        json_document(&document);
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(&facts.id);
        return Ok(Outcome::DONE);
    }
    line(&format!("repository  {on}"));
    line(&format!("id          {}", facts.id));
    line(&format!("format      {}", format_text(&facts)));
    line(&format!("packs       up to {}", size(facts.max_pack_bytes)));
    line(&format!(
        "index       version {}, epoch {}, {} blobs with {} entries",
        facts.index_version, facts.write_epoch, facts.index_blobs, facts.index_entries
    ));
    line(&format!("points      {} of {vms} VMs", points.len()));
    line(&format!("snapshots   {snapshots} (points included)"));
    Ok(Outcome::DONE)
}

fn facts_json(url: &str, facts: &Description) -> Value {
    json!({
        "url": url,
        "id": facts.id,
        "format_version": facts.format_version,
        "hash": facts.hash,
        "encryption": facts.encryption,
        "splitter": facts.splitter,
        "max_pack_bytes": facts.max_pack_bytes,
        "index_version": facts.index_version,
        "write_epoch": facts.write_epoch,
        "index_blobs": facts.index_blobs,
        "index_entries": facts.index_entries,
    })
}

pub(super) fn format_text(facts: &Description) -> String {
    format!("Kopia format {}, {}, {}", facts.format_version, facts.hash, facts.encryption)
}

fn lock_mode_name(mode: LockModeArg) -> &'static str {
    match mode {
        LockModeArg::Governance => "governance",
        LockModeArg::Compliance => "compliance",
    }
}
