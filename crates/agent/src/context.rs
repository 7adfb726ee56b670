//! What every command is given: flags, environment and configuration, weighed against each other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bucket::{Bucket, Location, RetryPolicy, S3Environment};
use jiff::Timestamp;
use kopia_repo::{ClientOptions, Repository, Storage, StorageKind};
use zeroize::Zeroizing;

use crate::cli::Global;
use crate::config::Config;
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::lab_hooks::LabHooks;
use crate::limits::{Limits, Throttles};
use crate::password;
use crate::service::Job;
use crate::units;

/// Name and version, as points and session markers carry it.
pub const PROGRAM: &str = concat!("e3-backup-agent ", env!("CARGO_PKG_VERSION"));

/// How long a backup asks a store that does not answer: its work so far is lost if it gives up.
const PATIENCE_OF_BACKUPS: Duration = Duration::from_secs(30 * 60);

/// How long a read that a guest waits for may ask a store that does not answer.
const PATIENCE_OF_GUESTS: Duration = Duration::from_secs(25);

/// Flags, environment and configuration.
pub struct Context {
    /// The flags.
    pub global: Global,
    config: Config,
}

impl Context {
    /// Reads the configuration.
    pub fn new(mut global: Global) -> Result<Self, Failure> {
        let config = Config::load(global.config.as_deref())?;
        if global.password_file.is_none() && !password::is_in_environment() {
            global.password_file.clone_from(&config.password_file);
        }
        Ok(Self { global, config })
    }

    /// The jobs of the configuration.
    pub fn jobs(&self) -> &[Job] {
        &self.config.jobs
    }

    /// The repository's location: `given` as an argument, or by flag, environment or configuration.
    pub fn location(&self, given: Option<&str>) -> Result<Location, Failure> {
        let Some(url) = given.or(self.global.repo.as_deref()).or(self.config.repository.as_deref()) else {
            return Err(Failure::new("find the repository", "", Code::Usage, "no repository was named").with_steps(&[
                "give --repo URL",
                "set E3_REPOSITORY",
                "run `repo connect URL` once",
            ]));
        };
        bucket::parse_url(url).attempt("read the repository's URL", "")
    }

    /// What the configuration limits, with what the flags say.
    pub fn limits(&self) -> Limits {
        let mut limits = self.config.limits.clone();
        if let Some(rate) = self.global.limit {
            limits.set_upload(rate);
        }
        limits
    }

    /// Opens the repository for a command.
    pub fn repository(&self) -> Result<Arc<Repository>, Failure> {
        self.repository_at(&self.location(None)?)
    }

    /// Opens the repository for disks that guests run on: what they ask is answered within half a minute, at the worst
    /// by saying that it is not there now (spec block-serving B.12).
    pub fn repository_for_serving(&self) -> Result<Arc<Repository>, Failure> {
        let policy =
            RetryPolicy { give_up_after: self.global.timeout.unwrap_or(PATIENCE_OF_GUESTS), ..RetryPolicy::default() };
        self.open_repository(&self.location(None)?, None, &Throttles::new(&self.limits()), policy)
    }

    /// Opens a repository for backups.
    pub fn repository_for_backups(
        &self,
        location: &Location,
        hooks: Option<&LabHooks>,
        throttles: &Throttles,
    ) -> Result<Arc<Repository>, Failure> {
        let policy =
            RetryPolicy { give_up_after: self.global.timeout.unwrap_or(PATIENCE_OF_BACKUPS), ..RetryPolicy::default() };
        self.open_repository(location, hooks, throttles, policy)
    }

    /// Opens the repository at `location` for a command.
    pub fn repository_at(&self, location: &Location) -> Result<Arc<Repository>, Failure> {
        self.open_repository(location, None, &Throttles::new(&self.limits()), self.retry_policy())
    }

    /// The same with a password at hand.
    pub fn repository_with(
        &self,
        location: &Location,
        password: &Zeroizing<String>,
    ) -> Result<Arc<Repository>, Failure> {
        let known = || Ok(password.clone());
        let door = Door { environment: &S3Environment::from_process(), password: &known, policy: self.retry_policy() };
        open_repository(location, &door, None, &Throttles::new(&self.limits()))
    }

    /// `hooks` of crash tests go around the store.
    fn open_repository(
        &self,
        location: &Location,
        hooks: Option<&LabHooks>,
        throttles: &Throttles,
        policy: RetryPolicy,
    ) -> Result<Arc<Repository>, Failure> {
        let ask = || password::existing(&self.global, &location.to_string());
        let door = Door { environment: &S3Environment::from_process(), password: &ask, policy };
        open_repository(location, &door, hooks, throttles)
    }

    /// How long a store that does not answer is asked again.
    pub fn retry_policy(&self) -> RetryPolicy {
        let default = RetryPolicy::default();
        RetryPolicy { give_up_after: self.global.timeout.unwrap_or(default.give_up_after), ..default }
    }

    /// Opens the host.
    pub fn host(&self) -> Result<OpenHost, Failure> {
        OpenHost::open(self.host_selector()?)
    }

    /// The host's name for `--host`.
    pub fn host_selector(&self) -> Result<&str, Failure> {
        self.global.host.as_deref().or(self.config.host.as_deref()).ok_or_else(|| {
            Failure::new("find the host", "", Code::Usage, "no host was named").with_steps(&[
                "give --host local|lab:DIR",
                "set E3_HOST",
                "put `host` into the configuration",
            ])
        })
    }

    /// A time for people.
    pub fn time(&self, at: Timestamp) -> String {
        units::time(at, self.global.utc)
    }
}

/// What opens a repository.
pub struct Door<'a> {
    /// Keys of the store.
    pub environment: &'a S3Environment,
    /// Gives the repository's password, once the store was found.
    pub password: &'a dyn Fn() -> Result<Zeroizing<String>, Failure>,
    /// How long a store that does not answer is asked again.
    pub policy: RetryPolicy,
}

/// For work that is lost when it gives up.
pub fn patient() -> RetryPolicy {
    RetryPolicy { give_up_after: PATIENCE_OF_BACKUPS, ..RetryPolicy::default() }
}

/// Opens a repository; `hooks` of crash tests go around the store.
pub fn open_repository(
    location: &Location,
    door: &Door<'_>,
    hooks: Option<&LabHooks>,
    throttles: &Throttles,
) -> Result<Arc<Repository>, Failure> {
    let what = "open the repository";
    let on = location.to_string();
    let bucket = bucket::open(location, door.environment, door.policy).attempt(what, &*on)?;
    let bucket = throttles.wrap(match hooks {
        Some(hooks) => hooks.wrap_bucket(bucket),
        None => bucket,
    });
    Repository::open(&storage(location, bucket), &(door.password)()?, client()).attempt(what, on)
}

/// How Kopia treats the store.
pub fn storage(location: &Location, bucket: Arc<dyn Bucket>) -> Storage {
    let kind = match location {
        Location::Folder(_) => StorageKind::Folder,
        Location::S3(_) => StorageKind::ObjectStore,
    };
    Storage { bucket, kind }
}

/// Who this program is to others in the repository.
pub fn client() -> ClientOptions {
    ClientOptions::new("e3", machine_name())
}

#[cfg(unix)]
fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn machine_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "localhost".into())
}

/// A location that still means the same from another folder.
pub fn absolute(location: &Location) -> Location {
    match location {
        Location::Folder(path) => {
            Location::Folder(std::path::absolute(Path::new(path)).unwrap_or_else(|_| path.to_owned()))
        }
        Location::S3(_) => location.clone(),
    }
}
