//! A server in a process of its own, so that it can be killed: this very test program, which begins again as the server.
//!
//! No other program has to be found or built, whatever part of the workspace is tested. What runs is the server's
//! library, as `e3-server` runs it; the clock that its decisions are made on can be moved.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use bucket::{Credentials, S3Environment};
use serde_json::{Value, json};
use server::adopt::{self, Adopted};
use server::settings::Settings;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::estate::Repository;

/// Says to a process of this program that it is the server.
const VARIABLE: &str = "E3_TEST_SERVER";
/// The line on which it says that it serves.
const READY: &str = "serving ";
/// A password that the owner has.
const PASSWORD: &str = "correct horse battery staple";

/// What the process does that is the server: serves until its input ends, and moves its clock as it is told.
pub fn serve_if_asked() {
    let Ok(asked) = std::env::var(VARIABLE) else { return };
    let asked: Value = serde_json::from_str(&asked).expect("what is asked is JSON");
    let text = |key: &str| asked[key].as_str().map(str::to_owned);
    let unlimited = (1e6, 1e6);
    let settings = Settings {
        listen: text("listen").expect("an address").parse().expect("an address"),
        database: text("database"),
        rates: server::settings::Rates { agent: unlimited, address: unlimited, ..Default::default() },
        tick: Duration::from_millis(100),
        jitter_secs: 0,
        ..Settings::new(PathBuf::from(text("data").expect("a folder")))
    };
    // As `e3-server` writes it, and all of it.
    tracing_subscriber::fmt().with_env_filter("debug").with_ansi(false).with_writer(std::io::stderr).init();
    let clock = settings.clock.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let server = runtime.block_on(server::start(settings)).unwrap_or_else(|error| panic!("start: {error:#}"));
    let ready = json!({
        "fingerprint": server.fingerprint, "certificate": server.certificate_pem, "setup_link": server.setup_link,
    });
    println!("\n{READY}{ready}");
    std::io::stdout().flush().expect("standard output");
    for line in std::io::stdin().lines() {
        let line = line.expect("standard input");
        let seconds: i64 = line.trim().parse().expect("seconds");
        clock.advance(jiff::SignedDuration::from_secs(seconds));
    }
    std::process::exit(0);
}

/// A server and its owner.
pub struct Server {
    data: PathBuf,
    database: Option<String>,
    listen: SocketAddr,
    process: Option<(Child, ChildStdin)>,
    http: Option<ureq::Agent>,
    /// How the certificate is known.
    pub fingerprint: String,
    token: String,
}

impl Server {
    /// Starts one, with an account.
    pub fn start(data: &Path, database: Option<String>) -> Self {
        // The same address after a restart, as agents expect it.
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listen = free.local_addr().expect("its address");
        drop(free);
        let mut server = Self {
            data: data.to_owned(),
            database,
            listen,
            process: None,
            http: None,
            fingerprint: String::new(),
            token: String::new(),
        };
        server.begin_with_account();
        server
    }

    /// Begins the process on a database that has no account, and makes one.
    fn begin_with_account(&mut self) {
        let link = self.begin().expect("a set-up link");
        let setup = link.rsplit('/').next().expect("its token");
        let asked = json!({"token": setup, "email": "owner@example.com", "password": PASSWORD, "name": "First"});
        let (answer, cookie) = self.send("POST", "console_setup.php", &asked, &[]);
        let csrf = answer["csrf_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        let origin = self.origin();
        let headers = [("cookie", cookie.expect("a cookie")), ("x-csrf-token", csrf), ("origin", origin)];
        let (answer, _) = self.send("POST", "e3backup_api_token_create.php", &json!({}), &headers);
        self.token = answer["token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    }

    /// Its machine burns down, database, certificate and key of the secrets with it; on a new one a repository is adopted,
    /// as `e3-server repo adopt` does it, and somebody makes the first account.
    pub fn lose_and_adopt(&mut self, database: Option<String>, repository: &Repository, url: &str) -> Adopted {
        self.kill();
        std::fs::remove_dir_all(&self.data).expect("its folder");
        self.database = database;
        let location = bucket::parse_url(url).expect("a location");
        let keys = repository.keys.as_ref().map(|(id, secret)| Credentials {
            access_key_id: id.clone(),
            secret_access_key: secret.clone(),
            session_token: None,
        });
        let environment = S3Environment { credentials: keys, region: None, endpoint: None, ca_file: None };
        let found = adopt::read(location, environment, repository.password).expect("the repository");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let adopted = runtime.block_on(async {
            let (db, vault) = server::open_store(&self.data, self.database.as_deref()).await.expect("the database");
            let (into, now) = (adopt::Into::default(), jiff::Timestamp::now());
            let adopted = adopt::adopt(&db, &vault, &found, repository.password, &into, now).await;
            db.close().await;
            adopted.expect("adopted")
        });
        self.begin_with_account();
        adopted
    }

    /// The text of a page, by its path.
    pub fn page(&self, path: &str) -> String {
        match self.send("GET", path, &Value::Null, &[("authorization", format!("Bearer {}", self.token))]).0 {
            Value::String(text) => text,
            other => panic!("{path}: {other}"),
        }
    }

    /// The API token that its owner uses here.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Its database, where that is not SQLite in its folder.
    pub fn database(&self) -> Option<&String> {
        self.database.as_ref()
    }

    /// `https://…`
    pub fn origin(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// Begins the process, which has to be gone; the set-up link, if it gave one.
    pub fn begin(&mut self) -> Option<String> {
        let asked = json!({"data": self.data, "listen": self.listen.to_string(), "database": self.database});
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "server_process", "--ignored", "--nocapture"]).env(VARIABLE, asked.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(self.log());
        let mut process = command.spawn().expect("start the server");
        let (input, output) = (process.stdin.take().expect("input"), process.stdout.take().expect("output"));
        let mut lines = BufReader::new(output).lines();
        let ready = lines
            .by_ref()
            .map(|line| line.expect("a line"))
            .find_map(|line| line.strip_prefix(READY).map(str::to_owned));
        // What it writes later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let ready: Value = serde_json::from_str(&ready.expect("the server starts")).expect("JSON");
        let pem = Certificate::from_pem(ready["certificate"].as_str().expect("PEM").as_bytes()).expect("a certificate");
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[pem])).build();
        let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false);
        self.http = Some(config.timeout_global(Some(Duration::from_secs(30))).build().into());
        self.fingerprint = ready["fingerprint"].as_str().expect("fingerprint").to_owned();
        self.process = Some((process, input));
        ready["setup_link"].as_str().map(str::to_owned)
    }

