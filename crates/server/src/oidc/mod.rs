//! Signing in with OpenID Connect: authorisation code with PKCE, state and nonce (OpenID Connect Core 3.1, RFC 7636,
//! RFC 9207), and roles by group.
//!
//! `id_token.rs` judges a token, as a pure function; `peer.rs` speaks to the provider and keeps its keys. Here is what is
//! asked for and what follows from the answer. The signatures are `ring`'s, which the server has anyway: what a whole
//! client library would add is dynamic registration, other flows and a second HTTP stack.

pub mod id_token;
mod peer;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_api::account::GroupRole;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

pub use peer::{Cache, Exchange, PeerError, Subject};

/// A person has so long to sign in at the provider.
pub const LOGIN_SECS: i64 = 600;
/// Binds a login to the browser that began it.
pub const COOKIE: &str = "__Host-e3_oidc";

/// What the server keeps to itself of a login in progress.
#[derive(Serialize, Deserialize)]
pub struct Secrets {
    /// Has to be in the token.
    pub nonce: String,
    /// PKCE: proves that who redeems the code asked for it.
    pub verifier: String,
}

/// The first rule of the mapping that one of these groups fulfils.
pub fn role_of<'a>(mapping: &'a [GroupRole], groups: &[String]) -> Option<&'a GroupRole> {
    mapping.iter().find(|grant| groups.contains(&grant.group))
}

/// A claim that is a text or a list of texts.
pub fn texts(claim: &Json) -> Vec<String> {
    match claim {
        Json::String(text) => vec![text.clone()],
        Json::Array(list) => list.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// PKCE's challenge of a verifier, method S256.
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()))
}

/// Whether the provider says that more than a password was shown (RFC 8176).
pub fn is_multi_factor(amr: &[String]) -> bool {
    amr.iter().any(|method| matches!(method.as_str(), "mfa" | "otp" | "hwk" | "swk" | "fpt" | "sc"))
}

#[cfg(test)]
mod tests {
    use control_api::words::Role;
    use serde_json::json;

    use super::*;

    /// RFC 7636 appendix B.
    #[test]
    fn the_challenge_is_that_of_the_rfc() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(challenge(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let grant = |group: &str, role| GroupRole { group: group.into(), role, tenant_id: None };
        let mapping = [grant("root", Role::Owner), grant("ops", Role::Operator), grant("all", Role::Viewer)];
        for (groups, expected) in [
            (vec!["all", "ops"], Some(Role::Operator)),
            (vec!["all"], Some(Role::Viewer)),
            (vec!["OPS"], None),
            (vec![], None),
        ] {
            let groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
            assert_eq!(role_of(&mapping, &groups).map(|grant| grant.role), expected, "{groups:?}");
        }
    }

    #[test]
    fn groups_come_as_text_or_list() {
        assert_eq!(texts(&json!("ops")), ["ops"]);
        assert_eq!(texts(&json!(["ops", 5, "all"])), ["ops", "all"]);
        assert!(texts(&json!({"ops": true})).is_empty());
    }
}
