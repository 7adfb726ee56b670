//! CIM values as OLE Automation carries them (spec 8.6): pure, so that every type is tested on every platform.
//!
//! A VARIANT has fewer types than CIM: unsigned integers come as signed ones, 64-bit integers as decimal text. The CIM
//! type that stands beside each value in WMI's interfaces decides what is meant.

use std::fmt;

use crate::seam::{CimType, CimValue, Instance, ObjectPath};

/// What a VARIANT holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Automation {
    /// `VT_NULL` or `VT_EMPTY`.
    Null,
    /// `VT_BOOL`.
    Bool(bool),
    /// `VT_UI1`.
    U8(u8),
    /// `VT_I2`.
    I16(i16),
    /// `VT_I4`.
    I32(i32),
    /// An integer of another width or sign: read from some providers, never sent.
    Integer(i64),
    /// `VT_R4`, `VT_R8`: read only.
    Real(f64),
    /// `VT_BSTR`.
    Text(String),
    /// `VT_UNKNOWN`: an object in a property of type object. Read only.
    Object(Box<RawObject>),
    /// `VT_ARRAY` of one type.
    Array(ElementType, Vec<Automation>),
    /// Any other type, by its `VARENUM` number. Read only.
    Unknown(u16),
}

/// What an array that is sent is made of; an empty one has no element to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    Bool,
    U8,
    I16,
    I32,
    Text,
    /// Read only.
    Other,
}

/// A property of an object or of a method's signature.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RawProperty {
    pub name: String,
    /// `CIMTYPE_ENUMERATION`, with the array flag.
    pub cim_type: i32,
    pub value: Automation,
}

/// A WMI object, read out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RawObject {
    pub class: String,
    /// `__PATH`; none for embedded objects and for instances of classes without a key.
    pub path: Option<String>,
    pub properties: Vec<RawProperty>,
    /// Its MOF text where it is embedded, else empty.
    pub text: String,
}

/// A value does not fit its CIM type.
#[derive(Debug, PartialEq)]
pub(super) struct Mismatch {
    wanted: String,
    found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wants {}, not {}", self.wanted, self.found)
    }
}

// CIMTYPE_ENUMERATION (wbemcli.h).
const SINT16: i32 = 2;
const SINT32: i32 = 3;
const REAL32: i32 = 4;
const REAL64: i32 = 5;
const STRING: i32 = 8;
const BOOLEAN: i32 = 11;
const OBJECT: i32 = 13;
const SINT8: i32 = 16;
const UINT8: i32 = 17;
const UINT16: i32 = 18;
const UINT32: i32 = 19;
const SINT64: i32 = 20;
const UINT64: i32 = 21;
const DATETIME: i32 = 101;
const REFERENCE: i32 = 102;
const CHAR16: i32 = 103;
const ARRAY_FLAG: i32 = 0x2000;

/// The seam's word for a type. Those that it has none for, which Hyper-V does not use, read as the nearest: an 8-bit
/// signed integer as 16 bits, a character as its number, real numbers and objects as text.
fn cim_type(code: i32) -> Option<CimType> {
    Some(match code & !ARRAY_FLAG {
        BOOLEAN => CimType::Boolean,
        UINT8 => CimType::Uint8,
        UINT16 | CHAR16 => CimType::Uint16,
        UINT32 => CimType::Uint32,
        UINT64 => CimType::Uint64,
        SINT8 | SINT16 => CimType::Sint16,
        SINT32 => CimType::Sint32,
        SINT64 => CimType::Sint64,
        STRING | OBJECT | REAL32 | REAL64 => CimType::String,
        DATETIME => CimType::DateTime,
        REFERENCE => CimType::Reference,
        _ => return None,
    })
}

/// What a value of CIM type `code` that WMI delivered means.
pub(super) fn from_wmi(code: i32, value: Automation) -> Result<CimValue, Mismatch> {
    let mismatch = |value: &Automation| Mismatch { wanted: type_name(code), found: format!("{value:?}") };
    let Some(cim) = cim_type(code) else { return Err(mismatch(&value)) };
    match value {
        Automation::Null => Ok(CimValue::Null),
        Automation::Array(_, values) if code & ARRAY_FLAG != 0 => {
            let scalars = values.into_iter().map(|value| from_wmi_scalar(cim, value).map_err(|value| mismatch(&value)));
            Ok(CimValue::Array(cim, scalars.collect::<Result<_, _>>()?))
        }
        value if code & ARRAY_FLAG != 0 => Err(mismatch(&value)),
        value => from_wmi_scalar(cim, value).map_err(|value| mismatch(&value)),
    }
}

