//! The laws of the design, each with its own judge. None asks the engine whether it did well: they compare the host, the
//! store and the restored bytes with the model.

mod points;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use backup::{
    BackupError, Cancel, HostState, PointDescription, PointDisk, ReadMode, Silent, VerifyLevel, VmReport, WarningCode,
    verify_point,
};
use hyperv_sim::LabHost;
use vhdx::VirtualDisk;

use crate::model::{Frozen, RunInProgress};
use crate::story::{Act, HostFault, Run};
use crate::world::{World, chain, key_of_chain};

pub(crate) use points::{check_bytes, check_listing, record_point};
use points::{find_point, listed};

/// Segments that the audit may re-read on small disks.
const AUDIT_SEGMENTS: u64 = 64;
/// What a run may store besides the changed segments: index pieces, head, tree, manifests, packs' frames.
const STORED_ONCE: u64 = 256 << 10;
const STORED_PER_DISK: u64 = 64 << 10;

/// What a judge looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// Law 1: a point is a complete disk.
    Complete,
    /// Law 2: the tracking id is not newer than the bytes.
    Tracking,
    /// Law 3: an unreadable byte fails the point.
    Unreadable,
    /// Law 4: green means done.
    Green,
    /// Law 5: any crash leaves earlier points, and the host converges.
    Recovery,
    /// Law 8: cost follows change.
    Cost,
    /// What nothing hinders, succeeds.
    Progress,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "law 1",
            Self::Tracking => "law 2",
            Self::Unreadable => "law 3",
            Self::Green => "law 4",
            Self::Recovery => "law 5",
            Self::Cost => "law 8",
            Self::Progress => "progress",
        })
    }
}

/// A law that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub law: Law,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

/// What a run cost, counted at the border.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) stored_bytes: u64,
    pub(crate) read_bytes: u64,
}

/// A disk as its guest sees it.
pub(crate) fn guest_disk(lab: &LabHost, vm: &str, disk: usize) -> Vec<u8> {
    let opened = lab.open_guest_disk(vm, disk).expect("the VM has the disk");
    read_all(&opened).expect("the lab's own files can be read")
}

fn read_all(disk: &dyn VirtualDisk) -> Result<Vec<u8>, vhdx::ReadError> {
    let mut bytes = vec![0; disk.geometry().size_bytes as usize];
    for extent in disk.extents(0..disk.geometry().size_bytes) {
        let extent = extent?;
        if extent.kind == vhdx::ExtentKind::Data {
            let Range { start, end } = extent.range;
            disk.read_exact_at(&mut bytes[start as usize..end as usize], start)?;
        }
    }
    Ok(bytes)
}

/// Files in the chain of each disk of a VM.
pub(crate) fn chain_depths(lab: &LabHost, vm: &str) -> BTreeMap<String, usize> {
    let chains = (0..lab.disk_count(vm).unwrap_or(0)).filter_map(|disk| lab.disk_chain(vm, disk).ok());
    chains.map(|chain| (key_of_chain(&chain), chain.len())).collect()
}

pub(crate) fn has_open_intent(world: &World, vm: usize) -> bool {
    let (id, host) = {
        let model = world.model();
        (model.vms[vm].id.clone(), model.vms[vm].host)
    };
    let journal = HostState::open(&world.hosts[host].state).and_then(|state| state.journal(&id));
    journal.is_ok_and(|journal| journal.intent.is_some())
}

/// Nobody but the guests did anything during the run, and nothing is broken.
fn is_calm(world: &World, vm: usize, run: &Run) -> bool {
    let model = world.model();
    let harmless = |act: &Act| matches!(act, Act::Write { .. } | Act::Zero { .. });
    !model.is_broken_for(vm)
        && model.clock_offset_s.abs() <= 250
        && run.crash.is_none()
        && run.cancel.is_none()
        && run.store.is_empty()
        && run.meanwhile.iter().all(|(_, act)| harmless(act))
}

fn meets(world: &World, vm: usize, wanted: impl Fn(&HostFault) -> bool) -> bool {
    world.model().faults.iter().any(|(of, fault)| *of == vm && wanted(fault))
}

