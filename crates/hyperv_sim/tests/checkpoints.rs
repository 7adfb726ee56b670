//! Checkpoints, merges and change tracking, against plain bytes in memory.

mod support;

use std::collections::BTreeSet;

use hyperv::seam::{CimValue, Namespace};
use hyperv_sim::{DiskSource, Fault, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use support::{Client, MIB, changes, host_with, read_all, strings, units};

/// A guest with a `Vec<u8>` for each disk, and a note of every byte range it wrote.
struct Model {
    disks: Vec<Vec<u8>>,
    written: Vec<Vec<(u64, u64)>>,
    random: u64,
}

impl Model {
    fn new(sizes: &[u64], seed: u64) -> Self {
        let disks = sizes.iter().map(|&size| vec![0; size as usize]).collect();
        Self { disks, written: vec![Vec::new(); sizes.len()], random: seed }
    }

    fn next(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX generator; the high half is good enough here.
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % limit
    }

    fn write(&mut self, lab: &LabHost, times: u64) {
        for _ in 0..times {
            let disk = self.next(self.disks.len() as u64) as usize;
            let size = self.disks[disk].len() as u64;
            let offset = self.next(size);
            let magnitude = 1 + self.next(18);
            let len = (1 + self.next(1 << magnitude)).min(size - offset);
            let range = offset as usize..(offset + len) as usize;
            if self.next(5) == 0 {
                lab.guest_zero_at("web", disk, offset, len).unwrap();
                self.disks[disk][range].fill(0);
            } else {
                let data: Vec<u8> = (0..len).map(|_| self.next(256) as u8).collect();
                lab.guest_write_at("web", disk, offset, &data).unwrap();
                self.disks[disk][range].copy_from_slice(&data);
            }
            self.written[disk].push((offset, len));
        }
    }

    fn check(&self, lab: &LabHost, case: &str) {
        for (index, model) in self.disks.iter().enumerate() {
            let disk = lab.open_guest_disk("web", index).unwrap();
            let mut content = vec![1; model.len()];
            vhdx::VirtualDisk::read_exact_at(&disk, &mut content, 0).unwrap();
            assert!(content == *model, "{case}: disk {index} differs");
        }
    }
}

#[test]
fn guests_keep_their_bytes_and_frozen_files_theirs() {
    let sizes = [9 * MIB + 512, 4 * MIB];
    for granularity_bytes in [512, 64 << 10, MIB] {
        let (_dir, lab) = host_with(LabOptions { granularity_bytes, ..LabOptions::default() }, &sizes);
        let client = Client::new(&lab);
        let mut model = Model::new(&sizes, granularity_bytes + 1);
        let mut last_ids: Vec<Option<String>> = vec![None; sizes.len()];
        let mut points = Vec::new();

        for round in 0..6 {
            let case = format!("granularity {granularity_bytes}, round {round}");
            model.write(&lab, 12);
            model.check(&lab, &case);

            let output = client.start_checkpoint("web", 2);
            model.write(&lab, 4);
            let (job, last) = client.wait(&output);
            assert_eq!(last.get("JobState").as_u64(), Some(7), "{case}: {last:?}");
            let found = client.associated(&job, "Msvm_AffectedJobElement", "Msvm_VirtualSystemSettingData");
            let (frozen, written) = (model.disks.clone(), std::mem::take(&mut model.written));
            model.written = vec![Vec::new(); sizes.len()];
            model.write(&lab, 12);
            model.check(&lab, &case);

            let files = client.files(&found[0]);
            for (index, file) in files.iter().enumerate() {
                let disk = client.open(file);
                assert!(read_all(disk.as_ref()) == frozen[index], "{case}: frozen disk {index} differs");
                let state = disk.tracking_state().unwrap();
                assert!(state.enabled && !state.newer_changes && !state.most_recent_id.is_empty(), "{case}: {state:?}");
                assert_eq!(
                    changes(disk.as_ref(), &state.most_recent_id, 3),
                    Ok(Vec::new()),
                    "{case}: nothing is newer"
                );
                if let Some(id) = &last_ids[index] {
                    let reported = units(&changes(disk.as_ref(), id, 2).unwrap(), granularity_bytes);
                    let true_units: BTreeSet<u64> = written[index]
                        .iter()
                        .flat_map(|(at, len)| at / granularity_bytes..(at + len).div_ceil(granularity_bytes))
                        .collect();
                    assert_eq!(reported, true_units, "{case}: changes of disk {index}");
                }
            }

            // Every third checkpoint is thrown away: then the ids of the last reference point still hold.
            if round % 3 == 2 {
                client.destroy(&found[0]);
                for (written, mut before) in model.written.iter_mut().zip(written) {
                    before.append(written);
                    *written = before;
                }
            } else {
                let point = client.convert(&found[0]);
                assert_eq!(point.get("ReferencePointType").as_u64(), Some(2));
                last_ids = strings(&point, "ResilientChangeTrackingIdentifiers").into_iter().map(Some).collect();
                assert_eq!(last_ids.len(), 2);
                points.push(point);
            }
            model.write(&lab, 4);
            client.settle(&lab, "web");
            model.check(&lab, &format!("{case}, merged"));
            for disk in 0..sizes.len() {
                assert_eq!(lab.disk_chain("web", disk).unwrap().len(), 1, "{case}: merged");
            }
            assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new(), "{case}");
        }

        // Older ids answer as long as their reference points stand, and with no less.
        let checkpoint = client.checkpoint("web");
        let disk = client.open(&client.files(&checkpoint)[0]);
        let oldest = &strings(&points[0], "ResilientChangeTrackingIdentifiers")[0];
        let newest = last_ids[0].as_ref().unwrap();
        let since_oldest = units(&changes(disk.as_ref(), oldest, 7).unwrap(), granularity_bytes);
        assert!(since_oldest.is_superset(&units(&changes(disk.as_ref(), newest, 7).unwrap(), granularity_bytes)));
        let middle = &strings(&points[1], "ResilientChangeTrackingIdentifiers")[0];
        assert_eq!(client.destroy_reference_point(&points[1]).get("JobState").as_u64(), Some(7));
        assert_eq!(changes(disk.as_ref(), middle, 7), Err(0xC03A_0030), "its reference point is gone");
        let still = units(&changes(disk.as_ref(), oldest, 7).unwrap(), granularity_bytes);
        assert_eq!(still, since_oldest, "what was written after a dropped marker counts for the one before");
        assert_eq!(client.destroy_reference_point(&points[0]).get("JobState").as_u64(), Some(7));
        assert_eq!(changes(disk.as_ref(), oldest, 7), Err(0xC03A_0030), "its reference point is gone");
        assert!(changes(disk.as_ref(), newest, 7).is_ok());
    }
}

