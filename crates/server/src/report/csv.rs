//! Rows as CSV (RFC 4180), in which no cell is a formula.

/// Rows, the first of them the names of the columns.
pub fn text<'a>(rows: impl IntoIterator<Item = Vec<String>> + 'a) -> String {
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| self::cell(cell)).collect();
        text += &cells.join(",");
        text += "\r\n";
    }
    text
}

/// One cell. A spreadsheet takes what begins with `=`, `+`, `-`, `@`, a tab or a line's end for a formula, also behind
/// spaces: an apostrophe makes it text. Plain numbers stay numbers.
fn cell(value: &str) -> String {
    let first = value.trim_start_matches(' ').chars().next();
    let is_number = value.parse::<f64>().is_ok_and(f64::is_finite) && !value.starts_with('+');
    let is_formula = matches!(first, Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n')) && !is_number;
    let value = if is_formula { format!("'{value}") } else { value.to_owned() };
    if value.contains([',', '"', '\r', '\n']) || value.starts_with(' ') || is_formula {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_text_and_never_formulas() {
        for (value, expected) in [
            ("DC01", "DC01"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=1+1", "\"'=1+1\""),
            ("+1", "\"'+1\""),
            ("-1", "-1"),
            ("-1+cmd|' /C calc'!A0", "\"'-1+cmd|' /C calc'!A0\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\t=1\""),
            ("\r=1", "\"'\r=1\""),
            ("  =1", "\"'  =1\""),
            ("-inf", "\"'-inf\""),
            ("a\nb", "\"a\nb\""),
        ] {
            assert_eq!(cell(value), expected, "{value:?}");
        }
        assert_eq!(text([vec!["a".into(), "b".into()], vec!["1".into(), "2".into()]]), "a,b\r\n1,2\r\n");
    }
}
