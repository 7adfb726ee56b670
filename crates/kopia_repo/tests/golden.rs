//! Repositories that stock Kopia 0.23.1 made, opened, listed and restored, and what happens to damaged ones.
//!
//! The expected listings and sums are those of the fixtures' own description, made when they were.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kopia_repo::{EntryProblem, OpenError, RestoreTreeError, RestoreTreeOptions, restore_tree};
use serde_json::Value;
use support::{Kind, Tree, is_root, list, open, restore, sha256, sum_of_files, to_jsonl};
use tempfile::TempDir;

struct Expected {
    fixture: &'static str,
    password: &'static str,
    snapshots: &'static [ExpectedSnapshot],
}

struct ExpectedSnapshot {
    id: &'static str,
    step: &'static str,
    entries: usize,
    /// Of the bytes of all files.
    sum: &'static str,
    /// Of the listing.
    list: &'static str,
}

const fn snapshot(
    id: &'static str,
    step: &'static str,
    entries: usize,
    sum: &'static str,
    list: &'static str,
) -> ExpectedSnapshot {
    ExpectedSnapshot { id, step, entries, sum, list }
}

const EXPECTED: &[Expected] = &[
    Expected {
        fixture: "01-defaults",
        password: "defaults-password",
        snapshots: &[
            snapshot(
                "b38149174d2c3659a6d8f77547cf5708",
                "1",
                97,
                "78c83a6b3b0cf3fd05489bee8c1f16ee0b808809f418a1e2f918811a7a4cdd7a",
                "4dc2f2e3b431d5ff6d788c7b07e3a4de19324559fe1a1a73781e3ab006fda330",
            ),
            snapshot(
                "89b2186eec041db5d1ececc06e793533",
                "2",
                99,
                "93746ffe6dfc5b79620c8d4e88ed1e9bd5e64faf9eb55ad437ce75990fda4e84",
                "e63ec16025bad3fa6cdc6b976ff351f9e2808df80c91bed64eb492406028a038",
            ),
        ],
    },
    Expected {
        fixture: "02-zstd-fixed-blake3",
        password: "pässwörd with spaces",
        snapshots: &[
            snapshot(
                "05ffe3f931fa55ad436bc70616a51c73",
                "1",
                259,
                "dc6ce23d5d236e1ac1e0cf54720dfd68de6a89ade69a5e9c6ae2802693d96617",
                "5bc4dbe5020dfaf1a062afb657aaf85da185b2e4431ebb28abf344badda92796",
            ),
            snapshot(
                "b23446dfdc1a0d1c4c5125e9cb61a8a5",
                "2",
                259,
                "aedd2d7a1500169c693838bef7e4578df3938f03cfa1e5d167295b6d45cf1bcc",
                "84ef69eb4e85001a2663790985dff34417220acf21443d44a613f500a76653ad",
            ),
        ],
    },
    Expected {
        fixture: "05-lifecycle",
        password: "lifecycle-password",
        snapshots: &[
            snapshot(
                "ef41f8162a56f501c64a02802fb4cfdf",
                "1",
                77,
                "a0be5dbcdefe26ab0aedbf20c5caa7042ec89480813522ee27e4ef0a3bbb1305",
                "3d1572c2cbf5c6fc904ab22e34421f0cc196412ab03d43b28c19003f21bd9e2d",
            ),
            snapshot(
                "b43ac58de0711d4eef677c0e257a87dc",
                "3",
                77,
                "162440b78cbe909f268ac3c8771ba7e4f9493ae71e7a17931e54997693e4ba4d",
                "412a846a76fa850bf16a7477ca4543f245d54878935fc449486e1f9a0bbb1181",
            ),
            snapshot(
                "9978c646021ed91438e5c8f7cec8dd28",
                "4",
                77,
                "767074ffa7530796e57eeb21f649d2404f884038d7ea2cbe314b920da64fd622",
                "8ec284d6873f6c243ec120bd4fe19f79aeef881989a49dbcdd4f0e3b04f50578",
            ),
            snapshot(
                "04c575c4dd152aadba4541b022b45e0f",
                "file",
                1,
                "84d622b1de03f30356d8a35918a81abe46c1207339019219b91c644fabd53e87",
                "834aba631e5e1b2ccaed954e665fdaf632898676dcfd1f05993ab8fd20a49ff6",
            ),
        ],
    },
    Expected {
        fixture: "06-epochs",
        password: "epochs-password",
        snapshots: &[
            snapshot(
                "60b229d3d2e03eddc3b57f781bbb87b8",
                "87",
                62,
                "6e9e5597b22cad6d51c139c31089cf7f4cff4d2e145791cb0e1f235c9de808ca",
                "ce8413a8be6a16b3ded404fd8c6d5ea33182a79690101d2bcbc32c460e4a990f",
            ),
            snapshot(
                "d98beadc1a7eb37aa5bd103f00eaa714",
                "88",
                62,
                "fb53f8d6fced5cad05622d864c8c72d374a1de08c3fbd8b6fe995f779cff3c77",
                "79f9eaf62b5efe76fc341ebf714cfbda7580a1fb4c246c9eb413332d2dfc8cda",
            ),
        ],
    },
];

