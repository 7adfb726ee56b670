//! Where a bucket is, as people write it, and opening it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use url::Url;

use crate::s3::DEFAULT_REGION;
use crate::{Addressing, Bucket, Folder, Network, RetryPolicy, Retrying, S3, S3Environment, S3Options, S3OptionsError};

/// Where a bucket is. Prints as [`parse_url`] reads it, and holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine or of a mounted share.
    Folder(PathBuf),
    /// A bucket of an S3 service.
    S3(S3Location),
}

/// The part of a [`Location`] that names a bucket of an S3 service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// Name of the bucket.
    pub bucket: String,
    /// Put before every key, byte for byte; a folder ends in `/`.
    pub prefix: String,
    /// URL of the service; the environment decides where it is missing, and then Amazon.
    pub endpoint: Option<String>,
    /// Region to sign for; the environment decides where it is missing, and then `us-east-1`.
    pub region: Option<String>,
    /// Where the bucket's name goes in URLs; decided by the endpoint where it is missing.
    pub path_style: Option<bool>,
    /// PEM file with the only certificates to trust.
    pub ca_file: Option<PathBuf>,
}

/// Why a text names no location. Never shows a part of it that may be secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// There is nothing.
    #[error("the location is empty")]
    Empty,
    /// It looks like a URL but is not one.
    #[error("the location is not a URL")]
    Syntax(#[source] url::ParseError),
    /// It is a URL of another kind.
    #[error("scheme {scheme:?} is not known; use a path, file:///path or s3://bucket/prefix/")]
    Scheme {
        /// What comes before `://`.
        scheme: String,
    },
    /// The URL holds keys or a password.
    #[error("keys do not belong into the location; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")]
    Secrets,
    /// The file URL names another machine, or nothing.
    #[error("a file URL looks like file:///path")]
    FilePath,
    /// The S3 URL has no bucket, or the name of one with a port.
    #[error("an S3 URL looks like s3://bucket/prefix/?endpoint=https://host&region=name")]
    Bucket,
    /// The prefix or a value is not percent-encoded UTF-8.
    #[error("{part} is not percent-encoded UTF-8")]
    Encoding {
        /// Which part of the URL.
        part: &'static str,
    },
    /// A parameter we do not know, often a misspelt one.
    #[error("parameter {name:?} is not known; there are endpoint, region, path_style and ca")]
    Parameter {
        /// Its name.
        name: String,
    },
    /// A parameter that is there twice.
    #[error("parameter {name:?} is there twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// A parameter whose value is none.
    #[error("parameter path_style is true or false")]
    PathStyle,
}

/// Reads `s3://bucket/prefix/?endpoint=…&region=…&path_style=true|false&ca=…`, `file:///path`, or a path.
pub fn parse_url(text: &str) -> Result<Location, UrlError> {
    if text.trim().is_empty() {
        return Err(UrlError::Empty);
    }
    let Some((scheme, _)) = text.split_once("://") else {
        return Ok(Location::Folder(PathBuf::from(text)));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => {
            let url = Url::parse(text).map_err(UrlError::Syntax)?;
            url.to_file_path().map(Location::Folder).map_err(|()| UrlError::FilePath)
        }
        "s3" => Url::parse(text).map_err(UrlError::Syntax).and_then(|url| parse_s3(&url)).map(Location::S3),
        _ => Err(UrlError::Scheme { scheme: scheme.to_owned() }),
    }
}

