//! No secret anywhere but where it belongs: canaries are planted, the whole story is told through the executable, and
//! everything that was written, printed or shown by the system is searched for them, raw and in the usual encodings.
#![cfg(unix)]

#[path = "support/canaries.rs"]
mod canaries;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use canaries::{Search, base64};
use support::{Desk, files_below, random_bytes};

const PASSWORD: &str = "canary pass/word+7c1f?&=\u{e4}";
const ACCESS_KEY: &str = "CANARYACCESSKEY4F2A+/";
const SECRET_KEY: &str = "canary/secret+key=9b3e&5d~";
/// What the guest writes, in its first and in its second point.
const GUEST: &str = "canary: the guest's own plaintext, account 4711-0815";
/// Where in the disk: in the middle of a segment, at no boundary.
const GUEST_AT: [u64; 2] = [(1 << 20) + 3_456, (2 << 20) + 789];

fn all() -> Search {
    Search::of(&[("password", PASSWORD), ("access key", ACCESS_KEY), ("secret key", SECRET_KEY), ("guest", GUEST)])
}

/// Where a canary may be: what the test wrote, and what it asked for.
fn belongs(desk: &Desk, file: &Path, found: &str) -> bool {
    let is_below = |name: &str| file.starts_with(desk.path(name));
    match found.split(" (").next().unwrap() {
        "password" => is_below("password.txt"),
        "access key" | "secret key" => is_below("credentials"),
        "guest" => is_below("lab") || is_below("disk.raw") || is_below("restored.raw") || is_below("restored.vhdx"),
        other => panic!("no canary {other}"),
    }
}

/// Tells the story, and keeps what was printed.
struct Story {
    desk: Desk,
    search: Search,
    /// Command lines, and what is searched in them as in any output.
    told: Vec<(String, Vec<u8>)>,
    /// How many times the system was asked for the command line of a process that ran.
    looks: usize,
}

impl Story {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.desk.command(arguments);
        // Not by the environment: what the system shows of a process is searched too.
        command.env_remove("E3_PASSWORD").env("E3_CONFIG", self.desk.path("config.toml"));
        command.env("AWS_SHARED_CREDENTIALS_FILE", self.desk.path("credentials"));
        command.args(["--password-file", "password.txt", "--timeout", "1s"]);
        command.env("TMPDIR", self.desk.path("scratch")).env("RUST_BACKTRACE", "1");
        command
    }

    /// Runs it to its end, looking at the process as others on the machine can.
    fn tell(&mut self, exit: Option<i32>, mut command: Command) {
        let name = format!("{command:?}");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        self.look(&name, child.id());
        let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
        let ended = child.wait().unwrap().code();
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        let text = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(ended, exit, "{name}: {text}");
        self.told.push((format!("{name}: standard output"), stdout));
        self.told.push((format!("{name}: standard error"), stderr));
    }

    fn run(&mut self, exit: i32, arguments: &[&str]) {
        for more in [&[][..], &["--json"], &["-vv"]] {
            let command = self.command(&[arguments, more].concat());
            self.tell(Some(exit), command);
        }
    }

    fn once(&mut self, exit: i32, arguments: &[&str]) {
        let command = self.command(arguments);
        self.tell(Some(exit), command);
    }

    fn look(&mut self, name: &str, process: u32) {
        for what in ["cmdline", "environ"] {
            // It may have ended already.
            let Ok(shown) = std::fs::read(format!("/proc/{process}/{what}")) else { continue };
            self.looks += usize::from(!shown.is_empty());
            self.told.push((format!("{name}: {what}"), shown));
        }
    }
}

