//! Typed CIM values, instances and object paths.

use std::collections::BTreeMap;
use std::fmt;

/// CIM types that Hyper-V's classes use (DSP0004).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the definition
pub enum CimType {
    Boolean,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Sint16,
    Sint32,
    Sint64,
    String,
    DateTime,
    Reference,
}

/// A CIM value with its exact type. A wrong type is an error of the caller, and a strict provider says so.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names are the definition
pub enum CimValue {
    /// Null of any type.
    Null,
    Boolean(bool),
    Uint8(u8),
    Uint16(u16),
    Uint32(u32),
    Uint64(u64),
    Sint16(i16),
    Sint32(i32),
    Sint64(i64),
    String(String),
    /// `yyyymmddHHMMSS.mmmmmm±UUU`, or an interval `ddddddddHHMMSS.mmmmmm:000`.
    DateTime(String),
    /// A full object path.
    Reference(ObjectPath),
    /// An array of one type.
    Array(CimType, Vec<CimValue>),
}

impl CimValue {
    /// The text of a string, date or reference.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::DateTime(text) => Some(text),
            Self::Reference(path) => Some(path.as_str()),
            _ => None,
        }
    }

    /// Any unsigned or non-negative integer, widened.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Uint8(value) => Some(value.into()),
            Self::Uint16(value) => Some(value.into()),
            Self::Uint32(value) => Some(value.into()),
            Self::Uint64(value) => Some(value),
            Self::Sint16(value) => value.try_into().ok(),
            Self::Sint32(value) => value.try_into().ok(),
            Self::Sint64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Boolean(value) => Some(value),
            _ => None,
        }
    }

    /// The elements of an array; empty for null, `None` for a scalar.
    pub fn as_array(&self) -> Option<&[CimValue]> {
        match self {
            Self::Array(_, values) => Some(values),
            Self::Null => Some(&[]),
            _ => None,
        }
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

/// The path of an object as `__PATH` delivered it: `\\HOST\root\virtualization\v2:Class.Key="value"`.
///
/// It is never put together by hand above the seam: paths come from instances and are given back verbatim. Only a class
/// is named by itself ([`ObjectPath::of_class`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectPath(String);

impl ObjectPath {
    /// Takes a path that a provider delivered.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The class itself, of the namespace that is called: what static methods are invoked on.
    pub fn of_class(class: &'static str) -> Self {
        Self(class.to_owned())
    }

    /// The text, verbatim.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instance of a class: what a query returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Class name.
    pub class: String,
    /// Its `__PATH`; `None` for embedded instances.
    pub path: Option<ObjectPath>,
    /// Properties by name, nulls included.
    pub properties: BTreeMap<String, CimValue>,
}

impl Instance {
    /// A property; null and a missing one read the same. Names compare without case, as WMI's do.
    #[track_caller]
    pub fn get(&self, name: &str) -> &CimValue {
        static NULL: CimValue = CimValue::Null;
        super::observe::property_is_read(&self.class, name);
        self.properties
            .get(name)
            .or_else(|| self.properties.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
            .unwrap_or(&NULL)
    }
}
