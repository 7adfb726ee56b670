//! Serves a raw image that stays as it is: what clients write goes, encrypted, into a folder.
//! `cargo run -p serve --example serve_image -- disk.img ./writes`, then `qemu-io -f raw nbd://127.0.0.1:10809`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd::{Device, Export, Exports, Server, ServerOptions};
use serve::folder::DiskFolder;
use serve::overlay::{DiskKey, Identity, Overlay, OverlayOptions};
use serve::{Base, CachedBase, FileBase, LayeredDevice, MemoryCache, Metrics};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (image, writes) = (std::env::args().nth(1), std::env::args().nth(2));
    let (image, writes) = image.zip(writes).ok_or("usage: serve_image IMAGE FOLDER")?;
    let base = Arc::new(FileBase::open(Path::new(&image))?);
    let (session, disk, size_bytes) = ([1; 16], [1; 16], base.size_bytes());
    let identity = Identity { session, disk, size_bytes, sector_bytes: base.sector_bytes(), base: base.identity() };
    // A secret of the repository's, where there is one.
    let key = || DiskKey::derive(&[7; 32], &identity.session, &identity.disk);
    let folder = Arc::new(DiskFolder::open_or_create(Path::new(&writes))?);
    let overlay = Overlay::recover(folder.clone(), identity, key(), OverlayOptions::default())
        .or_else(|_| Overlay::create(folder, identity, key(), OverlayOptions::default()))?;

    let metrics = Arc::new(Metrics::default());
    let base = Arc::new(CachedBase::new(base, MemoryCache::new(64 << 20), metrics.clone()));
    let device: Arc<dyn Device> = Arc::new(LayeredDevice::new(base, Some(Arc::new(overlay)), metrics.clone()));
    let export = Export { name: "disk".into(), description: image, device, read_only: false };
    let mut server = Server::start(Exports::new([export])?, ServerOptions::default());
    println!("serving nbd://{}/disk; press Enter to end", server.listen_tcp("127.0.0.1:10809".parse()?)?);
    std::io::stdin().read_line(&mut String::new())?;
    server.shutdown(Duration::from_secs(10))?;
    print!("{}", metrics.render());
    Ok(())
}
