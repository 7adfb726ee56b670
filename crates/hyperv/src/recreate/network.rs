//! Which switch of this host a network adapter is connected to.

use std::collections::BTreeMap;

use crate::seam::{Instance, ObjectPath};
use crate::{Error, Host, wql};

use super::RecreateWarning;
use super::wanted::NetworkChoice;

/// `EnabledState` of a connection.
pub(super) const CONNECTED: u16 = 2;
pub(super) const DISCONNECTED: u16 = 3;

/// The address that asks the host for a new one (spec 6.3 step 6).
pub(super) const NO_ADDRESS: &str = "000000000000";

/// A virtual switch of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    pub(super) path: ObjectPath,
    pub(super) id: String,
    pub(super) name: String,
}

/// What becomes of an adapter's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// To this switch.
    To(ObjectPath),
    /// To none; with a warning unless that is what was asked for.
    Open(Option<RecreateWarning>),
}

impl Host {
    pub(super) fn switches(&self, attempt: &str) -> Result<Vec<Switch>, Error> {
        let found = self.find(attempt, &wql::all("Msvm_VirtualEthernetSwitch"))?;
        Ok(found
            .into_iter()
            .filter_map(|switch| {
                let text = |name| switch.get(name).as_str().unwrap_or_default().to_owned();
                Some(Switch { id: text("Name"), name: text("ElementName"), path: switch.path.clone()? })
            })
            .collect())
    }
}

/// Decides for one adapter. `former` are the switches of the former host, name by id.
pub(super) fn decide(
    adapter: &str,
    connection: Option<&Instance>,
    choice: &NetworkChoice,
    former: &BTreeMap<String, String>,
    present: &[Switch],
) -> Connection {
    let Some((id, name)) = connection.and_then(|connection| former_switch(connection, former)) else {
        return Connection::Open(None);
    };
    let missing = |switch: &str| {
        let (adapter, switch) = (adapter.to_owned(), switch.to_owned());
        Connection::Open(Some(RecreateWarning::SwitchMissing { adapter, switch }))
    };
    let chosen = choice.switches.iter().find(|(from, _)| from.eq_ignore_ascii_case(&id) || **from == name);
    let (id, name) = match chosen {
        Some((_, to)) => (to.as_str(), to.as_str()),
        None if choice.reconnect => (id.as_str(), name.as_str()),
        None => return Connection::Open(None),
    };
    if let Some(switch) = present.iter().find(|switch| !id.is_empty() && switch.id.eq_ignore_ascii_case(id)) {
        return Connection::To(switch.path.clone());
    }
    let named: Vec<_> = present.iter().filter(|switch| !name.is_empty() && switch.name == name).collect();
    match named.as_slice() {
        [switch] => Connection::To(switch.path.clone()),
        [] => missing(if name.is_empty() { id } else { name }),
        _ => {
            let (adapter, switch) = (adapter.to_owned(), name.to_owned());
            Connection::Open(Some(RecreateWarning::SwitchAmbiguous { adapter, switch }))
        }
    }
}

/// Id and name of the switch that a connection led to; one of them may be empty. `None` if it led nowhere.
fn former_switch(connection: &Instance, former: &BTreeMap<String, String>) -> Option<(String, String)> {
    if connection.get("EnabledState").as_u64() == Some(DISCONNECTED.into()) {
        return None;
    }
    let resource = crate::devices::host_resource(connection).unwrap_or_default().to_ascii_lowercase();
    let by_id = former.iter().find(|(id, _)| !id.is_empty() && resource.contains(&id.to_ascii_lowercase()));
    let last_name = connection.get("LastKnownSwitchName").as_str().unwrap_or_default();
    match by_id {
        Some((id, name)) => Some((id.clone(), name.clone())),
        None if !last_name.is_empty() => Some((String::new(), last_name.to_owned())),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::{CimType, CimValue};

    fn connection(state: u16, resource: &str, last_name: &str) -> Instance {
        let resource = CimValue::Array(CimType::String, vec![CimValue::String(resource.into())]);
        let properties = [
            ("EnabledState".to_owned(), CimValue::Uint16(state)),
            ("HostResource".to_owned(), resource),
            ("LastKnownSwitchName".to_owned(), CimValue::String(last_name.into())),
        ];
        Instance { class: "Msvm_EthernetPortAllocationSettingData".into(), path: None, properties: properties.into() }
    }

    fn switch(id: &str, name: &str) -> Switch {
        Switch { path: ObjectPath::new(id), id: id.into(), name: name.into() }
    }

    #[test]
    fn switches_are_found_by_choice_id_or_name() {
        const OLD: &str = r#"\\A\root\virtualization\v2:Msvm_VirtualEthernetSwitch.Name="AA""#;
        let former = BTreeMap::from([("AA".to_owned(), "LAN".to_owned())]);
        let to = |id: &str| Connection::To(ObjectPath::new(id));
        let missing = |switch: &str| {
            Connection::Open(Some(RecreateWarning::SwitchMissing { adapter: "nic".into(), switch: switch.into() }))
        };
        let ambiguous =
            Connection::Open(Some(RecreateWarning::SwitchAmbiguous { adapter: "nic".into(), switch: "LAN".into() }));
        let chosen = |from: &str, to: &str| NetworkChoice {
            reconnect: false,
            switches: BTreeMap::from([(from.to_owned(), to.to_owned())]),
        };
        let again = NetworkChoice::as_before();
        for (case, connection, choice, present, expected) in [
            ("same id", connection(2, OLD, ""), &again, vec![switch("aa", "other"), switch("BB", "LAN")], to("aa")),
            ("same name", connection(2, OLD, ""), &again, vec![switch("BB", "LAN")], to("BB")),
            ("two of a name", connection(2, OLD, ""), &again, vec![switch("B", "LAN"), switch("C", "LAN")], ambiguous),
            ("none", connection(2, OLD, ""), &again, vec![switch("B", "lan 2")], missing("LAN")),
            ("only a last name", connection(2, "", "WAN"), &again, vec![switch("B", "WAN")], to("B")),
            ("was not connected", connection(3, OLD, "LAN"), &again, vec![switch("AA", "LAN")], Connection::Open(None)),
            ("led nowhere", connection(2, "", ""), &again, vec![switch("AA", "LAN")], Connection::Open(None)),
            (
                "not wanted",
                connection(2, OLD, ""),
                &NetworkChoice::disconnected(),
                vec![switch("AA", "LAN")],
                Connection::Open(None),
            ),
            ("by name to id", connection(2, OLD, ""), &chosen("LAN", "cc"), vec![switch("CC", "x")], to("CC")),
            ("by id to name", connection(2, OLD, ""), &chosen("aa", "Test"), vec![switch("CC", "Test")], to("CC")),
            ("to none", connection(2, OLD, ""), &chosen("LAN", "gone"), vec![switch("AA", "LAN")], missing("gone")),
            (
                "of another",
                connection(2, OLD, ""),
                &chosen("WAN", "LAN"),
                vec![switch("AA", "LAN")],
                Connection::Open(None),
            ),
        ] {
            assert_eq!(decide("nic", Some(&connection), choice, &former, &present), expected, "{case}");
        }
        assert_eq!(decide("nic", None, &again, &former, &[]), Connection::Open(None));
    }
}
