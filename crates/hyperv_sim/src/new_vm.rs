//! Putting a VM on the host, as an administrator does.

use std::fs;
use std::path::PathBuf;

use crate::access;
use crate::config_file;
use crate::configuration::{Configuration, MEMORY, PROCESSOR, RASD, SECURITY};
use crate::disks;
use crate::error::LabError;
use crate::host::{LabHost, Tx};
use crate::objects;
use crate::paths::WinPath;
use crate::planned;
use crate::security;
use crate::state::{GuestFamily, Power, Vm, VssBehaviour, new_guid};
use crate::templates;

/// What a new VM's disk starts as; a VHDX where nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// The content of a file: VHDX (copied as it is), VHD or raw (converted).
    Copy(PathBuf),
    /// Nothing but zeroes; dynamic, with blocks of 32 MiB.
    Empty {
        /// Virtual size, rounded up to 512 bytes.
        size_bytes: u64,
    },
    /// A fixed VHD of zeroes.
    Vhd {
        /// Virtual size, rounded up to 512 bytes.
        size_bytes: u64,
    },
    /// A VHD set of zeroes. What is in it is a VHDX; only its name says what it is.
    VhdSet {
        /// Virtual size.
        size_bytes: u64,
    },
    /// A disk of persistent memory, of zeroes.
    PersistentMemory {
        /// Virtual size.
        size_bytes: u64,
    },
    /// A differencing disk of its own, whose parent is a golden image in `C:\Golden images`, made of the content of a
    /// file as for [`DiskSource::Copy`].
    ChildOf(PathBuf),
}

/// What a new VM is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmOptions {
    /// The VM id; random by default.
    pub id: Option<String>,
    /// 1 or 2.
    pub generation: u8,
    /// Configuration version; change tracking needs 6.2.
    pub version: String,
    /// Started at once.
    pub running: bool,
    /// Virtual processors.
    pub processors: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What runs in it.
    pub guest: GuestFamily,
    /// How it answers requests for application consistency.
    pub vss: VssBehaviour,
    /// Secure Boot on.
    pub secure_boot: bool,
    /// Virtual TPM on.
    pub tpm: bool,
    /// `UserSnapshotType`: 2 disabled, 3 production, 4 production only, 5 standard.
    pub user_snapshot_type: u16,
    /// Indices of disks that are attached as shared, and therefore cannot be part of a checkpoint.
    pub shared_disks: Vec<usize>,
    /// Shielded: nobody sees its console or its data.
    pub shielded: bool,
    /// Hyper-V Replica: 0 none, 1 primary, 2 replica, 3 test replica, 4 extended replica.
    pub replication_mode: u16,
    /// Numbers of physical disks that are passed through; the host has as many as its options say.
    pub physical_disks: Vec<u32>,
    /// Has a virtual fibre channel adapter.
    pub fibre_channel: bool,
    /// The folder; `C:\VMs\<name>` by default.
    pub folder: Option<String>,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            id: None,
            generation: 2,
            version: "10.0".into(),
            running: true,
            processors: 2,
            memory_mib: 2048,
            guest: GuestFamily::Linux,
            vss: VssBehaviour::Works,
            secure_boot: true,
            tpm: false,
            user_snapshot_type: 3,
            shared_disks: Vec::new(),
            shielded: false,
            replication_mode: 0,
            physical_disks: Vec::new(),
            fibre_channel: false,
            folder: None,
        }
    }
}

impl LabHost {
    /// Puts a VM on the host; gives its id.
    pub fn add_vm(&self, name: &str, disks: &[DiskSource], options: VmOptions) -> Result<String, LabError> {
        let refused = |reason: String| LabError::refused("add a VM", reason);
        let id = options.id.clone().unwrap_or_else(new_guid).to_uppercase();
        let is_guid = uuid::Uuid::try_parse(&id).is_ok() && id.len() == 36;
        if !is_guid || name.is_empty() || !matches!(options.generation, 1 | 2) || disks.len() > 64 {
            return Err(refused(format!("{name:?} with id {id}, generation {}", options.generation)));
        }
        self.transact(|tx| {
            if tx.machine(&id).is_some() {
                return Err(refused(format!("id {id} is taken")));
            }
            let folder = match &options.folder {
                Some(folder) => WinPath::new(folder),
                None => free_folder(tx, name)?,
            };
            let in_sandbox = tx.store.file(&folder)?;
            for sub in ["Snapshots", "Virtual Machines"] {
                let sub = in_sandbox.join(sub);
                fs::create_dir_all(&sub).map_err(LabError::io("create", sub))?;
            }
            let mut settings = configuration(tx, name, &options);
            let stem = file_name_of(name);
            for (index, source) in disks.iter().enumerate() {
                let stem = if index == 0 { stem.clone() } else { format!("{stem}-disk{index}") };
                let file = source.make(tx, &folder, &stem)?;
                let (controller, location) = free_location(&mut settings).ok_or_else(|| {
                    refused(format!("generation {} has no place for {} disks", options.generation, disks.len()))
                })?;
                let place = settings.attach(&controller, location, file, &stem);
                let disk = settings.disks.iter_mut().find(|disk| disk.place == place).expect("just attached");
                disk.properties.put("PersistentReservationsSupported", options.shared_disks.contains(&index));
            }
            for &number in &options.physical_disks {
                let disk = objects::physical_disk_path(tx, number)
                    .ok_or_else(|| refused(format!("the host has no physical disk {number}")))?;
                let (controller, location) = free_location(&mut settings).ok_or_else(|| refused("no place".into()))?;
                settings.attach_physical(&controller, location, disk.as_str());
            }
            let files: Vec<WinPath> = settings.disks.iter().map(|disk| disk.file.clone()).collect();
            let vm = Vm {
                power: if options.running { Power::Running } else { Power::Off },
                generation: options.generation,
                version: options.version.clone(),
                guest: options.guest,
                vss: options.vss,
                replication_mode: options.replication_mode,
                ..planned::new_vm(tx, id.clone(), folder, settings)
            };
            config_file::write_vm(tx.store, &vm)?;
            tx.edit().vms.push(vm);
            for file in files {
                access::grant(tx, &id, &file)?;
            }
            Ok(id.clone())
        })
    }
}

