//! Devices over a base in memory, with their overlay in any folder.

use std::sync::Arc;

use nbd::Device;
use serve::folder::Folder;
use serve::overlay::{DiskKey, Identity, Overlay, OverlayError, OverlayOptions};
use serve::{Base, CachedBase, LayeredDevice, MemoryCache, Metrics};

use super::base::{MemoryBase, SECTOR, sector_of, value_of};

pub const SECRET: [u8; 32] = [0xC5; 32];
pub const SESSION: [u8; 16] = [1; 16];
pub const DISK: [u8; 16] = [2; 16];

pub fn identity(base: &MemoryBase) -> Identity {
    let (size_bytes, base) = (base.size_bytes, base.identity());
    Identity { session: SESSION, disk: DISK, size_bytes, sector_bytes: 512, base }
}

pub fn key() -> DiskKey {
    DiskKey::derive(&SECRET, &SESSION, &DISK)
}

pub fn create(folder: Arc<dyn Folder>, base: &MemoryBase, options: OverlayOptions) -> Overlay {
    Overlay::create(folder, identity(base), key(), options).unwrap()
}

pub fn recover(folder: Arc<dyn Folder>, base: &MemoryBase) -> Result<Overlay, OverlayError> {
    Overlay::recover(folder, identity(base), key(), OverlayOptions::default())
}

pub fn cached(base: Arc<MemoryBase>, memory_bytes: u64, metrics: &Arc<Metrics>) -> Arc<CachedBase> {
    Arc::new(CachedBase::new(base, MemoryCache::new(memory_bytes), metrics.clone()))
}

pub fn device(base: Arc<MemoryBase>, overlay: Option<Overlay>) -> LayeredDevice {
    let metrics = Arc::new(Metrics::default());
    LayeredDevice::new(cached(base, 64 << 10, &metrics), overlay.map(Arc::new), metrics)
}

pub fn write(device: &dyn Device, first: u64, values: &[u64]) -> Result<(), nbd::DeviceError> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| sector_of(*value)).collect();
    device.write_at(&bytes, first * SECTOR)
}

pub fn read(device: &dyn Device, first: u64, count: u64) -> Result<Vec<u64>, nbd::DeviceError> {
    let mut bytes = vec![0; (count * SECTOR) as usize];
    device.read_at(&mut bytes, first * SECTOR)?;
    Ok(bytes.chunks_exact(SECTOR as usize).map(|sector| value_of(sector).unwrap()).collect())
}
