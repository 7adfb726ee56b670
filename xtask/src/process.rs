//! Running other programs: seen while they run, timed, and found by name.

use std::env;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a line may come after a program ended: something that it started and left may hold its output open for ever.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `command`; what it writes to stdout and stderr appears on our stdout as it comes, each line after `margin`, and
/// `on_line` sees each line.
pub fn run_watched(command: &mut Command, margin: &str, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
    // One pipe for both streams keeps their lines in order.
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let for_stderr = writer.try_clone().context("share a pipe")?;
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(for_stderr).spawn();
    // The command keeps its ends of the pipe, which would never look closed to the reader.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("start {}", typed(command)))?;

    let (send, lines) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) && send.send(line).is_ok() {
            line = Vec::new();
        }
    });
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                // Whoever reads us may have gone (`| head`); the program is still watched to its end.
                let mut out = io::stdout().lock();
                let _ = out.write_all(margin.as_bytes()).and_then(|()| out.write_all(&line)).and_then(|()| out.flush());
                on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if child.try_wait().with_context(|| format!("look after {}", typed(command)))?.is_some() {
                    break;
                }
            }
        }
    }
    child.wait().with_context(|| format!("wait for {}", typed(command)))
}

/// Runs `command` silently; what it wrote to stdout, or an error that ends with the last it wrote to stderr.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", typed(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", typed(command), output.status, last_words(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of what a program complained, on one line.
pub fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.trim().lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// The command as one would type it, with the program's name for its path.
pub fn typed(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into_owned() } else { format!("'{text}'") }
}

/// The program of that name in the `PATH`, or in the folders of system programs, which a user's `PATH` may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| is_executable(file))
}

/// Whether `file` is a file that may be run.
pub fn is_executable(file: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    }
    #[cfg(not(unix))]
    file.is_file()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    #[cfg(unix)]
    fn lines_keep_their_order_and_leftovers_hold_nothing_up() {
        let begun = Instant::now();
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; echo three; printf four; sleep 20 & exit 3";
        let mut command = Command::new("sh");
        let status = run_watched(command.args(["-c", script]), "", |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines[..3], ["one", "two", "three"]);
        assert!(begun.elapsed() < Duration::from_secs(15), "waited for the program that was left behind");
    }

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("/usr/bin/kopia");
        assert_eq!(typed(command.args(["snapshot", "create", "my disks", ""])), "kopia snapshot create 'my disks' ''");
    }
}
