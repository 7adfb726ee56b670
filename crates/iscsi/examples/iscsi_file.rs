//! Serves a raw disk image on a loopback port until a line is read from standard input:
//! `cargo run -p iscsi --example iscsi_file -- disk.img`, then
//! `iscsi-ls -s iscsi://127.0.0.1:13260/` or `qemu-img info iscsi://127.0.0.1:13260/iqn.2026-01.example:disk/0`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use iscsi::{
    BlockSize, Device, DeviceError, Extent, ExtentKind, Identity, Provisioning, Server, ServerOptions, TargetOptions,
    Targets, UnitOptions, Zeroing,
};

/// A file that holds a disk, byte for byte.
struct Image {
    file: File,
    size_bytes: u64,
}

impl Device for Image {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        read_exact_at(&self.file, buf, offset_bytes).map_err(|error| DeviceError::from_io("read the image", &error))
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        write_all_at(&self.file, data, offset_bytes).map_err(|error| DeviceError::from_io("write the image", &error))
    }

    /// Writes them, and so is only for units that are not thin.
    fn zero(&self, range: Range<u64>, _how: Zeroing) -> Result<(), DeviceError> {
        static PIECE: [u8; 65_536] = [0; 65_536];
        let mut pieces = range.clone().step_by(PIECE.len());
        pieces.try_for_each(|at| self.write_at(&PIECE[..(range.end - at).min(PIECE.len() as u64) as usize], at))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(|error| DeviceError::from_io("flush the image", &error))
    }

    fn extents(&self, range: Range<u64>, _max: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { len_bytes: range.end - range.start, kind: ExtentKind::Data }])
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset_bytes)
}

#[cfg(unix)]
fn write_all_at(file: &File, data: &[u8], offset_bytes: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, offset_bytes)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset_bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                buf = &mut buf[read..];
                offset_bytes += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_all_at(file: &File, mut data: &[u8], mut offset_bytes: u64) -> io::Result<()> {
    while !data.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, data, offset_bytes)?;
        data = &data[written..];
        offset_bytes += written as u64;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: iscsi_file IMAGE")?;
    let file = File::options().read(true).write(true).open(&path)?;
    let size_bytes = file.metadata()?.len();
    let options = UnitOptions {
        block_size: BlockSize::E512,
        provisioning: Provisioning::Thick,
        read_only: false,
        identity: Identity::new("EXAMPLE", "Disk", "1", path.as_bytes()),
    };
    let target = TargetOptions {
        name: "iqn.2026-01.example:disk".into(),
        alias: path,
        units: vec![(0, Arc::new(Image { file, size_bytes }), options)],
        ..TargetOptions::default()
    };
    let mut server = Server::start(Targets::new([target], None)?, ServerOptions::default());
    let address = server.listen("127.0.0.1:13260".parse()?)?;
    println!("serving iscsi://{address}/iqn.2026-01.example:disk/0; press Enter to end");
    io::stdin().read_line(&mut String::new())?;
    server.shutdown(Duration::from_secs(10))?;
    Ok(())
}
