//! The host's process dies at every change of its folder, one after another; the next one goes on.

mod support;

use std::sync::Arc;

use hyperv::seam::Instance;
use hyperv_sim::{LabError, LabHost, LabOptions};
use support::{Client, MIB, changes, host_with, read_all, strings};

const SIZE: u64 = 3 * MIB;
const SECTOR: usize = 512;

/// What the guest has, and had at each freeze.
struct Seen {
    content: Vec<u8>,
    /// A write that may or may not have happened.
    uncertain: Option<Vec<u8>>,
    frozen: Vec<Vec<u8>>,
}

/// Two backups, with guest writes everywhere between; ends early when the host dies.
fn script(lab: &Arc<LabHost>, seen: &mut Seen) -> Option<()> {
    let client = Client::new(lab);
    let mut last: Option<Instance> = None;
    for round in 0..2_u8 {
        write(lab, seen, u64::from(round) * MIB + 700, round + 1)?;
        seen.frozen.push(seen.content.clone());
        let output = alive(client.try_start())?;
        let checkpoint = client.try_finish(&output, "Msvm_VirtualSystemSettingData")?;
        write(lab, seen, u64::from(round) * 4096 + 2 * MIB, round + 11)?;
        let output = alive(client.on_checkpoint("ConvertToReferencePoint", &checkpoint))?;
        let point = client.try_finish(&output, "Msvm_VirtualSystemReferencePoint")?;
        write(lab, seen, u64::from(round) * 8192 + MIB / 2, round + 21)?;
        for _ in 0..20 {
            client.seam.clock.sleep(std::time::Duration::from_secs(1));
            if alive(lab.is_at_rest("web"))? {
                break;
            }
        }
        if let Some(old) = last.replace(point) {
            let reference = hyperv::seam::CimValue::Reference(old.path.unwrap());
            let service = client.try_service("Msvm_VirtualSystemReferencePointService")?;
            let output =
                alive(client.call(&service, "DestroyReferencePoint", &[("AffectedReferencePoint", reference)]))?;
            client.try_finish(&output, "Msvm_ComputerSystem")?;
        }
    }
    Some(())
}

fn write(lab: &LabHost, seen: &mut Seen, at: u64, value: u8) -> Option<()> {
    let mut after = seen.content.clone();
    after[at as usize..at as usize + 5000].fill(value);
    match lab.guest_write_at("web", 0, at, &[value; 5000]) {
        Ok(()) => {
            seen.content = after;
            Some(())
        }
        Err(LabError::Crashed(_)) => {
            seen.uncertain = Some(after);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// The value, or `None` once the host is dead.
fn alive<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) if e.to_string().contains("died") => None,
        Err(e) => panic!("{e}"),
    }
}

impl Client {
    fn try_service(&self, class: &str) -> Option<hyperv::seam::ObjectPath> {
        let wql = format!("SELECT * FROM {class}");
        alive(self.seam.wmi.query(hyperv::seam::Namespace::Virtualization, &wql))?.remove(0).path
    }

    fn try_start(&self) -> Result<hyperv::seam::MethodOutput, hyperv::seam::WmiError> {
        use hyperv::seam::{CimValue, Namespace};
        let query = |wql: &str| self.seam.wmi.query(Namespace::Virtualization, wql);
        let vm = query("SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'web'")?.remove(0).path.unwrap();
        let service = query("SELECT * FROM Msvm_VirtualSystemSnapshotService")?.remove(0).path.unwrap();
        self.call(
            &service,
            "CreateSnapshot",
            &[
                ("AffectedSystem", CimValue::Reference(vm)),
                ("SnapshotSettings", CimValue::String(support::snapshot_settings(2))),
                ("SnapshotType", CimValue::Uint16(32768)),
            ],
        )
    }

    fn try_finish(&self, output: &hyperv::seam::MethodOutput, class: &str) -> Option<Instance> {
        let hyperv::seam::CimValue::Reference(job) = output.get("Job") else { panic!("{output:?}") };
        loop {
            let state = alive(self.get(job))?.get("JobState").as_u64().unwrap();
            if state >= 7 {
                assert_eq!(state, 7);
                break;
            }
            self.seam.clock.sleep(std::time::Duration::from_millis(500));
        }
        let wql = format!("ASSOCIATORS OF {{{job}}} WHERE AssocClass = Msvm_AffectedJobElement ResultClass = {class}");
        Some(alive(self.seam.wmi.query(hyperv::seam::Namespace::Virtualization, &wql))?.remove(0))
    }
}

