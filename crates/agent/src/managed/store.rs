//! The repository of a run or command, by the keys that the server delivered with it (spec control-api 4.7, 4.8).
//!
//! Keys and password stay in memory, and go with the run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bucket::{Bucket as _, Credentials, Location, RetryPolicy, S3Environment, S3Location};
use control_api::repository::RepoOperation;
use control_api::run::{Destination, Run};
use hyperv::Cancel;
use kopia_repo::{CreateOptions, Repository};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::durable::write_private;
use crate::context::{Door, client, open_repository, patient, storage};
use crate::failure::{Attempt as _, Code, Failure};
use crate::lab_hooks::LabHooks;
use crate::limits::Throttles;
use crate::units::hex;

/// A blob that every repository has; whether it is there does not matter to who asks if the store answers.
const A_BLOB: &str = "kopia.repository";
/// A store that does not answer is asked again this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A repository, and what opens it.
pub struct Store {
    /// Where it lies.
    pub location: Location,
    environment: S3Environment,
    password: Zeroizing<String>,
}

/// What a command's `job_context` says of it (2.6).
#[derive(Deserialize)]
struct JobContext {
    #[serde(flatten)]
    destination: Destination,
    #[serde(default)]
    repository_password: Option<String>,
}

impl Store {
    /// That of a run.
    pub fn of_run(run: &Run, folder: &Path) -> Result<Self, Failure> {
        Self::new(&run.destination, run.repository_password.as_deref(), folder)
    }

    /// That of a command.
    pub fn of_command(context: Option<&control_api::Object>, folder: &Path) -> Result<Self, Failure> {
        let missing = |why: String| Failure::new("open the repository", "", Code::NoPassword, why);
        let context = context.ok_or_else(|| missing("the server sent no keys".into()))?;
        let context: JobContext = serde_json::from_value(context.clone().into())
            .map_err(|error| missing(format!("the server's keys cannot be read: {error}")))?;
        Self::new(&context.destination, context.repository_password.as_deref(), folder)
    }

    /// That of work on a repository: its address alone says of which kind it is.
    pub fn of_operation(operation: &RepoOperation, folder: &Path) -> Result<Self, Failure> {
        let endpoint = operation.endpoint.clone();
        let is_service = endpoint.as_ref().is_some_and(|endpoint| endpoint.contains("://"));
        let destination = Destination {
            dest_type: Some(if is_service { "s3" } else { "local" }.to_owned()),
            dest_bucket_name: operation.bucket_name.clone(),
            dest_prefix: operation.root_prefix.clone(),
            dest_endpoint: endpoint.clone().filter(|_| is_service),
            dest_region: operation.region.clone(),
            dest_path_style: None,
            dest_local_path: endpoint.filter(|_| !is_service),
            dest_access_key: operation.dest_access_key.clone(),
            dest_secret_key: operation.dest_secret_key.clone(),
            dest_session_token: None,
            dest_credentials_expire_at: None,
            ca_bundle_pem: None,
            bucket_auto_create: false,
            dest_auto_create_bucket: false,
        };
        Self::new(&destination, operation.repository_password.as_deref(), folder)
    }

