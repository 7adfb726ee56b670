//! Where a restored VM lies on the host: names for people, that no other file has.

use std::collections::BTreeSet;

use hyperv::Definition;
use hyperv::seam::HostWrites;

use crate::point::PointDisk;

/// Longest name of a folder or file that is made of a VM's or a disk's name.
const MAX_NAME_CHARS: usize = 80;
/// How many folders of one name are looked at.
const MAX_TRIES: u32 = 1000;

/// The folder that held the original's: where a restore goes when nothing is said.
pub(super) fn former_parent(definition: &Definition) -> Option<String> {
    let system = definition.system.to_instance()?;
    let root = system.get("ConfigurationDataRoot").as_str()?.trim_end_matches('\\').to_owned();
    let of_the_vm = root.rsplit_once('\\').filter(|(_, last)| last.eq_ignore_ascii_case(&definition.summary.name));
    let folder = of_the_vm.map_or(root.as_str(), |(parent, _)| parent);
    // `C:` alone names the current folder of a drive.
    Some(if folder.ends_with(':') { format!("{folder}\\") } else { folder.to_owned() }).filter(|text| !text.is_empty())
}

/// A folder of its own for the VM: `<parent>\<name>`, with a number behind it when that is taken.
pub(super) fn free_directory(parent: &str, name: &str, writes: &dyn HostWrites) -> String {
    let base = join(parent, &file_name(name));
    let is_free = |path: &String| writes.local_path(path).map_or(true, |path| path.symlink_metadata().is_err());
    if is_free(&base) {
        return base;
    }
    (2..MAX_TRIES).map(|number| format!("{base} ({number})")).find(is_free).unwrap_or(base)
}

/// File names for the disks, in their order: as the disk files were called, without the marks of a checkpoint.
pub(super) fn disk_names(disks: &[&PointDisk]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    disks
        .iter()
        .map(|disk| {
            let stem = file_name(stem_of(&disk.path));
            let name = if taken.contains(&stem.to_lowercase()) { format!("{stem}-{}", disk.number) } else { stem };
            taken.insert(name.to_lowercase());
            format!("{name}.vhdx")
        })
        .collect()
}

/// The name of a disk file without its extension, and without the GUID that a checkpoint gave it.
fn stem_of(path: &str) -> &str {
    let name = hyperv::file_name(path);
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    if !extension.to_ascii_lowercase().starts_with("avhd") {
        return stem;
    }
    match stem.rsplit_once('_') {
        Some((before, guid)) if guid.parse::<vhdx::Guid>().is_ok() && !before.is_empty() => before,
        _ => stem,
    }
}

/// A name that Windows takes for a file: what it forbids becomes an underscore.
pub(super) fn file_name(name: &str) -> String {
    let is_bad = |c: char| c.is_control() || r#"<>:"/\|?*"#.contains(c);
    let text: String = name.chars().take(MAX_NAME_CHARS).map(|c| if is_bad(c) { '_' } else { c }).collect();
    let text = text.trim_end_matches([' ', '.']);
    if text.trim().is_empty() { "vm".to_owned() } else { text.to_owned() }
}

pub(crate) fn join(folder: &str, name: &str) -> String {
    format!("{}\\{name}", folder.trim_end_matches('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::point_description;

    #[test]
    fn names_are_fit_for_files() {
        for (name, expected) in [
            ("DC01", "DC01"),
            (r"a\b:c", "a_b_c"),
            ("trailing. .", "trailing"),
            ("", "vm"),
            ("...", "vm"),
            ("Büro \u{7}", "Büro _"),
        ] {
            assert_eq!(file_name(name), expected, "{name:?}");
        }
    }

    #[test]
    fn disks_keep_their_names_and_get_one_each() {
        let disk = |number, path: &str| PointDisk {
            number,
            path: path.into(),
            ..point_description().disks.into_iter().next().unwrap()
        };
        let disks = [
            disk(0, r"C:\VMs\dc01.vhdx"),
            disk(1, r"D:\other\DC01.VHDX"),
            disk(2, r"C:\VMs\data_11111111-2222-4333-8444-555555555555.avhdx"),
            disk(3, r"C:\VMs\old.vhd"),
            disk(4, r"C:\VMs\my_disk.avhdx"),
        ];
        let disks: Vec<&PointDisk> = disks.iter().collect();
        assert_eq!(disk_names(&disks), ["dc01.vhdx", "DC01-1.vhdx", "data.vhdx", "old.vhdx", "my_disk.vhdx"]);
    }
}
