//! The mutants in `tests/mutants` are of this state of the code: each patch applies. That each is found is seen by
//! `cargo xtask simulate --mutants`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn every_patch_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let is_checkout = Command::new("git").args(["rev-parse", "--show-toplevel"]).current_dir(root).output();
    if !is_checkout.is_ok_and(|output| output.status.success()) {
        println!("skipped: this is no git checkout");
        return;
    }
    let folder = root.join("tests/mutants");
    let patches: Vec<PathBuf> =
        [folder.clone(), folder.join("serve")].iter().flat_map(|folder| patches_in(folder)).collect();
    assert!(patches.len() > 30, "{patches:?}");
    let mut stale = Vec::new();
    for patch in patches {
        let applied = Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(root).output().unwrap();
        if !applied.status.success() {
            stale.push(format!("{}: {}", patch.display(), String::from_utf8_lossy(&applied.stderr)));
        }
    }
    assert!(stale.is_empty(), "make them anew:\n{}", stale.join("\n"));
}

fn patches_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "patch")).collect()
}
