//! WQL: the few query forms of spec 1.7, with quoting in one place.

use crate::seam::ObjectPath;

/// `value` as a WQL string literal, quotes included: backslashes twice, quotes escaped (spec 1.7).
///
/// A forgotten backslash does not fail, it finds nothing; so nothing else in this crate writes a literal.
pub fn literal(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        if matches!(c, '\\' | '\'' | '"') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

/// All instances of a class.
pub(crate) fn all(class: &str) -> String {
    format!("SELECT * FROM {class}")
}

/// The instances whose `property` equals `value`.
pub(crate) fn by(class: &str, property: &str, value: &str) -> String {
    format!("SELECT * FROM {class} WHERE {property} = {}", literal(value))
}

/// The defaults that a new setting is cloned from (spec 1.7).
pub(crate) fn template(class: &str, sub_type: &str) -> String {
    let (sub_type, ending) = (literal(sub_type), literal(r"%\Default"));
    format!("SELECT * FROM {class} WHERE ResourceSubType = {sub_type} AND InstanceID LIKE {ending}")
}

/// What an association leads to from an object. The path stands as `__PATH` delivered it, without further quoting.
pub(crate) fn associated(with: &ObjectPath, association: &str, result_class: Option<&str>) -> String {
    let mut query = format!("ASSOCIATORS OF {{{with}}} WHERE AssocClass = {association}");
    if let Some(class) = result_class {
        query.push_str(" ResultClass = ");
        query.push_str(class);
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_survive_every_odd_name() {
        for (value, expected) in [
            ("", "''"),
            ("plain", "'plain'"),
            (r"Microsoft:A\B\0\0\L", r"'Microsoft:A\\B\\0\\0\\L'"),
            ("Bob's", r"'Bob\'s'"),
            (r#"say "hi""#, r#"'say \"hi\"'"#),
            (r"ends with \", r"'ends with \\'"),
            (r"\'", r"'\\\''"),
            ("' OR Name <> '", r"'\' OR Name <> \''"),
            ("50% [a_b]", "'50% [a_b]'"),
            ("名前 é", "'名前 é'"),
        ] {
            assert_eq!(literal(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_template_is_the_default_of_its_sub_type() {
        assert_eq!(
            template("Msvm_X", "Microsoft:Hyper-V:Virtual CD/DVD Disk"),
            r"SELECT * FROM Msvm_X WHERE ResourceSubType = 'Microsoft:Hyper-V:Virtual CD/DVD Disk' AND InstanceID LIKE '%\\Default'"
        );
    }

    #[test]
    fn a_path_in_braces_is_verbatim() {
        let path = ObjectPath::new(r#"\\H\root\virtualization\v2:C.InstanceID="Microsoft:A\\B""#);
        assert_eq!(
            associated(&path, "Msvm_SettingsDefineState", Some("Msvm_VirtualSystemSettingData")),
            r#"ASSOCIATORS OF {\\H\root\virtualization\v2:C.InstanceID="Microsoft:A\\B"} WHERE AssocClass = Msvm_SettingsDefineState ResultClass = Msvm_VirtualSystemSettingData"#
        );
    }
}
