//! Snapshot manifests and directory objects (kopia-format 6.2 to 6.4).

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::content_id::{ObjectId, ObjectIdError};
use super::json::{self, is_default, null_as_default};

/// What was snapshotted: user, host and path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceInfo {
    /// The host.
    pub host: String,
    /// The user.
    #[serde(rename = "userName")]
    pub user_name: String,
    /// The path.
    pub path: String,
}

/// The payload of a manifest of the type `snapshot`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Always empty as stored: the ID of the manifest counts.
    #[serde(default, deserialize_with = "null_as_default")]
    pub id: String,
    /// What was snapshotted; the same as the labels.
    #[serde(default, deserialize_with = "null_as_default")]
    pub source: SourceInfo,
    /// A text for people.
    #[serde(default, deserialize_with = "null_as_default")]
    pub description: String,
    /// When the snapshot began. Order and retention go by it.
    #[serde(rename = "startTime", default = "epoch", deserialize_with = "time")]
    pub start_time: Timestamp,
    /// When it ended.
    #[serde(rename = "endTime", default = "epoch", deserialize_with = "time")]
    pub end_time: Timestamp,
    /// Counters.
    #[serde(default, deserialize_with = "null_as_default")]
    pub stats: SnapshotStats,
    /// Why the snapshot is not complete (`checkpoint`, `canceled`, `limit reached`); empty if it is.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub incomplete: String,
    /// The root directory or single file. A manifest without one makes Kopia's maintenance fail: never write it.
    #[serde(rename = "rootEntry", default)]
    pub root_entry: Option<DirEntry>,
    /// Keys and values that are also labels.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub tags: BTreeMap<String, String>,
    /// Any pin keeps the snapshot from being expired. Sorted.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub pins: Vec<String>,
}

/// Counters of a snapshot run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStats {
    /// Bytes of all files.
    pub total_size: i64,
    /// Bytes of files that policy excluded.
    pub excluded_total_size: i64,
    /// Files.
    pub file_count: i64,
    /// Files taken over from an earlier snapshot.
    pub cached_files: i64,
    /// Files that were read.
    pub non_cached_files: i64,
    /// Directories.
    pub dir_count: i64,
    /// Files that policy excluded.
    pub excluded_file_count: i64,
    /// Directories that policy excluded.
    pub excluded_dir_count: i64,
    /// Errors that policy ignores.
    pub ignored_error_count: i64,
    /// Entries that could not be read and are missing.
    pub error_count: i64,
}

/// One name in a directory, or the root of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name without path. The root's may be anything, do not use it as a file name.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub name: String,
    /// What it is.
    #[serde(rename = "type", default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub entry_type: EntryType,
    /// Permissions, as Go has them.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub mode: GoMode,
    /// Bytes of a file, or of a symlink's target; 0 for directories. Must be the length of the object.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub size: i64,
    /// When it was changed last.
    #[serde(default = "epoch", skip_serializing_if = "is_epoch", deserialize_with = "time")]
    pub mtime: Timestamp,
    /// Owner.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub uid: u32,
    /// Group.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub gid: u32,
    /// The object with the file's bytes, the symlink's target or the directory; see [`object_id`](Self::object_id).
    #[serde(rename = "obj", default, deserialize_with = "null_as_default")]
    pub object: String,
    /// What is below a directory. Always write it for directories: some of Kopia's commands rely on it.
    #[serde(rename = "summ", default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<DirSummary>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EntryType {
    /// `f`
    File,
    /// `d`
    Directory,
    /// `s`; the object holds the target.
    Symlink,
    /// Anything else, as it stands there.
    Other(String),
}

/// Mode bits as Go's `fs.FileMode` has them (kopia-format 6.4): permissions where POSIX has them, set-user-ID,
/// set-group-ID and sticky elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GoMode(pub u32);

/// What is in a directory and below.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirSummary {
    /// Bytes of all files.
    #[serde(default, deserialize_with = "null_as_default")]
    pub size: i64,
    /// Files.
    #[serde(default, deserialize_with = "null_as_default")]
    pub files: i64,
    /// Symlinks.
    #[serde(default, deserialize_with = "null_as_default")]
    pub symlinks: i64,
    /// Directories, this one included.
    #[serde(default, deserialize_with = "null_as_default")]
    pub dirs: i64,
    /// The latest time of anything below; of the directory itself if it is empty.
    #[serde(rename = "maxTime", default = "epoch", deserialize_with = "time")]
    pub max_time: Timestamp,
    /// Why it is not complete; empty if it is.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub incomplete: String,
    /// Entries that are missing because of errors.
    #[serde(rename = "numFailed", default, deserialize_with = "null_as_default")]
    pub num_failed: i64,
    /// Errors that policy ignores.
    #[serde(
        rename = "numIgnoredErrors",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub num_ignored_errors: i64,
    /// The first ten errors.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub errors: Vec<EntryError>,
}

