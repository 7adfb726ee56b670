//! What a system's own settings carry over: identity that the guest sees, actions, boot order.

use crate::seam::{CimType, CimValue, Instance};
use crate::slot_part;

/// Properties of `Msvm_VirtualSystemSettingData` that go with the VM to wherever it is built again (spec 1.3). Names
/// and directories are set from what is wanted; the rest of the class is the host's own account of the system.
const CARRIED: &[&str] = &[
    "Notes",
    "UserSnapshotType",
    "AutomaticSnapshotsEnabled",
    "IncrementalBackupEnabled",
    "SecureBootEnabled",
    "SecureBootTemplateId",
    "BootOrder",
    "BIOSGUID",
    "BIOSSerialNumber",
    "BaseBoardSerialNumber",
    "ChassisSerialNumber",
    "ChassisAssetTag",
    "AutomaticStartupActionDelay",
    "AutomaticStartupActionSequenceNumber",
    "AutomaticShutdownAction",
    "AutomaticCriticalErrorAction",
    "AutomaticCriticalErrorActionTimeout",
    "VirtualNumaEnabled",
    "LowMmioGapSize",
    "HighMmioGapSize",
    "GuestControlledCacheTypes",
    "ConsoleMode",
    "EnhancedSessionTransportType",
    "TurnOffOnGuestRestart",
];

/// `AutomaticStartupAction`: never.
pub(super) const NO_AUTOMATIC_START: u16 = 2;

/// The properties to set again, and the names of those that this host's class does not have.
pub(super) fn carried(former: &Instance, known: &[String]) -> (Vec<(&'static str, CimValue)>, Vec<String>) {
    let is_known = |name: &str| known.iter().any(|known| known.eq_ignore_ascii_case(name));
    let set: Vec<_> =
        CARRIED.iter().map(|name| (*name, former.get(name).clone())).filter(|(_, value)| !value.is_null()).collect();
    let (set, unknown): (Vec<_>, Vec<_>) = set.into_iter().partition(|(name, _)| is_known(name));
    (set, unknown.into_iter().map(|(name, _)| name.to_owned()).collect())
}

/// Properties of a device that are set again where the host's template has them and the former device had a value.
pub(super) fn carried_by_device<'a>(
    former: &Instance,
    template: &Instance,
    names: &[&'a str],
) -> Vec<(&'a str, CimValue)> {
    let has = |name: &str| template.properties.keys().any(|known| known.eq_ignore_ascii_case(name));
    names
        .iter()
        .filter(|name| has(name))
        .map(|name| (*name, former.get(name).clone()))
        .filter(|(_, value)| !value.is_null())
        .collect()
}

/// Where a device of the former VM is now.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    /// The slot part of its former `InstanceID`.
    pub(super) former_slot: String,
    /// Its `InstanceID` now; `None` if it was left out.
    pub(super) instance_id: Option<String>,
}

/// The boot order of a generation 2 VM: the references of `now`, those of the former order first, and how many of the
/// former entries are not among them although their device was not left out. A device's boot source is called by its `InstanceID` with `\B` behind (spec 1.3).
pub(super) fn boot_order(was: &Instance, now: &Instance, moved: &[Moved]) -> (CimValue, usize) {
    let mut left: Vec<&str> = entries(now);
    let mut order = Vec::new();
    let mut lost = 0;
    for entry in entries(was) {
        let source = boot_source(entry);
        let device = source.strip_suffix(r"\b").unwrap_or(&source);
        let new = moved.iter().find(|moved| moved.former_slot.eq_ignore_ascii_case(slot_part(device)));
        let is_left_out = new.is_some_and(|new| new.instance_id.is_none());
        let wanted = new.and_then(|new| Some(format!(r"{}\b", new.instance_id.as_ref()?.to_ascii_lowercase())));
        match left.iter().position(|entry| Some(boot_source(entry)) == wanted) {
            Some(at) => order.push(left.remove(at)),
            None if is_left_out => {}
            None => lost += 1,
        }
    }
    order.extend(left);
    let order = order.into_iter().map(|entry| CimValue::String(entry.to_owned())).collect();
    (CimValue::Array(CimType::String, order), lost)
}

fn entries(system: &Instance) -> Vec<&str> {
    system.get("BootSourceOrder").as_array().unwrap_or_default().iter().filter_map(CimValue::as_str).collect()
}

/// The `InstanceID` in a reference to a boot source, in lower case, without the doubling of backslashes in a path.
pub(super) fn boot_source(entry: &str) -> String {
    let key = entry.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')).map_or(entry, |(key, _)| key);
    key.replace(r"\\", r"\").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(order: &[&str]) -> Instance {
        let order = order.iter().map(|id| {
            let id = id.replace('\\', r"\\");
            CimValue::String(format!(r#"\\H\root\virtualization\v2:Msvm_BootSourceSettingData.InstanceID="{id}""#))
        });
        let properties = [("BootSourceOrder".to_owned(), CimValue::Array(CimType::String, order.collect()))];
        Instance { class: "Msvm_VirtualSystemSettingData".into(), path: None, properties: properties.into() }
    }

    #[test]
    fn the_former_order_comes_first() {
        let moved = |former_slot: &str, instance_id: Option<&str>| Moved {
            former_slot: former_slot.into(),
            instance_id: instance_id.map(str::to_owned),
        };
        let moved = [
            moved(r"C1\0\0\D", Some(r"Microsoft:NEW\D1\0\0\D")),
            moved("N1", Some(r"Microsoft:NEW\M1")),
            moved(r"C1\0\7\D", None),
        ];
        let (disk, net) = (r"Microsoft:NEW\D1\0\0\D\B", r"Microsoft:NEW\M1\B");
        for (was, now, expected, lost) in [
            (vec![r"Microsoft:OLD\N1\B", r"Microsoft:OLD\C1\0\0\D\B"], vec![disk, net], vec![net, disk], 0),
            (vec![r"Microsoft:OLD\File\1", r"Microsoft:old\c1\0\0\d\b"], vec![net, disk], vec![disk, net], 1),
            (vec![], vec![net, disk], vec![net, disk], 0),
            (vec![r"Microsoft:OLD\C1\0\1\D\B"], vec![], vec![], 1),
            (vec![r"Microsoft:OLD\C1\0\7\D\B"], vec![net], vec![net], 0),
        ] {
            let (order, missed) = boot_order(&system(&was), &system(&now), &moved);
            assert_eq!(order, *system(&expected).get("BootSourceOrder"), "{was:?}");
            assert_eq!(missed, lost, "{was:?}");
        }
    }

    #[test]
    fn what_the_host_does_not_know_is_left_out() {
        let properties = [
            ("BIOSGUID".to_owned(), CimValue::String("{G}".into())),
            ("ConsoleMode".to_owned(), CimValue::Uint16(1)),
            ("Notes".to_owned(), CimValue::Null),
            ("ElementName".to_owned(), CimValue::String("web".into())),
        ];
        let former = Instance { class: "x".into(), path: None, properties: properties.into() };
        let (set, unknown) = carried(&former, &["biosguid".into(), "Notes".into(), "ElementName".into()]);
        assert_eq!(set, [("BIOSGUID", CimValue::String("{G}".into()))]);
        assert_eq!(unknown, ["ConsoleMode"]);
    }
}
