//! A real S3 server for tests: SeaweedFS, started for the test and gone with it.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusty_s3::actions::{CreateBucket, S3Action};
use rusty_s3::{Method, UrlStyle};

use crate::{Bucket, Credentials, S3, S3Options};

const ACCESS_KEY_ID: &str = "testkey";
const SECRET_ACCESS_KEY: &str = "testsecret";
/// Several times what a start takes on a busy machine; fresh and idle it is under a second.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running `weed mini` with its own data folder and ports. Dropping it kills it, and so does the end of the
/// process that started it, however it ends.
pub struct SeaweedFs {
    child: Child,
    endpoint: String,
}

impl SeaweedFs {
    /// The program: what `E3_TEST_WEED` names, or `weed` from the `PATH`.
    pub fn program() -> Option<PathBuf> {
        if let Some(path) = std::env::var_os("E3_TEST_WEED") {
            return Some(path.into());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("weed")).find(|program| program.is_file())
    }

    /// Starts a server that keeps its objects in `data_dir`, which is made if it is missing, and waits until it
    /// answers. `None`, with a line on standard error that `test` is skipped, if the program is not installed.
    ///
    /// Panics if the program is there and does not come up.
    pub fn start_or_skip(test: &str, data_dir: &Path) -> Option<Self> {
        let Some(program) = Self::program() else {
            eprintln!("SKIPPED {test}: SeaweedFS (weed) is not installed");
            return None;
        };
        // A port may be taken between choosing it and using it; that is rare enough for two more attempts.
        for _ in 0..2 {
            if let Ok(server) = Self::start(&program, data_dir) {
                return Some(server);
            }
        }
        Some(Self::start(&program, data_dir).unwrap_or_else(|error| panic!("start {}: {error}", program.display())))
    }

    /// Starts the program once.
    pub fn start(program: &Path, data_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(data_dir)?;
        let config = data_dir.join("s3.json");
        let identities = format!(
            r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{ACCESS_KEY_ID}","secretKey":"{SECRET_ACCESS_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        fs::write(&config, identities)?;
        let listeners = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "admin.port",
        ];
        let ports = free_ports(listeners.len())?;
        let log = fs::File::create(data_dir.join("weed.log"))?;
        // The shell waits for its input to end, which happens when we drop it or die, and then kills the server:
        // SIGTERM would take it half a minute.
        let mut command = Command::new("sh");
        command.args(["-c", r#""$0" "$@" & cat; kill -9 $!"#]).arg(program).arg("mini");
        command.arg(format!("-dir={}", data_dir.display())).arg(format!("-s3.config={}", config.display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"]);
        command.args([
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-metricsPort=0",
            "-master.telemetry=false",
            "-s3.autoCreateBucket=false",
        ]);
        command.args(listeners.iter().zip(&ports).map(|(name, port)| format!("-{name}={port}")));
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).current_dir(data_dir);
        let server = Self { child: command.spawn()?, endpoint: format!("http://127.0.0.1:{}", ports[0]) };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    /// `http://` URL of the S3 service.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Keys that may do everything.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            access_key_id: ACCESS_KEY_ID.to_owned(),
            secret_access_key: SECRET_ACCESS_KEY.to_owned(),
            session_token: None,
        }
    }

    /// Makes a bucket, with object lock (and so with versions) if wanted. Names need three characters.
    pub fn create_bucket(&self, bucket: &str, object_lock: bool) -> io::Result<()> {
        let endpoint = self.endpoint.parse().map_err(io::Error::other)?;
        let s3 = rusty_s3::Bucket::new(endpoint, UrlStyle::Path, bucket.to_owned(), "us-east-1")
            .map_err(io::Error::other)?;
        let credentials = rusty_s3::Credentials::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY);
        let mut action = CreateBucket::new(&s3, &credentials);
        if object_lock {
            action.headers_mut().insert("x-amz-bucket-object-lock-enabled", "true");
        }
        assert_eq!(CreateBucket::METHOD, Method::Put);
        let mut request = ureq::put(action.sign(Duration::from_secs(60)).as_str());
        for (name, value) in action.headers_mut().iter() {
            request = request.header(name, value);
        }
        request.send_empty().map(drop).map_err(io::Error::other)
    }

    /// Options for a bucket of this server.
    pub fn options(&self, bucket: &str, prefix: &str) -> S3Options {
        S3Options { endpoint: Some(self.endpoint.clone()), prefix: prefix.to_owned(), ..S3Options::new(bucket) }
    }

    /// A bucket of this server, without retries.
    pub fn s3(&self, bucket: &str, prefix: &str) -> S3 {
        S3::new(&self.options(bucket, prefix), &self.credentials()).expect("options of our own are usable")
    }

    fn wait_until_it_answers(&self) -> io::Result<()> {
        let name = "ready-check";
        let start = Instant::now();
        let mut created = false;
        loop {
            created = created || self.create_bucket(name, false).is_ok();
            match created.then(|| self.s3(name, "").put("ready", &[b"yes"], &Default::default())) {
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) if start.elapsed() > START_TIMEOUT => return Err(io::Error::other(error)),
                None if start.elapsed() > START_TIMEOUT => return Err(io::Error::from(io::ErrorKind::TimedOut)),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // The shell only kills and ends; should waiting fail there is nothing left to do.
        let _ = self.child.wait();
    }
}

/// Ports that were free a moment ago. The last is for the admin server: its worker looks for it 10,000 higher,
/// whatever the options say, so that port is free too.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    // All are held until the last is found, so that they differ.
    let mut held = (1..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
    loop {
        let admin = TcpListener::bind("127.0.0.1:0")?;
        let admin_grpc = admin.local_addr()?.port().checked_add(10_000);
        let is_free = admin_grpc.is_some_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        held.push(admin);
        if is_free {
            let ports =
                held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<io::Result<Vec<_>>>()?;
            let (others, admin) = (&ports[..count - 1], &ports[ports.len() - 1..]);
            return Ok([others, admin].concat());
        }
    }
}
