//! S3 against a real server, and against answers that no good server gives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bucket::test_support::SeaweedFs;
use bucket::{
    Bucket, BucketError, Credentials, ErrorKind, LockMode, ObjectLock, PutOptions, RetryPolicy, Retrying, S3,
    S3Environment, S3Options, open, parse_url,
};
use rusty_s3::actions::{DeleteObject, HeadObject, S3Action};

fn list(bucket: &dyn Bucket) -> Result<Vec<String>, BucketError> {
    let mut keys = Vec::new();
    bucket.list("", &mut |object| {
        keys.push(object.key);
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

/// The error of every operation, by name.
fn all_errors(bucket: &dyn Bucket) -> Vec<(&'static str, BucketError)> {
    let large = vec![7; 8 << 20];
    vec![
        ("put", bucket.put("k", &[b"x"], &PutOptions::default()).unwrap_err()),
        ("put of 8 MiB", bucket.put("k", &[&large], &PutOptions::default()).unwrap_err()),
        ("get", bucket.get("k").unwrap_err()),
        ("get_range", bucket.get_range("k", 0, 1).unwrap_err()),
        ("empty get_range", bucket.get_range("k", 0, 0).unwrap_err()),
        ("head", bucket.head("k").unwrap_err()),
        ("list", list(bucket).unwrap_err()),
        ("delete", bucket.delete("k").unwrap_err()),
    ]
}

#[test]
fn a_real_server() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = SeaweedFs::start_or_skip("a_real_server", dir.path()) else { return };
    server.create_bucket("plain", false).unwrap();
    server.create_bucket("locked", true).unwrap();
    wrong_keys_are_told(&server);
    a_missing_bucket_is_told(&server);
    locks_are_set(&server);
    the_location_opens(&server);
}

fn wrong_keys_are_told(server: &SeaweedFs) {
    let good = server.credentials();
    let (mut wrong_secret, mut wrong_id) = (good.clone(), good);
    wrong_secret.secret_access_key = "hush-hush".into();
    wrong_id.access_key_id = "nobody".into();
    for credentials in [wrong_secret, wrong_id] {
        let bucket = S3::new(&server.options("plain", "pre/"), &credentials).unwrap();
        for (operation, error) in all_errors(&bucket) {
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::AccessDenied, "{operation}: {text}");
            assert!(text.contains("s3://plain/pre/") && text.contains(server.endpoint()), "{operation}: {text}");
            assert!(!format!("{error:?}").contains("hush-hush"), "{operation}: {error:?}");
        }
    }
}

fn a_missing_bucket_is_told(server: &SeaweedFs) {
    for (operation, error) in all_errors(&server.s3("no-such-bucket", "")) {
        assert_eq!(error.kind(), ErrorKind::Other, "{operation}: {error}");
        assert!(error.to_string().contains("the bucket does not exist"), "{operation}: {error}");
    }
}

fn locks_are_set(server: &SeaweedFs) {
    let raw =
        rusty_s3::Bucket::new(server.endpoint().parse().unwrap(), rusty_s3::UrlStyle::Path, "locked", "us-east-1");
    let raw = raw.unwrap();
    let keys = server.credentials();
    let keys = rusty_s3::Credentials::new(&keys.access_key_id, &keys.secret_access_key);
    let bucket = server.s3("locked", "pre/");
    for mode in [LockMode::Compliance, LockMode::Governance] {
        let retain_until = SystemTime::now() + Duration::from_secs(3600);
        let options = PutOptions { retention: Some(ObjectLock { mode, retain_until }), ..Default::default() };
        let outcome = bucket.put("p1", &[b"first"], &options).unwrap_or_else(|error| panic!("{error}"));
        let version = outcome.version.expect("a bucket with locks keeps versions");

        let mut head = HeadObject::new(&raw, Some(&keys), "pre/p1");
        head.query_mut().insert("versionId", version.clone());
        let answer = ureq::head(head.sign(Duration::from_secs(60)).as_str()).call().unwrap();
        assert_eq!(answer.headers()["x-amz-object-lock-mode"], mode.to_string());
        assert!(answer.headers().contains_key("x-amz-object-lock-retain-until-date"));

        let mut delete = DeleteObject::new(&raw, Some(&keys), "pre/p1");
        delete.query_mut().insert("versionId", version);
        let refused = ureq::delete(delete.sign(Duration::from_secs(60)).as_str()).call();
        assert!(matches!(refused, Err(ureq::Error::StatusCode(403))), "{mode}: {refused:?}");
        assert_eq!(bucket.get("p1").unwrap(), b"first"[..]);

        let error = server.s3("plain", "").put("p1", &[b"x"], &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("was the bucket made with it?"), "{error}");
    }
    // A locked object can be hidden, and put again, as a new version.
    bucket.delete("p1").unwrap();
    assert!(bucket.get("p1").unwrap_err().is_not_found());
    bucket.put("p1", &[b"second"], &PutOptions::if_absent()).unwrap();
    assert_eq!(bucket.get("p1").unwrap(), b"second"[..]);
}

fn the_location_opens(server: &SeaweedFs) {
    let environment = S3Environment {
        credentials: Some(server.credentials()),
        endpoint: Some(server.endpoint().to_owned()),
        ..S3Environment::default()
    };
    let by_environment = open(&parse_url("s3://plain/by-url/").unwrap(), &environment, RetryPolicy::default()).unwrap();
    let url = format!("s3://plain/by-url/?endpoint={}&path_style=true&region=eu-west-1", server.endpoint());
    let no_endpoint = S3Environment { endpoint: None, ..environment };
    let by_url = open(&parse_url(&url).unwrap(), &no_endpoint, RetryPolicy::default()).unwrap();
    by_environment.put("k", &[b"x"], &PutOptions::default()).unwrap();
    assert_eq!(by_url.get("k").unwrap(), b"x"[..]);
    assert_eq!(list(&server.s3("plain", "")).unwrap(), ["by-url/k"]);
}

/// Serves one connection per canned answer, reading no more than the head of a request and its announced body.
struct FakeServer {
    endpoint: String,
    served: thread::JoinHandle<()>,
}

impl FakeServer {
    fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let served = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                read_request(&mut stream);
                stream.write_all(&answer).unwrap();
            }
        });
        Self { endpoint, served }
    }

    fn s3(&self) -> S3 {
        s3_at(&self.endpoint)
    }
}

