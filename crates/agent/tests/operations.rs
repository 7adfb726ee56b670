//! The engine's larger promises through the real executable: many VMs in one memory, a limit that holds, evidence that
//! stays, a host that is put in order.

mod support;

use std::collections::HashMap;
use std::time::Instant;

use hyperv_sim::{DiskSource, Fault, VmOptions};
use serde_json::Value;
use support::{Desk, files_below, finish};

#[test]
fn ten_vms_with_two_disks_each_share_one_memory_and_proceed_alike() {
    let desk = Desk::new();
    let file = desk.raw_file("data.raw", 24, 1);
    let lab = desk.lab();
    for number in 0..10 {
        // The disks differ, so that nothing is stored once for all.
        let own = desk.raw_file(&format!("own-{number}.raw"), 24, 100 + number);
        let disks = [DiskSource::Copy(own), DiskSource::Copy(file.clone())];
        lab.add_vm(&format!("VM{number}"), &disks, VmOptions::default()).unwrap();
    }
    drop(lab);
    let mut peaks = HashMap::new();
    for parallel in ["1", "10"] {
        let result = desk.json(0, ["backup", "--all", "--full", "--parallel", parallel]);
        let vms = result["vms"].as_array().unwrap();
        assert_eq!(vms.len(), 10, "{result}");
        let elapsed: Vec<u64> = vms.iter().map(|vm| vm["elapsed_ms"].as_u64().unwrap()).collect();
        let peak = result["peak_rss_bytes"].as_u64();
        println!("--parallel {parallel}: {:?} MiB at most; each VM took {elapsed:?} ms", peak.map(|peak| peak >> 20));
        peaks.insert(parallel, peak);
        for number in 0..10 {
            let expected = desk.guest_hashes(&format!("VM{number}"));
            let point = format!("VM{number}@latest");
            assert_eq!(desk.restored_hash(&point, 0), expected[0], "{point}");
        }
        if parallel == "10" {
            // Started together and sharing turns, none ends long before the others: the first needs at least a fifth of
            // what the last does.
            let (first, last) = (elapsed.iter().min().unwrap(), elapsed.iter().max().unwrap());
            assert!(first * 5 >= *last, "{elapsed:?}");
        }
    }
    // Peak memory is known where /proc is. Ten VMs cost no more than one and some stacks.
    if let (Some(one), Some(ten)) = (peaks["1"], peaks["10"]) {
        assert!(ten < 256 << 20, "{ten} bytes");
        assert!(ten < one + (64 << 20), "{one} bytes for one at a time, {ten} for ten");
    }
    for number in 0..10 {
        desk.expect_clean_host(&format!("VM{number}"), 1);
    }
}

#[test]
fn one_vm_that_fails_does_not_stop_the_others() {
    let desk = Desk::with_virtual_clock();
    for (number, name) in ["A", "B", "C", "D"].into_iter().enumerate() {
        desk.add_vm(name, 8, number as u64 + 1);
    }
    let fault =
        Fault::UnreadableRange { vm: "B".into(), disk: 0, offset_bytes: 0, len_bytes: 4096, code: 23, times: None };
    desk.lab().inject(fault).unwrap();
    let result = desk.json(3, ["backup", "--all", "--except", "D", "--parallel", "3"]);
    let status: Vec<_> = result["vms"].as_array().unwrap().iter().map(|vm| (&vm["vm_name"], &vm["status"])).collect();
    let expected = [("A", "succeeded"), ("B", "failed"), ("C", "succeeded")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(status, expected.iter().map(|(a, b)| (a, b)).collect::<Vec<(&Value, &Value)>>());
    desk.expect_clean_host("B", 0);
    assert!(desk.json(0, ["points", "list"])["points"].as_array().unwrap().iter().all(|point| point["vm_name"] != "B"));
}

#[test]
fn uploads_keep_to_their_limit() {
    let desk = Desk::new();
    desk.add_vm("DC01", 32, 3);
    let begun = Instant::now();
    let result = desk.json(0, ["backup", "DC01", "--limit", "8MiB/s"]);
    let took = begun.elapsed().as_secs_f64();
    let uploaded = result["vms"][0]["uploaded_bytes"].as_u64().unwrap();
    let rate = uploaded as f64 / took / f64::from(1 << 20);
    println!("8 MiB/s allowed, {rate:.2} MiB/s reached");
    // A slow machine may be slower, never faster.
    assert!(rate <= 8.0 * 1.1, "{rate:.2} MiB/s");
}

#[test]
fn what_checks_found_is_kept_with_the_points() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 3);
    desk.ok(["backup", "DC01"]);
    let column = |desk: &Desk| {
        let list = desk.json(0, ["points", "list"]);
        let point = &list["points"][0];
        (point["verify_level"].as_str().unwrap().to_owned(), point["verify_status"].as_str().unwrap().to_owned())
    };
    assert_eq!(column(&desk), ("structure".into(), "ok".into()));
    for level in ["sample", "full", "restore"] {
        let result = desk.json(0, ["verify", "DC01@latest", "--level", level]);
        assert!(result["points"][0]["read_bytes"].as_u64().unwrap() > 0, "{result}");
        assert_eq!(column(&desk), (level.into(), "ok".into()));
    }
    let shown = desk.ok(["points", "show", "DC01@latest"]);
    assert_eq!(shown.stdout.matches("\nchecked ").count(), 3, "{shown:?}");

    // Half of every large pack is something else now.
    for file in files_below(&desk.path("repo")) {
        let len = file.metadata().unwrap().len() as usize;
        if len > 1 << 20 {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[len / 4..len / 2].fill(0x5A);
            std::fs::write(&file, bytes).unwrap();
        }
    }
    desk.fails(8, "DAMAGED", ["verify", "DC01@latest", "--level", "full"]);
    assert_eq!(column(&desk).1, "damaged");
    let listed = desk.ok(["points", "list"]);
    assert!(listed.stdout.contains("damaged"), "{listed:?}");
}

