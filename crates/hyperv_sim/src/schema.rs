//! The class schema: which classes, properties and methods there are, and of which types.
//!
//! It is read from `schema.json`. A type is a CIM type name; `[]` behind it makes an array, `?` a parameter that may be
//! null, a name with a dot is a property of an embedded object, `ref:Class` is a reference to an instance of that class, `embedded:Class` a string that holds one.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use hyperv::seam::{CimType, CimValue, Namespace};
use serde::Deserialize;

/// All classes by name.
pub(crate) struct Schema {
    classes: BTreeMap<String, Class>,
}

/// A class with everything it inherits.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) name: String,
    /// Names of its superclasses, nearest first.
    pub(crate) ancestors: Vec<String>,
    pub(crate) namespace: Namespace,
    pub(crate) keys: Vec<String>,
    pub(crate) properties: BTreeMap<String, Type>,
    pub(crate) methods: BTreeMap<String, Method>,
    pub(crate) is_association: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Method {
    /// Of the class, not of an instance.
    pub(crate) is_static: bool,
    pub(crate) inputs: BTreeMap<String, Type>,
    pub(crate) outputs: BTreeMap<String, Type>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) base: CimType,
    pub(crate) is_array: bool,
    pub(crate) nullable: bool,
    /// The class of a reference, or of the instance embedded in a string.
    pub(crate) class: Option<String>,
}

/// The schema of the host.
pub(crate) fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| Schema::parse(include_str!("schema.json")))
}

impl Schema {
    /// A class by name, without case.
    pub(crate) fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name).or_else(|| self.classes.values().find(|class| class.name.eq_ignore_ascii_case(name)))
    }

    /// A class that the program itself names.
    pub(crate) fn own(&self, name: &str) -> &Class {
        self.class(name).unwrap_or_else(|| panic!("schema.json has no class {name}"))
    }

    fn parse(text: &str) -> Self {
        let raw: BTreeMap<String, RawClass> = serde_json::from_str(text).expect("schema.json is well-formed");
        let mut classes = BTreeMap::new();
        for name in raw.keys() {
            let mut class = Class {
                name: name.clone(),
                ancestors: Vec::new(),
                namespace: Namespace::Virtualization,
                keys: Vec::new(),
                properties: BTreeMap::new(),
                methods: BTreeMap::new(),
                is_association: false,
            };
            let mut next = Some(name.clone());
            while let Some(current) = next {
                let source = raw.get(&current).unwrap_or_else(|| panic!("schema.json has no class {current}"));
                if current != *name {
                    class.ancestors.push(current);
                }
                if class.keys.is_empty() {
                    class.keys.clone_from(&source.keys);
                }
                match source.namespace.as_deref() {
                    None => {}
                    Some("cimv2") => class.namespace = Namespace::Cimv2,
                    Some("cluster") => class.namespace = Namespace::Cluster,
                    Some("storage") => class.namespace = Namespace::Storage,
                    Some(other) => panic!("schema.json: no namespace {other:?}"),
                }
                class.is_association |= source.association;
                for (property, kind) in &source.properties {
                    class.properties.insert(property.clone(), Type::parse(kind));
                }
                for (method, raw) in &source.methods {
                    let types = |raw: &BTreeMap<String, String>| {
                        raw.iter().map(|(name, kind)| (name.clone(), Type::parse(kind))).collect()
                    };
                    let (inputs, outputs) = (types(&raw.inputs), types(&raw.outputs));
                    class.methods.insert(method.clone(), Method { is_static: raw.is_static, inputs, outputs });
                }
                next = source.superclass.clone();
            }
            classes.insert(name.clone(), class);
        }
        Schema { classes }
    }
}

impl Class {
    /// Whether this is `name` or inherits from it.
    pub(crate) fn is_a(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.ancestors.iter().any(|other| other.eq_ignore_ascii_case(name))
    }

    /// A property with its proper spelling, found without case.
    pub(crate) fn property(&self, name: &str) -> Option<(&str, &Type)> {
        let (name, kind) = self.properties.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some((name, kind))
    }
}

