//! Embedded instances as CIM-XML: written for results, and read from parameters against the schema.

use std::collections::BTreeMap;

use hyperv::seam::{CimType, CimValue, Instance};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use crate::schema::{Class, schema, type_by_name, type_name};

/// More elements than any setting has; a text with more is refused.
const MAX_ELEMENTS: usize = 20_000;

/// Reads the instance in a parameter that must hold one of `class`. Everything is checked: the class, that each property
/// exists with exactly that type, and that the text is nothing but the instance. The error says what is wrong.
pub(crate) fn parse(text: &str, class: &str) -> Result<Instance, String> {
    let root = parse_tree(text)?;
    if root.name != "INSTANCE" {
        return Err(format!("expected INSTANCE, found {}", root.name));
    }
    let given = root.attribute("CLASSNAME").ok_or("INSTANCE without CLASSNAME")?;
    let known = schema().class(given).ok_or_else(|| format!("unknown class {given}"))?;
    if !known.is_a(class) {
        return Err(format!("an instance of {given} where {class} is wanted"));
    }
    let mut properties = BTreeMap::new();
    for child in &root.children {
        if child.name == "QUALIFIER" {
            continue;
        }
        let (name, value) = parse_property(child, known)?;
        if properties.insert(name.clone(), value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(Instance { class: known.name.clone(), path: None, properties })
}

fn parse_property(element: &Element, class: &Class) -> Result<(String, CimValue), String> {
    let given = element.attribute("NAME").ok_or_else(|| format!("{} without NAME", element.name))?;
    let (name, kind) = class.property(given).ok_or_else(|| format!("{} has no property {given}", class.name))?;
    let wrong = |why: String| format!("{}.{name}: {why}", class.name);
    let base = match element.name.as_str() {
        "PROPERTY" | "PROPERTY.ARRAY" => {
            let given = element.attribute("TYPE").ok_or_else(|| wrong("no TYPE".into()))?;
            type_by_name(given).ok_or_else(|| wrong(format!("unknown type {given:?}")))?
        }
        "PROPERTY.REFERENCE" => CimType::Reference,
        other => return Err(wrong(format!("unexpected element {other}"))),
    };
    if base != kind.base || (element.name == "PROPERTY.ARRAY") != kind.is_array {
        let array = if kind.is_array { "an array of " } else { "" };
        return Err(wrong(format!("is {array}{}, not {} {}", type_name(kind.base), element.name, type_name(base))));
    }
    let content: Vec<&Element> = element.children.iter().filter(|child| child.name != "QUALIFIER").collect();
    let value = match (content.as_slice(), kind.is_array) {
        ([], _) => CimValue::Null,
        ([array], true) if array.name == "VALUE.ARRAY" => {
            let values = array.children.iter().map(|value| parse_value(value, base).map_err(&wrong));
            CimValue::Array(base, values.collect::<Result<_, _>>()?)
        }
        ([value], false) => parse_value(value, base).map_err(wrong)?,
        _ => return Err(wrong("more than a value".into())),
    };
    Ok((name.to_owned(), value))
}

fn parse_value(element: &Element, base: CimType) -> Result<CimValue, String> {
    if element.name != "VALUE" || !element.children.is_empty() {
        return Err(format!("expected VALUE, found {}", element.name));
    }
    let text = element.text.as_str();
    let bad = || format!("{text:?} is no {}", type_name(base));
    fn number<T: std::str::FromStr>(text: &str, bad: impl Fn() -> String) -> Result<T, String> {
        text.trim().parse().map_err(|_| bad())
    }
    Ok(match base {
        CimType::Boolean if text.eq_ignore_ascii_case("true") => CimValue::Boolean(true),
        CimType::Boolean if text.eq_ignore_ascii_case("false") => CimValue::Boolean(false),
        CimType::Boolean | CimType::Reference => return Err(bad()),
        CimType::Uint8 => CimValue::Uint8(number(text, bad)?),
        CimType::Uint16 => CimValue::Uint16(number(text, bad)?),
        CimType::Uint32 => CimValue::Uint32(number(text, bad)?),
        CimType::Uint64 => CimValue::Uint64(number(text, bad)?),
        CimType::Sint16 => CimValue::Sint16(number(text, bad)?),
        CimType::Sint32 => CimValue::Sint32(number(text, bad)?),
        CimType::Sint64 => CimValue::Sint64(number(text, bad)?),
        CimType::String => CimValue::String(text.to_owned()),
        CimType::DateTime if text.len() == 25 && text.as_bytes()[14] == b'.' => CimValue::DateTime(text.to_owned()),
        CimType::DateTime => return Err(bad()),
    })
}

/// Writes an instance, nulls as empty properties, as `GetText` does.
pub(crate) fn format(instance: &Instance) -> String {
    let mut xml = format!("<INSTANCE CLASSNAME=\"{}\">", escape(&instance.class));
    let class = schema().own(&instance.class);
    for (name, value) in &instance.properties {
        let kind = &class.properties[name];
        let element = if kind.is_array { "PROPERTY.ARRAY" } else { "PROPERTY" };
        xml.push_str(&format!("<{element} NAME=\"{name}\" TYPE=\"{}\">", type_name(kind.base)));
        match value {
            CimValue::Null => {}
            CimValue::Array(_, values) => {
                xml.push_str("<VALUE.ARRAY>");
                values.iter().for_each(|value| xml.push_str(&format_value(value)));
                xml.push_str("</VALUE.ARRAY>");
            }
            scalar => xml.push_str(&format_value(scalar)),
        }
        xml.push_str(&format!("</{element}>"));
    }
    xml.push_str("</INSTANCE>");
    xml
}

fn format_value(value: &CimValue) -> String {
    let text = match value {
        CimValue::Null | CimValue::Array(..) => String::new(),
        CimValue::Boolean(value) => if *value { "TRUE" } else { "FALSE" }.to_owned(),
        CimValue::Sint16(value) => value.to_string(),
        CimValue::Sint32(value) => value.to_string(),
        CimValue::Sint64(value) => value.to_string(),
        CimValue::String(text) | CimValue::DateTime(text) => escape(text),
        CimValue::Reference(path) => escape(path.as_str()),
        unsigned => unsigned.as_u64().unwrap_or_default().to_string(),
    };
    format!("<VALUE>{text}</VALUE>")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\r' | '\t' => escaped.push_str(&format!("&#{};", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

#[derive(Default)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Element>,
    text: String,
}

impl Element {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn from_start(start: &BytesStart<'_>) -> Result<Self, String> {
        let mut element = Element { name: start.name().0.to_owned(), ..Element::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| format!("bad attribute of {}: {e}", element.name))?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|e| e.to_string())?;
            element.attributes.push((attribute.key.0.to_owned(), value.into_owned()));
        }
        Ok(element)
    }
}

