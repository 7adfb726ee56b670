//! The part of WQL that management programs use.
//!
//! `SELECT * | names FROM class [WHERE property op literal [AND …]]` and
//! `ASSOCIATORS OF {path} [WHERE [AssocClass = c] [ResultClass = c]]`.

use hyperv::seam::{CimType, CimValue, Instance};

use crate::schema::Class;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Query {
    Select {
        /// Empty for `*`.
        columns: Vec<String>,
        class: String,
        conditions: Vec<Condition>,
    },
    Associators {
        path: String,
        assoc_class: Option<String>,
        result_class: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) property: String,
    pub(crate) operator: Operator,
    pub(crate) literal: Literal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Like,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Text(String),
    Number(i128),
    Boolean(bool),
    Null,
}

/// Reads a query; the error says what was expected.
pub(crate) fn parse(text: &str) -> Result<Query, String> {
    if let Some(rest) = strip_word(text.trim_start(), "ASSOCIATORS") {
        return parse_associators(rest);
    }
    let mut tokens = Tokens(text);
    tokens.expect_word("SELECT")?;
    let mut columns = Vec::new();
    if !tokens.take_symbol("*") {
        loop {
            columns.push(tokens.name()?);
            if !tokens.take_symbol(",") {
                break;
            }
        }
    }
    tokens.expect_word("FROM")?;
    let class = tokens.name()?;
    let mut conditions = Vec::new();
    if tokens.take_word("WHERE") {
        loop {
            conditions.push(tokens.condition()?);
            if !tokens.take_word("AND") {
                break;
            }
        }
    }
    tokens.expect_end()?;
    Ok(Query::Select { columns, class, conditions })
}

fn parse_associators(rest: &str) -> Result<Query, String> {
    let mut tokens = Tokens(rest);
    tokens.expect_word("OF")?;
    let inner = tokens.0.trim_start().strip_prefix('{').ok_or("expected { behind ASSOCIATORS OF")?;
    let close = closing_brace(inner).ok_or("expected } behind the object path")?;
    let path = inner[..close].to_owned();
    tokens.0 = &inner[close + 1..];
    let (mut assoc_class, mut result_class) = (None, None);
    if tokens.take_word("WHERE") {
        loop {
            let target = if tokens.take_word("AssocClass") {
                &mut assoc_class
            } else if tokens.take_word("ResultClass") {
                &mut result_class
            } else {
                return Err(format!("expected AssocClass or ResultClass at {:?}", tokens.0));
            };
            if !tokens.take_symbol("=") || target.is_some() {
                return Err(format!("expected one = at {:?}", tokens.0));
            }
            *target = Some(tokens.name()?);
            if tokens.0.trim().is_empty() {
                break;
            }
        }
    }
    tokens.expect_end()?;
    Ok(Query::Associators { path, assoc_class, result_class })
}

/// The brace that ends the path: one outside the quotes of key values.
fn closing_brace(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => {
                chars.next();
            }
            '}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let head = text.get(..word.len())?;
    let rest = &text[word.len()..];
    let ends = !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    (head.eq_ignore_ascii_case(word) && ends).then_some(rest)
}

struct Tokens<'a>(&'a str);

