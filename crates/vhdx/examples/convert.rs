//! `convert SOURCE TARGET`: any disk file to raw, or to VHDX when the target is called so.

use std::path::Path;

use vhdx::convert::{ConvertOptions, ConvertTarget, to_path};
use vhdx::stream::StreamIds;
use vhdx::{Guid, OpenOptions, open_disk};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err("usage: convert SOURCE TARGET".into());
    };
    let disk = open_disk(source.as_ref(), &OpenOptions { allow_raw: true, ..OpenOptions::default() })?;
    let kind = match Path::new(&target).extension().is_some_and(|extension| extension == "vhdx") {
        true => ConvertTarget::Vhdx { block_bytes: 2 << 20, ids: StreamIds::random(Guid::random()) },
        false => ConvertTarget::Raw,
    };
    let summary = to_path(&disk, target.as_ref(), &kind, &ConvertOptions::default())?;
    println!("{} MiB read, {} MiB written", summary.read_bytes >> 20, summary.written_bytes >> 20);
    Ok(())
}
