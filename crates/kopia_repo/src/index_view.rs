//! What the repository holds, as this client last saw it: the merged index and when to look again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::ReadError;
use crate::format::content_id::ContentId;
use crate::format::index::{IndexEntry, IndexLayer, merge, newer_wins};

/// Above this many layers a look-up costs more than merging them once.
const MAX_LAYERS: usize = 6;

/// An immutable view; a refresh makes a new one, so look-ups hold no lock while they search.
///
/// Layers are only ever added. An index blob that a compaction replaced stays merged in here: its entries are all
/// in the compaction's output or superseded there, and the merge rule is the same for both.
#[derive(Clone)]
pub(crate) struct IndexView {
    layers: Vec<Arc<IndexLayer>>,
    /// Names of the index blobs that the layers were made of.
    pub(crate) loaded: HashSet<String>,
    /// Deleted entries not newer than this do not exist (spec 3.8).
    pub(crate) watermark_seconds: Option<i64>,
    /// The epoch that new index blobs belong to.
    pub(crate) write_epoch: u64,
    /// When the listing behind this view began: its validity counts from here (spec 4.7).
    pub(crate) listed_at: SystemTime,
}

impl IndexView {
    pub(crate) fn empty() -> Self {
        Self {
            layers: Vec::new(),
            loaded: HashSet::new(),
            watermark_seconds: None,
            write_epoch: 0,
            listed_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// The winning entry of a content, tombstones above the watermark included.
    pub(crate) fn lookup(&self, id: &ContentId) -> Result<Option<IndexEntry>, ReadError> {
        let mut winner: Option<IndexEntry> = None;
        for layer in &self.layers {
            let found = layer.find(id).map_err(|error| ReadError::damaged("the index", error))?;
            if let Some(entry) = found
                && winner.as_ref().is_none_or(|best| newer_wins(&entry, best).is_gt())
            {
                winner = Some(entry);
            }
        }
        Ok(winner.filter(|entry| self.exists(entry)))
    }

    /// Every content that is there and not deleted, with this prefix.
    pub(crate) fn live_with_prefix(&self, prefix: u8) -> Result<Vec<IndexEntry>, ReadError> {
        let mut found = Vec::new();
        for layer in &self.layers {
            for entry in layer.iter_prefix(Some(prefix)) {
                if let Some(winner) = self.lookup(&entry.id)?
                    && !winner.deleted
                {
                    found.push(winner);
                }
            }
        }
        found.sort_by_key(|entry| entry.id);
        found.dedup_by_key(|entry| entry.id);
        Ok(found)
    }

    /// Number of entries over all layers, superseded ones included.
    pub(crate) fn entry_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.len()).sum()
    }

    pub(crate) fn add_layer(&mut self, blob: &str, layer: IndexLayer) -> Result<(), ReadError> {
        self.loaded.insert(blob.to_owned());
        if layer.is_empty() {
            return Ok(());
        }
        self.layers.push(Arc::new(layer));
        if self.layers.len() > MAX_LAYERS {
            // Merge the small ones: the largest layer is rewritten only when the rest has grown to its size.
            self.layers.sort_by_key(|layer| std::cmp::Reverse(layer.len()));
            let rest: usize = self.layers[1..].iter().map(|layer| layer.len()).sum();
            let from = if rest * 2 >= self.layers[0].len() { 0 } else { 1 };
            let merged = {
                let small: Vec<&IndexLayer> = self.layers[from..].iter().map(|layer| &**layer).collect();
                merge(&small).map_err(|error| ReadError::damaged("the index", error))?
            };
            self.layers.truncate(from);
            self.layers.push(Arc::new(merged));
        }
        Ok(())
    }

    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        // A clock that went back makes the view look infinitely old, never young.
        now.duration_since(self.listed_at).unwrap_or(Duration::MAX)
    }

    fn exists(&self, entry: &IndexEntry) -> bool {
        !(entry.deleted && self.watermark_seconds.is_some_and(|watermark| entry.timestamp_seconds <= watermark))
    }
}