#[test]
fn fixtures_list_and_restore_as_stock_wrote_them() {
    for Expected { fixture, password, snapshots } in EXPECTED {
        let unpacked = Unpacked::new(fixture);
        let repo = open(&unpacked.repo(), password).unwrap();
        let mut expected_ids: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.id).collect();
        let mut ids: Vec<String> = repo.snapshots(&[]).unwrap().into_iter().map(|snapshot| snapshot.id).collect();
        ids.sort();
        expected_ids.sort();
        assert_eq!(ids, expected_ids, "{fixture}");

        let facts = facts(fixture);
        for ExpectedSnapshot { id, step, entries, sum, list: listing } in *snapshots {
            let what = format!("{fixture}, step {step}");
            let snapshot = repo.snapshot(id).unwrap();
            let fact = facts["manifests"].as_array().unwrap().iter().find(|fact| fact["id"] == *id).unwrap();
            let data = &fact["data"];
            let ours = serde_json::to_value(&snapshot.manifest).unwrap();
            for key in ["source", "description", "startTime", "endTime", "stats", "rootEntry", "tags", "pins"] {
                assert_eq!(ours.get(key), data.get(key), "{what}: {key}");
            }
            assert_eq!(snapshot.manifest.tags["tag:step"], *step, "{what}");
            let by_tag = repo.snapshots(&[("tag:step", step)]).unwrap();
            assert_eq!(by_tag.iter().map(|found| &*found.id).collect::<Vec<_>>(), [*id], "{what}");

            let target = tempfile::tempdir().unwrap();
            let report = restore(&repo, &snapshot, target.path());
            let tree = list(target.path());
            assert_eq!(tree.len(), *entries, "{what}");
            let is_folder = *step != "file";
            assert_eq!(
                (report.files + report.directories + report.symlinks) as usize,
                entries + usize::from(is_folder),
                "{what}"
            );
            let expected = fs::read_to_string(unpacked.path(&format!("expected/step-{step}.jsonl"))).unwrap();
            if is_root() {
                assert_eq!(to_jsonl(&tree), expected, "{what}");
                assert_eq!(sha256(to_jsonl(&tree).as_bytes()), *listing, "{what}");
            } else {
                assert_eq!(without_owners(&to_jsonl(&tree)), without_owners(&expected), "{what}");
            }
            assert_eq!(sum_of_files(&tree), *sum, "{what}");
        }
    }
}

/// Pins, tags, description and dates, as `05-lifecycle` has them.
#[test]
fn snapshots_show_what_was_said_of_them() {
    let unpacked = Unpacked::new("05-lifecycle");
    let repo = open(&unpacked.repo(), "lifecycle-password").unwrap();
    let snapshots = repo.snapshots(&[]).unwrap();
    let order: Vec<&str> = snapshots.iter().map(|snapshot| &*snapshot.manifest.tags["tag:step"]).collect();
    assert_eq!(order, ["1", "3", "4", "file"], "oldest first");
    assert_eq!(snapshots[0].manifest.description, "first <&> one");
    assert_eq!(snapshots[0].manifest.pins, ["keep-me"]);
    assert_eq!(snapshots[1].manifest.pins, ["first", "second"]);
    assert_eq!(snapshots[1].manifest.tags["tag:env"], "prod:x");
    assert_eq!(snapshots[0].manifest.start_time.to_string(), "2026-01-31T10:00:00Z");
    assert_eq!(snapshots[3].manifest.source.path, "/notes/note.txt");
    assert!(repo.snapshot("0123456789abcdef0123456789abcdef").is_err());
}

