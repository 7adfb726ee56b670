//! Embedded instances as CIM-XML text (DSP0201 `INSTANCE`), the form that Hyper-V takes and gives (spec 8.7).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use crate::seam::{CimType, CimValue, Instance, ObjectPath};

/// A text is not an embedded instance, or an instance cannot be written as one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum CimXmlError {
    /// Not well-formed.
    #[error("not well-formed XML")]
    Syntax(#[source] quick_xml::Error),
    /// Well-formed, but not an instance.
    #[error("no INSTANCE element with a CLASSNAME")]
    NoInstance,
    /// An element of an instance lacks an attribute it must have.
    #[error("a {element} element has no {attribute}")]
    Attribute { element: String, attribute: &'static str },
    /// A value does not have the type that its property names.
    #[error("property {property}: {text:?} is not of type {cim_type}")]
    Value { property: String, cim_type: String, text: String },
    /// XML 1.0 cannot carry this character at all.
    #[error("property {property}: the character U+{:04X} cannot be written in XML", u32::from(*.character))]
    Character { property: String, character: char },
    /// An entity that XML does not define.
    #[error("unknown entity &{0};")]
    Entity(String),
    /// The text ends inside an element.
    #[error("the text ends inside an element")]
    Truncated,
    /// An array whose elements are arrays or null.
    #[error("property {property}: an element of the array is not a scalar")]
    Element { property: String },
}

/// Writes an instance. Nulls are left out: the provider then takes its default.
pub fn to_text(instance: &Instance) -> Result<String, CimXmlError> {
    let mut text = String::from("<INSTANCE CLASSNAME=\"");
    escape(&instance.class, "CLASSNAME", &mut text)?;
    text.push_str("\">");
    for (name, value) in &instance.properties {
        write_property(name, value, &mut text)?;
    }
    text.push_str("</INSTANCE>");
    Ok(text)
}

/// A setting as it was read, with some properties changed: the complete instance, because some properties are required
/// together (spec 8.7). Names compare without case, and system properties are not sent back.
pub(crate) fn changed(setting: &Instance, changes: Vec<(&str, CimValue)>) -> Instance {
    let mut changed = setting.clone();
    changed.path = None;
    changed
        .properties
        .retain(|name, _| !name.starts_with("__") && !changes.iter().any(|(new, _)| name.eq_ignore_ascii_case(new)));
    changed.properties.extend(changes.into_iter().map(|(name, value)| (name.to_owned(), value)));
    changed
}

fn write_property(name: &str, value: &CimValue, text: &mut String) -> Result<(), CimXmlError> {
    let tag = match value {
        CimValue::Null => return Ok(()),
        CimValue::Array(..) => "PROPERTY.ARRAY",
        CimValue::Reference(_) => "PROPERTY.REFERENCE",
        _ => "PROPERTY",
    };
    let _ = write!(text, "<{tag} NAME=\"");
    escape(name, name, text)?;
    text.push('"');
    match value {
        CimValue::Array(cim_type, values) => {
            let _ = write!(text, " TYPE=\"{}\"><VALUE.ARRAY>", type_name(*cim_type));
            for value in values {
                text.push_str("<VALUE>");
                write_scalar(name, value, text)?;
                text.push_str("</VALUE>");
            }
            text.push_str("</VALUE.ARRAY>");
        }
        CimValue::Reference(path) => {
            text.push_str("><VALUE.REFERENCE>");
            escape(path.as_str(), name, text)?;
            text.push_str("</VALUE.REFERENCE>");
        }
        scalar => {
            let cim_type = scalar_type(scalar).expect("nulls, arrays and references are handled above");
            let _ = write!(text, " TYPE=\"{}\"><VALUE>", type_name(cim_type));
            write_scalar(name, scalar, text)?;
            text.push_str("</VALUE>");
        }
    }
    let _ = write!(text, "</{tag}>");
    Ok(())
}

fn write_scalar(name: &str, value: &CimValue, text: &mut String) -> Result<(), CimXmlError> {
    let written = match value {
        CimValue::Boolean(true) => write!(text, "TRUE"),
        CimValue::Boolean(false) => write!(text, "FALSE"),
        CimValue::Uint8(value) => write!(text, "{value}"),
        CimValue::Uint16(value) => write!(text, "{value}"),
        CimValue::Uint32(value) => write!(text, "{value}"),
        CimValue::Uint64(value) => write!(text, "{value}"),
        CimValue::Sint16(value) => write!(text, "{value}"),
        CimValue::Sint32(value) => write!(text, "{value}"),
        CimValue::Sint64(value) => write!(text, "{value}"),
        CimValue::String(value) | CimValue::DateTime(value) => return escape(value, name, text),
        CimValue::Reference(path) => return escape(path.as_str(), name, text),
        CimValue::Null | CimValue::Array(..) => return Err(CimXmlError::Element { property: name.to_owned() }),
    };
    written.expect("writing to a String does not fail");
    Ok(())
}

fn escape(value: &str, property: &str, text: &mut String) -> Result<(), CimXmlError> {
    for character in value.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&apos;"),
            // As references, because a parser normalises bare line ends.
            '\t' | '\n' | '\r' => {
                let _ = write!(text, "&#{};", u32::from(character));
            }
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(CimXmlError::Character { property: property.to_owned(), character });
            }
            other => text.push(other),
        }
    }
    Ok(())
}

