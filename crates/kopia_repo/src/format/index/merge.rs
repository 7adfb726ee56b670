//! Merging indexes: which entry of a content counts, and the tables of several as one.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use super::{IndexEntry, IndexLayer};

/// Why indexes cannot be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The indexes have hashes of different lengths.
    #[error("indexes with hashes of {first} and of {other} bytes cannot be merged")]
    MixedHashLengths {
        /// Bytes of a hash in the first index.
        first: usize,
        /// Bytes of a hash in another.
        other: usize,
    },
    /// More different pack names, or combinations of compression and version, than the tables can number.
    #[error("the merged index has too many {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
    },
}

/// Which of two entries of one content counts: the greater one (kopia-format 3.8). The later timestamp; then the one
/// that is not deleted; then the greater pack name.
pub fn newer_wins(a: &IndexEntry, b: &IndexEntry) -> Ordering {
    a.timestamp_seconds.cmp(&b.timestamp_seconds).then(b.deleted.cmp(&a.deleted)).then_with(|| a.pack.cmp(&b.pack))
}

/// Merges indexes into one with an entry per content, the one that [`newer_wins`] prefers. Tombstones stay.
pub fn merge(layers: &[&IndexLayer]) -> Result<IndexLayer, MergeError> {
    let layers: Vec<&IndexLayer> = layers.iter().copied().filter(|layer| !layer.is_empty()).collect();
    let Some(first) = layers.first() else { return Ok(IndexLayer::empty()) };
    if let Some(other) = layers.iter().find(|layer| layer.key_len != first.key_len) {
        return Err(MergeError::MixedHashLengths { first: first.key_len - 1, other: other.key_len - 1 });
    }
    if layers.len() == 1 {
        return Ok((*first).clone());
    }

    let longest = layers.iter().map(|layer| layer.len()).max().unwrap_or(0);
    let mut merged = IndexLayer { key_len: first.key_len, ..IndexLayer::default() };
    merged.keys.reserve(longest * first.key_len);
    merged.records.reserve(longest);
    let mut pack_numbers = HashMap::new();
    let mut format_numbers = HashMap::new();
    // The merged number of each pack of each layer, filled in at its first use.
    let mut packs: Vec<Vec<Option<u32>>> = layers.iter().map(|layer| vec![None; layer.packs.len()]).collect();

    // The least key on top, from whichever layer.
    let mut next: BinaryHeap<Reverse<(&[u8], usize, usize)>> =
        layers.iter().enumerate().map(|(layer, index)| Reverse((index.key(0), layer, 0))).collect();
    while let Some(Reverse((key, layer, at))) = next.pop() {
        let mut best = (layer, at);
        let advance = |next: &mut BinaryHeap<_>, layer: usize, at: usize| {
            if at + 1 < layers[layer].len() {
                next.push(Reverse((layers[layer].key(at + 1), layer, at + 1)));
            }
        };
        advance(&mut next, layer, at);
        while let Some(&Reverse((other_key, layer, at))) = next.peek() {
            if other_key != key {
                break;
            }
            next.pop();
            if prefer((layers[layer], at), (layers[best.0], best.1)) == Ordering::Greater {
                best = (layer, at);
            }
            advance(&mut next, layer, at);
        }

        let (layer, at) = best;
        let mut record = layers[layer].records[at];
        let pack = record.pack as usize;
        record.pack = match packs[layer][pack] {
            Some(number) => number,
            None => {
                let number = merged.number_pack(&mut pack_numbers, &layers[layer].packs[pack])?;
                *packs[layer][pack].insert(number)
            }
        };
        let format = layers[layer].formats[usize::from(record.format)];
        record.format = merged.number_format(&mut format_numbers, format)?;
        merged.keys.extend_from_slice(key);
        merged.records.push(record);
    }
    Ok(merged)
}

/// [`newer_wins`] over table positions.
fn prefer(a: (&IndexLayer, usize), b: (&IndexLayer, usize)) -> Ordering {
    let (x, y) = (&a.0.records[a.1], &b.0.records[b.1]);
    x.timestamp()
        .cmp(&y.timestamp())
        .then(y.deleted().cmp(&x.deleted()))
        .then_with(|| a.0.packs[x.pack as usize].cmp(&b.0.packs[y.pack as usize]))
}
