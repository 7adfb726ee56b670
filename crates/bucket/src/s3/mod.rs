//! S3 and the many services that speak its protocol.

mod credentials;
mod http;
mod time;
mod xml;

use std::fmt;
use std::ops::ControlFlow;

use bytes::Bytes;
use md5::{Digest, Md5};
use rusty_s3::UrlStyle;
use rusty_s3::actions::{DeleteObject, GetObject, HeadObject, PutObject, S3Action};
use url::Url;

use self::http::{Answer, Client};
use crate::key::is_prefix_of_some_key;
use crate::{
    Bucket, BucketError, ErrorKind, Network, ObjectMeta, Operation, PutCondition, PutOptions, PutOutcome, check_key,
};

pub use self::credentials::{Credentials, S3Environment};

/// A bucket of an S3 service, or the part of it under a prefix.
///
/// Every object is one PUT with `Content-MD5`, so a body changed on its way is refused; the largest object is
/// 5 GiB. Bodies of gets are checked for their length. Requests are signed in the URL with AWS signature version
/// 4, valid for 15 minutes, and each is made once: wrap this in [`Retrying`](crate::Retrying).
pub struct S3 {
    client: Client,
    bucket: rusty_s3::Bucket,
    credentials: rusty_s3::Credentials,
    prefix: String,
}

/// Where a bucket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Options {
    /// Name of the bucket.
    pub bucket: String,
    /// Put before every key and removed from every listed one, byte for byte; a folder ends in `/`.
    pub prefix: String,
    /// Region that requests are signed for.
    pub region: String,
    /// `http://` or `https://` URL of the service; without one, Amazon's for the region.
    pub endpoint: Option<String>,
    /// Where the name of the bucket goes in URLs.
    pub addressing: Addressing,
    /// PEM text with the only certificates to trust; without it, those of Mozilla's programme.
    pub ca_pem: Option<Vec<u8>>,
    /// Which addresses its name may lead to. What is not [`Network::Any`] uses no proxy.
    pub network: Network,
}

impl S3Options {
    /// A whole bucket in `us-east-1`, or at a service that does not care about regions.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            region: DEFAULT_REGION.to_owned(),
            endpoint: None,
            addressing: Addressing::Auto,
            ca_pem: None,
            network: Network::Any,
        }
    }
}

/// Region assumed where none is named, as by the AWS tools.
pub(crate) const DEFAULT_REGION: &str = "us-east-1";

/// Where the name of a bucket goes in URLs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the host name at Amazon, in the path at other endpoints and for names with a dot.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`
    Path,
    /// `https://bucket.endpoint/key`
    VirtualHost,
}

/// Why a bucket cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum S3OptionsError {
    /// The endpoint is no URL.
    #[error("endpoint {endpoint:?} is not a URL")]
    EndpointSyntax {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        source: url::ParseError,
    },
    /// The endpoint is a URL, but not one of a service.
    #[error("endpoint {endpoint} must be http:// or https://, a host and at most a port and a path")]
    EndpointParts {
        /// Without the parts that may be secret.
        endpoint: String,
    },
    /// The bucket's name cannot be put into a URL.
    #[error("bucket name {bucket:?} does not fit into a URL of {endpoint}")]
    BucketName {
        /// The name.
        bucket: String,
        /// The endpoint it should be put into.
        endpoint: String,
    },
    /// No key could have this prefix.
    #[error("prefix {prefix:?}: {problem}")]
    Prefix {
        /// The prefix.
        prefix: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The certificates cannot be read.
    #[error("the certificates to trust are not PEM, or none")]
    Certificates,
}

