//! The repository: opened or created once, shared by readers and write sessions.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use bucket::LockMode;
use jiff::Timestamp;

use crate::blob::{BlobMeta, BlobStore, Retention, Storage};
use crate::content_read::MetadataWindows;
use crate::error::{OpenError, ReadError, WriteError};
use crate::format::content_id::ContentId;
use crate::format::encryption::{ContentCipher, NONCE_BYTES, OVERHEAD, blob_iv, whole_blob_name};
use crate::format::epoch::{self, CommittedState, ListedBlob};
use crate::format::format_blob::{
    BLOB_CFG_ID, BlobCfg, FORMAT_BLOB_ID, FormatBlob, UnlockError, UnlockedFormat, new_unique_id,
};
use crate::format::hashing::ContentHasher;
use crate::format::index::{IndexEntry, IndexLayer, build};
use crate::format::maintenance_params::MaintenanceParams;
use crate::format::policy::Policy;
use crate::format::repository_format::{FormatCheckError, RepositoryFormat};
use crate::index_view::IndexView;
use crate::manifests::ManifestCache;
use crate::session::{SessionOptions, WriteSession};

/// The format blob and the index are looked at again after this time at the latest (spec 2.3, 7.10 rules 6, 13).
const MAX_VIEW_AGE: Duration = Duration::from_secs(15 * 60);
/// How often a set of index blobs that keeps changing under the reader is looked at before giving up.
const MAX_REFRESH_ATTEMPTS: u32 = 10;

/// Who this client is, and which clock it goes by.
#[derive(Clone)]
pub struct ClientOptions {
    /// Written into session markers.
    pub username: String,
    /// Written into session markers.
    pub hostname: String,
    /// Calendar time; every time stamp written comes from here.
    pub clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Start no threads: everything is done by the caller, one thing after the other. Slower, and the storage sees the
    /// same requests in the same order whenever the same is asked.
    pub inline: bool,
}

impl ClientOptions {
    /// The machine's own clock.
    pub fn new(username: impl Into<String>, hostname: impl Into<String>) -> Self {
        Self { username: username.into(), hostname: hostname.into(), clock: Arc::new(SystemTime::now), inline: false }
    }
}

/// How a new repository stores its contents. All of it is fixed for the repository's life, except the lock.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Content hash, by Kopia's name.
    pub hash: String,
    /// Content encryption, by Kopia's name.
    pub encryption: String,
    /// The splitter that Kopia itself will use in it.
    pub splitter: String,
    /// Object lock for everything written, if the storage can.
    pub object_lock: Option<(LockMode, Duration)>,
    /// User part of the maintenance owner: the owner is `<this>@<repository id>`, so that no stock client makes
    /// itself the owner by its first snapshot (spec 7.1).
    pub maintenance_user: String,
}

impl CreateOptions {
    /// BLAKE3-256-128 and AES-256-GCM, the fastest that stock Kopia reads.
    pub fn new(maintenance_user: impl Into<String>) -> Self {
        Self {
            hash: "BLAKE3-256-128".into(),
            encryption: "AES256-GCM-HMAC-SHA256".into(),
            splitter: "DYNAMIC-4M-BUZHASH".into(),
            object_lock: None,
            maintenance_user: maintenance_user.into(),
        }
    }
}

/// An open repository. Cheap to share; all calls may run concurrently.
///
/// `refreshing` is held while a new view is made, `index` only to swap or copy the view.
pub struct Repository {
    blobs: BlobStore,
    client: ClientOptions,
    hasher: ContentHasher,
    cipher: ContentCipher,
    format: RwLock<OpenFormat>,
    index: RwLock<Arc<IndexView>>,
    refreshing: Mutex<()>,
    pub(crate) manifests: Mutex<ManifestCache>,
    pub(crate) windows: MetadataWindows,
}

struct OpenFormat {
    unlocked: UnlockedFormat,
    read_at: SystemTime,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("store", &self.blobs.display_name()).finish_non_exhaustive()
    }
}