impl DiskSource {
    /// Makes the file of a disk; gives its path.
    pub(crate) fn make(&self, tx: &Tx<'_>, folder: &WinPath, stem: &str) -> Result<WinPath, LabError> {
        let extension = match self {
            Self::Copy(_) | Self::Empty { .. } | Self::ChildOf(_) => "vhdx",
            Self::Vhd { .. } => "vhd",
            Self::VhdSet { .. } => "vhds",
            Self::PersistentMemory { .. } => "vhdpmem",
        };
        let file = folder.join(&format!("{stem}.{extension}"));
        match self {
            Self::Copy(from) => disks::import(tx.store, &file, from)?,
            Self::Vhd { size_bytes } => disks::create_vhd(tx.store, &file, *size_bytes)?,
            Self::Empty { size_bytes } | Self::VhdSet { size_bytes } | Self::PersistentMemory { size_bytes } => {
                disks::create_empty(tx.store, &file, *size_bytes)?;
            }
            Self::ChildOf(from) => {
                let golden = WinPath::new(r"C:\Golden images");
                let parent = golden
                    .join(&format!("{}.vhdx", file_name_of(&from.file_stem().unwrap_or_default().to_string_lossy())));
                if !tx.store.file(&parent)?.exists() {
                    let folder = tx.store.file(&golden)?;
                    fs::create_dir_all(&folder).map_err(LabError::io("create", folder))?;
                    disks::import(tx.store, &parent, from)?;
                }
                disks::create_child(tx.store, &file, &parent)?;
            }
        }
        Ok(file)
    }
}

fn configuration(tx: &Tx<'_>, name: &str, options: &VmOptions) -> Configuration {
    let mut settings = Configuration::new(name, options.generation);
    settings.system.put("UserSnapshotType", options.user_snapshot_type);
    for (class, quantity) in [(PROCESSOR, options.processors), (MEMORY, options.memory_mib)] {
        let device = settings.first_of_class_mut(class).expect("every VM has one");
        device.properties.put("VirtualQuantity", quantity);
        if class == MEMORY {
            device.properties.put("Limit", quantity);
            device.properties.put("Reservation", quantity);
        }
    }
    if options.generation == 2 {
        let template = match options.guest {
            GuestFamily::Windows => "1734c6e8-3154-4dda-ba5f-a874cc483422",
            _ => "272e7447-90a4-4563-a4b9-8e4ab00526ce",
        };
        settings.system.put("SecureBootEnabled", options.secure_boot);
        settings.system.put("SecureBootTemplateId", template);
        settings.add_scsi_controller();
    }
    if options.tpm {
        let security = settings.first_of_class_mut(SECURITY).expect("every VM has one");
        security.properties.put("TpmEnabled", true);
        security.properties.put("EncryptStateAndVmMigrationTraffic", true);
        security::roll(&mut settings, &tx.guardians[0]);
    }
    if options.shielded {
        let security = settings.first_of_class_mut(SECURITY).expect("every VM has one");
        security.properties.put("ShieldingRequested", true);
        security.properties.put("DataProtectionRequested", true);
    }
    if options.fibre_channel {
        settings.devices.push(templates::own("Synthetic FiberChannel Port").device(new_guid(), None));
    }
    if let Some(switch) = tx.options.switches.first() {
        let mac = format!("00155D{:06X}", tx.vms.len() + 0x10);
        settings.add_network_adapter(&mac, objects::switch_path(tx, &switch.id).as_str(), &switch.name);
    }
    settings
}

/// The first location that is free, on the first controller that has one.
pub(crate) fn free_location(settings: &mut Configuration) -> Option<(String, u8)> {
    for controller in settings.devices.iter().filter(|device| device.class == RASD) {
        let locations = match controller.properties.number("ResourceType") {
            5 => 2,
            6 => 64,
            _ => continue,
        };
        let free =
            (0..locations).find(|location| settings.device(&format!(r"{}\{location}\D", controller.id)).is_none());
        if let Some(location) = free {
            return Some((controller.id.clone(), location));
        }
    }
    None
}

/// `C:\VMs\<name>`, with a number behind it when another VM has that.
pub(crate) fn free_folder(tx: &Tx<'_>, name: &str) -> Result<WinPath, LabError> {
    let name = file_name_of(name);
    let names = std::iter::once(name.clone()).chain((2..).map(|number| format!("{name} {number}")));
    for name in names {
        let folder = WinPath::new(r"C:\VMs").join(&name);
        if !tx.store.file(&folder)?.exists() {
            return Ok(folder);
        }
    }
    unreachable!("there are more numbers than VMs")
}

/// A VM's name as a file name: without what Windows does not allow in one.
pub(crate) fn file_name_of(name: &str) -> String {
    let allowed = |c: char| if c < ' ' || r#"<>:"/\|?*"#.contains(c) { '_' } else { c };
    let name: String = name.trim_end_matches(['.', ' ']).chars().map(allowed).take(80).collect();
    if name.is_empty() { "vm".into() } else { name }
}
