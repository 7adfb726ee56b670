//! The recovery kit: a sheet of paper that, with this program, brings a VM back when host and server are gone
//! (console 3.1, 7.9).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bucket::{Location, S3Environment, S3Location};
use kopia_repo::Description;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::repo::format_text;
use crate::context::{Context, absolute};
use crate::failure::{Code, Failure};
use crate::outcome::Outcome;
use crate::output::{json_document, line, note};
use crate::password;

/// Name of the kit that `repo create` writes.
const FILE_NAME: &str = "e3-recovery-kit.txt";

/// What a kit is made of.
pub struct Kit<'a> {
    /// Where the repository is, from anywhere.
    pub location: &'a Location,
    /// What it is.
    pub facts: &'a Description,
    /// Its password.
    pub password: &'a str,
}

/// `repo kit`
pub fn run(context: &Context, location: &Location, to: Option<&Path>) -> Result<Outcome, Failure> {
    let what = "make a recovery kit";
    let location = absolute(location);
    let password = password::existing(&context.global, &location.to_string())?;
    let repo = context.repository_with(&location, &password)?;
    let anywhere = from_anywhere(&location, &S3Environment::from_process());
    let kit = Kit { location: &anywhere, facts: &repo.describe(), password: &password };
    let text = kit.text().ok_or_else(|| {
        let why = "the password has a line break in it, which no sheet of paper carries";
        Failure::new(what, location.to_string(), Code::BadPassword, why)
            .with_steps(&["give the repository another password (`repo change-password`)"])
    })?;
    let file = match to {
        None => None,
        Some(path) => {
            write(path, &text).map_err(|error| {
                let code = if error.kind() == io::ErrorKind::AlreadyExists { Code::TargetExists } else { Code::Failed };
                Failure::new(what, path.display().to_string(), code, error.to_string())
            })?;
            Some(path.display().to_string())
        }
    };
    if context.global.json {
        let text = if file.is_some() { Value::Null } else { json!(text.as_str()) };
        json_document(&json!({ "url": location.to_string(), "id": kit.facts.id, "file": file, "text": text }));
        return Ok(Outcome::DONE);
    }
    match &file {
        None => line(text.trim_end()),
        Some(file) => {
            line(file);
            note("print it, keep it where no server reaches, then delete the file: it holds the password");
        }
    }
    Ok(Outcome::DONE)
}

impl Kit<'_> {
    /// Writes the kit of a new repository into the current folder, beside one that is there; says where.
    pub fn write_beside(&self) -> io::Result<PathBuf> {
        let text = self.text().ok_or_else(|| io::Error::other("the password has a line break in it"))?;
        let short = self.facts.id.get(..8).unwrap_or(&self.facts.id);
        let other = format!("e3-recovery-kit-{short}.txt");
        match write(Path::new(FILE_NAME), &text) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => write(Path::new(&other), &text)?,
            done => {
                done?;
                return Ok(PathBuf::from(FILE_NAME));
            }
        }
        Ok(PathBuf::from(other))
    }

    /// The sheet; `None` when the password does not fit on a line.
    fn text(&self) -> Option<Zeroizing<String>> {
        if self.password.contains(['\n', '\r']) {
            return None;
        }
        let url = self.location.to_string();
        let keys = match self.location {
            Location::Folder(_) => String::new(),
            Location::S3(place) => {
                let certificates = place.ca_file.as_ref().map(|file| {
                    format!(
                        "\nCertificates  keep a copy of {} with this sheet, and put its path behind ca= in the URL.\n",
                        file.display()
                    )
                });
                format!(
                    "\nKeys        not on this sheet. Any pair that may read the bucket will do: AWS_ACCESS_KEY_ID and\n\
                     \x20           AWS_SECRET_ACCESS_KEY in the environment. Whoever pays for the bucket can make one.\n{}",
                    certificates.unwrap_or_default()
                )
            }
        };
        let stock = match self.location {
            Location::Folder(folder) => format!("filesystem --path {}", quoted(&folder.display().to_string())),
            Location::S3(place) => {
                let host =
                    |url: &str| url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/').to_owned();
                let endpoint = place.endpoint.as_deref().map(|url| format!(" --endpoint {}", quoted(&host(url))));
                let is_plain = place.endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
                let plain = if is_plain { " --disable-tls" } else { "" };
                let region = place.region.as_deref().map(|region| format!(" --region {}", quoted(region)));
                let prefix = (!place.prefix.is_empty()).then(|| format!(" --prefix {}", quoted(&place.prefix)));
                let bucket = quoted(&place.bucket);
                let parts = [endpoint, region, prefix].map(Option::unwrap_or_default).concat();
                format!("s3 --bucket {bucket}{parts}{plain}")
            }
        };
        Some(Zeroizing::new(format!(
            "\
{heading}, made {now} by e3-backup-agent {version}

Print this sheet and keep it where no server reaches; delete the file. Whoever has it can read every backup.

Repository  {url}
Id          {id}
Format      {format}
{label}{password}
{keys}
With this sheet as a file kit.txt (or the password alone in it), on any machine with e3-backup-agent:

  e3-backup-agent repo connect {place} --password-file kit.txt
  e3-backup-agent points list --password-file kit.txt
  e3-backup-agent restore vm VM@latest --host local --folder D:\\VMs --password-file kit.txt

No Hyper-V at hand: `restore disk VM@latest --to disk.vhdx`, or `instant start VM@latest --host qemu`.
All of it in more words: `e3-backup-agent help recovery`. Without e3, stock Kopia 0.23.1 reads the repository:

  kopia repository connect {stock}
  kopia snapshot list --all
  kopia restore SNAPSHOT ./restored
",
            heading = password::KIT_HEADING,
            now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
            version = env!("CARGO_PKG_VERSION"),
            id = self.facts.id,
            format = format_text(self.facts),
            label = password::KIT_LABEL,
            password = self.password,
            place = quoted(&url),
        )))
    }
}

