//! No name is unchecked: each that the program uses is changed, and the simulator refuses it.

mod support;
#[path = "support/target.rs"]
mod target;

use std::collections::{BTreeMap, BTreeSet};

use hyperv::seam::{CimType, CimValue, Namespace, ObjectPath, WmiError};
use hyperv_sim::{DiskSource, LabCluster, LabHost, LabOptions, PRODUCT_NAMES, VmOptions};
use support::Client;

struct Host {
    _dir: tempfile::TempDir,
    _target: target::TestTarget,
    client: Client,
}

/// A host on which every class that has methods has an object.
fn host() -> Host {
    let dir = tempfile::tempdir().unwrap();
    let cluster = LabCluster { name: "C".into(), functional_level: 10, roles: Vec::new() };
    let options = LabOptions { cluster: Some(cluster), ..LabOptions::default() };
    let lab = LabHost::create_with(dir.path().join("lab"), options).unwrap();
    lab.add_vm("web", &[DiskSource::Empty { size_bytes: 1 << 20 }], VmOptions::default()).unwrap();
    let client = Client::new(&lab);
    client.start_checkpoint("web", 2);
    // A disk that came over iSCSI, with its portal, target, session and partition.
    let target = target::TestTarget::serve(vec![vec![1; 4096]]);
    let host = hyperv::Host::new(lab.plain_seam());
    let portal = hyperv::TargetPortal { address: "127.0.0.1".into(), port: target.address.port() };
    let (name, user, secret) = (target::TARGET.into(), target::USER.into(), target::SECRET.into());
    host.start_initiator().unwrap();
    host.add_portal(&portal).unwrap();
    host.connect_target(&hyperv::TargetLogin { portal, target: name, user, secret }).unwrap();
    host.bring_disk_online(&host.find_host_disk(&target.serial).unwrap().unwrap()).unwrap();
    Host { _dir: dir, _target: target, client }
}

fn namespace(name: &str) -> Namespace {
    match name {
        "virtualization" => Namespace::Virtualization,
        "cimv2" => Namespace::Cimv2,
        "storage" => Namespace::Storage,
        "cluster" => Namespace::Cluster,
        other => panic!("{other}"),
    }
}

/// A name that differs in one letter.
fn misspelt(name: &str) -> String {
    let mut letters: Vec<char> = name.chars().collect();
    let last = letters.last_mut().unwrap();
    *last = if *last == 'x' { 'y' } else { 'x' };
    letters.into_iter().collect()
}

/// A value of a type, as lines name it.
fn value(kind: &str) -> CimValue {
    if let Some(base) = kind.strip_suffix("[]") {
        let (base, values) = match value(base) {
            CimValue::Uint8(_) => (CimType::Uint8, vec![value(base)]),
            CimValue::Uint32(_) => (CimType::Uint32, vec![value(base)]),
            CimValue::Uint64(_) => (CimType::Uint64, vec![value(base)]),
            CimValue::Uint16(_) => (CimType::Uint16, vec![value(base)]),
            CimValue::Reference(_) => (CimType::Reference, vec![value(base)]),
            _ => (CimType::String, vec![CimValue::String(String::new())]),
        };
        return CimValue::Array(base, values);
    }
    match kind {
        "boolean" => CimValue::Boolean(true),
        "uint8" => CimValue::Uint8(1),
        "uint16" => CimValue::Uint16(1),
        "uint32" => CimValue::Uint32(1),
        "uint64" => CimValue::Uint64(1),
        "sint32" => CimValue::Sint32(1),
        "string" => CimValue::String("x".into()),
        "datetime" => CimValue::DateTime("00000000000000.000000:000".into()),
        "reference" => CimValue::Reference(ObjectPath::new(
            r#"\\LABHOST\root\virtualization\v2:Msvm_VirtualSystemSettingData.InstanceID="Microsoft:none""#,
        )),
        "null" => CimValue::Null,
        other => panic!("type {other}"),
    }
}

/// Types that must not pass for one another, with one that looks most like `kind` among them.
fn other_types(kind: &str) -> Vec<CimValue> {
    [
        "boolean",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "sint32",
        "string",
        "datetime",
        "reference",
        "string[]",
        "uint8[]",
    ]
    .into_iter()
    .filter(|other| *other != kind)
    .map(value)
    .collect()
}

