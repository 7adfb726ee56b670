//! The golden disks of the specification, and what holds for every disk.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::ops::Range;

use ntfs_volume::{Disk, FileContent, ParameterError, Parameters, Piece, VolumeFile};
use random::SplitMix;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn file(name: &str, size_bytes: u64) -> VolumeFile {
    VolumeFile { name: name.into(), content: FileContent::External { size_bytes }, is_read_only: true }
}

fn resident(name: &str, bytes: &[u8]) -> VolumeFile {
    VolumeFile { name: name.into(), content: FileContent::Resident { bytes: bytes.into() }, is_read_only: true }
}

/// Parameters of a golden case (fixtures/ntfs/README.md).
fn case(letter: char) -> Parameters {
    let files = match letter {
        'A' => vec![
            file("3f2504e0-4f89-41d3-9a0c-0305e82c3301.vhdx", 300 * MIB),
            file("6ba7b810-9dad-11d1-80b4-00c04fd430c8.vhdx", 64 * GIB),
            VolumeFile { is_read_only: false, ..file("DATA disk ünï.vhdx", 2 * TIB + 7 * MIB) },
            resident("e3-volume.json", b"{\"session\":\"00000000-0000-4000-8000-000000000001\"}\n"),
        ],
        'B' => vec![file("big.vhdx", 40 * TIB + 11 * MIB), file("small.vhdx", 9_437_184)],
        'C' => (0..256_u64)
            .map(|i| {
                let id = Uuid::from_u128(u128::from(i) * 0x0001_0000_0000_0000_0001_0000_0000_0000);
                file(&format!("{id}.vhdx"), 4 * MIB + i * MIB)
            })
            .collect(),
        'D' => {
            vec![file("disk0.vhdx", 9_437_184), file("disk1.vhdx", 171_966_464), resident("e3-volume.json", b"{}\n")]
        }
        _ => Vec::new(),
    };
    let small = letter == 'D';
    let number = letter as u64 - 'A' as u64 + 1;
    let guid = |base: u128| Uuid::from_u128(base + u128::from(letter as u32));
    Parameters {
        files,
        label: "e3 restore".into(),
        serial: 0x6533_0000_0000_0000 + number,
        file_time: 0x01DC_0000_0000_0000,
        disk_guid: guid(0x6533_0000_0000_4000_8000_0000_0000_0000),
        partition_guid: guid(0x6533_0000_0000_4000_8000_0000_0000_0100),
        log_bytes: if small { 4 * MIB } else { 64 * MIB },
        free_bytes: if small { 64 * MIB } else { 4 * GIB },
        gap_bytes: if small { 4 * MIB } else { 16 * MIB },
    }
}

fn golden(letter: char) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{letter}.meta.gz", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn golden_disks_are_made_byte_for_byte() {
    for (letter, sectors, clusters, bitmap) in [
        ('A', 4_438_509_568_u64, 554_813_183_u64, "a24979af6f483b6ae611d5b501b1547e609a6add8d79f3e8016ef7ce2e49f301"),
        ('B', 85_908_111_360, 671_157_087, "4edd88913cf76ad3bc697293eeab1f84e1fcdf1eaf3e77aa2756fcb2c41efeab"),
        ('C', 77_506_560, 9_687_807, "a51394e64474bc20f6e8acdebe12bd0bf1b5301a7f2fb5f07b7f0ab24d3bbc20"),
        ('D', 509_952, 63_231, "ecbbab651408a3bb002420bc9b5180348cc64549b91c8fd58b255df41956d75c"),
        ('E', 8_560_640, 1_069_567, "70e74b121578ac6eaf51d2a6254dda7a5476a0186a659559a2c07b6a1e3928f5"),
    ] {
        let disk = Disk::build(&case(letter)).unwrap();
        assert_eq!((disk.size_bytes(), disk.clusters().0), (sectors * 512, clusters), "{letter}");
        let golden = golden(letter);
        let mut rest = &*golden;
        for (offset, bytes) in disk.literals() {
            let (head, behind) = rest.split_at(16);
            let expected = (u64::from_le_bytes(head[..8].try_into().unwrap()), &behind[..bytes.len()]);
            assert_eq!(offset, expected.0, "{letter}");
            let len = u64::from_le_bytes(head[8..].try_into().unwrap());
            assert_eq!(len, bytes.len() as u64, "{letter}, at {offset:#x}");
            if let Some(at) = bytes.iter().zip(expected.1).position(|(a, b)| a != b) {
                panic!("{letter}: first difference {at:#x} behind {offset:#x}");
            }
            rest = &behind[bytes.len()..];
        }
        assert!(rest.is_empty(), "{letter}: {} bytes more are expected", rest.len());

        let (mut sum, mut at, mut piece) = (Sha256::new(), 0, vec![0; MIB as usize]);
        while at < disk.bitmap_bytes() {
            let len = MIB.min(disk.bitmap_bytes() - at);
            disk.bitmap(&mut piece[..len as usize], at);
            sum.update(&piece[..len as usize]);
            at += len;
        }
        let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum, bitmap, "{letter}");
    }
}

