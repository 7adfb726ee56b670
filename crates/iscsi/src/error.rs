//! Why something cannot be offered.

use std::io;
use std::net::SocketAddr;

/// Why a target is refused.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It is no name of RFC 3720.
    #[error(
        "target {0:?}: a name begins with iqn., eui. or naa., has lower-case letters, digits and .:- only, and at most 223 bytes"
    )]
    Name(String),
    /// The alias is too long, or has a zero byte.
    #[error("target {0}: its alias must be at most 255 bytes without a zero byte")]
    Alias(String),
    /// Two have one name.
    #[error("two targets are called {0}")]
    SameName(String),
    /// Two units of it have one number.
    #[error("target {target}: two units have the number {number}")]
    SameUnit {
        /// The target.
        target: String,
        /// The number.
        number: u8,
    },
    /// A unit cannot be served as it was asked for.
    #[error("target {target}, unit {number}")]
    Unit {
        /// The target.
        target: String,
        /// Its number.
        number: u8,
        /// Why.
        source: UnitError,
    },
    /// A CHAP name or secret is unfit.
    #[error("login for {0}: a name must have 1 to 255 bytes, a secret at least 12")]
    Credentials(String),
    /// Other machines can reach the server, and could log in without a secret.
    #[error("target {0}: other machines can reach the server, so it must ask for CHAP")]
    NeedsLogin(String),
    /// Whoever knows one side's secret could play the other.
    #[error("login for {0}: the secrets of both directions must differ")]
    SameSecret(String),
}

/// Why a device cannot be a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It is empty or ends within a logical block.
    #[error("a device of {size_bytes} bytes is not one or more whole blocks of {block_bytes} bytes")]
    Size {
        /// Of the device.
        size_bytes: u64,
        /// Of the unit.
        block_bytes: u32,
    },
    /// An inquiry string is too long for its field or not ASCII.
    #[error("identity: vendor, product and revision are ASCII of at most 8, 16 and 4 characters")]
    Identity,
}

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Other machines could reach the address and log in without a secret.
    #[error("listen on {0}: other machines can reach it, so every target and discovery must ask for CHAP")]
    NeedsLogin(SocketAddr),
    /// The operating system refused.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}
