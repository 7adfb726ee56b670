//! What the laws say of points: all that were made are there, and are the disks that were frozen.

use std::collections::BTreeSet;

use backup::{Cancel, Point, PointDescription, PointDisk, ReadMode, Silent, TargetFormat, list_points, restore_disk};
use vhdx::{OpenOptions, ParentSearch};

use super::{Law, is_unreadable, key_of_disk, meets, read_all};
use crate::model::{self, Frozen};
use crate::story::HostFault;
use crate::world::{World, chain};

/// A point enters the model.
pub(crate) fn record_point(
    world: &World,
    vm: usize,
    frozen: &Frozen,
    id: &str,
    description: Option<&PointDescription>,
) {
    let described = match description {
        Some(description) => Some(description.clone()),
        None => find_point(world, id).and_then(|point| point.describe(&world.observer).ok()),
    };
    let Some(description) = described else {
        return world.find(Law::Complete, format!("point {id} has no description"));
    };
    let mut model = world.model();
    let lied = model.faults.iter().any(|(of, fault)| *of == vm && matches!(fault, HostFault::ChangesOmit { .. }));
    let doubtful = (description.disks.iter())
        .filter(|disk| match &disk.read {
            ReadMode::Full { .. } => false,
            ReadMode::Incremental { base } => {
                lied || model.point(base).is_some_and(|base| base.doubtful.contains(&key_of_disk(disk)))
            }
        })
        .map(key_of_disk)
        .collect();
    model.points.push(model::Point { id: id.into(), vm, frozen: frozen.clone(), doubtful, deleted: false });
}

pub(super) fn find_point(world: &World, id: &str) -> Option<Point> {
    list_points(&world.observer, None).ok()?.into_iter().find(|point| point.id == id)
}

pub(super) fn listed(world: &World) -> BTreeSet<String> {
    points(world).into_iter().map(|point| point.id).collect()
}

fn points(world: &World) -> Vec<Point> {
    list_points(&world.observer, None).unwrap_or_default()
}

/// Every point that must be there is listed, and no other.
pub(crate) fn check_listing(world: &World) {
    world.count("judged law 5");
    if let Err(error) = world.observer.refresh() {
        return world.find(Law::Recovery, format!("the repository cannot be read: {}", chain(&error)));
    }
    let listed = listed(world);
    // Behind its commit a run reads back what it listed, and others may look just then.
    let runs: Vec<String> = world.model().vms.iter().filter_map(|vm| Some(vm.run.as_ref()?.id.clone())).collect();
    let is_in_progress = |point: &Point| point.tag("run-id").is_some_and(|id| runs.iter().any(|run| run == id));
    let in_progress: BTreeSet<String> =
        points(world).into_iter().filter(is_in_progress).map(|point| point.id).collect();
    let (missing, expected) = {
        let model = world.model();
        let live: BTreeSet<String> =
            model.points.iter().filter(|point| !point.deleted).map(|point| point.id.clone()).collect();
        (live.difference(&listed).next().cloned(), live)
    };
    if let Some(id) = missing {
        world.find(Law::Recovery, format!("point {id} is not listed any more"));
    }
    if let Some(id) = listed.difference(&expected).find(|id| !in_progress.contains(*id)) {
        world.find(Law::Recovery, format!("point {id} is listed, and nobody made it"));
    }
}

/// A point's disks are, byte for byte, what was frozen: as the engine restores them, and as stock does.
pub(crate) fn check_bytes(world: &World, id: &str, as_the_engine: bool) {
    let Some(point) = find_point(world, id) else {
        return world.find(Law::Complete, format!("point {id} is not listed"));
    };
    let description = match point.describe(&world.observer) {
        Ok(description) => description,
        Err(error) => return world.find(Law::Complete, format!("point {id}: {}", chain(&error))),
    };
    world.count("judged law 1");
    for disk in &description.disks {
        let key = key_of_disk(disk);
        let (expected, is_doubtful, vm) = {
            let model = world.model();
            let Some(of) = model.point(id) else { return };
            let Some(frozen) = of.frozen.disks.iter().find(|one| one.key == key) else { continue };
            (frozen.content.clone(), of.doubtful.contains(&key), of.vm)
        };
        if is_doubtful {
            world.count("doubtful");
            continue;
        }
        let restored = if as_the_engine {
            restored_by_engine(world, &point, disk)
        } else {
            restored_as_by_stock(world, &point, disk)
        };
        let problem = match restored {
            Err(problem) => problem,
            Ok(bytes) if bytes.len() != expected.len() => {
                format!("{} bytes instead of {}", bytes.len(), expected.len())
            }
            Ok(bytes) if bytes == **expected => continue,
            Ok(bytes) => match bytes.iter().zip(expected.iter()).position(|(a, b)| a != b) {
                Some(at) => format!("differs from what was frozen at {at:#x}"),
                None => continue,
            },
        };
        let law = if meets(world, vm, is_unreadable) {
            Law::Unreadable
        } else if matches!(disk.read, ReadMode::Incremental { .. }) {
            Law::Tracking
        } else {
            Law::Complete
        };
        world.find(law, format!("point {id}, {key}: {problem}"));
    }
}

fn restored_by_engine(world: &World, point: &Point, disk: &PointDisk) -> Result<Vec<u8>, String> {
    let target = world.dir.path().join("restored.raw");
    let object = point.open_disk(&world.observer, disk).map_err(|error| chain(&error))?;
    let (observer, cancel) = (&Silent, Cancel::default());
    restore_disk(&object, &target, TargetFormat::Raw, true, "restore", observer, &cancel)
        .map_err(|error| chain(&error))?;
    std::fs::read(&target).map_err(|error| error.to_string())
}

/// The file as it lies in the snapshot, read by nothing but the repository's format and the format of VHDX.
fn restored_as_by_stock(world: &World, point: &Point, disk: &PointDisk) -> Result<Vec<u8>, String> {
    let target = world.dir.path().join("restored.vhdx");
    let entry = point.entry(&world.observer, &disk.file).map_err(|error| chain(&error))?;
    let object = kopia_repo::object_of(&entry).map_err(|error| chain(&error))?;
    let reader = world.observer.open_object(&object).map_err(|error| chain(&error))?;
    let mut file = std::fs::File::create(&target).map_err(|error| error.to_string())?;
    reader.copy_to(&mut file).map_err(|error| chain(&error))?.map_err(|error| error.to_string())?;
    drop(file);
    let options = OpenOptions { allow_raw: false, parents: ParentSearch::SameFolder };
    let opened = vhdx::open_disk(&target, &options).map_err(|error| chain(&error))?;
    read_all(&opened).map_err(|error| chain(&error))
}
