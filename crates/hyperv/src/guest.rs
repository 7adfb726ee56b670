//! What the guest says it is (spec 2.4).

use crate::cim_xml;
use crate::seam::{CimValue, Instance};

/// The guest, as its own integration services describe it while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Which kind of freeze an application-consistent checkpoint is.
    pub family: GuestFamily,
    /// `OSName`, such as `Windows Server 2022 Datacenter` or `Debian GNU/Linux`.
    pub os_name: Option<String>,
}

/// Decides the label of a checkpoint at level [`Application`](crate::Consistency::Application), nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GuestFamily {
    /// Applications are frozen through VSS.
    Windows,
    /// Linux and others: file systems are frozen.
    Other,
    /// Off, or without integration services.
    #[default]
    Unknown,
}

/// Reads the items of an `Msvm_KvpExchangeComponent`. An item that cannot be read is the guest's, and passed over.
pub(crate) fn guest(component: Option<&Instance>) -> Guest {
    let items = component.and_then(|component| component.get("GuestIntrinsicExchangeItems").as_array());
    let items: Vec<Instance> = items
        .unwrap_or_default()
        .iter()
        .filter_map(CimValue::as_str)
        .filter_map(|text| cim_xml::parse(text).ok())
        .collect();
    let value = |key: &str| {
        let item = items.iter().find(|item| item.get("Name").as_str() == Some(key))?;
        item.get("Data").as_str().filter(|value| !value.is_empty()).map(str::to_owned)
    };
    let os_name = value("OSName");
    let says_windows = value("OSPlatformId").as_deref() == Some("2")
        || os_name.as_deref().is_some_and(|name| name.starts_with("Windows"));
    let family = match items.is_empty() {
        true => GuestFamily::Unknown,
        false if says_windows => GuestFamily::Windows,
        false => GuestFamily::Other,
    };
    Guest { family, os_name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::CimType;

    fn item(name: &str, data: &str) -> CimValue {
        CimValue::String(format!(
            r#"<INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem"><PROPERTY NAME="Data" TYPE="string"><VALUE>{data}</VALUE></PROPERTY><PROPERTY NAME="Name" TYPE="string"><VALUE>{name}</VALUE></PROPERTY></INSTANCE>"#
        ))
    }

    #[test]
    fn families_follow_what_the_guest_reports() {
        for (items, family, os_name) in [
            (vec![], GuestFamily::Unknown, None),
            (vec![CimValue::String("rubbish".into())], GuestFamily::Unknown, None),
            (vec![item("OSPlatformId", "2"), item("OSName", "Fenster")], GuestFamily::Windows, Some("Fenster")),
            (vec![item("OSName", "Windows Server 2022")], GuestFamily::Windows, Some("Windows Server 2022")),
            (vec![item("OSPlatformId", "129"), item("OSName", "Ubuntu")], GuestFamily::Other, Some("Ubuntu")),
            (vec![item("OSName", "Debian &amp; more")], GuestFamily::Other, Some("Debian & more")),
            (vec![item("OSBuildNumber", "1")], GuestFamily::Other, None),
        ] {
            let properties =
                [("GuestIntrinsicExchangeItems".to_owned(), CimValue::Array(CimType::String, items.clone()))];
            let component =
                Instance { class: "Msvm_KvpExchangeComponent".into(), path: None, properties: properties.into() };
            let found = guest(Some(&component));
            assert_eq!((found.family, found.os_name.as_deref()), (family, os_name), "{items:?}");
        }
        assert_eq!(guest(None), Guest::default());
    }
}
