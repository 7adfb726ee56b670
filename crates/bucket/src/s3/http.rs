//! Sending one signed request, and reading what comes back, including what went wrong.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use rusty_s3::S3Action;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, SendBody};

use super::time::parse_http_date;
use super::xml::{ErrorDocument, parse_error};
use crate::{BucketError, ErrorKind, Network, ObjectMeta, Operation};

/// How long a signature is good for; also how far clocks may differ, as with signatures in headers.
const SIGNATURE_VALID: Duration = Duration::from_secs(15 * 60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence in the middle of a transfer, or before an answer begins.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections kept for the next request; about as many as threads that use one bucket.
const IDLE_CONNECTIONS: usize = 64;
/// From this size on the server is asked before the body is sent, so that a refusal is read instead of a
/// connection closed midway.
const EXPECT_CONTINUE_FROM_BYTES: u64 = 1 << 20;
/// An error document is at most this long; the rest is not read.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// A page of 1,000 keys of 1,024 bytes, each byte URL-encoded and with its other fields, is shorter.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// What is allocated for a body before its bytes arrive is at most this.
const MAX_TRUSTED_LEN_BYTES: u64 = 4 << 20;

/// The HTTP side of one bucket.
pub(super) struct Client {
    agent: Agent,
    store: String,
}

impl Client {
    /// `None` if the certificates are not PEM or there are none.
    pub(super) fn new(store: String, ca_pem: Option<&[u8]>, network: Network) -> Option<Self> {
        let root_certs = match ca_pem {
            Some(pem) => RootCerts::new_with_certs(&parse_certificates(pem)?),
            None => RootCerts::WebPki,
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect names another region; its signature would be wrong there.
            .max_redirects(0)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(IDLE_TIMEOUT))
            .timeout_per_write(Some(IDLE_TIMEOUT))
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .tls_config(TlsConfig::builder().root_certs(root_certs).build());
        if network != Network::Any {
            // A proxy would look the name up by itself.
            config = config.proxy(None);
        }
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), network.resolver());
        Some(Self { agent, store })
    }

    /// Where this is, for messages.
    pub(super) fn store(&self) -> &str {
        &self.store
    }

    pub(super) fn error(
        &self,
        kind: ErrorKind,
        operation: Operation,
        key: &str,
        problem: impl Into<String>,
    ) -> BucketError {
        BucketError::new(kind, operation, key, &self.store, problem)
    }

    /// Signs and sends; an answer is one of success.
    pub(super) fn send<'a, A: S3Action<'a>>(
        &self,
        operation: Operation,
        key: &str,
        mut action: A,
        body: Option<&[&[u8]]>,
    ) -> Result<Answer<'_>, BucketError> {
        let url = action.sign(SIGNATURE_VALID);
        let mut request = Request::builder().method(A::METHOD.to_str()).uri(url.as_str());
        for (name, value) in action.headers_mut().iter() {
            request = request.header(name, value);
        }
        let unsendable = |error: ureq::http::Error| {
            let problem = "an option of this call does not fit into an HTTP header";
            self.error(ErrorKind::Unsupported, operation, key, problem).with_source(error)
        };
        let response = match body {
            None => self.agent.run(request.body(()).map_err(unsendable)?),
            Some(body) => {
                let len_bytes: u64 = body.iter().map(|piece| piece.len() as u64).sum();
                request = request.header("content-length", len_bytes);
                if len_bytes >= EXPECT_CONTINUE_FROM_BYTES {
                    request = request.header("expect", "100-continue");
                }
                let mut pieces = Pieces { pieces: body, offset: 0 };
                self.agent.run(request.body(SendBody::from_reader(&mut pieces)).map_err(unsendable)?)
            }
        };
        let response = response.map_err(|error| self.transport_error(operation, key, error))?;
        let answer = Answer { client: self, operation, key: key.to_owned(), response };
        if answer.response.status().is_success() { Ok(answer) } else { Err(answer.into_error()) }
    }

    fn transport_error(&self, operation: Operation, key: &str, error: ureq::Error) -> BucketError {
        let (kind, problem) = classify_transport(&error);
        match error {
            // The text of these holds the URL, and so the signature.
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => self.error(kind, operation, key, problem),
            error => self.error(kind, operation, key, problem).with_source(error),
        }
    }
}

fn classify_transport(error: &ureq::Error) -> (ErrorKind, &'static str) {
    use ureq::Error as E;
    match error {
        E::Timeout(_) => (ErrorKind::Unreachable, "no answer in time"),
        E::HostNotFound => (ErrorKind::Unreachable, "the name of the server cannot be resolved"),
        // A certificate that is not trusted stays so.
        E::Tls(_) | E::Rustls(_) | E::Pem(_) => (ErrorKind::Other, "no secure connection"),
        E::Io(io) if io.kind() == io::ErrorKind::InvalidData => (ErrorKind::Other, "no secure connection"),
        E::Io(_) | E::ConnectionFailed | E::ConnectProxyFailed(_) => (ErrorKind::Unreachable, "the connection failed"),
        E::Protocol(_) | E::BodyStalled => (ErrorKind::Unreachable, "the answer broke off or is not HTTP"),
        E::BadUri(_) => (ErrorKind::Other, "the URL is not usable"),
        _ => (ErrorKind::Other, "the request could not be made"),
    }
}