#[test]
fn what_is_open_cannot_be_converted_and_is_not_merged() {
    let (_dir, lab) = host_with(LabOptions::default(), &[4 * MIB]);
    let client = Client::new(&lab);
    lab.guest_write_at("web", 0, 0, b"before").unwrap();
    let checkpoint = client.checkpoint("web");
    let disk = client.open(&client.files(&checkpoint)[0]);
    lab.guest_write_at("web", 0, 0, b"after!").unwrap();

    let (path, job) = client.wait(&client.on_checkpoint("ConvertToReferencePoint", &checkpoint).unwrap());
    assert_eq!(job.get("JobState").as_u64(), Some(10));
    assert!(job.get("ErrorDescription").as_str().unwrap().contains("(0x80070020)"));
    let errors = client.call(&path, "GetErrorEx", &[]).unwrap();
    assert!(errors.get("Errors").as_array().unwrap()[0].as_str().unwrap().contains("(0x80070020)"));
    assert_eq!(lab.reference_points("web").unwrap().len(), 0);

    // Destroying does not ask; the merge waits.
    client.destroy(&checkpoint);
    let status = |client: &Client| client.vm("web").get("OperationalStatus").as_array().unwrap().len();
    assert_eq!(status(&client), 2, "merging");
    client.seam.clock.sleep(std::time::Duration::from_secs(60));
    assert_eq!(status(&client), 1, "given up for now");
    assert!(lab.events().unwrap().iter().any(|event| event.id == 19100));
    assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 2);
    assert_eq!(&read_all(disk.as_ref())[..6], b"before");

    // The chain may grow meanwhile, and comes down to one file when the handle is gone.
    let second = client.checkpoint("web");
    client.destroy(&second);
    assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 3);
    drop(disk);
    client.settle(&lab, "web");
    assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 1);
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
    let disk = lab.open_guest_disk("web", 0).unwrap();
    let mut content = [0; 6];
    vhdx::VirtualDisk::read_exact_at(&disk, &mut content, 0).unwrap();
    assert_eq!(&content, b"after!");
}

