//! The disks of a point, as what devices are made of.

use std::path::Path;
use std::sync::Arc;

use backup::{Point, PointDescription, PointDisk};
use kopia_repo::Repository;
use serde_json::{Value, json};
use serve::overlay::OverlayOptions;
use serve::{
    About, Base, BaseError, BootSet, CachedBase, DiskBase, DiskCache, DiskState, LayeredDevice, MemoryCache, Metrics,
    NewDisk, PointBase, Prefetch, Session, SessionError, SessionParts, Source, VolumeBase, cache_secret, os_boot_id,
    overlay_secret, read_boot_set,
};

use crate::cli::CacheArgs;

/// A disk that a session is to serve.
pub struct Item<'a> {
    /// Its id in the session.
    pub id: [u8; 16],
    /// The name it is served under.
    pub name: String,
    /// Opens its base.
    pub open: Box<dyn Fn() -> Result<DiskBase, BaseError> + 'a>,
}

/// A point that is opened to be served.
pub struct Sources {
    /// The repository it lies in.
    pub repo: Arc<Repository>,
    /// The point.
    pub point: Point,
    /// What is known of it.
    pub description: PointDescription,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
    boot_set: Option<BootSet>,
    cache: Option<Arc<DiskCache>>,
    memory: Arc<MemoryCache>,
}

impl Sources {
    /// Opens the caches; the disks follow one by one.
    pub fn open(
        repo: Arc<Repository>,
        point: Point,
        description: PointDescription,
        caches: &CacheArgs,
    ) -> std::io::Result<Self> {
        let cache = match &caches.cache {
            Some(folder) => Some(Arc::new(DiskCache::open(folder, caches.cache_size, cache_secret(&repo))?)),
            None => None,
        };
        // A hint: without it the first reads wait a little longer.
        let boot_set = read_boot_set(&repo, &description.vm_id).ok().flatten();
        let memory = MemoryCache::new(caches.memory);
        Ok(Self { repo, point, description, metrics: Arc::new(Metrics::default()), boot_set, cache, memory })
    }

    /// Segments that the last boot of this VM read; `None` when it was never watched.
    pub fn boot_segments(&self) -> Option<usize> {
        let set = self.boot_set.as_ref()?;
        Some(self.description.disks.iter().map(|disk| set.order(&disk.virtual_disk_id, disk.segment_bytes).len()).sum())
    }

    /// A disk, as its backup left it.
    pub fn base(&self, disk: &PointDisk) -> Result<DiskBase, BaseError> {
        let order = self.boot_set.as_ref().map_or(&[][..], |set| set.order(&disk.virtual_disk_id, disk.segment_bytes));
        self.through_memory(Arc::new(self.point_base(disk)?), order)
    }

    /// A volume that holds the `.vhdx` of each disk; `id` is the session's, or without one the point's.
    pub fn volume(&self, id: [u8; 16]) -> Result<DiskBase, BaseError> {
        let disks = self.description.disks.iter().map(|disk| self.point_base(disk)).collect::<Result<_, _>>()?;
        let volume = VolumeBase::new(id, &self.description, disks).map_err(|error| BaseError {
            is_unreachable: false,
            message: format!("make a volume of the point: {error}"),
        })?;
        self.through_memory(Arc::new(volume), &[])
    }

    /// A disk as the file it is stored as.
    pub fn stream(&self, disk: &PointDisk) -> Result<PointBase, BaseError> {
        self.point_base(disk)
    }

    fn point_base(&self, disk: &PointDisk) -> Result<PointBase, BaseError> {
        let object = self.point.open_disk(&self.repo, disk).map_err(|error| BaseError {
            is_unreachable: false,
            message: format!("open disk {} of the point: {error}", disk.number),
        })?;
        Ok(PointBase::new(object, disk, self.cache.clone()))
    }

    fn through_memory(&self, base: Arc<dyn Base>, boot_set: &[u64]) -> Result<DiskBase, BaseError> {
        let base = Arc::new(CachedBase::new(base, self.memory.clone(), self.metrics.clone()));
        let prefetch = Prefetch::start(base.clone(), self.metrics.clone(), boot_set);
        let prefetch = prefetch
            .map_err(|error| BaseError { is_unreachable: false, message: format!("start to fetch ahead: {error}") })?;
        Ok(DiskBase { base, prefetch: Some(prefetch) })
    }

    /// A disk that is only read.
    pub fn read_only(&self, item: &Item<'_>) -> Result<Arc<LayeredDevice>, BaseError> {
        let DiskBase { base, prefetch } = (item.open)()?;
        let device = LayeredDevice::new(base, None, self.metrics.clone());
        Ok(Arc::new(match prefetch {
            Some(prefetch) => device.with_prefetch(prefetch),
            None => device,
        }))
    }

    /// The session in `folder`: the one that is there, or a new one with the id `new`.
    pub fn session(
        &self,
        items: &[Item<'_>],
        folder: &Path,
        new: [u8; 16],
        guest_is_elsewhere: bool,
    ) -> Result<Session, SessionError> {
        let parts = SessionParts {
            folder: folder.to_owned(),
            secret: *overlay_secret(&self.repo),
            // Without an id every restart counts as a loss of power.
            boot_id: os_boot_id().unwrap_or_else(random_id),
            options: OverlayOptions::default(),
            metrics: self.metrics.clone(),
        };
        if folder.join(serve::STATE_NAME).exists() {
            let base_of = |state: &DiskState| {
                let Some(item) = items.iter().find(|item| serve::id_text(&item.id) == state.disk) else {
                    let message = format!("{} is not among the disks of this point that were asked for", state.name);
                    return Err(BaseError { is_unreachable: false, message });
                };
                (item.open)()
            };
            return Session::resume(parts, &base_of);
        }
        let about = About { point_id: self.point.id.clone(), vm_id: self.point.vm_id.clone(), guest_is_elsewhere };
        let new_disk = |item: &Item<'_>| -> Result<NewDisk, BaseError> {
            Ok(NewDisk { disk: item.id, name: item.name.clone(), base: (item.open)()? })
        };
        let disks = items.iter().map(new_disk).collect::<Result<_, _>>()?;
        Session::create(parts, new, &about, disks)
    }
}

/// The name that a disk is served under.
pub fn disk_name(disk: &PointDisk) -> String {
    format!("disk{}", disk.number)
}

/// Where bytes that clients read came from (docs/cli-json.md).
pub fn read_bytes(metrics: &Metrics) -> Value {
    let read = |source| metrics.bytes_from(source);
    json!({
        "overlay": read(Source::Overlay),
        "target": read(Source::Target),
        "memory": read(Source::Memory),
        "disk_cache": read(Source::DiskCache),
        "repository": read(Source::Repository),
        "zero": read(Source::Zero),
    })
}

fn random_id() -> String {
    serve::id_text(&serve::new_session_id())
}
