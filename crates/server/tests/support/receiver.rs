//! Somebody who is told: a receiver of webhooks, and a mail server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

/// One call that a receiver got, and whose signature it found right.
#[derive(Debug, Clone)]
pub struct Got {
    pub delivery: String,
    pub event: String,
    pub signature: String,
    pub raw: String,
    pub body: Value,
}

/// A receiver of webhooks on TLS.
pub struct Receiver {
    pub url: String,
    pub certificate_pem: String,
    pub fails: Arc<AtomicU32>,
    got: Arc<Mutex<Vec<Got>>>,
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Receiver {
    pub fn start() -> Receiver {
        let folder = tempfile::tempdir().expect("folder");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("runtime");
        let identity = server::tls::identity(folder.path(), &["localhost".to_owned()]).expect("a certificate");
        let (got, fails) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
        let (calls, failing) = (got.clone(), fails.clone());
        let take = move |headers: HeaderMap, body: Bytes| {
            let (calls, failing) = (calls.clone(), failing.clone());
            async move {
                if failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    return (StatusCode::SERVICE_UNAVAILABLE, "not now");
                }
                let text =
                    |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
                let raw = String::from_utf8(body.to_vec()).expect("UTF-8");
                calls.lock().expect("lock").push(Got {
                    delivery: text("x-e3-delivery"),
                    event: text("x-e3-event"),
                    signature: text("x-e3-signature"),
                    body: serde_json::from_str(&raw).expect("JSON"),
                    raw,
                });
                (StatusCode::OK, "thanks")
            }
        };
        let listener = runtime.block_on(async {
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            server::tls::TlsListener::new(tcp, identity.config.clone()).expect("listen")
        });
        let port = axum::serve::Listener::local_addr(&listener).expect("address").port();
        let router = axum::Router::new().route("/hook", axum::routing::post(take));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Receiver {
            url: format!("https://localhost:{port}/hook"),
            certificate_pem: identity.certificate_pem,
            fails,
            got,
            _folder: folder,
            _runtime: runtime,
        }
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().expect("lock").clone()
    }
}

impl Got {
    /// Whether it was signed with that key, as docs/server-guide.md tells a receiver to see.
    pub fn is_signed_with(&self, key: &str) -> bool {
        let parts: BTreeMap<&str, &str> = self.signature.split(',').filter_map(|part| part.split_once('=')).collect();
        let (Some(seconds), Some(tag)) = (parts.get("t"), parts.get("v1")) else { return false };
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_bytes());
        let bytes: Option<Vec<u8>> =
            (0..tag.len()).step_by(2).map(|at| u8::from_str_radix(tag.get(at..at + 2)?, 16).ok()).collect();
        let signed = format!("{seconds}.{}", self.raw);
        bytes.is_some_and(|bytes| ring::hmac::verify(&key, signed.as_bytes(), &bytes).is_ok())
    }
}

/// The mail server aiosmtpd, which keeps what it takes in a folder.
pub struct MailServer {
    pub port: u16,
    folder: tempfile::TempDir,
    process: Child,
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl MailServer {
    /// None, with a line that says so, where it is not there.
    pub fn start() -> Option<MailServer> {
        let Some(program) = std::env::var_os("E3_TEST_AIOSMTPD").map(PathBuf::from) else {
            println!("SKIPPED: E3_TEST_AIOSMTPD names no aiosmtpd (PyPI; cargo xtask test installs it)");
            return None;
        };
        let folder = tempfile::tempdir().expect("folder");
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address").port();
        let mut command = Command::new(program);
        command.args(["-n", "-l", &format!("127.0.0.1:{port}"), "-c", "aiosmtpd.handlers.Mailbox"]);
        command.arg(folder.path().join("mail")).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("aiosmtpd");
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "aiosmtpd did not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(MailServer { port, folder, process })
    }

    /// Every mail, with soft line breaks taken out.
    pub fn mails(&self) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.folder.path().join("mail/new")) else { return Vec::new() };
        let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
        files.sort();
        let read = |path: PathBuf| std::fs::read_to_string(path).expect("a mail");
        files.into_iter().map(read).map(|mail| mail.replace("\r\n", "\n").replace("=\n", "")).collect()
    }
}
