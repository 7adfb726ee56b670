//! Manifest contents: small labelled records, many to a content (kopia-format 6.1).

use std::collections::BTreeMap;
use std::io::{Read, Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{content_id, json, random};

/// One version of a manifest, or its tombstone.
#[derive(Debug, Clone)]
pub struct ManifestEntry {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What the manifest is found by; `type` says what it is.
    pub labels: BTreeMap<String, String>,
    /// When it was written. The latest entry of an ID counts.
    pub modified: Timestamp,
    /// The manifest is gone.
    pub deleted: bool,
    /// The payload, any JSON; `null` in tombstones.
    pub data: Box<RawValue>,
}

/// The most plaintext that a manifest content may hold once unpacked, in bytes.
pub const MAX_PLAINTEXT_BYTES: u64 = 1 << 30;

/// Why a content holds no manifests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The content is not gzip, or damaged.
    #[error("unpack a manifest content of {len} bytes")]
    Unpack {
        /// Bytes of the content.
        len: usize,
        /// What the decoder met.
        source: std::io::Error,
    },
    /// The content unpacks to more than [`MAX_PLAINTEXT_BYTES`].
    #[error("a manifest content of {len} bytes unpacks to more than 1 GiB")]
    TooLarge {
        /// Bytes of the content.
        len: usize,
    },
    /// What is inside is not a list of manifests.
    #[error("read the list of manifests")]
    Json(#[source] serde_json::Error),
}

/// The top level, which Kopia parses strictly: this key, this type, no other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    entries: Vec<StoredEntry>,
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    #[serde(default, deserialize_with = "json::null_as_default")]
    id: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    modified: Timestamp,
    #[serde(default, skip_serializing_if = "json::is_default", deserialize_with = "json::null_as_default")]
    deleted: bool,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

impl ManifestEntry {
    /// A new manifest.
    pub fn new<T: Serialize>(
        id: String,
        labels: BTreeMap<String, String>,
        modified: Timestamp,
        data: &T,
    ) -> Result<Self, serde_json::Error> {
        // First without Go's escapes, which cannot fail any more once this did not.
        serde_json::to_value(data)?;
        let text = String::from_utf8(json::to_go_json(data)).expect("JSON is UTF-8");
        Ok(Self { id, labels, modified, deleted: false, data: RawValue::from_string(text)? })
    }

    /// The entry that deletes a manifest. `modified` must be later than the time of the manifest.
    pub fn tombstone(id: &str, modified: Timestamp) -> Self {
        Self { id: id.to_owned(), labels: BTreeMap::new(), modified, deleted: true, data: null() }
    }

    /// The label `type`.
    pub fn manifest_type(&self) -> Option<&str> {
        self.labels.get("type").map(String::as_str)
    }

    /// Whether all these labels are among those of the manifest.
    pub fn matches(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|has| has == value))
    }
}

fn null() -> Box<RawValue> {
    RawValue::from_string("null".to_owned()).expect("null is JSON")
}

/// A new name for a manifest: 32 hexadecimal digits.
pub fn new_manifest_id() -> String {
    content_id::hex(&random::bytes::<16>())
}

/// Reads the plaintext of a content with the prefix `m`.
pub fn parse_entries(content: &[u8]) -> Result<Vec<ManifestEntry>, ManifestError> {
    let len = content.len();
    let mut plaintext = Vec::new();
    flate2::bufread::MultiGzDecoder::new(content)
        .take(MAX_PLAINTEXT_BYTES + 1)
        .read_to_end(&mut plaintext)
        .map_err(|source| ManifestError::Unpack { len, source })?;
    if plaintext.len() as u64 > MAX_PLAINTEXT_BYTES {
        return Err(ManifestError::TooLarge { len });
    }
    let list: List = serde_json::from_slice(&plaintext).map_err(ManifestError::Json)?;
    Ok(list
        .entries
        .into_iter()
        .map(|entry| ManifestEntry {
            id: entry.id,
            labels: entry.labels.unwrap_or_default(),
            modified: entry.modified,
            deleted: entry.deleted,
            data: entry.data.unwrap_or_else(null),
        })
        .collect())
}

/// The plaintext of a content that holds these entries.
pub fn build_entries(entries: &[ManifestEntry]) -> Vec<u8> {
    #[derive(Serialize)]
    struct ListOut {
        entries: Vec<StoredEntry>,
    }
    let entries = entries
        .iter()
        .map(|entry| StoredEntry {
            id: entry.id.clone(),
            labels: if entry.deleted { None } else { Some(entry.labels.clone()) },
            modified: entry.modified,
            deleted: entry.deleted,
            data: Some(entry.data.clone()),
        })
        .collect();
    let mut plaintext = json::to_go_json(&ListOut { entries });
    plaintext.push(b'\n');
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plaintext).and_then(|()| gzip.finish()).expect("writing into memory does not fail")
}

/// What the entries of all manifest contents come to: the latest of each ID, the first seen among equals.
#[derive(Debug, Default, Clone)]
pub struct ManifestState {
    /// Tombstones included, which hide what may still be added.
    latest: BTreeMap<String, ManifestEntry>,
}