impl S3 {
    /// Prepares requests; does not make one.
    pub fn new(options: &S3Options, credentials: &Credentials) -> Result<Self, S3OptionsError> {
        let endpoint = parse_endpoint(options)?;
        let in_host = match options.addressing {
            Addressing::Path => false,
            Addressing::VirtualHost => true,
            Addressing::Auto => options.endpoint.is_none() && !options.bucket.contains('.'),
        };
        let style = if in_host { UrlStyle::VirtualHost } else { UrlStyle::Path };
        let no_fit = || S3OptionsError::BucketName { bucket: options.bucket.clone(), endpoint: endpoint.to_string() };
        if options.bucket.contains('/') || check_key(&options.bucket).is_some() {
            return Err(no_fit());
        }
        let bucket = rusty_s3::Bucket::new(endpoint.clone(), style, options.bucket.clone(), options.region.clone())
            .map_err(|_| no_fit())?;
        let folder = options.prefix.strip_suffix('/').unwrap_or(&options.prefix);
        if let (false, Some(problem)) = (options.prefix.is_empty(), check_key(folder)) {
            return Err(S3OptionsError::Prefix { prefix: options.prefix.clone(), problem });
        }
        let endpoint_name = endpoint.as_str().trim_end_matches('/');
        let store = format!("s3://{}/{} at {endpoint_name}", options.bucket, options.prefix);
        let client =
            Client::new(store, options.ca_pem.as_deref(), options.network).ok_or(S3OptionsError::Certificates)?;
        let Credentials { access_key_id, secret_access_key, session_token } = credentials;
        let credentials = match session_token {
            Some(token) => rusty_s3::Credentials::new_with_token(access_key_id, secret_access_key, token),
            None => rusty_s3::Credentials::new(access_key_id, secret_access_key),
        };
        Ok(Self { client, bucket, credentials, prefix: options.prefix.clone() })
    }

    /// The key as the service knows it.
    fn full_key(&self, operation: Operation, key: &str) -> Result<String, BucketError> {
        let full_key = format!("{}{key}", self.prefix);
        match check_key(key).or_else(|| check_key(&full_key)) {
            Some(problem) => Err(self.client.error(ErrorKind::Unsupported, operation, key, problem)),
            None => Ok(full_key),
        }
    }

    fn list_page(&self, prefix: &str, token: Option<&str>) -> Result<xml::Page, BucketError> {
        // With an empty key this is the GET of the bucket itself, which lists it.
        let mut action = GetObject::new(&self.bucket, Some(&self.credentials), "");
        let query = action.query_mut();
        query.insert("list-type", "2");
        query.insert("encoding-type", "url");
        if !prefix.is_empty() || !self.prefix.is_empty() {
            query.insert("prefix", format!("{}{prefix}", self.prefix));
        }
        if let Some(token) = token {
            query.insert("continuation-token", token.to_owned());
        }
        let answer = self.client.send(Operation::List, prefix, action, None)?;
        let body = answer.read_text()?;
        let broken = |problem: String| self.client.error(ErrorKind::Other, Operation::List, prefix, problem);
        let mut page =
            xml::parse_page(&body).map_err(|problem| broken(format!("the answer is no listing: {problem}")))?;
        for object in &mut page.objects {
            match object.key.strip_prefix(&self.prefix) {
                Some(key) if key.starts_with(prefix) => object.key = key.to_owned(),
                _ => return Err(broken(format!("the listing shows {:?}, which was not asked for", object.key))),
            }
        }
        Ok(page)
    }

    /// Asks for the bytes of a range that is known not to be empty.
    fn get_some(&self, key: &str, full_key: &str, first: u64, last: u64) -> Result<Answer<'_>, BucketError> {
        let mut action = GetObject::new(&self.bucket, Some(&self.credentials), full_key);
        action.headers_mut().insert("range", format!("bytes={first}-{last}"));
        self.client.send(Operation::GetRange, key, action, None)
    }
}

