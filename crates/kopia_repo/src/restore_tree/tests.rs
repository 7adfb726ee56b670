//! Trees restored whole, and what is hostile or broken in them left out.

use std::fs;
use std::sync::Arc;

use jiff::Timestamp;

use super::file::{HOLE_BYTES, nonzero_runs};
use super::*;
use crate::format::content_id::ObjectId;
use crate::format::snapshot::GoMode;
use crate::{ClientOptions, CreateOptions, SessionOptions, Storage, StorageKind, WriteSession};

#[test]
fn only_pages_of_zeros_are_left_out() {
    let page = HOLE_BYTES;
    let mut bytes = vec![0; 5 * page];
    bytes[page + 7] = 1;
    bytes[3 * page] = 1;
    bytes[5 * page - 1] = 1;
    for (start, expected) in [
        (0, vec![(page, page), (3 * page, 2 * page)]),
        // Pages are those of the file: here the segment begins in the middle of one.
        (page / 2, vec![(page / 2, page), (5 * page / 2, page), (9 * page / 2, page / 2)]),
        (1, vec![(page - 1, 2 * page - (page - 1)), (3 * page - 1, page), (4 * page - 1, page + 1)]),
    ] {
        let runs: Vec<_> = nonzero_runs(&bytes, start as u64).collect();
        let mut rebuilt = vec![0; bytes.len()];
        for (offset, run) in &runs {
            let at = *offset as usize - start;
            rebuilt[at..at + run.len()].copy_from_slice(run);
        }
        assert_eq!(rebuilt, bytes, "start {start}");
        if start != 1 {
            let shape: Vec<_> = runs.iter().map(|(offset, run)| (*offset as usize - start, run.len())).collect();
            assert_eq!(shape, expected, "start {start}");
        }
    }
    assert_eq!(nonzero_runs(&[0; 100], 5).count(), 0);
    assert_eq!(nonzero_runs(&[], 5).count(), 0);
}

#[test]
fn base_names() {
    for (path, name) in [
        ("/notes/note.txt", Some("note.txt")),
        ("/notes/", Some("notes")),
        ("C:\\data\\disk.vhdx", Some("disk.vhdx")),
        ("\\\\server\\share\\file", Some("file")),
        ("/", None),
        ("", None),
        ("/a/..", None),
    ] {
        assert_eq!(base_name_of(path), name, "{path}");
    }
}

/// A repository in memory, with a session that the test writes its tree with.
fn session() -> WriteSession {
    let storage = Storage { bucket: Arc::new(bucket::Memory::new()), kind: StorageKind::ObjectStore };
    let client = ClientOptions::new("tester", "here");
    let repo = Repository::create(&storage, "password", &CreateOptions::new("tester"), client).unwrap();
    WriteSession::new(repo, SessionOptions::default()).unwrap()
}

fn entry(name: &str, entry_type: EntryType, object: &ObjectId, size: usize) -> DirEntry {
    let executable = entry_type == EntryType::Directory;
    DirEntry {
        name: name.into(),
        entry_type,
        mode: GoMode(if executable { 0o755 } else { 0o644 }),
        size: size as i64,
        mtime: Timestamp::UNIX_EPOCH,
        uid: 0,
        gid: 0,
        object: object.to_string(),
        summary: None,
    }
}

fn directory(session: &WriteSession, name: &str, entries: Vec<DirEntry>) -> DirEntry {
    let object = session.write_directory(&DirectoryObject { entries, summary: None }).unwrap();
    entry(name, EntryType::Directory, &object, 0)
}

fn restore(session: &WriteSession, root: &DirEntry, target: &Path) -> RestoreTreeReport {
    session.flush().unwrap();
    let options = RestoreTreeOptions { owners: Owners::Restorer, ..RestoreTreeOptions::default() };
    restore_tree(session.repository(), root, target, &options, &mut |_| {}).unwrap()
}