fn s3_at(endpoint: &str) -> S3 {
    let options = S3Options { endpoint: Some(endpoint.to_owned()), ..S3Options::new("fake") };
    let credentials =
        Credentials { access_key_id: "id".into(), secret_access_key: "hush-hush".into(), session_token: None };
    S3::new(&options, &credentials).unwrap()
}

fn read_request(stream: &mut TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.trim().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n\r\n{body}").into_bytes()
}

fn error_answer(status: &str, document: &str) -> Vec<u8> {
    answer(status, &format!("Content-Length: {}", document.len()), document)
}

#[test]
fn bad_answers_to_gets_are_told_apart() {
    let not_found = "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>";
    let endless = format!("<Error><Code>X</Code>{}", "<a>".repeat(1 << 20));
    for (name, bytes, kind) in [
        ("a body cut short", answer("200 OK", "Content-Length: 10", "short"), ErrorKind::Unreachable),
        ("a length that is a lie", answer("200 OK", "Content-Length: 9000000000000", "x"), ErrorKind::Unreachable),
        (
            "a chunked body cut short",
            answer("200 OK", "Transfer-Encoding: chunked", "5\r\nhel"),
            ErrorKind::Unreachable,
        ),
        ("no answer", vec![], ErrorKind::Unreachable),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-".to_vec(), ErrorKind::Unreachable),
        ("something else than HTTP", b"220 smtp ready\r\n\r\n".to_vec(), ErrorKind::Unreachable),
        ("a missing object", error_answer("404 Not Found", not_found), ErrorKind::NotFound),
        ("a web server", answer("404 Not Found", "Content-Length: 9", "not found"), ErrorKind::Other),
        ("a busy server", answer("503 Slow Down", "Content-Length: 0", ""), ErrorKind::Unreachable),
        ("an endless error", error_answer("500 Error", &endless), ErrorKind::Unreachable),
        (
            "another region",
            answer("301 Moved", "Location: http://127.0.0.1:1/\r\nContent-Length: 0", ""),
            ErrorKind::Other,
        ),
    ] {
        let server = FakeServer::start(vec![bytes]);
        let error = server.s3().get("k").expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
        let source = std::error::Error::source(&error).map(|source| source.to_string()).unwrap_or_default();
        assert!(!source.contains("Signature") && !error.to_string().contains("Signature"), "{name}: {error}: {source}");
    }
}

