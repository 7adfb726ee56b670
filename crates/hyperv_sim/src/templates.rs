//! Definition templates: what a new setting of each kind starts as, read from `templates.json`.
//!
//! On a host they are instances of the same classes as the settings of VMs, `Microsoft:Definition\<GUID>\Default` and
//! three more of each kind, so that a query of a whole class returns them too.

use std::sync::OnceLock;

use hyperv::seam::Instance;
use serde::Deserialize;

use crate::builder::Builder;
use crate::configuration::Device;
use crate::host::Tx;
use crate::properties::Properties;

/// One kind of setting.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Template {
    pub(crate) class: String,
    name: String,
    #[serde(rename = "type")]
    resource_type: u16,
    pub(crate) sub_type: String,
    id: String,
    properties: Properties,
}

impl Template {
    /// What every setting of this kind has.
    pub(crate) fn properties(&self) -> Properties {
        let mut properties = self.properties.clone();
        properties.put("ElementName", self.name.as_str());
        properties.put("ResourceType", self.resource_type);
        properties.put("ResourceSubType", self.sub_type.as_str());
        properties
    }

    /// A device of this kind; `id` is the part of its `InstanceID` behind the configuration.
    pub(crate) fn device(&self, id: impl Into<String>, parent: Option<&str>) -> Device {
        Device {
            class: self.class.clone(),
            id: id.into(),
            parent: parent.map(str::to_owned),
            properties: self.properties(),
        }
    }
}

/// The template of a sub type; the host has one of each that it knows.
pub(crate) fn find(sub_type: &str) -> Option<&'static Template> {
    all().iter().find(|template| template.sub_type == sub_type)
}

/// As [`find`], for a sub type that the program itself names, without `Microsoft:Hyper-V:`.
pub(crate) fn own(sub_type: &str) -> &'static Template {
    let full = format!("Microsoft:Hyper-V:{sub_type}");
    find(&full).unwrap_or_else(|| panic!("templates.json has no {full}"))
}

fn all() -> &'static [Template] {
    static TEMPLATES: OnceLock<Vec<Template>> = OnceLock::new();
    TEMPLATES
        .get_or_init(|| serde_json::from_str(include_str!("templates.json")).expect("templates.json is well-formed"))
}

/// The templates as a host lists them.
pub(crate) fn instances(tx: &Tx<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let mut list = Vec::new();
    for template in all().iter().filter(|template| wanted(&template.class)) {
        for role in ["Default", "Minimum", "Maximum", "Increment"] {
            let builder = template.properties().build_into(Builder::new(tx, &template.class));
            list.push(builder.text("InstanceID", &format!(r"Microsoft:Definition\{}\{role}", template.id)).build());
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_fits_the_schema_and_has_its_own_id() {
        let mut ids = std::collections::BTreeSet::new();
        for template in all() {
            template.properties().build_into(Builder::embedded(&template.class)).build();
            assert!(ids.insert(&template.id), "{}", template.sub_type);
            assert!(find(&template.sub_type).is_some_and(|found| found.id == template.id), "{}", template.sub_type);
        }
    }
}
