//! Makes a disk, freezes it, goes on in a child, and folds the child back in.

use vhdx::{
    CreateOptions, DifferencingOptions, ExtentKind, Merge, OpenOptions, VirtualDisk, WritableVhdx, create,
    create_differencing, open_disk,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (base, child) = (folder.path().join("disk.vhdx"), folder.path().join("disk_1.avhdx"));
    let options = OpenOptions::default();

    create(&base, &CreateOptions::dynamic(10 << 30))?;
    let mut disk = WritableVhdx::open(&base, &options)?;
    disk.write_all_at(b"before the checkpoint", 1 << 30)?;
    disk.close()?;

    create_differencing(&child, &base, &DifferencingOptions::default())?;
    let mut disk = WritableVhdx::open(&child, &options)?;
    disk.write_all_at(b"after", 1 << 30)?;
    disk.flush()?; // durable from here on, whatever happens
    disk.close()?;

    let mut merge = Merge::open(&child, &base)?;
    while !merge.step(64 << 20)?.finished {}
    drop(merge);
    std::fs::remove_file(&child)?;

    let disk = open_disk(&base, &options)?;
    let mut text = [0; 21];
    disk.read_exact_at(&mut text, 1 << 30)?;
    println!("{}", String::from_utf8_lossy(&text));
    for extent in disk.extents(0..10 << 30) {
        let extent = extent?;
        if extent.kind == ExtentKind::Data {
            println!("data at {:?}", extent.range);
        }
    }
    Ok(())
}
