//! The engine against models: random work of two clients on one store, and a crash at every call of a session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucket::{Bucket, ErrorKind, Fault, Faulty, Memory, Operation};
use kopia_repo::format::index_stream::IndirectEntry;
use kopia_repo::grouped::{ENTRIES_PER_PIECE, GroupedObject, GroupedWriter};
use kopia_repo::{
    ClientOptions, CompressionId, ContentId, CreateOptions, ObjectId, OpenError, PasswordChange, ReadErrorKind,
    Repository, SessionOptions, Storage, StorageKind, WriteError, WriteSession,
};

const PASSWORD: &str = "engine-password";

fn storage(bucket: Arc<dyn Bucket>) -> Storage {
    Storage { bucket, kind: StorageKind::Folder }
}

fn create(bucket: Arc<dyn Bucket>) -> Arc<Repository> {
    Repository::create(&storage(bucket), PASSWORD, &CreateOptions::new("owner"), client()).unwrap()
}

fn open(bucket: Arc<dyn Bucket>) -> Arc<Repository> {
    Repository::open(&storage(bucket), PASSWORD, client()).unwrap()
}

fn client() -> ClientOptions {
    ClientOptions::new("tester", "testhost")
}

fn session(repo: &Arc<Repository>) -> WriteSession {
    WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 2 }).unwrap()
}

#[test]
fn a_password_is_changed_whole_also_after_a_crash_at_any_call() {
    const NEW: &str = "another-password";
    let change = |bucket: Arc<dyn Bucket>, old: &str, new: &str| {
        Repository::change_password(&storage(bucket), old, new, &client())
    };
    let opens = |bucket: Arc<dyn Bucket>, password: &str| Repository::open(&storage(bucket), password, client());
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        let is_done = matches!(fault, Fault::CrashAfter);
        let mut cut_off = Vec::new();
        for stop_at in 0.. {
            let at = format!("{fault:?} at call {stop_at}");
            let faulty = Arc::new(Faulty::new(Memory::new()));
            let repo = create(faulty.clone());
            let id = script(&repo).map(|_| repo.id()).unwrap();
            let content = repo.content_id(b"kept", None);
            session(&repo).write_content(b"kept", None, None).unwrap();
            drop(repo);
            faulty.reset_tally();
            let calls = std::sync::atomic::AtomicU64::new(0);
            let stop = fault;
            faulty.set_script(move |call| {
                // An answer that is lost makes a difference where something was written.
                let counts = !is_done || call.operation == Operation::Put;
                let number = || calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if counts && number() == stop_at { stop } else { Fault::Pass }
            });
            let first = change(faulty.clone(), PASSWORD, NEW);
            faulty.revive();
            if let Err(error) = &first {
                assert!(matches!(error, OpenError::Storage { .. }), "{at}: {error:?}");
                let (old, new) = (opens(faulty.clone(), PASSWORD), opens(faulty.clone(), NEW));
                // Only the answer to the last write can be lost with all of it done.
                let is_new = new.is_ok();
                assert!(!is_new || is_done && old.is_err(), "{at}: the new password counts before the change ends");
                if let Err(error) = old
                    && !is_new
                {
                    assert!(error.to_string().contains("cut off"), "{at}: {error}");
                    cut_off.push(stop_at);
                }
                let expected = if is_new { PasswordChange::WasThere } else { PasswordChange::Changed };
                assert_eq!(change(faulty.clone(), PASSWORD, NEW).unwrap(), expected, "{at}");
            }
            assert!(matches!(opens(faulty.clone(), PASSWORD), Err(OpenError::WrongPassword { .. })), "{at}");
            let repo = opens(faulty.clone(), NEW).unwrap();
            assert_eq!(repo.id(), id);
            assert_eq!(repo.content_id(b"kept", None), content, "the secrets are the same");
            script(&repo).unwrap_or_else(|(_, error)| panic!("{at}: {error}"));
            assert_eq!(change(faulty.clone(), PASSWORD, NEW).unwrap(), PasswordChange::WasThere, "{at}");
            assert!(matches!(change(faulty.clone(), "wrong", "other"), Err(OpenError::WrongPassword { .. })));
            assert!(matches!(change(faulty.clone(), NEW, " x"), Err(OpenError::Unsupported { .. })), "white space");
            if first.is_ok() {
                break;
            }
        }
        assert_eq!(cut_off.len(), 1, "between the two writes: {cut_off:?}");
    }
}

