//! Stock Kopia as a peer: it reads what we write, we read what it writes, and both write into one repository.
//!
//! The program is the one that `E3_TEST_KOPIA` names, or `kopia` on the PATH; without one the tests are skipped.
#![cfg(unix)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use jiff::Timestamp;
use kopia_repo::format::index_stream::IndirectEntry;
use kopia_repo::format::snapshot::{
    DirEntry, DirSummary, DirectoryObject, EntryType, GoMode, SnapshotManifest, SnapshotStats, SourceInfo,
};
use kopia_repo::grouped::{ENTRIES_PER_PIECE, GroupedObject, GroupedWriter};
use kopia_repo::{CompressionId, CreateOptions, Repository, SessionOptions, WriteSession};
use serde_json::Value;
use support::{Tree, as_stock_restores, assert_same, client, copy_folder, folder, list, noise, open, restore};

const PASSWORD: &str = "peer password";
const ZSTD: Option<CompressionId> = Some(CompressionId::ZSTD_FASTEST);

#[test]
fn we_restore_what_stock_wrote() {
    let Some(stock) = Stock::find("we_restore_what_stock_wrote") else { return };
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    write_source(&source, 200 << 20);
    let expected = list(&source);
    for compression in ["none", "zstd"] {
        let client = stock.client(work.path().join(compression));
        let repo = work.path().join(compression).join("repo");
        fs::create_dir_all(&repo).unwrap();
        client.run(&["repository", "create", "filesystem", "--path", text(&repo)]);
        if compression != "none" {
            client.run(&["policy", "set", "--global", "--compression", compression]);
        }
        client.run(&["snapshot", "create", text(&source), "--tags", "kind:peer", "--description", "from stock"]);

        let repo = open(&repo, PASSWORD).unwrap();
        let snapshots = repo.snapshots(&[("tag:kind", "peer")]).unwrap();
        assert_eq!(snapshots.len(), 1, "{compression}");
        assert_eq!(snapshots[0].manifest.description, "from stock", "{compression}");
        let target = work.path().join(format!("restored-{compression}"));
        restore(&repo, &snapshots[0], &target);
        assert_same(&list(&target), &expected, compression);
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn passwords_that_either_changed_open_for_both() {
    let Some(stock) = Stock::find("passwords_that_either_changed_open_for_both") else { return };
    let work = tempfile::tempdir().unwrap();
    let folder_of_repo = work.path().join("repo");
    drop(create(&folder_of_repo));
    let change = |old: &str, new: &str| {
        Repository::change_password(&folder(&folder_of_repo), old, new, &client()).map(drop).unwrap();
    };
    change(PASSWORD, "ours");
    assert!(open(&folder_of_repo, PASSWORD).is_err());
    change("ours", PASSWORD);
    // The peer is given this one in its environment.
    let peer = stock.client(work.path().join("stock"));
    peer.connect(&folder_of_repo);
    peer.run(&["repository", "change-password", "--new-password", "theirs"]);
    assert!(open(&folder_of_repo, PASSWORD).is_err());
    open(&folder_of_repo, "theirs").unwrap();
    change("theirs", PASSWORD);
    let again = stock.client(work.path().join("again"));
    again.connect(&folder_of_repo);
    again.run(&["snapshot", "list", "--all"]);
}

#[test]
fn stock_restores_what_we_wrote_also_after_its_maintenance() {
    let Some(stock) = Stock::find("stock_restores_what_we_wrote_also_after_its_maintenance") else { return };
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    write_source(&source, 20 << 20);
    let repo_folder = work.path().join("repo");
    let repo = create(&repo_folder);
    let session = WriteSession::new(repo.clone(), SessionOptions::default()).unwrap();
    let first = write_snapshot(&session, &source, "1", None);
    session.flush().unwrap();

    // The second one also holds an object whose index stream has pieces and a second level.
    let segments = 3000_usize;
    let big: Vec<u8> = noise("big", segments * 4096 - 1000);
    let mut writer = GroupedWriter::new(&session, GroupedWriter::piece_count(segments as u64));
    let entries: Vec<IndirectEntry> = big
        .chunks(4096)
        .enumerate()
        .map(|(number, segment)| IndirectEntry {
            start: number as u64 * 4096,
            len: segment.len() as u64,
            object: session.write_object(segment, None, ZSTD).unwrap(),
        })
        .collect();
    for (number, piece) in entries.chunks(ENTRIES_PER_PIECE).enumerate() {
        writer.set(number, piece).unwrap();
    }
    let object = writer.finish().unwrap();
    assert_eq!(object.indirection, 2);
    fs::write(source.join("small.txt"), "changed").unwrap();
    let second = write_snapshot(&session, &source, "2", Some((object.to_string(), big.len())));
    session.flush().unwrap();
    assert_eq!(GroupedObject::open(&repo, object).unwrap().pieces().len(), 3);

    // What must come out, by our own restore, compared with the source itself.
    let mut expected = Vec::new();
    for id in [&first, &second] {
        let target = work.path().join(format!("ours-{id}"));
        restore(&repo, &repo.snapshot(id).unwrap(), &target);
        expected.push(list(&target));
    }
    let mut second_tree = expected[1].clone();
    assert_eq!(fs::read(work.path().join(format!("ours-{second}/big.bin"))).unwrap(), big);
    second_tree.remove("big.bin");
    assert_same(&second_tree, &list(&source), "our own restore");

    let copy = work.path().join("copy");
    copy_folder(&repo_folder, &copy);
    let client = stock.client(work.path().join("stock"));
    client.connect(&copy);
    let check = |when: &str| {
        assert_eq!(client.listed(), [(first.clone(), "1".into()), (second.clone(), "2".into())], "{when}");
        client.run(&["snapshot", "verify", "--verify-files-percent=100"]);
        client.run(&["content", "verify", "--full"]);
        assert!(!client.run(&["index", "list"]).trim().is_empty(), "{when}");
        for (id, expected) in [&first, &second].into_iter().zip(&expected) {
            let target = work.path().join("stock-restored");
            client.run(&["snapshot", "restore", id, text(&target)]);
            let (found, expected) = (list(&target), expected.clone());
            assert_same(&as_stock_restores(found), &as_stock_restores(expected), when);
            fs::remove_dir_all(&target).unwrap();
        }
    };
    check("before maintenance");
    client.run(&["maintenance", "set", "--owner=me"]);
    for _ in 0..2 {
        client.run(&["maintenance", "run", "--full", "--safety=none"]);
    }
    check("after maintenance");

    let repo = open(&copy, PASSWORD).unwrap();
    for (id, expected) in [&first, &second].into_iter().zip(&expected) {
        let target = work.path().join("ours-again");
        restore(&repo, &repo.snapshot(id).unwrap(), &target);
        assert_same(&list(&target), expected, "our restore after stock's maintenance");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn both_write_in_turns() {
    let Some(stock) = Stock::find("both_write_in_turns") else { return };
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    write_source(&source, 2 << 20);
    let repo_folder = work.path().join("repo");
    let repo = create(&repo_folder);
    let client = stock.client(work.path().join("stock"));
    client.connect(&repo_folder);
    let mut expected: Vec<(String, Tree)> = Vec::new();
    for turn in 0..6 {
        fs::write(source.join("small.txt"), format!("turn {turn}")).unwrap();
        fs::write(source.join(format!("of-turn-{turn}")), noise(&format!("turn {turn}"), 100_000)).unwrap();
        let step = turn.to_string();
        if turn % 2 == 0 {
            client.run(&["snapshot", "create", text(&source), "--tags", &format!("step:{step}")]);
        } else {
            repo.refresh().unwrap();
            let session = WriteSession::new(repo.clone(), SessionOptions::default()).unwrap();
            write_snapshot(&session, &source, &step, None);
            session.flush().unwrap();
            let stats = session.stats();
            // Our first one cuts files where we cut them; the later ones find that here.
            assert!(turn == 1 || stats.data_bytes < 300_000, "turn {turn} stores what it changed, not more: {stats:?}");
        }
        expected.push((step, list(&source)));
    }
    repo.refresh().unwrap();
    let fresh = open(&repo_folder, PASSWORD).unwrap();
    for (who, repo) in [("the writer", &repo), ("a fresh reader", &fresh)] {
        let snapshots = repo.snapshots(&[]).unwrap();
        assert_eq!(snapshots.len(), expected.len(), "{who}");
        for (step, tree) in &expected {
            let snapshot = snapshots.iter().find(|snapshot| snapshot.manifest.tags["tag:step"] == *step).unwrap();
            let target = work.path().join("restored");
            restore(repo, snapshot, &target);
            assert_same(&list(&target), tree, &format!("{who}, step {step}"));
            fs::remove_dir_all(&target).unwrap();
        }
    }
    let listed = client.listed();
    assert_eq!(listed.len(), expected.len(), "{listed:?}");
    client.run(&["snapshot", "verify", "--verify-files-percent=100"]);
    for (id, step) in listed {
        let target = work.path().join("restored");
        client.run(&["snapshot", "restore", &id, text(&target)]);
        let tree = expected.iter().find(|(one, _)| *one == step).unwrap().1.clone();
        assert_same(&as_stock_restores(list(&target)), &as_stock_restores(tree), &format!("stock, {step}"));
        fs::remove_dir_all(&target).unwrap();
    }
}

fn create(path: &Path) -> Arc<Repository> {
    fs::create_dir_all(path).unwrap();
    Repository::create(&folder(path), PASSWORD, &CreateOptions::new("peer-test"), client()).unwrap()
}

/// A tree with everything that is hard to name, to store or to restore, and one file of `large_bytes`.
fn write_source(source: &Path, large_bytes: usize) {
    let names = source.join("names");
    for below in ["names", "empty-folder", "modes", "deep/a/b/c"] {
        fs::create_dir_all(source.join(below)).unwrap();
    }
    for name in [
        "-leading-dash",
        "new\nline",
        "tab\t",
        " space ",
        "quote\"back\\slash",
        "<&>\u{2028}",
        "Case",
        "case",
        "control\x01\x7f",
        "e\u{301}",
        "\u{e9}",
        "..dots",
        &"x".repeat(255),
    ] {
        fs::write(names.join(name), format!("name: {name}")).unwrap();
    }
    for mode in [0o600, 0o4755, 0o2750, 0o1777, 0o444] {
        let path = source.join(format!("modes/m{mode:o}"));
        fs::write(&path, "mode").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(source.join("empty"), "").unwrap();
    fs::write(source.join("small.txt"), "hello").unwrap();
    fs::write(source.join("deep/a/b/c/file"), "deep").unwrap();
    symlink("small.txt", source.join("link")).unwrap();
    symlink("../nowhere/ü", source.join("dangling")).unwrap();
    // Half of it compresses, half does not.
    let line: Vec<u8> =
        (0..large_bytes as u64 / 16).flat_map(|n| format!("line {:010}\n", n % 100_000).into_bytes()).collect();
    let mut large = line[..large_bytes / 2].to_vec();
    large.extend_from_slice(&noise("large", large_bytes / 2));
    fs::write(source.join("large.bin"), &large).unwrap();
    let sparse = File::create(source.join("sparse.img")).unwrap();
    sparse.set_len((40 << 20) + 3).unwrap();
    for (offset, len) in [(5000, 900), (9 << 20, 5000), (40 << 20, 3)] {
        sparse.write_all_at(&noise("island", len), offset).unwrap();
    }
    for (path, seconds, nanoseconds) in
        [("names/Case", -86_400, 999_999_995), ("names/case", 4_102_444_800, 999_999_999), ("empty", 0, 0)]
    {
        set_mtime(&source.join(path), seconds, nanoseconds);
    }
    set_mtime(&source.join("names"), 1_700_000_000, 123_456_789);
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Writes a folder as a snapshot, with a ready-made object as `big.bin` if one is given.
fn write_snapshot(session: &WriteSession, source: &Path, step: &str, big: Option<(String, usize)>) -> String {
    let now = Timestamp::now();
    let (mut root, mut files) = (entry_of(source, "source"), 0);
    let extra = big.map(|(object, len)| DirEntry {
        name: "big.bin".into(),
        entry_type: EntryType::File,
        mode: GoMode(0o644),
        size: len as i64,
        mtime: now,
        object,
        ..root.clone()
    });
    write_folder(session, source, &mut root, &mut files, extra);
    session.put_snapshot(&SnapshotManifest {
        source: SourceInfo { host: "lab".into(), user_name: "peer".into(), path: "/source".into() },
        start_time: now,
        end_time: now,
        stats: SnapshotStats { file_count: files, ..Default::default() },
        root_entry: Some(root),
        tags: [("tag:step".to_owned(), step.to_owned())].into(),
        ..Default::default()
    })
}

fn write_folder(session: &WriteSession, folder: &Path, entry: &mut DirEntry, files: &mut i64, extra: Option<DirEntry>) {
    let mut summary = DirSummary {
        size: 0,
        files: 0,
        symlinks: 0,
        dirs: 1,
        max_time: entry.mtime,
        incomplete: String::new(),
        num_failed: 0,
        num_ignored_errors: 0,
        errors: Vec::new(),
    };
    let mut entries = Vec::new();
    for found in fs::read_dir(folder).unwrap() {
        let path = found.unwrap().path();
        let mut below = entry_of(&path, path.file_name().unwrap().to_str().unwrap());
        match below.entry_type {
            EntryType::Directory => {
                write_folder(session, &path, &mut below, files, None);
                let sub = below.summary.as_ref().unwrap();
                summary.size += sub.size;
                summary.files += sub.files;
                summary.symlinks += sub.symlinks;
                summary.dirs += sub.dirs;
            }
            EntryType::Symlink => {
                let target = fs::read_link(&path).unwrap();
                let object = session.write_object(target.to_str().unwrap().as_bytes(), None, None).unwrap();
                below.object = object.to_string();
                summary.symlinks += 1;
            }
            _ => {
                let object = session.write_file_object(&fs::read(&path).unwrap(), 1 << 20, ZSTD).unwrap();
                below.object = object.to_string();
                summary.size += below.size;
                summary.files += 1;
                *files += 1;
            }
        }
        entries.push(below);
    }
    if let Some(extra) = extra {
        summary.size += extra.size;
        summary.files += 1;
        *files += 1;
        entries.push(extra);
    }
    let directory = DirectoryObject { entries, summary: Some(summary.clone()) };
    entry.object = session.write_directory(&directory).unwrap().to_string();
    entry.summary = Some(summary);
}

fn entry_of(path: &Path, name: &str) -> DirEntry {
    let meta = fs::symlink_metadata(path).unwrap();
    let (entry_type, size) = match meta.file_type() {
        kind if kind.is_dir() => (EntryType::Directory, 0),
        kind if kind.is_symlink() => (EntryType::Symlink, meta.len() as i64),
        _ => (EntryType::File, meta.len() as i64),
    };
    DirEntry {
        name: name.to_owned(),
        entry_type,
        mode: GoMode::from_posix(meta.mode()),
        size,
        mtime: Timestamp::from_nanosecond(i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()))
            .unwrap(),
        uid: meta.uid(),
        gid: meta.gid(),
        object: String::new(),
        summary: None,
    }
}

/// The program.
struct Stock {
    program: PathBuf,
}

/// One user of it: own configuration, own cache, one repository.
struct Client {
    program: PathBuf,
    home: PathBuf,
}

impl Stock {
    fn find(test: &str) -> Option<Self> {
        let program = std::env::var_os("E3_TEST_KOPIA").map_or_else(|| PathBuf::from("kopia"), PathBuf::from);
        let answer = Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !answer.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED {test}: kopia is not installed");
            return None;
        }
        Some(Self { program })
    }

    fn client(&self, home: PathBuf) -> Client {
        fs::create_dir_all(&home).unwrap();
        Client { program: self.program.clone(), home }
    }
}

impl Client {
    fn connect(&self, repo: &Path) {
        self.run(&["repository", "connect", "filesystem", "--path", text(repo)]);
    }

    /// Runs a command that must succeed; returns what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.program)
            .arg("--config-file")
            .arg(self.home.join("config"))
            .arg("--log-dir")
            .arg(self.home.join("log"))
            .arg("--no-progress")
            .args(arguments)
            .env("KOPIA_PASSWORD", PASSWORD)
            .env("KOPIA_CACHE_DIRECTORY", self.home.join("cache"))
            .env("KOPIA_CHECK_FOR_UPDATES", "false")
            .env("HOME", &self.home)
            .output()
            .unwrap();
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kopia {arguments:?}: {problem}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Manifest IDs and steps of all snapshots, by step.
    fn listed(&self) -> Vec<(String, String)> {
        let json: Value = serde_json::from_str(&self.run(&["snapshot", "list", "--all", "--json"])).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut listed: Vec<(String, String)> = json
            .as_array()
            .unwrap()
            .iter()
            .map(|snapshot| (text(&snapshot["id"]), text(&snapshot["tags"]["tag:step"])))
            .collect();
        listed.sort_by(|a, b| a.1.cmp(&b.1));
        listed
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
