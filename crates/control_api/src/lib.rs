//! What a managed agent, the server and a client's scripts say to each other: the JSON of every endpoint, as types.
//!
//! The contract is spec control-api; each type names its section. A type says what may be sent, not whether it is
//! allowed: ranges, rights and order are the server's business. Unknown fields are ignored both ways; a missing field
//! that is required is refused by name.
//!
//! Not here: HTTP, headers, storage, rendering of messages. Read [`envelope`] and [`id`], then [`run`] for the life of
//! a run as an agent sees it, then [`job`] for what is asked of it.

macro_rules! wire {
    ($($(#[$attribute:meta])* pub struct $name:ident { $($body:tt)* })*) => {$(
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name { $($body)* }
    )*};
}

macro_rules! words {
    ($($(#[$attribute:meta])* pub enum $name:ident { $($variant:ident = $word:literal),* $(,)? })*) => {$(
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $name { $(#[doc = concat!("`", $word, "`")] #[serde(rename = $word)] $variant),* }

        impl $name {
            /// Every value, in the contract's order.
            pub const ALL: &[$name] = &[$($name::$variant),*];
            /// Every word, in the contract's order.
            pub const WORDS: &[&str] = &[$($word),*];

            /// The word on the wire and in the database.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }

            /// The value with that word.
            pub fn of_word(word: &str) -> Option<Self> {
                match word { $($word => Some($name::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    )*};
}

pub mod envelope;
pub mod id;
pub mod words;

pub mod account;
pub mod agent;
pub mod alert;
pub mod approval;
pub mod catalogue;
pub mod command;
pub mod destination;
pub mod enrolment;
pub mod events;
pub mod hyperv;
pub mod instant;
pub mod job;
pub mod nas;
pub mod progress;
pub mod protection;
pub mod report;
pub mod repository;
pub mod restore;
pub mod run;
pub mod run_list;
pub mod settings;

/// An instant as RFC 3339 in UTC with `Z`, at most milliseconds (0.6).
pub type Time = String;

/// A JSON object whose keys this version does not interpret.
pub type Object = serde_json::Map<String, serde_json::Value>;

mod lenient {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer};

    /// A map, or the empty list that some servers write for an empty map (0.4).
    pub fn map<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Map(BTreeMap<String, String>),
            Empty([(); 0]),
            Null(()),
        }
        Ok(match Either::deserialize(from)? {
            Either::Map(map) => map,
            Either::Empty([]) | Either::Null(()) => BTreeMap::new(),
        })
    }

    /// A field that is there: `null` means unknown, which differs from a field that is missing (0.4).
    pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
        Option::<T>::deserialize(from).map(Some)
    }
}