const INVALID_PARAMETER: u32 = 0x8004_1008;
const TYPE_MISMATCH: u32 = 0x8004_1005;
const INVALID_CLASS: u32 = 0x8004_1010;
const INVALID_QUERY: u32 = 0x8004_1017;
const INVALID_METHOD: u32 = 0x8004_102E;

impl Host {
    fn query(&self, namespace: Namespace, wql: &str) -> Result<(), WmiError> {
        self.client.seam.wmi.query(namespace, wql).map(drop)
    }

    /// An object of a class, with a class that stands for the whole path of a class without objects.
    fn object(&self, space: Namespace, class: &str) -> ObjectPath {
        let found = self.client.seam.wmi.query(space, &format!("SELECT * FROM {class}")).unwrap();
        let mut paths = found.into_iter().filter_map(|instance| instance.path);
        // Elsewhere what the host has by itself comes first.
        let path = if space == Namespace::Virtualization { paths.next() } else { paths.next_back() };
        path.unwrap_or_else(|| panic!("there is no {class}"))
    }

    /// What a method is called on: the class itself, for those that are the class's.
    fn subject(&self, space: Namespace, class: &str, method: &str) -> ObjectPath {
        let of_class = ["New", "Connect", "UpdateHostStorageCache"].contains(&method);
        if of_class { ObjectPath::new(class) } else { self.object(space, class) }
    }