impl Tokens<'_> {
    fn take_word(&mut self, word: &str) -> bool {
        match strip_word(self.0.trim_start(), word) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect_word(&mut self, word: &str) -> Result<(), String> {
        if self.take_word(word) { Ok(()) } else { Err(format!("expected {word} at {:?}", self.0)) }
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        match self.0.trim_start().strip_prefix(symbol) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect_end(&self) -> Result<(), String> {
        if self.0.trim().is_empty() { Ok(()) } else { Err(format!("unexpected {:?}", self.0)) }
    }

    fn name(&mut self) -> Result<String, String> {
        let text = self.0.trim_start();
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        if end == 0 {
            return Err(format!("expected a name at {:?}", self.0));
        }
        self.0 = &text[end..];
        Ok(text[..end].to_owned())
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let mut property = self.name()?;
        // A property of an embedded object.
        if let Some(rest) = self.0.strip_prefix('.') {
            self.0 = rest;
            property = format!("{property}.{}", self.name()?);
        }
        if self.take_word("LIKE") {
            return match self.literal()? {
                literal @ Literal::Text(_) => Ok(Condition { property, operator: Operator::Like, literal }),
                _ => Err("LIKE needs a string".into()),
            };
        }
        if self.take_word("IS") {
            let operator = if self.take_word("NOT") { Operator::NotEqual } else { Operator::Equal };
            self.expect_word("NULL")?;
            return Ok(Condition { property, operator, literal: Literal::Null });
        }
        const OPERATORS: [(&str, Operator); 7] = [
            ("<>", Operator::NotEqual),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("=", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let operator = OPERATORS.iter().find(|(symbol, _)| self.take_symbol(symbol)).map(|&(_, operator)| operator);
        let operator = operator.ok_or_else(|| format!("expected an operator at {:?}", self.0))?;
        Ok(Condition { property, operator, literal: self.literal()? })
    }

    fn literal(&mut self) -> Result<Literal, String> {
        for (word, literal) in
            [("TRUE", Literal::Boolean(true)), ("FALSE", Literal::Boolean(false)), ("NULL", Literal::Null)]
        {
            if self.take_word(word) {
                return Ok(literal);
            }
        }
        let text = self.0.trim_start();
        let Some(quote @ ('\'' | '"')) = text.chars().next() else {
            let end = text.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(text.len());
            let number = text[..end].parse().map_err(|_| format!("expected a literal at {:?}", self.0))?;
            self.0 = &text[end..];
            return Ok(Literal::Number(number));
        };
        let mut value = String::new();
        let mut chars = text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                // A backslash protects whatever follows. A path whose backslashes were not doubled therefore loses
                // them, and matches nothing.
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                c if c == quote => {
                    self.0 = &text[at + 1..];
                    return Ok(Literal::Text(value));
                }
                c => value.push(c),
            }
        }
        Err("a string literal does not end".into())
    }
}

impl Condition {
    /// Whether the literal can be compared with the property, whatever the instances hold.
    pub(crate) fn check(&self, class: &Class) -> Result<(), String> {
        let (name, kind) = class.property(&self.property).ok_or_else(|| format!("no property {}", self.property))?;
        let fits = match (&self.literal, kind.base) {
            _ if kind.is_array => false,
            (Literal::Null, _) => matches!(self.operator, Operator::Equal | Operator::NotEqual),
            (Literal::Text(_), CimType::String | CimType::DateTime | CimType::Reference) => true,
            (Literal::Boolean(_), CimType::Boolean) => true,
            (Literal::Number(_), base) => {
                !matches!(base, CimType::String | CimType::DateTime | CimType::Reference | CimType::Boolean)
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("{name} cannot be compared with {:?}", self.literal)) }
    }

    /// Whether an instance fulfils this. Null fulfils nothing but `IS NULL`; types that cannot be compared are an error.
    pub(crate) fn matches(&self, instance: &Instance) -> Result<bool, String> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let value = instance.get(&self.property);
        if self.literal == Literal::Null {
            return match self.operator {
                Operator::Equal => Ok(value.is_null()),
                Operator::NotEqual => Ok(!value.is_null()),
                _ => Err(format!("{} cannot be ordered against NULL", self.property)),
            };
        }
        let order = match (value, &self.literal) {
            (CimValue::Null, _) => return Ok(false),
            (CimValue::Boolean(value), Literal::Boolean(literal)) => value.cmp(literal),
            (CimValue::Sint16(value), Literal::Number(literal)) => i128::from(*value).cmp(literal),
            (CimValue::Sint32(value), Literal::Number(literal)) => i128::from(*value).cmp(literal),
            (CimValue::Sint64(value), Literal::Number(literal)) => i128::from(*value).cmp(literal),
            (value, Literal::Number(literal)) if value.as_u64().is_some() => {
                i128::from(value.as_u64().unwrap_or_default()).cmp(literal)
            }
            (value, Literal::Text(literal)) if value.as_str().is_some() => {
                let text = value.as_str().unwrap_or_default().to_lowercase();
                if self.operator == Operator::Like {
                    return Ok(like(&text, &literal.to_lowercase()));
                }
                text.cmp(&literal.to_lowercase())
            }
            _ => return Err(format!("{} has another type than {:?}", self.property, self.literal)),
        };
        Ok(match self.operator {
            Operator::Equal => order == Equal,
            Operator::NotEqual => order != Equal,
            Operator::Less => order == Less,
            Operator::LessOrEqual => order != Greater,
            Operator::Greater => order == Greater,
            Operator::GreaterOrEqual => order != Less,
            Operator::Like => return Err(format!("LIKE needs a string property, not {}", self.property)),
        })
    }
}