#[test]
fn hostile_names_stay_inside_and_are_counted() {
    let session = session();
    let file = session.write_object(b"payload", None, None).unwrap();
    let names = ["../escaped", "/tmp/escaped", "..", ".", "", "a/b", "nul\0", "..\u{0}"];
    let mut entries: Vec<_> = names.iter().map(|name| entry(name, EntryType::File, &file, 7)).collect();
    entries.push(entry("good", EntryType::File, &file, 7));
    entries.push(entry(&"n".repeat(256), EntryType::File, &file, 7));
    for kind in [EntryType::Directory, EntryType::Symlink, EntryType::Other("x".into())] {
        entries.push(entry(&format!("../{kind:?}"), kind, &file, 7));
    }
    entries.push(entry("device", EntryType::Other("c".into()), &file, 7));
    let expected_failures = entries.len() - 1;
    let root = directory(&session, "../../root", entries);
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("inside/target");
    let report = restore(&session, &root, &target);
    assert_eq!(report.failed_entries, expected_failures as u64, "{:?}", report.failures);
    assert_eq!((report.files, report.directories), (1, 1));
    let there: Vec<_> = fs::read_dir(&target).unwrap().map(|found| found.unwrap().file_name()).collect();
    assert_eq!(there, ["good"]);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

/// A link that leads out, and things under the same name or below it.
#[cfg(unix)]
#[test]
fn links_are_never_followed() {
    let session = session();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::create_dir(&secret).unwrap();
    let link_target = session.write_object(secret.to_str().unwrap().as_bytes(), None, None).unwrap();
    let file = session.write_object(b"payload", None, None).unwrap();
    let link = entry("link", EntryType::Symlink, &link_target, 0);
    let below = directory(&session, "link", vec![entry("planted", EntryType::File, &file, 7)]);
    // A directory object with the name twice: the last counts, whichever it is.
    let root =
        directory(&session, "", vec![below.clone(), link.clone(), entry("link/planted", EntryType::File, &file, 7)]);
    let target = outside.path().join("target");
    restore(&session, &root, &target);
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 0);

    // A root that is a link is made, under the name that the caller gave.
    let target = outside.path().join("other");
    restore(&session, &DirEntry { name: "../x".into(), ..link }, &target);
    assert_eq!(fs::read_link(target.join("restored")).unwrap(), secret);
    assert_eq!(fs::read_dir(&secret).unwrap().count(), 0);
}

#[test]
fn unreadable_entries_leave_no_name_and_the_rest_goes_on() {
    let session = session();
    let file = session.write_object(b"payload", None, None).unwrap();
    let large_bytes = vec![7; 9 << 20];
    let large = session.write_file_object(&large_bytes, 1 << 20, None).unwrap();
    let missing: ObjectId = "00112233445566778899aabbccddeeff".parse().unwrap();
    let missing_stream: ObjectId = "Ix00112233445566778899aabbccddeeff".parse().unwrap();
    let entries = vec![
        entry("file", EntryType::File, &file, 7),
        entry("large", EntryType::File, &large, 9 << 20),
        entry("missing", EntryType::File, &missing, 7),
        entry("missing-large", EntryType::File, &missing_stream, 9 << 20),
        entry("missing-folder", EntryType::Directory, &missing, 0),
        entry("missing-link", EntryType::Symlink, &missing, 7),
        entry("longer-than-said", EntryType::File, &file, 6),
        entry("shorter-than-said", EntryType::File, &file, 8),
        entry("a-file-as-folder", EntryType::Directory, &file, 0),
        DirEntry { object: "no object".into(), ..entry("no-object", EntryType::File, &file, 7) },
        DirEntry { size: -1, ..entry("negative", EntryType::File, &file, 7) },
    ];
    let root = directory(&session, "", entries);
    let target = tempfile::tempdir().unwrap();
    let report = restore(&session, &root, target.path());
    assert_eq!(report.failed_entries, 9, "{:?}", report.failures);
    assert!(report.failures.iter().all(|failure| matches!(failure.problem, EntryProblem::Read(_))));
    let mut there: Vec<_> = fs::read_dir(target.path()).unwrap().map(|found| found.unwrap().file_name()).collect();
    there.sort();
    assert_eq!(there, ["file", "large"]);
    assert_eq!(fs::read(target.path().join("large")).unwrap(), large_bytes);
    assert_eq!(report.bytes, 7 + (9 << 20));
}

#[test]
fn a_root_that_cannot_be_read_is_an_error() {
    let session = session();
    session.flush().unwrap();
    let missing: ObjectId = "k00112233445566778899aabbccddeeff".parse().unwrap();
    let root = entry("", EntryType::Directory, &missing, 0);
    let target = tempfile::tempdir().unwrap();
    let options = RestoreTreeOptions::default();
    let result = restore_tree(session.repository(), &root, target.path(), &options, &mut |_| {});
    assert!(matches!(result, Err(RestoreTreeError::Root(_))), "{result:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_target_that_takes_no_files_is_an_error() {
    let session = session();
    let file = session.write_file_object(&vec![7; 9 << 20], 1 << 20, None).unwrap();
    let root = directory(&session, "", vec![entry("large", EntryType::File, &file, 9 << 20)]);
    session.flush().unwrap();
    let options = RestoreTreeOptions { owners: Owners::Restorer, ..RestoreTreeOptions::default() };
    // The kernel's own file system takes no files from anybody.
    let result = restore_tree(session.repository(), &root, Path::new("/proc/sys"), &options, &mut |_| {});
    assert!(matches!(result, Err(RestoreTreeError::NotEmpty { .. })), "{result:?}");
    let result = restore_tree(session.repository(), &root, Path::new("/proc/nothing"), &options, &mut |_| {});
    assert!(matches!(result, Err(RestoreTreeError::Write { .. })), "{result:?}");
}
