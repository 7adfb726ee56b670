//! The image management service: virtual disk files as `vmms` sees them.

use hyperv::seam::{CimType, CimValue, MethodOutput};
use vhdx::{DiskKind, FileFormat, VirtualDisk as _};

use super::{FILE_NOT_FOUND, answer, answer_with, start};
use crate::answers::{self, Question};
use crate::builder::Builder;
use crate::disks;
use crate::embedded;
use crate::error::LabError;
use crate::files_of_disks::is_worked_on;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::provider::Inputs;
use crate::state::Action;
use crate::virt_disk::check_openable;

/// Ranges that one answer holds at most.
const MAX_RANGES: usize = 256;
/// `System is in use`: another job works on the file.
const IN_USE: u32 = crate::failure::IN_USE as u32;

/// `GetVirtualHardDiskSettingData`; it works while the VM runs.
pub(super) fn setting_data(tx: &Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let disk = match open(tx, inputs)? {
        Ok(disk) => disk,
        Err(code) => return Ok(answer(code)),
    };
    let info = disks::leaf_info(&disk);
    let chain = disks::chain_paths(tx.store, &disk);
    let kind = match info.kind {
        DiskKind::Fixed => 2,
        DiskKind::Dynamic => 3,
        DiskKind::Differencing => 4,
    };
    let path = chain.first().map_or("", WinPath::as_str);
    let format = match info.format {
        FileFormat::Vhd => 2,
        _ if path.to_lowercase().ends_with(".vhds") => 4,
        _ => 3,
    };
    let mut builder = Builder::embedded("Msvm_VirtualHardDiskSettingData")
        .text("InstanceID", path)
        .text("ElementName", path)
        .number("Type", kind)
        .number("Format", format)
        .text("Path", path)
        .number("MaxInternalSize", disk.geometry().size_bytes)
        .number("BlockSize", info.block_bytes.into())
        .number("LogicalSectorSize", disk.geometry().logical_sector_bytes.into())
        .number("PhysicalSectorSize", disk.geometry().physical_sector_bytes.into())
        .text("VirtualDiskId", &info.virtual_disk_id.to_string().to_uppercase())
        .flag("IsPmemCompatible", path.to_lowercase().ends_with(".vhdpmem"))
        .number("PmemAddressAbstractionType", 0);
    if let (Some(parent), Some(locator)) = (chain.get(1), &info.parent) {
        builder = builder
            .text("ParentPath", parent.as_str())
            .text("ParentIdentifier", &locator.parent_linkage.braced().to_uppercase());
    }
    let text = CimValue::String(embedded::format(&builder.build()));
    Ok(answer_with(0, vec![("SettingData", text)]))
}

/// `GetVirtualHardDiskState`.
pub(super) fn state(tx: &Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let disk = match open(tx, inputs)? {
        Ok(disk) => disk,
        Err(code) => return Ok(answer(code)),
    };
    let info = disks::leaf_info(&disk);
    let state = Builder::embedded("Msvm_VirtualHardDiskState")
        .text("InstanceID", inputs.text("Path"))
        .number("FileSize", info.file_len_bytes)
        .flag("InUse", false)
        .number("PhysicalSectorSize", disk.geometry().physical_sector_bytes.into())
        .number("Alignment", 1)
        .number("FragmentationPercentage", 0)
        .date("Timestamp", tx.now_ms)
        .build();
    Ok(answer_with(0, vec![("State", CimValue::String(embedded::format(&state)))]))
}