#[cfg(unix)]
#[test]
fn a_restored_file_system_is_checked() {
    let desk = Desk::new();
    let image = desk.path("ext4.raw");
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let made = std::process::Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("SKIPPED a_restored_file_system_is_checked: mke2fs is not installed");
        return;
    }
    desk.ok(["lab", "add-vm", "lab", "FILES", "--disk", "ext4.raw"]);
    desk.ok(["backup", "FILES"]);
    let result = desk.json(0, ["verify", "FILES@latest", "--level", "restore"]);
    let volume = &result["points"][0]["volumes"][0];
    assert_eq!((&volume["file_system"], &volume["sound"]), (&"ext".into(), &true.into()), "{result}");

    // A guest that wrote over its own inode tables is stored as it is, and found out.
    desk.lab().guest_write_at("FILES", 0, 64 << 10, &[0xA5; 512 << 10]).unwrap();
    desk.ok(["backup", "FILES"]);
    let run = desk.fails(8, "DAMAGED", ["verify", "FILES@latest", "--level", "restore"]);
    assert!(run.stderr.contains("e2fsck"), "{run:?}");
    // Nothing of the guest is left in the clear.
    let scratch = desk.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let mut command = desk.command(["verify", "FILES@2", "--level", "restore", "--scratch"]);
    assert_eq!(finish(command.arg(&scratch)).exit, Some(0));
    assert_eq!(files_below(&scratch), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_host_is_looked_at_and_put_in_order() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 3);
    desk.ok(["host", "check"]);
    // A run that is killed behind its checkpoint.
    let killed = finish(desk.command(["backup", "DC01"]).env("E3_LAB_KILL_AT", "bucket:60:before"));
    assert_ne!(killed.exit, Some(0), "{killed:?}");
    desk.lab().create_user_checkpoint("DC01").unwrap();
    desk.lab().set_options(|options| options.allow_second_recovery_checkpoint = true).unwrap();
    let foreign = desk.lab().create_foreign_recovery_checkpoint("DC01").unwrap();

    let found = desk.json(4, ["host", "check"]);
    let verdicts: Vec<(&str, &str)> = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| (finding["kind"].as_str().unwrap(), finding["verdict"].as_str().unwrap()))
        .collect();
    assert!(verdicts.contains(&("unfinished_run", "ours")), "{found}");
    assert!(verdicts.contains(&("checkpoint", "ours")), "{found}");

    let refused = desk.run(["host", "clean"]);
    assert!(refused.exit == Some(2) && refused.stderr.contains("say --yes"), "{refused:?}");
    assert_eq!(desk.lab().checkpoints("DC01").unwrap().1.len(), 2, "nothing was removed");
    let cleaned = desk.ok(["host", "clean", "--yes"]);
    assert!(cleaned.stdout.contains("removed the checkpoint"), "{cleaned:?}");
    let (user, recovery) = desk.lab().checkpoints("DC01").unwrap();
    assert_eq!((user.len(), recovery), (1, vec![foreign]), "others' checkpoints are theirs");
    let left = desk.json(4, ["host", "check"]);
    let left: Vec<&Value> = left["findings"].as_array().unwrap().iter().map(|finding| &finding["verdict"]).collect();
    assert!(left.iter().all(|verdict| *verdict == "foreign" || *verdict == "news"), "{left:?}");
}

#[test]
fn a_checkpoint_goes_also_when_the_repository_is_away() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 3);
    let killed = finish(desk.command(["backup", "DC01"]).env("E3_LAB_KILL_AT", "bucket:60:before"));
    assert_ne!(killed.exit, Some(0), "{killed:?}");
    std::fs::rename(desk.path("repo"), desk.path("away")).unwrap();

    desk.json(4, ["host", "check"]);
    let cleaned = desk.ok(["host", "clean", "--yes"]);
    assert!(cleaned.stdout.contains("removed the checkpoint"), "{cleaned:?}");
    assert!(cleaned.stderr.contains("only checkpoints are removed"), "{cleaned:?}");
    assert_eq!(desk.lab().checkpoints("DC01").unwrap(), (vec![], vec![]));
    // The run is still known, and closed when the repository is back.
    let kinds = |desk: &Desk, exit| {
        let found = desk.json(exit, ["host", "check"]);
        let findings = found["findings"].as_array().unwrap().clone();
        findings.iter().map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&desk, 4), ["unfinished_run"]);
    std::fs::rename(desk.path("away"), desk.path("repo")).unwrap();
    desk.ok(["host", "clean", "--yes"]);
    assert_eq!(kinds(&desk, 0), Vec::<String>::new());
    desk.ok(["backup", "DC01"]);
}

#[test]
fn the_checks_of_change_tracking_are_told() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 3);
    desk.ok(["backup", "DC01"]);
    desk.guest_writes("DC01", 7, 1);
    desk.ok(["backup", "DC01", "--audit-all"]);
    let audits = desk.json(0, ["audit"]);
    let newest = &audits["audits"][0];
    assert_eq!(newest["segments"], newest["of_segments"], "{audits}");
    assert!(newest["segments"].as_u64().unwrap() > 0, "{audits}");
    assert!(desk.ok(["audit", "DC*"]).stdout.contains("unchanged segments were read again"));
    desk.fails(6, "NOT_FOUND", ["audit", "NOBODY"]);
}