/// Zeros become holes, and the restored file still has its length and its bytes.
#[test]
fn zeros_are_restored_as_holes() {
    use std::os::unix::fs::MetadataExt;
    let unpacked = Unpacked::new("02-zstd-fixed-blake3");
    let repo = open(&unpacked.repo(), "pässwörd with spaces").unwrap();
    let target = tempfile::tempdir().unwrap();
    restore(&repo, &repo.snapshots(&[]).unwrap()[0], target.path());
    for (name, len, most) in [("sparse.img", 33_554_435, 64 << 10), ("zeros.bin", 3 << 20, 0)] {
        let meta = fs::metadata(target.path().join(name)).unwrap();
        assert_eq!(meta.len(), len, "{name}");
        assert!(meta.blocks() * 512 <= most, "{name} takes {} bytes of disk", meta.blocks() * 512);
    }
}

#[test]
fn what_is_not_there_or_not_ours_is_a_clear_error() {
    let unpacked = Unpacked::new("01-defaults");
    for password in ["", "defaults-passwort", "defaults-password1", "Defaults-password"] {
        let result = open(&unpacked.repo(), password);
        assert!(matches!(result, Err(OpenError::WrongPassword { .. })), "{password:?}: {result:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    let result = open(empty.path(), "any");
    assert!(matches!(result, Err(OpenError::NotFound { .. })), "{result:?}");

    let repo = open(&unpacked.repo(), "defaults-password").unwrap();
    let snapshot = &repo.snapshots(&[]).unwrap()[0];
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("mine"), "mine").unwrap();
    let root = snapshot.manifest.root_entry.as_ref().unwrap();
    let options = RestoreTreeOptions::for_snapshot(snapshot);
    let result = restore_tree(&repo, root, target.path(), &options, &mut |_| {});
    assert!(matches!(result, Err(RestoreTreeError::NotEmpty { .. })), "{result:?}");
    let inside_a_file = target.path().join("mine/below");
    let result = restore_tree(&repo, root, &inside_a_file, &options, &mut |_| {});
    assert!(matches!(result, Err(RestoreTreeError::Write { .. })), "{result:?}");
    assert_eq!(list(target.path()).len(), 1);
}

/// One flipped bit anywhere in any kind of blob: an error, or failed entries, or, where it lies in padding, nothing.
/// What has a name afterwards is what it was.
#[test]
fn flipped_bits_never_give_wrong_bytes() {
    let unpacked = Unpacked::new("01-defaults");
    let original = {
        let repo = open(&unpacked.repo(), "defaults-password").unwrap();
        let target = tempfile::tempdir().unwrap();
        restore(&repo, &repo.snapshots(&[]).unwrap()[1], target.path());
        list(target.path())
    };
    let mut noticed = std::collections::BTreeMap::<&str, (u32, u32)>::new();
    for file in files_below(&unpacked.repo()) {
        let name = file.strip_prefix(unpacked.repo()).unwrap().to_str().unwrap().to_owned();
        let kinds = ["p/", "q/", "x/n", "kopia.repository", "kopia.blobcfg"];
        let Some(kind) = kinds.into_iter().find(|kind| name.starts_with(kind)) else { continue };
        let bytes = fs::read(&file).unwrap();
        let places: Vec<usize> = match kind {
            // Its first half is plain JSON, in which a changed letter may mean nothing.
            "kopia.repository" => {
                let block = String::from_utf8_lossy(&bytes).find("encryptedBlockFormat").unwrap() + 30;
                vec![block, (block + bytes.len()) / 2]
            }
            _ => (0..4).map(|nth| bytes.len() * nth / 4 + bytes.len() / 8).collect(),
        };
        for at in places {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            fs::write(&file, &flipped).unwrap();
            let (tries, hits) = noticed.entry(kind).or_default();
            *tries += 1;
            *hits += u32::from(is_noticed(&unpacked, &original, &format!("{name} at {at}")));
            fs::write(&file, &bytes).unwrap();
        }
    }
    for (kind, (tries, hits)) in &noticed {
        // Packs have padding in front and their own index at the end, which readers do not need.
        let all = !matches!(*kind, "p/" | "q/");
        assert!(
            *tries > 1 && if all { hits == tries } else { hits * 4 >= *tries },
            "{kind}: {hits} of {tries} noticed"
        );
    }
    assert_eq!(noticed.len(), 5, "{noticed:?}");
}

/// Restores the second snapshot of a damaged `01-defaults`.
fn is_noticed(unpacked: &Unpacked, original: &Tree, what: &str) -> bool {
    let repo = match open(&unpacked.repo(), "defaults-password") {
        Ok(repo) => repo,
        Err(error) => {
            assert!(!matches!(error, OpenError::NotFound { .. } | OpenError::Exists { .. }), "{what}: {error:?}");
            return true;
        }
    };
    let Ok(snapshot) = repo.snapshot("89b2186eec041db5d1ececc06e793533") else { return true };
    let target = tempfile::tempdir().unwrap();
    let root = snapshot.manifest.root_entry.as_ref().unwrap();
    let result = restore_tree(&repo, root, target.path(), &RestoreTreeOptions::for_snapshot(&snapshot), &mut |_| {});
    let tree = list(target.path());
    for (path, row) in &tree {
        assert_eq!(Some(&row.kind), original.get(path).map(|row| &row.kind), "{what}: {path:?}");
    }
    match result {
        Err(RestoreTreeError::Root(_)) => true,
        Err(error) => panic!("{what}: {error:?}"),
        Ok(report) => {
            for failure in &report.failures {
                assert!(matches!(failure.problem, EntryProblem::Read(_)), "{what}: {failure:?}");
                assert!(!tree.contains_key(&failure.path), "{what}: {failure:?}");
            }
            let missing = original.len() - tree.len();
            assert_eq!(missing > 0, report.failed_entries > 0, "{what}: {missing} missing, {report:?}");
            report.failed_entries > 0
        }
    }
}

/// A pack that is gone takes its files with it and no others.
#[test]
fn files_of_a_missing_pack_are_named_and_the_others_restored() {
    let unpacked = Unpacked::new("02-zstd-fixed-blake3");
    let largest =
        files_below(&unpacked.repo().join("p")).into_iter().max_by_key(|file| fs::metadata(file).unwrap().len());
    fs::remove_file(largest.unwrap()).unwrap();
    let repo = open(&unpacked.repo(), "pässwörd with spaces").unwrap();
    let snapshot = &repo.snapshots(&[]).unwrap()[0];
    let target = tempfile::tempdir().unwrap();
    let mut named = Vec::new();
    let mut bytes = 0;
    let root = snapshot.manifest.root_entry.as_ref().unwrap();
    let report =
        restore_tree(
            &repo,
            root,
            target.path(),
            &RestoreTreeOptions::for_snapshot(snapshot),
            &mut |event| match event {
                kopia_repo::TreeEvent::Failed(failure) => named.push(failure.path.clone()),
                kopia_repo::TreeEvent::Bytes(len) => bytes += len,
                _ => {}
            },
        )
        .unwrap();
    assert!(report.failed_entries > 0 && report.failed_entries == named.len() as u64, "{report:?}");
    let tree = list(target.path());
    let expected = fs::read_to_string(unpacked.path("expected/step-1.jsonl")).unwrap();
    let mut missing = Vec::new();
    for line in expected.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let path = row["path"].as_str().unwrap();
        match tree.get(path).map(|row| &row.kind) {
            None => missing.push(path.to_owned()),
            Some(Kind::File { sha256, .. }) => assert_eq!(row["sha256"], **sha256, "{path}"),
            Some(_) => {}
        }
    }
    missing.sort();
    named.sort();
    assert_eq!(missing, named);
    assert!(bytes >= report.bytes, "{bytes} of {report:?}");
    assert_eq!(tree.len() + missing.len(), expected.lines().count(), "no temporary files are left");
}

/// A fixture in a folder of its own.
struct Unpacked {
    folder: TempDir,
    name: &'static str,
}

impl Unpacked {
    fn new(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = fixtures().join(format!("{name}.tar.gz"));
        let status = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(folder.path()).status().unwrap();
        assert!(status.success());
        Self { folder, name }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(self.name).join(below)
    }

    fn repo(&self) -> PathBuf {
        self.path("repo")
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn facts(fixture: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join(format!("facts/{fixture}.json"))).unwrap()).unwrap()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn without_owners(listing: &str) -> Vec<Value> {
    let rows = listing.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|mut row| {
        for key in ["uid", "gid"] {
            row.as_object_mut().unwrap().remove(key);
        }
        row
    })
    .collect()
}
