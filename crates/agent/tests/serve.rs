//! `serve nbd` and `serve iscsi`, as their clients and its operator meet it.
#![cfg(unix)]

#[path = "../../nbd/tests/support/pki.rs"]
mod pki;
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::Desk;
use support::serving::Serving;

fn nbd(desk: &Desk, more: &[&str]) -> Serving {
    Serving::start(desk.command(["serve", "nbd", "DC01@latest", "--json"]).args(more))
}

/// Where the first export is.
fn uri(serving: &Serving) -> &str {
    serving.first["exports"][0]["uri"].as_str().unwrap()
}

fn is_there(test: &str) -> bool {
    let is_there = ["qemu-img", "qemu-io"].iter().all(|name| {
        Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if !is_there {
        eprintln!("skipped {test}: qemu-img and qemu-io are not there (package qemu-utils)");
    }
    is_there
}

fn qemu(desk: &Desk, program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).current_dir(desk.path(".")).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !said.contains("failed"), "{program} {arguments:?}: {said}");
    said
}

/// Every file below a folder.
fn files_below(folder: &Path, visit: &mut dyn FnMut(&Path, &[u8])) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, visit);
        } else {
            visit(&path, &std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_point_is_served_and_writes_outlive_a_kill() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    let serving = nbd(&desk, &["--socket", "s.sock", "--cache", "cache"]);
    assert_eq!(serving.first["exports"][0]["size_bytes"], 8 << 20);
    assert_eq!(serving.first["writes"], Value::Null);
    let has_qemu = is_there("a_point_is_served_and_writes_outlive_a_kill");
    if has_qemu {
        let image = ["compare", "-f", "raw", "-F", "raw", uri(&serving), "DC01-1.raw"];
        assert!(qemu(&desk, "qemu-img", &image).contains("identical"));
        let info = qemu(&desk, "qemu-img", &["map", "--output=json", "-f", "raw", uri(&serving)]);
        assert!(info.contains("\"zero\": true"), "{info}");
    }
    let result = serving.stop();
    assert_eq!(result["type"], "result");
    if !has_qemu {
        return;
    }
    assert!(result["read_bytes"]["repository"].as_u64().unwrap() > 4 << 20, "{result}");

    let writing = ["--listen", "127.0.0.1:0", "--writes", "writes", "--cache", "cache"];
    let serving = nbd(&desk, &writing);
    let io = ["-f", "raw", "-c", "write -P 0x77 1M 64k", "-c", "write -z 4M 1M", "-c", "flush", uri(&serving)];
    qemu(&desk, "qemu-io", &io);
    qemu(&desk, "qemu-io", &["-f", "raw", "-c", "write -P 0x78 2M 4k", uri(&serving)]);
    // As `kill -9` does.
    drop(serving);
    let serving = nbd(&desk, &writing);
    let reads = ["-c", "read -P 0x77 1M 64k", "-c", "read -P 0 4M 1M", "-c", "read -P 0x78 2M 4k"];
    qemu(&desk, "qemu-io", &[&["-f", "raw"], &reads[..], &[uri(&serving)]].concat());
    let result = serving.stop();
    assert!(result["read_bytes"]["overlay"].as_u64().unwrap() > 0, "{result}");
    let mut looked_at = 0;
    files_below(&desk.path("writes"), &mut |path, bytes| {
        assert!(!bytes.windows(64).any(|window| window == [0x77; 64]), "plaintext in {}", path.display());
        looked_at += bytes.len();
    });
    assert!(looked_at > 64 << 10);
    // The point is what it was.
    let serving = nbd(&desk, &["--socket", "s.sock"]);
    let image = ["compare", "-f", "raw", "-F", "raw", uri(&serving), "DC01-1.raw"];
    assert!(qemu(&desk, "qemu-img", &image).contains("identical"));
}

#[test]
fn what_cannot_be_served_is_refused() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);
    desk.fails(6, "NOT_FOUND", ["serve", "nbd", "DC02@latest"]);
    desk.fails(6, "NOT_FOUND", ["serve", "nbd", "DC01@latest", "--disk", "7"]);
    let run = desk.fails(2, "USAGE", ["serve", "nbd", "DC01@latest", "--listen", "192.0.2.1:10809"]);
    assert!(run.stderr.contains("TLS"), "{run:?}");
    let serving = nbd(&desk, &["--socket", "s.sock", "--writes", "writes"]);
    let second = ["serve", "nbd", "DC01@latest", "--listen", "127.0.0.1:0", "--writes", "writes"];
    desk.fails(7, "BUSY", second);
    serving.stop();
    // Writes over one point are no writes over another.
    drop(nbd(&desk, &["--socket", "s.sock", "--writes", "writes"]));
    std::fs::remove_file(desk.path("s.sock")).unwrap();
    desk.ok(["lab", "write", "lab", "DC01", "--mib", "1"]);
    desk.ok(["backup", "DC01"]);
    let run = desk.fails(1, "FAILED", ["serve", "nbd", "DC01@latest", "--socket", "s.sock", "--writes", "writes"]);
    assert!(run.stderr.contains("not the one that the guest has written over"), "{run:?}");
    let serving = ["serve", "nbd", "DC01@1", "--socket", "s.sock", "--writes"];
    desk.fails(5, "TARGET_EXISTS", serving.into_iter().chain(["DC01-1.raw"]));
}

