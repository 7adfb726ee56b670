//! Databases for tests: SQLite always, MariaDB where it can be had.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A database for one test.
#[derive(Debug, Clone)]
pub enum Database {
    /// In the server's data folder.
    Sqlite,
    /// A new one of the MariaDB server of this test program.
    MariaDb(String),
}

impl Database {
    /// For the settings of a server.
    pub fn address(&self) -> Option<String> {
        match self {
            Database::Sqlite => None,
            Database::MariaDb(address) => Some(address.clone()),
        }
    }

    /// A new database of MariaDB, if it can be had.
    pub fn mariadb() -> Option<Database> {
        let server = server()?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e3_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let made = server.client(&format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"));
        assert!(made, "CREATE DATABASE {name}");
        let socket = server.socket.display().to_string().replace('/', "%2F");
        Some(Database::MariaDb(format!("mysql://root@localhost/{name}?socket={socket}")))
    }

    /// Every kind that there is here; a line says what there is not.
    pub fn each() -> Vec<Database> {
        let mut databases = vec![Database::Sqlite];
        match Database::mariadb() {
            Some(database) => databases.push(database),
            None => println!("SKIPPED on MariaDB: mariadbd is not there (Debian package mariadb-server)"),
        }
        databases
    }
}

/// The MariaDB server of this test program; it ends with it, and its folder goes with it.
///
/// It stands in a static, which nobody drops: what has to be done at the end is done by the shell that holds the server.
struct MariaDb {
    socket: PathBuf,
    /// The shell that holds it; another one after it was away.
    shell: Mutex<Child>,
    folder: PathBuf,
}

/// Tells the shell that the folder is needed again. The end of its input alone says that it is not.
const KEEP: &str = "keep";

/// Kills the MariaDB server of this test program, if it runs, and starts it again after that time.
pub fn take_away(time: Duration) {
    let Some(database) = server() else { return };
    let mut shell = database.shell.lock().expect("no panic while held");
    let mut input = shell.stdin.take().expect("its input");
    writeln!(input, "{KEEP}").expect("its input");
    drop(input);
    shell.wait().expect("its end");
    std::thread::sleep(time);
    *shell = spawn(&database.folder);
    database.wait();
}

impl MariaDb {
    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        while !self.client("SELECT 1") {
            assert!(Instant::now() < until, "MariaDB did not come up: {}", log(&self.folder.join("log")));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn client(&self, statement: &str) -> bool {
        let Some(program) = find("mariadb", "E3_TEST_MARIADB_CLIENT") else { return false };
        let mut client = Command::new(program);
        client.arg("--no-defaults").arg("-uroot").arg("-S").arg(&self.socket).args(["-e", statement]);
        client.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

fn find(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(variable) {
        return Some(PathBuf::from(given));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn server() -> Option<&'static MariaDb> {
    static SERVER: OnceLock<Option<MariaDb>> = OnceLock::new();
    SERVER.get_or_init(start).as_ref()
}

fn start() -> Option<MariaDb> {
    find("mariadbd", "E3_TEST_MARIADB")?;
    let install = find("mariadb-install-db", "E3_TEST_MARIADB_INSTALL")?;
    let folder = tempfile::Builder::new().prefix("e3db").tempdir().expect("folder");
    let data = folder.path().join("data");
    fs::create_dir_all(&data).expect("data folder");
    let user = if is_root() { "root" } else { "" };
    let mut make = Command::new(install);
    make.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    make.arg(format!("--datadir={}", data.display()));
    if !user.is_empty() {
        make.arg(format!("--user={user}"));
    }
    let made = make.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(made.is_ok_and(|status| status.success()), "mariadb-install-db failed");
    // From here on the shell removes it.
    let folder = folder.keep();
    let database = MariaDb { socket: folder.join("s"), shell: Mutex::new(spawn(&folder)), folder };
    database.wait();
    Some(database)
}

/// Starts the server on what lies in that folder.
fn spawn(folder: &Path) -> Child {
    let program = find("mariadbd", "E3_TEST_MARIADB").expect("it was found before");
    // The read ends when this program's end of the pipe closes, however this program ends.
    let script = format!(
        "\"$1\" --no-defaults {} --datadir=\"$2/data\" --socket=\"$2/s\" --skip-networking --pid-file=\"$2/pid\" \
         --max-connections=400 --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M 2>\"$2/log\" & \
         server=$!; read word; kill -9 $server; wait $server; [ \"$word\" = {KEEP} ] || rm -rf \"$2\"",
        if is_root() { "--user=root" } else { "" },
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(program).arg(folder);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().expect("a shell")
}

fn log(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_root() -> bool {
    // The owner of a process's own entry is the user it runs as.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
    }
    #[cfg(not(unix))]
    false
}