    fn log(&self) -> std::fs::File {
        let path = self.data.with_extension("log");
        std::fs::File::options().create(true).append(true).open(path).expect("a log")
    }

    /// The processes that can be looked at: the server's.
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").0.id()
    }

    /// Kills it: -9, in the middle of whatever it does.
    pub fn kill(&mut self) {
        let (mut process, input) = self.process.take().expect("it runs");
        process.kill().expect("kill");
        process.wait().expect("its end");
        drop(input);
    }

    /// Moves its clock; negative is back.
    pub fn advance(&mut self, seconds: i64) {
        let (_, input) = self.process.as_mut().expect("it runs");
        writeln!(input, "{seconds}").and_then(|()| input.flush()).expect("its input");
    }

    /// Asks as the owner; the call has to work.
    #[track_caller]
    pub fn get(&self, name: &str, query: &[(&str, &str)]) -> Value {
        let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.call("GET", &format!("{name}?{}", query.join("&")), &Value::Null)
    }

    /// Tells as the owner; the call has to work.
    #[track_caller]
    pub fn post(&self, name: &str, body: &Value) -> Value {
        self.call("POST", name, body)
    }

    #[track_caller]
    fn call(&self, method: &str, name: &str, body: &Value) -> Value {
        let (answer, _) = self.send(method, name, body, &[("authorization", format!("Bearer {}", self.token))]);
        assert_eq!(answer["success"], true, "{method} {name} {body}: {answer}");
        answer
    }

    fn send(&self, method: &str, name: &str, body: &Value, headers: &[(&str, String)]) -> (Value, Option<String>) {
        // A name that begins with a slash is a path by itself.
        let base = if name.starts_with('/') { "" } else { "/api/" };
        let uri = format!("{}{base}{name}", self.origin());
        let mut request = ureq::http::Request::builder().method(method).uri(uri);
        for (key, value) in headers {
            request = request.header(*key, value);
        }
        let http = self.http.as_ref().expect("it runs");
        let sent = if method == "GET" {
            http.run(request.body(()).expect("request"))
        } else {
            http.run(request.header("content-type", "application/json").body(body.to_string()).expect("request"))
        };
        let mut response = sent.unwrap_or_else(|error| panic!("{method} {name}: {error}"));
        let cookie = response.headers().get("set-cookie").and_then(|value| value.to_str().ok());
        let cookie = cookie.and_then(|cookie| cookie.split(';').next()).map(str::to_owned);
        let text = response.body_mut().read_to_string().expect("body");
        (serde_json::from_str(&text).unwrap_or(Value::String(text)), cookie)
    }

    /// The first answer for which `is_it` gives something.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: &str,
        name: &str,
        query: &[(&str, &str)],
        is_it: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let begun = Instant::now();
        loop {
            let answer = self.get(name, query);
            if let Some(found) = is_it(&answer) {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "{what} was not seen; last: {answer}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A token for one enrolment.
    pub fn enrolment_token(&self) -> String {
        self.post("e3backup_token_create.php", &json!({}))["token"].as_str().expect("token").to_owned()
    }

    /// A run that ended, whatever way.
    #[track_caller]
    pub fn ended(&self, run: &Value) -> Value {
        self.wait_for("the end of the run", "cloudbackup_get_run.php", &[("run_id", &run.to_string())], |answer| {
            let status = answer["run"]["status"].as_str()?;
            (!["queued", "starting", "running"].contains(&status)).then(|| answer.clone())
        })
    }

    /// The points of a VM, newest first, by its name.
    pub fn points_of(&self, vm_name: &str) -> Vec<Value> {
        let all = self.get("e3backup_restore_points_list.php", &[("limit", "200")]);
        let rows = all["restore_points"].as_array().unwrap_or_else(|| panic!("{all}"));
        rows.iter().filter(|point| point["vm_name"] == vm_name).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((mut process, _)) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
