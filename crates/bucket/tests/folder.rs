//! What only a folder can do wrong: files, modes, dying writers, full and missing volumes.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bucket::{Bucket, BucketError, ErrorKind, Folder, PutOptions};

fn keys(bucket: &dyn Bucket, prefix: &str) -> Result<BTreeSet<String>, BucketError> {
    let mut keys = BTreeSet::new();
    bucket.list(prefix, &mut |object| {
        keys.insert(object.key);
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path.display().to_string()) }
    }
    found
}

const CHILD_DIR: &str = "BUCKET_TEST_CHILD_DIR";
const BODY_BYTES: usize = 16 << 20;

/// The writer that the next test kills; does nothing when run by itself.
#[test]
fn child_that_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let folder = Folder::open(dir).unwrap();
    for round in 0u64.. {
        let piece = vec![round as u8; BODY_BYTES / 16];
        let pieces = [&piece[..]; 16];
        let options = if round % 3 == 0 { PutOptions::if_absent() } else { PutOptions::default() };
        folder.put(&format!("p/{}/object-{round}", round % 2), &pieces, &options).unwrap();
        folder.put("replaced", &pieces, &PutOptions::default()).unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_nothing_visible_that_is_not_whole() {
    let mut leftovers = 0;
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_killed", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while files_below(dir.path()).is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended early");
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(round * 7));
        child.kill().unwrap();
        child.wait().unwrap();

        let folder = Folder::open(dir.path()).unwrap();
        let visible = keys(&folder, "").unwrap();
        leftovers += files_below(dir.path()).len() - visible.len();
        for key in visible {
            assert!(key.starts_with("p/") || key == "replaced", "{key} is no object of the writer");
            let body = folder.get(&key).unwrap();
            assert_eq!(body.len(), BODY_BYTES, "{key} in round {round}");
            assert!(body.iter().all(|byte| *byte == body[0]), "{key} in round {round} is mixed");
        }
        folder.put("p/0/object-0", &[b"x"], &PutOptions::default()).unwrap();
    }
    assert!(leftovers > 0, "no writer was killed in the middle: this test shows nothing");
}

#[test]
fn temporary_and_foreign_files_are_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    folder.put("p/a", &[b"x"], &PutOptions::default()).unwrap();
    fs::write(dir.path().join("p/b.tmp.0123456789abcdef"), "half").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"p/\xff")), "x").unwrap();
        fs::write(dir.path().join("p/back\\slash"), "x").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("p/link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("p/loop")).unwrap();
    }
    assert_eq!(keys(&folder, "").unwrap(), BTreeSet::from(["p/a".to_owned()]));
    let error = folder.put("p/b.tmp.0123456789abcdef", &[b"x"], &PutOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn an_object_and_a_directory_cannot_share_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    folder.put("a/b", &[b"x"], &PutOptions::default()).unwrap();
    for options in [PutOptions::default(), PutOptions::if_absent()] {
        for key in ["a", "a/b/c", "a/b/c/d"] {
            let error = folder.put(key, &[b"y"], &options).unwrap_err();
            let refused = matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PreconditionFailed);
            assert!(refused, "{key}: {:?}: {error}", error.kind());
        }
    }
    folder.delete("a").unwrap();
    assert_eq!(folder.get("a/b").unwrap(), b"x"[..]);
    assert_eq!(files_below(dir.path()).len(), 1, "nothing temporary is left");
}

#[test]
fn a_folder_that_is_gone_is_not_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("mounted");
    let folder = Folder::create(&root).unwrap();
    folder.put("p/a", &[b"x"], &PutOptions::default()).unwrap();
    fs::remove_dir_all(&root).unwrap();
    for error in [
        folder.get("p/a").unwrap_err(),
        folder.get_range("p/a", 0, 1).unwrap_err(),
        folder.head("p/a").unwrap_err(),
        folder.delete("p/a").unwrap_err(),
        keys(&folder, "").unwrap_err(),
        keys(&folder, "p/").unwrap_err(),
        folder.put("p/a", &[b"x"], &PutOptions::default()).unwrap_err(),
        folder.put("a", &[b"x"], &PutOptions::if_absent()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Other, "{error}");
        assert!(error.to_string().contains("is its volume mounted?"), "{error}");
    }
    assert!(!root.exists(), "nothing makes the folder anew");
    assert!(Folder::open(&root).is_err());
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn listing_beside_writers_never_fails() {
    // Only Wine has this program.
    if Path::new(r"C:\windows\system32\winecfg.exe").is_file() {
        println!("SKIPPED listing_beside_writers_never_fails: Wine calls a directory that goes away an invalid name");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    folder.put("p/stays/x", &[b"x"], &PutOptions::default()).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Also when a step fails, or the listing would go on for ever.
            let _done = SetWhenDropped(&done);
            for round in 0..300 {
                let written = folder.put(&format!("p/{}/x", round % 5), &[b"x"], &PutOptions::default());
                // The next put makes the directory anew.
                let removed = fs::remove_dir_all(dir.path().join(format!("p/{}", round % 5)));
                // On Windows a directory that is listed goes away with its last handle, and is in the way until then.
                if cfg!(unix) {
                    written.unwrap();
                    removed.unwrap();
                }
            }
        });
        while !done.load(Ordering::Relaxed) {
            let seen =
                keys(&folder, "p/").unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
            assert!(seen.contains("p/stays/x"));
        }
    });
}

#[cfg(unix)]
#[test]
fn modes_let_nobody_else_in() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path().join("store")).unwrap();
    folder.put("p/012/a", &[b"x"], &PutOptions::default()).unwrap();
    folder.put("p/012/b", &[b"x"], &PutOptions::if_absent()).unwrap();
    for (path, mode) in [("", 0o700), ("p", 0o700), ("p/012", 0o700), ("p/012/a", 0o600), ("p/012/b", 0o600)] {
        let found = fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_volume_is_named() {
    struct Mounted<'a>(&'a Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0).status();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(dir.path()).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_volume_is_named: mounting a small tmpfs is not allowed");
        return;
    }
    let _mounted = Mounted(dir.path());
    let folder = Folder::create(dir.path().join("deep/store")).unwrap();
    folder.put("small", &[b"x"], &PutOptions::default()).unwrap();
    let error = folder.put("p/large", &[&vec![1; 1 << 20]], &PutOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let volume = format!("volume {}", dir.path().display());
    assert!(error.to_string().ends_with(&volume), "{error}");
    assert_eq!(keys(&folder, "").unwrap().len(), 1);
    assert_eq!(files_below(dir.path()).len(), 1, "the half-written file is gone");
    folder.put("p/fits", &[&vec![1; 1 << 10]], &PutOptions::default()).expect("its room is free again");
}
