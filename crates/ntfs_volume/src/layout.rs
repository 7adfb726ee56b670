//! Where everything lies (spec block-serving D.3).

use crate::index::BLOCK_BYTES;
use crate::parameters::{FileContent, ParameterError, Parameters};
use crate::record::RECORD_BYTES;
use crate::upcase::TABLE_BYTES;

/// Bytes of a sector of the disk.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Bytes of `$Boot`.
pub(crate) const BOOT_BYTES: u64 = 8192;
/// Bytes of `$AttrDef`.
pub(crate) const DEFINITIONS_BYTES: u64 = 2560;
/// Space for `$SDS`.
const SECURITY_BYTES: u64 = 0x4_0200;
/// What begins at a round place.
const ALIGNED_BYTES: u64 = 1 << 20;
/// More are not addressed by NTFS's drivers.
const MOST_CLUSTERS: u64 = (1 << 32) - 2;
/// Clusters are of 4 KiB as long as the partition fits into this.
const LARGEST_WITH_SMALL_CLUSTERS: u64 = 8 << 40;

/// Record of the first file.
pub(crate) const FIRST_FILE: u32 = 64;

/// Clusters that follow each other; without a place, a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: Option<u64>,
    pub(crate) clusters: u64,
}

impl Run {
    fn at(first: u64, clusters: u64) -> Self {
        Self { first: Some(first), clusters }
    }
}

/// Places, in clusters.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) cluster_bytes: u64,
    /// Records of the master file table.
    pub(crate) records: u32,
    pub(crate) boot: Run,
    pub(crate) mirror: Run,
    pub(crate) up_case: Run,
    pub(crate) definitions: Run,
    pub(crate) security: Run,
    pub(crate) index: Run,
    pub(crate) record_bitmap: Run,
    pub(crate) bitmap: Run,
    pub(crate) log: Run,
    pub(crate) records_run: Run,
    /// Of each file; `None` where it is in its record.
    pub(crate) files: Vec<Option<Run>>,
    /// Of the partition.
    pub(crate) partition_bytes: u64,
    /// What the boot sector says: the last sector is its copy, and counts no more.
    pub(crate) total_sectors: u64,
    /// Whole clusters among them.
    pub(crate) clusters: u64,
    pub(crate) bitmap_bytes: u64,
}

/// Takes places one after the other.
struct Taker {
    position: u64,
    cluster_bytes: u64,
}

impl Taker {
    fn take(&mut self, len_bytes: u64) -> Run {
        let run = Run::at(self.position, len_bytes.div_ceil(self.cluster_bytes));
        self.position += run.clusters;
        run
    }

    fn align(&mut self) {
        self.position = self.position.next_multiple_of(ALIGNED_BYTES / self.cluster_bytes);
    }

    fn take_aligned(&mut self, len_bytes: u64) -> Run {
        self.align();
        self.take(len_bytes)
    }
}

impl Layout {
    /// Metadata first, then the files, then free space. `index_blocks` hold the root folder.
    pub(crate) fn plan(parameters: &Parameters, index_blocks: u64) -> Result<Self, ParameterError> {
        let small = Self::plan_with(parameters, 4096, index_blocks);
        if small.partition_bytes <= LARGEST_WITH_SMALL_CLUSTERS {
            return Ok(small);
        }
        let large = Self::plan_with(parameters, 65536, index_blocks);
        if large.clusters > MOST_CLUSTERS {
            return Err(ParameterError::TooLarge { bytes: large.partition_bytes });
        }
        Ok(large)
    }

    fn plan_with(parameters: &Parameters, cluster_bytes: u64, index_blocks: u64) -> Self {
        let records = (FIRST_FILE + parameters.files.len() as u32 + 64).next_multiple_of(64).max(256);
        let mut taker = Taker { position: 0, cluster_bytes };
        let boot = taker.take(BOOT_BYTES);
        let mirror = taker.take(mirror_bytes(cluster_bytes));
        let up_case = taker.take(TABLE_BYTES);
        let definitions = taker.take(DEFINITIONS_BYTES);
        let security = taker.take(SECURITY_BYTES);
        let index = taker.take(index_blocks * BLOCK_BYTES as u64);
        let record_bitmap = taker.take(record_bitmap_bytes(records));
        let head = taker.position;
        let mut bitmap_clusters = 1;
        // The length of `$Bitmap` depends on the volume's, and that on it: two or three rounds.
        loop {
            taker.position = head;
            let bitmap = taker.take(bitmap_clusters * cluster_bytes);
            let log = taker.take_aligned(parameters.log_bytes);
            let records_run = taker.take_aligned(u64::from(records) * RECORD_BYTES as u64);
            taker.take(parameters.gap_bytes);
            taker.align();
            let mut files = Vec::with_capacity(parameters.files.len());
            for file in &parameters.files {
                files.push(match &file.content {
                    FileContent::External { size_bytes } => Some(taker.take_aligned(*size_bytes)),
                    FileContent::Resident { .. } => None,
                });
            }
            taker.align();
            taker.take(parameters.free_bytes);
            taker.align();
            let partition_bytes = taker.position * cluster_bytes;
            let total_sectors = partition_bytes / SECTOR_BYTES - 1;
            let clusters = total_sectors * SECTOR_BYTES / cluster_bytes;
            let bitmap_bytes = clusters.div_ceil(8).next_multiple_of(8);
            let needed = bitmap_bytes.div_ceil(cluster_bytes);
            if needed == bitmap_clusters {
                return Self {
                    cluster_bytes,
                    records,
                    boot,
                    mirror,
                    up_case,
                    definitions,
                    security,
                    index,
                    record_bitmap,
                    bitmap,
                    log,
                    records_run,
                    files,
                    partition_bytes,
                    total_sectors,
                    clusters,
                    bitmap_bytes,
                };
            }
            bitmap_clusters = needed;
        }
    }

    /// All clusters in use, in order.
    pub(crate) fn used(&self) -> Vec<Run> {
        let system = [
            self.boot,
            self.mirror,
            self.up_case,
            self.definitions,
            self.security,
            self.index,
            self.record_bitmap,
            self.bitmap,
            self.log,
            self.records_run,
        ];
        let mut used: Vec<Run> = system.into_iter().chain(self.files.iter().copied().flatten()).collect();
        used.sort_by_key(|run| run.first);
        used
    }
}

/// Bytes of `$MFTMirr`.
pub(crate) fn mirror_bytes(cluster_bytes: u64) -> u64 {
    cluster_bytes.max(4 * RECORD_BYTES as u64)
}

/// Bytes of the bitmap of records.
pub(crate) fn record_bitmap_bytes(records: u32) -> u64 {
    u64::from(records).div_ceil(8).next_multiple_of(8)
}
