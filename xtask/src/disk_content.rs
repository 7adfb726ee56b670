//! What a disk holds, in one number.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use vhdx::{ExtentKind, VirtualDisk};

use crate::figures::hex;

const PIECE_BYTES: u64 = 1 << 20;

/// SHA-256 of everything the guest sees, first byte to last. Hashing a disk's zeroes takes as long as hashing its data.
pub fn sha256_of_disk(disk: &dyn VirtualDisk) -> Result<String> {
    let zeroes = vec![0; PIECE_BYTES as usize];
    let mut buffer = zeroes.clone();
    let mut digest = Sha256::new();
    for extent in disk.extents(0..disk.geometry().size_bytes) {
        let extent = extent.context("map the disk")?;
        let mut at = extent.range.start;
        while at < extent.range.end {
            let len = (extent.range.end - at).min(PIECE_BYTES) as usize;
            match extent.kind {
                ExtentKind::Zero => digest.update(&zeroes[..len]),
                ExtentKind::Data => {
                    disk.read_exact_at(&mut buffer[..len], at).context("read the disk")?;
                    digest.update(&buffer[..len]);
                }
            }
            at += len as u64;
        }
    }
    Ok(hex(&digest.finalize()))
}

/// Fails unless the disk in `file` (VHDX or raw, by its name), which `maker` wrote, has that content.
pub fn expect_content(file: &Path, sha256: &str, maker: &str) -> Result<()> {
    let found = if file.extension().is_some_and(|extension| extension == "vhdx") {
        let disk = vhdx::open_disk(file, &vhdx::OpenOptions::default());
        sha256_of_disk(&disk.with_context(|| format!("open {}, which {maker} wrote", file.display()))?)?
    } else {
        sha256_of_file(file)?
    };
    if found != sha256 {
        bail!("{} by {maker} DIFFERS: SHA-256 is {found}, expected {sha256}", file.display());
    }
    Ok(())
}

/// SHA-256 of a file; what `sha256sum` prints.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; PIECE_BYTES as usize]);
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        if count == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..count]);
    }
}