/// Reads the first instance of a text, whatever wraps it. Qualifiers, methods and system properties of the wrapper are
/// left out; a type that we do not know is kept as a string. The path is `None`.
pub fn parse(text: &str) -> Result<Instance, CimXmlError> {
    let mut reader = Reader::from_str(text);
    loop {
        match reader.read_event().map_err(CimXmlError::Syntax)? {
            Event::Start(start) if is(&start, "INSTANCE") => return read_instance(&mut reader, &start),
            Event::Empty(start) if is(&start, "INSTANCE") => return empty_instance(&start),
            Event::Eof => return Err(CimXmlError::NoInstance),
            _ => {}
        }
    }
}

fn empty_instance(start: &BytesStart<'_>) -> Result<Instance, CimXmlError> {
    let class = attribute(start, "CLASSNAME")?.ok_or(CimXmlError::NoInstance)?;
    Ok(Instance { class, path: None, properties: BTreeMap::new() })
}

fn read_instance(reader: &mut Reader<&[u8]>, start: &BytesStart<'_>) -> Result<Instance, CimXmlError> {
    let mut instance = empty_instance(start)?;
    loop {
        match reader.read_event().map_err(CimXmlError::Syntax)? {
            Event::Start(start) if is_property(&start) => {
                let (name, cim_type) = property_head(&start)?;
                let value = read_property(reader, &start, &name, &cim_type)?;
                instance.properties.insert(name, value);
            }
            Event::Empty(start) if is_property(&start) => {
                let (name, _) = property_head(&start)?;
                instance.properties.insert(name, CimValue::Null);
            }
            Event::Start(other) => skip(reader, &other)?,
            Event::End(_) => return Ok(instance),
            Event::Eof => return Err(CimXmlError::Truncated),
            _ => {}
        }
    }
}

fn is_property(start: &BytesStart<'_>) -> bool {
    ["PROPERTY", "PROPERTY.ARRAY", "PROPERTY.REFERENCE"].iter().any(|name| is(start, name))
}

fn property_head(start: &BytesStart<'_>) -> Result<(String, String), CimXmlError> {
    let missing = |attribute| CimXmlError::Attribute { element: element_name(start), attribute };
    let name = attribute(start, "NAME")?.ok_or_else(|| missing("NAME"))?;
    let cim_type = if is(start, "PROPERTY.REFERENCE") {
        "reference".to_owned()
    } else {
        attribute(start, "TYPE")?.ok_or_else(|| missing("TYPE"))?
    };
    Ok((name, cim_type))
}

