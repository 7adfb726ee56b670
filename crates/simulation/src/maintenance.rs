//! Others at the repository: retention that deletes points, and maintenance that collects what no snapshot names, as
//! stock's does it. It reads and writes the format with its own hands.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bucket::{Bucket, PutOptions};
use kopia_repo::format::encryption::{ContentCipher, NONCE_BYTES, OVERHEAD, blob_iv, whole_blob_name};
use kopia_repo::format::epoch;
use kopia_repo::format::format_blob::{FORMAT_BLOB_ID, FormatBlob};
use kopia_repo::format::hashing::ContentHasher;
use kopia_repo::format::index::{IndexEntry, IndexLayer, build, merge};
use kopia_repo::format::snapshot::EntryType;
use kopia_repo::{ContentId, ObjectId, ReadError, SessionOptions, WriteSession, object_of};

use crate::world::World;

/// Prefix of contents that hold manifests: they have a collection of their own.
const MANIFEST_PREFIX: u8 = b'm';
/// Contents younger than this may belong to a snapshot that is still being written, and tombstones younger than this
/// may not have been seen by everybody.
const SAFETY: Duration = Duration::from_secs(24 * 3600);

/// Somebody's retention deletes a point.
pub(crate) fn delete_point(world: &World, which: u8) -> bool {
    let live: Vec<(String, usize)> = {
        let model = world.model();
        model.points.iter().filter(|point| !point.deleted).map(|point| (point.id.clone(), point.vm)).collect()
    };
    let Some((id, vm)) = live.get(usize::from(which) % live.len().max(1)).cloned() else { return false };
    let points = backup::list_points(&world.observer, None).unwrap_or_default();
    let Some(point) = points.into_iter().find(|point| point.id == id) else { return false };
    let deleted = WriteSession::new(world.observer.clone(), SessionOptions::default()).and_then(|session| {
        session.delete_manifest(&point.snapshot.id, point.snapshot.modified);
        session.flush()
    });
    if deleted.is_err() {
        // The store may have done what it said it did not.
        let look = || {
            world.observer.refresh().ok()?;
            backup::list_points(&world.observer, None).ok()
        };
        let Some(points) = (0..4).find_map(|_| look()) else { return false };
        if points.iter().any(|point| point.id == id) {
            return false;
        }
    }
    let mut model = world.model();
    if model.live_points(vm).last().is_some_and(|newest| newest.id == id) {
        // The one before it has an id that no reference point keeps.
        model.vms[vm].full_excused = true;
    }
    if let Some(run) = &mut model.vms[vm].run {
        run.disturbed = true;
    }
    for point in &mut model.points {
        point.deleted |= point.id == id;
    }
    true
}

/// The keys of the repository, as a program that was given the password has them.
struct Keys {
    hasher: ContentHasher,
    cipher: ContentCipher,
}

