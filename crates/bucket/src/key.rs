//! Which keys are used at all.

/// Longest key in bytes (Amazon S3 user guide, "Object key naming").
pub const MAX_KEY_BYTES: usize = 1024;

/// Says what is wrong with a key, or `None` if every store keeps it as it is.
///
/// SeaweedFS turns `a//b` into `a/b` and `\` into `/` and refuses `..`; folders cannot have such names at all.
pub fn check_key(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        Some("the key is empty")
    } else if key.len() > MAX_KEY_BYTES {
        Some("the key is longer than 1,024 bytes")
    } else if key.contains('\\') || key.chars().any(char::is_control) {
        Some("the key has a backslash or a control character")
    } else if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("the key has an empty component, `.` or `..`")
    } else {
        None
    }
}

/// Whether any key can start with `prefix`. Stores are not asked for other prefixes: SeaweedFS takes `a//` for `a/`.
pub(crate) fn is_prefix_of_some_key(prefix: &str) -> bool {
    let (dir, rest) = prefix.rsplit_once('/').map_or((None, prefix), |(dir, rest)| (Some(dir), rest));
    dir.is_none_or(|dir| check_key(dir).is_none()) && !rest.contains('\\') && !rest.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_starts_of_keys() {
        for prefix in ["", "a", "a/", "a/b", "a/.", "a/..", "..", "."] {
            assert!(is_prefix_of_some_key(prefix), "{prefix:?}");
        }
        for prefix in ["/", "//", "a//", "../", "./a", "a/../", "\\", "a/\n"] {
            assert!(!is_prefix_of_some_key(prefix), "{prefix:?}");
        }
    }

    #[test]
    fn keys_that_stores_disagree_about_are_refused() {
        for key in ["a", "a/b", "kopia.repository", "p/012/34.f", "..a", "a..", "ä/ß", &"x".repeat(MAX_KEY_BYTES)] {
            assert_eq!(check_key(key), None, "{key:?}");
        }
        for key in
            ["", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a\\b", "a\0", "a\nb", &"x".repeat(MAX_KEY_BYTES + 1)]
        {
            assert!(check_key(key).is_some(), "{key:?}");
        }
    }
}
