//! Serves a raw disk image on a loopback port until a line is read from standard input:
//! `cargo run -p nbd --example nbd_file -- disk.img`, then `nbdinfo nbd://127.0.0.1:10809`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd::{Export, Exports, FileDevice, Server, ServerOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: nbd_file IMAGE")?;
    let device = Arc::new(FileDevice::open(Path::new(&path), false)?);
    let export = Export { name: "disk".into(), description: path, device, read_only: false };
    let mut server = Server::start(Exports::new([export])?, ServerOptions::default());
    let address = server.listen_tcp("127.0.0.1:10809".parse()?)?;
    println!("serving nbd://{address}/disk; press Enter to end");
    std::io::stdin().read_line(&mut String::new())?;
    server.shutdown(Duration::from_secs(10))?;
    Ok(())
}
