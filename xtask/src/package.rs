//! Debian packages of server and agent: `packaging/` with the programs in it, put together by `dpkg-deb`. The agent's
//! package for Windows is made in `msi`.

pub mod msi;

use std::fs;
#[cfg(unix)]
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{find_program, output_of};
use crate::report::heading;
use crate::windows;
use crate::workspace::Workspace;

/// What is packaged, and from where.
#[derive(Debug, Args)]
pub struct Options {
    /// Where the packages go; `target/packages` without it.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Package the development build, which is there sooner.
    #[arg(long)]
    dev: bool,

    /// The agent for Windows, as an MSI, instead.
    #[arg(long)]
    windows: bool,
}

/// One package: where its files come from and go to.
struct Package {
    /// Its folder in `packaging/`.
    source: &'static str,
    program: &'static str,
    /// File of `packaging/`, place, mode.
    files: [(&'static str, &'static str, u32); 2],
    /// Pages of `docs/`.
    pages: &'static [&'static str],
}

const PACKAGES: [Package; 2] = [
    Package {
        source: "server",
        program: "e3-server",
        files: [
            ("e3-server.service", "lib/systemd/system/e3-server.service", 0o644),
            ("e3-server.env", "etc/e3-server/e3-server.env", 0o640),
        ],
        pages: &["server-guide.md"],
    },
    Package {
        source: "agent",
        program: "e3-backup-agent",
        files: [
            ("e3-backup-agent.service", "lib/systemd/system/e3-backup-agent.service", 0o644),
            ("config.toml", "etc/e3/config.toml", 0o600),
        ],
        pages: &["service.md", "operator-guide.md"],
    },
];

/// How the content is compressed: `xz` for people, `none` for who unpacks it at once.
#[derive(Debug, Clone, Copy)]
enum Compression {
    Xz,
    #[cfg(all(test, unix))]
    None,
}

/// Builds the programs and both packages.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let out = options.out.clone().unwrap_or_else(|| workspace.target.join("packages"));
    if options.windows {
        return windows::package(&workspace, options.dev, &out);
    }
    find_program("dpkg-deb").context("packages are put together by dpkg-deb, which is not installed")?;
    heading("building server and agent");
    let mut build = workspace.cargo();
    build.args(["build", "-p", "server", "-p", "agent", "--bins"]).args((!options.dev).then_some("--release"));
    if !build.status().context("start cargo")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let programs = workspace.target.join(if options.dev { "debug" } else { "release" });
    for package in &PACKAGES {
        let file = package.build(&workspace.root, &programs, &out, Compression::Xz)?;
        println!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

impl Package {
    /// Puts the package together; its file.
    fn build(&self, root: &Path, programs: &Path, out: &Path, compression: Compression) -> Result<PathBuf> {
        let stage = tempfile::tempdir().context("make a folder")?;
        let stage = stage.path();
        let program = stage.join("usr/bin").join(self.program);
        put(&programs.join(self.program), &program, 0o755)?;
        if let (Compression::Xz, Some(strip)) = (compression, find_program("strip")) {
            output_of(Command::new(strip).arg("--strip-debug").arg(&program))?;
        }
        let source = root.join("packaging").join(self.source);
        for (from, to, mode) in self.files {
            put(&source.join(from), &stage.join(to), mode)?;
        }
        let doc = stage.join("usr/share/doc").join(self.program);
        for page in self.pages {
            put(&root.join("docs").join(page), &doc.join(page), 0o644)?;
        }
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            put(&root.join(licence), &doc.join(licence), 0o644)?;
        }
        for script in ["postinst", "prerm", "postrm"] {
            put(&source.join(script), &stage.join("DEBIAN").join(script), 0o755)?;
        }
        put(&source.join("conffiles"), &stage.join("DEBIAN/conffiles"), 0o644)?;
        let architecture = output_of(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();
        let control = fs::read_to_string(source.join("control")).context("read control")?;
        let control = control
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
            .replace("@ARCHITECTURE@", &architecture)
            .replace("@INSTALLED_SIZE@", &(size_of(stage)? / 1024).to_string())
            .replace("@GLIBC@", &glibc_of(&fs::read(&program).context("read the program")?));
        fs::write(stage.join("DEBIAN/control"), control).context("write control")?;

        fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        let file = out.join(format!("{}_{}_{architecture}.deb", self.program, env!("CARGO_PKG_VERSION")));
        let compression = match compression {
            Compression::Xz => "-Zxz",
            #[cfg(all(test, unix))]
            Compression::None => "-Znone",
        };
        let mut deb = Command::new("dpkg-deb");
        deb.args(["--root-owner-group", compression, "--build"]).arg(stage).arg(&file);
        output_of(&mut deb)?;
        Ok(file)
    }
}

/// Copies a file to its place, with that mode.
fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    #[cfg(unix)]
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(|| format!("chmod {}", to.display()))?;
    #[cfg(not(unix))]
    let _ = mode;
    Ok(())
}

