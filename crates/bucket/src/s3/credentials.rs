//! Access keys, and where they are usually kept.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize as _, Zeroizing};

/// An access key of an S3 account. Its `Debug` shows no secrets, which are overwritten in memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Names the key; not secret by itself.
    pub access_key_id: String,
    /// The secret that signs requests.
    pub secret_access_key: String,
    /// Goes with temporary keys.
    pub session_token: Option<String>,
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.secret_access_key.zeroize();
        self.session_token.zeroize();
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// What the environment says about S3, by the names that the AWS tools use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Environment {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, or else the profile `AWS_PROFILE`
    /// (`default`) of the file `AWS_SHARED_CREDENTIALS_FILE` (`~/.aws/credentials`).
    pub credentials: Option<Credentials>,
    /// `AWS_REGION` or `AWS_DEFAULT_REGION`.
    pub region: Option<String>,
    /// `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// `AWS_CA_BUNDLE`: a PEM file with the certificates to trust.
    pub ca_file: Option<PathBuf>,
}

impl S3Environment {
    /// Reads the environment of this process, and the credentials file if need be.
    pub fn from_process() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// The same from variables looked up by `var`; empty ones count as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let from_keys = || {
            Some(Credentials {
                access_key_id: var("AWS_ACCESS_KEY_ID")?,
                secret_access_key: var("AWS_SECRET_ACCESS_KEY")?,
                session_token: var("AWS_SESSION_TOKEN"),
            })
        };
        let from_file = || {
            let home = || var("HOME").or_else(|| var("USERPROFILE"));
            let path = var("AWS_SHARED_CREDENTIALS_FILE")
                .map(PathBuf::from)
                .or_else(|| Some(Path::new(&home()?).join(".aws").join("credentials")))?;
            let profile = var("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
            parse_credentials_file(&Zeroizing::new(std::fs::read_to_string(path).ok()?), &profile)
        };
        Self {
            credentials: from_keys().or_else(from_file),
            region: var("AWS_REGION").or_else(|| var("AWS_DEFAULT_REGION")),
            endpoint: var("AWS_ENDPOINT_URL_S3").or_else(|| var("AWS_ENDPOINT_URL")),
            ca_file: var("AWS_CA_BUNDLE").map(PathBuf::from),
        }
    }
}

/// Finds a profile in the text of a credentials file (AWS SDKs and Tools Reference, "Shared config and
/// credentials files").
fn parse_credentials_file(text: &str, profile: &str) -> Option<Credentials> {
    let (mut key, mut secret, mut token) = (None, None, None);
    let mut in_profile = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            in_profile = name.trim() == profile;
        } else if let (true, Some((name, value))) = (in_profile, line.split_once('=')) {
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(Credentials { access_key_id: key?, secret_access_key: secret?, session_token: token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> S3Environment {
        let vars: Vec<(String, String)> =
            vars.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        S3Environment::from_vars(move |name| vars.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn variables_come_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        let text = "# mine\n[other]\naws_access_key_id = O\naws_secret_access_key = SO\naws_session_token=TO\n\
                    [default]\naws_access_key_id=D\naws_secret_access_key = a=b\n";
        std::fs::write(&file, text).unwrap();
        let file = ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap());
        let keys = [("AWS_ACCESS_KEY_ID", "K"), ("AWS_SECRET_ACCESS_KEY", "S")];
        let with = |more: &[(&'static str, &'static str)]| [&[file], more].concat();
        for (vars, expected) in [
            (with(&[]), Some(("D", "a=b", None))),
            (with(&[("AWS_PROFILE", "other")]), Some(("O", "SO", Some("TO")))),
            (with(&[("AWS_PROFILE", "none")]), None),
            (with(&keys), Some(("K", "S", None))),
            (with(&[keys[0], keys[1], ("AWS_SESSION_TOKEN", "T")]), Some(("K", "S", Some("T")))),
            (vec![keys[0], ("AWS_SECRET_ACCESS_KEY", " ")], None),
        ] {
            let found = from(&vars).credentials;
            let found = found
                .as_ref()
                .map(|c| (c.access_key_id.as_str(), c.secret_access_key.as_str(), c.session_token.as_deref()));
            assert_eq!(found, expected, "{vars:?}");
        }
    }

    #[test]
    fn nothing_prints_a_secret() {
        let environment = from(&[
            ("AWS_ACCESS_KEY_ID", "public"),
            ("AWS_SECRET_ACCESS_KEY", "hush"),
            ("AWS_SESSION_TOKEN", "hush"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
        ]);
        let text = format!("{environment:?}");
        assert!(text.contains("public") && text.contains("eu-west-1") && !text.contains("hush"), "{text}");
    }
}