fn parse_certificates(pem: &[u8]) -> Option<Vec<Certificate<'static>>> {
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.ok()? {
            certificates.push(certificate);
        }
    }
    (!certificates.is_empty()).then_some(certificates)
}

/// Reads pieces one after the other.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    offset: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let [first, rest @ ..] = self.pieces {
            let left = &first[self.offset..];
            if !left.is_empty() {
                let count = left.len().min(buffer.len());
                buffer[..count].copy_from_slice(&left[..count]);
                self.offset += count;
                return Ok(count);
            }
            self.pieces = rest;
            self.offset = 0;
        }
        Ok(0)
    }
}

/// What a server answered, its body not yet read.
pub(super) struct Answer<'c> {
    client: &'c Client,
    operation: Operation,
    key: String,
    response: Response<Body>,
}

/// The bytes a ranged answer holds, both ends included.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub first: u64,
    pub last: u64,
}

impl Answer<'_> {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub(super) fn etag(&self) -> Option<String> {
        self.header("etag").map(|etag| etag.trim_matches('"').to_owned())
    }

    fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// `None` too if this is no partial answer.
    pub(super) fn content_range(&self) -> Option<ContentRange> {
        (self.status() == 206).then(|| parse_content_range(self.header("content-range")?))?
    }

    pub(super) fn object_meta(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let modified = self.header("last-modified").and_then(parse_http_date);
        let (Some(len_bytes), Some(modified)) = (self.content_length(), modified) else {
            return Err(self.error(ErrorKind::Other, "the answer lacks Content-Length or Last-Modified"));
        };
        Ok(ObjectMeta { key: key.to_owned(), len_bytes, modified, etag: self.etag() })
    }

    pub(super) fn read_body(self) -> Result<Bytes, BucketError> {
        let len_bytes = self.content_length();
        self.read(len_bytes)
    }

    /// The body, which must have this length.
    pub(super) fn read_body_of(self, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.read(Some(len_bytes))
    }

    fn read(mut self, expected_bytes: Option<u64>) -> Result<Bytes, BucketError> {
        let trusted_bytes = expected_bytes.unwrap_or(0).min(MAX_TRUSTED_LEN_BYTES);
        let mut body = Vec::with_capacity(usize::try_from(trusted_bytes).unwrap_or(0));
        // One byte more than expected shows a body that is too long without reading all of it.
        let limit_bytes = expected_bytes.map_or(u64::MAX, |len_bytes| len_bytes.saturating_add(1));
        let read = self.response.body_mut().as_reader().take(limit_bytes).read_to_end(&mut body);
        if let Err(error) = read {
            return Err(self.error(ErrorKind::Unreachable, "the body was cut short").with_source(error));
        }
        match expected_bytes {
            Some(expected_bytes) if expected_bytes != body.len() as u64 => {
                let problem = format!("the body has {} bytes instead of {expected_bytes}", body.len());
                Err(self.error(ErrorKind::Unreachable, problem))
            }
            _ => Ok(body.into()),
        }
    }

    pub(super) fn read_text(mut self) -> Result<String, BucketError> {
        let mut text = String::new();
        match self.response.body_mut().as_reader().take(MAX_TEXT_BYTES).read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(self.error(ErrorKind::Other, "the answer is not UTF-8").with_source(error))
            }
            Err(error) => Err(self.error(ErrorKind::Unreachable, "the body was cut short").with_source(error)),
        }
    }

    fn error(&self, kind: ErrorKind, problem: impl Into<String>) -> BucketError {
        self.client.error(kind, self.operation, &self.key, problem)
    }

    fn into_error(mut self) -> BucketError {
        let mut body = Vec::new();
        // Whatever can be read is enough: without a document the status has to do.
        let _ = self.response.body_mut().as_reader().take(MAX_ERROR_BYTES).read_to_end(&mut body);
        let document = std::str::from_utf8(&body).ok().and_then(parse_error);
        let region = self.header("x-amz-bucket-region").map(str::to_owned);
        let (kind, problem) = classify(self.operation, self.status(), document, region);
        self.error(kind, problem)
    }
}