/// Tombstones for what no snapshot names any more; packs of which nothing is left go.
pub(crate) fn maintain(world: &World) -> bool {
    if world.observer.refresh().is_err() {
        return false;
    }
    let store = world.store.inner();
    let Some(keys) = keys(world) else { return false };
    let Ok(named) = named_contents(world) else { return false };
    let now = world.observer.now();
    let mut layers = Vec::new();
    let mut packs = BTreeSet::new();
    let mut watermark = None;
    let listed = store.list("", &mut |object| {
        if object.key.starts_with("xn") {
            layers.push(object.key);
        } else if object.key.starts_with(['p', 'q']) {
            packs.insert(object.key);
        } else if let Some(seconds) = object.key.strip_prefix("xw") {
            watermark = watermark.max(seconds.split('_').next().and_then(|seconds| seconds.parse::<i64>().ok()));
        }
        ControlFlow::Continue(())
    });
    if listed.is_err() {
        return false;
    }
    let layers: Vec<IndexLayer> = layers.iter().filter_map(|blob| open_layer(store, &keys, blob)).collect();
    let Ok(index) = merge(&layers.iter().collect::<Vec<_>>()) else { return false };
    let limit = unix_seconds(now - SAFETY);
    let mut dead: Vec<IndexEntry> = Vec::new();
    let mut by_pack: BTreeMap<String, Vec<IndexEntry>> = BTreeMap::new();
    for entry in index.iter() {
        let collected = entry.timestamp_seconds <= limit
            && entry.id.prefix() != Some(MANIFEST_PREFIX)
            && !named.contains(&entry.id);
        if !entry.deleted && collected {
            let tombstone = IndexEntry { deleted: true, timestamp_seconds: unix_seconds(now), ..entry.clone() };
            dead.push(tombstone);
        }
        by_pack.entry(entry.pack.to_string()).or_default().push(entry);
    }
    if !dead.is_empty() {
        world.count("maintenance tombstones");
        let suffix = epoch::set_suffix("maintenance", 1);
        let Ok(plaintext) = build(2, &mut dead) else { return false };
        put_sealed(store, &keys, &epoch::uncompacted_prefix(0), &plaintext, &suffix);
    }
    // Packs of which everything has been dead for long enough for everybody to know.
    let old = |entry: &IndexEntry| entry.deleted && entry.timestamp_seconds <= limit;
    for (pack, entries) in by_pack {
        if packs.contains(&pack) && entries.iter().all(old) {
            world.count("maintenance packs");
            store.delete(&pack).expect("memory deletes");
        }
    }
    true
}

fn keys(world: &World) -> Option<Keys> {
    let outer = FormatBlob::parse(&world.store.inner().get(FORMAT_BLOB_ID).ok()?).ok()?;
    let unlocked = outer.unlock_with(crate::world::unlocked()).ok()?;
    Some(Keys {
        hasher: ContentHasher::new(&unlocked.format.hash, &unlocked.format.secret).ok()?,
        cipher: ContentCipher::new(&unlocked.format.encryption, &unlocked.format.master_key).ok()?,
    })
}

fn open_layer(store: &dyn Bucket, keys: &Keys, blob: &str) -> Option<IndexLayer> {
    let mut sealed = store.get(blob).ok()?.to_vec();
    let plaintext = keys.cipher.open(&blob_iv(blob).ok()?, &mut sealed).ok()?;
    IndexLayer::parse(plaintext, OVERHEAD as u32).ok()
}

fn put_sealed(store: &dyn Bucket, keys: &Keys, prefix: &str, plaintext: &[u8], suffix: &str) {
    let name = whole_blob_name(prefix, &keys.hasher.digest(plaintext), Some(suffix));
    let mut sealed = vec![0; NONCE_BYTES];
    sealed.extend_from_slice(plaintext);
    keys.cipher.seal(&blob_iv(&name).expect("the name is well formed"), &mut sealed);
    store.put(&name, &[&sealed], &PutOptions::default()).expect("memory takes everything");
}

/// Everything that a snapshot needs.
fn named_contents(world: &World) -> Result<BTreeSet<ContentId>, ReadError> {
    let mut named = BTreeSet::new();
    for snapshot in world.observer.snapshots(&[])? {
        let Some(root) = snapshot.manifest.root_entry else { continue };
        let mut entries = vec![root];
        while let Some(entry) = entries.pop() {
            let object = object_of(&entry)?;
            if entry.entry_type == EntryType::Directory {
                entries.extend(world.observer.read_directory(&object)?.entries);
            }
            name_object(world, object, &mut named)?;
        }
    }
    Ok(named)
}

fn name_object(world: &World, object: ObjectId, named: &mut BTreeSet<ContentId>) -> Result<(), ReadError> {
    match object.index_stream() {
        None => drop(named.insert(object.content)),
        Some(stream) => {
            name_object(world, stream, named)?;
            for segment in world.observer.open_object(&object)?.segments() {
                named.insert(segment.object.content);
            }
        }
    }
    Ok(())
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}