/// Why an entry is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EntryError {
    /// The entry's path below the root.
    pub path: String,
    /// What went wrong.
    pub error: String,
}

/// A directory as an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DirectoryObject {
    /// The entries, one per name.
    pub entries: Vec<DirEntry>,
    /// What is in it and below. Always write it.
    pub summary: Option<DirSummary>,
}

/// Why bytes are not a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Not the expected JSON.
    #[error("read the JSON of a directory")]
    Json(#[source] serde_json::Error),
    /// The JSON is something else.
    #[error("the object is a {stream:?}, not a directory")]
    OtherStream {
        /// What it says it is.
        stream: String,
    },
}

const DIRECTORY_STREAM: &str = "kopia:directory";

impl SnapshotManifest {
    /// The labels that the manifest must have: type, source and tags.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.tags.clone();
        for (key, value) in [
            ("type", "snapshot"),
            ("hostname", &self.source.host),
            ("username", &self.source.user_name),
            ("path", &self.source.path),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    /// Reads the payload of a manifest.
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

impl DirEntry {
    /// The object, by its name.
    pub fn object_id(&self) -> Result<ObjectId, ObjectIdError> {
        self.object.parse()
    }
}

impl DirectoryObject {
    /// Reads a directory object. Of several entries of one name the last stays, as with Kopia.
    pub fn parse(bytes: &[u8]) -> Result<Self, DirectoryError> {
        #[derive(Deserialize)]
        struct Read {
            #[serde(default, deserialize_with = "null_as_default")]
            stream: String,
            #[serde(default, deserialize_with = "null_as_default")]
            entries: Vec<DirEntry>,
            #[serde(default)]
            summary: Option<DirSummary>,
        }
        // Only the first JSON value counts; what may follow is ignored.
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Read>();
        let empty = || DirectoryError::Json(serde_json::Error::custom("the object is empty"));
        let Read { stream, mut entries, summary } = values.next().ok_or_else(empty)?.map_err(DirectoryError::Json)?;
        if stream != DIRECTORY_STREAM {
            return Err(DirectoryError::OtherStream { stream: stream.chars().take(80).collect() });
        }
        let last: HashMap<&str, usize> = entries.iter().enumerate().map(|(at, entry)| (&*entry.name, at)).collect();
        if last.len() < entries.len() {
            let keep: Vec<bool> = entries.iter().enumerate().map(|(at, entry)| last[&*entry.name] == at).collect();
            let mut keep = keep.into_iter();
            entries.retain(|_| keep.next().unwrap_or(false));
        }
        Ok(Self { entries, summary })
    }

    /// The object's bytes as Kopia writes them: directories first, each group by name, a line break at the end.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Written<'a> {
            stream: &'static str,
            /// `null` rather than an empty list.
            entries: Option<Vec<&'a DirEntry>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            summary: Option<&'a DirSummary>,
        }
        let mut entries: Vec<&DirEntry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| (entry.entry_type != EntryType::Directory, entry.name.as_bytes()));
        let mut text = json::to_go_json(&Written {
            stream: DIRECTORY_STREAM,
            entries: (!entries.is_empty()).then_some(entries),
            summary: self.summary.as_ref(),
        });
        text.push(b'\n');
        text
    }
}

impl EntryType {
    fn as_str(&self) -> &str {
        match self {
            Self::File => "f",
            Self::Directory => "d",
            Self::Symlink => "s",
            Self::Other(other) => other,
        }
    }
}

impl Default for EntryType {
    /// An absent type.
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl Serialize for EntryType {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EntryType {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        Ok(match &*text {
            "f" => Self::File,
            "d" => Self::Directory,
            "s" => Self::Symlink,
            _ => Self::Other(text),
        })
    }
}

/// Where Go has the three bits that POSIX has above the permissions.
const SPECIAL_BITS: [(u32, u32); 3] = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];

impl GoMode {
    /// From the low 12 bits of a POSIX mode; others are dropped.
    pub fn from_posix(mode: u32) -> Self {
        let special = SPECIAL_BITS.iter().filter(|(posix, _)| mode & posix != 0).map(|(_, go)| go).sum::<u32>();
        Self(mode & 0o777 | special)
    }

