//! A guest that writes by itself while the host makes and merges checkpoints under it.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperv_sim::{AttachedDisk, DiskSource, GuestAgent, LabHost, LabOptions, VmOptions};
use support::{Client, MIB, changes, host_with, read_all, strings, units};

const SIZE: u64 = 16 * MIB;
const UNIT: u64 = 64 << 10;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * u128::from(limit)) >> 64) as u64
    }
}

fn live_host() -> (tempfile::TempDir, Arc<LabHost>) {
    host_with(LabOptions { job_ms: 5, merge_ms: 5, merge_retry_ms: 10, ..LabOptions::real_time() }, &[SIZE])
}

fn content(lab: &LabHost) -> Vec<u8> {
    use vhdx::VirtualDisk as _;
    let mut content = vec![0; SIZE as usize];
    lab.open_guest_disk("web", 0).unwrap().read_exact_at(&mut content, 0).unwrap();
    content
}

/// Random reads, writes, zeroings and flushes until told to stop; gives what the disk must read as.
fn live(disk: &AttachedDisk, seed: u64, stop: &AtomicBool) -> Vec<u8> {
    let mut model = vec![0; SIZE as usize];
    let mut random = Random(seed);
    let mut rounds = 0;
    while !stop.load(Ordering::SeqCst) || rounds < 50 {
        rounds += 1;
        let len = 512 * (1 + random.below(200));
        let offset = 512 * random.below((SIZE - len) / 512 + 1);
        let range = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0..=3 => {
                let fill = 1 + random.below(255) as u8;
                disk.write(vec![fill; len as usize], offset).unwrap();
                model[range].fill(fill);
            }
            4 => {
                disk.zero(offset..offset + len).unwrap();
                model[range].fill(0);
            }
            5 => disk.flush().unwrap(),
            _ => {
                let mut seen = vec![0; len as usize];
                disk.read(&mut seen, offset).unwrap();
                assert!(seen == model[range], "seed {seed}, round {rounds}: {len} bytes at {offset}");
            }
        }
    }
    model
}

#[test]
fn a_guest_does_not_notice_checkpoints_and_merges() {
    let (_dir, lab) = live_host();
    let guest = lab.attach_guest("web", None).unwrap();
    let disk = guest.disks()[0].clone();
    assert_eq!(disk.size_bytes(), SIZE);
    let stop = AtomicBool::new(false);
    let model = std::thread::scope(|scope| {
        let living = scope.spawn(|| live(&disk, 1, &stop));
        // The administrator sits in another process.
        let other = LabHost::open(lab.folder()).unwrap();
        let client = Client::new(&other);
        for _ in 0..6 {
            let id = other.create_user_checkpoint("web").unwrap();
            assert_eq!(other.disk_chain("web", 0).unwrap().len(), 2, "the guest goes on in a child");
            std::thread::sleep(Duration::from_millis(20));
            other.delete_checkpoint("web", &id).unwrap();
            client.settle(&other, "web");
            assert_eq!(other.disk_chain("web", 0).unwrap().len(), 1, "merged while the guest writes");
        }
        stop.store(true, Ordering::SeqCst);
        living.join().unwrap()
    });
    drop(guest);
    assert!(content(&lab) == model);
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
}

#[test]
fn a_checkpoint_freezes_an_instant_and_tracking_has_what_came_after() {
    let (_dir, lab) = live_host();
    let client = Client::new(&lab);
    let guest = lab.attach_guest("web", None).unwrap();
    let disk = &guest.disks()[0];
    disk.write(vec![1; 1 << 20], 0).unwrap();
    let first = client.checkpoint("web");
    let id = strings(&client.convert(&first), "ResilientChangeTrackingIdentifiers").remove(0);
    client.settle(&lab, "web");

    let mut expected = content(&lab);
    let writes = [(0_u64, 512_u64), (5 * UNIT - 512, 1024), (3 * MIB, 3 * UNIT)];
    for (offset, len) in writes {
        disk.write(vec![2; len as usize], offset).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(2);
    }
    disk.zero(8 * MIB..8 * MIB + 512).unwrap();
    let second = client.checkpoint("web");
    // What comes now is neither in the frozen file nor among its changes.
    disk.write(vec![3; 1 << 20], 12 * MIB).unwrap();
    {
        let frozen = client.open(&client.files(&second)[0]);
        assert!(read_all(&*frozen) == expected, "the frozen file is the instant of the checkpoint");
        let changed = units(&changes(&*frozen, &id, 100).unwrap(), UNIT);
        let touched = [0, 4, 5, 48, 49, 50, 8 * MIB / UNIT];
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), touched);
    }
    client.destroy(&second);
    client.settle(&lab, "web");
    expected[12 << 20..13 << 20].fill(3);
    assert!(content(&lab) == expected);
}

