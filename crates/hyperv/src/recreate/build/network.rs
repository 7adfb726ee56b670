//! Network adapters of a VM that is built from its settings, and their connections.

use crate::seam::{CimType, CimValue, Instance, ObjectPath};
use crate::{Error, cim_xml, slot_part};

use super::super::firmware::{Moved, carried_by_device};
use super::super::former::{self, instance_id, name_of};
use super::super::network::{CONNECTED, Connection, DISCONNECTED, NO_ADDRESS, decide};
use super::super::workbench::one_string;
use super::super::{MacChoice, RecreateWarning};
use super::Build;

const CONNECTION_SUB_TYPE: &str = "Microsoft:Hyper-V:Ethernet Connection";

const ADAPTER_PROPERTIES: &[&str] = &["ElementName", "ClusterMonitored", "DeviceNamingEnabled"];

impl Build<'_> {
    pub(super) fn add_network(&mut self, settings: &ObjectPath) -> Result<(), Error> {
        let bench = self.bench;
        let switches = bench.host.switches(bench.attempt)?;
        for was in self.former.adapters() {
            let name = name_of(was);
            let sub_type = was.get("ResourceSubType").as_str().unwrap_or_default();
            let template = bench.template(&was.class, sub_type)?;
            let mut changes = carried_by_device(was, &template, ADAPTER_PROPERTIES);
            changes.extend(match bench.wanted.mac {
                MacChoice::Keep => carried_by_device(was, &template, &["Address", "StaticMacAddress"]),
                MacChoice::New => vec![
                    ("StaticMacAddress", CimValue::Boolean(false)),
                    ("Address", CimValue::String(NO_ADDRESS.to_owned())),
                ],
            });
            if template.properties.keys().any(|known| known.eq_ignore_ascii_case("VirtualSystemIdentifiers")) {
                let id = format!("{{{}}}", vhdx::Guid::random());
                changes.push(("VirtualSystemIdentifiers", one_string(&id)));
            }
            let adapter = bench.add(&format!("add network adapter {name:?}"), settings, &template, changes)?;
            let former_slot = slot_part(instance_id(was)).to_owned();
            self.moved.push(Moved { former_slot, instance_id: Some(instance_id(&adapter).to_owned()) });
            let connection = self.former.connection_of(was);
            let switches_before = &self.former.definition.host.switches;
            let switch = match decide(&name, connection, &bench.wanted.network, switches_before, &switches) {
                Connection::To(switch) => switch,
                Connection::Open(warning) => {
                    self.warnings.extend(warning);
                    continue;
                }
            };
            let parent = adapter.path.ok_or_else(|| bench.unexpected("the new adapter has no path".into()))?;
            let features = connection.map(|connection| self.former.features_of(connection)).unwrap_or_default();
            let warning = self.connect(settings, &name, &parent, &switch, &features)?;
            self.warnings.extend(warning);
        }
        Ok(())
    }

    /// Connects an adapter. Without its VLAN it would be on another network than before; so a connection with features
    /// is made open, and closed when they are set.
    fn connect(
        &self,
        settings: &ObjectPath,
        name: &str,
        adapter: &ObjectPath,
        switch: &ObjectPath,
        features: &[&Instance],
    ) -> Result<Option<RecreateWarning>, Error> {
        let bench = self.bench;
        let state = if features.is_empty() { CONNECTED } else { DISCONNECTED };
        let template = bench.template(former::CONNECTION, CONNECTION_SUB_TYPE)?;
        let changes = vec![
            ("Parent", CimValue::String(adapter.as_str().to_owned())),
            ("HostResource", one_string(switch.as_str())),
            ("EnabledState", CimValue::Uint16(state)),
        ];
        let connection = bench.add(&format!("connect network adapter {name:?}"), settings, &template, changes)?;
        if features.is_empty() {
            return Ok(None);
        }
        let path = connection.path.clone().ok_or_else(|| bench.unexpected("the connection has no path".into()))?;
        let what = format!("set what the connection of network adapter {name:?} had");
        let mut texts = Vec::new();
        for feature in features {
            // Its identity is the host's to give.
            texts.push(bench.text(&cim_xml::changed(feature, vec![("InstanceID", CimValue::Null)]))?);
        }
        let parameters = [
            ("AffectedConfiguration", CimValue::Reference(path.clone())),
            ("FeatureSettings", CimValue::Array(CimType::String, texts)),
        ];
        match bench.must(&what, "AddFeatureSettings", &parameters) {
            Ok(()) => {
                let connection = bench.get(&path)?;
                let changes = vec![("EnabledState", CimValue::Uint16(CONNECTED))];
                bench.modify(&format!("connect network adapter {name:?}"), &connection, changes)?;
                Ok(None)
            }
            Err(Error::Refused { .. } | Error::JobFailed { .. }) => {
                let features = features.iter().map(|feature| feature.class.clone()).collect();
                Ok(Some(RecreateWarning::ConnectionFeatures { adapter: name.to_owned(), features }))
            }
            Err(error) => Err(error),
        }
    }
}
