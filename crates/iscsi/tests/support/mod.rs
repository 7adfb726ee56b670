//! A server with one target and one unit, in memory.
#![allow(dead_code)] // each test file uses its own part

pub mod client;
pub mod held;

use std::net::SocketAddr;
use std::sync::Arc;

use iscsi::{
    Authentication, BlockSize, Credentials, Device, Identity, MemoryDevice, Provisioning, Secret, Server,
    ServerOptions, TargetOptions, Targets, UnitOptions,
};

pub const MIB: u64 = 1 << 20;
pub const TARGET: &str = "iqn.2026-01.test:e3";

/// How the one unit is shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    pub block_size: BlockSize,
    pub provisioning: Provisioning,
    pub read_only: bool,
}

pub const THIN_512N: Shown = Shown { block_size: BlockSize::N512, provisioning: Provisioning::Thin, read_only: false };
pub const THICK_512N: Shown = Shown { provisioning: Provisioning::Thick, ..THIN_512N };
pub const THIN_512E: Shown = Shown { block_size: BlockSize::E512, ..THIN_512N };
pub const THIN_4KN: Shown = Shown { block_size: BlockSize::N4096, ..THIN_512N };
pub const THICK_4KN: Shown = Shown { provisioning: Provisioning::Thick, ..THIN_4KN };
pub const READ_ONLY: Shown = Shown { read_only: true, ..THIN_512N };

pub struct Serving {
    pub server: Server,
    pub address: SocketAddr,
}

impl Serving {
    /// A fresh disk in memory.
    pub fn memory(size_bytes: u64, shown: Shown) -> Self {
        let cell_bytes = if shown.block_size == BlockSize::N4096 { 4096 } else { 512 };
        Self::new(Arc::new(MemoryDevice::new(size_bytes, cell_bytes)), shown, None, 0)
    }

    /// Port 0 is any.
    pub fn new(device: Arc<dyn Device>, shown: Shown, authentication: Option<Authentication>, port: u16) -> Self {
        let target = TargetOptions {
            name: TARGET.into(),
            alias: "a test".into(),
            authentication: authentication.clone(),
            units: vec![(0, device, options(shown, b"a test"))],
            ..TargetOptions::default()
        };
        let targets = Targets::new([target], authentication).unwrap();
        let mut server = Server::start(targets, ServerOptions::default());
        let address = server.listen(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        Self { server, address }
    }

    pub fn portal(&self) -> String {
        format!("iscsi://{}/", self.address)
    }

    pub fn url(&self) -> String {
        format!("iscsi://{}/{TARGET}/0", self.address)
    }

    /// With the name and secret that the initiator is to use.
    pub fn url_as(&self, user: &str, secret: &str) -> String {
        format!("iscsi://{user}%{secret}@{}/{TARGET}/0", self.address)
    }
}

pub fn options(shown: Shown, seed: &[u8]) -> UnitOptions {
    let Shown { block_size, provisioning, read_only } = shown;
    let identity = Identity::new("E3", "Restore Point", "1", seed);
    UnitOptions { block_size, provisioning, read_only, identity }
}

/// Mutual: alice and target1.
pub fn mutual() -> Authentication {
    let credentials = |name: &str, secret: &str| Credentials { name: name.into(), secret: Secret::new(secret) };
    Authentication {
        initiator: credentials("alice", "secretsecret12"),
        target: Some(credentials("target1", "mutualsecret12")),
    }
}