#[test]
fn a_client_that_is_open_while_the_password_changes_calls_nothing_damaged() {
    let bucket: Arc<dyn Bucket> = Arc::new(Memory::new());
    let ahead_s = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let clock = ahead_s.clone();
    let clock = move || SystemTime::now() + Duration::from_secs(clock.load(std::sync::atomic::Ordering::Relaxed));
    let repo = {
        create(bucket.clone());
        Repository::open(&storage(bucket.clone()), PASSWORD, ClientOptions { clock: Arc::new(clock), ..client() })
            .unwrap()
    };
    let other = session(&open(bucket.clone()));
    let kept = other.write_content(b"kept", None, None).unwrap().id;
    other.flush().unwrap();
    Repository::change_password(&storage(bucket), PASSWORD, "another-password", &client()).unwrap();
    ahead_s.store(16 * 60, std::sync::atomic::Ordering::Relaxed);
    for error in [repo.refresh().unwrap_err(), repo.read_content(&kept).unwrap_err()] {
        assert!(matches!(error, kopia_repo::ReadError::PasswordChanged), "{error:?}");
        assert_eq!(error.kind(), ReadErrorKind::Unsupported);
    }
}

/// A small generator, so that a failure names its seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = [0, 1, 100, 5_000, 200_000][self.next(5) as usize] as usize;
        let kind = self.next(3);
        (0..len)
            .map(|at| if kind == 0 { 0 } else { (self.next(256) as usize * kind as usize + at / 64) as u8 })
            .collect()
    }
}

#[test]
fn two_clients_against_a_model() {
    for seed in 1..=6 {
        let mut random = Random(seed * 7919);
        let bucket: Arc<dyn Bucket> = Arc::new(Memory::new());
        let mut clients = [create(bucket.clone()), open(bucket.clone())];
        let mut sessions = [session(&clients[0]), session(&clients[1])];
        // What each session wrote and has not flushed; what is flushed by anybody.
        let mut unflushed: [BTreeMap<ContentId, Vec<u8>>; 2] = Default::default();
        let mut unflushed_manifests: [BTreeSet<String>; 2] = Default::default();
        let mut flushed = BTreeMap::new();
        let mut manifests = BTreeSet::new();
        for step in 0..120 {
            let who = random.next(2) as usize;
            let label = format!("seed {seed}, step {step}, client {who}");
            match random.next(10) {
                0..=4 => {
                    let data = random.bytes();
                    let prefix = [None, None, Some(b'k'), Some(b'x')][random.next(4) as usize];
                    let compression = [None, Some(CompressionId::ZSTD_FASTEST)][random.next(2) as usize];
                    let written = sessions[who].write_content(&data, prefix, compression).unwrap();
                    unflushed[who].insert(written.id, data);
                }
                5 => {
                    let labels = [("type".to_owned(), "note".to_owned())];
                    unflushed_manifests[who].insert(sessions[who].put_manifest(labels, &step));
                }
                6 | 7 => {
                    sessions[who].flush().unwrap();
                    flushed.append(&mut unflushed[who]);
                    manifests.append(&mut unflushed_manifests[who]);
                }
                8 => {
                    // The client dies with what it had not flushed, and comes back.
                    unflushed[who].clear();
                    unflushed_manifests[who].clear();
                    clients[who] = open(bucket.clone());
                    sessions[who] = session(&clients[who]);
                }
                _ => {
                    clients[who].refresh().unwrap();
                    for (id, data) in &flushed {
                        assert_eq!(&clients[who].read_content(id).unwrap(), data, "{label}: {id}");
                    }
                    let seen: BTreeSet<String> = clients[who]
                        .find_manifests(&[("type", "note")])
                        .unwrap()
                        .into_iter()
                        .map(|one| one.id)
                        .collect();
                    assert_eq!(seen, manifests, "{label}");
                }
            }
        }
    }
}

#[test]
fn a_crash_at_every_call_loses_only_what_was_not_flushed() {
    // First without a crash, for the number of calls.
    let calls = {
        let faulty = Arc::new(Faulty::new(Memory::new()));
        let repo = create(faulty.clone());
        faulty.reset_tally();
        script(&repo).unwrap();
        faulty.tally().total_calls()
    };
    let before_script = {
        let faulty = Arc::new(Faulty::new(Memory::new()));
        drop(create(faulty.clone()));
        faulty.tally().total_calls()
    };
    assert!(calls > 20, "the script makes {calls} calls");
    for stop_at in 0..=calls {
        let faulty = Arc::new(Faulty::crash_at(Memory::new(), before_script + stop_at));
        let repo = create(faulty.clone());
        let flushes = match script(&repo) {
            Ok(flushes) => flushes,
            Err((flushes, _)) => flushes,
        };
        drop(repo);
        faulty.revive();
        let repo = open(faulty.clone());
        let seen = repo.find_manifests(&[("type", "note")]).unwrap();
        // A flush that failed may still have become visible; one that returned must be.
        assert!(
            (flushes..=flushes + 1).contains(&seen.len()),
            "crash at call {stop_at}: {flushes} flushes, {}",
            seen.len()
        );
        for manifest in seen {
            let named: Vec<String> = serde_json::from_str(manifest.data.get()).unwrap();
            for id in named {
                let id: ContentId = id.parse().unwrap();
                let data = repo.read_content(&id).unwrap_or_else(|error| panic!("crash at call {stop_at}: {error}"));
                assert_eq!(repo.content_id(&data, id.prefix()), id);
            }
        }
        // And work goes on.
        script(&repo).unwrap_or_else(|(_, error)| panic!("after a crash at call {stop_at}: {error}"));
    }
}