fn read_property(
    reader: &mut Reader<&[u8]>,
    start: &BytesStart<'_>,
    name: &str,
    cim_type: &str,
) -> Result<CimValue, CimXmlError> {
    let is_array = is(start, "PROPERTY.ARRAY");
    let mut seen_array = false;
    let mut values = Vec::new();
    let mut depth = 0_u32;
    loop {
        match reader.read_event().map_err(CimXmlError::Syntax)? {
            Event::Start(value) if is(&value, "VALUE") || is(&value, "VALUE.REFERENCE") => {
                let text = read_text(reader)?;
                values.push(scalar(name, cim_type, text)?);
            }
            Event::Empty(value) if is(&value, "VALUE") || is(&value, "VALUE.REFERENCE") => {
                values.push(scalar(name, cim_type, String::new())?);
            }
            Event::Start(value) if is(&value, "VALUE.ARRAY") && depth == 0 => {
                seen_array = true;
                depth = 1;
            }
            Event::Empty(value) if is(&value, "VALUE.ARRAY") => seen_array = true,
            // Qualifiers have VALUE children of their own.
            Event::Start(other) => skip(reader, &other)?,
            Event::End(_) if depth == 1 => depth = 0,
            Event::End(_) => break,
            Event::Eof => return Err(CimXmlError::Truncated),
            _ => {}
        }
    }
    Ok(match (is_array, seen_array) {
        (true, true) => CimValue::Array(type_of(cim_type), values),
        (true, false) => CimValue::Null,
        (false, _) => values.into_iter().next().unwrap_or(CimValue::Null),
    })
}

/// The text up to the end of the current element; elements inside are passed over.
fn read_text(reader: &mut Reader<&[u8]>) -> Result<String, CimXmlError> {
    let mut text = String::new();
    loop {
        match reader.read_event().map_err(CimXmlError::Syntax)? {
            Event::Text(part) => text.push_str(&part.xml_content(XmlVersion::Implicit1_0)),
            Event::CData(part) => text.push_str(&part.xml_content(XmlVersion::Implicit1_0)),
            Event::GeneralRef(reference) => match reference.resolve_char_ref().map_err(CimXmlError::Syntax)? {
                Some(character) => text.push(character),
                None => {
                    let name = reference.xml_content(XmlVersion::Implicit1_0);
                    let known = quick_xml::escape::resolve_predefined_entity(&name);
                    text.push_str(known.ok_or_else(|| CimXmlError::Entity(name.to_string()))?);
                }
            },
            Event::Start(other) => skip(reader, &other)?,
            Event::End(_) => return Ok(text),
            Event::Eof => return Err(CimXmlError::Truncated),
            _ => {}
        }
    }
}

fn skip(reader: &mut Reader<&[u8]>, start: &BytesStart<'_>) -> Result<(), CimXmlError> {
    reader.read_to_end(start.name()).map_err(CimXmlError::Syntax)?;
    Ok(())
}

fn is(start: &BytesStart<'_>, name: &str) -> bool {
    start.name().0 == name
}

fn element_name(start: &BytesStart<'_>) -> String {
    start.name().0.to_owned()
}

fn attribute(start: &BytesStart<'_>, name: &'static str) -> Result<Option<String>, CimXmlError> {
    let Some(found) = start.try_get_attribute(name).map_err(|error| CimXmlError::Syntax(error.into()))? else {
        return Ok(None);
    };
    Ok(Some(found.normalized_value(XmlVersion::Implicit1_0).map_err(CimXmlError::Syntax)?.into_owned()))
}

