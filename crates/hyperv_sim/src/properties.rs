//! Properties of a setting as they are kept in `host.json`.

use std::collections::BTreeMap;

use hyperv::seam::{CimType, CimValue, Instance, ObjectPath};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::builder::Builder;
use crate::schema::{Type, schema};

/// Values by property name. They are kept as JSON; their CIM types are those that the schema has for the class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Properties(BTreeMap<String, Value>);

impl Properties {
    /// Everything in an instance that is not null.
    pub(crate) fn of(instance: &Instance) -> Self {
        let mut properties = Self::default();
        for (name, value) in &instance.properties {
            properties.set(name, value);
        }
        properties
    }

    /// Sets a property; null takes it away.
    pub(crate) fn set(&mut self, name: &str, value: &CimValue) {
        match to_json(value) {
            Value::Null => self.0.remove(name),
            value => self.0.insert(name.to_owned(), value),
        };
    }

    pub(crate) fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.put(name, value);
        self
    }

    /// Takes over all that `other` has.
    pub(crate) fn extend(&mut self, other: &Properties) {
        self.0.extend(other.0.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Takes over one property of `other`.
    pub(crate) fn take(&mut self, name: &str, other: &Properties) {
        match other.0.get(name) {
            Some(value) => self.0.insert(name.to_owned(), value.clone()),
            None => self.0.remove(name),
        };
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a property has the same value, or the same none, in `other`.
    pub(crate) fn same(&self, name: &str, other: &Properties) -> bool {
        self.0.get(name) == other.0.get(name)
    }

    /// A text; empty when it is not set.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number; 0 when it is not set.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or_default()
    }

    /// A truth value; false when it is not set.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// An array of texts; empty when it is not set.
    pub(crate) fn texts(&self, name: &str) -> Vec<&str> {
        let values = self.0.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        values.iter().filter_map(Value::as_str).collect()
    }

    /// An array of numbers; empty when it is not set.
    pub(crate) fn numbers(&self, name: &str) -> Vec<u64> {
        let values = self.0.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        values.iter().filter_map(Value::as_u64).collect()
    }

    /// The one text of an array that has at most one, as `HostResource`.
    pub(crate) fn only_text(&self, name: &str) -> &str {
        self.texts(name).first().copied().unwrap_or_default()
    }

    /// Puts everything into an instance that is being built.
    pub(crate) fn build_into(&self, mut builder: Builder) -> Builder {
        for (name, value) in &self.0 {
            let kind = schema().own(builder.class_name()).properties.get(name).cloned();
            let kind = kind.unwrap_or_else(|| panic!("{} has no property {name}", builder.class_name()));
            builder = builder.set(name, from_json(&kind, value));
        }
        builder
    }
}

fn to_json(value: &CimValue) -> Value {
    match value {
        CimValue::Null => Value::Null,
        CimValue::Boolean(value) => (*value).into(),
        CimValue::Sint16(value) => (*value).into(),
        CimValue::Sint32(value) => (*value).into(),
        CimValue::Sint64(value) => (*value).into(),
        CimValue::Array(_, values) => values.iter().map(to_json).collect(),
        text if text.as_str().is_some() => text.as_str().into(),
        number => number.as_u64().into(),
    }
}

/// The value of a type; what is in `host.json` fits, since it came from a checked value.
fn from_json(kind: &Type, value: &Value) -> CimValue {
    if let (true, Some(values)) = (kind.is_array, value.as_array()) {
        return CimValue::Array(kind.base, values.iter().map(|value| scalar(kind.base, value)).collect());
    }
    scalar(kind.base, value)
}

fn scalar(base: CimType, value: &Value) -> CimValue {
    let number = value.as_u64().unwrap_or_default();
    let signed = value.as_i64().unwrap_or_default();
    let text = || value.as_str().unwrap_or_default().to_owned();
    match base {
        CimType::Boolean => CimValue::Boolean(value.as_bool().unwrap_or_default()),
        CimType::Uint8 => CimValue::Uint8(number as u8),
        CimType::Uint16 => CimValue::Uint16(number as u16),
        CimType::Uint32 => CimValue::Uint32(number as u32),
        CimType::Uint64 => CimValue::Uint64(number),
        CimType::Sint16 => CimValue::Sint16(signed as i16),
        CimType::Sint32 => CimValue::Sint32(signed as i32),
        CimType::Sint64 => CimValue::Sint64(signed),
        CimType::String => CimValue::String(text()),
        CimType::DateTime => CimValue::DateTime(text()),
        CimType::Reference => CimValue::Reference(ObjectPath::new(text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_types_through_json() {
        let class = "Msvm_StorageAllocationSettingData";
        let instance = Builder::embedded(class)
            .text("InstanceID", r"Microsoft:A\B")
            .number("ResourceType", 31)
            .number("IOPSLimit", u64::MAX)
            .texts("HostResource", vec![r"C:\it's.vhdx".into()])
            .flag("IgnoreFlushes", true)
            .build();
        let kept = serde_json::to_string(&Properties::of(&instance)).unwrap();
        let read: Properties = serde_json::from_str(&kept).unwrap();
        assert_eq!(read.build_into(Builder::embedded(class)).build(), instance);
        assert_eq!(read.only_text("HostResource"), r"C:\it's.vhdx");
        assert_eq!((read.number("IOPSLimit"), read.flag("IgnoreFlushes")), (u64::MAX, true));
    }
}
