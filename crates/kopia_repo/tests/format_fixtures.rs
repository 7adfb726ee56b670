//! Repositories that Kopia 0.23.1 made, decrypted layer by layer and compared with what is known of them
//! (`fixtures/facts/*.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use kopia_repo::format::compression::{CompressContext, CompressionId, DecompressContext, compress, decompress};
use kopia_repo::format::content_id::{ContentId, ObjectId};
use kopia_repo::format::encryption::{ContentCipher, OVERHEAD, blob_iv, open_aes_gcm};
use kopia_repo::format::epoch::{CommittedState, ListedBlob};
use kopia_repo::format::format_blob::{FormatBlob, UnlockError, UnlockedFormat};
use kopia_repo::format::hashing::ContentHasher;
use kopia_repo::format::index::{IndexEntry, IndexLayer, build, merge};
use kopia_repo::format::index_stream::{parse_entries as parse_segments, write_entry, write_footer, write_header};
use kopia_repo::format::maintenance_params::MaintenanceParams;
use kopia_repo::format::manifest::{ManifestEntry, ManifestState, build_entries, parse_entries};
use kopia_repo::format::pack::{recover_local_index, session_of};
use kopia_repo::format::policy::Policy;
use kopia_repo::format::snapshot::{DirectoryObject, EntryType, SnapshotManifest};
use serde_json::Value;

const FIXTURES: [&str; 4] = ["01-defaults", "02-zstd-fixed-blake3", "05-lifecycle", "06-epochs"];

/// A repository of the folder kind, unpacked into memory.
struct Blobs(BTreeMap<String, (Vec<u8>, Timestamp)>);