/// Everything that must hold on a host that was left at any instant.
fn check(lab: &Arc<LabHost>, seen: &mut Seen, case: &str) {
    let client = Client::new(lab);
    // Whatever job was under way goes on by itself.
    client.seam.clock.sleep(std::time::Duration::from_secs(600));
    let content = read_guest(lab);
    for (at, sector) in content.chunks(SECTOR).enumerate() {
        let range = at * SECTOR..at * SECTOR + sector.len();
        let fits = sector == &seen.content[range.clone()]
            || seen.uncertain.as_ref().is_some_and(|after| sector == &after[range]);
        assert!(fits, "{case}: sector {at} of the guest");
    }
    seen.content = content;

    let leftovers =
        client.query("SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemType LIKE '%Recovery'");
    assert!(leftovers.len() <= 1, "{case}");
    for checkpoint in &leftovers {
        let disk = client.open(&client.files(checkpoint)[0]);
        assert!(read_all(disk.as_ref()) == *seen.frozen.last().unwrap(), "{case}: the frozen disk");
        drop(disk);
        client.destroy(checkpoint);
    }
    client.settle(lab, "web");
    assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 1, "{case}");
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new(), "{case}");
    assert!(read_guest(lab) == seen.content, "{case}: after the merge");

    let points = client.query("SELECT * FROM Msvm_VirtualSystemReferencePoint");
    lab.guest_write_at("web", 0, SIZE - 9, b"the last").unwrap();
    let checkpoint = client.checkpoint("web");
    let disk = client.open(&client.files(&checkpoint)[0]);
    let now = read_all(disk.as_ref());
    assert!(now == read_guest(lab), "{case}");
    for point in &points {
        let id = &strings(point, "ResilientChangeTrackingIdentifiers")[0];
        let sequence = usize::from_str_radix(id.rsplit(':').next().unwrap(), 16).unwrap();
        // The first backup's marker is number 1; a marker of a job that was done again has a later number.
        let frozen = if sequence == 1 { &seen.frozen[0] } else { seen.frozen.last().unwrap() };
        let reported = changes(disk.as_ref(), id, 4).unwrap_or_else(|code| panic!("{case}: {id}: {code:#x}"));
        for at in (0..now.len()).filter(|&at| now[at] != frozen[at]) {
            let covered =
                reported.iter().any(|r| (r.offset_bytes..r.offset_bytes + r.len_bytes).contains(&(at as u64)));
            assert!(covered, "{case}: byte {at} changed since {id}, which {reported:?} does not say");
        }
    }
}

fn read_guest(lab: &LabHost) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    vhdx::VirtualDisk::read_exact_at(&lab.open_guest_disk("web", 0).unwrap(), &mut content, 0).unwrap();
    content
}

#[test]
fn a_host_that_dies_at_any_write_goes_on() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let next = AtomicU64::new(0);
    // The number of writes of the whole script, known when it was carried through for the first time.
    let all = AtomicU64::new(u64::MAX);
    let stop_at_each = || {
        loop {
            let stop_at = next.fetch_add(1, Ordering::SeqCst);
            if stop_at > all.load(Ordering::SeqCst) {
                return;
            }
            let (dir, lab) = host_with(LabOptions::default(), &[SIZE]);
            let mut seen = Seen { content: vec![0; SIZE as usize], uncertain: None, frozen: Vec::new() };
            lab.crash_after_writes(stop_at);
            if script(&lab, &mut seen).is_some() {
                all.fetch_min(stop_at, Ordering::SeqCst);
            }
            drop(lab);
            let lab = LabHost::open(dir.path().join("lab")).unwrap();
            check(&lab, &mut seen, &format!("death at write {stop_at}"));
        }
    };
    // Most of the time is waiting for the disk.
    std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(stop_at_each))));
    let all = all.into_inner();
    assert!((60..1000).contains(&all), "the script writes {all} times");
}