    /// The low 12 bits of a POSIX mode.
    pub fn to_posix(self) -> u32 {
        let special = SPECIAL_BITS.iter().filter(|(_, go)| self.0 & go != 0).map(|(posix, _)| posix).sum::<u32>();
        self.0 & 0o777 | special
    }
}

impl Serialize for GoMode {
    /// Octal with a leading zero.
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(&format_args!("0{:o}", self.0))
    }
}

impl<'de> Deserialize<'de> for GoMode {
    /// An integer literal of Go: decimal, or with the prefix `0`, `0o`, `0x` or `0b`.
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        let lower = text.to_ascii_lowercase();
        let (digits, radix) = match lower.as_bytes() {
            [b'0', b'x', ..] => (&lower[2..], 16),
            [b'0', b'o', ..] => (&lower[2..], 8),
            [b'0', b'b', ..] => (&lower[2..], 2),
            [b'0', _, ..] => (&lower[1..], 8),
            _ => (&*lower, 10),
        };
        let mode = Some(digits)
            .filter(|digits| !digits.starts_with('+'))
            .and_then(|digits| u32::from_str_radix(digits, radix).ok());
        mode.map(Self).ok_or_else(|| D::Error::custom(format_args!("{text:?} is no file mode")))
    }
}

fn epoch() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn is_epoch(time: &Timestamp) -> bool {
    *time == Timestamp::UNIX_EPOCH
}