fn is_unreadable(fault: &HostFault) -> bool {
    matches!(fault, HostFault::Unreadable { .. } | HostFault::DeviceLost { .. })
}

/// A run that says that it made a point.
pub(crate) fn check_run(
    world: &World,
    vm: usize,
    run: &Run,
    progress: &RunInProgress,
    frozen: &Frozen,
    report: &VmReport,
    cost: Option<Cost>,
) {
    let calm = is_calm(world, vm, run) && !progress.disturbed;
    let has_leftovers = world.model().vms[vm].foreign_checkpoints.len();
    world.adopt_points();
    check_disks_of_point(world, vm, frozen, &report.description);
    check_tracking(world, vm, progress, frozen, report);
    check_green(world, vm, progress, report, calm && has_leftovers == 0);
    let excused = world.model().vms[vm].full_excused || run.full;
    if calm {
        check_cost(world, vm, frozen, report, cost, excused);
    }
    record_point(world, vm, frozen, &report.point.id, Some(&report.description));
    check_bytes(world, &report.point.id, true);
    let lost = |code| matches!(code, WarningCode::TrackingLost | WarningCode::TrackingLied);
    let clean = calm && has_leftovers == 0 && !report.warnings.iter().any(|warning| lost(warning.code));
    world.model().vms[vm].full_excused = !clean;
}

/// All disks or none.
fn check_disks_of_point(world: &World, vm: usize, frozen: &Frozen, description: &PointDescription) {
    let unreadable = meets(world, vm, is_unreadable);
    world.count(if unreadable { "judged law 3" } else { "judged law 1" });
    let mut got: Vec<String> = description.disks.iter().map(key_of_disk).collect();
    let mut expected: Vec<String> = frozen.disks.iter().map(|disk| disk.key.clone()).collect();
    got.sort();
    expected.sort();
    if got != expected {
        let law = if unreadable { Law::Unreadable } else { Law::Complete };
        world.find(law, format!("the point holds the disks {got:?} instead of {expected:?}"));
    }
}

fn check_tracking(world: &World, vm: usize, progress: &RunInProgress, frozen: &Frozen, report: &VmReport) {
    for disk in &report.description.disks {
        let key = key_of_disk(disk);
        let lie_possible = {
            let model = world.model();
            let base = model.live_points(vm).last();
            let doubtful = base.is_some_and(|base| base.doubtful.contains(&key));
            doubtful
                || model.faults.iter().any(|(of, fault)| *of == vm && matches!(fault, HostFault::ChangesOmit { .. }))
        };
        match &disk.read {
            ReadMode::Full { reason } => {
                world.count(format!("full {reason:?}"));
                if *reason == backup::FullReason::AuditFailed {
                    let warned = report.warnings.iter().any(|one| one.code == WarningCode::TrackingLied);
                    if !lie_possible {
                        world.find(Law::Tracking, format!("{key} differs from its base where nobody lied about it"));
                    }
                    if !warned {
                        world.find(Law::Tracking, format!("tracking lied about {key}, and nobody is told"));
                    }
                }
            }
            ReadMode::Incremental { base } => {
                world.count("incremental");
                world.count("judged law 2");
                if let Some(why) = why_unproven(world, vm, progress, frozen, &key, base) {
                    world.find(Law::Tracking, format!("{key} was read as changes since {base}, although {why}"));
                }
            }
        }
        if let Some(id) = &disk.most_recent_id {
            world.model().instants.entry((key.clone(), id.clone())).or_insert(frozen.event);
        }
        // Where the host made no reference point an older instant serves on; a newer one, or an unknown one, never.
        let unconverted = report.warnings.iter().any(|one| one.code == WarningCode::ConversionFailed);
        let is_older = |id: &String| {
            let instant = world.model().instants.get(&(key.clone(), id.clone())).copied();
            unconverted && instant.is_some_and(|instant| instant <= frozen.event)
        };
        if let Some(id) = disk.rct_id.as_ref().filter(|id| is_older(id)) {
            let mut model = world.model();
            if let Some(&instant) = model.instants.get(&(key.clone(), id.clone())) {
                model.tracked_since.insert((report.point.id.clone(), key.clone()), instant);
            }
        }
        if let Some(id) = &disk.rct_id
            && disk.rct_id != disk.most_recent_id
            && !is_older(id)
            && !progress.disturbed
        {
            world.find(Law::Tracking, format!("{key}: the id of the point is not that of its frozen instant"));
        }
    }
}

