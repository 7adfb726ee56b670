//! Identifiers (0.3): integers on the wire, UUIDs beside them; input takes either.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A job, run or agent as a caller may name it: an integer, the same in decimal text, or a UUID.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Id {
    /// The integer id; positive.
    Number(i64),
    /// The UUID, in lower case.
    Uuid(String),
}

impl Id {
    /// The id in that text, if it is one.
    pub fn parse(text: &str) -> Option<Id> {
        if let Ok(number) = text.parse::<i64>() {
            return (number > 0 && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(Id::Number(number));
        }
        let is_uuid = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        is_uuid.then(|| Id::Uuid(text.to_ascii_lowercase()))
    }
}

impl From<i64> for Id {
    fn from(number: i64) -> Self {
        Id::Number(number)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Number(number) => write!(f, "{number}"),
            Id::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Id::Number(number) => to.serialize_i64(*number),
            Id::Uuid(uuid) => to.serialize_str(uuid),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive integer or a UUID")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
                if number > 0 {
                    Ok(Id::Number(number))
                } else {
                    Err(E::invalid_value(Unexpected::Signed(number), &self))
                }
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
                let wrong = || E::invalid_value(Unexpected::Unsigned(number), &self);
                i64::try_from(number).ok().filter(|number| *number > 0).map(Id::Number).ok_or_else(wrong)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                Id::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(Text)
    }
}

#[cfg(feature = "openapi")]
mod schema {
    use std::borrow::Cow;

    use utoipa::openapi::RefOr;
    use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
    use utoipa::{PartialSchema, ToSchema};

    impl PartialSchema for super::Id {
        fn schema() -> RefOr<Schema> {
            let either = SchemaType::from_iter([Type::Integer, Type::String]);
            ObjectBuilder::new().schema_type(either).into()
        }
    }

    impl ToSchema for super::Id {
        fn name() -> Cow<'static, str> {
            "Id".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_positive_integer_its_text_or_a_uuid() {
        let uuid = "0190A1B2-0000-7000-8000-00000000000f";
        for (json, expected) in [
            ("7", Some(Id::Number(7))),
            ("\"7\"", Some(Id::Number(7))),
            (&format!("{uuid:?}"), Some(Id::Uuid(uuid.to_lowercase()))),
            ("0", None),
            ("-1", None),
            ("\"+7\"", None),
            ("\"\"", None),
            ("1.5", None),
            ("18446744073709551615", None),
            ("\"0190a1b2-0000-7000-8000\"", None),
            ("null", None),
        ] {
            assert_eq!(serde_json::from_str::<Id>(json).ok(), expected, "{json}");
        }
    }
}