/// WQL's `LIKE`: `%` any run, `_` any one character, `[abc]`, `[a-f]` and `[^a]` one of a set.
fn like(text: &str, pattern: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    like_chars(&text, &pattern)
}

fn like_chars(text: &[char], pattern: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('%', rest)) => (0..=text.len()).any(|skip| like_chars(&text[skip..], rest)),
        Some(('_', rest)) => text.split_first().is_some_and(|(_, text)| like_chars(text, rest)),
        Some(('[', rest)) if rest.contains(&']') => {
            let close = rest.iter().position(|&c| c == ']').expect("just seen");
            let (set, negated) = match rest[..close].split_first() {
                Some(('^', set)) => (set, true),
                _ => (&rest[..close], false),
            };
            text.split_first()
                .is_some_and(|(&c, text)| in_set(c, set) != negated && like_chars(text, &rest[close + 1..]))
        }
        Some((&c, rest)) => text.split_first().is_some_and(|(&t, text)| t == c && like_chars(text, rest)),
    }
}

fn in_set(c: char, set: &[char]) -> bool {
    match set {
        [] => false,
        [from, '-', to, rest @ ..] => (*from..=*to).contains(&c) || in_set(c, rest),
        [one, rest @ ..] => *one == c || in_set(c, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_unescape_and_undoubled_backslashes_vanish() {
        for (wql, value) in [
            (r"SELECT * FROM C WHERE P = 'Microsoft:A\\B\\L'", r"Microsoft:A\B\L"),
            (r"SELECT * FROM C WHERE P = 'Microsoft:A\B\L'", "Microsoft:ABL"),
            (r"SELECT * FROM C WHERE P = 'it\'s'", "it's"),
            (r#"select * from C where P = "say \"x\"""#, r#"say "x""#),
        ] {
            let Ok(Query::Select { conditions, .. }) = parse(wql) else { panic!("{wql}") };
            assert_eq!(conditions[0].literal, Literal::Text(value.into()), "{wql}");
        }
    }

    #[test]
    fn associators_take_the_path_verbatim() {
        let path = r#"\\H\root\virtualization\v2:Msvm_X.InstanceID="Microsoft:A\\B\\{c}""#;
        let wql = format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = A ResultClass = R");
        assert_eq!(
            parse(&wql),
            Ok(Query::Associators { path: path.into(), assoc_class: Some("A".into()), result_class: Some("R".into()) })
        );
    }

    #[test]
    fn broken_queries_are_refused() {
        for wql in [
            "",
            "SELECT FROM C",
            "SELECT * C",
            "SELECT * FROM C WHERE",
            "SELECT * FROM C WHERE P",
            "SELECT * FROM C WHERE P = ",
            "SELECT * FROM C WHERE P = 'open",
            "SELECT * FROM C WHERE P = 'a' OR P = 'b'",
            "SELECT * FROM C WHERE P = 'a' extra",
            "ASSOCIATORS OF C",
            "ASSOCIATORS OF {C",
            "ASSOCIATORS OF {C} WHERE AssocClass = A AND ResultClass = B",
            "ASSOCIATORS OF {C} WHERE Role = A",
        ] {
            assert!(parse(wql).is_err(), "{wql}");
        }
    }

    #[test]
    fn like_patterns() {
        for (text, pattern, matches) in [
            (r"microsoft:definition\a\default", r"%\default", true),
            (r"microsoft:definition\a\maximum", r"%\default", false),
            ("abc", "a_c", true),
            ("abc", "a[a-c]c", true),
            ("abc", "a[^a-c]c", false),
            ("50%", "50[%]", true),
            ("50x", "50[%]", false),
        ] {
            assert_eq!(like(text, pattern), matches, "{text} LIKE {pattern}");
        }
    }
}