impl Bucket for S3 {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        let full_key = self.full_key(Operation::Put, key)?;
        let mut action = PutObject::new(&self.bucket, Some(&self.credentials), &full_key);
        let headers = action.headers_mut();
        headers.insert("content-md5", content_md5(body));
        if let Some(content_type) = &options.content_type {
            headers.insert("content-type", content_type.clone());
        }
        if let Some(storage_class) = &options.storage_class {
            headers.insert("x-amz-storage-class", storage_class.clone());
        }
        match &options.condition {
            None => {}
            Some(PutCondition::IfAbsent) => headers.insert("if-none-match", "*"),
            Some(PutCondition::IfMatch(etag)) => headers.insert("if-match", format!("\"{etag}\"")),
        }
        if let Some(lock) = &options.retention {
            let Some(until) = time::format_iso8601(lock.retain_until) else {
                let problem = "the lock ends outside of the years 1970 to 9999";
                return Err(self.client.error(ErrorKind::Unsupported, Operation::Put, key, problem));
            };
            headers.insert("x-amz-object-lock-mode", lock.mode.to_string());
            headers.insert("x-amz-object-lock-retain-until-date", until);
        }
        let answer = self.client.send(Operation::Put, key, action, Some(body)).map_err(|error| match error.kind() {
            // The answer to `If-Match` where there is nothing to match (S3 API reference, PutObject).
            ErrorKind::NotFound => error.with_kind(ErrorKind::PreconditionFailed),
            ErrorKind::Unsupported if options.retention.is_some() => {
                error.with_remark("object lock asked for; was the bucket made with it?")
            }
            _ => error,
        })?;
        Ok(PutOutcome { etag: answer.etag(), version: answer.header("x-amz-version-id").map(str::to_owned) })
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let full_key = self.full_key(Operation::Get, key)?;
        let action = GetObject::new(&self.bucket, Some(&self.credentials), &full_key);
        self.client.send(Operation::Get, key, action, None)?.read_body()
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        let full_key = self.full_key(Operation::GetRange, key)?;
        let unsatisfiable = |end: &dyn fmt::Display| {
            let problem = format!("{len_bytes} bytes at {offset_bytes} of {end}");
            self.client.error(ErrorKind::RangeNotSatisfiable, Operation::GetRange, key, problem)
        };
        let Some(end_bytes) = offset_bytes.checked_add(len_bytes) else {
            return Err(unsatisfiable(&"any object"));
        };
        if len_bytes == 0 {
            // HTTP has no empty ranges.
            let len_total_bytes = self.head(key)?.len_bytes;
            return if end_bytes <= len_total_bytes { Ok(Bytes::new()) } else { Err(unsatisfiable(&len_total_bytes)) };
        }
        let answer = self.get_some(key, &full_key, offset_bytes, end_bytes - 1)?;
        let Some(range) = answer.content_range() else {
            let problem = format!("the service ignores ranges (status {} without Content-Range)", answer.status());
            return Err(self.client.error(ErrorKind::Unsupported, Operation::GetRange, key, problem));
        };
        if range.first == offset_bytes && range.last < end_bytes - 1 {
            return Err(unsatisfiable(&(range.last.saturating_add(1))));
        }
        if (range.first, range.last) != (offset_bytes, end_bytes - 1) {
            let problem = format!("asked for {len_bytes} bytes at {offset_bytes}, answered with another range");
            return Err(self.client.error(ErrorKind::Other, Operation::GetRange, key, problem));
        }
        answer.read_body_of(len_bytes)
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        if !is_prefix_of_some_key(prefix) {
            return Ok(());
        }
        let mut token: Option<String> = None;
        loop {
            let page = self.list_page(prefix, token.as_deref())?;
            for object in page.objects {
                if visit(object).is_break() {
                    return Ok(());
                }
            }
            match page.next {
                None => return Ok(()),
                next if next == token => {
                    let problem = "the listing does not advance";
                    return Err(self.client.error(ErrorKind::Other, Operation::List, prefix, problem));
                }
                next => token = next,
            }
        }
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let full_key = self.full_key(Operation::Head, key)?;
        let action = HeadObject::new(&self.bucket, Some(&self.credentials), &full_key);
        match self.client.send(Operation::Head, key, action, None) {
            Ok(answer) => answer.object_meta(key),
            // A HEAD has no body to tell a missing object from a missing bucket, or from a server that is no S3 at
            // all. The body of a GET does; should the object have appeared meanwhile, so much the better.
            Err(error) if error.is_not_found() => {
                let action = GetObject::new(&self.bucket, Some(&self.credentials), &full_key);
                self.client.send(Operation::Head, key, action, None)?.object_meta(key)
            }
            Err(error) => Err(error),
        }
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        let full_key = self.full_key(Operation::Delete, key)?;
        let action = DeleteObject::new(&self.bucket, Some(&self.credentials), &full_key);
        match self.client.send(Operation::Delete, key, action, None) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    fn display_name(&self) -> String {
        self.client.store().to_owned()
    }
}