/// The location, with what this machine's environment adds to it.
pub fn from_anywhere(location: &Location, environment: &S3Environment) -> Location {
    match absolute(location) {
        Location::S3(place) => Location::S3(S3Location {
            endpoint: place.endpoint.or_else(|| environment.endpoint.clone()),
            region: place.region.or_else(|| environment.region.clone()),
            ca_file: place.ca_file.or_else(|| environment.ca_file.clone()),
            ..place
        }),
        folder => folder,
    }
}

/// In quotes that sh, PowerShell and cmd all know, where one of them would take it apart.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/:._-\\".contains(&byte);
    if text.bytes().all(is_plain) { text.to_owned() } else { format!("\"{text}\"") }
}

/// Whoever made the file, administrators and the system; nothing of its folder's.
#[cfg(windows)]
const ITS_OWNER: &str = "D:P(A;;FA;;;OW)(A;;FA;;;SY)(A;;FA;;;BA)";

/// A new file that only its owner reads, whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    #[cfg(windows)]
    let protected = crate::service::protect_file(path, ITS_OWNER);
    #[cfg(not(windows))]
    let protected = Ok(());
    let written = protected.and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
    if written.is_err() {
        // What stays would be a sheet without its end; the error is the one that counts.
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_for_a_bucket_has_what_the_environment_gave() {
        let facts = Description {
            id: "0123456789abcdef".into(),
            format_version: 3,
            hash: "BLAKE2B-256-128".into(),
            encryption: "AES256-GCM-HMAC-SHA256".into(),
            splitter: "FIXED-4M".into(),
            max_pack_bytes: 20 << 20,
            index_version: 2,
            write_epoch: 0,
            index_blobs: 0,
            index_entries: 0,
        };
        let environment = S3Environment {
            endpoint: Some("http://store.example:8333".into()),
            region: Some("eu-west-1".into()),
            ca_file: Some("/etc/ca.pem".into()),
            ..S3Environment::default()
        };
        let location = bucket::parse_url("s3://backups/night shift/").unwrap();
        let location = from_anywhere(&location, &environment);
        let text = Kit { location: &location, facts: &facts, password: "one-two" }.text().unwrap();
        for expected in [
            "AWS_ACCESS_KEY_ID",
            "a copy of /etc/ca.pem",
            "password-file kit.txt",
            "--bucket backups --endpoint store.example:8333 --region eu-west-1 --prefix \"night shift/\" --disable-tls",
        ] {
            assert!(text.contains(expected), "{expected}: {}", *text);
        }
        let connect = text.lines().find(|line| line.contains("repo connect")).unwrap();
        let url = connect.split('"').nth(1).expect("it is in double quotes, for there is an ampersand in it");
        assert_eq!(bucket::parse_url(url).unwrap(), location, "{url}");
    }
}