#[test]
fn bad_answers_to_ranges_are_told_apart() {
    let partial = |range: &str, body: &str| {
        answer("206 Partial", &format!("Content-Range: {range}\r\nContent-Length: {}", body.len()), body)
    };
    for (name, bytes, kind) in [
        ("the range", partial("bytes 2-5/10", "cdef"), None),
        ("less of it", partial("bytes 2-4/5", "cde"), Some(ErrorKind::RangeNotSatisfiable)),
        ("another range", partial("bytes 0-3/10", "abcd"), Some(ErrorKind::Other)),
        ("more than asked for", partial("bytes 2-9/10", "cdefghij"), Some(ErrorKind::Other)),
        ("a body shorter than its range", partial("bytes 2-5/10", "cd"), Some(ErrorKind::Unreachable)),
        ("a body longer than its range", partial("bytes 2-5/10", "cdefg"), Some(ErrorKind::Unreachable)),
        ("the whole object", answer("200 OK", "Content-Length: 10", "abcdefghij"), Some(ErrorKind::Unsupported)),
    ] {
        let server = FakeServer::start(vec![bytes]);
        let found = server.s3().get_range("k", 2, 4);
        assert_eq!(found.as_ref().err().map(BucketError::kind), kind, "{name}: {found:?}");
        assert!(kind.is_some() || found.unwrap() == b"cdef"[..], "{name}");
    }
}

#[test]
fn hostile_listings_are_refused() {
    let listing = |inner: &str| {
        let xml = format!("<ListBucketResult>{inner}</ListBucketResult>");
        answer("200 OK", &format!("Content-Length: {}", xml.len()), &xml)
    };
    let again = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>";
    let foreign =
        "<Contents><Key>other</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>";
    for (name, answers, prefix) in [
        ("a listing that does not advance", vec![listing(again), listing(again)], ""),
        ("an object that was not asked for", vec![listing(foreign)], "mine"),
        ("no listing", vec![answer("200 OK", "Content-Length: 5", "hello")], ""),
    ] {
        let server = FakeServer::start(answers);
        let error = server.s3().list(prefix, &mut |_| ControlFlow::Continue(())).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Other, "{name}: {error}");
        server.served.join().unwrap();
    }
}

#[test]
fn retries_get_over_bad_answers() {
    let ok = |body: &str| answer("200 OK", &format!("ETag: \"e\"\r\nContent-Length: {}", body.len()), body);
    let policy = RetryPolicy { first_wait: Duration::from_millis(1), ..RetryPolicy::default() };
    let server = FakeServer::start(vec![
        answer("200 OK", "Content-Length: 10", "short"),
        answer("503 Slow Down", "Content-Length: 0", ""),
        vec![],
        ok("whole body"),
        answer("500 Internal Error", "Content-Length: 0", ""),
        ok(""),
    ]);
    let bucket = Retrying::new(server.s3(), policy);
    assert_eq!(bucket.get("k").unwrap(), b"whole body"[..]);
    let outcome = bucket.put("k", &[b"a", b"b"], &PutOptions::default()).unwrap();
    assert_eq!(outcome.etag.as_deref(), Some("e"));
    server.served.join().unwrap();
}

#[test]
fn a_port_where_nobody_listens_is_given_up_in_time() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let policy = RetryPolicy {
        first_wait: Duration::from_millis(20),
        longest_wait: Duration::from_millis(100),
        give_up_after: Duration::from_millis(500),
    };
    let bucket = Retrying::new(s3_at(&format!("http://127.0.0.1:{port}")), policy);
    for operation in 0..5 {
        let start = Instant::now();
        let error = match operation {
            0 => bucket.get("k").unwrap_err(),
            1 => bucket.put("k", &[b"x"], &PutOptions::default()).unwrap_err(),
            2 => list(&bucket).unwrap_err(),
            3 => bucket.head("k").unwrap_err(),
            _ => bucket.delete("k").unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        let text = error.to_string();
        assert!(text.contains(&port.to_string()) && text.contains("gave up after"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(5), "{operation}: {:?}", start.elapsed());
    }
}