/// A random list of files.
fn random_parameters(dice: &mut SplitMix) -> Parameters {
    let mut names = BTreeSet::new();
    let files = (0..dice.below(40))
        .filter_map(|_| {
            let longest = if dice.below(4) == 0 { 200 } else { 30 };
            let units = 1 + dice.below(longest);
            let name: String = (0..units)
                .map(|_| {
                    let letters = if dice.below(9) == 0 { 0x300 } else { 26 };
                    char::from_u32(0x61 + dice.below(letters) as u32).unwrap()
                })
                .collect();
            let is_new = names.insert(name.to_uppercase());
            let size = match dice.below(4) {
                0 => 1 + dice.below(4096),
                1 => 1 + dice.below(64 * MIB),
                2 => (1 + dice.below(64)) * MIB,
                _ => 1 + dice.below(3 * TIB),
            };
            is_new.then(|| match dice.below(8) {
                0 => resident(&name, &vec![7; dice.below(40) as usize]),
                _ => file(&name, size),
            })
        })
        .collect();
    Parameters {
        log_bytes: (1 + dice.below(16)) * MIB,
        free_bytes: dice.below(200) * MIB,
        gap_bytes: dice.below(20) * MIB,
        ..Parameters::for_session(Uuid::from_u128(dice.next_u64().into()), 0x01DC_0000_0000_0000, files)
    }
}

/// Bytes of files that tell where they are from.
fn content(file: usize, at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ file as u8
}

fn read(disk: &Disk, range: Range<u64>) -> Vec<u8> {
    let mut buf = vec![0xA5; (range.end - range.start) as usize];
    let file = |file: usize, buf: &mut [u8], at: u64| {
        buf.iter_mut().zip(at..).for_each(|(byte, at)| *byte = content(file, at));
        Ok::<_, std::convert::Infallible>(())
    };
    disk.read(&mut buf, range.start, file).unwrap();
    buf
}