/// The one element of a text, with everything in it.
fn parse_tree(text: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut count = 0;
    loop {
        let event = reader.read_event().map_err(|e| format!("not well-formed: {e}"))?;
        let closed = match event {
            Event::Start(start) => {
                count += 1;
                if count > MAX_ELEMENTS || open.len() > 8 || root.is_some() {
                    return Err("too many elements".into());
                }
                open.push(Element::from_start(&start)?);
                None
            }
            Event::Empty(start) => {
                count += 1;
                if count > MAX_ELEMENTS || root.is_some() {
                    return Err("too many elements".into());
                }
                Some(Element::from_start(&start)?)
            }
            Event::End(_) => open.pop(),
            Event::Text(text) => add_text(&mut open, &text.xml_content(XmlVersion::Implicit1_0))?,
            Event::CData(text) => add_text(&mut open, &text.xml_content(XmlVersion::Implicit1_0))?,
            Event::GeneralRef(reference) => {
                let name = reference.xml_content(XmlVersion::Implicit1_0);
                match reference.resolve_char_ref().map_err(|e| e.to_string())? {
                    Some(c) => add_text(&mut open, c.encode_utf8(&mut [0; 4]))?,
                    None => {
                        let known = quick_xml::escape::resolve_predefined_entity(&name);
                        add_text(&mut open, known.ok_or_else(|| format!("unknown entity {name}"))?)?
                    }
                }
            }
            Event::Eof => break,
            Event::Decl(_) | Event::Comment(_) => None,
            Event::PI(_) | Event::DocType(_) => return Err("no processing instructions or document types".into()),
        };
        if let Some(element) = closed {
            match open.last_mut() {
                Some(parent) => parent.children.push(element),
                None => root = Some(element),
            }
        }
    }
    root.filter(|_| open.is_empty()).ok_or_else(|| "no complete element".into())
}