/// `GetVirtualDiskChanges`: the same answer as `QueryChangesVirtualDisk`, with its error as the return value.
pub(super) fn changes(tx: &Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    if !inputs.text("TargetSnapshotId").is_empty() {
        return Ok(answer(super::NOT_SUPPORTED));
    }
    let disk = match open(tx, inputs)? {
        Ok(disk) => disk,
        Err(code) => return Ok(answer(code)),
    };
    if let Err(code) = check_openable(tx, &WinPath::new(inputs.text("Path"))) {
        return Ok(answer(code));
    }
    let chain = disks::chain_paths(tx.store, &disk);
    let size_bytes = disk.geometry().size_bytes;
    let changes = match answers::changes_since(tx, &chain, size_bytes, inputs.text("LimitId"))? {
        Ok(changes) => changes,
        Err(code) => return Ok(answer(code)),
    };
    let (offset_bytes, len_bytes) = (inputs.number("ByteOffset"), inputs.number("ByteLength"));
    let question = Question { size_bytes, offset_bytes, len_bytes, max_ranges: MAX_RANGES };
    let Some(page) = answers::page(tx, &changes, &question) else {
        return Ok(answer(super::INVALID_PARAMETER));
    };
    let numbers =
        |values: Vec<u64>| CimValue::Array(CimType::Uint64, values.into_iter().map(CimValue::Uint64).collect());
    Ok(answer_with(
        0,
        vec![
            ("ProcessedByteLength", CimValue::Uint64(page.processed_bytes)),
            ("ChangedByteOffsets", numbers(page.ranges.iter().map(|range| range.offset_bytes).collect())),
            ("ChangedByteLengths", numbers(page.ranges.iter().map(|range| range.len_bytes).collect())),
        ],
    ))
}

/// `CreateVirtualHardDisk`, of differencing VHDX files; nobody here makes others. By a job, as every host does.
pub(super) fn create(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let Some(settings) = inputs.embedded("VirtualDiskSettingData") else { return Ok(answer(super::INVALID_PARAMETER)) };
    if (settings.get("Type").as_u64(), settings.get("Format").as_u64()) != (Some(4), Some(3)) {
        return Ok(answer(super::NOT_SUPPORTED));
    }
    let path = |name| WinPath::new(settings.get(name).as_str().unwrap_or_default());
    let (child, parent) = (path("Path"), path("ParentPath"));
    if is_worked_on(tx, &child) {
        return Ok(answer(IN_USE));
    }
    start(tx, "", "CreateVirtualHardDisk", Action::CreateChild { child, parent }, None)
}

/// `SetParentVirtualHardDisk`.
pub(super) fn set_parent(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    // Nobody here does without the check of identities, or has more than two files in a chain.
    if inputs.flag("IgnoreIDMismatch") || !inputs.text("LeafPath").is_empty() {
        return Ok(answer(super::NOT_SUPPORTED));
    }
    let path = |name| WinPath::new(inputs.text(name));
    let (child, parent) = (path("ChildPath"), path("ParentPath"));
    if is_worked_on(tx, &child) || is_worked_on(tx, &parent) {
        return Ok(answer(IN_USE));
    }
    start(tx, "", "SetParentVirtualHardDisk", Action::SetParent { child, parent }, None)
}

/// `MergeVirtualHardDisk`, of a child into its own parent.
pub(super) fn merge(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let path = |name| WinPath::new(inputs.text(name));
    let (child, parent) = (path("SourcePath"), path("DestinationPath"));
    if is_worked_on(tx, &child) || is_worked_on(tx, &parent) {
        return Ok(answer(IN_USE));
    }
    start(tx, "", "MergeVirtualHardDisk", Action::MergeFiles { child, parent }, None)
}

/// The disk that `Path` names, or the value to return.
fn open(tx: &Tx<'_>, inputs: &Inputs) -> Result<Result<vhdx::OpenedDisk, u32>, LabError> {
    let path = WinPath::new(inputs.text("Path"));
    if !tx.store.has_file(&path) {
        return Ok(Err(FILE_NOT_FOUND));
    }
    Ok(disks::open_chain(tx.store, &path)?.map_err(|error| match error.kind() {
        vhdx::OpenErrorKind::Missing => FILE_NOT_FOUND,
        _ => 32768,
    }))
}
