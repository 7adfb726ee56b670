//! Readers that know nothing of us: the tools of NTFS-3G, gdisk, 7-Zip. They look at an image of the disk, and at one of
//! the volume alone.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Output};

use ntfs_volume::{Disk, FileContent, Parameters, Piece, VolumeFile};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const VOLUME_AT: u64 = MIB;

fn files() -> Vec<VolumeFile> {
    let external = |name: &str, size_bytes| VolumeFile {
        name: name.into(),
        content: FileContent::External { size_bytes },
        is_read_only: true,
    };
    let mut files = vec![
        external("3f2504e0-4f89-41d3-9a0c-0305e82c3301.vhdx", 9 * MIB + 4096),
        external("DATA disk ünï.vhdx", 3 * MIB + 1),
        VolumeFile {
            content: FileContent::Resident { bytes: b"{\"session\":1}\n".to_vec() },
            ..external("e3-volume.json", 1)
        },
    ];
    // So many that the root folder is a tree.
    files.extend(
        (0..200).map(|nth| external(&format!("disk number {nth:03} of a very large machine.vhdx"), 5000 + nth)),
    );
    files
}

/// The bytes of a file: each tells where it is from.
fn fill(file: usize, buf: &mut [u8], at: u64) {
    for (byte, at) in buf.iter_mut().zip(at..) {
        *byte = (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ file as u8;
    }
}

fn sum(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Writes a range of the disk to a sparse file.
fn write_image(disk: &Disk, path: &Path, from: u64, to: u64) {
    let mut image = File::create(path).unwrap();
    image.set_len(to - from).unwrap();
    for (range, piece) in disk.pieces(from..to) {
        if piece == Piece::Zero {
            continue;
        }
        let mut at = range.start;
        while at < range.end {
            let mut buf = vec![0; MIB.min(range.end - at) as usize];
            disk.read(&mut buf, at, |file, buf, at| {
                fill(file, buf, at);
                Ok::<_, Infallible>(())
            })
            .unwrap();
            image.seek(SeekFrom::Start(at - from)).unwrap();
            image.write_all(&buf).unwrap();
            at += buf.len() as u64;
        }
    }
}

/// What a tool says; `None`, with a line, where it is not installed.
fn run(test: &str, program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).env("LC_ALL", "C.UTF-8").output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED {test}: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn others_read_what_we_make_up() {
    let test = "others_read_what_we_make_up";
    let dir = tempfile::tempdir().unwrap();
    let parameters = Parameters {
        log_bytes: 4 * MIB,
        free_bytes: 32 * MIB,
        gap_bytes: MIB,
        ..Parameters::for_session(Uuid::from_u128(7), 0x01DC_0000_0000_0000, files())
    };
    let disk = Disk::build(&parameters).unwrap();
    let (whole, volume) = (dir.path().join("disk.raw"), dir.path().join("volume.raw"));
    write_image(&disk, &whole, 0, disk.size_bytes());
    let (clusters, cluster_bytes) = disk.clusters();
    // The boot sector's copy follows the last cluster, in one of its own.
    write_image(&disk, &volume, VOLUME_AT, VOLUME_AT + (clusters + 1) * cluster_bytes);
    let (whole, volume) = (whole.to_str().unwrap(), volume.to_str().unwrap());

    if let Some(said) = run(test, "sgdisk", &["-v", whole]) {
        assert!(text(&said).contains("No problems found"), "{}", text(&said));
    }
    if let Some(said) = run(test, "ntfsfix", &["-n", volume]) {
        assert!(said.status.success() && text(&said).contains("processed successfully"), "{}", text(&said));
        assert!(!text(&said).contains("FAILED"), "{}", text(&said));
    }
    if let Some(said) = run(test, "ntfsls", &[volume]) {
        let listed: Vec<String> = text(&said).lines().map(str::to_owned).collect();
        assert!(said.status.success(), "{}", text(&said));
        let mut names: Vec<String> = parameters.files.iter().map(|file| file.name.clone()).collect();
        let mut found: Vec<String> = listed.into_iter().filter(|name| !name.is_empty() && name != ".").collect();
        names.sort();
        found.sort();
        assert_eq!(found, names);
    }
    for (nth, file) in parameters.files.iter().enumerate().filter(|(nth, _)| *nth < 8 || nth % 40 == 0) {
        let Some(said) = run(test, "ntfscat", &[volume, &file.name]) else { break };
        let expected = match &file.content {
            FileContent::Resident { bytes } => bytes.clone(),
            FileContent::External { size_bytes } => {
                let mut bytes = vec![0; *size_bytes as usize];
                fill(nth, &mut bytes, 0);
                bytes
            }
        };
        assert!(said.status.success(), "{}: {}", file.name, String::from_utf8_lossy(&said.stderr));
        assert_eq!((said.stdout.len(), sum(&said.stdout)), (expected.len(), sum(&expected)), "{}", file.name);
    }
    if let Some(said) = run(test, "7z", &["l", "-tntfs", volume]) {
        let said_text = text(&said);
        assert!(said.status.success(), "{said_text}");
        for file in &parameters.files {
            assert!(said_text.contains(&file.name), "{} is not in {said_text}", file.name);
        }
    }
}
