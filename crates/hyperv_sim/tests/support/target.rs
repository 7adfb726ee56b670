//! A target as a program under test would serve: an NTFS volume with disk files, over a real socket.

#![allow(dead_code)] // each test program uses a part of it

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use iscsi::{
    Authentication, BlockSize, Credentials, Device, DeviceError, Extent, ExtentKind, Identity, Provisioning, Secret,
    Server, ServerOptions, TargetOptions, Targets, UnitOptions, Zeroing,
};
use ntfs_volume::{Disk, FileContent, Parameters, VolumeFile};

pub const TARGET: &str = "iqn.2026-01.test:volume";
pub const USER: &str = "tester";
pub const SECRET: &str = "twelve-letters";

/// A volume whose files are these.
struct Volume {
    disk: Disk,
    files: Vec<Vec<u8>>,
}

impl Device for Volume {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.disk.read(buf, offset_bytes, |file, here, at| {
            let at = at as usize;
            here.copy_from_slice(&self.files[file][at..at + here.len()]);
            Ok(())
        })
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<(), DeviceError> {
        panic!("nobody writes to it here")
    }

    fn zero(&self, _: Range<u64>, _: Zeroing) -> Result<(), DeviceError> {
        panic!("nobody writes to it here")
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, range: Range<u64>, _: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { len_bytes: range.end - range.start, kind: ExtentKind::Data }])
    }
}

/// A target that listens; it ends when this is dropped.
pub struct TestTarget {
    server: Option<Server>,
    pub address: SocketAddr,
    pub serial: String,
}

impl TestTarget {
    /// `disk0.vhdx`, `disk1.vhdx` and so on are these.
    pub fn serve(files: Vec<Vec<u8>>) -> Self {
        Self::serve_at(SocketAddr::from(([127, 0, 0, 1], 0)), files)
    }

    pub fn serve_at(address: SocketAddr, files: Vec<Vec<u8>>) -> Self {
        Self::named(TARGET, address, files)
    }

    /// Serial numbers follow from the name.
    pub fn named(name: &str, address: SocketAddr, files: Vec<Vec<u8>>) -> Self {
        let volume_file = |(nth, bytes): (usize, &Vec<u8>)| VolumeFile {
            name: format!("disk{nth}.vhdx"),
            content: FileContent::External { size_bytes: bytes.len() as u64 },
            is_read_only: false,
        };
        let named = files.iter().enumerate().map(volume_file).collect();
        let parameters = Parameters::for_session(uuid::Uuid::from_bytes([7; 16]), 133_000_000_000_000_000, named);
        let volume = Volume { disk: Disk::build(&parameters).unwrap(), files };
        let identity = Identity::new("E3", "Test", "1", name.as_bytes());
        let serial = identity.serial();
        let options =
            UnitOptions { block_size: BlockSize::E512, provisioning: Provisioning::Thick, read_only: false, identity };
        let initiator = Credentials { name: USER.into(), secret: Secret::new(SECRET) };
        let target = TargetOptions {
            name: name.into(),
            authentication: Some(Authentication { initiator, target: None }),
            units: vec![(0, Arc::new(volume) as Arc<dyn Device>, options)],
            ..TargetOptions::default()
        };
        let mut server = Server::start(Targets::new([target], None).unwrap(), ServerOptions::default());
        let address = server.listen(address).unwrap();
        Self { server: Some(server), address, serial }
    }

    /// As a process that dies.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown(Duration::ZERO).unwrap();
        }
    }
}

impl Drop for TestTarget {
    fn drop(&mut self) {
        self.stop();
    }
}
