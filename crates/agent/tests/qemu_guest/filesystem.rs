//! What e2fsprogs say of a restored disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A program by name; those of administrators are not on the path of everybody.
pub fn program(name: &str) -> PathBuf {
    let in_sbin = Path::new("/sbin").join(name);
    if in_sbin.exists() { in_sbin } else { name.into() }
}

fn e2fs(name: &str, arguments: &[&str], image: &Path) -> Output {
    Command::new(program(name)).args(arguments).arg(image).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether the journal has to be replayed before the file system can be used.
pub fn needs_recovery(image: &Path) -> bool {
    let output = e2fs("dumpe2fs", &["-h"], image);
    assert!(output.status.success(), "{}", text(&output));
    text(&output).contains("needs_recovery")
}

/// The file system has not a single defect; nothing is written.
pub fn expect_clean(image: &Path) {
    let output = e2fs("e2fsck", &["-fn"], image);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// Replays the journal, as mounting does, and nothing else.
pub fn replay_journal(image: &Path) {
    let output = e2fs("e2fsck", &["-y", "-E", "journal_only"], image);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
}

/// The content of a file in it.
pub fn read_file(image: &Path, path: &str) -> Vec<u8> {
    let output = e2fs("debugfs", &["-R", &format!("cat {path}")], image);
    assert!(output.status.success(), "{}", text(&output));
    output.stdout
}