    fn new(destination: &Destination, password: Option<&str>, folder: &Path) -> Result<Self, Failure> {
        let what = "open the repository";
        let wrong = |why: &str| Failure::new(what, "", Code::BadLocation, why).with_steps(&["correct the destination"]);
        let Some(password) = password else {
            let why = "the server does not have the repository's password";
            return Err(Failure::new(what, "", Code::NoPassword, why));
        };
        let prefix = destination.dest_prefix.clone().unwrap_or_default();
        let mut environment = S3Environment::default();
        let location = if destination.dest_type.as_deref() == Some("local") {
            let path = destination.dest_local_path.as_deref().filter(|path| !path.is_empty());
            let path = Path::new(path.ok_or_else(|| wrong("the destination has no folder"))?);
            Location::Folder(if prefix.is_empty() { path.to_owned() } else { path.join(prefix) })
        } else {
            let bucket = destination.dest_bucket_name.clone().filter(|bucket| !bucket.is_empty());
            environment.credentials = match (&destination.dest_access_key, &destination.dest_secret_key) {
                (Some(key), Some(secret)) => Some(Credentials {
                    access_key_id: key.clone(),
                    secret_access_key: secret.clone(),
                    session_token: destination.dest_session_token.clone(),
                }),
                _ => None,
            };
            Location::S3(S3Location {
                bucket: bucket.ok_or_else(|| wrong("the destination has no bucket"))?,
                prefix,
                endpoint: destination.dest_endpoint.clone().filter(|endpoint| !endpoint.is_empty()),
                region: destination.dest_region.clone().filter(|region| !region.is_empty()),
                path_style: match destination.dest_path_style.as_deref() {
                    Some("path") => Some(true),
                    Some("virtual") => Some(false),
                    _ => None,
                },
                ca_file: authority(destination.ca_bundle_pem.as_deref(), folder)?,
            })
        };
        Ok(Self { location, environment, password: Zeroizing::new(password.to_owned()) })
    }

    /// Waits, as long as a backup would, until the store answers at all; a request to stop is seen within seconds.
    pub fn wait_until_reached(&self, cancel: &Cancel) -> Result<(), Failure> {
        let what = "reach the repository's store";
        let on = self.location.to_string();
        let begun = Instant::now();
        let policy = RetryPolicy { give_up_after: LOOK_EVERY, ..RetryPolicy::default() };
        loop {
            let bucket = bucket::open(&self.location, &self.environment, policy);
            let answer =
                bucket.attempt(what, &*on).and_then(|bucket| bucket.head(A_BLOB).map(drop).attempt(what, &*on));
            let may_wait = begun.elapsed() < patient().give_up_after;
            match answer {
                Err(failure) if failure.code() == Code::StorageUnreachable && may_wait => {}
                // Whatever else there is to say of the store, who opens the repository says.
                _ => return Ok(()),
            }
            let pause = Instant::now();
            while pause.elapsed() < LOOK_EVERY {
                if cancel.is_cancelled() {
                    return Err(Failure::new(what, on, Code::Interrupted, "stopped on request"));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Opens it.
    pub fn open(&self, hooks: Option<&LabHooks>, throttles: &Throttles) -> Result<Arc<Repository>, Failure> {
        let password = || Ok(self.password.clone());
        let door = Door { environment: &self.environment, password: &password, policy: patient() };
        open_repository(&self.location, &door, hooks, throttles)
    }

    /// Opens it; the first backup into a destination makes it. Whoever comes second opens what the first made.
    pub fn open_or_make(&self, hooks: Option<&LabHooks>, throttles: &Throttles) -> Result<Arc<Repository>, Failure> {
        if let Location::Folder(path) = &self.location {
            std::fs::create_dir_all(path).attempt("make the repository's folder", path.display().to_string())?;
        }
        match self.open(hooks, throttles) {
            Err(failure) if failure.code() == Code::NoRepository => {}
            other => return other,
        }
        let what = "create the repository";
        let on = self.location.to_string();
        let bucket = bucket::create(&self.location, &self.environment, patient()).attempt(what, &*on)?;
        let made =
            Repository::create(&storage(&self.location, bucket), &self.password, &CreateOptions::new("e3"), client());
        match made.attempt(what, on) {
            Err(failure) if failure.code() != Code::RepositoryExists => Err(failure),
            _ => self.open(hooks, throttles),
        }
    }
}

/// A file with the certificates to trust: it is no secret, and its name follows from what it holds.
fn authority(pem: Option<&str>, folder: &Path) -> Result<Option<std::path::PathBuf>, Failure> {
    let Some(pem) = pem.filter(|pem| !pem.trim().is_empty()) else { return Ok(None) };
    let digest = Sha256::digest(pem.as_bytes());
    let path = folder.join(format!("ca-{}.pem", hex(&digest[..8])));
    if !path.is_file() {
        write_private(&path, pem.as_bytes()).attempt("keep the store's certificates", path.display().to_string())?;
    }
    Ok(Some(path))
}