#[test]
fn guests_are_refused_where_there_is_no_place_for_them() {
    let (_dir, lab) = live_host();
    lab.add_vm("off", &[DiskSource::Empty { size_bytes: MIB }], VmOptions { running: false, ..VmOptions::default() })
        .unwrap();
    assert!(lab.attach_guest("off", None).is_err(), "the VM does not run");
    let guest = lab.attach_guest("web", None).unwrap();
    assert!(LabHost::open(lab.folder()).unwrap().attach_guest("web", None).is_err(), "one guest per VM");
    let disk = guest.disks()[0].clone();
    let beyond = disk.write(vec![0; 1024], SIZE - 512).unwrap_err();
    assert!(beyond.to_string().contains("of a disk of"), "{beyond}");
    lab.stop_vm("web").unwrap();
    assert!(disk.write(vec![1; 512], 0).is_err(), "a VM that is off does not write");
    lab.start_vm("web").unwrap();
    disk.write(vec![1; 512], 0).unwrap();
    drop(guest);
    assert!(disk.write(vec![2; 512], 0).is_err(), "detached");
    assert_eq!(content(&lab)[0], 1);
    lab.attach_guest("web", None).unwrap();
    let (_dir, virtual_time) = host_with(LabOptions::default(), &[MIB]);
    let (agent, _) = Script::boxed(&virtual_time, None);
    assert!(virtual_time.attach_guest("web", Some(agent)).is_err(), "a guest cannot freeze in no time");
    virtual_time.attach_guest("web", None).unwrap();
}

/// An agent that writes once more while it freezes, as a guest does.
struct Script {
    disk: Arc<Mutex<Option<AttachedDisk>>>,
    lab: Arc<LabHost>,
    calls: Sender<(&'static str, usize)>,
    failure: Option<&'static str>,
}

impl Script {
    fn boxed(lab: &Arc<LabHost>, failure: Option<&'static str>) -> (Box<dyn GuestAgent>, Scripted) {
        let (calls, told) = mpsc::channel();
        let disk = Arc::new(Mutex::new(None));
        (Box::new(Self { disk: disk.clone(), lab: lab.clone(), calls, failure }), Scripted { disk, told })
    }

    fn tell(&self, call: &'static str) {
        let recovery = self.lab.checkpoints("web").unwrap().1;
        let _ = self.calls.send((call, recovery.len()));
    }
}

struct Scripted {
    disk: Arc<Mutex<Option<AttachedDisk>>>,
    told: mpsc::Receiver<(&'static str, usize)>,
}

impl GuestAgent for Script {
    fn freeze(&mut self) -> Result<(), String> {
        self.tell("freeze");
        if let Some(failure) = self.failure {
            return Err(failure.into());
        }
        let disk = self.disk.lock().unwrap().clone().unwrap();
        disk.write(vec![9; 512], MIB).and_then(|()| disk.flush()).map_err(|e| e.to_string())
    }

    fn thaw(&mut self) -> Result<(), String> {
        self.tell("thaw");
        Ok(())
    }
}

#[test]
fn level_1_freezes_the_guest_first_and_level_2_does_not() {
    let (_dir, lab) = live_host();
    let (agent, scripted) = Script::boxed(&lab, None);
    let guest = lab.attach_guest("web", Some(agent)).unwrap();
    *scripted.disk.lock().unwrap() = Some(guest.disks()[0].clone());
    let other = LabHost::open(lab.folder()).unwrap();
    let client = Client::new(&other);

    let crash_consistent = client.checkpoint("web");
    assert!(scripted.told.try_recv().is_err(), "level 2 asks nobody");
    client.destroy(&crash_consistent);
    client.settle(&other, "web");

    let (job, last) = client.wait(&client.start_checkpoint("web", 1));
    assert_eq!(last.get("JobState").as_u64(), Some(7), "{last:?}");
    let checkpoint = client.associated(&job, "Msvm_AffectedJobElement", "Msvm_VirtualSystemSettingData").remove(0);
    let within = Duration::from_secs(10);
    assert_eq!(scripted.told.recv_timeout(within).unwrap(), ("freeze", 0), "before there is a checkpoint");
    assert_eq!(scripted.told.recv_timeout(within).unwrap(), ("thaw", 1), "after it was made");
    let frozen = client.open(&client.files(&checkpoint)[0]);
    assert_eq!(read_all(&*frozen)[MIB as usize], 9, "what the guest wrote while it froze is in it");
    drop(frozen);
    client.destroy(&checkpoint);
    client.settle(&other, "web");
    drop(guest);
    assert_eq!(scripted.told.try_iter().count(), 0, "nothing is left to thaw");
}

#[test]
fn guests_that_cannot_freeze_fail_the_job_and_are_left_as_they_were() {
    let (_dir, lab) = live_host();
    let client = Client::new(&lab);
    let (agent, scripted) = Script::boxed(&lab, Some("a file system is busy"));
    let guest = lab.attach_guest("web", Some(agent)).unwrap();
    for _ in 0..2 {
        let (_, last) = client.wait(&client.start_checkpoint("web", 1));
        assert_eq!(last.get("JobState").as_u64(), Some(10), "{last:?}");
        let text = last.get("ErrorDescription").as_str().unwrap().to_owned();
        assert!(text.contains("a file system is busy") && text.contains("0x800423F4"), "{text}");
        assert_eq!(scripted.told.try_iter().collect::<Vec<_>>(), [("freeze", 0)], "and no thaw");
    }
    assert_eq!(lab.checkpoints("web").unwrap(), (vec![], vec![]));
    drop(guest);
    let (_, last) = client.wait(&client.start_checkpoint("web", 1));
    assert_eq!(last.get("JobState").as_u64(), Some(7), "without an attached guest the scripted one answers");
}