/// Three flushes, each with contents and a manifest that names all contents so far. Returns the number of flushes that
/// returned.
fn script(repo: &Arc<Repository>) -> Result<usize, (usize, WriteError)> {
    let session = match WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 }) {
        Ok(session) => session,
        Err(error) => return Err((0, error)),
    };
    let mut named: Vec<String> = Vec::new();
    for round in 0..3_usize {
        let mut work = || -> Result<(), WriteError> {
            for nth in 0..4_u8 {
                let prefix = (nth % 2 == 1).then_some(b'k');
                let data = vec![nth; 1000 * (round + 1)];
                named.push(session.write_content(&data, prefix, Some(CompressionId::ZSTD_FASTEST))?.id.to_string());
            }
            session.put_manifest([("type".to_owned(), "note".to_owned())], &named);
            session.flush()
        };
        work().map_err(|error| (round, error))?;
    }
    Ok(3)
}

#[test]
fn a_failed_upload_fails_the_session_and_nothing_else() {
    let faulty = Arc::new(Faulty::new(Memory::new()));
    let repo = create(faulty.clone());
    faulty.set_script(
        |call| {
            if call.key.starts_with("p/") { Fault::FailBefore(ErrorKind::NoSpace) } else { Fault::Pass }
        },
    );
    let failing = session(&repo);
    failing.write_content(b"lost", None, None).unwrap();
    let error = failing.flush().unwrap_err();
    assert_eq!(error.storage_kind(), Some(ErrorKind::NoSpace), "{error}");
    let again = failing.write_content(b"more", None, None).unwrap_err();
    assert_eq!(again.storage_kind(), Some(ErrorKind::NoSpace), "{again}");
    drop(failing);
    faulty.set_script(|_| Fault::Pass);
    let working = session(&repo);
    let id = working.write_content(b"lost", None, None).unwrap().id;
    working.flush().unwrap();
    assert_eq!(repo.read_content(&id).unwrap(), b"lost");
}

/// One answer arrives with a flipped bit: what is read is right all the same, and nothing damaged is kept.
#[test]
fn what_is_damaged_on_its_way_once_is_read_again() {
    let faulty = Arc::new(Faulty::new(Memory::new()));
    let writer = session(&create(faulty.clone()));
    let data = writer.write_content(&[7; 3000], None, None).unwrap().id;
    let object = writer.write_object(&[8; 3000], Some(b'k'), None).unwrap();
    writer.put_manifest([("type".to_owned(), "test".to_owned())], &"it is there");
    writer.flush().unwrap();
    drop(writer);
    let read = |repo: &Arc<Repository>| {
        let manifests = repo.find_manifests(&[("type", "test")])?.len();
        Ok::<_, kopia_repo::ReadError>((manifests, repo.read_content(&data)?, repo.read_object(&object, 10_000)?))
    };
    let right = (1, vec![7; 3000], vec![8; 3000]);
    let mut met = 0;
    for at in 0.. {
        let repo = open(faulty.clone());
        let calls = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = calls.clone();
        faulty.set_script(move |_| match counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            number if number == at => Fault::FlipBit(997),
            _ => Fault::Pass,
        });
        assert_eq!(read(&repo).unwrap(), right, "call {at}");
        assert_eq!(read(&repo).unwrap(), right, "after call {at}");
        faulty.set_script(|_| Fault::Pass);
        if calls.load(std::sync::atomic::Ordering::SeqCst) <= at {
            break;
        }
        met += 1;
    }
    assert!(met > 2, "{met} calls");
}

#[test]
fn equal_contents_of_many_threads_are_stored_once() {
    let bucket: Arc<dyn Bucket> = Arc::new(Memory::new());
    let repo = create(bucket.clone());
    let writer = session(&repo);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for nth in 0..200_u32 {
                    writer.write_content(&vec![nth as u8; 3000], None, None).unwrap();
                }
            });
        }
    });
    writer.flush().unwrap();
    let stats = writer.stats();
    assert_eq!((stats.new_contents, stats.known_contents), (200, 8 * 200 - 200));
    drop(writer);
    let repo = open(bucket);
    let id = repo.content_id(&vec![7; 3000], None);
    assert_eq!(repo.read_content(&id).unwrap(), vec![7; 3000]);
}