/// Why what changed since a base cannot be told.
fn why_unproven(
    world: &World,
    vm: usize,
    progress: &RunInProgress,
    frozen: &Frozen,
    key: &str,
    base: &str,
) -> Option<String> {
    let model = world.model();
    let Some(point) = model.point(base) else { return Some("there is no such point".into()) };
    let Some(disk) = frozen.disks.iter().find(|disk| disk.key == key) else { return Some("it is another disk".into()) };
    let then = point.frozen.event;
    if point.vm != vm || point.frozen.disks.iter().all(|disk| disk.key != key) {
        return Some("the base does not have this disk".into());
    }
    if point.frozen.host != frozen.host {
        return Some("the base was taken on another host".into());
    }
    if disk.broken_at > then {
        return Some("tracking was lost in between, or the disk went back".into());
    }
    if disk.reverts.iter().any(|&(taken, reverted)| taken <= then && then < reverted) {
        return Some("the storage went back behind the base".into());
    }
    if point.frozen.user_checkpoints != frozen.user_checkpoints && !progress.disturbed {
        return Some("user checkpoints changed in between".into());
    }
    None
}

/// What the ids of a point stand for whose run told nothing: its own instant, or an older one, where the host made no
/// reference point.
pub(crate) fn note_instants(world: &World, frozen: &Frozen, point: &str, description: &PointDescription) {
    let mut model = world.model();
    let mut newer = Vec::new();
    for disk in &description.disks {
        let key = key_of_disk(disk);
        if let Some(id) = &disk.most_recent_id {
            model.instants.entry((key.clone(), id.clone())).or_insert(frozen.event);
        }
        let Some(id) = disk.rct_id.as_ref().filter(|_| disk.rct_id != disk.most_recent_id) else { continue };
        match model.instants.get(&(key.clone(), id.clone())) {
            Some(&instant) if instant > frozen.event => newer.push(key),
            Some(&instant) => _ = model.tracked_since.insert((point.to_owned(), key), instant),
            None => {}
        }
    }
    drop(model);
    for key in newer {
        world.find(
            Law::Tracking,
            format!("{key:?}: the id of a point that a later run completed is newer than its bytes"),
        );
    }
}

/// Without a warning, everything is done.
fn check_green(world: &World, vm: usize, progress: &RunInProgress, report: &VmReport, calm: bool) {
    let defects: Vec<WarningCode> =
        report.warnings.iter().map(|warning| warning.code).filter(|code| code.is_defect()).collect();
    for code in &defects {
        world.count(format!("warning {code:?}"));
    }
    let news = |code: &&WarningCode| !matches!(code, WarningCode::Host);
    if calm && let Some(code) = defects.iter().find(news) {
        world.find(Law::Progress, format!("nothing was wrong, and the run warns of {code:?}: {:?}", report.warnings));
    }
    if !defects.is_empty() {
        return;
    }
    world.count("judged law 4");
    let (id, lab) = world.id_and_lab(vm);
    let disturbed = progress.disturbed;
    if !disturbed && !lab.is_at_rest(&id).unwrap_or(false) {
        // What still waits may be the merge of an earlier run, which somebody's checkpoint holds up.
        let longer = chain_depths(&lab, &id)
            .into_iter()
            .any(|(key, depth)| progress.chain_depths.get(&key).is_some_and(|before| depth > *before));
        if longer {
            world.find(Law::Green, format!("the run of VM {vm} is green, and the host still merges"));
        }
    }
    if world.observer.refresh().is_err() || !listed(world).contains(&report.point.id) {
        world.find(Law::Green, "the run is green, and its point is not listed".into());
    }
    if has_open_intent(world, vm) {
        world.find(Law::Green, "the run is green, and its journal is open".into());
    }
    if !disturbed && !world.model().is_broken_for(vm) {
        check_leftovers_as(world, vm, Law::Green, true);
    }
}