#[test]
fn user_checkpoints_lengthen_the_chain_and_tracking_goes_on_below_them() {
    let (_dir, lab) = host_with(LabOptions::default(), &[8 * MIB]);
    let client = Client::new(&lab);
    let point = client.convert(&client.checkpoint("web"));
    client.settle(&lab, "web");
    let id = &strings(&point, "ResilientChangeTrackingIdentifiers")[0];

    lab.guest_write_at("web", 0, MIB, &[1; 100]).unwrap();
    let first = lab.create_user_checkpoint("web").unwrap();
    lab.guest_write_at("web", 0, 3 * MIB, &[2; 100]).unwrap();
    let second = lab.create_user_checkpoint("web").unwrap();
    lab.guest_write_at("web", 0, 5 * MIB, &[3; 100]).unwrap();
    assert_eq!(lab.checkpoints("web").unwrap(), (vec![first.clone(), second.clone()], vec![]));

    let checkpoint = client.checkpoint("web");
    let frozen = client.files(&checkpoint)[0].clone();
    assert!(frozen.ends_with(".avhdx"), "{frozen}");
    let disk = client.open(&frozen);
    let reported: Vec<u64> = changes(disk.as_ref(), id, 10).unwrap().iter().map(|range| range.offset_bytes).collect();
    assert_eq!(reported, [MIB, 3 * MIB, 5 * MIB]);
    let content = read_all(disk.as_ref());
    for (at, value) in [(MIB, 1), (3 * MIB, 2), (5 * MIB, 3)] {
        assert_eq!(content[at as usize], value);
    }
    drop(disk);
    client.destroy(&checkpoint);
    client.settle(&lab, "web");
    assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 3);

    // The older one first: its merge waits for the younger.
    lab.delete_checkpoint("web", &first).unwrap();
    client.seam.clock.sleep(std::time::Duration::from_secs(60));
    lab.delete_checkpoint("web", &second).unwrap();
    client.settle(&lab, "web");
    assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 1);
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
    let checkpoint = client.checkpoint("web");
    let disk = client.open(&client.files(&checkpoint)[0]);
    assert_eq!(units(&changes(disk.as_ref(), id, 10).unwrap(), MIB), [1, 3, 5].into());
    assert!(read_all(disk.as_ref()) == content);
}

