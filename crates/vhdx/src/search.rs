//! Which files a child's locator may lead to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ParentLocator;

/// Which files may be opened as parents. What is opened is then checked to be the right one, whatever led to it.
#[derive(Clone, Default)]
pub enum ParentSearch {
    /// Files in the child's folder or below it: the recorded relative path, or the recorded file name beside the child.
    #[default]
    SameFolder,
    /// As `SameFolder`, and recorded paths that lie inside one of these folders once links are resolved. Absolute
    /// paths are followed on Windows only.
    Roots(Vec<PathBuf>),
    /// The caller names the candidates, best first; any path it returns is opened.
    Custom(Arc<FindParents>),
}

/// Names candidates for a parent.
pub type FindParents = dyn Fn(&ParentRequest<'_>) -> Vec<PathBuf> + Send + Sync;

/// The parent that is wanted.
#[derive(Debug)]
pub struct ParentRequest<'a> {
    /// The child file.
    pub child: &'a Path,
    /// What the child records of its parent.
    pub locator: &'a ParentLocator,
}

impl fmt::Debug for ParentSearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParentSearch::SameFolder => f.write_str("SameFolder"),
            ParentSearch::Roots(roots) => f.debug_tuple("Roots").field(roots).finish(),
            ParentSearch::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// Paths to try, best first. All but the caller's own lie inside an allowed folder, links resolved.
pub(crate) fn candidates(child: &Path, locator: &ParentLocator, search: &ParentSearch) -> Vec<PathBuf> {
    let roots: &[PathBuf] = match search {
        ParentSearch::Custom(find) => return find(&ParentRequest { child, locator }),
        ParentSearch::Roots(roots) => roots,
        ParentSearch::SameFolder => &[],
    };
    let folder = match child.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Ok(folder) = folder.canonicalize() else { return Vec::new() };
    let roots: Vec<PathBuf> =
        roots.iter().filter_map(|root| root.canonicalize().ok()).chain([folder.clone()]).collect();

    let recorded = [&locator.relative_path, &locator.volume_path, &locator.absolute_win32_path];
    let mut paths = Vec::new();
    paths.extend(locator.relative_path.as_deref().and_then(|path| resolve(&folder, path)));
    if cfg!(windows) && matches!(search, ParentSearch::Roots(_)) {
        paths.extend([&locator.volume_path, &locator.absolute_win32_path].into_iter().flatten().map(PathBuf::from));
    }
    for path in recorded.into_iter().flatten() {
        let name = path.rsplit('\\').next().unwrap_or(path);
        paths.extend(resolve(&folder, name));
    }
    let mut allowed: Vec<PathBuf> = Vec::new();
    for path in paths {
        // A path that leads nowhere is kept for the error message, unless it would lead out.
        let real = path.canonicalize().unwrap_or(path);
        if roots.iter().any(|root| real.starts_with(root)) && !allowed.contains(&real) {
            allowed.push(real);
        }
    }
    allowed
}

/// Follows a relative Windows path from a folder; `None` for every other form of path. `..` is taken literally,
/// without looking at links. Names that do not exist as written are looked up without regard to case.
fn resolve(folder: &Path, path: &str) -> Option<PathBuf> {
    let mut up = 0;
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('\\') {
        match name {
            "." => {}
            ".." if names.pop().is_none() => up += 1,
            ".." => {}
            name if is_plain_name(name) => names.push(name),
            _ => return None,
        }
    }
    if names.is_empty() {
        return None;
    }
    let mut at = folder.ancestors().nth(up)?.to_owned();
    for name in names {
        at = entry_named(&at, name);
    }
    Some(at)
}

/// Not empty, no drive or stream (`:`), no other separator, no device.
fn is_plain_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_lowercase();
    let numbered = |prefix| stem.strip_prefix(prefix).is_some_and(|rest: &str| rest.chars().count() == 1);
    let device = matches!(stem.as_str(), "con" | "prn" | "aux" | "nul" | "conin$" | "conout$")
        || numbered("com")
        || numbered("lpt");
    !name.is_empty() && !device && !name.contains(['/', ':', '\0', '*', '?', '"', '<', '>', '|'])
}

fn entry_named(folder: &Path, name: &str) -> PathBuf {
    let exact = folder.join(name);
    if exact.symlink_metadata().is_ok() {
        return exact;
    }
    let wanted = name.to_lowercase();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut alike = entries.filter(|entry| entry.file_name().to_string_lossy().to_lowercase() == wanted);
    alike.next().map_or(exact, |entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_windows_paths_are_followed() {
        let folder = Path::new("/vm/disks");
        for (path, expected) in [
            (r".\base.vhdx", Some("/vm/disks/base.vhdx")),
            (r"base.vhdx", Some("/vm/disks/base.vhdx")),
            (r"..\base\b.vhdx", Some("/vm/base/b.vhdx")),
            (r"a\..\..\b.vhdx", Some("/vm/b.vhdx")),
            (r"..\..\..\b.vhdx", None),
            (r"", None),
            (r".", None),
            (r"..", None),
            (r"\b.vhdx", None),
            (r"\\server\share\b.vhdx", None),
            (r"\\?\C:\b.vhdx", None),
            (r"C:\b.vhdx", None),
            (r"C:b.vhdx", None),
            (r"b.vhdx:stream", None),
            (r"a\\b.vhdx", None),
            (r"/etc/passwd", None),
            (r"a/../../../b", None),
            (r"nul", None),
            (r"COM1.vhdx", None),
        ] {
            assert_eq!(resolve(folder, path), expected.map(PathBuf::from), "{path}");
        }
    }
}