fn from_wmi_scalar(cim: CimType, value: Automation) -> Result<CimValue, Automation> {
    let integer = match &value {
        Automation::U8(value) => Some(i64::from(*value)),
        Automation::I16(value) => Some(i64::from(*value)),
        Automation::I32(value) => Some(i64::from(*value)),
        Automation::Integer(value) => Some(*value),
        _ => None,
    };
    // A narrow unsigned integer lies in a signed one of its width or wider; the low bits are the value.
    let converted = match (cim, &value, integer) {
        (CimType::Boolean, Automation::Bool(value), _) => Some(CimValue::Boolean(*value)),
        (CimType::Uint8, _, Some(value)) => u8::try_from(value).ok().map(CimValue::Uint8),
        (CimType::Uint16, Automation::I16(value), _) => Some(CimValue::Uint16(*value as u16)),
        (CimType::Uint16, _, Some(value)) => u16::try_from(value).ok().map(CimValue::Uint16),
        (CimType::Uint32, Automation::I32(value), _) => Some(CimValue::Uint32(*value as u32)),
        (CimType::Uint32, _, Some(value)) => u32::try_from(value).ok().map(CimValue::Uint32),
        (CimType::Uint64, Automation::Text(text), _) => text.parse().ok().map(CimValue::Uint64),
        (CimType::Uint64, _, Some(value)) => u64::try_from(value).ok().map(CimValue::Uint64),
        (CimType::Sint16, _, Some(value)) => i16::try_from(value).ok().map(CimValue::Sint16),
        (CimType::Sint32, _, Some(value)) => i32::try_from(value).ok().map(CimValue::Sint32),
        (CimType::Sint64, Automation::Text(text), _) => text.parse().ok().map(CimValue::Sint64),
        (CimType::Sint64, _, Some(value)) => Some(CimValue::Sint64(value)),
        (CimType::String, Automation::Text(text), _) => Some(CimValue::String(text.clone())),
        (CimType::String, Automation::Real(value), _) => Some(CimValue::String(value.to_string())),
        (CimType::String, Automation::Object(object), _) => Some(CimValue::String(object.text.clone())),
        (CimType::DateTime, Automation::Text(text), _) => Some(CimValue::DateTime(text.clone())),
        (CimType::Reference, Automation::Text(text), _) => Some(CimValue::Reference(ObjectPath::new(text.clone()))),
        _ => None,
    };
    converted.ok_or(value)
}

/// The value as it is sent to a parameter of CIM type `code`, which must be its own type: WMI would convert what it
/// can, and a provider would then see another value than was meant.
pub(super) fn to_wmi(code: i32, value: &CimValue) -> Result<Automation, Mismatch> {
    let mismatch = || Mismatch { wanted: type_name(code), found: value_type_name(value) };
    // What can only be read is not in `element_type`.
    let wanted = cim_type(code).filter(|_| element_type(code).is_some()).ok_or_else(mismatch)?;
    match value {
        CimValue::Null => Ok(Automation::Null),
        CimValue::Array(of, values) if code & ARRAY_FLAG != 0 && *of == wanted => {
            let scalars = values.iter().map(|value| to_wmi_scalar(wanted, value).ok_or_else(mismatch));
            let element = element_type(code).ok_or_else(mismatch)?;
            Ok(Automation::Array(element, scalars.collect::<Result<_, _>>()?))
        }
        value if code & ARRAY_FLAG == 0 => to_wmi_scalar(wanted, value).ok_or_else(mismatch),
        _ => Err(mismatch()),
    }
}

fn element_type(code: i32) -> Option<ElementType> {
    Some(match code & !ARRAY_FLAG {
        BOOLEAN => ElementType::Bool,
        UINT8 => ElementType::U8,
        SINT16 => ElementType::I16,
        UINT16 | UINT32 | SINT32 => ElementType::I32,
        UINT64 | SINT64 | STRING | DATETIME | REFERENCE => ElementType::Text,
        _ => return None,
    })
}