impl Type {
    fn parse(text: &str) -> Self {
        let (text, nullable) = match text.strip_suffix('?') {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (text, is_array) = match text.strip_suffix("[]") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (base, class) = match text.split_once(':') {
            Some(("ref", class)) => (CimType::Reference, Some(class.to_owned())),
            Some(("embedded", class)) => (CimType::String, Some(class.to_owned())),
            _ => (type_by_name(text).unwrap_or_else(|| panic!("schema.json: no type {text:?}")), None),
        };
        Self { base, is_array, nullable, class }
    }

    /// Whether a value has this type. Null has every type here; where it may stand is another question.
    pub(crate) fn admits(&self, value: &CimValue) -> bool {
        match value {
            CimValue::Null => true,
            CimValue::Array(base, values) => {
                self.is_array && *base == self.base && values.iter().all(|value| type_of(value) == Some(self.base))
            }
            scalar => !self.is_array && type_of(scalar) == Some(self.base),
        }
    }
}

/// The type of a scalar; `None` for null and arrays.
pub(crate) fn type_of(value: &CimValue) -> Option<CimType> {
    Some(match value {
        CimValue::Null | CimValue::Array(..) => return None,
        CimValue::Boolean(_) => CimType::Boolean,
        CimValue::Uint8(_) => CimType::Uint8,
        CimValue::Uint16(_) => CimType::Uint16,
        CimValue::Uint32(_) => CimType::Uint32,
        CimValue::Uint64(_) => CimType::Uint64,
        CimValue::Sint16(_) => CimType::Sint16,
        CimValue::Sint32(_) => CimType::Sint32,
        CimValue::Sint64(_) => CimType::Sint64,
        CimValue::String(_) => CimType::String,
        CimValue::DateTime(_) => CimType::DateTime,
        CimValue::Reference(_) => CimType::Reference,
    })
}

const TYPE_NAMES: [(&str, CimType); 11] = [
    ("boolean", CimType::Boolean),
    ("uint8", CimType::Uint8),
    ("uint16", CimType::Uint16),
    ("uint32", CimType::Uint32),
    ("uint64", CimType::Uint64),
    ("sint16", CimType::Sint16),
    ("sint32", CimType::Sint32),
    ("sint64", CimType::Sint64),
    ("string", CimType::String),
    ("datetime", CimType::DateTime),
    ("reference", CimType::Reference),
];

/// A CIM type by the name that CIM-XML uses.
pub(crate) fn type_by_name(name: &str) -> Option<CimType> {
    TYPE_NAMES.iter().find(|(known, _)| *known == name).map(|&(_, base)| base)
}

/// The name that CIM-XML uses.
pub(crate) fn type_name(base: CimType) -> &'static str {
    TYPE_NAMES.iter().find(|&&(_, known)| known == base).expect("every type has a name").0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClass {
    #[serde(rename = "super")]
    superclass: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    association: bool,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    methods: BTreeMap<String, RawMethod>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMethod {
    #[serde(default, rename = "static")]
    is_static: bool,
    #[serde(rename = "in")]
    inputs: BTreeMap<String, String>,
    #[serde(rename = "out")]
    outputs: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_inherit() {
        let job = schema().class("msvm_storagejob").unwrap();
        assert!(job.is_a("Msvm_ConcreteJob") && !job.is_a("CIM_Service"));
        assert_eq!(job.keys, ["InstanceID"]);
        assert!(job.methods.contains_key("GetErrorEx"));
        let settings = schema().own("Msvm_VssComponentSettingData");
        assert_eq!(settings.property("instanceid").unwrap().0, "InstanceID");
        assert!(settings.property("EnabledState").is_some());
    }

    #[test]
    fn every_class_named_in_a_type_exists_and_every_key_is_a_property() {
        for class in schema().classes.values() {
            for key in &class.keys {
                assert!(class.properties.contains_key(key), "{}.{key}", class.name);
            }
            for (name, method) in &class.methods {
                for kind in method.inputs.values().chain(method.outputs.values()) {
                    let known = kind.class.as_deref().is_none_or(|class| schema().class(class).is_some());
                    assert!(known, "{}.{name}: {kind:?}", class.name);
                }
            }
        }
    }
}