fn size_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size_of(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// The newest version of the C library that a program names: it does not start with an older one.
fn glibc_of(program: &[u8]) -> String {
    let name = b"GLIBC_2.";
    let minor = program.windows(name.len()).enumerate().filter(|(_, window)| window == name).filter_map(|(at, _)| {
        let digits: Vec<u8> =
            program[at + name.len()..].iter().take(3).copied().take_while(u8::is_ascii_digit).collect();
        String::from_utf8(digits).ok()?.parse::<u32>().ok()
    });
    format!("2.{}", minor.max().unwrap_or(0))
}

/// Fails where a program is not built.
#[cfg(all(test, unix))]
fn check_programs(programs: &Path) -> Result<()> {
    for package in &PACKAGES {
        let program = programs.join(package.program);
        if !program.is_file() {
            anyhow::bail!("{} is not built", program.display());
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_newest_c_library_that_is_named_counts() {
        for (program, expected) in [
            (&b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.17\0"[..], "2.34"),
            (b"GLIBC_2.", "2.0"),
            (b"", "2.0"),
            (b"GLIBC_2.9", "2.9"),
            (b"GLIBC_2.34567", "2.345"),
        ] {
            assert_eq!(glibc_of(program), expected, "{program:?}");
        }
    }

    /// A root of its own for `dpkg`: nothing of this machine is touched.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Root {
            let root = Root(tempfile::tempdir().expect("folder"));
            for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc"] {
                fs::create_dir_all(root.path(folder)).expect("folder");
            }
            for file in ["var/lib/dpkg/status", "var/lib/dpkg/available", "etc/passwd", "etc/group", "etc/shadow"] {
                fs::write(root.path(file), "").expect("file");
            }
            root
        }

        fn path(&self, inside: &str) -> PathBuf {
            self.0.path().join(inside)
        }

        fn read(&self, inside: &str) -> String {
            fs::read_to_string(self.path(inside)).unwrap_or_default()
        }

        fn mode(&self, inside: &str) -> u32 {
            fs::metadata(self.path(inside)).expect(inside).permissions().mode() & 0o7777
        }

        fn dpkg(&self, arguments: &[&str]) -> String {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg(format!("--root={}", self.0.path().display()));
            // Dependencies are of the machine that it is for, and there is no shell in this root.
            dpkg.args(["--force-depends", "--force-script-chrootless", "--force-confold"]).args(arguments);
            output_of(&mut dpkg).unwrap_or_else(|error| panic!("dpkg {arguments:?}: {error:#}"))
        }
    }

    #[test]
    fn packages_are_installed_changed_removed_and_purged() {
        let programs = std::env::current_exe().expect("this program");
        let programs = programs.parent().and_then(Path::parent).expect("its folder").to_owned();
        let is_root = output_of(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
        let missing = ["dpkg", "dpkg-deb", "useradd"].into_iter().find(|program| find_program(program).is_none());
        if let Some(program) = missing.or((!is_root).then_some("root")) {
            println!("SKIPPED packages: no {program}");
            return;
        }
        if let Err(why) = check_programs(&programs) {
            println!("SKIPPED packages: {why} (cargo test --workspace builds it)");
            return;
        }
        let workspace = Workspace::locate().expect("workspace");
        let out = tempfile::tempdir().expect("folder");
        let built = PACKAGES.map(|package| {
            package.build(&workspace.root, &programs, out.path(), Compression::None).expect("a package")
        });
        let files = built.each_ref().map(|file| file.to_str().expect("text"));
        let root = Root::new();
        root.dpkg(&["--install", files[0], files[1]]);
        for (file, mode) in [
            ("usr/bin/e3-server", 0o755),
            ("usr/bin/e3-backup-agent", 0o755),
            ("lib/systemd/system/e3-server.service", 0o644),
            ("lib/systemd/system/e3-backup-agent.service", 0o644),
            ("etc/e3-server/e3-server.env", 0o640),
            ("etc/e3/config.toml", 0o600),
            ("etc/e3", 0o700),
            ("var/lib/e3-server", 0o700),
        ] {
            assert_eq!(root.mode(file), mode, "{file}");
        }
        for program in ["e3-server", "e3-backup-agent"] {
            let told = output_of(Command::new(root.path("usr/bin").join(program)).arg("--version")).expect("a version");
            assert!(told.contains(env!("CARGO_PKG_VERSION")), "{told}");
        }
        assert!(root.read("etc/passwd").starts_with("e3-server:"), "{}", root.read("etc/passwd"));
        let owner = root.read("etc/passwd").split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
        let folder = fs::metadata(root.path("var/lib/e3-server")).expect("folder");
        assert_eq!(Some(std::os::unix::fs::MetadataExt::uid(&folder)), owner);

        // What an administrator wrote survives the next package, and the removal.
        let settings = "E3_SERVER_LISTEN=127.0.0.1:9443\n";
        fs::write(root.path("etc/e3-server/e3-server.env"), settings).expect("settings");
        root.dpkg(&["--install", files[0]]);
        assert_eq!(root.read("etc/e3-server/e3-server.env"), settings);
        assert_eq!(root.read("etc/passwd").lines().count(), 1);
        fs::write(root.path("var/lib/e3-server/secrets.key"), "the key").expect("key");
        root.dpkg(&["--remove", "e3-server", "e3-backup-agent"]);
        assert!(!root.path("usr/bin/e3-server").exists());
        assert!(!root.path("lib/systemd/system/e3-server.service").exists());
        assert_eq!(root.read("etc/e3-server/e3-server.env"), settings);

        // A purge takes the settings, and never the key.
        let told = root.dpkg(&["--purge", "e3-server", "e3-backup-agent"]);
        assert!(told.contains("kept: /var/lib/e3-server"), "{told}");
        assert!(!root.path("etc/e3-server").exists() && !root.path("etc/e3").exists());
        assert_eq!(root.read("var/lib/e3-server/secrets.key"), "the key");
        assert!(root.read("etc/passwd").contains("e3-server:"), "its files keep an owner");
        fs::remove_file(root.path("var/lib/e3-server/secrets.key")).expect("key");
        root.dpkg(&["--install", files[0]]);
        root.dpkg(&["--purge", "e3-server"]);
        assert!(!root.path("var/lib/e3-server").exists());
        assert!(!root.read("etc/passwd").contains("e3-server:"), "{}", root.read("etc/passwd"));
    }

    /// A unit that systemd does not understand would be found on somebody's machine only.
    #[test]
    fn units_are_understood_by_systemd() {
        let Some(systemd) = find_program("systemd-analyze") else {
            println!("SKIPPED units: no systemd-analyze");
            return;
        };
        let workspace = Workspace::locate().expect("workspace");
        let folder = tempfile::tempdir().expect("folder");
        for package in &PACKAGES {
            let (unit, _, _) = package.files[0];
            let text =
                fs::read_to_string(workspace.root.join("packaging").join(package.source).join(unit)).expect(unit);
            // The program need not be installed here.
            let text = text.replace(&format!("/usr/bin/{}", package.program), "/bin/true");
            fs::write(folder.path().join(unit), text).expect(unit);
            let mut verify = Command::new(&systemd);
            verify.arg("verify").arg(folder.path().join(unit));
            let told = verify.output().expect("systemd-analyze");
            let told = String::from_utf8_lossy(&told.stderr).into_owned();
            let about_ours: Vec<&str> = told.lines().filter(|line| line.contains(unit)).collect();
            assert!(about_ours.is_empty(), "{unit}: {told}");
        }
    }
}