#[test]
fn tracking_errors_say_what_is_wrong() {
    let (_dir, lab) = host_with(LabOptions::default(), &[4 * MIB]);
    let client = Client::new(&lab);
    lab.stop_vm("web").unwrap();
    let leaf = lab.disk_chain("web", 0).unwrap()[0].clone();
    assert_eq!(changes(client.open(&leaf).as_ref(), "rctX:x", 5), Err(0xC03A_002A), "not tracked yet");
    lab.start_vm("web").unwrap();

    let point = client.convert(&client.checkpoint("web"));
    client.settle(&lab, "web");
    let id = strings(&point, "ResilientChangeTrackingIdentifiers").remove(0);
    let checkpoint = client.checkpoint("web");
    let frozen = client.files(&checkpoint)[0].clone();
    assert_eq!(frozen, leaf);
    let other_guid = format!("rctX:00000000{}", &id[13..]);
    let other_sequence = format!("{}{:08x}", &id[..id.len() - 8], 77);
    for (case, asked, code) in [
        ("malformed", "rctX:x", 0xC03A_0029),
        ("of another disk", other_guid.as_str(), 0xC03A_0029),
        ("never given out", other_sequence.as_str(), 0xC03A_0030),
    ] {
        assert_eq!(changes(client.open(&frozen).as_ref(), asked, 5), Err(code), "{case}");
    }
    for companion in [".rct", ".mrt"] {
        let file = lab.host_file(&format!("{frozen}{companion}")).unwrap();
        let saved = std::fs::read(&file).unwrap();
        for damage in [Some(&b"not a record"[..]), None] {
            match damage {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            assert_eq!(changes(client.open(&frozen).as_ref(), &id, 5), Err(0xC03A_0030), "{companion} {damage:?}");
        }
        std::fs::write(&file, saved).unwrap();
        assert_eq!(changes(client.open(&frozen).as_ref(), &id, 5), Ok(Vec::new()), "{companion} restored");
    }

    // After a loss new changes are recorded again, but an id from before must not answer.
    std::fs::remove_file(lab.host_file(&format!("{frozen}.rct")).unwrap()).unwrap();
    client.destroy(&checkpoint);
    client.settle(&lab, "web");
    lab.guest_write_at("web", 0, 0, b"x").unwrap();
    let checkpoint = client.checkpoint("web");
    let answer = changes(client.open(&client.files(&checkpoint)[0]).as_ref(), &id, 5);
    assert!(matches!(answer, Err(0xC03A_0029 | 0xC03A_0030)), "{answer:?}");
}

#[test]
fn reads_are_checked_and_faults_strike() {
    let (_dir, lab) = host_with(LabOptions::default(), &[4 * MIB, MIB]);
    let client = Client::new(&lab);
    let leaf = lab.disk_chain("web", 0).unwrap()[0].clone();
    let code = |path: &str| client.seam.virt_disk.open_read_only(path).err().map(|e| e.code);
    assert_eq!(code(&leaf), Some(0x8007_0020), "the leaf of a running VM");
    assert!(client.seam.files.open_read(&leaf).is_err());
    assert_eq!(code(r"C:\VMs\nothing.vhdx"), Some(0x8007_0002));

    let checkpoint = client.checkpoint("web");
    let files = client.files(&checkpoint);
    let disk = client.open(&files[0].to_uppercase());
    let mut buf = vec![0; 8192];
    for (len, at, expected) in [
        (4096, 0, None),
        (512, 0, Some(87)),
        (4096, 512, Some(87)),
        (0, 0, Some(87)),
        (8192, 4 * MIB - 4096, Some(27)),
        (4096, 4 * MIB, Some(27)),
        (4096, u64::MAX - 4095, Some(87)),
    ] {
        assert_eq!(disk.read(&mut buf[..len], at).err().map(|e| e.code), expected, "{len} bytes at {at}");
    }

    let unreadable = |times| Fault::UnreadableRange {
        vm: "web".into(),
        disk: 0,
        offset_bytes: 2 * MIB,
        len_bytes: 512,
        code: 23,
        times,
    };
    lab.inject(unreadable(None)).unwrap();
    for (at, expected) in [(2 * MIB, Some(23)), (2 * MIB + 4096, None), (2 * MIB - 4096, None)] {
        assert_eq!(disk.read(&mut buf[..4096], at).err().map(|e| e.code), expected, "at {at}");
    }
    assert!(client.open(&files[1]).read(&mut buf[..4096], 0).is_ok(), "the other disk");
    lab.clear_faults().unwrap();
    lab.inject(unreadable(Some(2))).unwrap();
    let results: Vec<bool> = (0..4).map(|_| disk.read(&mut buf[..4096], 2 * MIB).is_ok()).collect();
    assert_eq!(results, [false, false, true, true]);
}

#[test]
fn application_consistency_fails_as_the_guest_makes_it_fail() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    lab.inject(Fault::JobFails {
        method: "CreateSnapshot".into(),
        consistency_level: Some(1),
        error_code: 32768,
        description: "A writer timed out. (0x800423F2)".into(),
    })
    .unwrap();
    let (path, job) = client.wait(&client.start_checkpoint("web", 1));
    assert_eq!((job.get("JobState").as_u64(), job.get("ErrorCode").as_u64()), (Some(10), Some(32768)));
    assert!(client.associated(&path, "Msvm_AffectedJobElement", "Msvm_VirtualSystemSettingData").is_empty());
    client.destroy(&client.checkpoint("web"));
    client.settle(&lab, "web");
    lab.clear_faults().unwrap();

    for (vss, state) in [
        (hyperv_sim::VssBehaviour::WriterFails, 10),
        (hyperv_sim::VssBehaviour::Disabled, 10),
        (hyperv_sim::VssBehaviour::Works, 7),
    ] {
        lab.set_vss("web", vss).unwrap();
        let (_, job) = client.wait(&client.start_checkpoint("web", 1));
        assert_eq!(job.get("JobState").as_u64(), Some(state), "{vss:?}");
        assert_eq!(lab.checkpoints("web").unwrap().1.len(), usize::from(state == 7), "{vss:?}");
    }
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
}