    fn call(
        &self,
        space: Namespace,
        class: &str,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<(), WmiError> {
        self.call_on(space, &self.subject(space, class, method), method, parameters)
    }

    fn call_on(
        &self,
        space: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<(), WmiError> {
        self.client.seam.wmi.call(space, object, method, parameters).map(drop)
    }

    /// Something that walks begin at, and an association that leads from it to somewhere.
    fn start(&self, space: Namespace) -> (ObjectPath, &'static str) {
        match space {
            Namespace::Storage => (self.object(space, "MSFT_Disk"), "MSFT_DiskToPartition"),
            _ => (self.client.vm_path("web"), "Msvm_SettingsDefineState"),
        }
    }

    /// Changes one name; gives how often the simulator was asked. Panics when it lets something pass.
    fn mutate(&self, line: &str) -> usize {
        let words: Vec<&str> = line.split(' ').collect();
        let space = namespace(words[1]);
        let refused = |case: &str, hresult: u32, result: Result<(), WmiError>| match result {
            Err(error) if error.hresult == hresult => 1,
            other => panic!("{line}: {case} is not refused with {hresult:#x} but {other:?}"),
        };
        let passes = |case: &str, result: Result<(), WmiError>| match result {
            Ok(()) => {}
            Err(error) => panic!("{line}: {case}: {error}"),
        };
        match words.as_slice() {
            ["class", _, class] => {
                passes("the name itself", self.query(space, &format!("SELECT * FROM {class}")));
                let wql = format!("SELECT * FROM {}", misspelt(class));
                let wrong_space = if space == Namespace::Cimv2 { Namespace::Virtualization } else { Namespace::Cimv2 };
                let class_properties = self.client.seam.wmi.class_properties(space, &misspelt(class)).unwrap();
                assert_eq!(class_properties, None, "{line}");
                refused("the class", INVALID_CLASS, self.query(space, &wql))
                    + refused(
                        "the namespace",
                        INVALID_CLASS,
                        self.query(wrong_space, &format!("SELECT * FROM {class}")),
                    )
            }
            ["select", _, class, property] => {
                passes("the name itself", self.query(space, &format!("SELECT {property} FROM {class}")));
                refused(
                    "the column",
                    INVALID_QUERY,
                    self.query(space, &format!("SELECT {} FROM {class}", misspelt(property))),
                )
            }
            ["where", _, class, property, literal] => {
                let condition = |property: &str, literal: &str| {
                    let literal = match literal {
                        "text" => "'x'",
                        "number" => "1",
                        "boolean" => "TRUE",
                        other => panic!("{other}"),
                    };
                    self.query(space, &format!("SELECT * FROM {class} WHERE {property} = {literal}"))
                };
                passes("the name itself", condition(property, literal));
                let others = ["text", "number", "boolean"].into_iter().filter(|other| other != literal);
                refused("the property", INVALID_QUERY, condition(&misspelt(property), literal))
                    + others.map(|other| refused("the type", INVALID_QUERY, condition(property, other))).sum::<usize>()
            }
            ["association", _, class] => {
                let (path, _) = self.start(space);
                let walk =
                    |class: &str| self.query(space, &format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = {class}"));
                passes("the name itself", walk(class));
                refused("the association", INVALID_CLASS, walk(&misspelt(class)))
                    + refused("no association", INVALID_CLASS, walk("Msvm_ComputerSystem"))
            }
            ["result", _, class] => {
                let (path, association) = self.start(space);
                let walk = |class: &str| {
                    self.query(
                        space,
                        &format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = {association} ResultClass = {class}"),
                    )
                };
                passes("the name itself", walk(class));
                refused("the result class", INVALID_CLASS, walk(&misspelt(class)))
            }
            ["call", _, class, method] => {
                let path = self.subject(space, class, method);
                let other_class = match path.as_str() == *class {
                    true => ObjectPath::new(misspelt(class)),
                    false => {
                        ObjectPath::new(path.as_str().replace(&format!(":{class}."), &format!(":{}.", misspelt(class))))
                    }
                };
                refused("the method", INVALID_METHOD, self.call_on(space, &path, &misspelt(method), &[]))
                    + refused("the class", INVALID_CLASS, self.call_on(space, &other_class, method, &[]))
            }
            ["in", _, class, method, parameter, kind] => {
                let own = self.call(space, class, method, &[(parameter, value(kind))]);
                let complaint = own.as_ref().err().map(|error| error.message.clone()).unwrap_or_default();
                assert!(!complaint.contains(&format!("no parameter {parameter}")), "{line}: {complaint}");
                assert!(own.as_ref().err().is_none_or(|error| error.hresult != TYPE_MISMATCH), "{line}: {own:?}");
                let mut asked = refused(
                    "the parameter",
                    INVALID_PARAMETER,
                    self.call(space, class, method, &[(&misspelt(parameter), value(kind))]),
                );
                for other in other_types(kind).into_iter().filter(|_| *kind != "null") {
                    asked += refused("the type", TYPE_MISMATCH, self.call(space, class, method, &[(parameter, other)]));
                }
                asked
            }
            ["written", _, class, property, kind] => {
                let Some((method_class, method, parameter)) = self.taker_of(class) else {
                    panic!("{line}: no method takes a {class}")
                };
                let give = |class: &str, property: &str, kind: &str| {
                    let array = kind.ends_with("[]");
                    let base = kind.trim_end_matches("[]");
                    let content = match base {
                        "boolean" => "TRUE",
                        "string" => "x",
                        "datetime" => "00000000000000.000000:000",
                        _ => "1",
                    };
                    let xml = match array {
                        true => format!(
                            "<PROPERTY.ARRAY NAME=\"{property}\" TYPE=\"{base}\"><VALUE.ARRAY><VALUE>{content}</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>"
                        ),
                        false => {
                            format!("<PROPERTY NAME=\"{property}\" TYPE=\"{base}\"><VALUE>{content}</VALUE></PROPERTY>")
                        }
                    };
                    let text = CimValue::String(format!("<INSTANCE CLASSNAME=\"{class}\">{xml}</INSTANCE>"));
                    let value = match parameter.ends_with("ResourceSettings") || parameter.ends_with("FeatureSettings")
                    {
                        true => CimValue::Array(CimType::String, vec![text]),
                        false => text,
                    };
                    match self.call(space, method_class, method, &[(parameter, value)]) {
                        // What is said of other parameters is said after this one was accepted.
                        Err(error) if error.message.starts_with(&format!("{parameter}:")) => Err(error),
                        _ => Ok(()),
                    }
                };
                passes("the name itself", give(class, property, kind));
                let mut asked = refused("the property", INVALID_PARAMETER, give(class, &misspelt(property), kind))
                    + refused("the class", INVALID_PARAMETER, give(&misspelt(class), property, kind));
                for other in ["boolean", "uint8", "uint16", "uint32", "uint64", "string", "string[]"] {
                    if other != *kind {
                        asked += refused("the type", INVALID_PARAMETER, give(class, property, other));
                    }
                }
                asked
            }
            // What is read is not handed over; the schema is asked whether it could have been there.
            ["read", _, class, property, kind] => {
                assert_ne!(*kind, "unknown", "{line}: the schema has no such property");
                let known = |property: &str| {
                    let properties = self.client.seam.wmi.class_properties(space, class).unwrap().unwrap();
                    properties.iter().any(|known| known == property)
                };
                assert!(known(property), "{line}");
                assert!(!known(&misspelt(property)), "{line}: misspelt, it would pass");
                1
            }
            ["out", _, class, method, output, kind] => {
                assert_ne!(*kind, "unknown", "{line}: the schema has no such output");
                // An output is no input, unless the reference says both.
                let both_ways = ["ResultingSnapshot", "ResultingReferencePoint"];
                if both_ways.contains(output) {
                    return 1;
                }
                refused("the direction", INVALID_PARAMETER, self.call(space, class, method, &[(output, value(kind))]))
            }
            _ => panic!("{line}"),
        }
    }

    /// A method that takes an embedded instance of a class.
    fn taker_of(&self, class: &str) -> Option<(&'static str, &'static str, &'static str)> {
        const MANAGEMENT: &str = "Msvm_VirtualSystemManagementService";
        Some(match class {
            "Msvm_VirtualSystemSettingData" => (MANAGEMENT, "ModifySystemSettings", "SystemSettings"),
            "Msvm_VirtualSystemSnapshotSettingData" => {
                ("Msvm_VirtualSystemSnapshotService", "CreateSnapshot", "SnapshotSettings")
            }
            "Msvm_VirtualSystemReferencePointSettingData" => {
                ("Msvm_VirtualSystemSnapshotService", "ConvertToReferencePoint", "ReferencePointSettings")
            }
            "Msvm_DiskMergeSettingData" => (MANAGEMENT, "ModifyDiskMergeSettings", "SettingData"),
            "Msvm_VirtualHardDiskSettingData" => {
                ("Msvm_ImageManagementService", "CreateVirtualHardDisk", "VirtualDiskSettingData")
            }
            "Msvm_SecuritySettingData" => ("Msvm_SecurityService", "ModifySecuritySettings", "SecuritySettingData"),
            class if class.contains("SwitchPort") => (MANAGEMENT, "AddFeatureSettings", "FeatureSettings"),
            _ => (MANAGEMENT, "ModifyResourceSettings", "ResourceSettings"),
        })
    }
}

#[test]
fn no_name_is_unchecked() {
    let host = host();
    let mut asked: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for line in PRODUCT_NAMES.lines() {
        let kind = line.split(' ').next().unwrap();
        let count = host.mutate(line);
        assert!(count > 0, "{line}");
        let entry = asked.entry(kind).or_default();
        *entry = (entry.0 + 1, entry.1 + count);
    }
    println!("names and changes that were refused, by kind: {asked:?}");
    for kind in ["association", "call", "class", "in", "out", "read", "result", "where", "written"] {
        assert!(asked.get(kind).is_some_and(|(names, _)| *names > 0), "there is no name of kind {kind}");
    }
}

#[test]
fn the_list_is_sorted_and_holds_each_name_once() {
    let lines: Vec<&str> = PRODUCT_NAMES.lines().collect();
    let sorted: Vec<&str> = lines.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(lines, sorted);
}

/// The last step of a whole run that was recorded: what it has used is what was changed above.
#[test]
fn a_whole_run_uses_exactly_the_list() {
    let Some(folder) = std::env::var_os("HYPERV_SIM_RECORDED") else {
        println!("SKIPPED a_whole_run_uses_exactly_the_list: HYPERV_SIM_RECORDED names no record of a whole run");
        return;
    };
    let mut used = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        used.extend(std::fs::read_to_string(entry.unwrap().path()).unwrap().lines().map(str::to_owned));
    }
    let listed: BTreeSet<String> = PRODUCT_NAMES.lines().map(str::to_owned).collect();
    let unlisted: Vec<_> = used.difference(&listed).collect();
    let unused: Vec<_> = listed.difference(&used).collect();
    assert!(
        unlisted.is_empty() && unused.is_empty(),
        "used but not listed: {unlisted:#?}\nlisted but not used: {unused:#?}"
    );
}
