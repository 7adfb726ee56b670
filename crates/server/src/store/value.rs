//! Values as both databases keep them, and rows of them.

use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::StoreError;

/// One value, bound to a statement or read from a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Missing.
    Null,
    /// Any integer or truth value.
    Int(i64),
    /// A number with a fraction.
    Real(f64),
    /// Text, a word or JSON.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An instant, kept to the millisecond.
    Time(Timestamp),
}

macro_rules! from {
    ($($kind:ty => |$value:ident| $to:expr;)*) => {$(
        impl From<$kind> for Value {
            fn from($value: $kind) -> Value { $to }
        }
    )*};
}

from! {
    i64 => |value| Value::Int(value);
    i32 => |value| Value::Int(value.into());
    bool => |value| Value::Int(value.into());
    f64 => |value| Value::Real(value);
    &str => |value| Value::Text(value.to_owned());
    String => |value| Value::Text(value);
    &String => |value| Value::Text(value.clone());
    Vec<u8> => |value| Value::Bytes(value);
    [u8; 32] => |value| Value::Bytes(value.to_vec());
    &[u8; 32] => |value| Value::Bytes(value.to_vec());
    Timestamp => |value| Value::Time(value);
    serde_json::Value => |value| Value::Text(value.to_string());
    &serde_json::Value => |value| Value::Text(value.to_string());
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

/// Values for the `?` of a statement.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::Value::from($value)),*][..] };
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Row {
    pub(super) names: Arc<[String]>,
    pub(super) values: Vec<Value>,
}

impl Row {
    /// The value in that column.
    pub fn get(&self, name: &str) -> Result<&Value, StoreError> {
        let at = self.names.iter().position(|other| other == name);
        at.and_then(|at| self.values.get(at)).ok_or_else(|| StoreError::column(name, "is not in the answer"))
    }

    /// Every value, in the order of the answer.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// An integer.
    pub fn int(&self, name: &str) -> Result<i64, StoreError> {
        self.opt_int(name)?.ok_or_else(|| StoreError::column(name, "is NULL"))
    }

    /// An integer that may be missing.
    pub fn opt_int(&self, name: &str) -> Result<Option<i64>, StoreError> {
        match self.get(name)? {
            Value::Null => Ok(None),
            Value::Int(value) => Ok(Some(*value)),
            _ => Err(StoreError::column(name, "is no integer")),
        }
    }

    /// A number with a fraction that may be missing.
    pub fn opt_real(&self, name: &str) -> Result<Option<f64>, StoreError> {
        match self.get(name)? {
            Value::Null => Ok(None),
            Value::Real(value) => Ok(Some(*value)),
            #[expect(clippy::cast_precision_loss, reason = "a percentage")]
            Value::Int(value) => Ok(Some(*value as f64)),
            _ => Err(StoreError::column(name, "is no number")),
        }
    }

    /// A truth value.
    pub fn flag(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.opt_int(name)?.unwrap_or(0) != 0)
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<String, StoreError> {
        self.opt_text(name)?.ok_or_else(|| StoreError::column(name, "is NULL"))
    }

    /// Text that may be missing.
    pub fn opt_text(&self, name: &str) -> Result<Option<String>, StoreError> {
        match self.get(name)? {
            Value::Null => Ok(None),
            Value::Text(value) => Ok(Some(value.clone())),
            // MySQL does not tell text in a binary collation from bytes.
            Value::Bytes(value) => {
                let text = String::from_utf8(value.clone());
                text.map(Some).map_err(|_| StoreError::column(name, "is no text"))
            }
            _ => Err(StoreError::column(name, "is no text")),
        }
    }

    /// Bytes that may be missing.
    pub fn opt_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.get(name)? {
            Value::Null => Ok(None),
            Value::Bytes(value) => Ok(Some(value.clone())),
            _ => Err(StoreError::column(name, "is no bytes")),
        }
    }

    /// Bytes.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        self.opt_bytes(name)?.ok_or_else(|| StoreError::column(name, "is NULL"))
    }

    /// An instant.
    pub fn time(&self, name: &str) -> Result<Timestamp, StoreError> {
        self.opt_time(name)?.ok_or_else(|| StoreError::column(name, "is NULL"))
    }

    /// An instant that may be missing.
    pub fn opt_time(&self, name: &str) -> Result<Option<Timestamp>, StoreError> {
        match self.get(name)? {
            Value::Null => Ok(None),
            Value::Time(value) => Ok(Some(*value)),
            Value::Text(text) => text.parse().map(Some).map_err(|_| StoreError::column(name, "is no instant")),
            _ => Err(StoreError::column(name, "is no instant")),
        }
    }

    /// JSON of that shape that may be missing.
    pub fn opt_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(text) = self.opt_text(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|_| StoreError::column(name, "holds JSON of another shape"))
    }

    /// A word of an enumeration.
    pub fn word<T>(&self, name: &str, of_word: impl Fn(&str) -> Option<T>) -> Result<T, StoreError> {
        of_word(&self.text(name)?).ok_or_else(|| StoreError::column(name, "holds an unknown word"))
    }
}

/// As SQLite keeps an instant, and as it goes over the wire: RFC 3339 with exactly milliseconds.
pub fn time_text(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// The same as MySQL takes it.
pub(super) fn mysql_time(at: Timestamp) -> String {
    time_text(at).trim_end_matches('Z').replace('T', " ")
}