fn scalar(property: &str, cim_type: &str, text: String) -> Result<CimValue, CimXmlError> {
    let number = text.trim();
    let value = match type_of(cim_type) {
        CimType::Boolean if number.eq_ignore_ascii_case("true") => Some(CimValue::Boolean(true)),
        CimType::Boolean if number.eq_ignore_ascii_case("false") => Some(CimValue::Boolean(false)),
        CimType::Boolean => None,
        CimType::Uint8 => number.parse().map(CimValue::Uint8).ok(),
        CimType::Uint16 => number.parse().map(CimValue::Uint16).ok(),
        CimType::Uint32 => number.parse().map(CimValue::Uint32).ok(),
        CimType::Uint64 => number.parse().map(CimValue::Uint64).ok(),
        CimType::Sint16 => number.parse().map(CimValue::Sint16).ok(),
        CimType::Sint32 => number.parse().map(CimValue::Sint32).ok(),
        CimType::Sint64 => number.parse().map(CimValue::Sint64).ok(),
        CimType::DateTime => return Ok(CimValue::DateTime(text)),
        CimType::Reference => return Ok(CimValue::Reference(ObjectPath::new(text))),
        CimType::String => return Ok(CimValue::String(text)),
    };
    value.ok_or_else(|| CimXmlError::Value { property: property.to_owned(), cim_type: cim_type.to_owned(), text })
}

/// The type of that name; types we do not know are read as strings.
pub(crate) fn type_of(name: &str) -> CimType {
    match name {
        "boolean" => CimType::Boolean,
        "uint8" => CimType::Uint8,
        "uint16" => CimType::Uint16,
        "uint32" => CimType::Uint32,
        "uint64" => CimType::Uint64,
        "sint16" => CimType::Sint16,
        "sint32" => CimType::Sint32,
        "sint64" => CimType::Sint64,
        "datetime" => CimType::DateTime,
        "reference" => CimType::Reference,
        _ => CimType::String,
    }
}

/// The name of a type in CIM-XML and MOF.
pub(crate) fn type_name(cim_type: CimType) -> &'static str {
    match cim_type {
        CimType::Boolean => "boolean",
        CimType::Uint8 => "uint8",
        CimType::Uint16 => "uint16",
        CimType::Uint32 => "uint32",
        CimType::Uint64 => "uint64",
        CimType::Sint16 => "sint16",
        CimType::Sint32 => "sint32",
        CimType::Sint64 => "sint64",
        CimType::String => "string",
        CimType::DateTime => "datetime",
        CimType::Reference => "reference",
    }
}