/// An absent or null time is the Unix epoch.
fn time<'de, D: Deserializer<'de>>(input: D) -> Result<Timestamp, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::super::content_id::ContentId;
    use super::super::hashing::ContentHasher;
    use super::super::test_vectors::{Rng, secret};
    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.6Z";

    fn summary(size: i64, files: i64, dirs: i64) -> DirSummary {
        DirSummary {
            size,
            files,
            symlinks: 0,
            dirs,
            max_time: TIME.parse().unwrap(),
            incomplete: String::new(),
            num_failed: 0,
            num_ignored_errors: 0,
            errors: Vec::new(),
        }
    }

    /// The outer directory of kopia-format 11.6, its entries in the wrong order.
    fn kopias() -> DirectoryObject {
        let file = DirEntry {
            name: "a<b".into(),
            entry_type: EntryType::File,
            mode: GoMode(0o644),
            size: 5,
            mtime: TIME.parse().unwrap(),
            uid: 1000,
            gid: 1001,
            object: "0303f40780e21a28597f9b8787ad48f4".into(),
            summary: None,
        };
        let sub = DirEntry {
            name: "sub".into(),
            entry_type: EntryType::Directory,
            mode: GoMode(0o755),
            size: 0,
            uid: 0,
            gid: 0,
            object: "kd13b730a8097adfce20c09dbb2982dba".into(),
            summary: Some(summary(0, 0, 1)),
            ..file.clone()
        };
        DirectoryObject { entries: vec![file, sub], summary: Some(summary(5, 1, 2)) }
    }

    const WRITTEN: &str = concat!(
        r#"{"stream":"kopia:directory","entries":[{"name":"sub","type":"d","mode":"0755","mtime":"2026-01-02T03:04:05.6Z","obj":"kd13b730a8097adfce20c09dbb2982dba","summ":{"size":0,"files":0,"symlinks":0,"dirs":1,"maxTime":"2026-01-02T03:04:05.6Z","numFailed":0}},{"name":"a\u003cb","type":"f","mode":"0644","size":5,"mtime":"2026-01-02T03:04:05.6Z","uid":1000,"gid":1001,"obj":"0303f40780e21a28597f9b8787ad48f4"}],"summary":{"size":5,"files":1,"symlinks":0,"dirs":2,"maxTime":"2026-01-02T03:04:05.6Z","numFailed":0}}"#,
        "\n"
    );

    #[test]
    fn directories_agree_with_kopia() {
        let hasher = ContentHasher::new("BLAKE2B-256-128", &secret()).unwrap();
        let empty = DirectoryObject { entries: Vec::new(), summary: Some(summary(0, 0, 1)) };
        for (directory, written, name) in [
            (
                empty,
                concat!(
                    r#"{"stream":"kopia:directory","entries":null,"summary":{"size":0,"files":0,"symlinks":0,"dirs":1,"maxTime":"2026-01-02T03:04:05.6Z","numFailed":0}}"#,
                    "\n"
                ),
                "kd13b730a8097adfce20c09dbb2982dba",
            ),
            (kopias(), WRITTEN, "k9db2c72f85757d7ac4daff070b04ea25"),
        ] {
            let text = directory.to_json();
            assert_eq!(String::from_utf8_lossy(&text), written);
            let content = ContentId::new(Some(b'k'), hasher.digest(&text).as_ref()).unwrap();
            assert_eq!(content.to_string(), name);
            let mut read = DirectoryObject::parse(&text).unwrap();
            read.entries.reverse();
            assert_eq!(read, directory);
        }
    }

    #[test]
    fn directories_are_read_tolerantly() {
        let read = |text: &str| DirectoryObject::parse(text.as_bytes());
        let one = read(
            r#" {"x":1,"summary":null,"entries":[{"name":"a","type":"?","mode":"0x1ff","mtime":null,"size":null,"obj":"00ff","new":[]}],"stream":"kopia:directory"} {"#,
        )
        .unwrap();
        let entry = &one.entries[0];
        assert_eq!((entry.mode, entry.mtime, entry.size), (GoMode(0o777), Timestamp::UNIX_EPOCH, 0));
        assert_eq!(entry.entry_type, EntryType::Other("?".into()));
        assert_eq!(entry.object_id().unwrap().to_string(), "00ff");
        assert!(read(r#"{"stream":"kopia:directory","entries":[]}"#).unwrap().entries.is_empty());
        assert!(read(r#"{"stream":"kopia:directory"}"#).unwrap().entries.is_empty());
        let twice = r#"{"stream":"kopia:directory","entries":[{"name":"a","obj":"01"},{"name":"b","obj":"02"},{"name":"a","obj":"03"}]}"#;
        let objects: Vec<String> = read(twice).unwrap().entries.into_iter().map(|entry| entry.object).collect();
        assert_eq!(objects, ["02", "03"]);
        assert!(matches!(read(r#"{"stream":"kopia:indirect","entries":[]}"#), Err(DirectoryError::OtherStream { .. })));
        assert!(matches!(read("{}"), Err(DirectoryError::OtherStream { .. })));
        assert!(matches!(read(""), Err(DirectoryError::Json(_))));
        assert!(read("[]").is_err() && read("{").is_err());
    }

    #[test]
    fn modes_are_those_of_go() {
        for (posix, written) in [
            (0o644, "0644"),
            (0o4755, "040000755"),
            (0o1777, "04000777"),
            (0o2755, "020000755"),
            (0o7777, "064000777"),
            (0o100_644, "0644"),
        ] {
            let mode = GoMode::from_posix(posix);
            assert_eq!(serde_json::to_value(mode).unwrap(), written, "{posix:o}");
            assert_eq!(mode.to_posix(), posix & 0o7777);
            assert_eq!(serde_json::from_value::<GoMode>(written.into()).unwrap(), mode);
        }
        for (text, mode) in [
            ("0", Some(0)),
            ("420", Some(420)),
            ("0o644", Some(0o644)),
            ("0X1FF", Some(0o777)),
            ("0b11", Some(3)),
            ("", None),
            ("08", None),
            ("0x", None),
            ("-1", None),
            ("+1", None),
            ("0+7", None),
            ("99999999999", None),
        ] {
            assert_eq!(serde_json::from_value(text.into()).ok(), mode.map(GoMode), "{text:?}");
        }
    }

    #[test]
    fn labels_are_source_and_tags() {
        let manifest = SnapshotManifest {
            source: SourceInfo { host: "h".into(), user_name: "u".into(), path: "/p".into() },
            tags: [("tag:a".to_owned(), "b".to_owned()), ("type".to_owned(), "no".to_owned())].into(),
            ..SnapshotManifest::default()
        };
        let labels = manifest.labels();
        let pairs: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(pairs, [("hostname", "h"), ("path", "/p"), ("tag:a", "b"), ("type", "snapshot"), ("username", "u")]);
    }

    #[test]
    fn changed_directories_give_an_error_or_one_that_can_be_written() {
        let mut rng = Rng(13);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let Ok(directory) = DirectoryObject::parse(&rng.mutate(WRITTEN.as_bytes())) else { continue };
            accepted += 1;
            let again = DirectoryObject::parse(&directory.to_json()).unwrap();
            assert_eq!((again.entries.len(), &again.summary), (directory.entries.len(), &directory.summary));
            assert!(directory.entries.iter().all(|entry| again.entries.contains(entry)));
        }
        assert!(accepted > 1000, "{accepted}");
    }
}
