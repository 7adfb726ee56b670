//! Only the simulation takes its random bytes from a seed: nonces and keys out of one protect nothing.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn only_the_simulation_seeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut folders = vec![root.join("crates"), root.join("xtask/src")];
    let (mut seen, mut problems) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            if name.ends_with(".rs") && fs::read_to_string(&path).unwrap().contains("seed_this_thread") {
                seen += 1;
                if !["crates/random/", "crates/simulation/"].iter().any(|allowed| name.starts_with(allowed)) {
                    problems.push(name);
                }
            }
        }
    }
    assert!(seen > 1, "the simulation seeds");
    assert!(problems.is_empty(), "only the simulation may seed a thread: {problems:?}");
}