/// The type of a scalar; `None` for null and arrays.
pub(crate) fn scalar_type(value: &CimValue) -> Option<CimType> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(properties: Vec<(&str, CimValue)>) -> Instance {
        Instance {
            class: "Msvm_Test".into(),
            path: None,
            properties: properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    #[test]
    fn every_type_comes_back() {
        let text = |text: &str| CimValue::String(text.into());
        let written = instance(vec![
            ("Bool", CimValue::Boolean(true)),
            ("No", CimValue::Boolean(false)),
            ("U8", CimValue::Uint8(255)),
            ("U16", CimValue::Uint16(65535)),
            ("U32", CimValue::Uint32(u32::MAX)),
            ("U64", CimValue::Uint64(u64::MAX)),
            ("S16", CimValue::Sint16(i16::MIN)),
            ("S32", CimValue::Sint32(i32::MIN)),
            ("S64", CimValue::Sint64(i64::MIN)),
            ("Time", CimValue::DateTime("20240229123456.000000+000".into())),
            ("Ref", CimValue::Reference(ObjectPath::new(r#"\\H\root\virtualization\v2:C.N="a\\b""#))),
            ("Text", text("a <b> & \"c\" 'd'\r\n\te ]]> ö 名 ")),
            ("Empty", text("")),
            ("Array", CimValue::Array(CimType::String, vec![text("x & y"), text(""), text("z")])),
            ("NoElements", CimValue::Array(CimType::Uint16, vec![])),
        ]);
        assert_eq!(parse(&to_text(&written).unwrap()).unwrap(), written);
    }

    #[test]
    fn nulls_are_left_out() {
        let text = to_text(&instance(vec![("A", CimValue::Null)])).unwrap();
        assert_eq!(text, r#"<INSTANCE CLASSNAME="Msvm_Test"></INSTANCE>"#);
    }

    #[test]
    fn what_xml_cannot_carry_is_refused() {
        let bell = to_text(&instance(vec![("A", CimValue::String("\u{7}".into()))]));
        assert!(matches!(bell, Err(CimXmlError::Character { character: '\u{7}', .. })));
        let nested = CimValue::Array(CimType::String, vec![CimValue::Null]);
        assert!(matches!(to_text(&instance(vec![("A", nested)])), Err(CimXmlError::Element { .. })));
    }

    /// The shape that Windows writes: a wrapper, qualifiers with values of their own, properties without values.
    #[test]
    fn windows_form_is_read() {
        let text = r#"<?xml version="1.0"?>
            <DECLARATIONS><DECLGROUP><VALUE.OBJECT>
            <INSTANCE CLASSNAME="Msvm_VirtualHardDiskSettingData">
              <QUALIFIER NAME="dynamic" TYPE="boolean"><VALUE>TRUE</VALUE></QUALIFIER>
              <PROPERTY NAME="Path" CLASSORIGIN="X" TYPE="string">
                <QUALIFIER NAME="key" TYPE="boolean"><VALUE>TRUE</VALUE></QUALIFIER>
                <VALUE>C:\VMs\a &amp; b&#39;s<![CDATA[<disk>]]>.vhdx</VALUE>
              </PROPERTY>
              <PROPERTY NAME="Type" TYPE="uint16"><VALUE> 4 </VALUE></PROPERTY>
              <PROPERTY NAME="ParentPath" TYPE="string"></PROPERTY>
              <PROPERTY NAME="Caption" TYPE="string"/>
              <PROPERTY NAME="Strange" TYPE="real32"><VALUE>1.5</VALUE></PROPERTY>
              <PROPERTY.ARRAY NAME="Tags" TYPE="string"/>
              <PROPERTY.ARRAY NAME="None" TYPE="string"><VALUE.ARRAY/></PROPERTY.ARRAY>
              <METHOD NAME="M"><PARAMETER NAME="P" TYPE="string"/></METHOD>
            </INSTANCE></VALUE.OBJECT></DECLGROUP></DECLARATIONS>"#;
        let read = parse(text).unwrap();
        assert_eq!(read.class, "Msvm_VirtualHardDiskSettingData");
        assert_eq!(read.get("path").as_str(), Some(r"C:\VMs\a & b's<disk>.vhdx"));
        assert_eq!(read.get("Type"), &CimValue::Uint16(4));
        assert_eq!(read.get("Strange").as_str(), Some("1.5"));
        assert_eq!(read.get("None"), &CimValue::Array(CimType::String, vec![]));
        for null in ["ParentPath", "Caption", "Tags", "dynamic"] {
            assert!(read.get(null).is_null(), "{null}");
        }
    }

    #[test]
    fn what_is_no_instance_is_an_error() {
        for text in [
            "",
            "instance of Msvm_X { };",
            "<INSTANCE>",
            "<INSTANCE CLASSNAME=\"X\">",
            "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\" TYPE=\"uint8\"><VALUE>256</VALUE></PROPERTY></INSTANCE>",
            "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\" TYPE=\"boolean\"><VALUE>1</VALUE></PROPERTY></INSTANCE>",
            "<INSTANCE CLASSNAME=\"X\"><PROPERTY TYPE=\"uint8\"/></INSTANCE>",
            "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\"/></INSTANCE>",
            "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\" TYPE=\"string\"><VALUE>&evil;</VALUE></PROPERTY></INSTANCE>",
            "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\" TYPE=\"string\"><VALUE>open",
            "<INSTANCE CLASSNAME=\"X\"></WRONG>",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
