//! The devices of a VM: the settings of one configuration, and the integration components of a running guest.

use hyperv::seam::Instance;

use crate::builder::Builder;
use crate::configuration::{COMPONENTS, Configuration, RASD, SASD};
use crate::host::Tx;
use crate::objects::instance_path;
use crate::state::{GuestFamily, Vm, VssBehaviour};

const VSS_SETTINGS: &str = "Msvm_VssComponentSettingData";

/// Every setting that hangs off the system settings of one configuration.
pub(crate) fn device_settings(
    tx: &Tx<'_>,
    vm: &Vm,
    cfg: &str,
    config: &Configuration,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<Instance> {
    let mut list = Vec::new();
    for device in config.devices.iter().filter(|device| wanted(&device.class)) {
        let mut builder = device.properties.build_into(Builder::new(tx, &device.class));
        builder = builder.text("InstanceID", &format!(r"Microsoft:{cfg}\{}", device.id));
        if let Some(parent) = device.parent.as_ref().and_then(|id| config.device(id))
            && builder.has_property("Parent")
        {
            let path = instance_path(tx, &parent.class, &format!(r"Microsoft:{cfg}\{}", parent.id));
            builder = builder.text("Parent", path.as_str());
        }
        if device.class == VSS_SETTINGS && vm.vss == VssBehaviour::Disabled {
            builder = builder.number("EnabledState", 3);
        }
        list.push(builder.build());
    }
    for disk in config.disks.iter().filter(|_| wanted(SASD)) {
        let drive = instance_path(tx, RASD, &format!(r"Microsoft:{cfg}\{}\D", disk.place));
        let builder = disk.properties.build_into(Builder::new(tx, SASD));
        list.push(
            builder
                .text("InstanceID", &medium_id(cfg, &disk.place))
                .text("Parent", drive.as_str())
                .texts("HostResource", vec![disk.file.as_str().to_owned()])
                .build(),
        );
    }
    list
}

/// `InstanceID` of the medium at a place.
pub(crate) fn medium_id(cfg: &str, place: &str) -> String {
    format!(r"Microsoft:{cfg}\{place}\L")
}

pub(crate) fn components(tx: &Tx<'_>, vm: &Vm, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let mut list = Vec::new();
    for (name, _, id) in COMPONENTS {
        let class = format!("Msvm_{name}");
        let disabled = id == COMPONENTS[0].2 && vm.vss == VssBehaviour::Disabled;
        if !wanted(&class) || disabled {
            continue;
        }
        let status = match vm.guest {
            GuestFamily::Unknown => 12,
            _ if id == COMPONENTS[0].2 && vm.vss == VssBehaviour::NotResponding => 13,
            _ => 2,
        };
        let mut builder = Builder::new(tx, &class)
            .text("CreationClassName", &class)
            .text("DeviceID", &format!("Microsoft:{id}"))
            .text("SystemCreationClassName", "Msvm_ComputerSystem")
            .text("SystemName", &vm.id)
            .text("ElementName", name)
            .number("EnabledState", 2)
            .number("HealthState", 5)
            .numbers("OperationalStatus", &[status]);
        if name == "KvpExchangeComponent" {
            builder = builder
                .texts("GuestExchangeItems", Vec::new())
                .texts("GuestIntrinsicExchangeItems", kvp_items(vm.guest));
        }
        list.push(builder.build());
    }
    list
}

fn kvp_items(guest: GuestFamily) -> Vec<String> {
    let items: &[(&str, &str)] = match guest {
        GuestFamily::Windows => &[
            ("FullyQualifiedDomainName", "guest"),
            ("OSName", "Windows Server 2022 Datacenter"),
            ("OSVersion", "10.0.20348"),
            ("OSMajorVersion", "10"),
            ("OSMinorVersion", "0"),
            ("OSBuildNumber", "20348"),
            ("OSPlatformId", "2"),
            ("ProcessorArchitecture", "9"),
        ],
        GuestFamily::Linux => &[
            ("FullyQualifiedDomainName", "guest"),
            ("IntegrationServicesVersion", "3.1"),
            ("NetworkAddressIPv4", "192.0.2.10"),
            ("NetworkAddressIPv6", ""),
            ("OSBuildNumber", "6.1.0-28-amd64"),
            ("OSName", "Debian GNU/Linux"),
            ("OSMajorVersion", "12"),
            ("OSMinorVersion", ""),
            ("OSVersion", "6.1.0"),
            ("ProcessorArchitecture", "x86_64"),
        ],
        GuestFamily::Unknown => &[],
    };
    let item = |&(name, data): &(&str, &str)| {
        crate::embedded::format(
            &Builder::embedded("Msvm_KvpExchangeDataItem")
                .text("Name", name)
                .text("Data", data)
                .number("Source", 2)
                .build(),
        )
    };
    items.iter().map(item).collect()
}