fn to_wmi_scalar(wanted: CimType, value: &CimValue) -> Option<Automation> {
    Some(match (wanted, value) {
        (CimType::Boolean, CimValue::Boolean(value)) => Automation::Bool(*value),
        (CimType::Uint8, CimValue::Uint8(value)) => Automation::U8(*value),
        (CimType::Uint16, CimValue::Uint16(value)) => Automation::I32((*value).into()),
        (CimType::Uint32, CimValue::Uint32(value)) => Automation::I32(*value as i32),
        (CimType::Uint64, CimValue::Uint64(value)) => Automation::Text(value.to_string()),
        (CimType::Sint16, CimValue::Sint16(value)) => Automation::I16(*value),
        (CimType::Sint32, CimValue::Sint32(value)) => Automation::I32(*value),
        (CimType::Sint64, CimValue::Sint64(value)) => Automation::Text(value.to_string()),
        (CimType::String, CimValue::String(text)) => Automation::Text(text.clone()),
        (CimType::DateTime, CimValue::DateTime(text)) => Automation::Text(text.clone()),
        (CimType::Reference, CimValue::Reference(path)) => Automation::Text(path.as_str().to_owned()),
        _ => return None,
    })
}

/// The object as the seam knows it. A value that contradicts its own type is the provider's mistake.
pub(super) fn instance(raw: RawObject) -> Result<Instance, String> {
    let class = raw.class;
    let properties = raw.properties.into_iter().map(|property| {
        let value = from_wmi(property.cim_type, property.value)
            .map_err(|mismatch| format!("property {} of {class} {mismatch}", property.name))?;
        Ok((property.name, value))
    });
    let properties = properties.collect::<Result<_, String>>()?;
    Ok(Instance { class, path: raw.path.map(ObjectPath::new), properties })
}

fn type_name(code: i32) -> String {
    let name = match code & !ARRAY_FLAG {
        SINT16 => "sint16",
        SINT32 => "sint32",
        REAL32 => "real32",
        REAL64 => "real64",
        STRING => "string",
        BOOLEAN => "boolean",
        OBJECT => "object",
        SINT8 => "sint8",
        UINT8 => "uint8",
        UINT16 => "uint16",
        UINT32 => "uint32",
        SINT64 => "sint64",
        UINT64 => "uint64",
        DATETIME => "datetime",
        REFERENCE => "reference",
        CHAR16 => "char16",
        other => return format!("CIM type {other}"),
    };
    if code & ARRAY_FLAG == 0 { name.to_owned() } else { format!("{name}[]") }
}

fn value_type_name(value: &CimValue) -> String {
    let of = |cim: CimType| format!("{cim:?}").to_lowercase();
    match value {
        CimValue::Null => "null".to_owned(),
        CimValue::Boolean(_) => of(CimType::Boolean),
        CimValue::Uint8(_) => of(CimType::Uint8),
        CimValue::Uint16(_) => of(CimType::Uint16),
        CimValue::Uint32(_) => of(CimType::Uint32),
        CimValue::Uint64(_) => of(CimType::Uint64),
        CimValue::Sint16(_) => of(CimType::Sint16),
        CimValue::Sint32(_) => of(CimType::Sint32),
        CimValue::Sint64(_) => of(CimType::Sint64),
        CimValue::String(_) => of(CimType::String),
        CimValue::DateTime(_) => of(CimType::DateTime),
        CimValue::Reference(_) => of(CimType::Reference),
        CimValue::Array(cim, _) => format!("{}[]", of(*cim)),
    }
}