fn parse_endpoint(options: &S3Options) -> Result<Url, S3OptionsError> {
    let endpoint = match &options.endpoint {
        Some(endpoint) => endpoint.clone(),
        None if options.region.starts_with("cn-") => format!("https://s3.{}.amazonaws.com.cn", options.region),
        None => format!("https://s3.{}.amazonaws.com", options.region),
    };
    let mut url = Url::parse(&endpoint).map_err(|source| S3OptionsError::EndpointSyntax { endpoint, source })?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !plain {
        // Some of these refuse on URLs without a host; those have nothing to hide there.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.set_fragment(None);
        return Err(S3OptionsError::EndpointParts { endpoint: url.to_string() });
    }
    Ok(url)
}

/// Base64 of the MD5 of the whole body.
fn content_md5(body: &[&[u8]]) -> String {
    let mut hasher = Md5::new();
    for piece in body {
        hasher.update(piece);
    }
    base64(&hasher.finalize())
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { DIGITS[value as usize].into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Credentials {
        Credentials { access_key_id: "id".into(), secret_access_key: "hush".into(), session_token: Some("hush".into()) }
    }

    #[test]
    fn base64_pads() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), text, "{bytes}");
        }
        assert_eq!(content_md5(&[b"a", b"", b"bc"]), "kAFQmDzST7DWlj99KOF/cg==");
    }

    #[test]
    fn urls_follow_the_addressing() {
        let amazon = |bucket: &str| S3Options { region: "eu-west-1".into(), ..S3Options::new(bucket) };
        let other = |bucket: &str, addressing| S3Options {
            endpoint: Some("http://localhost:9000/s3".into()),
            addressing,
            ..S3Options::new(bucket)
        };
        for (options, url) in [
            (amazon("plain"), "https://plain.s3.eu-west-1.amazonaws.com/"),
            (amazon("dot.ted"), "https://s3.eu-west-1.amazonaws.com/dot.ted/"),
            (
                S3Options { region: "cn-north-1".into(), ..amazon("plain") },
                "https://plain.s3.cn-north-1.amazonaws.com.cn/",
            ),
            (other("plain", Addressing::Auto), "http://localhost:9000/s3/plain/"),
            (other("plain", Addressing::VirtualHost), "http://plain.localhost:9000/s3/"),
        ] {
            let s3 = S3::new(&options, &keys()).unwrap();
            assert_eq!(s3.bucket.base_url().as_str(), url, "{options:?}");
            assert!(!s3.display_name().contains("hush"));
        }
    }

    #[test]
    fn bad_options_are_refused_without_telling_secrets() {
        let with_endpoint = |endpoint: &str| S3Options { endpoint: Some(endpoint.into()), ..S3Options::new("plain") };
        let with_prefix = |prefix: &str| S3Options { prefix: prefix.into(), ..S3Options::new("plain") };
        for options in [
            with_endpoint("localhost"),
            with_endpoint("localhost:9000"),
            with_endpoint("ftp://localhost"),
            with_endpoint("http://user:hush@localhost"),
            with_endpoint("http://localhost?key=hush"),
            with_prefix("/"),
            with_prefix("a//"),
            with_prefix("../"),
            S3Options::new(""),
            S3Options::new("a/b"),
            S3Options::new(".."),
            S3Options { ca_pem: Some(b"nothing".to_vec()), ..S3Options::new("plain") },
        ] {
            let error = S3::new(&options, &keys()).err().unwrap_or_else(|| panic!("{options:?} is accepted"));
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
