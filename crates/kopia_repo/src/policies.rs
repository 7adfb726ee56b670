//! Policies as they lie in a repository: one manifest for each target, the more specific going before (spec 6.7).

use jiff::Timestamp;

use crate::Repository;
use crate::error::ReadError;
use crate::format::manifest::ManifestEntry;
use crate::format::policy::{Policy, RetentionPolicy};
use crate::format::snapshot::SourceInfo;
use crate::retention::Period;
use crate::session::WriteSession;

/// What a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PolicyTarget {
    /// Everything in the repository.
    Global,
    /// All sources of a host.
    Host(String),
    /// All sources of a user on a host.
    User {
        /// The user.
        user_name: String,
        /// The host.
        host: String,
    },
    /// A path of a user on a host, and what is below it.
    Path(SourceInfo),
}

/// A policy in a repository.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPolicy {
    /// Its manifest.
    pub id: String,
    /// When it was written; needed to replace it.
    pub modified: Timestamp,
    /// What it says.
    pub policy: Policy,
}

impl PolicyTarget {
    /// The labels of its manifest.
    pub fn labels(&self) -> Vec<(&'static str, &str)> {
        let mut labels = vec![("type", "policy")];
        match self {
            Self::Global => labels.push(("policyType", "global")),
            Self::Host(host) => labels.extend([("policyType", "host"), ("hostname", host.as_str())]),
            Self::User { user_name, host } => {
                labels.extend([("policyType", "user"), ("username", user_name.as_str()), ("hostname", host.as_str())]);
            }
            Self::Path(source) => labels.extend([
                ("policyType", "path"),
                ("username", source.user_name.as_str()),
                ("hostname", source.host.as_str()),
                ("path", source.path.as_str()),
            ]),
        }
        labels
    }

    /// Whose policies apply to a source, the most specific first.
    pub fn of_source(source: &SourceInfo) -> Vec<Self> {
        let mut targets = Vec::new();
        let mut path = Some(source.path.as_str());
        while let Some(at) = path {
            targets.push(Self::Path(SourceInfo { path: at.to_owned(), ..source.clone() }));
            path = parent(at);
        }
        targets.push(Self::User { user_name: source.user_name.clone(), host: source.host.clone() });
        targets.push(Self::Host(source.host.clone()));
        targets.push(Self::Global);
        targets
    }
}

/// The folder that a path lies in; `None` above the root, and above a name without a folder. Paths of Windows are known
/// by their drive letter.
fn parent(path: &str) -> Option<&str> {
    let separators: &[char] = if path.get(1..2) == Some(":") { &['/', '\\'] } else { &['/'] };
    let at = path.rfind(separators)?;
    let is_root = |end: usize| end == 0 || (end == 2 && separators.len() == 2);
    // The separator belongs to the root.
    let parent = if is_root(at) { &path[..=at] } else { &path[..at] };
    (parent.len() < path.len()).then_some(parent)
}

impl Repository {
    /// The policy of exactly this target. Where several are live, which no client should leave, the one written last.
    pub fn policy(&self, target: &PolicyTarget) -> Result<Option<StoredPolicy>, ReadError> {
        let newest =
            self.policy_manifests(target)?.into_iter().max_by(|a, b| (a.modified, &a.id).cmp(&(b.modified, &b.id)));
        newest.map(|entry| stored(&entry)).transpose()
    }

    /// How many snapshots of a source stock Kopia would keep: each limit from the most specific policy that sets it,
    /// at last Kopia's own default. A policy with `noParent` ends the search, defaults included.
    pub fn effective_retention(&self, source: &SourceInfo) -> Result<RetentionPolicy, ReadError> {
        let mut policies = Vec::new();
        for target in PolicyTarget::of_source(source) {
            let Some(StoredPolicy { policy, .. }) = self.policy(&target)? else { continue };
            let is_last = policy.no_parent;
            policies.push(policy.retention);
            if is_last {
                return Ok(merged(&policies));
            }
        }
        policies.push(Policy::default_global().retention);
        Ok(merged(&policies))
    }

    fn policy_manifests(&self, target: &PolicyTarget) -> Result<Vec<ManifestEntry>, ReadError> {
        self.find_manifests(&target.labels())
    }
}

impl WriteSession {
    /// Queues a policy in place of the target's own; visible with the next flush, when the former ones are gone.
    pub fn put_policy(&self, target: &PolicyTarget, policy: &Policy) -> Result<(), ReadError> {
        for former in self.repository().policy_manifests(target)? {
            self.delete_manifest(&former.id, former.modified);
        }
        let labels = target.labels().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.put_manifest(labels, policy);
        Ok(())
    }
}

fn stored(entry: &ManifestEntry) -> Result<StoredPolicy, ReadError> {
    let policy = serde_json::from_str(entry.data.get())
        .map_err(|error| ReadError::damaged(format!("policy manifest {}", entry.id), error))?;
    Ok(StoredPolicy { id: entry.id.clone(), modified: entry.modified, policy })
}

/// Each field from the first that sets it.
fn merged(policies: &[RetentionPolicy]) -> RetentionPolicy {
    let mut merged = RetentionPolicy {
        ignore_identical_snapshots: policies.iter().find_map(|one| one.ignore_identical_snapshots),
        ..RetentionPolicy::default()
    };
    for period in Period::ALL {
        if let Some(limit) = policies.iter().find_map(|one| one.limit_if_set(period)) {
            merged.set_limit(period, limit);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_upward_then_user_host_and_all() {
        for (path, expected) in [
            ("/vm/A", &["/vm/A", "/vm", "/"][..]),
            ("/", &["/"]),
            (r"C:\Users\me", &[r"C:\Users\me", r"C:\Users", r"C:\"]),
            ("D:/x", &["D:/x", "D:/"]),
            ("name", &["name"]),
            ("", &[""]),
        ] {
            let source = SourceInfo { host: "h".into(), user_name: "u".into(), path: path.into() };
            let mut expected: Vec<PolicyTarget> = expected
                .iter()
                .map(|path| PolicyTarget::Path(SourceInfo { path: (*path).into(), ..source.clone() }))
                .collect();
            expected.push(PolicyTarget::User { user_name: "u".into(), host: "h".into() });
            expected.extend([PolicyTarget::Host("h".into()), PolicyTarget::Global]);
            assert_eq!(PolicyTarget::of_source(&source), expected, "{path:?}");
        }
    }
}