#[test]
fn a_session_leaves_no_marker_and_packs_carry_their_session() {
    let memory = Arc::new(Memory::new());
    let repo = create(memory.clone());
    let writer = session(&repo);
    writer.write_content(b"one", None, None).unwrap();
    writer.flush().unwrap();
    writer.write_content(b"two", None, None).unwrap();
    drop(writer);
    let mut keys = Vec::new();
    memory
        .list("", &mut |meta| {
            keys.push(meta.key);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let markers: Vec<&String> = keys.iter().filter(|key| key.starts_with("s/")).collect();
    assert!(markers.is_empty(), "{markers:?}");
    let sessions = |prefix: &str| -> BTreeSet<String> {
        let of = keys.iter().filter(|key| key.starts_with(prefix));
        of.map(|key| key.trim_end_matches(".f").split('-').nth(1).unwrap().to_owned()).collect()
    };
    let indexed = sessions("x/n");
    assert!(sessions("p/").is_subset(&indexed), "{keys:?}");
}

#[test]
fn a_clock_that_is_wrong_is_refused_before_anything_is_visible() {
    for (offset, ahead) in [(600, true), (600, false)] {
        let bucket: Arc<dyn Bucket> = Arc::new(Memory::new());
        drop(create(bucket.clone()));
        let clock = move || {
            let offset = Duration::from_secs(offset);
            if ahead { SystemTime::now() + offset } else { SystemTime::now() - offset }
        };
        let wrong = ClientOptions { clock: Arc::new(clock), ..client() };
        let repo = Repository::open(&storage(bucket.clone()), PASSWORD, wrong).unwrap();
        let writer = session(&repo);
        let id = writer.write_content(b"data", None, None).unwrap().id;
        writer.flush().unwrap_err();
        let error = writer.write_content(b"more", None, None).unwrap_err().to_string();
        assert!(error.contains("clock"), "{error}");
        let missing = open(bucket).read_content(&id).unwrap_err();
        assert_eq!(missing.kind(), ReadErrorKind::Missing);
    }
}

#[test]
fn grouped_objects_reuse_pieces_and_read_back() {
    let bucket: Arc<dyn Bucket> = Arc::new(Memory::new());
    let repo = create(bucket.clone());
    let writer = session(&repo);
    let contents: Vec<ContentId> =
        (0..5_u8).map(|nth| writer.write_content(&[nth; 10], None, None).unwrap().id).collect();
    for count in [1, 2, ENTRIES_PER_PIECE - 1, ENTRIES_PER_PIECE, ENTRIES_PER_PIECE + 1, 3 * ENTRIES_PER_PIECE, 5000] {
        let entries: Vec<IndirectEntry> = (0..count)
            .map(|nth| IndirectEntry {
                start: nth as u64 * 10,
                len: 10,
                object: ObjectId::direct(contents[nth * nth % 5]),
            })
            .collect();
        let write = |entries: &[IndirectEntry]| {
            let mut grouped = GroupedWriter::new(&writer, GroupedWriter::piece_count(entries.len() as u64));
            for (number, piece) in entries.chunks(ENTRIES_PER_PIECE).enumerate() {
                grouped.set(number, piece).unwrap();
            }
            grouped.finish().unwrap()
        };
        let id = write(&entries);
        writer.flush().unwrap();
        let object = GroupedObject::open(&repo, id).unwrap();
        let mut read = Vec::new();
        for piece in 0..object.pieces().len() {
            read.extend(object.read_piece(&repo, piece).unwrap());
        }
        assert_eq!(read, entries, "{count} entries");
        // The general reader agrees.
        let expected: Vec<u8> = (0..count).flat_map(|nth| [(nth * nth % 5) as u8; 10]).collect();
        assert_eq!(repo.read_object(&id, 1 << 20).unwrap(), expected, "{count} entries");
        // One entry changes: one piece and the second level are new.
        let before = writer.stats().new_contents;
        let mut changed = entries.clone();
        changed[count / 2].object = ObjectId::direct(contents[(count / 2 * (count / 2) + 1) % 5]);
        let other = write(&changed);
        assert_ne!(other, id);
        let pieces = GroupedWriter::piece_count(count as u64);
        assert_eq!(writer.stats().new_contents - before, if pieces == 1 { 1 } else { 2 }, "{count} entries");
    }
}
