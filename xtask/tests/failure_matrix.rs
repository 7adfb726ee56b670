//! The failure matrix in `docs/failure-matrix.md` is whole, and the tests that it names are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of the matrix.
const ROWS: std::ops::RangeInclusive<u32> = 1..=52;

#[test]
fn every_row_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/failure-matrix.md")).unwrap();
    let mut tests = BTreeMap::new();
    let mut seen = Vec::new();
    let mut problems = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Some(row) = cells.first().and_then(|cell| cell.parse::<u32>().ok()) else { continue };
        seen.push(row);
        let named = cells.last().unwrap().trim_end_matches(" |");
        let is_explained = ["none: ", "the same", "as row "].iter().any(|beginning| named.starts_with(beginning));
        for one in named.split(", ").filter(|_| !is_explained) {
            let Some((package, rest)) = one.split_once("` `") else {
                problems.push(format!("row {row}: neither a test nor a reason: {one}"));
                continue;
            };
            let (package, function) = (package.trim_matches('`'), rest.split('`').next().unwrap());
            let known = tests.entry(package.to_owned()).or_insert_with(|| tests_of(&root.join("crates").join(package)));
            if !known.contains(function) {
                problems.push(format!("row {row}: {package} has no test {function}"));
            }
        }
    }
    assert_eq!(seen, ROWS.collect::<Vec<_>>(), "each row once, in order");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The names of a crate's test functions.
fn tests_of(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> = vec![folder.join("src"), folder.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                let mut is_test = false;
                for line in source.lines().map(str::trim) {
                    match line.strip_prefix("fn ") {
                        Some(rest) if is_test => {
                            names.insert(rest.split('(').next().unwrap().to_owned());
                            is_test = false;
                        }
                        Some(_) => is_test = false,
                        None if line.contains("fn ") && !line.starts_with("//") => is_test = false,
                        None => is_test |= line == "#[test]",
                    }
                }
            }
        }
    }
    names
}