/// A value of every CIM type that can be sent, with its type's code and what carries it.
#[cfg(test)]
pub(super) fn every_type() -> Vec<(i32, CimValue, Automation)> {
    let text = |text: &str| Automation::Text(text.to_owned());
    let path =
        r#"\\HOST\root\virtualization\v2:Msvm_ComputerSystem.CreationClassName="Msvm_ComputerSystem",Name="a\\b\"c""#;
    let interval = "00000000000500.000000:000";
    let scalars = vec![
        (BOOLEAN, CimValue::Boolean(true), Automation::Bool(true)),
        (BOOLEAN, CimValue::Boolean(false), Automation::Bool(false)),
        (UINT8, CimValue::Uint8(200), Automation::U8(200)),
        (UINT16, CimValue::Uint16(40_000), Automation::I32(40_000)),
        (UINT32, CimValue::Uint32(u32::MAX), Automation::I32(-1)),
        (UINT32, CimValue::Uint32(32_768), Automation::I32(32_768)),
        (UINT64, CimValue::Uint64(u64::MAX), text("18446744073709551615")),
        (SINT16, CimValue::Sint16(-5), Automation::I16(-5)),
        (SINT32, CimValue::Sint32(-5), Automation::I32(-5)),
        (SINT64, CimValue::Sint64(i64::MIN), text("-9223372036854775808")),
        (STRING, CimValue::String("it's \"quoted\" \\ grüße 🙂".into()), text("it's \"quoted\" \\ grüße 🙂")),
        (STRING, CimValue::String(String::new()), text("")),
        (DATETIME, CimValue::DateTime(interval.into()), text(interval)),
        (REFERENCE, CimValue::Reference(ObjectPath::new(path)), text(path)),
    ];
    let mut all = scalars.clone();
    for (code, value, carried) in scalars {
        let (Some(cim), Some(element)) = (cim_type(code), element_type(code)) else { unreachable!("{code} is sent") };
        let code = code | ARRAY_FLAG;
        all.push((code, CimValue::Null, Automation::Null));
        all.push((code, CimValue::Array(cim, vec![]), Automation::Array(element, vec![])));
        let pair = (CimValue::Array(cim, vec![value.clone(), value]), vec![carried.clone(), carried]);
        all.push((code, pair.0, Automation::Array(element, pair.1)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_goes_there_and_comes_back() {
        for (code, value, carried) in every_type() {
            assert_eq!(to_wmi(code, &value).as_ref(), Ok(&carried), "{} {value:?}", type_name(code));
            assert_eq!(from_wmi(code, carried), Ok(value.clone()), "{} {value:?}", type_name(code));
        }
    }

    #[test]
    fn only_the_parameters_own_type_is_sent() {
        let all = every_type();
        for (code, value, _) in &all {
            for (other, _, _) in &all {
                let fits = code == other || *value == CimValue::Null;
                assert_eq!(to_wmi(*other, value).is_ok(), fits, "{value:?} as {}", type_name(*other));
            }
        }
        for (code, value, message) in [
            (UINT16, CimValue::Uint32(2), "wants uint16, not uint32"),
            (STRING | ARRAY_FLAG, CimValue::String("a".into()), "wants string[], not string"),
            (OBJECT, CimValue::String("a".into()), "wants object, not string"),
            (REAL64, CimValue::Uint32(2), "wants real64, not uint32"),
            (4711, CimValue::Null, "wants CIM type 4711, not null"),
        ] {
            assert_eq!(to_wmi(code, &value).unwrap_err().to_string(), message);
        }
        // An element of another type than its array's.
        let mixed = CimValue::Array(CimType::Uint16, vec![CimValue::Uint16(1), CimValue::Uint32(2)]);
        assert!(to_wmi(UINT16 | ARRAY_FLAG, &mixed).is_err());
    }

    #[test]
    fn what_providers_say_in_other_widths_is_understood_or_refused() {
        let text = |text: &str| Automation::Text(text.to_owned());
        for (code, carried, expected) in [
            (UINT16, Automation::I16(-1), Some(CimValue::Uint16(65_535))),
            (UINT16, Automation::Integer(65_535), Some(CimValue::Uint16(65_535))),
            (UINT16, Automation::I32(65_536), None),
            (UINT32, Automation::Integer(4_294_967_295), Some(CimValue::Uint32(u32::MAX))),
            (UINT32, Automation::Integer(-1), None),
            (UINT64, Automation::I32(7), Some(CimValue::Uint64(7))),
            (UINT64, text("-1"), None),
            (UINT64, text(""), None),
            (SINT64, Automation::Integer(-7), Some(CimValue::Sint64(-7))),
            (SINT8, Automation::I16(-128), Some(CimValue::Sint16(-128))),
            (CHAR16, Automation::I16(65), Some(CimValue::Uint16(65))),
            (REAL64, Automation::Real(0.5), Some(CimValue::String("0.5".into()))),
            (BOOLEAN, Automation::I32(1), None),
            (STRING, Automation::I32(1), None),
            (STRING, Automation::Array(ElementType::Text, vec![]), None),
            (STRING | ARRAY_FLAG, text("a"), None),
            (STRING, Automation::Unknown(36), None),
            (4711, text("a"), None),
        ] {
            assert_eq!(from_wmi(code, carried.clone()).ok(), expected, "{} from {carried:?}", type_name(code));
        }
    }

    #[test]
    fn an_instance_names_the_property_that_contradicts_its_type() {
        let property = |cim_type, value| RawProperty { name: "Name".into(), cim_type, value };
        let raw = |property| RawObject {
            class: "C".into(),
            path: Some(r"\\H\root:C.Name=1".into()),
            properties: vec![property],
            text: String::new(),
        };
        let good = instance(raw(property(STRING, Automation::Text("a".into())))).unwrap();
        assert_eq!(good.get("name"), &CimValue::String("a".into()));
        assert_eq!(good.path.unwrap().as_str(), r"\\H\root:C.Name=1");
        let bad = instance(raw(property(STRING, Automation::Bool(true)))).unwrap_err();
        assert_eq!(bad, "property Name of C wants string, not Bool(true)");
    }
}
