//! Values that several unit tests need.

use jiff::Timestamp;

use crate::Consistency;
use crate::point::{POINT_VERSION, PointChainFile, PointDescription, PointDisk, ReadMode};

/// A point of one disk, as a second run would leave it.
pub(crate) fn point_description() -> PointDescription {
    let time = Timestamp::from_second(1_700_000_000).unwrap();
    PointDescription {
        version: POINT_VERSION,
        point_id: "0123456789abcdef0123456789abcdef".into(),
        run_id: "fedcba9876543210".into(),
        attempt: 1,
        vm_id: "5BFDE23B-CE75-4303-B54F-6C18394F105C".into(),
        vm_name: "DC01".into(),
        host: "HV1".into(),
        replication_mode: 0,
        started: time,
        frozen: time,
        stored: time,
        stored_bytes: 0,
        consistency_asked: Consistency::Application,
        consistency: Consistency::Application,
        consistency_reason: None,
        guest_family: crate::point::GuestFamily::Windows,
        reference_point: Some("rp".into()),
        user_checkpoints: vec!["clean".into()],
        last_applied_checkpoint: None,
        disks: vec![PointDisk {
            number: 0,
            virtual_disk_id: "AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEE".into(),
            slot: "SCSI 0:0".into(),
            path: r"C:\VMs\dc01.vhdx".into(),
            size_bytes: 1 << 30,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            layout_version: crate::layout::LAYOUT_VERSION,
            segment_bytes: 1 << 20,
            file: "disks/AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEE.vhdx".into(),
            object: "Ix00112233445566778899aabbccddeeff".into(),
            file_bytes: 4 << 20,
            slots: 0,
            data_write_guid: "AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEF".into(),
            read: ReadMode::Incremental { base: "00".into() },
            read_bytes: 0,
            changed_bytes: 0,
            audit_bytes: 0,
            audited: None,
            rct_id: Some("rctX:00000000:0000:0000:0000:000000000000:00000003".into()),
            most_recent_id: None,
            chain: vec![PointChainFile { name: "dc01.vhdx".into(), file_id: "42".into(), created: Some(time) }],
        }],
        absent_disks: Vec::new(),
        program: "test".into(),
    }
}