fn parse_s3(url: &Url) -> Result<S3Location, UrlError> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Secrets);
    }
    let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or(UrlError::Bucket)?.to_owned();
    if url.port().is_some() || url.fragment().is_some() {
        return Err(UrlError::Bucket);
    }
    let path = url.path();
    let prefix = percent_decode(path.strip_prefix('/').unwrap_or(path)).ok_or(UrlError::Encoding { part: "prefix" })?;
    let mut location = S3Location { bucket, prefix, endpoint: None, region: None, path_style: None, ca_file: None };
    let mut seen = Vec::new();
    for (name, value) in url.query_pairs() {
        if seen.contains(&name) {
            return Err(UrlError::Twice { name: name.into_owned() });
        }
        match &*name {
            "endpoint" => {
                if Url::parse(&value).is_ok_and(|url| !url.username().is_empty() || url.password().is_some()) {
                    return Err(UrlError::Secrets);
                }
                location.endpoint = Some(value.into_owned());
            }
            "region" => location.region = Some(value.into_owned()),
            "ca" => location.ca_file = Some(PathBuf::from(value.into_owned())),
            "path_style" => {
                location.path_style = Some(value.parse().map_err(|_| UrlError::PathStyle)?);
            }
            _ => return Err(UrlError::Parameter { name: name.into_owned() }),
        }
        seen.push(name);
    }
    Ok(location)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).filter(|(digits, _)| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Folder(path) => write!(f, "{}", path.display()),
            Location::S3(location) => write!(f, "{location}"),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let path_style = self.path_style.map(|on| on.to_string());
        let ca_file = self.ca_file.as_ref().map(|path| path.display().to_string());
        let values =
            [("endpoint", &self.endpoint), ("region", &self.region), ("path_style", &path_style), ("ca", &ca_file)];
        for (name, value) in values {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        let query = query.finish();
        let prefix = self.prefix.replace('%', "%25").replace('?', "%3F").replace('#', "%23").replace(' ', "%20");
        write!(f, "s3://{}/{prefix}{}{query}", self.bucket, if query.is_empty() { "" } else { "?" })
    }
}

/// Why a location cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is missing, is no folder, or may not be read.
    #[error("open folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The folder cannot be made.
    #[error("make folder {}", path.display())]
    CreateFolder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There are no keys for S3.
    #[error("no access keys for {location}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    NoCredentials {
        /// What should be opened.
        location: String,
    },
    /// The file of certificates cannot be read.
    #[error("read the certificates in {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The location is not usable.
    #[error("open {location}")]
    S3 {
        /// What should be opened.
        location: String,
        /// Why not.
        source: S3OptionsError,
    },
}

/// Opens a location for use: an existing folder, or S3 with retries under the default policy. S3 is not asked yet,
/// so a wrong key shows with the first call.
pub fn open(
    location: &Location,
    environment: &S3Environment,
    policy: RetryPolicy,
) -> Result<Arc<dyn Bucket>, OpenError> {
    match location {
        Location::Folder(path) => match Folder::open(path) {
            Ok(folder) => Ok(Arc::new(folder)),
            Err(source) => Err(OpenError::Folder { path: path.clone(), source }),
        },
        Location::S3(s3) => Ok(Arc::new(Retrying::new(open_s3(s3, environment)?, policy))),
    }
}

/// The same for a new store: a folder that is missing is made. Buckets of S3 services are made by their owner.
pub fn create(
    location: &Location,
    environment: &S3Environment,
    policy: RetryPolicy,
) -> Result<Arc<dyn Bucket>, OpenError> {
    match location {
        Location::Folder(path) => match Folder::create(path) {
            Ok(folder) => Ok(Arc::new(folder)),
            Err(source) => Err(OpenError::CreateFolder { path: path.clone(), source }),
        },
        Location::S3(_) => open(location, environment, policy),
    }
}

fn open_s3(location: &S3Location, environment: &S3Environment) -> Result<S3, OpenError> {
    let no_credentials = || OpenError::NoCredentials { location: location.to_string() };
    let credentials = environment.credentials.as_ref().ok_or_else(no_credentials)?;
    let ca_file = location.ca_file.as_ref().or(environment.ca_file.as_ref());
    let options = S3Options {
        bucket: location.bucket.clone(),
        prefix: location.prefix.clone(),
        region: location.region.clone().or_else(|| environment.region.clone()).unwrap_or(DEFAULT_REGION.to_owned()),
        endpoint: location.endpoint.clone().or_else(|| environment.endpoint.clone()),
        addressing: match location.path_style {
            None => Addressing::Auto,
            Some(true) => Addressing::Path,
            Some(false) => Addressing::VirtualHost,
        },
        ca_pem: ca_file.map(|path| read_certificates(path)).transpose()?,
        network: Network::Any,
    };
    S3::new(&options, credentials).map_err(|source| OpenError::S3 { location: location.to_string(), source })
}