fn add_text(open: &mut [Element], text: &str) -> Result<Option<Element>, String> {
    match open.last_mut() {
        // White space between elements is nobody's.
        Some(element) if element.name == "VALUE" => element.text.push_str(text),
        _ if text.trim().is_empty() => {}
        _ => return Err(format!("text {text:?} outside a VALUE")),
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: &str = "Msvm_VirtualSystemSnapshotSettingData";

    fn property(name: &str, kind: &str, value: &str) -> String {
        format!(r#"<PROPERTY NAME="{name}" TYPE="{kind}"><VALUE>{value}</VALUE></PROPERTY>"#)
    }

    fn instance(properties: &str) -> String {
        format!(r#"<INSTANCE CLASSNAME="{CLASS}">{properties}</INSTANCE>"#)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut properties: BTreeMap<_, _> =
            schema().own(CLASS).properties.keys().map(|name| (name.clone(), CimValue::Null)).collect();
        properties.insert("ConsistencyLevel".into(), CimValue::Uint8(1));
        properties.insert("IgnoreNonSnapshottableDisks".into(), CimValue::Boolean(true));
        properties.insert("ElementName".into(), CimValue::String(" a <b> & \"c\"\n'd' ".into()));
        let written = Instance { class: CLASS.into(), path: None, properties };
        assert_eq!(parse(&format(&written), CLASS), Ok(written));

        let notes =
            CimValue::Array(CimType::String, vec![CimValue::String("x".into()), CimValue::String(String::new())]);
        let class = "Msvm_VirtualSystemSettingData";
        let written = Instance { class: class.into(), path: None, properties: [("Notes".to_owned(), notes)].into() };
        assert_eq!(parse(&format(&written), class), Ok(written));
    }

    #[test]
    fn nothing_wrong_is_ignored() {
        assert!(parse(&instance(&property("ConsistencyLevel", "uint8", "1")), CLASS).is_ok());
        for (case, text) in [
            ("misspelt property", instance(&property("ConsistancyLevel", "uint8", "1"))),
            ("wrong type", instance(&property("ConsistencyLevel", "uint16", "1"))),
            ("no number", instance(&property("ConsistencyLevel", "uint8", "one"))),
            ("out of range", instance(&property("ConsistencyLevel", "uint8", "256"))),
            ("twice", instance(&property("ConsistencyLevel", "uint8", "1").repeat(2))),
            ("scalar for array", {
                format!(
                    r#"<INSTANCE CLASSNAME="{}">{}</INSTANCE>"#,
                    "Msvm_VirtualSystemSettingData",
                    property("Notes", "string", "x")
                )
            }),
            ("other class", instance("").replace(CLASS, "Msvm_Error")),
            ("unknown class", instance("").replace(CLASS, "Msvm_Nothing")),
            ("unknown element", instance("<METHOD NAME=\"x\"/>")),
            ("stray text", instance("text")),
            ("two roots", instance("").repeat(2)),
            ("unclosed", instance("").replace("</INSTANCE>", "")),
            ("empty", String::new()),
            ("no type", instance(r#"<PROPERTY NAME="ConsistencyLevel"><VALUE>1</VALUE></PROPERTY>"#)),
        ] {
            assert!(parse(&text, CLASS).is_err(), "{case}");
        }
    }
}