impl Repository {
    /// Creates a repository where there is none, with the global policy and the maintenance owner (spec 2.5).
    pub fn create(
        storage: &Storage,
        password: &str,
        options: &CreateOptions,
        client: ClientOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let store = storage.bucket.display_name();
        let failed = |source| OpenError::Storage { store: storage.bucket.display_name(), source };
        // A folder must not get a `.shards` beside a repository that is there: look first, by the mapping in force.
        let existing = BlobStore::open(storage).map_err(failed)?;
        for id in [FORMAT_BLOB_ID, BLOB_CFG_ID] {
            match existing.head(id) {
                Ok(_) => return Err(OpenError::Exists { store }),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let blobs = BlobStore::create(storage).map_err(failed)?;
        let format = RepositoryFormat::new_v3(&options.hash, &options.encryption, &options.splitter);
        let (outer, unlocked) = FormatBlob::create(password, format, &new_unique_id())
            .map_err(|error| OpenError::Unsupported { store: store.clone(), problem: error.to_string() })?;
        let cfg = match options.object_lock {
            None => BlobCfg::default(),
            Some((mode, period)) => BlobCfg {
                retention_mode: mode.to_string(),
                retention_period_ns: i64::try_from(period.as_nanos()).map_err(|_| OpenError::Unsupported {
                    store: store.clone(),
                    problem: "an object lock of more than 292 years".into(),
                })?,
            },
        };
        blobs.set_retention(options.object_lock.map(|(mode, period)| Retention { mode, period }));
        let now = (client.clock)();
        blobs.put(BLOB_CFG_ID, &[&unlocked.encrypt_blob_cfg(&cfg)], now).map_err(failed)?;
        blobs.put(FORMAT_BLOB_ID, &[&outer.to_json()], now).map_err(failed)?;

        let repo = Self::assemble(blobs, unlocked, client)?;
        let owner = format!("{}@{}", options.maintenance_user, repo.id());
        let initialize = || -> Result<(), WriteError> {
            let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
            let label = |pairs: &[(&str, &str)]| {
                pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>()
            };
            session.put_manifest(label(&[("type", "policy"), ("policyType", "global")]), &Policy::default_global());
            session.put_manifest(label(&[("type", "maintenance")]), &MaintenanceParams::new(&owner));
            session.flush()
        };
        initialize().map_err(|source| OpenError::Initialize { store, source: Box::new(source) })?;
        Ok(repo)
    }

    /// Opens a repository and loads its index (spec 2.10).
    pub fn open(storage: &Storage, password: &str, client: ClientOptions) -> Result<Arc<Self>, OpenError> {
        Self::open_by(storage, client, |outer| outer.unlock(password))
    }

    /// Opens the same repository once more, as another client of it would, with the key at hand: deriving it from the
    /// password takes a fraction of a second. A password that was changed since is reported as a wrong one.
    pub fn open_beside(&self, storage: &Storage, client: ClientOptions) -> Result<Arc<Self>, OpenError> {
        let earlier = self.format.read().expect("no panic while held").unlocked.clone();
        Self::open_by(storage, client, |outer| outer.unlock_with(&earlier))
    }

    fn open_by(
        storage: &Storage,
        client: ClientOptions,
        unlock: impl FnOnce(&FormatBlob) -> Result<UnlockedFormat, UnlockError>,
    ) -> Result<Arc<Self>, OpenError> {
        let store = storage.bucket.display_name();
        let failed = |source| OpenError::Storage { store: storage.bucket.display_name(), source };
        let blobs = BlobStore::open(storage).map_err(failed)?;
        let json = match blobs.get(FORMAT_BLOB_ID) {
            Ok(json) => json,
            Err(error) if error.is_not_found() => return Err(OpenError::NotFound { store }),
            Err(error) => return Err(failed(error)),
        };
        let damaged = |problem: String| OpenError::Damaged { store: storage.bucket.display_name(), problem };
        let outer = FormatBlob::parse(&json).map_err(|error| damaged(error.to_string()))?;
        let unlocked = unlock(&outer).map_err(|error| match error {
            UnlockError::WrongPassword => OpenError::WrongPassword { store: store.clone() },
            other => OpenError::Unsupported { store: store.clone(), problem: other.to_string() },
        })?;
        match blobs.get(BLOB_CFG_ID) {
            Ok(cfg) => {
                let cfg = unlocked.decrypt_blob_cfg(&cfg).map_err(|error| damaged(error.to_string()))?;
                blobs.set_retention(retention_of(&cfg).map_err(damaged)?);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(failed(error)),
        }
        let repo = Self::assemble(blobs, unlocked, client)?;
        repo.refresh().map_err(|source| OpenError::Index { store, source: Box::new(source) })?;
        Ok(repo)
    }

    fn assemble(blobs: BlobStore, unlocked: UnlockedFormat, client: ClientOptions) -> Result<Arc<Self>, OpenError> {
        let store = blobs.display_name();
        let unsupported = |problem: String| OpenError::Unsupported { store: store.clone(), problem };
        let now = (client.clock)();
        let format = &unlocked.format;
        format.check().map_err(|error| unsupported(error.to_string()))?;
        check_upgrade_lock(format, now, &store)?;
        let hasher =
            ContentHasher::new(&format.hash, &format.secret).map_err(|error| unsupported(error.to_string()))?;
        let cipher = ContentCipher::new(&format.encryption, &format.master_key)
            .map_err(|error| unsupported(error.to_string()))?;
        Ok(Arc::new(Self {
            blobs,
            client,
            hasher,
            cipher,
            format: RwLock::new(OpenFormat { unlocked, read_at: now }),
            index: RwLock::new(Arc::new(IndexView::empty())),
            refreshing: Mutex::default(),
            manifests: Mutex::default(),
            windows: MetadataWindows::default(),
        }))
    }

    /// The repository's identity: the first half of its `uniqueID` in hex. It never changes and is no secret.
    pub fn id(&self) -> String {
        let format = self.format.read().expect("no panic while held");
        format.unlocked.unique_id.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A key for a purpose of one's own, which everyone who can open the repository can derive (kopia-format 2.4).
    pub fn derive_key<const N: usize>(&self, purpose: &str) -> zeroize::Zeroizing<[u8; N]> {
        self.format.read().expect("no panic while held").unlocked.derive_key(purpose)
    }

    /// Where it is, for messages.
    pub fn display_name(&self) -> String {
        self.blobs.display_name()
    }

    /// Facts for people: version, algorithms, sizes.
    pub fn describe(&self) -> Description {
        let view = self.view();
        let format = self.format.read().expect("no panic while held");
        let format = &format.unlocked.format;
        Description {
            id: String::new(),
            format_version: format.version,
            hash: format.hash.clone(),
            encryption: format.encryption.clone(),
            splitter: format.splitter.clone(),
            max_pack_bytes: format.max_pack_size_bytes() as u64,
            index_version: format.effective_index_version(),
            write_epoch: view.write_epoch,
            index_blobs: view.loaded.len() as u64,
            index_entries: view.entry_count() as u64,
        }
        .with_id(self)
    }

    /// Calendar time by this client's clock.
    pub fn now(&self) -> SystemTime {
        (self.client.clock)()
    }

    /// The same as a time stamp for manifests.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp::try_from(self.now()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    pub(crate) fn username(&self) -> &str {
        &self.client.username
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.client.hostname
    }

    /// Whether everything is done by the caller: see [`ClientOptions::inline`].
    pub fn is_inline(&self) -> bool {
        self.client.inline
    }

    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    pub(crate) fn hasher(&self) -> &ContentHasher {
        &self.hasher
    }

    pub(crate) fn cipher(&self) -> &ContentCipher {
        &self.cipher
    }

    /// The name that a content has in this repository.
    pub fn content_id(&self, data: &[u8], prefix: Option<u8>) -> ContentId {
        ContentId::new(prefix, self.hasher.digest(data).as_ref()).expect("a digest has a legal length")
    }

    pub(crate) fn format_version(&self) -> u8 {
        self.format.read().expect("no panic while held").unlocked.format.version as u8
    }

    pub(crate) fn index_version(&self) -> u8 {
        self.format.read().expect("no panic while held").unlocked.format.effective_index_version()
    }

    pub(crate) fn max_pack_bytes(&self) -> usize {
        self.format.read().expect("no panic while held").unlocked.format.max_pack_size_bytes()
    }

    /// Repositories of the first format generation are read, not written: their packs carry a copy of the format
    /// blob, and their index has no epochs.
    pub(crate) fn check_writable(&self) -> Result<(), WriteError> {
        let format = self.format.read().expect("no panic while held");
        let format = &format.unlocked.format;
        let problem = if !format.epoch.enabled {
            "its index has no epochs (format version 1); `kopia repository set-parameters --upgrade` gives it some"
        } else if !format.enable_password_change {
            "its packs carry copies of the format blob, as format version 1 had it"
        } else if format.effective_index_version() < 2 {
            "its index has version 1; `kopia repository set-parameters --index-version=2` changes that"
        } else {
            return Ok(());
        };
        Err(WriteError::ReadOnly { problem: problem.into() })
    }

    // ---- the index ---------------------------------------------------------------------------------------------

    pub(crate) fn view(&self) -> Arc<IndexView> {
        self.index.read().expect("no panic while held").clone()
    }

    /// The winning index entry of a content, tombstones included, after a refresh if the view is old.
    pub fn lookup(&self, id: &ContentId) -> Result<Option<IndexEntry>, ReadError> {
        let view = self.view();
        if view.age(self.now()) > MAX_VIEW_AGE {
            self.refresh()?;
            return self.view().lookup(id);
        }
        view.lookup(id)
    }

    /// Looks at the storage again: format blob, epochs, index blobs. What others have flushed until now is seen
    /// afterwards.
    pub fn refresh(&self) -> Result<(), ReadError> {
        let _one = self.refreshing.lock().expect("no panic while held");
        self.refresh_format_if_due()?;
        self.refresh_index()
    }

    fn refresh_index(&self) -> Result<(), ReadError> {
        let mut wait = Duration::from_millis(100);
        for attempt in 1.. {
            match self.try_refresh_index() {
                Ok(true) => return Ok(()),
                // An index blob vanished between listing and reading, or listing took longer than it may stay valid:
                // others compact. Look again.
                Ok(false) if attempt < MAX_REFRESH_ATTEMPTS => {
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(Duration::from_secs(5));
                }
                Ok(false) => {
                    return Err(ReadError::damaged(
                        "the set of index blobs",
                        format!("blobs that a listing names are gone, {attempt} times in a row"),
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// One pass of spec 4.7 and 4.8; false when it has to be done again.
    fn try_refresh_index(&self) -> Result<bool, ReadError> {
        let (epochs_enabled, validity) = {
            let format = self.format.read().expect("no panic while held");
            let epoch = &format.unlocked.format.epoch;
            (epoch.enabled, Duration::from_nanos(epoch.refresh_frequency_ns.max(0) as u64))
        };
        if !epochs_enabled {
            return Err(ReadError::Unsupported {
                what: "the index".into(),
                problem: "the repository has no epochs (format version 1)".into(),
            });
        }
        let listed_at = self.now();
        let list = |prefix: &str| {
            self.blobs.list(prefix).map_err(ReadError::storage(format!("the list of blobs that begin with {prefix}")))
        };
        let mut blobs = Vec::new();
        for prefix in ["xe", "xw", "xs", "xr"] {
            blobs.extend(list(prefix)?);
        }
        let state = CommittedState::from_listing(blobs.iter().map(listed));
        let mut uncompacted = Vec::new();
        for epoch in state.uncompacted_epochs() {
            uncompacted.extend(list(&epoch::uncompacted_prefix(epoch))?);
        }
        let active = state.active_index_blobs(uncompacted.iter().map(|blob| blob.id.as_str()));
        if !validity.is_zero() && self.now().duration_since(listed_at).unwrap_or_default() > validity {
            return Ok(false);
        }

        let mut view = (*self.view()).clone();
        let known: &HashSet<String> = &view.loaded;
        let missing: Vec<&String> = active.iter().filter(|blob| !known.contains(*blob)).collect();
        let Some(layers) = self.load_layers(&missing)? else { return Ok(false) };
        for (blob, layer) in missing.into_iter().zip(layers) {
            view.add_layer(blob, layer)?;
        }
        view.watermark_seconds = state.watermark_seconds;
        view.write_epoch = state.write_epoch;
        view.listed_at = listed_at;
        self.install(view);
        Ok(true)
    }

    /// Fetches index blobs, several at a time; `None` when one has vanished.
    fn load_layers(&self, blobs: &[&String]) -> Result<Option<Vec<IndexLayer>>, ReadError> {
        let next = AtomicUsize::new(0);
        let load_some = || {
            let mut loaded = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(blob) = blobs.get(number) else { return loaded };
                loaded.push((number, self.load_layer(blob)));
            }
        };
        if self.client.inline || blobs.len() == 1 {
            return blobs.iter().map(|blob| self.load_layer(blob)).collect();
        }
        let mut results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..blobs.len().min(8)).map(|_| scope.spawn(load_some)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("loading does not panic")).collect()
        });
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn load_layer(&self, blob: &str) -> Result<Option<IndexLayer>, ReadError> {
        let what = format!("index blob {blob}");
        let sealed = match self.blobs.get(blob) {
            Ok(sealed) => sealed,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(ReadError::Storage { what, source: error }),
        };
        let mut sealed = sealed.to_vec();
        let plaintext = self.open_blob(blob, &mut sealed).map_err(|problem| ReadError::damaged(&what, problem))?;
        IndexLayer::parse(plaintext, OVERHEAD as u32).map(Some).map_err(|error| ReadError::damaged(&what, error))
    }

    fn install(&self, view: IndexView) {
        *self.index.write().expect("no panic while held") = Arc::new(view);
    }

    /// Writes index blobs by the rule of spec 4.7, so that no client can have settled the epoch before it sees them.
    /// Returns the bytes put.
    pub(crate) fn write_index(&self, mut entries: Vec<IndexEntry>, session_id: &str) -> Result<u64, WriteError> {
        let _one = self.refreshing.lock().expect("no panic while held");
        self.refresh_format_if_due()?;
        let version = self.index_version();
        entries.sort_by_key(|entry| entry.id);
        let plaintext =
            build(version, &mut entries).map_err(|error| ReadError::damaged("the index to be written", error))?;
        let layer =
            IndexLayer::from_entries(entries).map_err(|error| ReadError::damaged("the index to be written", error))?;
        let mut put = 0;
        let mut written: Option<(u64, String)> = None;
        loop {
            self.ensure_valid_state()?;
            let epoch = self.view().write_epoch;
            match &written {
                Some((used, _)) if *used == epoch => break,
                Some((_, blob)) => {
                    self.blobs.delete(blob).map_err(WriteError::storage(format!("removal of index blob {blob}")))?;
                }
                None => {}
            }
            let suffix = epoch::set_suffix(session_id, 1);
            let (blob, sealed) = self.seal_blob(&epoch::uncompacted_prefix(epoch), &plaintext, Some(&suffix));
            self.blobs.put(&blob, &[&sealed], self.now()).map_err(WriteError::storage(format!("index blob {blob}")))?;
            put += sealed.len() as u64;
            written = Some((epoch, blob));
            // The put may have been slow: the state must have been valid until it ended, or the next turn decides.
        }
        let (epoch, blob) = written.expect("the loop ends with one");
        self.refresh_index()?;
        if self.view().write_epoch >= epoch + 2 {
            self.blobs.delete(&blob).map_err(WriteError::storage(format!("removal of index blob {blob}")))?;
            return Err(WriteError::EpochClosed { epoch });
        }
        let mut view = (*self.view()).clone();
        if !view.loaded.contains(&blob) {
            // Compacted between put and listing; its entries are ours all the same.
            view.add_layer(&blob, layer)?;
            self.install(view);
        }
        Ok(put)
    }

    /// A committed state with three quarters of its validity left.
    fn ensure_valid_state(&self) -> Result<(), ReadError> {
        let refresh_frequency = {
            let format = self.format.read().expect("no panic while held");
            Duration::from_nanos(format.unlocked.format.epoch.refresh_frequency_ns.max(0) as u64)
        };
        if self.view().age(self.now()) > refresh_frequency / 4 { self.refresh_index() } else { Ok(()) }
    }

    // ---- whole blobs and the format blob -----------------------------------------------------------------------

    /// Encrypts a blob as a whole; returns its name and bytes (spec 3.5).
    pub(crate) fn seal_blob(&self, prefix: &str, plaintext: &[u8], suffix: Option<&str>) -> (String, Vec<u8>) {
        let name = whole_blob_name(prefix, &self.hasher.digest(plaintext), suffix);
        let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
        sealed.resize(NONCE_BYTES, 0);
        sealed.extend_from_slice(plaintext);
        let iv = blob_iv(&name).expect("our own names are well formed");
        self.cipher.seal(&iv, &mut sealed);
        (name, sealed)
    }

    fn open_blob<'a>(&self, name: &str, sealed: &'a mut [u8]) -> Result<&'a [u8], String> {
        let iv = blob_iv(name).map_err(|error| error.to_string())?;
        self.cipher.open(&iv, sealed).map(|plaintext| &*plaintext).map_err(|error| error.to_string())
    }

    /// Reads the format blob again when it is old: parameters may have changed, an upgrade lock may be there.
    fn refresh_format_if_due(&self) -> Result<(), ReadError> {
        let now = self.now();
        {
            let format = self.format.read().expect("no panic while held");
            if now.duration_since(format.read_at).is_ok_and(|age| age < MAX_VIEW_AGE) {
                return Ok(());
            }
        }
        let json = self.blobs.get(FORMAT_BLOB_ID).map_err(ReadError::storage(FORMAT_BLOB_ID))?;
        let damaged = |error: &dyn std::fmt::Display| ReadError::damaged(FORMAT_BLOB_ID, error.to_string());
        let outer = FormatBlob::parse(&json).map_err(|error| damaged(&error))?;
        let mut format = self.format.write().expect("no panic while held");
        let unlocked = outer.unlock_with(&format.unlocked).map_err(|error| match error {
            // Nobody's damage: whoever verifies points meanwhile must not call them so.
            UnlockError::WrongPassword => ReadError::PasswordChanged,
            error => damaged(&error),
        })?;
        let unsupported = |error: FormatCheckError| ReadError::Unsupported {
            what: FORMAT_BLOB_ID.into(),
            problem: error.to_string(),
        };
        unlocked.format.check().map_err(unsupported)?;
        unlocked
            .format
            .check_upgrade_lock(Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH))
            .map_err(unsupported)?;
        *format = OpenFormat { unlocked, read_at: now };
        Ok(())
    }
}

/// What a repository is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// [`Repository::id`].
    pub id: String,
    /// Kopia's format version, 1 to 3.
    pub format_version: i64,
    /// Content hash.
    pub hash: String,
    /// Content encryption.
    pub encryption: String,
    /// Kopia's default splitter for it.
    pub splitter: String,
    /// Packs are closed at this size.
    pub max_pack_bytes: u64,
    /// Encoding of new index blobs.
    pub index_version: u8,
    /// The epoch that new index blobs go to.
    pub write_epoch: u64,
    /// Index blobs loaded.
    pub index_blobs: u64,
    /// Index entries loaded, superseded ones included.
    pub index_entries: u64,
}

impl Description {
    fn with_id(self, repo: &Repository) -> Self {
        Self { id: repo.id(), ..self }
    }
}

fn listed(blob: &BlobMeta) -> ListedBlob<'_> {
    ListedBlob {
        id: &blob.id,
        len_bytes: blob.len_bytes,
        timestamp: Timestamp::try_from(blob.modified).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

pub(crate) fn retention_of(cfg: &BlobCfg) -> Result<Option<Retention>, String> {
    let mode = match cfg.retention_mode.as_str() {
        "" => return Ok(None),
        "GOVERNANCE" => LockMode::Governance,
        "COMPLIANCE" => LockMode::Compliance,
        other => return Err(format!("the object lock mode {other:?} in {BLOB_CFG_ID} is not known")),
    };
    let period = u64::try_from(cfg.retention_period_ns)
        .map_err(|_| format!("the object lock period in {BLOB_CFG_ID} is negative"))?;
    Ok(Some(Retention { mode, period: Duration::from_nanos(period) }))
}

pub(crate) fn check_upgrade_lock(format: &RepositoryFormat, now: SystemTime, store: &str) -> Result<(), OpenError> {
    let now = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
    match &format.upgrade_lock {
        Some(lock) if lock.is_locked(now) => Err(OpenError::UpgradeLocked {
            store: store.into(),
            owner: lock.owner_id.clone(),
            message: if lock.message.is_empty() { "no message".into() } else { lock.message.clone() },
        }),
        _ => Ok(()),
    }
}