fn read_all(from: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    let mut from = from.unwrap();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn planted() -> Story {
    let desk = Desk::empty();
    std::fs::create_dir(desk.path("scratch")).unwrap();
    std::fs::write(desk.path("password.txt"), format!("{PASSWORD}\n")).unwrap();
    let keys = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(desk.path("credentials"), keys).unwrap();
    let mut disk = random_bytes(8 << 20, 11);
    let at = usize::try_from(GUEST_AT[0]).unwrap();
    disk[at..at + GUEST.len()].copy_from_slice(GUEST.as_bytes());
    std::fs::write(desk.path("disk.raw"), disk).unwrap();
    Story { desk, search: all(), told: Vec::new(), looks: 0 }
}

fn tell_all(story: &mut Story) {
    story.once(0, &["repo", "create", "-vv"]);
    story.run(0, &["repo", "connect", "repo"]);
    story.once(0, &["lab", "create", "lab"]);
    story.once(0, &["lab", "add-vm", "lab", "DC01", "--disk", "disk.raw"]);
    story.once(0, &["backup", "DC01", "-vv"]);
    story.desk.lab().guest_write_at("DC01", 0, GUEST_AT[1], GUEST.as_bytes()).unwrap();
    story.run(0, &["backup", "DC01"]);
    let mut killed = story.command(&["backup", "DC01", "-vv"]);
    killed.env("E3_LAB_KILL_AT", "seam:60:after");
    story.tell(None, killed);
    story.once(0, &["backup", "DC01", "--full"]);

    // What fails: a wrong password, which is a secret too, and a store that is not there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nowhere = format!("s3://points/?endpoint=http://127.0.0.1:{port}&region=us-east-1&path_style=true");
    story.run(13, &["repo", "status", &nowhere]);
    story.run(13, &["backup", "DC01", "--repo", &nowhere]);
    std::fs::write(story.desk.path("other.txt"), "another password\n").unwrap();
    for arguments in [&["points", "list"][..], &["backup", "DC01"], &["restore", "vm", "DC01@1"]] {
        let mut command = story.desk.command(arguments);
        command.env_remove("E3_PASSWORD").args(["--password-file", "other.txt", "-vv"]);
        story.tell(Some(12), command);
    }

    for level in ["structure", "sample", "full"] {
        story.run(0, &["verify", "--all", "--level", level]);
    }
    story.once(0, &["verify", "DC01@1", "--level", "restore", "--scratch", "scratch", "-vv"]);
    story.once(0, &["restore", "disk", "DC01@1", "--to", "restored.raw", "--format", "raw", "-vv"]);
    story.once(0, &["restore", "disk", "DC01@1", "--to", "restored.vhdx", "--json"]);
    story.once(0, &["restore", "vm", "DC01@1", "-vv"]);
    story.once(0, &["points", "hold", "DC01@2", "--reason", "test", "-vv"]);
    story.once(0, &["points", "release", "DC01@2", "-vv"]);
    for question in [
        &["points", "list"][..],
        &["points", "show", "DC01@1"],
        &["retention", "plan", "--keep-latest", "1"],
        &["host", "check"],
        &["audit"],
        &["snapshot", "list"],
        &["repo", "status"],
        &["vm", "list"],
        &["status"],
        &["config", "show", "--origin"],
        &["config", "check"],
    ] {
        story.run(0, question);
    }
    run_as_agent(story);
}

/// The agent does a job, and is stopped.
fn run_as_agent(story: &mut Story) {
    std::fs::write(story.desk.path("config.toml"), "[[job]]\nname = \"often\"\nevery = \"1s\"\nvms = [\"DC01\"]\n")
        .unwrap();
    let mut command = story.command(&["run", "-vv"]);
    let mut agent = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, stderr) = (read_all(agent.stdout.take()), read_all(agent.stderr.take()));
    let begun = Instant::now();
    loop {
        story.look("run", agent.id());
        let status = support::finish(&mut story.command(&["service", "status", "--json"]));
        if status.exit == Some(0) && status.json()["jobs"]["often"]["last_exit"].is_number() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{status:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let id = rustix::process::Pid::from_raw(agent.id().cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    story.told.push(("run: standard output".to_owned(), stdout.join().unwrap()));
    story.told.push(("run: standard error".to_owned(), stderr.join().unwrap()));
}

#[test]
fn secrets_are_found_only_where_they_belong_and_found_there() {
    let mut story = planted();
    tell_all(&mut story);

    let mut astray = Vec::new();
    for (place, bytes) in &story.told {
        astray.extend(story.search.found(bytes).into_iter().map(|canary| format!("{canary} in {place}")));
    }
    let mut at_home: Vec<(PathBuf, String)> = Vec::new();
    let files = files_below(&story.desk.path(""));
    for file in &files {
        for canary in story.search.found(&std::fs::read(file).unwrap()) {
            match belongs(&story.desk, file, &canary) {
                true => at_home.push((file.clone(), canary)),
                false => astray.push(format!("{canary} in {}", file.display())),
            }
        }
    }
    assert_eq!(astray, Vec::<String>::new());

    // The search finds what is there, or it would prove nothing.
    for (file, canary) in [
        ("password.txt", "password (raw)"),
        ("credentials", "access key (raw)"),
        ("credentials", "secret key (raw)"),
        ("disk.raw", "guest (raw)"),
        ("restored.raw", "guest (raw)"),
        ("restored.vhdx", "guest (raw)"),
    ] {
        assert!(
            at_home.contains(&(story.desk.path(file), canary.to_owned())),
            "{canary} is not in {file}: {at_home:?}"
        );
    }
    assert!(at_home.iter().any(|(file, _)| file.starts_with(story.desk.path("lab"))), "{at_home:?}");
    if cfg!(target_os = "linux") {
        // How often is a matter of how long each of them lives.
        assert!(story.looks > 4, "processes were looked at {} times", story.looks);
    }
    assert!(files.iter().any(|file| file.starts_with(story.desk.path("repo"))), "{files:?}");
}

/// Each encoding, within other bytes, is recognised.
#[test]
fn the_search_sees_every_encoding() {
    let search = Search::of(&[("password", PASSWORD)]);
    let bytes = PASSWORD.as_bytes();
    let url = "canary%20pass%2Fword%2B7c1f%3F%26%3D%C3%A4";
    let mut texts = vec![
        ("raw", PASSWORD.to_owned()),
        ("hex", bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        ("HEX", bytes.iter().map(|byte| format!("{byte:02X}")).collect()),
        ("URL", url.to_owned()),
        ("url", "canary%20pass%2fword%2b7c1f%3f%26%3d%c3%a4".to_owned()),
        ("form", url.replace("%20", "+")),
        ("JSON", PASSWORD.replace('/', "\\/")),
    ];
    for before in ["", "x", "xy", "xyz"] {
        texts.push(("base64", base64(format!("{before}{PASSWORD} and more").as_bytes(), "+/")));
    }
    for (encoding, text) in texts {
        let found = search.found(format!("noise {text} noise").as_bytes());
        assert!(found.contains(&format!("password ({encoding})")), "{encoding}: {text}: {found:?}");
        assert_eq!(search.found(&text.as_bytes()[1..]).iter().filter(|one| one.contains("(raw)")).count(), 0);
    }
    assert_eq!(base64(b"any carnal pleas", "+/"), "YW55IGNhcm5hbCBwbGVhcw");
    assert_eq!(search.found(b"nothing of the kind"), Vec::<String>::new());
}
