//! The scripts that are shipped for Linux guests (`guest/linux`), run by `sh` with hooks of the test's own.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/linux")
}

/// A guest in a folder: hooks, settings, and what the hooks noted in `log`.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("hooks.d")).unwrap();
        fs::set_permissions(at("hooks.d"), fs::Permissions::from_mode(0o755)).unwrap();
        let paths = format!("hook_dir={}\nstate_dir={}\n", at("hooks.d").display(), at("run/state").display());
        fs::write(at("hooks.conf"), paths + settings).unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A hook that notes its name and phase, and then does `then`.
    fn hook(&self, name: &str, then: &str) -> PathBuf {
        let path = self.at("hooks.d").join(name);
        let log = self.at("log");
        fs::write(&path, format!("#!/bin/sh\necho {name} $1 >>{}\n{then}\n", log.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn command(&self, word: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg(scripts().join("e3-hooks")).arg(word).env("E3_HOOKS_CONF", self.at("hooks.conf"));
        command
    }

    fn run(&self, word: &str) -> Output {
        self.command(word).output().unwrap()
    }

    fn status(&self, word: &str) -> i32 {
        let output = self.run(word);
        output.status.code().unwrap_or_else(|| panic!("{word}: {output:?}"))
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn hooks_run_in_order_and_are_undone_in_reverse() {
    let guest = Guest::new("");
    // Made in another order than they are to run in.
    for name in ["20-b", "10-a", "30-c"] {
        guest.hook(name, "");
    }
    guest.hook("40-off.disabled", "");
    guest.hook("50-editor~", "");
    let plain = guest.hook("60-not-executable", "");
    fs::set_permissions(plain, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(guest.status("pre"), 0);
    assert_eq!(guest.log(), ["10-a pre", "20-b pre", "30-c pre"]);
    let status = guest.run("status");
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.starts_with("held") && text.matches("hook: ").count() == 3, "{text}");
    assert_eq!(guest.status("pre"), 75, "a second backup has to wait");
    assert_eq!(guest.status("post"), 0);
    assert_eq!(guest.log()[3..], ["30-c post", "20-b post", "10-a post"]);
    assert_eq!(guest.status("post"), 0, "nothing to undo is fine");
    assert_eq!(guest.log().len(), 6);
    assert_eq!(guest.status("pre"), 0, "the next backup");
    assert_eq!(guest.status("post"), 0);
    assert!(!guest.at("run/state").exists() && !guest.at("run/state.ending").exists());
}

#[test]
fn a_hook_that_fails_is_undone_with_those_before_it() {
    let guest = Guest::new("");
    guest.hook("10-a", "");
    guest.hook("20-b", "[ $1 = post ]");
    guest.hook("30-c", "");
    let output = guest.run("pre");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("20-b pre: failed with status 1"), "{output:?}");
    assert_eq!(guest.log(), ["10-a pre", "20-b pre", "20-b post", "10-a post"]);
    assert!(!guest.at("run/state").exists(), "nothing is held");
}

#[test]
fn a_hook_may_fail_where_that_is_allowed() {
    let guest = Guest::new("on_failure=continue\n");
    guest.hook("10-a", "exit 3");
    guest.hook("20-b", "");
    assert_eq!(guest.status("pre"), 0);
    assert_eq!(guest.status("post"), 1, "that undoing failed is told, and everything is undone");
    assert_eq!(guest.log(), ["10-a pre", "20-b pre", "20-b post", "10-a post"]);
}

#[test]
fn a_hook_that_hangs_is_stopped() {
    let guest = Guest::new("hook_seconds=1\n");
    guest.hook("10-a", "");
    guest.hook("20-hangs", "[ $1 = post ] || sleep 60");
    let start = Instant::now();
    let output = guest.run("pre");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(String::from_utf8_lossy(&output.stderr).contains("stopped after 1 seconds"), "{output:?}");
    assert_eq!(guest.log(), ["10-a pre", "20-hangs pre", "20-hangs post", "10-a post"]);
}

#[test]
fn a_backup_that_never_comes_back_does_not_hold_the_guest() {
    let guest = Guest::new("hold_seconds=1\n");
    guest.hook("10-a", "");
    assert_eq!(guest.status("pre"), 0);
    let start = Instant::now();
    while guest.at("run/state").exists() || guest.at("run/state.ending").exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "still held");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(guest.log(), ["10-a pre", "10-a post"]);
    // A "post" in time stops the watch; the next "pre" is not ended by the first one's.
    let guest = Guest::new("hold_seconds=2\n");
    guest.hook("10-a", "");
    assert_eq!((guest.status("pre"), guest.status("post")), (0, 0));
    fs::write(guest.at("hooks.conf"), fs::read_to_string(guest.at("hooks.conf")).unwrap() + "hold_seconds=60\n")
        .unwrap();
    assert_eq!(guest.status("pre"), 0);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(guest.log(), ["10-a pre", "10-a post", "10-a pre"]);
    assert_eq!(guest.status("post"), 0);
}

#[test]
fn what_others_may_change_is_not_run() {
    let guest = Guest::new("");
    let hook = guest.hook("10-a", "");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o777)).unwrap();
    let output = guest.run("pre");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod go-w"), "{output:?}");
    assert_eq!(guest.log(), Vec::<String>::new());
    for wrong in ["hook_seconds=soon\n", "hold_seconds=0\n", "on_failure=pray\n", "hook_seconds=\n"] {
        let guest = Guest::new(wrong);
        guest.hook("10-a", "");
        assert_eq!(guest.status("pre"), 2, "{wrong}");
        assert_eq!(guest.log(), Vec::<String>::new(), "{wrong}");
    }
}

