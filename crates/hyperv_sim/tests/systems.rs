//! Systems come, change and go: importing, defining, resources, states, security, exports.

mod support;

use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput, ObjectPath};
use hyperv_sim::{DiskSource, Fault, JobStyle, LabHost, LabOptions, VmOptions};
use support::{Client, MIB, embedded, strings};

const MANAGEMENT: &str = "Msvm_VirtualSystemManagementService";
const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
const RASD: &str = "Msvm_ResourceAllocationSettingData";
const SASD: &str = "Msvm_StorageAllocationSettingData";

struct Rig {
    _dir: tempfile::TempDir,
    lab: Arc<LabHost>,
    client: Client,
}

impl Rig {
    fn new(options: LabOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lab = LabHost::create_with(dir.path().join("lab"), options).unwrap();
        let client = Client::new(&lab);
        Self { _dir: dir, lab, client }
    }

    fn with_vm(vm: VmOptions) -> Self {
        let rig = Self::new(LabOptions::default());
        rig.lab.add_vm("web", &[DiskSource::Empty { size_bytes: 4 * MIB }], vm).unwrap();
        rig
    }

    fn manage(&self, method: &str, parameters: &[(&str, CimValue)]) -> MethodOutput {
        let service = self.client.service(MANAGEMENT);
        self.client.call(&service, method, parameters).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// Calls a method that must succeed; gives what its job made.
    fn made(&self, method: &str, parameters: &[(&str, CimValue)], class: &str) -> Vec<Instance> {
        let (job, last) = self.client.wait(&self.manage(method, parameters));
        assert_eq!(last.get("JobState").as_u64(), Some(7), "{method}: {last:?}");
        self.client.associated(&job, "Msvm_AffectedJobElement", class)
    }

    /// Calls a method whose job must fail; gives all its error texts.
    fn failing(&self, method: &str, parameters: &[(&str, CimValue)]) -> String {
        let (job, last) = self.client.wait(&self.manage(method, parameters));
        assert_eq!(last.get("JobState").as_u64(), Some(10), "{method}: {last:?}");
        let errors = self.client.call(&job, "GetErrorEx", &[]).unwrap();
        let CimValue::Array(_, texts) = errors.get("Errors") else { panic!("{errors:?}") };
        texts.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join("\n")
    }

    fn code(&self, method: &str, parameters: &[(&str, CimValue)]) -> u32 {
        self.manage(method, parameters).return_value
    }

    /// A recovery checkpoint's configuration files, copied aside; gives the Windows path of the `.vmcx`.
    fn saved_definition(&self, vm: &str) -> String {
        let checkpoint = self.client.checkpoint(vm);
        let text = |name: &str| checkpoint.get(name).as_str().unwrap().to_owned();
        let from = format!("{}\\{}", text("ConfigurationDataRoot"), text("ConfigurationFile"));
        let to = r"C:\scratch\Virtual Machines\saved.vmcx";
        std::fs::create_dir_all(self.lab.host_file(r"C:\scratch\Virtual Machines").unwrap()).unwrap();
        for extension in ["vmcx", "vmrs", "vmgs"] {
            let file = |path: &str| self.lab.host_file(&path.replace("vmcx", extension)).unwrap();
            std::fs::copy(file(&from), file(to)).unwrap();
        }
        self.client.destroy(&checkpoint);
        self.client.settle(&self.lab, vm);
        to.to_owned()
    }

    fn import(&self, definition: &str, new_id: bool) -> Vec<(&'static str, CimValue)> {
        vec![
            ("SystemDefinitionFile", CimValue::String(definition.to_owned())),
            ("GenerateNewSystemIdentifier", CimValue::Boolean(new_id)),
        ]
    }

    fn turn(&self, vm: &ObjectPath, state: u16) -> Instance {
        let output =
            self.client.call(vm, "RequestStateChange", &[("RequestedState", CimValue::Uint16(state))]).unwrap();
        self.client.wait(&output).1
    }

    fn off_and_gone(&self, vm: &str) {
        let path = self.client.vm_path(vm);
        assert_eq!(self.turn(&path, 3).get("JobState").as_u64(), Some(7));
        self.made("DestroySystem", &[("AffectedSystem", CimValue::Reference(path))], "Msvm_ComputerSystem");
    }

    /// A copy of a disk file, as a restore would have written it.
    fn restored_disk(&self, from: &str, to: &str) {
        let (from, to) = (self.lab.host_file(from).unwrap(), self.lab.host_file(to).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }

    fn template(&self, class: &str, sub_type: &str) -> Instance {
        self.client.only(&format!(
            r"SELECT * FROM {class} WHERE ResourceSubType = 'Microsoft:Hyper-V:{sub_type}' AND InstanceID LIKE '%\\Default'"
        ))
    }

    fn add(&self, vssd: &Instance, settings: &[Instance]) -> Vec<(&'static str, CimValue)> {
        vec![("AffectedConfiguration", CimValue::Reference(vssd.path.clone().unwrap())), resources(settings)]
    }

    fn settings_of(&self, vssd: &Instance, class: &str) -> Vec<Instance> {
        self.client.associated(vssd.path.as_ref().unwrap(), "Msvm_VirtualSystemSettingDataComponent", class)
    }
}

fn resources(settings: &[Instance]) -> (&'static str, CimValue) {
    let texts = settings.iter().map(|setting| CimValue::String(embedded(setting))).collect();
    ("ResourceSettings", CimValue::Array(CimType::String, texts))
}

fn with(mut setting: Instance, changes: &[(&str, CimValue)]) -> Instance {
    for (name, value) in changes {
        assert!(setting.properties.contains_key(*name), "{name}");
        setting.properties.insert((*name).to_owned(), value.clone());
    }
    setting
}

fn text(value: &str) -> CimValue {
    CimValue::String(value.to_owned())
}

fn texts(value: &str) -> CimValue {
    CimValue::Array(CimType::String, vec![text(value)])
}

fn path_text(instance: &Instance) -> CimValue {
    text(instance.path.as_ref().unwrap().as_str())
}

#[test]
fn a_checkpoints_definition_becomes_a_vm_again() {
    let rig = Rig::with_vm(VmOptions { tpm: true, ..VmOptions::default() });
    let id = rig.client.vm("web").get("Name").as_str().unwrap().to_owned();
    let disk = rig.lab.disk_chain("web", 0).unwrap()[0].clone();
    let definition = rig.saved_definition("web");

    let text_of_refusal = rig.failing("ImportSystemDefinition", &rig.import(&definition, false));
    assert!(text_of_refusal.contains("already exists"), "{text_of_refusal}");
    rig.off_and_gone("web");
    assert!(rig.lab.host_file(&disk).unwrap().is_file(), "files stay");

    let planned =
        rig.made("ImportSystemDefinition", &rig.import(&definition, false), "Msvm_PlannedComputerSystem").remove(0);
    assert_eq!(planned.get("Name").as_str(), Some(id.as_str()));
    assert_eq!(rig.client.query("SELECT * FROM Msvm_ComputerSystem").len(), 1, "only the host");
    let planned_path = planned.path.clone().unwrap();
    let vssd = rig.client.associated(&planned_path, "Msvm_SettingsDefineState", SETTINGS).remove(0);
    assert_eq!(vssd.get("VirtualSystemType").as_str(), Some("Microsoft:Hyper-V:System:Planned"));

    let renamed = with(
        vssd.clone(),
        &[
            ("ElementName", text("it's back")),
            ("ConfigurationDataRoot", text(r"C:\new")),
            ("SnapshotDataRoot", text(r"C:\new")),
            ("SwapFileDataRoot", text(r"C:\new")),
            ("GuestStateDataRoot", text(r"C:\new")),
            ("AutomaticStartupAction", CimValue::Uint16(2)),
        ],
    );
    assert_eq!(rig.code("ModifySystemSettings", &[("SystemSettings", text(&embedded(&renamed)))]), 0);

    // Nobody named the file again: the VM's account would not be let in.
    let system = [("PlannedSystem", CimValue::Reference(planned_path))];
    rig.restored_disk(&disk, r"C:\new\restored disk's.vhdx");
    let medium = rig.settings_of(&vssd, SASD).remove(0);
    std::fs::rename(rig.lab.host_file(&disk).unwrap(), rig.lab.host_file(r"C:\VMs\aside.vhdx").unwrap()).unwrap();
    let errors = rig.failing("ValidatePlannedSystem", &system);
    assert!(errors.contains("Hard disk") && errors.contains("(0x80070002)"), "{errors}");
    let medium = with(medium, &[("HostResource", texts(r"C:\new\restored disk's.vhdx"))]);
    let modified = rig.made("ModifyResourceSettings", &[resources(&[medium])], SASD);
    assert_eq!(strings(&modified[0], "HostResource"), [r"C:\new\restored disk's.vhdx"]);
    rig.made("ValidatePlannedSystem", &system, SETTINGS);
    let vm = rig.made("RealizePlannedSystem", &system, "Msvm_ComputerSystem").remove(0);
    assert_eq!((vm.get("Name").as_str(), vm.get("EnabledState").as_u64()), (Some(id.as_str()), Some(3)));
    assert!(rig.client.query("SELECT * FROM Msvm_PlannedComputerSystem").is_empty());
    for extension in ["vmcx", "vmrs", "vmgs"] {
        let file = format!(r"C:\new\Virtual Machines\{id}.{extension}");
        assert!(rig.lab.host_file(&file).unwrap().is_file(), "{file}");
    }
    let started = rig.turn(vm.path.as_ref().unwrap(), 2);
    assert_eq!(started.get("JobState").as_u64(), Some(7), "{started:?}");
    assert_eq!(rig.client.vm("it's back").get("EnabledState").as_u64(), Some(2));
    rig.client.destroy(&rig.client.checkpoint("it's back"));
}

#[test]
fn definitions_that_cannot_be_imported() {
    let rig = Rig::with_vm(VmOptions { version: "9.0".into(), ..VmOptions::default() });
    rig.lab.create_user_checkpoint("web").unwrap();
    let definition = rig.saved_definition("web");
    let file = rig.lab.host_file(&definition).unwrap();
    let good = std::fs::read(&file).unwrap();
    for (case, content, expected) in [
        ("missing", None, "(0x80070002)"),
        ("empty", Some(Vec::new()), "(0x8007000D)"),
        (
            "cut",
            Some(good[..good.len() / 2].to_vec()).map(|mut cut| {
                cut[40] ^= 1;
                cut
            }),
            "(0x8007000D)",
        ),
    ] {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let errors = rig.failing("ImportSystemDefinition", &rig.import(&definition, true));
        assert!(errors.contains(expected), "{case}: {errors}");
    }
    std::fs::write(&file, good).unwrap();
    let held = rig.client.seam.files.open_read(&definition).unwrap();
    assert_eq!(rig.code("ImportSystemDefinition", &rig.import(&definition, true)), 32779, "file in use");
    drop(held);
    assert_eq!(rig.code("ImportSystemDefinition", &rig.import(r"C:\..\x.vmcx", true)), 32773);
}

#[test]
fn a_planned_system_lists_all_that_is_wrong_with_it() {
    let rig = Rig::with_vm(VmOptions { processors: 8, memory_mib: 4096, ..VmOptions::default() });
    rig.lab.create_user_checkpoint("web").unwrap();
    let definition = rig.saved_definition("web");
    rig.lab
        .set_options(|options| {
            options.processors = 4;
            options.memory_mib = 2048;
            options.switches.clear();
        })
        .unwrap();
    rig.lab.stop_vm("web").unwrap();
    let planned =
        rig.made("ImportSystemDefinition", &rig.import(&definition, true), "Msvm_PlannedComputerSystem").remove(0);
    let path = planned.path.clone().unwrap();
    let system = [("PlannedSystem", CimValue::Reference(path.clone()))];
    let errors = rig.failing("ValidatePlannedSystem", &system);
    for expected in ["Checkpoint", "another virtual machine", "Ethernet switch", "processors", "memory"] {
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
    rig.failing("RealizePlannedSystem", &system);

    let missing = rig.client.associated(&path, "Msvm_SnapshotOfVirtualSystem", SETTINGS).remove(0);
    assert_eq!(missing.get("VirtualSystemType").as_str(), Some("Microsoft:Hyper-V:Snapshot:Missing"));
    rig.client.destroy(&missing);
    let vssd = rig.client.associated(&path, "Msvm_SettingsDefineState", SETTINGS).remove(0);
    rig.restored_disk(&rig.lab.disk_chain("web", 0).unwrap()[1].clone(), r"C:\r\a.vhdx");
    let medium = with(rig.settings_of(&vssd, SASD).remove(0), &[("HostResource", texts(r"C:\r\a.vhdx"))]);
    let processor = rig.settings_of(&vssd, "Msvm_ProcessorSettingData").remove(0);
    let memory = rig.settings_of(&vssd, "Msvm_MemorySettingData").remove(0);
    let connection = rig.settings_of(&vssd, "Msvm_EthernetPortAllocationSettingData").remove(0);
    let changed = [
        medium,
        with(processor, &[("VirtualQuantity", CimValue::Uint64(2))]),
        with(memory, &[("VirtualQuantity", CimValue::Uint64(1024))]),
        with(connection, &[("EnabledState", CimValue::Uint16(3))]),
    ];
    assert_eq!(rig.made("ModifyResourceSettings", &[resources(&changed)], "CIM_SettingData").len(), 4);
    rig.made("ValidatePlannedSystem", &system, SETTINGS);
    rig.made("DestroySystem", &[("AffectedSystem", CimValue::Reference(path))], SETTINGS);
    assert!(rig.client.query("SELECT * FROM Msvm_PlannedComputerSystem").is_empty());
}

#[test]
fn a_vm_is_built_from_settings() {
    for jobs in [JobStyle::ByJob, JobStyle::Synchronous] {
        let rig = Rig::new(LabOptions { jobs, physical_disks: 1, ..LabOptions::default() });
        rig.lab.add_vm("source", &[DiskSource::Empty { size_bytes: MIB }], VmOptions::default()).unwrap();
        rig.lab.stop_vm("source").unwrap();
        rig.restored_disk(&rig.lab.disk_chain("source", 0).unwrap()[0], r"C:\built\disk.vhdx");
        let system = "<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\">\
             <PROPERTY NAME=\"ElementName\" TYPE=\"string\"><VALUE>built</VALUE></PROPERTY>\
             <PROPERTY NAME=\"VirtualSystemSubType\" TYPE=\"string\"><VALUE>Microsoft:Hyper-V:SubType:2</VALUE></PROPERTY>\
             <PROPERTY NAME=\"ConfigurationDataRoot\" TYPE=\"string\"><VALUE>C:\\built</VALUE></PROPERTY></INSTANCE>";
        let done = |method: &str, parameters: &[(&str, CimValue)]| match jobs {
            JobStyle::ByJob => {
                rig.made(method, parameters, "CIM_SettingData");
            }
            JobStyle::Synchronous => assert_eq!(rig.code(method, parameters), 0, "{method}"),
        };
        done("DefineSystem", &[("SystemSettings", text(system))]);
        let vm = rig.client.vm("built");
        let vssd = rig.client.associated(vm.path.as_ref().unwrap(), "Msvm_SettingsDefineState", SETTINGS).remove(0);
        assert_eq!(rig.settings_of(&vssd, "Msvm_ProcessorSettingData").len(), 1);
        let controllers = || {
            let devices = rig.settings_of(&vssd, RASD);
            devices.into_iter().filter(|device| device.get("ResourceType").as_u64() == Some(6)).collect::<Vec<_>>()
        };
        assert!(controllers().is_empty(), "generation 2 comes without a controller");

        done("AddResourceSettings", &rig.add(&vssd, &[rig.template(RASD, "Synthetic SCSI Controller")]));
        let controller = controllers().remove(0);
        let drive = with(
            rig.template(RASD, "Synthetic Disk Drive"),
            &[("Parent", path_text(&controller)), ("AddressOnParent", text("3"))],
        );
        let physical = with(
            rig.template(RASD, "Physical Disk Drive"),
            &[
                ("Parent", path_text(&controller)),
                ("AddressOnParent", text("4")),
                ("HostResource", texts(rig.client.only("SELECT * FROM Msvm_DiskDrive").path.unwrap().as_str())),
            ],
        );
        done("AddResourceSettings", &rig.add(&vssd, &[drive.clone(), physical]));
        let added =
            rig.settings_of(&vssd, RASD).into_iter().find(|one| one.get("AddressOnParent").as_str() == Some("3"));
        let added = added.unwrap();
        let id = added.get("InstanceID").as_str().unwrap();
        assert!(id.ends_with(r"\0\3\D") && id.starts_with(controller.get("InstanceID").as_str().unwrap()), "{id}");
        let medium = with(
            rig.template(SASD, "Virtual Hard Disk"),
            &[("Parent", path_text(&added)), ("HostResource", texts(r"C:\built\disk.vhdx"))],
        );
        let adapter = with(
            rig.template("Msvm_SyntheticEthernetPortSettingData", "Synthetic Ethernet Port"),
            &[("VirtualSystemIdentifiers", texts("{11111111-2222-3333-4444-555555555555}"))],
        );
        done("AddResourceSettings", &rig.add(&vssd, &[medium.clone(), adapter]));
        let adapter = rig.settings_of(&vssd, "Msvm_SyntheticEthernetPortSettingData").remove(0);
        let switch = rig.client.only("SELECT * FROM Msvm_VirtualEthernetSwitch").path.unwrap();
        let connection = with(
            rig.template("Msvm_EthernetPortAllocationSettingData", "Ethernet Connection"),
            &[("Parent", path_text(&adapter)), ("HostResource", texts(switch.as_str()))],
        );
        done("AddResourceSettings", &rig.add(&vssd, std::slice::from_ref(&connection)));

        // The wrong ones, each with what the host says.
        let other = rig.client.vm("source");
        let other = rig.client.associated(other.path.as_ref().unwrap(), "Msvm_SettingsDefineState", SETTINGS).remove(0);
        let free_drive = with(drive.clone(), &[("AddressOnParent", text("5"))]);
        done("AddResourceSettings", &rig.add(&vssd, &[free_drive]));
        let free =
            rig.settings_of(&vssd, RASD).into_iter().find(|one| one.get("AddressOnParent").as_str() == Some("5"));
        let in_free = |file: &str| {
            with(medium.clone(), &[("Parent", path_text(free.as_ref().unwrap())), ("HostResource", texts(file))])
        };
        let source = rig.lab.disk_chain("source", 0).unwrap()[0].clone();
        for (case, settings, expected) in [
            ("location taken", drive.clone(), 32773),
            ("no such location", with(drive.clone(), &[("AddressOnParent", text("64"))]), 32773),
            (
                "controller of another VM",
                with(drive.clone(), &[("Parent", path_text(&rig.settings_of(&other, RASD)[0]))]),
                32773,
            ),
            ("no parent", with(drive.clone(), &[("Parent", CimValue::Null)]), 32773),
            ("drive holds one already", medium.clone(), 32773),
            ("no such file", in_free(r"C:\built\none.vhdx"), 32773),
            ("attached here", in_free(r"c:\BUILT\disk.vhdx"), 32774),
            ("attached elsewhere", in_free(&source), 32774),
            ("second connection", connection.clone(), 32773),
            (
                "no such switch",
                with(connection.clone(), &[("HostResource", texts(&switch.as_str().replace("C08C", "0000")))]),
                32773,
            ),
            ("a second processor", rig.template("Msvm_ProcessorSettingData", "Processor"), 32773),
            ("legacy adapter", rig.template("Msvm_EmulatedEthernetPortSettingData", "Emulated Ethernet Port"), 32773),
            ("no sub type", with(drive.clone(), &[("ResourceSubType", CimValue::Null)]), 32773),
        ] {
            assert_eq!(rig.code("AddResourceSettings", &rig.add(&vssd, &[settings])), expected, "{case}, {jobs:?}");
        }

        let vm = vm.path.unwrap();
        assert_eq!(rig.client.vm("built").get("EnabledState").as_u64(), Some(3));
        let start = rig.client.call(&vm, "RequestStateChange", &[("RequestedState", CimValue::Uint16(2))]).unwrap();
        if jobs == JobStyle::ByJob {
            assert_eq!(rig.client.vm("built").get("EnabledState").as_u64(), Some(10), "starting");
            assert_eq!(rig.client.wait(&start).1.get("JobState").as_u64(), Some(7));
        }
        assert_eq!(rig.client.vm("built").get("EnabledState").as_u64(), Some(2));
        let adapter = rig.client.get(adapter.path.as_ref().unwrap()).unwrap();
        assert!(adapter.get("Address").as_str().unwrap().starts_with("00155D"), "{adapter:?}");
        let id = adapter.get("InstanceID").as_str().unwrap();
        assert!(id.ends_with(r"\11111111-2222-3333-4444-555555555555"), "{id}");
    }
}

#[test]
fn starts_are_refused_for_the_right_reason() {
    let rig = Rig::with_vm(VmOptions { running: false, tpm: true, ..VmOptions::default() });
    let vm = rig.client.vm_path("web");
    let disk = rig.lab.host_file(&rig.lab.disk_chain("web", 0).unwrap()[0]).unwrap();
    let failing = |expected: &str| {
        let last = rig.turn(&vm, 2);
        assert_eq!(last.get("JobState").as_u64(), Some(10), "{expected}");
        let text = last.get("ErrorDescription").as_str().unwrap().to_owned();
        assert!(text.contains(expected), "{text}");
    };
    let aside = disk.with_extension("aside");
    std::fs::rename(&disk, &aside).unwrap();
    failing("(0x80070002)");
    std::fs::copy(&aside, &disk).unwrap();
    failing("(0x80070005)");
    std::fs::rename(&aside, &disk).unwrap();
    let held = rig.client.open(&rig.lab.disk_chain("web", 0).unwrap()[0]);
    failing("(0x80070020)");
    drop(held);
    rig.lab.set_options(|options| options.memory_mib = 1024).unwrap();
    failing("(0x8007000E)");
    rig.lab.set_options(|options| options.memory_mib = 65536).unwrap();
    rig.lab.inject(Fault::NoLogonRight).unwrap();
    failing("(0x80070569)");
    rig.lab.clear_faults().unwrap();

    let security = rig.client.only("SELECT * FROM Msvm_SecuritySettingData");
    let service = rig.client.service("Msvm_SecurityService");
    let setting = ("SecuritySettingData", text(&embedded(&security)));
    let own = rig.client.call(&service, "GetKeyProtector", std::slice::from_ref(&setting)).unwrap();
    let set = |protector: CimValue| {
        let parameters = [setting.clone(), ("KeyProtector", protector)];
        rig.client.call(&service, "SetKeyProtector", &parameters).unwrap().return_value
    };
    let bytes = |bytes: Vec<u8>| CimValue::Array(CimType::Uint8, bytes.into_iter().map(CimValue::Uint8).collect());
    assert_eq!(set(bytes(vec![1, 2, 3])), 32773);
    let elsewhere = LabHost::create(rig.lab.folder().with_file_name("elsewhere")).unwrap();
    assert_eq!(set(bytes(elsewhere.new_key_protector().unwrap())), 0);
    failing("key protector could not be unwrapped");
    rig.lab.trust_guardian(&elsewhere.guardian().unwrap()).unwrap();
    failing("does not belong to this guest state");
    assert_eq!(set(own.get("KeyProtector").clone()), 0);
    assert_eq!(rig.turn(&vm, 2).get("JobState").as_u64(), Some(7));
    let rolled = rig.client.call(&service, "GetKeyProtector", std::slice::from_ref(&setting)).unwrap();
    assert_ne!(rolled.get("KeyProtector"), own.get("KeyProtector"), "each start wraps anew");
    let off = [("SecuritySettingData", text(&embedded(&with(security, &[("TpmEnabled", CimValue::Boolean(false))]))))];
    let modify = || rig.client.call(&service, "ModifySecuritySettings", &off).unwrap().return_value;
    assert_eq!(modify(), 32775, "while it runs");
    rig.turn(&vm, 3);
    assert_eq!(modify(), 0);
}

#[test]
fn states_change_only_legally() {
    let rig = Rig::with_vm(VmOptions::default());
    let vm = rig.client.vm_path("web");
    let ask = |state: u16| {
        rig.client.call(&vm, "RequestStateChange", &[("RequestedState", CimValue::Uint16(state))]).unwrap().return_value
    };
    for (requested, refused, then) in [(9, 2, 9), (6, 9, 6), (2, 6, 2), (3, 2, 3)] {
        assert_eq!(ask(refused), 32775, "{refused} before {requested}");
        assert_eq!(ask(requested), 4096);
        assert_eq!(ask(requested), 32775, "while it changes");
        rig.client.seam.clock.sleep(Duration::from_secs(5));
        assert_eq!(rig.client.vm("web").get("EnabledState").as_u64(), Some(then));
    }
    for (requested, expected) in [(4, 32770), (5, 32773), (32768, 32773)] {
        assert_eq!(ask(requested), expected, "{requested}");
    }
    rig.lab.start_vm("web").unwrap();
    let component = rig.client.only("SELECT * FROM Msvm_ShutdownComponent").path.unwrap();
    let parameters = [("Force", CimValue::Boolean(true)), ("Reason", text("restore"))];
    assert_eq!(rig.client.call(&component, "InitiateShutdown", &parameters).unwrap().return_value, 0);
    rig.client.seam.clock.sleep(Duration::from_secs(5));
    assert_eq!(rig.client.vm("web").get("EnabledState").as_u64(), Some(3));
}

#[test]
fn hot_changes_and_the_settings_of_checkpoints_are_refused() {
    let rig = Rig::new(LabOptions::default());
    let disks = [DiskSource::Empty { size_bytes: MIB }];
    rig.lab.add_vm("old", &disks, VmOptions { generation: 1, ..VmOptions::default() }).unwrap();
    rig.lab.add_vm("web", &disks, VmOptions::default()).unwrap();
    let settings_of =
        |vm: &str| rig.client.associated(&rig.client.vm_path(vm), "Msvm_SettingsDefineState", SETTINGS).remove(0);
    let (old, web) = (settings_of("old"), settings_of("web"));
    let modify = |setting: Instance| rig.code("ModifyResourceSettings", &[resources(&[setting])]);
    let processor = |vssd: &Instance| {
        with(rig.settings_of(vssd, "Msvm_ProcessorSettingData").remove(0), &[("VirtualQuantity", CimValue::Uint64(3))])
    };
    assert_eq!(modify(processor(&web)), 32775);
    let ide = rig.settings_of(&old, RASD).into_iter().find(|one| one.get("Address").as_str() == Some("1")).unwrap();
    let drive = rig.template(RASD, "Synthetic Disk Drive");
    let drive = with(drive, &[("Parent", path_text(&ide)), ("AddressOnParent", text("0"))]);
    assert_eq!(rig.code("AddResourceSettings", &rig.add(&old, std::slice::from_ref(&drive))), 32775, "IDE, hot");
    rig.lab.stop_vm("old").unwrap();
    rig.made("AddResourceSettings", &rig.add(&old, std::slice::from_ref(&drive)), RASD);

    let medium = rig.settings_of(&web, SASD).remove(0);
    let remove = |settings: &Instance| {
        let reference = CimValue::Reference(settings.path.clone().unwrap());
        vec![("ResourceSettings", CimValue::Array(CimType::Reference, vec![reference]))]
    };
    assert_eq!(modify(with(medium.clone(), &[("HostResource", texts(r"C:\VMs\none.vhdx"))])), 32775);
    assert_eq!(modify(with(medium.clone(), &[("ResourceType", CimValue::Uint16(30))])), 32773);
    assert_eq!(rig.code("RemoveResourceSettings", &remove(&processor(&web))), 32773);
    let checkpoint = rig.client.checkpoint("web");
    assert_eq!(modify(processor(&checkpoint)), 32773, "of a checkpoint");
    rig.client.destroy(&checkpoint);
    rig.client.settle(&rig.lab, "web");
    rig.made("RemoveResourceSettings", &remove(&medium), RASD);
    assert_eq!(rig.settings_of(&web, SASD).len(), 0);
    let firmware = with(settings_of("web"), &[("SecureBootEnabled", CimValue::Boolean(false))]);
    assert_eq!(rig.code("ModifySystemSettings", &[("SystemSettings", text(&embedded(&firmware)))]), 32775);
}

#[test]
fn an_export_without_storage_switches_merging_off() {
    let rig = Rig::with_vm(VmOptions::default());
    let vm = rig.client.vm_path("web");
    let checkpoint = rig.client.checkpoint("web");
    let settings = rig.client.associated(&vm, "Msvm_SystemExportSettingData", "Msvm_VirtualSystemExportSettingData");
    let for_backup = [
        ("CopySnapshotConfiguration", CimValue::Uint8(3)),
        ("SnapshotVirtualSystem", path_text(&checkpoint)),
        ("CopyVmStorage", CimValue::Boolean(false)),
    ];
    let export = |settings: Instance| {
        vec![
            ("ComputerSystem", CimValue::Reference(vm.clone())),
            ("ExportDirectory", text(r"C:\export")),
            ("ExportSettingData", text(&embedded(&settings))),
        ]
    };
    let settings = with(settings[0].clone(), &for_backup);
    for (case, wrong) in [
        ("a checkpoint is wanted", ("SnapshotVirtualSystem", CimValue::Null)),
        ("no checkpoint is wanted", ("CopySnapshotConfiguration", CimValue::Uint8(1))),
        ("no such choice", ("CopySnapshotConfiguration", CimValue::Uint8(4))),
    ] {
        assert_eq!(rig.code("ExportSystemDefinition", &export(with(settings.clone(), &[wrong]))), 32773, "{case}");
    }
    rig.made("ExportSystemDefinition", &export(settings), SETTINGS);
    rig.client.destroy(&checkpoint);
    rig.client.seam.clock.sleep(Duration::from_secs(600));
    assert_eq!(rig.lab.disk_chain("web", 0).unwrap().len(), 2, "nothing is merged");
    let merging = rig.client.only("SELECT * FROM Msvm_DiskMergeSettingData");
    assert_eq!(merging.get("EnabledState").as_u64(), Some(0));
    let on = with(merging, &[("EnabledState", CimValue::Uint16(1))]);
    assert_eq!(rig.code("ModifyDiskMergeSettings", &[("SettingData", text(&embedded(&on)))]), 0);
    rig.client.settle(&rig.lab, "web");
    assert_eq!(rig.lab.disk_chain("web", 0).unwrap().len(), 1);
    let exported = rig.client.vm("web").get("Name").as_str().unwrap().to_owned();
    let file = format!(r"C:\export\web\Virtual Machines\{exported}.vmcx");
    let files = CimValue::Array(CimType::String, vec![text(&file)]);
    let summary = rig.manage("GetDefinitionFileSummaryInformation", &[("DefinitionFiles", files)]);
    assert!(format!("{summary:?}").contains(&exported), "{summary:?}");
}
