//! A host that answers from lists: queries by their exact text, methods in the order of their answers.
//!
//! A question that no list has an answer for fails the test, so that a misspelt class or a wrongly quoted filter shows.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyperv::Host;
use hyperv::seam::{
    CimType, CimValue, Clock, FileFacts, HostFile, HostFiles, Instance, MethodOutput, Namespace, ObjectPath, Seam,
    VirtDisk, VirtDiskError, VirtDiskHandle, Wmi, WmiError,
};

pub const VM: &str = "0A1B2C3D-0000-1111-2222-333344445555";
pub const CHECKPOINT: &str = "CCCCCCCC-0000-1111-2222-333344445555";
pub const DISK: &str = "dddddddd-0000-1111-2222-333344445555";
pub const SCSI: &str = "EEEEEEEE-0000-1111-2222-333344445555";

/// `WBEM_E_INVALID_NAMESPACE`: the answer of a host without the role, or without a cluster.
pub const NO_NAMESPACE: u32 = 0x8004_100E;

type Answers<T> = Mutex<HashMap<String, VecDeque<Result<T, WmiError>>>>;

type OpenDisk = Box<dyn Fn() -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> + Send>;

#[derive(Default)]
pub struct Script {
    queries: Answers<Vec<Instance>>,
    objects: Answers<Instance>,
    methods: Answers<MethodOutput>,
    classes: Mutex<HashMap<String, Vec<String>>>,
    calls: Mutex<Vec<Call>>,
    /// Setting data by disk path.
    disks: Mutex<HashMap<String, Result<String, u32>>>,
    pub files: Mutex<HashMap<String, VecDeque<io::Result<Vec<u8>>>>>,
    pub virt_disks: Mutex<HashMap<String, OpenDisk>>,
    time: Mutex<Duration>,
}

/// A method call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub object: String,
    pub method: String,
    pub parameters: BTreeMap<String, CimValue>,
}

impl Script {
    pub fn host(self: &Arc<Self>) -> Host {
        Host::new(Seam { wmi: self.clone(), virt_disk: self.clone(), files: self.clone(), clock: self.clone() })
    }

    /// The next answer to a query; the last one given stays.
    pub fn on_query(&self, wql: impl Into<String>, answer: Vec<Instance>) {
        self.queries.lock().unwrap().entry(wql.into()).or_default().push_back(Ok(answer));
    }

    /// Drops the answers to a query, so that new ones come first.
    pub fn forget_query(&self, wql: &str) {
        self.queries.lock().unwrap().remove(wql);
    }

    pub fn on_query_error(&self, wql: impl Into<String>, hresult: u32) {
        self.queries.lock().unwrap().entry(wql.into()).or_default().push_back(Err(wmi_error(hresult)));
    }

    pub fn on_get(&self, instance: Instance) {
        let path = instance.path.as_ref().expect("an object has a path").to_string();
        self.objects.lock().unwrap().entry(path).or_default().push_back(Ok(instance));
    }

    pub fn on_get_error(&self, path: &str, hresult: u32) {
        self.objects.lock().unwrap().entry(path.into()).or_default().push_back(Err(wmi_error(hresult)));
    }

    pub fn on_call(&self, method: &str, answer: Result<MethodOutput, u32>) {
        let answer = answer.map_err(wmi_error);
        self.methods.lock().unwrap().entry(method.into()).or_default().push_back(answer);
    }

    pub fn on_disk(&self, path: &str, answer: Result<Instance, u32>) {
        let answer = answer.map(|instance| hyperv::cim_xml::to_text(&instance).unwrap());
        self.disks.lock().unwrap().insert(path.into(), answer);
    }

    pub fn on_class(&self, class: &str, properties: &[&str]) {
        let properties = properties.iter().map(|name| name.to_string()).collect();
        self.classes.lock().unwrap().insert(class.into(), properties);
    }

    pub fn forget_class(&self, class: &str) {
        self.classes.lock().unwrap().remove(class);
    }

    pub fn calls(&self, method: &str) -> Vec<Call> {
        self.calls.lock().unwrap().iter().filter(|call| call.method == method).cloned().collect()
    }

    /// Every call so far, but those that only look at disk files.
    pub fn all_calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Drops the answers to a method, so that new ones come first.
    pub fn forget_method(&self, method: &str) {
        self.methods.lock().unwrap().remove(method);
    }

    pub fn elapsed(&self) -> Duration {
        *self.time.lock().unwrap()
    }

    fn answer<T: Clone>(answers: &Answers<T>, what: &str, question: &str) -> Result<T, WmiError> {
        let mut answers = answers.lock().unwrap();
        let list = answers.get_mut(question).unwrap_or_else(|| panic!("no answer to {what} {question}"));
        match list.len() {
            1 => list[0].clone(),
            _ => list.pop_front().expect("a list is made with an answer"),
        }
    }
}

impl Wmi for Script {
    fn query(&self, _: Namespace, wql: &str) -> Result<Vec<Instance>, WmiError> {
        Self::answer(&self.queries, "query", wql)
    }