#[test]
fn jobs_pass_through_their_states_can_be_cancelled_and_expire() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    let output = client.start_checkpoint("web", 2);
    assert!(output.get("ResultingSnapshot").is_null());
    let CimValue::Reference(path) = output.get("Job") else { panic!() };
    let mut states = Vec::new();
    for _ in 0..30 {
        states.push(client.get(path).unwrap().get("JobState").as_u64().unwrap());
        client.seam.clock.sleep(std::time::Duration::from_millis(100));
    }
    states.dedup();
    assert_eq!(states, [3, 4, 7]);
    client.seam.clock.sleep(std::time::Duration::from_secs(296));
    assert!(client.get(path).is_ok());
    client.seam.clock.sleep(std::time::Duration::from_secs(4));
    assert_eq!(client.get(path).unwrap_err().hresult, 0x8004_1002);
    let checkpoint = client.only(
        "SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemType = 'Microsoft:Hyper-V:Snapshot:Recovery'",
    );
    client.destroy(&checkpoint);
    client.settle(&lab, "web");

    let output = client.start_checkpoint("web", 2);
    let CimValue::Reference(path) = output.get("Job") else { panic!() };
    let cancelled = client.call(path, "RequestStateChange", &[("RequestedState", CimValue::Uint16(4))]).unwrap();
    assert_eq!(cancelled.return_value, 0);
    client.seam.clock.sleep(std::time::Duration::from_secs(10));
    assert_eq!(client.get(path).unwrap().get("JobState").as_u64(), Some(8));
    assert!(lab.checkpoints("web").unwrap().1.is_empty());
    let late = client.call(path, "RequestStateChange", &[("RequestedState", CimValue::Uint16(4))]).unwrap();
    assert_eq!(late.return_value, 4097);
}

#[test]
fn answers_without_jobs_and_the_way_of_2025() {
    use hyperv_sim::{JobStyle, ReferenceOutputs};
    for outputs in [ReferenceOutputs::Filled, ReferenceOutputs::Null2025] {
        let options = LabOptions { jobs: JobStyle::Synchronous, reference_outputs: outputs, ..LabOptions::default() };
        let (_dir, lab) = host_with(options, &[MIB]);
        let client = Client::new(&lab);
        let output = client.start_checkpoint("web", 2);
        assert_eq!(output.return_value, 0);
        assert_eq!(output.get("ResultingSnapshot").is_null(), outputs == ReferenceOutputs::Null2025);
        let checkpoint =
            client.only("SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemType LIKE '%Recovery'");
        assert_eq!(client.on_checkpoint("ConvertToReferencePoint", &checkpoint).unwrap().return_value, 0);
        let point = client.only("SELECT * FROM Msvm_VirtualSystemReferencePoint");
        let id = point.get("InstanceID").as_str().unwrap();
        assert_eq!(id.contains('\\'), outputs == ReferenceOutputs::Filled, "{id}");
        let reference = CimValue::Reference(point.path.clone().unwrap());
        let service = client.service("Msvm_VirtualSystemReferencePointService");
        let answer = client.call(&service, "DestroyReferencePoint", &[("AffectedReferencePoint", reference)]);
        assert_eq!(answer.unwrap().return_value, 0);
        assert!(client.query("SELECT * FROM Msvm_VirtualSystemReferencePoint").is_empty());
    }
}

