//! Why the host cannot read a disk: its chain as the files themselves tell it (spec 11, rows 4, 5 and 23). The host's own
//! answer names neither the file that is missing nor the one that was replaced.

use std::io;
use std::sync::Arc;

use vhdx::{LayerFile, OpenError, ParentLocator, ReadAt, VhdFile, VhdxFile};

use crate::names::{file_name, same_path};
use crate::seam::HostFiles;

/// How a VHDX begins (MS-VHDX 2.2.1).
const VHDX_SIGNATURE: &[u8; 8] = b"vhdxfile";

/// More files than this is damage, not a chain.
const MAX_CHAIN: usize = 1024;

/// Opens a disk file of either format, by what is in it.
pub(crate) fn open_layer(files: &dyn HostFiles, path: &str) -> Result<LayerFile, OpenError> {
    let file = files.open_read(path).map_err(|source| OpenError::File { action: "open", path: path.into(), source })?;
    let file: Arc<dyn ReadAt> = Arc::from(file);
    let mut signature = [0; VHDX_SIGNATURE.len()];
    let unread = |source| OpenError::Read { structure: "signature", offset_bytes: 0, source };
    file.read_exact_at(&mut signature, 0).map_err(unread)?;
    if signature == *VHDX_SIGNATURE {
        VhdxFile::open(file).map(|file| LayerFile::Vhdx(file.into()))
    } else {
        VhdFile::open(file).map(|file| LayerFile::Vhd(Box::new(file)))
    }
}

/// What is wrong with the chain that begins at that file, and how far it could be followed; `None` where the files do not
/// tell, as when one is in use or everything fits.
pub(crate) fn problem_of_chain(files: &dyn HostFiles, leaf: &str) -> Option<String> {
    if is_missing(files, leaf) {
        return Some("the file is missing".into());
    }
    let mut chain = vec![leaf.to_owned()];
    let problem = loop {
        let child = chain.last()?;
        let opened = open_layer(files, child).ok()?;
        let locator = opened.parent_locator()?;
        let parents = parents_of(child, locator);
        let Some(parent) = parents.iter().find(|path| !is_missing(files, path)) else {
            break format!("the parent of {} is missing: {}", file_name(child), parents.last()?);
        };
        if chain.len() == MAX_CHAIN || chain.iter().any(|known| same_path(known, parent)) {
            break format!("{parent} is met twice");
        }
        let found = open_layer(files, parent).ok()?.info().data_write_guid;
        if !locator.matches(found) {
            break format!(
                "{parent} is not the parent that {} was made from: it has the id {found}, and {} is wanted; it was changed \
                 or replaced after that",
                file_name(child),
                locator.parent_linkage,
            );
        }
        chain.push(parent.clone());
    };
    Some(format!("{problem} (chain: {})", chain.join(" > ")))
}

fn is_missing(files: &dyn HostFiles, path: &str) -> bool {
    files.facts(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Where a child's parent may be: by its own folder, then by the path that was recorded. The recorded one comes last, to
/// be named when there is none.
fn parents_of(child: &str, locator: &ParentLocator) -> Vec<String> {
    let folder = &child[..child.len() - file_name(child).len()];
    let relative = locator.relative_path.as_deref().map(|path| {
        let mut folder = folder.trim_end_matches(['\\', '/']);
        let mut rest = path;
        loop {
            if let Some(below) = rest.strip_prefix(".\\") {
                rest = below;
            } else if let Some(above) = rest.strip_prefix("..\\") {
                rest = above;
                folder = folder.rsplit_once('\\').map_or("", |(above, _)| above);
            } else {
                break format!("{folder}\\{rest}");
            }
        }
    });
    relative.into_iter().chain(locator.absolute_win32_path.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_at_the_childs_folder() {
        for (child, relative, expected) in [
            (r"C:\VMs\web\d.avhdx", r".\d.vhdx", r"C:\VMs\web\d.vhdx"),
            (r"C:\VMs\web\d.vhdx", r"..\..\Golden images\g.vhdx", r"C:\Golden images\g.vhdx"),
            (r"C:\VMs\web\d.vhdx", r"..\..\..\..\g.vhdx", r"\g.vhdx"),
            (r"C:\VMs\web\d.vhdx", "g.vhdx", r"C:\VMs\web\g.vhdx"),
            ("d.vhdx", "g.vhdx", r"\g.vhdx"),
        ] {
            let locator = ParentLocator { relative_path: Some(relative.into()), ..Default::default() };
            assert_eq!(parents_of(child, &locator), [expected], "{child} {relative}");
        }
        let absolute = Some(r"D:\g.vhdx".to_owned());
        let locator = ParentLocator { absolute_win32_path: absolute, ..Default::default() };
        assert_eq!(parents_of(r"C:\d.vhdx", &locator), [r"D:\g.vhdx"]);
        assert!(parents_of(r"C:\d.vhdx", &ParentLocator::default()).is_empty());
    }
}
