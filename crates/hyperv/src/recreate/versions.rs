//! Which configuration versions a host can run (spec 1.3).

use std::fmt;

/// The range of configuration versions of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurationVersions {
    oldest: Version,
    newest: Version,
}

/// Major and minor.
type Version = (u32, u32);

/// From the build number of Windows on, which versions it runs. Builds between two rows are as the row before.
const BY_BUILD: &[(u32, Version, Version)] = &[
    (14_393, (5, 0), (8, 0)),
    (17_763, (5, 0), (9, 0)),
    (20_348, (8, 0), (10, 0)),
    (22_621, (8, 0), (11, 0)),
    (26_100, (8, 0), (12, 0)),
];

impl ConfigurationVersions {
    /// The versions of a host by `Win32_OperatingSystem.Version` (`10.0.20348`); `None` for one we know nothing about.
    pub fn of_windows(version: &str) -> Option<Self> {
        let build: u32 = version.split('.').nth(2)?.parse().ok()?;
        let (_, oldest, newest) = BY_BUILD.iter().rev().find(|(from, ..)| build >= *from)?;
        Some(Self { oldest: *oldest, newest: *newest })
    }

    /// Whether a VM of this version runs here. A text that is no version does not.
    pub fn runs(&self, version: &str) -> bool {
        parse(version).is_some_and(|version| (self.oldest..=self.newest).contains(&version))
    }

    /// Whether the version is newer than all that run here.
    pub fn is_too_new(&self, version: &str) -> bool {
        parse(version).is_some_and(|version| version > self.newest)
    }
}

impl fmt::Display for ConfigurationVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} to {}.{}", self.oldest.0, self.oldest.1, self.newest.0, self.newest.1)
    }
}

fn parse(version: &str) -> Option<Version> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_run_the_versions_of_their_build() {
        for (windows, version, runs, too_new) in [
            ("10.0.14393", "8.0", true, false),
            ("10.0.14393", "9.0", false, true),
            ("10.0.17763", "5.0", true, false),
            ("10.0.20348", "5.0", false, false),
            ("10.0.20348", "10.0", true, false),
            ("10.0.20348", "12.0", false, true),
            ("10.0.26100", "12.0", true, false),
            ("10.0.26100", "rubbish", false, false),
            ("10.0.22000", "11.0", false, true),
        ] {
            let host = ConfigurationVersions::of_windows(windows).unwrap();
            assert_eq!((host.runs(version), host.is_too_new(version)), (runs, too_new), "{windows} {version}");
        }
        for windows in ["", "6.3.9600", "10.0", "10.0.x"] {
            assert_eq!(ConfigurationVersions::of_windows(windows), None, "{windows}");
        }
    }
}