    fn get(&self, _: Namespace, path: &ObjectPath) -> Result<Instance, WmiError> {
        Self::answer(&self.objects, "get", path.as_str())
    }

    fn class_properties(&self, _: Namespace, class: &str) -> Result<Option<Vec<String>>, WmiError> {
        Ok(self.classes.lock().unwrap().get(class).cloned())
    }

    fn call(
        &self,
        _: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError> {
        let parameters: BTreeMap<_, _> =
            parameters.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        if method == "GetVirtualHardDiskSettingData" {
            let path = parameters["Path"].as_str().unwrap();
            let disks = self.disks.lock().unwrap();
            return Ok(match disks.get(path).unwrap_or_else(|| panic!("no setting data of {path}")) {
                Ok(text) => output(0, vec![("SettingData", CimValue::String(text.clone()))]),
                Err(code) => output(*code, vec![("SettingData", CimValue::Null)]),
            });
        }
        let call = Call { object: object.to_string(), method: method.into(), parameters };
        self.calls.lock().unwrap().push(call);
        Self::answer(&self.methods, "call", method)
    }
}

impl Clock for Script {
    fn monotonic(&self) -> Duration {
        self.elapsed()
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        *self.time.lock().unwrap() += duration;
    }
}

impl HostFiles for Script {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        let mut files = self.files.lock().unwrap();
        let list = files.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        match list.front().ok_or(io::ErrorKind::NotFound)? {
            Ok(bytes) => Ok(Box::new(bytes.clone())),
            Err(_) => Err(list.pop_front().unwrap().unwrap_err()),
        }
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        let files = self.files.lock().unwrap();
        let first = files.get(path).and_then(|list| list.front()).ok_or(io::ErrorKind::NotFound)?;
        let len_bytes = first.as_ref().map_or(0, Vec::len) as u64;
        Ok(FileFacts { len_bytes, file_id: path.into(), created: None, modified: SystemTime::UNIX_EPOCH })
    }

    fn free_bytes(&self, _: &str) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

impl VirtDisk for Script {
    fn open_read_only(&self, path: &str) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
        self.virt_disks.lock().unwrap().get(path).unwrap_or_else(|| panic!("no disk {path}"))()
    }
}

pub fn wmi_error(hresult: u32) -> WmiError {
    WmiError { operation: "scripted".into(), hresult, message: "scripted".into() }
}

