//! Object paths as text: `\\HOST\root\virtualization\v2:Class.Key="value",Key2="value2"`.

use hyperv::seam::{Namespace, ObjectPath};

/// A path taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParsedPath {
    /// Computer name, or `.`.
    pub(crate) host: String,
    /// For example `root\virtualization\v2`.
    pub(crate) namespace: String,
    pub(crate) class: String,
    /// Names and unescaped values, in the order of the text; empty for a class path.
    pub(crate) keys: Vec<(String, String)>,
}

/// Puts a path together, escaping backslashes and quotes in values.
pub(crate) fn format_path(host: &str, namespace: Namespace, class: &str, keys: &[(&str, &str)]) -> ObjectPath {
    let mut text = format!(r"\\{host}\{}:{class}", namespace.path());
    for (index, (name, value)) in keys.iter().enumerate() {
        text.push(if index == 0 { '.' } else { ',' });
        text.push_str(name);
        text.push_str("=\"");
        text.push_str(&value.replace('\\', r"\\").replace('"', "\\\""));
        text.push('"');
    }
    ObjectPath::new(text)
}

/// Takes a full path apart; `None` when it is not one. Keys must be strings in double quotes, properly escaped.
pub(crate) fn parse_path(text: &str) -> Option<ParsedPath> {
    let (host, rest) = text.strip_prefix(r"\\")?.split_once('\\')?;
    let (namespace, object) = rest.split_once(':')?;
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let (class, mut rest) = match object.split_once('.') {
        Some((class, rest)) => (class, rest),
        None => (object, ""),
    };
    if host.is_empty() || namespace.is_empty() || !is_name(class) || (rest.is_empty() && object.len() != class.len()) {
        return None;
    }
    let mut keys = Vec::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        if !is_name(name) {
            return None;
        }
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (_, '\\') => match chars.next()?.1 {
                    escaped @ ('\\' | '"') => value.push(escaped),
                    _ => return None,
                },
                (at, '"') => break at + 1,
                (_, other) => value.push(other),
            }
        };
        keys.push((name.to_owned(), value));
        rest = match &after[end..] {
            "" => "",
            more => more.strip_prefix(',').filter(|next| !next.is_empty())?,
        };
    }
    Some(ParsedPath { host: host.to_owned(), namespace: namespace.to_owned(), class: class.to_owned(), keys })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_round_trip_with_escapes() {
        for value in ["plain", r"Microsoft:A\B\0\0\L", r#"quote " and \"#, "komma,=\"", ""] {
            let path = format_path("H", Namespace::Virtualization, "Msvm_X", &[("InstanceID", value), ("Name", "n")]);
            let parsed = parse_path(path.as_str()).unwrap();
            assert_eq!(parsed.class, "Msvm_X", "{path}");
            assert_eq!(
                parsed.keys,
                [("InstanceID".to_owned(), value.to_owned()), ("Name".to_owned(), "n".to_owned())],
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_not_a_path_is_refused() {
        for text in [
            "",
            "Msvm_X",
            r#"root\virtualization\v2:Msvm_X.A="b""#,
            r#"\\H\root\v2:Msvm_X.A="b"#,
            r#"\\H\root\v2:Msvm_X.A="b\c""#,
            r#"\\H\root\v2:Msvm_X.A="b","#,
            r#"\\H\root\v2:Msvm_X.A='b'"#,
            r"\\H\root\v2:Msvm_X.",
            r#"\\H\root\v2:Msvm X.A="b""#,
        ] {
            assert_eq!(parse_path(text), None, "{text}");
        }
    }
}