impl Blobs {
    fn read(name: &str) -> Self {
        let archive = fixtures().join(format!("{name}.tar.gz"));
        let mut tar = Vec::new();
        let file = std::fs::File::open(&archive).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut tar).unwrap();
        let folder = format!("{name}/repo/");
        let mut blobs = BTreeMap::new();
        for (path, data, time) in tar_files(&tar) {
            // The sharding of a folder splits the name into folders (kopia-format 1.4).
            if let Some(id) = path.strip_prefix(&folder).and_then(|path| path.strip_suffix(".f")) {
                blobs.insert(id.replace('/', ""), (data.to_vec(), time));
            }
        }
        assert!(blobs.contains_key("kopia.repository"), "{name} is no repository");
        Self(blobs)
    }

    fn get(&self, id: &str) -> &[u8] {
        &self.0.get(id).unwrap_or_else(|| panic!("blob {id} is missing")).0
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.0.iter().filter(move |(id, _)| id.starts_with(prefix)).map(|(id, (data, _))| (&**id, &**data))
    }

    fn listing(&self) -> impl Iterator<Item = ListedBlob<'_>> {
        self.0.iter().map(|(id, (data, timestamp))| ListedBlob {
            id,
            len_bytes: data.len() as u64,
            timestamp: *timestamp,
        })
    }
}

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The regular files of a POSIX tar: path, bytes, time.
fn tar_files(tar: &[u8]) -> Vec<(String, &[u8], Timestamp)> {
    let text = |field: &[u8]| String::from_utf8(field.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
    let octal = |field: &[u8]| u64::from_str_radix(text(field).trim(), 8).unwrap();
    let mut files = Vec::new();
    let (mut at, mut long_name) = (0, None);
    while tar[at] != 0 {
        let header = &tar[at..at + 512];
        let len = octal(&header[124..136]) as usize;
        let data = &tar[at + 512..at + 512 + len];
        at += 512 + len.div_ceil(512) * 512;
        match header[156] {
            b'L' => long_name = Some(text(data)),
            b'x' => {
                // PAX records: "<length> path=<value>\n".
                let records = String::from_utf8_lossy(data).into_owned();
                long_name =
                    records.lines().find_map(|line| Some(line.split_once(" path=")?.1.to_owned())).or(long_name);
            }
            b'0' | 0 => {
                let (prefix, name) = (text(&header[345..500]), text(&header[..100]));
                let short = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                let time = Timestamp::from_second(octal(&header[136..148]) as i64).unwrap();
                files.push((long_name.take().unwrap_or(short), data, time));
            }
            _ => long_name = None,
        }
    }
    files
}

/// A fixture with everything needed to read it.
struct Repository {
    name: &'static str,
    blobs: Blobs,
    facts: Value,
    unlocked: UnlockedFormat,
    hasher: ContentHasher,
    cipher: ContentCipher,
    state: CommittedState,
    active: Vec<String>,
    index: IndexLayer,
}

impl Repository {
    fn open(name: &'static str) -> Self {
        let blobs = Blobs::read(name);
        let facts = std::fs::read(fixtures().join(format!("facts/{name}.json"))).unwrap();
        let facts: Value = serde_json::from_slice(&facts).unwrap();
        let outer = FormatBlob::parse(blobs.get("kopia.repository")).unwrap();
        let password = facts["password"].as_str().unwrap();
        let unlocked = outer.unlock(password).unwrap();
        let hasher = ContentHasher::new(&unlocked.format.hash, &unlocked.format.secret).unwrap();
        let cipher = ContentCipher::new(&unlocked.format.encryption, &unlocked.format.master_key).unwrap();
        let state = CommittedState::from_listing(blobs.listing());
        let active = state.active_index_blobs(blobs.with_prefix("xn").map(|(id, _)| id));
        let mut repository =
            Self { name, blobs, facts, unlocked, hasher, cipher, state, active, index: IndexLayer::empty() };
        let layers: Vec<IndexLayer> = repository
            .active
            .iter()
            .map(|id| IndexLayer::parse(&repository.whole_blob(id), OVERHEAD as u32).unwrap())
            .collect();
        repository.index = merge(&layers.iter().collect::<Vec<_>>()).unwrap();
        repository
    }

    /// Decrypts a blob that is encrypted as a whole, and checks that it is named by its hash.
    fn whole_blob(&self, id: &str) -> Vec<u8> {
        let mut sealed = self.blobs.get(id).to_vec();
        let plaintext = self.cipher.open(&blob_iv(id).unwrap(), &mut sealed).unwrap().to_vec();
        let digest = self.hasher.digest(&plaintext).to_string();
        assert!(id.split('-').next().unwrap().ends_with(&digest), "{}: {id} has the hash {digest}", self.name);
        plaintext
    }

    /// Reads a content and checks its hash.
    fn content(&self, entry: &IndexEntry) -> Vec<u8> {
        let (start, len) = (entry.pack_offset as usize, entry.packed_len as usize);
        let mut sealed = self.blobs.get(&entry.pack)[start..start + len].to_vec();
        let stored = self.cipher.open(&entry.id.iv(), &mut sealed).unwrap();
        let mut plaintext = Vec::new();
        if entry.compression == CompressionId::NONE {
            plaintext.extend_from_slice(stored);
        } else {
            let mut context = DecompressContext::default();
            decompress(stored, entry.compression, entry.original_len as usize, &mut context, &mut plaintext).unwrap();
        }
        assert_eq!(plaintext.len(), entry.original_len as usize, "{}: {}", self.name, entry.id);
        assert_eq!(self.hasher.digest(&plaintext).as_ref(), entry.id.hash(), "{}: {}", self.name, entry.id);
        plaintext
    }

    fn content_by_id(&self, id: &ContentId) -> Vec<u8> {
        self.content(&self.index.find(id).unwrap().unwrap_or_else(|| panic!("content {id} is in no index")))
    }

    /// All bytes of an object.
    fn object(&self, id: &ObjectId) -> Vec<u8> {
        match id.index_stream() {
            None => self.content_by_id(&id.content),
            Some(stream) => {
                let segments = parse_segments(&self.object(&stream)).unwrap();
                let mut bytes = Vec::new();
                for segment in segments {
                    assert_eq!(segment.start, bytes.len() as u64);
                    let piece = self.object(&segment.object);
                    assert_eq!(piece.len() as u64, segment.len);
                    bytes.extend_from_slice(&piece);
                }
                bytes
            }
        }
    }

    /// Entries that are not tombstones at or below the watermark.
    fn present(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        self.index.iter().filter(|entry| {
            !entry.deleted || self.state.watermark_seconds.is_none_or(|mark| entry.timestamp_seconds > mark)
        })
    }

    fn manifests(&self) -> ManifestState {
        let mut state = ManifestState::default();
        for entry in self.index.iter_prefix(Some(b'm')).filter(|entry| !entry.deleted) {
            parse_entries(&self.content(&entry)).unwrap().into_iter().for_each(|manifest| state.add(manifest));
        }
        state
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// All fixtures, opened once for all tests.
fn each(check: impl Fn(&Repository)) {
    static REPOSITORIES: LazyLock<[Repository; 4]> = LazyLock::new(|| FIXTURES.map(Repository::open));
    REPOSITORIES.iter().for_each(check);
}

#[test]
fn keys_and_format() {
    each(|repo| {
        let facts = &repo.facts;
        let outer = FormatBlob::parse(repo.blobs.get("kopia.repository")).unwrap();
        assert_eq!(outer.key_algorithm, facts["keyAlgo"], "{}", repo.name);
        assert_eq!(hex(&outer.unique_id), facts["uniqueID"]);
        let password = facts["password"].as_str().unwrap();
        let key = kopia_repo::format::keys::format_key(&outer.key_algorithm, password, &outer.unique_id).unwrap();
        assert_eq!(hex(&key[..]), facts["formatKey"]);
        assert_eq!(serde_json::to_value(&repo.unlocked.format).unwrap(), facts["format"], "{}", repo.name);
        assert!(repo.unlocked.format.other.is_empty(), "every key of Kopia is understood");
        assert!(repo.unlocked.format.check().unwrap().is_empty());
        let secret = kopia_repo::format::keys::content_secret_key(&repo.unlocked.format.master_key);
        assert_eq!(hex(&secret[..]), facts["contentSecretKey"]);
        assert_eq!(hex(&repo.unlocked.maintenance_key()[..]), facts["maintenanceKey"]);
        let cfg = repo.unlocked.decrypt_blob_cfg(repo.blobs.get("kopia.blobcfg")).unwrap();
        assert_eq!(serde_json::to_value(cfg).unwrap(), facts["blobcfg"]);
        let schedule =
            open_aes_gcm(&repo.unlocked.maintenance_key(), b"maintenance", repo.blobs.get("kopia.maintenance"))
                .unwrap();
        let schedule: Value = serde_json::from_slice(&schedule).unwrap();
        assert_eq!(schedule["nextFullMaintenance"], facts["maintenance"]["nextFullMaintenance"]);

        assert!(matches!(outer.unlock("wrong"), Err(UnlockError::WrongPassword)));
        assert_eq!(outer.unlock(&format!(" {password}\t")).unwrap().format, repo.unlocked.format);
    });
}

#[test]
fn active_index_blobs() {
    each(|repo| {
        let facts = &repo.facts;
        assert_eq!(repo.state.write_epoch, facts["writeEpoch"], "{}", repo.name);
        assert_eq!(serde_json::to_value(repo.state.watermark_seconds).unwrap(), facts["deletionWatermark"]);
        let chain: Vec<[u64; 2]> = repo.state.range_chain.iter().map(|range| [range.min, range.max]).collect();
        assert_eq!(serde_json::to_value(chain).unwrap(), facts["rangeChain"]);
        let found: BTreeSet<&str> = repo.active.iter().map(String::as_str).collect();
        assert_eq!(found.len(), repo.active.len(), "no blob twice");
        let expected = facts["activeIndexBlobs"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        assert_eq!(found, expected, "{}", repo.name);
    });
}

#[test]
fn every_content() {
    each(|repo| {
        let known = repo.facts["contents"].as_array().unwrap();
        let present: Vec<IndexEntry> = repo.present().collect();
        assert_eq!(present.len(), known.len(), "{}", repo.name);
        for known in known {
            let id: ContentId = known["id"].as_str().unwrap().parse().unwrap();
            let entry = repo.index.find(&id).unwrap().unwrap();
            let case = format!("{}: {id}", repo.name);
            assert_eq!(*entry.pack, *known["pack"].as_str().unwrap(), "{case}");
            assert_eq!(entry.pack_offset, known["offset"], "{case}");
            assert_eq!(entry.packed_len, known["packed"], "{case}");
            assert_eq!(entry.original_len, known["length"], "{case}");
            assert_eq!(entry.deleted, known["deleted"], "{case}");
            assert_eq!(entry.timestamp_seconds, known["time"], "{case}");
            assert_eq!(entry.format_version, known["version"], "{case}");
            let compression = known["compression"]
                .as_str()
                .map_or(0, |id| u32::from_str_radix(id.trim_start_matches("0x"), 16).unwrap());
            assert_eq!(entry.compression.0, compression, "{case}");
            assert_eq!(sha256(&repo.content(&entry)), known["sha256"], "{case}");
        }
    });
}

/// Writing the entries of an index blob of Kopia gives the same bytes.
#[test]
fn index_blobs_are_written_as_kopia_writes_them() {
    each(|repo| {
        let mut compared = 0;
        for (id, _) in repo.blobs.with_prefix("x").filter(|(id, _)| ["xn", "xs", "xr"].contains(&&id[..2])) {
            let bytes = repo.whole_blob(id);
            let mut entries: Vec<IndexEntry> = IndexLayer::parse(&bytes, OVERHEAD as u32).unwrap().iter().collect();
            entries.reverse();
            assert_eq!(build(bytes[0], &mut entries).unwrap(), bytes, "{}: {id}", repo.name);
            compared += 1;
        }
        assert!(compared > 3, "{}: {compared}", repo.name);
    });
}

/// Every pack tells its own contents, and what an index says of it is among that.
#[test]
fn packs_recover() {
    each(|repo| {
        let mut recovered: BTreeMap<ContentId, Vec<IndexEntry>> = BTreeMap::new();
        for (id, data) in repo.blobs.with_prefix("").filter(|(id, _)| id.starts_with(['p', 'q'])) {
            assert!(session_of(id).is_some_and(|session| session.starts_with('s')), "{id}");
            let local = recover_local_index(data, &repo.cipher).unwrap();
            assert!(!local.is_empty(), "{}: {id}", repo.name);
            for entry in local.iter() {
                recovered.entry(entry.id).or_default().push(entry);
            }
        }
        for entry in repo.present().filter(|entry| !entry.deleted) {
            assert!(recovered[&entry.id].contains(&entry), "{}: {}", repo.name, entry.id);
        }
    });
}

/// Kopia's logs are encrypted as other blobs are, and a finished session leaves no marker.
#[test]
fn log_blobs_decrypt() {
    each(|repo| {
        assert_eq!(repo.blobs.with_prefix("s").count(), 0, "{}", repo.name);
        let mut read = 0;
        for (id, _) in repo.blobs.with_prefix("_log_") {
            let mut lines = Vec::new();
            flate2::read::GzDecoder::new(&*repo.whole_blob(id)).read_to_end(&mut lines).unwrap();
            read += 1;
        }
        assert!(read > 0, "{}", repo.name);
    });
}

#[test]
fn every_manifest() {
    each(|repo| {
        let state = repo.manifests();
        let known = repo.facts["manifests"].as_array().unwrap();
        assert_eq!(state.live().count(), known.len(), "{}", repo.name);
        for known in known {
            let id = known["id"].as_str().unwrap();
            let manifest = state.get(id).unwrap_or_else(|| panic!("{}: manifest {id}", repo.name));
            assert_eq!(serde_json::to_value(&manifest.labels).unwrap(), known["labels"], "{id}");
            assert_eq!(manifest.modified.to_string(), known["modified"].as_str().unwrap(), "{id}");
            let data = manifest.data.get();
            assert_eq!(serde_json::from_str::<Value>(data).unwrap(), known["data"], "{id}");

            // The types lose nothing, and snapshots come out byte for byte.
            let again = match manifest.manifest_type().unwrap() {
                "snapshot" => {
                    let snapshot = SnapshotManifest::parse(data.as_bytes()).unwrap();
                    assert_eq!(snapshot.labels(), manifest.labels, "{id}");
                    let written =
                        ManifestEntry::new(manifest.id.clone(), snapshot.labels(), manifest.modified, &snapshot)
                            .unwrap();
                    assert_eq!(written.data.get(), data, "{id}");
                    serde_json::to_value(snapshot)
                }
                "policy" => serde_json::to_value(serde_json::from_str::<Policy>(data).unwrap()),
                "maintenance" => {
                    let params: MaintenanceParams = serde_json::from_str(data).unwrap();
                    assert_eq!(serde_json::to_string(&params).unwrap(), data, "{id}");
                    if repo.name != "06-epochs" {
                        // That one was told to keep fewer logs.
                        assert_eq!(params, MaintenanceParams::new(&params.owner), "{id} has Kopia's defaults");
                    }
                    serde_json::to_value(params)
                }
                other => panic!("a manifest of the type {other}"),
            };
            assert_eq!(again.unwrap(), known["data"], "{id}");
        }
        let global = state.find(&[("type", "policy"), ("policyType", "global")]).next().unwrap();
        let mut global: Policy = serde_json::from_str(global.data.get()).unwrap();
        // The fixtures were given another compression and one another retention; the rest is Kopia's default.
        global.compression.compressor_name = "none".into();
        if repo.name == "06-epochs" {
            global.retention = Policy::default_global().retention;
        }
        assert_eq!(global, Policy::default_global(), "{}", repo.name);
    });
}

/// Manifest contents that we write from Kopia's entries hold the same text.
#[test]
fn manifest_contents_are_written_as_kopia_writes_them() {
    let text = |content: &[u8]| {
        let mut text = String::new();
        flate2::read::GzDecoder::new(content).read_to_string(&mut text).unwrap();
        text
    };
    each(|repo| {
        let mut compared = 0;
        for entry in repo.index.iter_prefix(Some(b'm')).filter(|entry| repo.blobs.0.contains_key(&*entry.pack)) {
            let content = repo.content(&entry);
            let written = build_entries(&parse_entries(&content).unwrap());
            assert_eq!(text(&written), text(&content), "{}: {}", repo.name, entry.id);
            compared += 1;
        }
        assert!(compared > 1, "{}", repo.name);
    });
}

/// Directories and index streams are written as Kopia writes them, and the trees hold what the listings say.
#[test]
fn snapshot_trees() {
    each(|repo| {
        let mut snapshots = 0;
        for manifest in repo.manifests().find(&[("type", "snapshot")]) {
            let snapshot = SnapshotManifest::parse(manifest.data.get().as_bytes()).unwrap();
            let root = snapshot.root_entry.unwrap();
            snapshots += 1;
            let (mut files, mut size, mut symlinks) = (0, 0, 0);
            let mut open = vec![root.clone()];
            while let Some(entry) = open.pop() {
                let bytes = repo.object(&entry.object_id().unwrap());
                match entry.entry_type {
                    EntryType::Directory => {
                        let directory = DirectoryObject::parse(&bytes).unwrap();
                        assert_eq!(String::from_utf8_lossy(&directory.to_json()), String::from_utf8_lossy(&bytes));
                        assert_eq!(entry.summary, directory.summary, "{}: {:?}", repo.name, entry.name);
                        open.extend(directory.entries);
                    }
                    EntryType::File => {
                        assert_eq!(bytes.len() as i64, entry.size, "{}: {:?}", repo.name, entry.name);
                        files += 1;
                        size += entry.size;
                    }
                    EntryType::Symlink => {
                        assert_eq!(bytes.len() as i64, entry.size, "{}: {:?}", repo.name, entry.name);
                        symlinks += 1;
                    }
                    EntryType::Other(other) => panic!("{}: {:?} is a {other:?}", repo.name, entry.name),
                }
            }
            let summary = root.summary.unwrap();
            assert_eq!((summary.files, summary.size, summary.symlinks), (files, size, symlinks), "{}", repo.name);
        }
        assert!(snapshots > 0);
    });
}

#[test]
fn index_streams_are_written_as_kopia_writes_them() {
    let compared = AtomicUsize::new(0);
    each(|repo| {
        let name = repo.name;
        for known in repo.facts["notableObjects"].as_array().unwrap() {
            let object: ObjectId = known["obj"].as_str().unwrap().parse().unwrap();
            let Some(stream) = object.index_stream() else { continue };
            let bytes = repo.object(&stream);
            let entries = parse_segments(&bytes).unwrap();
            assert_eq!(entries.len() as u64, known["entries"], "{name}: {object}");
            let mut written = Vec::new();
            write_header(&mut written);
            for (n, entry) in entries.iter().enumerate() {
                write_entry(&mut written, n == 0, entry);
            }
            write_footer(&mut written);
            assert_eq!(written, bytes, "{name}: {object}");
            let last = entries.last().unwrap();
            assert_eq!(last.start + last.len, known["size"], "{name}: {object}");
            compared.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(compared.into_inner() > 3);
}

/// What Kopia compressed well we compress too, and read back.
#[test]
fn contents_compress_and_come_back() {
    let repo = Repository::open("02-zstd-fixed-blake3");
    let mut packer = CompressContext::default();
    let mut unpacker = DecompressContext::default();
    let mut compared = 0;
    for entry in repo.present().filter(|entry| entry.compression == CompressionId::ZSTD_FASTEST) {
        let plaintext = repo.content(&entry);
        let mut packed = Vec::new();
        if !compress(entry.compression, &mut packer, &plaintext, &mut packed).unwrap() {
            continue;
        }
        let mut again = Vec::new();
        decompress(&packed, entry.compression, plaintext.len(), &mut unpacker, &mut again).unwrap();
        assert!(again == plaintext, "{}", entry.id);
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}

/// One bit of any encrypted blob changed: never another plaintext.
#[test]
fn damaged_blobs_never_decrypt() {
    let repo = Repository::open("01-defaults");
    for (id, sealed) in repo.blobs.with_prefix("xn") {
        let iv = blob_iv(id).unwrap();
        for bit in (0..sealed.len() * 8).step_by(61) {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(repo.cipher.open(&iv, &mut changed).is_err(), "{id}, bit {bit}");
        }
    }
    let outer = FormatBlob::parse(repo.blobs.get("kopia.repository")).unwrap();
    for bit in 0..outer.encrypted.len() * 8 {
        let mut changed = outer.clone();
        changed.encrypted[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(changed.unlock_with(&repo.unlocked), Err(UnlockError::WrongPassword)), "bit {bit}");
    }
}
