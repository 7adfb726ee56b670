//! Makes `product-names.txt` anew from what a whole run has used, or says how.
//!
//! ```text
//! HYPERV_SIM_RECORD=/tmp/names cargo test --workspace
//! cargo run -p hyperv_sim --example product_names -- /tmp/names
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = std::env::args_os().nth(1) else {
        println!("Record a whole run, then give the folder to this example:");
        println!("  HYPERV_SIM_RECORD=/tmp/names cargo test --workspace");
        println!("  cargo run -p hyperv_sim --example product_names -- /tmp/names");
        return Ok(());
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        names.extend(fs::read_to_string(entry?.path())?.lines().map(str::to_owned));
    }
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("product-names.txt");
    fs::write(&list, names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    println!("{} names in {}", names.len(), list.display());
    Ok(())
}