#[test]
fn every_place_is_one_thing_however_it_is_read() {
    let mut dice = SplitMix::new(0x4E54_4653);
    for round in 0..120 {
        let parameters = random_parameters(&mut dice);
        let disk = match Disk::build(&parameters) {
            Ok(disk) => disk,
            // Names with a control character or the like.
            Err(ParameterError::File { .. }) => continue,
            Err(error) => panic!("round {round}: {error}"),
        };
        let (clusters, cluster_bytes) = disk.clusters();
        let volume_at = 1 << 20;

        // Pieces cover the disk without a gap, and every file's bytes once, in order.
        let mut at = 0;
        let mut seen = vec![0; parameters.files.len()];
        let mut used = BTreeSet::new();
        for (range, piece) in disk.pieces(0..disk.size_bytes()) {
            assert!(range.start == at && range.end > at, "round {round}: {range:?} behind {at}");
            at = range.end;
            if let Piece::File { file, offset_bytes } = piece {
                assert_eq!(offset_bytes, seen[file], "round {round}, file {file}");
                seen[file] += range.end - range.start;
            }
            if piece != Piece::Zero && range.start >= volume_at {
                used.insert((range.start - volume_at) / cluster_bytes);
                used.insert((range.end - 1 - volume_at) / cluster_bytes);
            }
        }
        assert_eq!(at, disk.size_bytes(), "round {round}");
        for (nth, file) in parameters.files.iter().enumerate() {
            let expected = match file.content {
                FileContent::External { size_bytes } => size_bytes,
                FileContent::Resident { .. } => 0,
            };
            assert_eq!(seen[nth], expected, "round {round}, file {nth}");
            if let Some(extent) = disk.file_extent(nth) {
                assert_eq!((extent.start % MIB, extent.end - extent.start), (0, expected), "round {round}, file {nth}");
            }
        }
        // What holds something is marked as used, what follows a file is not written over.
        let is_used = |cluster: u64| {
            let mut byte = [0];
            disk.bitmap(&mut byte, cluster / 8);
            byte[0] & (1 << (cluster % 8)) != 0
        };
        for cluster in used.into_iter().filter(|cluster| *cluster < clusters) {
            assert!(is_used(cluster), "round {round}: cluster {cluster}");
        }
        assert!(!is_used(clusters - 1) || parameters.free_bytes < MIB, "round {round}: free space is free");

        // However a range is cut, the same bytes come.
        for _ in 0..20 {
            let near = match dice.below(3) {
                0 => dice.below(8 * MIB),
                1 => disk.size_bytes() - 1 - dice.below(2 * MIB),
                _ => match disk.file_extent(dice.below(parameters.files.len().max(1) as u64) as usize) {
                    Some(extent) => [extent.start, extent.end][dice.below(2) as usize].saturating_sub(dice.below(9000)),
                    None => dice.below(disk.size_bytes()),
                },
            };
            let end = (near + 1 + dice.below(20_000)).min(disk.size_bytes());
            let whole = read(&disk, near..end);
            let mut parts = Vec::new();
            let mut from = near;
            while from < end {
                let to = (from + 1 + dice.below(5000)).min(end);
                parts.extend(read(&disk, from..to));
                from = to;
            }
            assert!(whole == parts, "round {round}: {near}..{end}");
        }
        assert_eq!(Disk::build(&parameters).unwrap().metadata_sha256(), disk.metadata_sha256());
    }
}

#[test]
fn what_ntfs_does_not_hold_is_refused() {
    let of = |files: Vec<VolumeFile>| Parameters::for_session(Uuid::from_u128(1), 1, files);
    let refused = |parameters: &Parameters| Disk::build(parameters).err().map(|error| error.to_string());
    let long = "x".repeat(255);
    for (parameters, reason) in [
        (of(vec![file("disk.vhdx", 1), file("DISK.VHDX", 1)]), "another file has that name"),
        (of(vec![file("ünï", 1), file("ÜNÏ", 1)]), "another file has that name"),
        (of(vec![file("$Secure", 1)]), "the file system's own"),
        (of(vec![file("a", 0)]), "it is empty"),
        (of(vec![file("a", u64::MAX)]), "ends at 256 TiB"),
        (of(vec![file("a", 300 * TIB)]), "ends at 256 TiB"),
        (of((0..1025).map(|nth| file(&format!("{nth}"), 1)).collect()), "it holds 1024"),
        (of(vec![resident("a", &[1; 601])]), "does not fit into its record"),
        (of(vec![resident(&long, &[1; 600])]), "do not fit into its record"),
        (Parameters { label: "x".repeat(33), ..of(vec![]) }, "at most 32"),
    ] {
        let error = refused(&parameters).unwrap_or_else(|| panic!("taken, in spite of: {reason}"));
        assert!(error.contains(reason), "{error}");
    }
    for files in [
        (0..1024).map(|nth| file(&format!("{nth:0>200}"), 1)).collect(),
        (0..40).map(|nth| file(&format!("{nth:0>255}"), 250 * GIB)).collect(),
        vec![file(&long, 200 * TIB)],
    ] {
        let parameters = of(files);
        assert_eq!(refused(&parameters), None);
    }
}