impl ManifestState {
    /// Takes an entry into account.
    pub fn add(&mut self, entry: ManifestEntry) {
        match self.latest.entry(entry.id.clone()) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(entry);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                if entry.modified > place.get().modified {
                    place.insert(entry);
                }
            }
        }
    }

    /// The manifest of this ID, unless it is deleted.
    pub fn get(&self, id: &str) -> Option<&ManifestEntry> {
        self.latest.get(id).filter(|entry| !entry.deleted)
    }

    /// Whether a tombstone of this ID is known.
    pub fn is_deleted(&self, id: &str) -> bool {
        self.latest.get(id).is_some_and(|entry| entry.deleted)
    }

    /// All manifests that are not deleted, by ID.
    pub fn live(&self) -> impl Iterator<Item = &ManifestEntry> {
        self.latest.values().filter(|entry| !entry.deleted)
    }

    /// The manifests that have all these labels, by ID.
    pub fn find<'a>(&'a self, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a ManifestEntry> {
        self.live().filter(move |entry| entry.matches(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_vectors::Rng;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn gunzip(content: &[u8]) -> String {
        let mut text = String::new();
        flate2::read::GzDecoder::new(content).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn contents_are_written_as_kopia_writes_them() {
        let mut live =
            ManifestEntry::new(new_manifest_id(), labels(&[("type", "t"), ("a", "<b>")]), at(1), &[1, 2]).unwrap();
        assert_eq!(live.id.len(), 32);
        live.id = "00ff".to_owned();
        let content = build_entries(&[live.clone(), ManifestEntry::tombstone("0a", at(2))]);
        assert_eq!(
            gunzip(&content),
            "{\"entries\":[{\"id\":\"00ff\",\"labels\":{\"a\":\"\\u003cb\\u003e\",\"type\":\"t\"},\
             \"modified\":\"1970-01-01T00:00:01Z\",\"data\":[1,2]},\
             {\"id\":\"0a\",\"labels\":null,\"modified\":\"1970-01-01T00:00:02Z\",\"deleted\":true,\"data\":null}]}\n"
        );
        let read = parse_entries(&content).unwrap();
        assert_eq!((read.len(), read[0].manifest_type(), read[0].data.get()), (2, Some("t"), "[1,2]"));
        assert!(read[1].deleted && read[1].labels.is_empty());
        assert!(live.matches(&[("a", "<b>")]) && live.matches(&[]) && !live.matches(&[("a", "b")]));
    }

    #[test]
    fn the_top_level_is_read_as_strictly_as_kopia_does() {
        let entry = r#"{"id":"1","labels":null,"modified":"2026-01-01T00:00:00+01:00","unknown":{},"data":{"a":[1]}}"#;
        for (text, count) in [
            (format!("{{\"entries\":[{entry}]}}\n"), Some(1)),
            ("{\"entries\":[]}".to_owned(), Some(0)),
            ("{\"entries\":null}".to_owned(), None),
            ("{}".to_owned(), None),
            (format!("{{\"entries\":[{entry}],\"more\":1}}"), None),
            (format!("[{entry}]"), None),
            ("{\"entries\":[{\"id\":\"1\"}]}".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_entries(&gzip(&text)).ok().map(|entries| entries.len()), count, "{text}");
        }
        assert!(matches!(parse_entries(b"no gzip"), Err(ManifestError::Unpack { len: 7, .. })));
        assert!(matches!(parse_entries(b""), Err(ManifestError::Unpack { .. } | ManifestError::Json(_))));
    }

    #[test]
    fn the_latest_entry_counts_whatever_the_order() {
        let entry = |id: &str, second, data: &str| {
            let mut entry = ManifestEntry::new(new_manifest_id(), labels(&[("type", "t")]), at(second), &data).unwrap();
            entry.id = id.to_owned();
            entry
        };
        let all = [
            entry("a", 1, "old"),
            entry("a", 3, "new"),
            entry("b", 1, "gone"),
            ManifestEntry::tombstone("b", at(2)),
            entry("c", 5, "back"),
            ManifestEntry::tombstone("c", at(4)),
        ];
        for turn in 0..all.len() {
            let mut state = ManifestState::default();
            all[turn..].iter().chain(&all[..turn]).for_each(|entry| state.add(entry.clone()));
            let live: Vec<(&str, &str)> = state.live().map(|entry| (&*entry.id, entry.data.get())).collect();
            assert_eq!(live, [("a", "\"new\""), ("c", "\"back\"")], "turn {turn}");
            assert!(state.get("b").is_none() && state.get("a").is_some());
            assert_eq!(state.find(&[("type", "t")]).count(), 2);
            assert_eq!(state.find(&[("type", "u")]).count(), 0);
        }
        let mut state = ManifestState::default();
        state.add(entry("a", 1, "first"));
        state.add(entry("a", 1, "second"));
        assert_eq!(state.get("a").unwrap().data.get(), "\"first\"", "among equals the first seen stays");
    }

    #[test]
    fn changed_contents_give_an_error_or_manifests() {
        let mut rng = Rng(11);
        let text = r#"{"entries":[{"id":"00","labels":{"type":"t"},"modified":"2026-01-01T00:00:00.5Z","data":{"a":"\u003c"}}]}"#;
        let mut accepted = 0;
        for _ in 0..20_000 {
            let changed = rng.mutate(text.as_bytes());
            let Ok(changed) = String::from_utf8(changed) else { continue };
            let Ok(entries) = parse_entries(&gzip(&changed)) else { continue };
            accepted += 1;
            // What was accepted can be written and read again.
            let again = parse_entries(&build_entries(&entries)).unwrap();
            assert_eq!(again.len(), entries.len());
            for (one, two) in entries.iter().zip(&again) {
                assert_eq!((&one.id, one.modified, one.deleted), (&two.id, two.modified, two.deleted));
                let value = |entry: &ManifestEntry| serde_json::from_str::<serde_json::Value>(entry.data.get()).ok();
                assert_eq!(value(one), value(two));
            }
        }
        assert!(accepted > 300, "{accepted}");
        let packed = gzip(text);
        for _ in 0..5000 {
            let _ = parse_entries(&rng.mutate(&packed));
        }
    }
}
