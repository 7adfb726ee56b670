//! Manifests: labelled records, merged from all `m` contents (spec 6.1).

use std::collections::HashSet;

use crate::Repository;
use crate::error::ReadError;
use crate::format::content_id::ContentId;
use crate::format::manifest::{ManifestEntry, ManifestState, parse_entries};
use crate::session::MANIFEST_PREFIX;

/// The manifests of the contents read so far.
#[derive(Default)]
pub(crate) struct ManifestCache {
    contents: HashSet<ContentId>,
    state: ManifestState,
}

impl Repository {
    /// Live manifests whose labels contain all of `labels`, as of the current index view, in order of their IDs.
    pub fn find_manifests(&self, labels: &[(&str, &str)]) -> Result<Vec<ManifestEntry>, ReadError> {
        let mut cache = self.manifests.lock().expect("no panic while held");
        self.load_manifests(&mut cache)?;
        Ok(cache.state.find(labels).cloned().collect())
    }

    /// One live manifest by its ID.
    pub fn manifest(&self, id: &str) -> Result<ManifestEntry, ReadError> {
        let mut cache = self.manifests.lock().expect("no panic while held");
        self.load_manifests(&mut cache)?;
        let entry = cache.state.get(id).filter(|entry| !entry.deleted).cloned();
        entry.ok_or_else(|| ReadError::NotFound { what: format!("manifest {id}") })
    }

    /// Whether a manifest of this ID was there and was deleted. Maintenance forgets it: `false` proves nothing.
    pub fn is_deleted_manifest(&self, id: &str) -> Result<bool, ReadError> {
        let mut cache = self.manifests.lock().expect("no panic while held");
        self.load_manifests(&mut cache)?;
        Ok(cache.state.is_deleted(id))
    }

    fn load_manifests(&self, cache: &mut ManifestCache) -> Result<(), ReadError> {
        // An old view is refreshed by the look-up behind it.
        let entries = {
            let view = self.view();
            if view.age(self.now()) > std::time::Duration::from_secs(15 * 60) {
                self.refresh()?;
            }
            self.view().live_with_prefix(MANIFEST_PREFIX)?
        };
        let live: HashSet<ContentId> = entries.iter().map(|entry| entry.id).collect();
        if !cache.contents.is_subset(&live) {
            // A compaction replaced contents, and with them tombstones that may never have been seen here.
            *cache = ManifestCache::default();
        }
        // In the order of the index: a set has another one each time, and with it the storage other requests.
        for id in entries.iter().map(|entry| entry.id) {
            if cache.contents.contains(&id) {
                continue;
            }
            let payload = self.read_content(&id)?;
            let parsed =
                parse_entries(&payload).map_err(|error| ReadError::damaged(format!("manifest content {id}"), error))?;
            for entry in parsed {
                cache.state.add(entry);
            }
            cache.contents.insert(id);
        }
        Ok(())
    }
}
