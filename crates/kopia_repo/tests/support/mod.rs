//! What the tests of whole repositories share: listings of trees, opening and restoring.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use kopia_repo::{
    ClientOptions, OpenError, Repository, RestoreTreeOptions, RestoreTreeReport, Snapshot, Storage, StorageKind,
    restore_tree,
};
use sha2::{Digest, Sha256};

/// A repository in a folder.
pub fn folder(path: &Path) -> Storage {
    Storage { bucket: Arc::new(bucket::Folder::open(path).unwrap()), kind: StorageKind::Folder }
}

pub fn open(path: &Path, password: &str) -> Result<Arc<Repository>, OpenError> {
    Repository::open(&folder(path), password, client())
}

pub fn client() -> ClientOptions {
    ClientOptions::new("tester", "here")
}

/// Restores a snapshot that must be whole.
pub fn restore(repo: &Repository, snapshot: &Snapshot, target: &Path) -> RestoreTreeReport {
    let root = snapshot.manifest.root_entry.as_ref().expect("a snapshot has a root");
    let options = RestoreTreeOptions::for_snapshot(snapshot);
    let report = restore_tree(repo, root, target, &options, &mut |_| {}).unwrap();
    assert_eq!(report.failed_entries, 0, "{:?}", report.failures);
    report
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub kind: Kind,
    pub mtime_ns: i128,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory { mode: u32 },
    File { mode: u32, size: u64, sha256: String },
    Symlink { target: String },
}

/// Everything below a folder, by path in byte order.
pub type Tree = BTreeMap<String, Row>;

pub fn list(root: &Path) -> Tree {
    let mut tree = Tree::new();
    list_below(root, "", &mut tree);
    tree
}

fn list_below(folder: &Path, prefix: &str, tree: &mut Tree) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = String::from_utf8(entry.file_name().as_bytes().to_vec()).unwrap();
        let (path, place) = (format!("{prefix}{name}"), entry.path());
        let meta = fs::symlink_metadata(&place).unwrap();
        let mode = meta.mode() & 0o7777;
        let kind = if meta.is_symlink() {
            let target = fs::read_link(&place).unwrap();
            Kind::Symlink { target: String::from_utf8(target.as_os_str().as_bytes().to_vec()).unwrap() }
        } else if meta.is_dir() {
            list_below(&place, &format!("{path}/"), tree);
            Kind::Directory { mode }
        } else {
            if mode & 0o400 == 0 && !is_root() {
                fs::set_permissions(&place, fs::Permissions::from_mode(0o600)).unwrap();
            }
            let mut hash = Sha256::new();
            std::io::copy(&mut fs::File::open(&place).unwrap(), &mut Writer(&mut hash)).unwrap();
            Kind::File { mode, size: meta.len(), sha256: hex(&hash.finalize()) }
        };
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        tree.insert(path, Row { kind, mtime_ns, uid: meta.uid(), gid: meta.gid() });
    }
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The tree with the times that stock Kopia's own restore can set: none of directories, where it takes the newest of
/// what is inside, and those of symlinks rounded up to microseconds.
pub fn as_stock_restores(mut tree: Tree) -> Tree {
    for row in tree.values_mut() {
        match row.kind {
            Kind::Directory { .. } => row.mtime_ns = 0,
            Kind::Symlink { .. } => row.mtime_ns = (row.mtime_ns + 999).div_euclid(1000) * 1000,
            Kind::File { .. } => {}
        }
    }
    tree
}

/// Fails with the first paths that differ, instead of two trees of hundreds of lines.
#[track_caller]
pub fn assert_same(found: &Tree, expected: &Tree, what: &str) {
    let paths: std::collections::BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let different: Vec<String> = paths
        .into_iter()
        .filter(|path| found.get(*path) != expected.get(*path))
        .map(|path| format!("{path:?}: {:?} instead of {:?}", found.get(path), expected.get(path)))
        .collect();
    assert!(
        different.is_empty(),
        "{what}: {} entries differ:\n{}",
        different.len(),
        different[..different.len().min(5)].join("\n")
    );
}

/// The listing as `tree.py list` of the fixtures prints it.
pub fn to_jsonl(tree: &Tree) -> String {
    let mut text = String::new();
    for (path, Row { kind, mtime_ns, uid, gid }) in tree {
        let (mode, file, target, letter) = match kind {
            Kind::Directory { mode } => (Some(mode), None, None, 'd'),
            Kind::File { mode, size, sha256 } => (Some(mode), Some((sha256, size)), None, 'f'),
            Kind::Symlink { target } => (None, None, Some(target), 's'),
        };
        write!(text, "{{\"gid\": {gid}").unwrap();
        if let Some(mode) = mode {
            write!(text, ", \"mode\": \"{mode:o}\"").unwrap();
        }
        write!(text, ", \"mtime_ns\": {mtime_ns}, \"path\": {}", ascii_json(path)).unwrap();
        if let Some((sha256, size)) = file {
            write!(text, ", \"sha256\": \"{sha256}\", \"size\": {size}").unwrap();
        }
        if let Some(target) = target {
            write!(text, ", \"target\": {}", ascii_json(target)).unwrap();
        }
        writeln!(text, ", \"type\": \"{letter}\", \"uid\": {uid}}}").unwrap();
    }
    text
}

fn ascii_json(text: &str) -> String {
    let mut escaped = String::new();
    for c in serde_json::to_string(text).unwrap().chars() {
        if matches!(c, ' '..='~') {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").unwrap();
            }
        }
    }
    escaped
}

/// What `find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum` prints.
pub fn sum_of_files(tree: &Tree) -> String {
    let mut lines = String::new();
    for (path, row) in tree {
        if let Kind::File { sha256, .. } = &row.kind {
            // sha256sum marks lines in which it had to escape the name.
            let escaped = path.replace('\\', "\\\\").replace('\n', "\\n");
            let mark = if escaped == *path { "" } else { "\\" };
            writeln!(lines, "{mark}{sha256}  ./{escaped}").unwrap();
        }
    }
    sha256(lines.as_bytes())
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A copy of a folder of folders and files.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