/// Nothing of ours is left on the host but the reference point of the newest point.
pub(crate) fn check_leftovers(world: &World, vm: usize, after_success: bool) {
    world.count("judged law 5");
    check_leftovers_as(world, vm, Law::Recovery, after_success);
}

fn check_leftovers_as(world: &World, vm: usize, law: Law, after_success: bool) {
    let (id, lab) = world.id_and_lab(vm);
    let (foreign_checkpoints, foreign_points, checkpoints) = {
        let model = world.model();
        let vm = &model.vms[vm];
        (vm.foreign_checkpoints.clone(), vm.foreign_reference_points.clone(), vm.checkpoint_ids())
    };
    let Ok((mut user, recovery)) = lab.checkpoints(&id) else { return };
    user.sort();
    if recovery != foreign_checkpoints {
        let what = format!("recovery checkpoints {recovery:?}, of which foreign {foreign_checkpoints:?}");
        world.find(law, what);
    }
    if user != checkpoints {
        world.find(Law::Recovery, format!("user checkpoints {user:?} instead of {checkpoints:?}"));
    }
    let points = lab.reference_points(&id).unwrap_or_default();
    if let Some(gone) = foreign_points.iter().find(|point| !points.contains(point)) {
        world.find(Law::Recovery, format!("the foreign reference point {gone} is gone"));
    }
    let ours = points.iter().filter(|point| !foreign_points.contains(point)).count();
    if ours > 1 {
        world.find(law, format!("{ours} reference points of ours"));
    }
    if after_success && lab.is_at_rest(&id).unwrap_or(false) && foreign_checkpoints.is_empty() {
        // The host's own, of another VM, and as long as the fault lasts.
        let is_of_a_fault = world.model().faults.iter().any(|(_, fault)| matches!(fault, HostFault::LeavesFile));
        let is_of_checkpoints = |file: &String| {
            (file.contains(".avhdx") || file.contains(r"\Snapshots\"))
                && !(is_of_a_fault && file.ends_with("-AutoRecovery.avhdx"))
        };
        let strays: Vec<String> = lab.stray_files().unwrap_or_default().into_iter().filter(is_of_checkpoints).collect();
        if !strays.is_empty() {
            world.find(law, format!("files are left over: {strays:?}"));
        }
    }
}

fn check_cost(world: &World, vm: usize, frozen: &Frozen, report: &VmReport, cost: Option<Cost>, excused: bool) {
    let segment = if world.setup.long_segments { 512 << 10 } else { 256 << 10 };
    let granularity = 1_u64 << world.setup.tracking.granularity;
    let (mut touched, mut audited, mut all_incremental) = (0, 0, true);
    for disk in &report.description.disks {
        let key = key_of_disk(disk);
        let Some(now) = frozen.disks.iter().find(|one| one.key == key) else { return };
        match &disk.read {
            ReadMode::Full { reason } => {
                all_incremental = false;
                let model = world.model();
                let base = model.live_points(vm).last();
                let proven = base.is_some_and(|base| {
                    base.frozen.host == frozen.host
                        && base.frozen.disks.iter().any(|one| one.key == key)
                        && base.frozen.user_checkpoints == frozen.user_checkpoints
                        && now.broken_at <= base.frozen.event
                        && now.reverts.iter().all(|&(_, reverted)| reverted <= base.frozen.event)
                        && !base.doubtful.contains(&key)
                });
                drop(model);
                if proven && !excused {
                    world.find(Law::Cost, format!("{key} was read in full ({reason}) without need"));
                }
            }
            ReadMode::Incremental { base } => {
                let model = world.model();
                let own = model.point(base).map(|base| base.frozen.event);
                let older = model.tracked_since.get(&(base.clone(), key.clone())).copied();
                drop(model);
                let Some(base) = older.or(own) else { return };
                let pieces = now.pieces_touched_after(base, granularity, segment);
                if disk.read_bytes > pieces * segment && !world.setup.tracking.superset {
                    let what = format!("{key}: {} bytes read for {pieces} segments", disk.read_bytes);
                    world.find(Law::Cost, what);
                }
                if disk.audit_bytes > AUDIT_SEGMENTS * segment {
                    world.find(Law::Cost, format!("{key}: {} bytes audited", disk.audit_bytes));
                }
                touched += pieces * segment;
                audited += disk.audit_bytes;
            }
        }
    }
    let Some(cost) = cost.filter(|_| all_incremental && !world.setup.tracking.superset) else { return };
    world.count("judged law 8");
    if cost.read_bytes > touched + audited {
        let what = format!("{} bytes of disks read, {touched} touched, {audited} audited", cost.read_bytes);
        world.find(Law::Cost, what);
    }
    let bound = touched + touched / 16 + STORED_ONCE + STORED_PER_DISK * frozen.disks.len() as u64;
    if cost.stored_bytes > bound {
        world.find(Law::Cost, format!("{} bytes stored for {touched} touched", cost.stored_bytes));
    }
}

/// A run that says that it made none.
pub(crate) fn check_failure(world: &World, vm: usize, run: &Run, progress: &RunInProgress, error: &BackupError) {
    let (only_for_a_while, broken) = {
        let model = world.model();
        // One read may meet several of them: together they fail it less than five times.
        let failures = |fault: &HostFault| match fault {
            HostFault::Unreadable { times: times @ 1..=4, .. } => u32::from(*times),
            _ => u32::MAX,
        };
        let failed = model.faults.iter().map(|(_, fault)| failures(fault)).fold(0, u32::saturating_add);
        ((1..=4).contains(&failed), model.is_broken_for(vm))
    };
    let calm_but_for_faults = run.crash.is_none()
        && run.cancel.is_none()
        && run.store.is_empty()
        && run.meanwhile.is_empty()
        && !progress.disturbed
        && world.model().clock_offset_s.abs() <= 250;
    if only_for_a_while && calm_but_for_faults && matches!(error, BackupError::SourceRead { .. }) {
        world.count("judged law 3");
        world.find(Law::Unreadable, format!("given up before the fifth try: {}", chain(error)));
    }
    if !broken && calm_but_for_faults {
        world.find(Law::Progress, format!("failed with nothing wrong: {}", chain(error)));
    }
}

/// The end of every story: what is broken is mended, and everything must be well with one more run of each VM.
pub(crate) fn check_end(world: &World) {
    world.mend();
    world.restart_agent();
    world.wait(Duration::from_secs(120));
    for vm in 0..world.vm_count() {
        let (id, lab) = world.id_and_lab(vm);
        let contents: Vec<_> = world.model().vms[vm].disks.iter().map(|disk| disk.content.clone()).collect();
        for (disk, content) in contents.iter().enumerate() {
            assert!(guest_disk(&lab, &id, disk) == **content, "the model of VM {vm}, disk {disk} is wrong");
        }
        world.back_up(vm, &Run::default());
        world.wait(Duration::from_secs(60));
        check_leftovers(world, vm, true);
        if has_open_intent(world, vm) {
            world.find(Law::Recovery, format!("the journal of {id} is still open"));
        }
    }
    check_listing(world);
    let points: Vec<String> =
        world.model().points.iter().filter(|point| !point.deleted).map(|point| point.id.clone()).collect();
    for id in &points {
        check_bytes(world, id, false);
    }
    let Some(newest) = points.last().and_then(|id| find_point(world, id)) else { return };
    match verify_point(&world.observer, &newest, VerifyLevel::Full, &Silent, &Cancel::default()) {
        Ok(report) if report.damage.is_empty() => {}
        Ok(report) => world.find(Law::Complete, format!("the newest point is damaged: {:?}", report.damage)),
        Err(error) => world.find(Law::Progress, format!("the newest point cannot be verified: {}", chain(&error))),
    }
}

fn key_of_disk(disk: &PointDisk) -> String {
    disk.chain.last().map(|file| file.name.to_lowercase()).unwrap_or_default()
}