#[test]
fn over_ssh_only_three_words_are_heard() {
    let guest = Guest::new("");
    let hook = guest.hook("10-a", "");
    let ask = |word: &str| guest.command("ssh").env("SSH_ORIGINAL_COMMAND", word).status().unwrap().code();
    for word in ["", "ls", "pre; touch /tmp/x", "pre post", "$(id)"] {
        assert_eq!(ask(word), Some(2), "{word:?}");
    }
    assert_eq!(guest.log(), Vec::<String>::new());
    drop(hook);
    // The script calls itself by its name, so it has to be executable, as it is when installed.
    let installed = guest.at("e3-hooks");
    fs::copy(scripts().join("e3-hooks"), &installed).unwrap();
    fs::set_permissions(&installed, fs::Permissions::from_mode(0o755)).unwrap();
    for word in ["pre", "post"] {
        let mut command = Command::new(&installed);
        command.arg("ssh").env("SSH_ORIGINAL_COMMAND", word).env("E3_HOOKS_CONF", guest.at("hooks.conf"));
        assert_eq!(command.status().unwrap().code(), Some(0), "{word}");
    }
    assert_eq!(guest.log(), ["10-a pre", "10-a post"]);
}

#[test]
fn installing_twice_keeps_what_was_configured() {
    let dir = tempfile::tempdir().unwrap();
    let install = |argument: Option<&str>| {
        let mut command = Command::new("sh");
        command.arg(scripts().join("install.sh")).args(argument).env("DESTDIR", dir.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    install(None);
    let config = dir.path().join("etc/e3/hooks.conf");
    fs::write(&config, "hook_seconds=7\n").unwrap();
    install(None);
    assert_eq!(fs::read_to_string(&config).unwrap(), "hook_seconds=7\n");
    let program = dir.path().join("usr/local/sbin/e3-hooks");
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(dir.path().join("etc/e3/hooks.d").is_dir());
    install(Some("--remove"));
    assert!(!program.exists() && config.exists());
}

/// A guest's `/proc`, `/sys` and `/dev`, as far as the check reads them.
fn check(daemon: &str, has_device: bool, mounts: &str) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["sys/bus/vmbus/drivers/hv_utils", "proc/1", "proc/77", "dev/vmbus"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("proc/1/comm"), "systemd\n").unwrap();
    fs::write(at("proc/77/comm"), format!("{daemon}\n")).unwrap();
    fs::write(at("proc/mounts"), mounts).unwrap();
    if has_device {
        fs::write(at("dev/vmbus/hv_vss"), "").unwrap();
    }
    let mut command = Command::new("sh");
    let output = command.arg(scripts().join("e3-guest-check")).env("E3_CHECK_ROOT", dir.path()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_guest_knows_whether_it_can_be_frozen() {
    let mounts = "/dev/sda2 / ext4 rw,relatime 0 0\n/dev/sda1 /boot/efi vfat rw 0 0\nproc /proc proc rw 0 0\n\
                  files:/x /srv nfs4 rw 0 0\ntank /tank zfs rw 0 0\n/dev/sdb1 /old xfs ro 0 0\n/dev/loop0 /snap squashfs rw 0 0\n";
    for daemon in ["hv_vss_daemon", "hypervvssd"] {
        let (status, text) = check(daemon, true, mounts);
        assert_eq!(status, 0, "{daemon}: {text}");
        assert!(text.contains("ok    / (ext4) is frozen") && text.ends_with("This guest can be frozen.\n"), "{text}");
        for left_out in ["/boot/efi (vfat)", "/srv (nfs4)", "/tank (zfs)"] {
            assert!(text.contains(&format!("note  {left_out}")), "{left_out}: {text}");
        }
        assert!(!text.contains("/old") && !text.contains("/snap") && !text.contains("/proc"), "{text}");
    }
    for (daemon, has_device, mounts, word) in [
        ("sshd", true, mounts, "hv_vss_daemon does not run"),
        ("hv_vss_daemon", false, mounts, "switched off"),
        ("hv_vss_daemon", true, "tmpfs / tmpfs rw 0 0\n", "no file system"),
    ] {
        let (status, text) = check(daemon, has_device, mounts);
        assert_eq!(status, 1, "{text}");
        assert!(text.contains(word) && text.contains("crash-consistent"), "{word}: {text}");
    }
}

#[test]
fn shellcheck_finds_nothing() {
    let names = ["e3-hooks", "e3-guest-check", "install.sh", "examples/50-template", "examples/50-postgresql"];
    let files = names.map(|name| scripts().join(name));
    match Command::new("shellcheck").args(files).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: shellcheck is not installed");
        }
        Err(error) => panic!("shellcheck: {error}"),
    }
}