/// Where other machines connect, both sides prove who they are; the words of the protocol are the crate's own tests'.
#[test]
fn a_point_is_served_over_tls_to_those_with_a_certificate() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    let pki = pki::Pki::new(&desk.path("pki"));
    let stranger = pki::Pki::new(&desk.path("stranger"));
    let server = ["--tls-cert", "pki/server-cert.pem", "--tls-key", "pki/server-key.pem"];
    let clients = ["--tls-ca", "pki/ca-cert.pem"];
    fn call<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["serve", "nbd", "DC01@latest"][..], more].concat()
    }
    let run = desk.fails(2, "USAGE", call(&[&server[..], &["--listen", "0.0.0.0:0"]].concat()));
    assert!(run.stderr.contains("certificates of clients"), "{run:?}");
    let wrong_key = ["--tls-cert", "pki/server-cert.pem", "--tls-key", "stranger/server-key.pem"];
    desk.fails(2, "USAGE", call(&wrong_key));
    desk.fails(2, "USAGE", call(&["--tls-cert", "pki/server-key.pem", "--tls-key", "pki/server-key.pem"]));
    std::fs::write(desk.path("none.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let run = desk.fails(2, "USAGE", call(&[&server[..], &["--tls-ca", "none.pem"]].concat()));
    assert!(run.stderr.contains("on   none.pem"), "{run:?}");
    let keyless = desk.run(call(&["--tls-cert", "pki/server-cert.pem"]));
    assert!(keyless.exit == Some(2) && keyless.stderr.contains("--tls-key"), "{keyless:?}");

    let listen = ["--listen", "0.0.0.0:0"];
    let serving = nbd(&desk, &[&server[..], &clients, &listen].concat());
    let port: u16 = uri(&serving).rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    assert!(uri(&serving).starts_with("nbds://"), "{}", uri(&serving));
    // Both know the server's authority: it is the server that does not know them.
    let nobody = desk.path("nobody");
    std::fs::create_dir(&nobody).unwrap();
    for dir in [&stranger.dir, &nobody] {
        std::fs::copy(pki.dir.join("ca-cert.pem"), dir.join("ca-cert.pem")).unwrap();
    }
    let look = |dir: &Path| {
        let credentials = format!("tls-creds-x509,id=t0,dir={},endpoint=client,verify-peer=on", dir.display());
        let image =
            format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=disk0,tls-creds=t0");
        let read = ["-c", "read 0 8M"];
        Command::new("qemu-io")
            .args(["-r", "--object", &credentials, "--image-opts", &image])
            .args(read)
            .output()
            .unwrap()
    };
    if is_there("a_point_is_served_over_tls_to_those_with_a_certificate") {
        let seen = look(&pki.dir);
        assert!(String::from_utf8_lossy(&seen.stdout).contains("read 8388608/8388608"), "{seen:?}");
        assert!(!look(&stranger.dir).status.success(), "a client of another authority");
        assert!(!look(&nobody).status.success(), "a client without a certificate");
        let plain = format!("nbd://127.0.0.1:{port}/disk0");
        let plain = Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 512", &plain]).output().unwrap();
        assert!(!plain.status.success(), "without TLS: {plain:?}");
    }
    serving.stop();
}

/// An initiator of libiscsi's, as a person would try it.
fn logs_in(uri: &str) -> bool {
    let run = Command::new("iscsi-readcapacity16").arg(uri).output().unwrap();
    run.status.success() && String::from_utf8_lossy(&run.stdout).contains("Total size:8388608")
}

#[test]
fn a_point_is_served_over_iscsi_to_those_who_log_in() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    let refused = |more: &[&str], text: &str| {
        let call = ["serve", "iscsi", "DC01@latest", "--for", "1s"].into_iter().chain(more.iter().copied());
        let run = desk.fails(2, "USAGE", call);
        assert!(run.stderr.contains(text), "{run:?}");
    };
    std::fs::write(desk.path("secret"), "secretsecret12\n").unwrap();
    std::fs::write(desk.path("short"), "secret\n").unwrap();
    refused(&["--listen", "0.0.0.0:0"], "CHAP");
    refused(&["--chap-user", "alice"], "E3_CHAP_SECRET");
    refused(&["--chap-user", "alice", "--chap-secret-file", "nowhere"], "--chap-secret-file");
    refused(&["--chap-user", "alice", "--chap-secret-file", "short"], "at least 12");
    let both = ["--chap-user", "alice", "--chap-secret-file", "secret", "--mutual-chap-user", "target1"];
    refused(&[&both[..], &["--mutual-chap-secret-file", "secret"]].concat(), "differ");
    refused(&["--listen", "127.0.0.1:0", "--target", "dc01"], "iqn.");

    let serving = |more: &[&str]| {
        let mut command = desk.command(["serve", "iscsi", "DC01@latest", "--json", "--listen", "127.0.0.1:0"]);
        Serving::start(command.args(both).args(more).env("E3_MUTUAL_CHAP_SECRET", "mutualsecret12"))
    };
    let first = serving(&[]);
    let (uri, target) = (first.first["units"][0]["uri"].as_str().unwrap(), first.first["target"].as_str().unwrap());
    assert_eq!((&first.first["units"][0]["lun"], &first.first["login"]), (&0.into(), &"mutual-chap".into()));
    assert!(target.starts_with("iqn.2026-01.internal.e3:"), "{target}");
    let has_initiators = is_there("a_point_is_served_over_iscsi_to_those_who_log_in")
        && Command::new("iscsi-readcapacity16").arg("--help").output().is_ok();
    if !has_initiators {
        eprintln!("skipped initiators: iscsi-readcapacity16 is not there (package libiscsi-bin)");
        first.stop();
        return;
    }
    let with = |login: &str| uri.replace("iscsi://", &format!("iscsi://{login}"));
    assert!(logs_in(&with("alice%secretsecret12@")));
    assert!(logs_in(&format!("{}?target_user=target1&target_password=mutualsecret12", with("alice%secretsecret12@"))));
    assert!(!logs_in(uri), "without a login");
    assert!(!logs_in(&with("alice%secretsecret13@")), "with a wrong secret");
    assert!(!logs_in(&format!("{}?target_user=target1&target_password=mutualsecret13", with("alice%secretsecret12@"))));
    let point = with("alice%secretsecret12@");
    assert!(
        qemu(&desk, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &point, "DC01-1.raw"]).contains("identical")
    );
    first.stop();

    let serving = |more: &[&str]| {
        let mut command = desk.command(["serve", "iscsi", "DC01@latest", "--json", "--writes", "writes"]);
        Serving::start(command.args(more))
    };
    let first = serving(&["--listen", "127.0.0.1:0"]);
    let uri = first.first["units"][0]["uri"].as_str().unwrap().to_owned();
    qemu(&desk, "qemu-io", &["-f", "raw", "-c", "write -P 0x77 1M 64k", "-c", "write -z 4M 1M", &uri]);
    let (portal, unit) = (first.first["portal"].as_str().unwrap().to_owned(), first.first["units"][0].clone());
    // As `kill -9` does. The same disk is there again, under the same names.
    drop(first);
    let second = serving(&["--listen", &portal]);
    assert_eq!(second.first["units"][0], unit);
    qemu(&desk, "qemu-io", &["-f", "raw", "-c", "read -P 0x77 1M 64k", "-c", "read -P 0 4M 1M", &uri]);
    assert!(second.stop()["read_bytes"]["overlay"].as_u64().unwrap() > 0);
}