#[test]
fn old_configurations_and_stopped_machines() {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabHost::create(dir.path().join("lab")).unwrap();
    let disk = [DiskSource::Empty { size_bytes: 2 * MIB }];
    lab.add_vm("old", &disk, VmOptions { version: "5.0".into(), generation: 1, ..VmOptions::default() }).unwrap();
    lab.add_vm("off", &disk, VmOptions { running: false, ..VmOptions::default() }).unwrap();
    let client = Client::new(&lab);
    let checkpoint = client.checkpoint("old");
    let disk = client.open(&client.files(&checkpoint)[0]);
    assert!(!disk.tracking_state().unwrap().enabled);
    drop(disk);
    assert!(strings(&client.convert(&checkpoint), "ResilientChangeTrackingIdentifiers").is_empty());

    let (_, job) = client.wait(&client.start_checkpoint("off", 1));
    assert_eq!(job.get("JobState").as_u64(), Some(10), "level 1 of a stopped VM");
    assert_eq!(strings(&client.convert(&client.checkpoint("off")), "ResilientChangeTrackingIdentifiers").len(), 1);
    client.settle(&lab, "off");
    client.settle(&lab, "old");

    let held = client.open(&lab.disk_chain("off", 0).unwrap()[0]);
    assert!(lab.start_vm("off").is_err(), "its disk is open");
    drop(held);
    lab.start_vm("off").unwrap();
}

#[test]
fn scripted_writes_repeat_and_hash_what_the_guest_sees() {
    let hashes: Vec<_> = (0..2)
        .map(|_| {
            let (_dir, lab) = host_with(LabOptions::default(), &[24 * MIB, 8 * MIB]);
            [Spread::Scattered, Spread::Clustered, Spread::Sequential]
                .map(|spread| lab.guest_write("web", GuestWrites { seed: 5, mib: 3, spread }).unwrap())
        })
        .collect();
    assert_eq!(hashes[0], hashes[1]);
    assert_ne!(hashes[0][0], hashes[0][1]);
}

#[test]
fn the_provider_shows_chains_and_configuration_files() {
    let (_dir, lab) = host_with(LabOptions::default(), &[4 * MIB]);
    let client = Client::new(&lab);
    let checkpoint = client.checkpoint("web");
    let service = client.service("Msvm_ImageManagementService");
    let setting = |path: &str| {
        let parameters = [("Path", CimValue::String(path.to_owned()))];
        client.call(&service, "GetVirtualHardDiskSettingData", &parameters).unwrap()
    };
    let leaf = lab.disk_chain("web", 0).unwrap()[0].clone();
    let frozen = client.files(&checkpoint)[0].clone();
    let text = setting(&leaf).get("SettingData").as_str().unwrap().to_owned();
    let id = |text: &str| text.split("VirtualDiskId").nth(1).unwrap().split("</").next().unwrap().to_owned();
    assert!(text.contains(&format!("<VALUE>{frozen}</VALUE>")) && text.contains("<VALUE>4</VALUE>"), "{text}");
    assert_eq!(id(&text), id(setting(&frozen).get("SettingData").as_str().unwrap()), "one identity along the chain");
    assert_eq!(setting(r"C:\VMs\none.vhdx").return_value, 32779);

    let root = checkpoint.get("ConfigurationDataRoot").as_str().unwrap().to_owned();
    let file = format!("{root}\\{}", checkpoint.get("ConfigurationFile").as_str().unwrap());
    let config = client.seam.files.open_read(&file).unwrap();
    assert!(config.len_bytes().unwrap() > 4096);
    drop(config);
    let facts = client.seam.files.facts(&frozen).unwrap();
    assert!(facts.len_bytes > 0 && !facts.file_id.is_empty());
    client.destroy(&checkpoint);
    assert_eq!(client.seam.files.facts(&file).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    let os = client.seam.wmi.query(Namespace::Cimv2, "SELECT Caption FROM Win32_OperatingSystem").unwrap();
    assert_eq!(os[0].properties.len(), 1);
}
