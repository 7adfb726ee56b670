//! The configuration files: what is not said by a flag or the environment.
//!
//! Precedence: flag, environment, the user's file, the machine's file. Passwords and keys are never in them, only the
//! path of a file that holds the password.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Attempt as _, Code, Failure};
use crate::limits::Limits;
use crate::service::Job;

/// What a file can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Repository URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Host, as for `--host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// File that holds the repository password, as for `--password-file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// How fast it may be. The user's replace the machine's as a whole.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// What the running agent does by itself. One file's jobs replace the other's as a whole.
    #[serde(rename = "job", default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<Job>,
}

/// One of the files.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Whose it is, in words.
    pub origin: &'static str,
    /// Where it is, or would be; empty without a home folder.
    pub path: PathBuf,
    /// What it says.
    pub config: Config,
}

fn is_default(limits: &Limits) -> bool {
    *limits == Limits::default()
}

impl Config {
    /// Reads the user's file (or `given`) over the machine's.
    pub fn load(given: Option<&Path>) -> Result<Self, Failure> {
        let mut layers = Self::layers(given)?.into_iter().map(|layer| layer.config);
        let (user, machine) = (layers.next().unwrap_or_default(), layers.next().unwrap_or_default());
        Ok(Self {
            repository: user.repository.or(machine.repository),
            host: user.host.or(machine.host),
            password_file: user.password_file.or(machine.password_file),
            limits: if user.limits == Limits::default() { machine.limits } else { user.limits },
            jobs: if user.jobs.is_empty() { machine.jobs } else { user.jobs },
        })
    }

    /// The user's file (or `given`), then the machine's; one that is missing says nothing.
    pub fn layers(given: Option<&Path>) -> Result<[Layer; 2], Failure> {
        let user = user_file(given).unwrap_or_default();
        let config = if user.as_os_str().is_empty() { Self::default() } else { Self::read(&user)? };
        let machine = machine_file();
        let of_machine = Self::read(&machine)?;
        Ok([
            Layer { origin: "user file", path: user, config },
            Layer { origin: "machine file", path: machine, config: of_machine },
        ])
    }

    /// Remembers a repository in the user's file (or `given`); gives the file.
    pub fn remember_repository(given: Option<&Path>, url: &str) -> Result<PathBuf, Failure> {
        let what = "remember the repository";
        let Some(path) = user_file(given) else {
            let why = "no home folder is known (HOME and XDG_CONFIG_HOME are not set)";
            return Err(Failure::new(what, "", Code::Usage, why).with_steps(&["give --config FILE"]));
        };
        let config = Self { repository: Some(url.to_owned()), ..Self::read(&path)? };
        let text = toml::to_string(&config).expect("texts and tables of texts are TOML");
        let temporary = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&temporary, text)?;
            std::fs::rename(&temporary, &path)
        };
        write().attempt(what, path.display().to_string())?;
        Ok(path)
    }

    /// A missing file says nothing.
    fn read(path: &Path) -> Result<Self, Failure> {
        let what = "read the configuration";
        let on = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Failure::of(what, on, &error)),
        };
        toml::from_str(&text).map_err(|error| {
            let why = match error.span() {
                Some(span) => {
                    let line = text.get(..span.start).unwrap_or_default().matches('\n').count() + 1;
                    format!("line {line}: {}", error.message())
                }
                None => error.message().to_owned(),
            };
            Failure::new(what, on, Code::Usage, why).with_steps(&["correct the file"])
        })
    }
}

/// `given`, or the place where this system keeps a user's configuration.
fn user_file(given: Option<&Path>) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = given {
        return Some(path.to_owned());
    }
    let base = if cfg!(windows) {
        folder("APPDATA")
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))
    };
    Some(base?.join("e3").join("config.toml"))
}

/// The machine's file: what a service has, which is no user.
pub fn machine_file() -> PathBuf {
    if cfg!(windows) { machine_folder().join("config.toml") } else { "/etc/e3/config.toml".into() }
}

/// Where this machine keeps what belongs to no user: journals, locks, the service's log.
#[cfg(not(windows))]
pub fn machine_folder() -> PathBuf {
    "/var/lib/e3".into()
}

/// The same: below ProgramData as the system has it. The environment is no witness: any user can set it, and a service
/// need not have the one that its installer had.
#[cfg(windows)]
pub fn machine_folder() -> PathBuf {
    const PROFILES: &str = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\ProfileList";
    let drive = std::env::var("SystemDrive").unwrap_or_else(|_| "C:".into());
    let folder = windows_registry::LOCAL_MACHINE.open(PROFILES).and_then(|key| key.get_string("ProgramData"));
    let folder = folder.ok().filter(|folder| !folder.is_empty()).unwrap_or_else(|| r"%SystemDrive%\ProgramData".into());
    PathBuf::from(folder.replace("%SystemDrive%", &drive)).join("e3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_remembered_beside_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("config.toml");
        Config::remember_repository(Some(&path), "/srv/a").unwrap();
        std::fs::write(&path, "host = \"local\"\n").unwrap();
        Config::remember_repository(Some(&path), "s3://b/\"p\"/").unwrap();
        let expected =
            Config { repository: Some("s3://b/\"p\"/".into()), host: Some("local".into()), ..Config::default() };
        assert_eq!(Config::read(&path).unwrap(), expected);
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "host = \"local\"\nrepositroy = \"x\"\n").unwrap();
        let failure = Config::read(&path).unwrap_err();
        let json = failure.to_json();
        assert_eq!(json["exit"], 2);
        let why = json["why"].as_str().unwrap();
        assert!(why.contains("line 2") && why.contains("repositroy") && why.contains("`repository`"), "{why}");
    }

    #[test]
    fn jobs_are_read_and_survive_a_repository_being_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text = "[[job]]\nname = \"nightly\"\nat = \"22:00\"\nexcept = [\"TEST*\"]\n";
        std::fs::write(&path, text).unwrap();
        Config::remember_repository(Some(&path), "/srv/a").unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!(config.repository.as_deref(), Some("/srv/a"));
        assert_eq!(config.jobs.len(), 1);
        assert_eq!((&*config.jobs[0].name, &*config.jobs[0].except), ("nightly", &["TEST*".to_owned()][..]));
    }
}