/// What other NTFS readers find on the volume is what a restore writes.
#[test]
fn a_volume_holds_the_disks_as_files() {
    let test = "a_volume_holds_the_disks_as_files";
    let desk = Desk::new();
    desk.add_vm("DC01", 24, 1);
    desk.ok(["lab", "add-vm", "lab", "TWO", "--disk", "DC01-1.raw", "--size", "64MiB"]);
    desk.ok(["backup", "TWO"]);
    if !is_there(test) || Command::new("ntfscat").arg("--version").output().is_err() {
        eprintln!("skipped {test}: ntfscat is not there (package ntfs-3g)");
        return;
    }
    let start = |more: &[&str]| {
        let mut command = desk.command(["serve", "nbd", "TWO@latest", "--json", "--volume", "--socket", "v.sock"]);
        Serving::start(command.args(more))
    };
    let serving = start(&[]);
    assert_eq!(serving.first["exports"].as_array().unwrap().len(), 1);
    let volume = uri(&serving).to_owned();
    assert!(volume.contains("/volume?"), "{volume}");
    let copy = |offset: u64, size: u64, name: &str| {
        let server = format!("file.server.type=unix,file.server.path={}", desk.path("v.sock").display());
        let source = format!("driver=raw,offset={offset},size={size},file.driver=nbd,{server},file.export=volume");
        qemu(&desk, "qemu-img", &["convert", "--image-opts", "-O", "raw", &source, name]);
    };
    // The first entry of the GPT's table: where the partition begins and ends, in sectors.
    copy(0, 1 << 20, "head.raw");
    let head = std::fs::read(desk.path("head.raw")).unwrap();
    let sector = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    let (first, last) = (sector(1024 + 32), sector(1024 + 40));
    copy(first * 512, (last + 1 - first) * 512, "volume.raw");
    for disk in ["0", "1"] {
        desk.ok(["restore", "disk", "TWO@latest", "--disk", disk, "--to", &format!("{disk}.vhdx")]);
        let cat =
            Command::new("ntfscat").arg(desk.path("volume.raw")).arg(format!("disk{disk}.vhdx")).output().unwrap();
        let restored = std::fs::read(desk.path(&format!("{disk}.vhdx"))).unwrap();
        assert!(
            cat.stdout == restored,
            "disk {disk}: {} bytes, {}",
            cat.stdout.len(),
            String::from_utf8_lossy(&cat.stderr)
        );
        std::fs::write(desk.path("from-volume.vhdx"), cat.stdout).unwrap();
    }
    let check = Command::new("ntfsfix").arg("-n").arg(desk.path("volume.raw")).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    serving.stop();
    std::fs::remove_file(desk.path("volume.raw")).unwrap();

    // With writes it is a volume of its own, and the same one after a kill.
    let serving = start(&["--writes", "writes"]);
    qemu(&desk, "qemu-io", &["-f", "raw", "-c", "write -P 0x77 1G 64k", &volume]);
    let identity = |uri: &str| {
        let head = qemu(&desk, "qemu-io", &["-f", "raw", "-c", "read -v 512 64", "-c", "read -P 0x77 1G 64k", uri]);
        head.lines().filter(|line| line.starts_with("000")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = identity(&volume);
    assert!(before.len() >= 4, "{before:?}");
    drop(serving);
    std::fs::remove_file(desk.path("v.sock")).unwrap();
    let serving = start(&["--writes", "writes"]);
    assert_eq!(identity(&volume), before, "the same disk");
    serving.stop();
    let other = start(&["--writes", "others"]);
    qemu(&desk, "qemu-io", &["-f", "raw", "-c", "write -P 0x77 1G 64k", &volume]);
    assert_ne!(identity(&volume), before, "two sessions may meet on a host");
    other.stop();
}