fn read_certificates(path: &Path) -> Result<Vec<u8>, OpenError> {
    std::fs::read(path).map_err(|source| OpenError::Certificates { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credentials;

    fn s3(bucket: &str, prefix: &str) -> S3Location {
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        S3Location { bucket, prefix, endpoint: None, region: None, path_style: None, ca_file: None }
    }

    #[test]
    fn locations_are_read_and_print_the_same() {
        let full = S3Location {
            endpoint: Some("http://127.0.0.1:9000".into()),
            region: Some("eu-west-1".into()),
            path_style: Some(true),
            ca_file: Some("/etc/ca.pem".into()),
            ..s3("b", "p/")
        };
        for (text, location) in [
            ("/srv/backups", Location::Folder("/srv/backups".into())),
            ("backups", Location::Folder("backups".into())),
            (r"D:\backups", Location::Folder(r"D:\backups".into())),
            (r"\\nas\share", Location::Folder(r"\\nas\share".into())),
            ("s3://b", Location::S3(s3("b", ""))),
            ("s3://b/", Location::S3(s3("b", ""))),
            ("S3://b.with.dots/p", Location::S3(s3("b.with.dots", "p"))),
            ("s3://b/a/b/", Location::S3(s3("b", "a/b/"))),
            ("s3://b/a%20b%25/%C3%A4", Location::S3(s3("b", "a b%/ä"))),
            (
                "s3://b/p/?endpoint=http://127.0.0.1:9000&region=eu-west-1&path_style=true&ca=/etc/ca.pem",
                Location::S3(full),
            ),
        ] {
            assert_eq!(parse_url(text), Ok(location.clone()), "{text}");
            assert_eq!(parse_url(&location.to_string()), Ok(location), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn file_urls_are_paths() {
        assert_eq!(parse_url("file:///srv/a%20b"), Ok(Location::Folder("/srv/a b".into())));
        assert_eq!(parse_url("file://nas/share"), Err(UrlError::FilePath));
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        for (text, error) in [
            ("", UrlError::Empty),
            (" ", UrlError::Empty),
            ("http://host/", UrlError::Scheme { scheme: "http".into() }),
            ("s3:///prefix", UrlError::Bucket),
            ("s3://bucket:80/", UrlError::Bucket),
            ("s3://id:hush@bucket/", UrlError::Secrets),
            ("s3://hush@bucket/", UrlError::Secrets),
            ("s3://bucket/?endpoint=https://id:hush@host", UrlError::Secrets),
            ("s3://bucket/%FF", UrlError::Encoding { part: "prefix" }),
            ("s3://bucket/?regoin=x", UrlError::Parameter { name: "regoin".into() }),
            ("s3://bucket/?secret=hush", UrlError::Parameter { name: "secret".into() }),
            ("s3://bucket/?region=x&region=y", UrlError::Twice { name: "region".into() }),
            ("s3://bucket/?path_style=yes", UrlError::PathStyle),
        ] {
            let found = parse_url(text).expect_err(text);
            assert_eq!(found, error, "{text}");
            assert!(!found.to_string().contains("hush"), "{found}");
        }
    }

    #[test]
    fn opening_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Location::Folder(dir.path().join("new").join("store"));
        let nothing = S3Environment::default();
        assert!(matches!(open(&folder, &nothing, RetryPolicy::default()), Err(OpenError::Folder { .. })));
        create(&folder, &nothing, RetryPolicy::default()).unwrap();
        open(&folder, &nothing, RetryPolicy::default()).unwrap();

        let bucket = parse_url("s3://bucket/p/?ca=/nowhere/ca.pem").unwrap();
        assert!(matches!(open(&bucket, &nothing, RetryPolicy::default()), Err(OpenError::NoCredentials { .. })));
        let keys = Credentials { access_key_id: "id".into(), secret_access_key: "hush".into(), session_token: None };
        let environment = S3Environment { credentials: Some(keys), ..Default::default() };
        assert!(matches!(open(&bucket, &environment, RetryPolicy::default()), Err(OpenError::Certificates { .. })));
        let open =
            open(&parse_url("s3://bucket/p/?region=eu-west-1").unwrap(), &environment, RetryPolicy::default()).unwrap();
        assert_eq!(open.display_name(), "s3://bucket/p/ at https://s3.eu-west-1.amazonaws.com");
    }
}
