//! What a caller sent, as one set of fields: query, JSON body or form (spec control-api 0.4).
//!
//! Forms carry everything as text, and some callers send ids as text in JSON too. [`read`] therefore takes a number or
//! a truth value from its text, and an array or object of a form from JSON text in it.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use crate::failure::{Code, Failure};

/// The fields of a query or a form.
pub fn of_form(text: &[u8]) -> Map<String, Value> {
    let mut fields = Map::new();
    for (name, value) in url::form_urlencoded::parse(text) {
        // `statuses[]=a&statuses[]=b` is a list.
        if let Some(name) = name.strip_suffix("[]") {
            let list = fields.entry(name.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(Value::String(value.into_owned()));
            }
            continue;
        }
        let parsed = name.ends_with("_json").then(|| serde_json::from_str(&value).ok()).flatten();
        fields.insert(name.into_owned(), parsed.unwrap_or_else(|| Value::String(value.into_owned())));
    }
    fields
}

/// The fields of a JSON body.
pub fn of_json(body: &[u8]) -> Result<Map<String, Value>, Failure> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Failure::with(Code::BadRequest, "The body is JSON, but no object")),
        Err(error) => Err(Failure::with(Code::BadRequest, format!("The body is no JSON: {error}"))),
    }
}

/// The fields as a type of the contract.
pub fn read<T: DeserializeOwned>(fields: &Map<String, Value>) -> Result<T, Failure> {
    T::deserialize(Lenient(Value::Object(fields.clone()))).map_err(|error| match error {
        Wrong { missing: Some(field), .. } => Failure::missing(field),
        Wrong { path, what, .. } if what.contains("a positive integer or a UUID") => {
            Failure::with(Code::InvalidId, format!("Field {path}: {what}")).detail("field", path)
        }
        Wrong { path, what, .. } if path.is_empty() => Failure::invalid(culprit::<T>(fields).unwrap_or("body"), what),
        Wrong { path, what, .. } => Failure::invalid(&path, what),
    })
}

/// Of a struct that is flattened into another serde does not say which field is wrong: it is the one without which the
/// rest is taken. More fields than any form has are not gone through.
fn culprit<T: DeserializeOwned>(fields: &Map<String, Value>) -> Option<&str> {
    const MOST_FIELDS: usize = 64;
    let is_wrong = |name: &&String| {
        let mut others = fields.clone();
        others.remove(*name);
        T::deserialize(Lenient(Value::Object(others))).is_ok()
    };
    fields.keys().filter(|_| fields.len() <= MOST_FIELDS).find(is_wrong).map(String::as_str)
}

/// Why fields do not make the type.
#[derive(Debug)]
struct Wrong {
    missing: Option<&'static str>,
    path: String,
    what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

impl std::error::Error for Wrong {}

impl serde::de::Error for Wrong {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Wrong { missing: None, path: String::new(), what: what.to_string() }
    }

    fn missing_field(field: &'static str) -> Self {
        Wrong { missing: Some(field), ..Wrong::custom(format_args!("missing field {field}")) }
    }
}

impl Wrong {
    fn below(mut self, name: &str) -> Wrong {
        self.path = if self.path.is_empty() { name.to_owned() } else { format!("{name}.{}", self.path) };
        self
    }
}

struct Lenient(Value);

/// A value below a field, which errors name.
struct Below(String, Value);

