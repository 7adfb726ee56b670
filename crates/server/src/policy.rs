//! What a client demands of its people (spec control-api 6.3, 10.4): settings beside those of `limits.rs`.

use control_api::words::Role;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A client's rules for what destroys something, and for second factors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// What destroys something needs a second administrator.
    pub four_eyes: bool,
    /// What is deleted goes after so long, and can be kept until then.
    pub delete_delay_hours: i64,
    /// Whose sessions need a second factor.
    pub mfa_required_roles: Vec<Role>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { four_eyes: false, delete_delay_hours: 24, mfa_required_roles: vec![Role::Admin, Role::Owner] }
    }
}

impl Policy {
    /// Out of a client's settings. Settings that cannot be read are not weaker than the defaults.
    pub fn of(settings: Option<Json>) -> Policy {
        settings.and_then(|settings| serde_json::from_value(settings).ok()).unwrap_or_default()
    }

    /// Whether this demands less than `before` in anything.
    pub fn is_weaker_than(&self, before: &Policy) -> bool {
        (before.four_eyes && !self.four_eyes)
            || self.delete_delay_hours < before.delete_delay_hours
            || before.mfa_required_roles.iter().any(|role| !self.mfa_required_roles.contains(role))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_say_nothing_or_nonsense_leave_the_defaults() {
        for settings in [None, Some(json!({})), Some(json!({"runs_per_agent": 2})), Some(json!({"four_eyes": "maybe"}))]
        {
            assert_eq!(Policy::of(settings.clone()), Policy::default(), "{settings:?}");
        }
        let given = Policy::of(Some(json!({"four_eyes": true, "delete_delay_hours": 0, "mfa_required_roles": []})));
        assert_eq!(given, Policy { four_eyes: true, delete_delay_hours: 0, mfa_required_roles: Vec::new() });
    }

    #[test]
    fn less_of_anything_is_weaker() {
        let before = Policy { four_eyes: true, ..Policy::default() };
        for (case, after, expected) in [
            ("the same", before.clone(), false),
            ("no second person", Policy { four_eyes: false, ..before.clone() }, true),
            ("a shorter delay", Policy { delete_delay_hours: 23, ..before.clone() }, true),
            ("a longer delay", Policy { delete_delay_hours: 25, ..before.clone() }, false),
            ("one role less", Policy { mfa_required_roles: vec![Role::Owner], ..before.clone() }, true),
            ("all roles", Policy { mfa_required_roles: Role::ALL.to_vec(), ..before.clone() }, false),
        ] {
            assert_eq!(after.is_weaker_than(&before), expected, "{case}");
        }
    }
}
