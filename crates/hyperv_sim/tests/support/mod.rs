//! A client small enough to be trusted at sight, for tests that look at the host from outside.

#![allow(dead_code)] // each test program uses a part of it

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::{
    ChangedRange, CimType, CimValue, Instance, MethodOutput, Namespace, ObjectPath, Seam, VirtDiskHandle, WmiError,
};
use hyperv_sim::{DiskSource, LabHost, LabOptions, VmOptions};

pub const MIB: u64 = 1 << 20;

pub struct Client {
    pub seam: Seam,
}

/// A host in a temporary folder with one running VM, "web", of empty disks of these sizes.
pub fn host_with(options: LabOptions, sizes: &[u64]) -> (tempfile::TempDir, Arc<LabHost>) {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabHost::create_with(dir.path().join("lab"), options).unwrap();
    let disks: Vec<_> = sizes.iter().map(|&size_bytes| DiskSource::Empty { size_bytes }).collect();
    lab.add_vm("web", &disks, VmOptions::default()).unwrap();
    (dir, lab)
}

impl Client {
    pub fn new(lab: &Arc<LabHost>) -> Self {
        Self { seam: lab.plain_seam() }
    }

    pub fn query(&self, wql: &str) -> Vec<Instance> {
        self.seam.wmi.query(Namespace::Virtualization, wql).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn get(&self, path: &ObjectPath) -> Result<Instance, WmiError> {
        self.seam.wmi.get(Namespace::Virtualization, path)
    }

    pub fn only(&self, wql: &str) -> Instance {
        let mut found = self.query(wql);
        assert_eq!(found.len(), 1, "{wql}: {found:?}");
        found.remove(0)
    }

    pub fn service(&self, class: &str) -> ObjectPath {
        self.only(&format!("SELECT * FROM {class}")).path.unwrap()
    }

    pub fn vm(&self, name: &str) -> Instance {
        let name = name.replace('\\', r"\\").replace('\'', r"\'");
        self.only(&format!("SELECT * FROM Msvm_ComputerSystem WHERE ElementName = '{name}'"))
    }

    pub fn vm_path(&self, name: &str) -> ObjectPath {
        self.vm(name).path.unwrap()
    }

    pub fn call(
        &self,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError> {
        self.seam.wmi.call(Namespace::Virtualization, object, method, parameters)
    }

    pub fn associated(&self, path: &ObjectPath, association: &str, result: &str) -> Vec<Instance> {
        self.query(&format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = {association} ResultClass = {result}"))
    }

    /// Waits for the end of a job; gives its path and last look.
    pub fn wait(&self, output: &MethodOutput) -> (ObjectPath, Instance) {
        assert_eq!(output.return_value, 4096, "{output:?}");
        let CimValue::Reference(path) = output.get("Job") else { panic!("no job: {output:?}") };
        for _ in 0..10_000 {
            let job = self.get(path).unwrap();
            if !matches!(job.get("JobState").as_u64().unwrap(), 2..=6) {
                return (path.clone(), job);
            }
            self.seam.clock.sleep(Duration::from_millis(100));
        }
        panic!("the job never ends");
    }

    pub fn start_checkpoint(&self, vm: &str, level: u8) -> MethodOutput {
        self.call(
            &self.service("Msvm_VirtualSystemSnapshotService"),
            "CreateSnapshot",
            &[
                ("AffectedSystem", CimValue::Reference(self.vm_path(vm))),
                ("SnapshotSettings", CimValue::String(snapshot_settings(level))),
                ("SnapshotType", CimValue::Uint16(32768)),
            ],
        )
        .unwrap()
    }

    /// A recovery checkpoint of level 2.
    pub fn checkpoint(&self, vm: &str) -> Instance {
        let (job, last) = self.wait(&self.start_checkpoint(vm, 2));
        assert_eq!(last.get("JobState").as_u64(), Some(7), "{last:?}");
        let mut found = self.associated(&job, "Msvm_AffectedJobElement", "Msvm_VirtualSystemSettingData");
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    /// Files of a configuration's disks, in slot order.
    pub fn files(&self, settings: &Instance) -> Vec<String> {
        let path = settings.path.as_ref().unwrap();
        self.associated(path, "Msvm_VirtualSystemSettingDataComponent", "Msvm_StorageAllocationSettingData")
            .iter()
            .map(|sasd| sasd.get("HostResource").as_array().unwrap()[0].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn on_checkpoint(&self, method: &str, checkpoint: &Instance) -> Result<MethodOutput, WmiError> {
        let reference = CimValue::Reference(checkpoint.path.clone().unwrap());
        let service = self.service("Msvm_VirtualSystemSnapshotService");
        self.call(&service, method, &[("AffectedSnapshot", reference)])
    }

    /// Converts a checkpoint; gives the reference point.
    pub fn convert(&self, checkpoint: &Instance) -> Instance {
        let (job, last) = self.wait(&self.on_checkpoint("ConvertToReferencePoint", checkpoint).unwrap());
        assert_eq!(last.get("JobState").as_u64(), Some(7), "{last:?}");
        let mut found = self.associated(&job, "Msvm_AffectedJobElement", "Msvm_VirtualSystemReferencePoint");
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    pub fn destroy(&self, checkpoint: &Instance) {
        let (_, last) = self.wait(&self.on_checkpoint("DestroySnapshot", checkpoint).unwrap());
        assert_eq!(last.get("JobState").as_u64(), Some(7), "{last:?}");
    }

    pub fn destroy_reference_point(&self, point: &Instance) -> Instance {
        let reference = CimValue::Reference(point.path.clone().unwrap());
        let service = self.service("Msvm_VirtualSystemReferencePointService");
        let parameters = [("AffectedReferencePoint", reference)];
        self.wait(&self.call(&service, "DestroyReferencePoint", &parameters).unwrap()).1
    }

    /// Sleeps until nothing is going on with a VM.
    pub fn settle(&self, lab: &LabHost, vm: &str) {
        for _ in 0..1000 {
            if lab.is_at_rest(vm).unwrap() {
                return;
            }
            self.seam.clock.sleep(Duration::from_millis(500));
        }
        panic!("VM {vm} never comes to rest");
    }

    pub fn open(&self, file: &str) -> Box<dyn VirtDiskHandle> {
        self.seam.virt_disk.open_read_only(file).unwrap_or_else(|e| panic!("{e}"))
    }
}

pub fn snapshot_settings(level: u8) -> String {
    format!(
        "<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSnapshotSettingData\">\
         <PROPERTY NAME=\"ConsistencyLevel\" TYPE=\"uint8\"><VALUE>{level}</VALUE></PROPERTY>\
         <PROPERTY NAME=\"GuestBackupType\" TYPE=\"uint8\"><VALUE>2</VALUE></PROPERTY>\
         <PROPERTY NAME=\"IgnoreNonSnapshottableDisks\" TYPE=\"boolean\"><VALUE>TRUE</VALUE></PROPERTY></INSTANCE>"
    )
}

/// The strings of an array property.
pub fn strings(instance: &Instance, property: &str) -> Vec<String> {
    let CimValue::Array(CimType::String, values) = instance.get(property) else { panic!("{property}: {instance:?}") };
    values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

/// Everything a disk reads as.
pub fn read_all(disk: &dyn VirtDiskHandle) -> Vec<u8> {
    let size = disk.info().unwrap().size_bytes;
    let mut content = vec![0; size as usize];
    for (index, piece) in content.chunks_mut(MIB as usize).enumerate() {
        disk.read(piece, index as u64 * MIB).unwrap();
    }
    content
}

/// All changes since an id, page by page; checks what every page promises.
pub fn changes(disk: &dyn VirtDiskHandle, id: &str, max_ranges: usize) -> Result<Vec<ChangedRange>, u32> {
    let size = disk.info().unwrap().size_bytes;
    let (mut at, mut all) = (0, Vec::new());
    while at < size {
        let page = disk.changed_ranges(id, at, size - at, max_ranges).map_err(|e| e.code)?;
        assert!(page.processed_bytes > 0 && page.ranges.len() <= max_ranges);
        for range in page.ranges {
            assert!(range.len_bytes > 0 && range.offset_bytes >= at);
            assert!(range.offset_bytes + range.len_bytes <= at + page.processed_bytes);
            all.push(range);
        }
        at += page.processed_bytes;
    }
    Ok(all)
}

/// Indices of the pieces of `unit` bytes that ranges touch.
pub fn units(ranges: &[ChangedRange], unit: u64) -> BTreeSet<u64> {
    ranges
        .iter()
        .flat_map(|range| range.offset_bytes / unit..(range.offset_bytes + range.len_bytes).div_ceil(unit))
        .collect()
}

/// An instance as a parameter text, nulls left out.
pub fn embedded(instance: &Instance) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let scalar = |value: &CimValue| match value {
        CimValue::Boolean(value) => value.to_string(),
        CimValue::Sint32(value) => value.to_string(),
        value => value.as_str().map_or_else(|| value.as_u64().unwrap().to_string(), escape),
    };
    let mut text = format!("<INSTANCE CLASSNAME=\"{}\">", instance.class);
    for (name, value) in &instance.properties {
        text += &match value {
            CimValue::Null => continue,
            CimValue::Array(base, values) => {
                let values: String = values.iter().map(|value| format!("<VALUE>{}</VALUE>", scalar(value))).collect();
                let kind = format!("{base:?}").to_lowercase();
                format!(
                    "<PROPERTY.ARRAY NAME=\"{name}\" TYPE=\"{kind}\"><VALUE.ARRAY>{values}</VALUE.ARRAY></PROPERTY.ARRAY>"
                )
            }
            value => {
                let kind = format!("{value:?}");
                let kind = kind.split('(').next().unwrap().to_lowercase();
                format!("<PROPERTY NAME=\"{name}\" TYPE=\"{kind}\"><VALUE>{}</VALUE></PROPERTY>", scalar(value))
            }
        };
    }
    text + "</INSTANCE>"
}