macro_rules! number {
    ($($method:ident $visit:ident $kind:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            match &self.0 {
                Value::String(text) => match text.trim().parse::<$kind>() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => Err(Wrong::custom(format_args!("{text:?} is no number of this kind"))),
                },
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Lenient {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_i64(value),
                (_, Some(value), _) => visitor.visit_u64(value),
                (_, _, Some(value)) => visitor.visit_f64(value),
                _ => Err(Wrong::custom("a number out of range")),
            },
            Value::String(value) => visitor.visit_string(value),
            Value::Array(values) => {
                let items = values.into_iter().enumerate().map(|(at, value)| Below(at.to_string(), value));
                let mut items = SeqDeserializer::new(items);
                let seen = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(seen)
            }
            Value::Object(fields) => {
                let mut fields = MapDeserializer::new(fields.into_iter().map(|(name, value)| {
                    let below = Below(name.clone(), value);
                    (name, below)
                }));
                visitor.visit_map(&mut fields)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match &self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match &self.0 {
            Value::String(text) => match text.as_str() {
                "1" | "true" | "yes" | "on" => visitor.visit_bool(true),
                "0" | "false" | "no" | "off" | "" => visitor.visit_bool(false),
                other => Err(Wrong::custom(format_args!("{other:?} is neither true nor false"))),
            },
            Value::Number(number) if number.as_i64() == Some(0) => visitor.visit_bool(false),
            Value::Number(number) if number.as_i64() == Some(1) => visitor.visit_bool(true),
            _ => self.deserialize_any(visitor),
        }
    }

    number! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64, deserialize_f32 visit_f32 f32,
        deserialize_f64 visit_f64 f64
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match &self.0 {
            Value::String(text) if text.trim().is_empty() => Lenient(Value::Array(Vec::new())).deserialize_any(visitor),
            Value::String(text) => match serde_json::from_str::<Value>(text) {
                Ok(Value::Array(values)) => Lenient(Value::Array(values)).deserialize_any(visitor),
                _ => {
                    let values = text.split(',').map(|word| Value::String(word.trim().to_owned())).collect();
                    Lenient(Value::Array(values)).deserialize_any(visitor)
                }
            },
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match &self.0 {
            Value::String(text) => match serde_json::from_str::<Value>(text) {
                Ok(value @ Value::Object(_)) => Lenient(value).deserialize_any(visitor),
                _ => Err(Wrong::custom("no JSON object")),
            },
            Value::Array(empty) if empty.is_empty() => Lenient(Value::Object(Map::new())).deserialize_any(visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match &self.0 {
            Value::Object(_) | Value::String(_) => self.deserialize_map(visitor),
            _ => Err(Wrong::custom("no JSON object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.0.deserialize_enum(name, variants, visitor).map_err(Wrong::custom)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

macro_rules! below {
    ($($method:ident($($argument:ident: $kind:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value, Wrong> {
            let Below(name, value) = self;
            Lenient(value).$method($($argument,)* visitor).map_err(|error| error.below(&name))
        }
    )*};
}

impl<'de> Deserializer<'de> for Below {
    type Error = Wrong;

    below! {
        deserialize_any() deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_f32() deserialize_f64()
        deserialize_option() deserialize_seq() deserialize_map()
        deserialize_newtype_struct(name: &'static str)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

impl IntoDeserializer<'_, Wrong> for Below {
    type Deserializer = Below;

    fn into_deserializer(self) -> Below {
        self
    }
}

#[cfg(test)]
mod tests {
    use control_api::enrolment::Enroll;
    use control_api::run_list::{CancelRun, RunFilter};
    use serde_json::json;

    use super::*;

    fn fields(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn forms_and_json_say_the_same() {
        let form = of_form(b"job_id=7&statuses[]=failed&statuses[]=running&range_hours=24&q=a%20b");
        let json = fields(&json!({"job_id": 7, "statuses": ["failed", "running"], "range_hours": 24, "q": "a b"}));
        let (one, other): (RunFilter, RunFilter) = (read(&form).expect("form"), read(&json).expect("JSON"));
        assert_eq!(one, other);
        for truth in ["force=1", "force=true", "force=on"] {
            let read: CancelRun = read(&of_form(format!("run_id=1&{truth}").as_bytes())).expect(truth);
            assert!(read.force, "{truth}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let run = |value: Value| read::<CancelRun>(&fields(&value)).expect_err("refused");
        let enroll = |value: Value| read::<Enroll>(&fields(&value)).expect_err("refused");
        for (failure, code, field) in [
            (enroll(json!({"token": "x"})), Code::MissingField, "hostname"),
            (enroll(json!({"token": 5, "hostname": "h"})), Code::InvalidField, "token"),
            (enroll(json!({"token": "x", "hostname": "h", "host_role": "toaster"})), Code::InvalidField, "host_role"),
            (run(json!({"run_id": "abc"})), Code::InvalidId, "run_id"),
            (run(json!({"run_id": -4})), Code::InvalidId, "run_id"),
            (run(json!({"run_id": 4, "force": "perhaps"})), Code::InvalidField, "force"),
        ] {
            assert_eq!(failure.code, code, "{failure:?}");
            assert_eq!(failure.details["field"], field, "{failure:?}");
        }
    }
}