/// What an answer that is no success means (S3 API reference, "Error responses").
fn classify(
    operation: Operation,
    status: u16,
    document: Option<ErrorDocument>,
    region: Option<String>,
) -> (ErrorKind, String) {
    let code = document.as_ref().map_or("", |document| &document.code);
    let kind = match (code, status) {
        ("NoSuchBucket", _) => ErrorKind::Other,
        ("NoSuchKey" | "NoSuchVersion", _) => ErrorKind::NotFound,
        // Answers to HEAD have no document; `S3::head` looks closer.
        ("", 404) if operation == Operation::Head => ErrorKind::NotFound,
        ("RequestTimeout" | "ConditionalRequestConflict" | "OperationAborted", _) => ErrorKind::Unreachable,
        ("BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch", _) => ErrorKind::Corrupt,
        ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => ErrorKind::AccessDenied,
        ("QuotaExceeded" | "XMinioStorageFull" | "InsufficientCapacity", _) | (_, 507) => ErrorKind::NoSpace,
        // The answers to a lock where the bucket has none (AWS, SeaweedFS), and of services that have none at all.
        ("ObjectLockConfigurationNotFoundError" | "InvalidRequest" | "NotImplemented" | "MethodNotAllowed", _) => {
            ErrorKind::Unsupported
        }
        (_, 401 | 403) => ErrorKind::AccessDenied,
        (_, 412) => ErrorKind::PreconditionFailed,
        (_, 416) => ErrorKind::RangeNotSatisfiable,
        (_, 501) => ErrorKind::Unsupported,
        (_, 408 | 429 | 500 | 502..=504) => ErrorKind::Unreachable,
        _ => ErrorKind::Other,
    };
    let region = region.or_else(|| document.as_ref()?.region.clone());
    let mut problem = match &document {
        Some(ErrorDocument { code, message, .. }) => format!("{code}: {}", message.trim()),
        None => format!("HTTP status {status}"),
    };
    match (code, status) {
        ("NoSuchBucket", _) => problem.insert_str(0, "the bucket does not exist; "),
        ("RequestTimeTooSkewed", _) => problem.push_str(" (is the clock of this machine right?)"),
        ("SignatureDoesNotMatch", _) => problem.push_str(" (wrong secret access key?)"),
        ("", 404) if operation != Operation::Head => problem.push_str(" without an S3 error; is the endpoint right?"),
        _ => {}
    }
    if let (300..=400, Some(region)) = (status, region) {
        problem.push_str(&format!(" (the bucket is in region {region})"));
    }
    (kind, problem)
}

/// RFC 9110 14.4.
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (range, _total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range = ContentRange { first: first.parse().ok()?, last: last.parse().ok()? };
    (range.first <= range.last).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        use ErrorKind as Kind;
        use Operation::{Get, Head, Put};
        for (operation, status, code, kind) in [
            (Get, 404, "NoSuchKey", Kind::NotFound),
            (Get, 404, "NoSuchBucket", Kind::Other),
            (Get, 404, "", Kind::Other),
            (Head, 404, "", Kind::NotFound),
            (Head, 404, "NoSuchBucket", Kind::Other),
            (Put, 412, "PreconditionFailed", Kind::PreconditionFailed),
            (Put, 409, "ConditionalRequestConflict", Kind::Unreachable),
            (Get, 416, "InvalidRange", Kind::RangeNotSatisfiable),
            (Get, 403, "SignatureDoesNotMatch", Kind::AccessDenied),
            (Head, 403, "", Kind::AccessDenied),
            (Put, 400, "ExpiredToken", Kind::AccessDenied),
            (Put, 400, "BadDigest", Kind::Corrupt),
            (Put, 400, "RequestTimeout", Kind::Unreachable),
            (Put, 400, "InvalidArgument", Kind::Other),
            (Put, 400, "InvalidRequest", Kind::Unsupported),
            (Put, 503, "SlowDown", Kind::Unreachable),
            (Put, 500, "InternalError", Kind::Unreachable),
            (Head, 429, "", Kind::Unreachable),
            (Put, 501, "NotImplemented", Kind::Unsupported),
            (Put, 507, "", Kind::NoSpace),
            (Get, 301, "PermanentRedirect", Kind::Other),
        ] {
            let document = (!code.is_empty()).then(|| ErrorDocument { code: code.into(), ..Default::default() });
            let (found, problem) = classify(operation, status, document, Some("eu-west-1".into()));
            assert_eq!(found, kind, "{operation} {status} {code}");
            assert!(problem.contains(code), "{problem}");
            assert_eq!(problem.contains("eu-west-1"), status == 301 || status == 400, "{problem}");
        }
    }

    #[test]
    fn content_ranges() {
        for (text, range) in [
            ("bytes 0-9/10", Some((0, 9))),
            ("bytes 5-5/*", Some((5, 5))),
            ("bytes 5-4/10", None),
            ("bytes */10", None),
            ("items 0-9/10", None),
            ("", None),
            ("bytes 0-99999999999999999999/10", None),
        ] {
            let found = parse_content_range(text);
            assert_eq!(found, range.map(|(first, last)| ContentRange { first, last }), "{text}");
        }
    }

    #[test]
    fn pieces_are_read_in_order_whatever_the_buffer() {
        for buffer_bytes in [1, 2, 3, 100] {
            let mut pieces = Pieces { pieces: &[b"", b"ab", b"", b"cdef", b"g", b""], offset: 0 };
            let mut all = Vec::new();
            let mut buffer = vec![0; buffer_bytes];
            loop {
                match pieces.read(&mut buffer).unwrap() {
                    0 => break,
                    count => all.extend_from_slice(&buffer[..count]),
                }
            }
            assert_eq!(all, b"abcdefg", "buffer of {buffer_bytes}");
        }
    }
}