pub fn output(return_value: u32, out: Vec<(&str, CimValue)>) -> MethodOutput {
    MethodOutput { return_value, out: out.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// 4096 with a job, and every other output null.
pub fn started(job: &str) -> Result<MethodOutput, u32> {
    Ok(output(4096, vec![("Job", CimValue::Reference(ObjectPath::new(job)))]))
}

pub fn text(value: &str) -> CimValue {
    CimValue::String(value.into())
}

pub fn texts(values: &[&str]) -> CimValue {
    CimValue::Array(CimType::String, values.iter().map(|value| text(value)).collect())
}

pub fn instance(class: &str, key: &str, properties: Vec<(&str, CimValue)>) -> Instance {
    Instance {
        class: class.into(),
        path: Some(ObjectPath::new(path_of(class, key))),
        properties: properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}

pub fn path_of(class: &str, key: &str) -> String {
    format!(r#"\\HOST\root\virtualization\v2:{class}.Key="{}""#, key.replace('\\', r"\\"))
}

pub fn job(state: u16, more: Vec<(&str, CimValue)>) -> Instance {
    let mut properties = vec![("JobState", CimValue::Uint16(state))];
    properties.extend(more);
    instance("Msvm_ConcreteJob", "1", properties)
}

pub fn job_path() -> String {
    path_of("Msvm_ConcreteJob", "1")
}

pub fn service(class: &str) -> Instance {
    instance(class, "service", vec![("SystemName", text("HOST"))])
}

pub fn computer(id: &str, name: &str) -> Instance {
    instance(
        "Msvm_ComputerSystem",
        id,
        vec![
            ("Name", text(id)),
            ("ElementName", text(name)),
            ("EnabledState", CimValue::Uint16(2)),
            ("OperationalStatus", CimValue::Array(CimType::Uint16, vec![CimValue::Uint16(2)])),
        ],
    )
}

/// An `Msvm_VirtualSystemSettingData` of `kind` (`System:Realized`, `Snapshot:Recovery`, …).
pub fn settings(configuration: &str, kind: &str, name: &str) -> Instance {
    instance(
        "Msvm_VirtualSystemSettingData",
        configuration,
        vec![
            ("InstanceID", text(&format!("Microsoft:{configuration}"))),
            ("VirtualSystemIdentifier", text(VM)),
            ("VirtualSystemType", text(&format!("Microsoft:Hyper-V:{kind}"))),
            ("VirtualSystemSubType", text("Microsoft:Hyper-V:SubType:2")),
            ("Version", text("9.0")),
            ("ElementName", text(name)),
            ("ConfigurationDataRoot", text(r"C:\VMs\web")),
            ("ConfigurationFile", text(&format!(r"Snapshots\{configuration}.vmcx"))),
        ],
    )
}

/// A disk at SCSI 0:`location` of a configuration: medium, then drive and controller.
pub fn scsi_disk(configuration: &str, location: u32, path: &str) -> (Instance, Vec<Instance>) {
    let controller_id = format!(r"Microsoft:{configuration}\{SCSI}\0");
    let drive_id = format!(r"{controller_id}\{location}\D");
    let medium_id = format!(r"{controller_id}\{location}\L");
    let device = "Msvm_ResourceAllocationSettingData";
    let controller = instance(
        device,
        &controller_id,
        vec![("InstanceID", text(&controller_id)), ("ResourceType", CimValue::Uint16(6))],
    );
    let drive = instance(
        device,
        &drive_id,
        vec![
            ("InstanceID", text(&drive_id)),
            ("ResourceType", CimValue::Uint16(17)),
            ("ResourceSubType", text("Microsoft:Hyper-V:Synthetic Disk Drive")),
            ("Parent", text(&path_of(device, &controller_id))),
            ("AddressOnParent", text(&location.to_string())),
        ],
    );
    let medium = instance(
        "Msvm_StorageAllocationSettingData",
        &medium_id,
        vec![
            ("InstanceID", text(&medium_id)),
            ("ResourceType", CimValue::Uint16(31)),
            ("ResourceSubType", text("Microsoft:Hyper-V:Virtual Hard Disk")),
            ("Parent", text(&path_of(device, &drive_id))),
            ("HostResource", texts(&[path])),
        ],
    );
    (medium, vec![controller, drive])
}

/// `Msvm_VirtualHardDiskSettingData`; with a parent it is a differencing disk.
pub fn disk_data(id: &str, parent: Option<&str>) -> Instance {
    let mut data = instance(
        "Msvm_VirtualHardDiskSettingData",
        "",
        vec![
            ("Type", CimValue::Uint16(if parent.is_some() { 4 } else { 3 })),
            ("Format", CimValue::Uint16(3)),
            ("MaxInternalSize", CimValue::Uint64(1 << 30)),
            ("LogicalSectorSize", CimValue::Uint32(512)),
            ("PhysicalSectorSize", CimValue::Uint32(4096)),
            ("VirtualDiskId", text(id)),
        ],
    );
    data.path = None;
    if let Some(parent) = parent {
        data.properties.insert("ParentPath".into(), text(parent));
    }
    data
}

pub const ALL_SETTINGS_OF_VM: &str = "SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemIdentifier = '0A1B2C3D-0000-1111-2222-333344445555'";
pub const ALL_REFERENCE_POINTS_OF_VM: &str = "SELECT * FROM Msvm_VirtualSystemReferencePoint WHERE VirtualSystemIdentifier = '0A1B2C3D-0000-1111-2222-333344445555'";

/// A script with the services, and one running VM "web" with one disk at SCSI 0:0, `C:\VMs\web\d.vhdx`.
pub fn one_vm() -> Arc<Script> {
    let script = Script::default();
    for class in [
        "Msvm_VirtualSystemManagementService",
        "Msvm_VirtualSystemSnapshotService",
        "Msvm_VirtualSystemReferencePointService",
        "Msvm_ImageManagementService",
        "Msvm_SecurityService",
    ] {
        script.on_query(format!("SELECT * FROM {class}"), vec![service(class)]);
    }
    script.on_query_error("SELECT * FROM MSCluster_Cluster", NO_NAMESPACE);
    script.on_query("SELECT * FROM Msvm_SecuritySettingData", vec![]);
    script.on_class("Msvm_VirtualSystemReferencePointService", &[]);
    script.on_class("Msvm_VirtualSystemSnapshotSettingData", &["ConsistencyLevel", "GuestBackupType"]);
    script.on_query(format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = '{VM}'"), vec![computer(VM, "web")]);
    script.on_query(format!("SELECT * FROM Msvm_VssComponent WHERE SystemName = '{VM}'"), vec![]);
    script.on_query(format!("SELECT * FROM Msvm_KvpExchangeComponent WHERE SystemName = '{VM}'"), vec![]);
    let (medium, mut devices) = scsi_disk(VM, 0, r"C:\VMs\web\d.vhdx");
    devices.push(medium);
    let active = path_of("Msvm_VirtualSystemSettingData", VM);
    script.on_query(component_query(&active, None), devices);
    script.on_disk(r"C:\VMs\web\d.vhdx", Ok(disk_data(DISK, None)));
    Arc::new(script)
}

pub fn component_query(path: &str, class: Option<&str>) -> String {
    let mut query = format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = Msvm_VirtualSystemSettingDataComponent");
    if let Some(class) = class {
        query += &format!(" ResultClass = {class}");
    }
    query
}

pub fn job_results_query(class: &str) -> String {
    format!("ASSOCIATORS OF {{{}}} WHERE AssocClass = Msvm_AffectedJobElement ResultClass = {class}", job_path())
}
