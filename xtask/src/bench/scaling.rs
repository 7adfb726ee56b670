//! Whether the cost of an incremental backup follows what changed, not the size of the disk.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cache;
use crate::agent::Agent;
use crate::demo::LabDisk;
use crate::figures::{size, table};
use crate::folder::{disk_usage_bytes, remove};
use crate::measure::measure;
use crate::process::output_of;
use crate::random::Random;
use crate::report::{heading, seconds};

const USED_MIB: u64 = 2048;
const CHANGED_MIB: u64 = 100;
const PIECE_BYTES: usize = 1 << 20;

/// Backs up disks of these sizes with the same content and the same changes.
pub fn run(agent: &Agent, folder: &Path, sizes_gib: &[u64], cache: &Cache) -> Result<()> {
    heading(&format!("the same {CHANGED_MIB} changed MiB on disks with {USED_MIB} MiB in use"));
    let mut rows = vec![["DISK", "TIME", "MEMORY", "REPOSITORY GREW BY"].map(str::to_owned).to_vec()];
    let mut counters: Vec<(String, Vec<String>)> = Vec::new();
    for (column, size_gib) in sizes_gib.iter().enumerate() {
        let name = format!("{size_gib} GiB");
        println!("a disk of {name}");
        let work = folder.join("scaling");
        remove(&work)?;
        let agent = agent.in_folder(&work);
        std::fs::create_dir(&work).with_context(|| format!("create {}", work.display()))?;
        output_of(agent.command(["lab", "create"]).arg(agent.lab()))?;
        let disk_size = format!("{size_gib}GiB");
        output_of(agent.command(["lab", "add-vm"]).arg(agent.lab()).args(["vm", "--size", &disk_size]))?;
        output_of(&mut agent.command(["repo", "create"]))?;

        // The places are the same on each disk, within the smallest, so that only the size differs.
        let mut disk = LabDisk::open(agent.lab(), "vm")?;
        let mut random = Random::new(1);
        for piece in 0..USED_MIB / 4 {
            let data = [
                random.bytes(PIECE_BYTES),
                random.text(PIECE_BYTES),
                random.bytes(PIECE_BYTES),
                random.text(PIECE_BYTES),
            ];
            disk.write_at(piece * 3 * (4 << 20), &data.concat())?;
        }
        output_of(&mut agent.command(["backup", "vm", "--full"]))?;
        for change in 0..CHANGED_MIB {
            let piece = change * (USED_MIB / 4) / CHANGED_MIB;
            disk.write_at(piece * 3 * (4 << 20) + (1 << 20), &random.bytes(PIECE_BYTES))?;
        }
        drop(disk);

        let before = disk_usage_bytes(agent.repository())?;
        cache.prepare()?;
        let measured = measure(&mut agent.command(["backup", "vm", "--json"]))?;
        let grown = disk_usage_bytes(agent.repository())?.saturating_sub(before);
        rows.push(vec![
            name,
            seconds(measured.time),
            measured.peak_memory_bytes.map_or_else(|| "–".into(), size),
            size(grown),
        ]);
        for (counter, value) in numbers_of(&measured.stdout) {
            let row = match counters.iter().position(|(known, _)| *known == counter) {
                Some(found) => &mut counters[found].1,
                None => &mut counters.push_mut((counter, vec!["–".to_owned(); sizes_gib.len()])).1,
            };
            row[column] = value;
        }
        remove(&work)?;
    }
    print!("{}", table(&rows));

    println!("\nThe agent's own counters (backup --json):");
    let header = ["COUNTER".to_owned()].into_iter().chain(sizes_gib.iter().map(|gib| format!("{gib} GiB"))).collect();
    let counters = counters.into_iter().map(|(counter, values)| [counter].into_iter().chain(values).collect());
    print!("{}", table(&[header].into_iter().chain(counters).collect::<Vec<_>>()));
    Ok(())
}

/// Every number in the result that the agent printed last, by its path.
fn numbers_of(output: &str) -> Vec<(String, String)> {
    let result = output.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let result = result.or_else(|| serde_json::from_str(output).ok());
    let mut numbers = Vec::new();
    if let Some(result) = result {
        collect_numbers("", &result, &mut numbers);
    }
    numbers
}

fn collect_numbers(path: &str, value: &Value, numbers: &mut Vec<(String, String)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Number(number) => numbers.push((path.to_owned(), number.to_string())),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| collect_numbers(&below(name), value, numbers)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| collect_numbers(&below(&at.to_string()), value, numbers));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_from_the_last_object() {
        let output = "{\"type\":\"progress\",\"done\":1}\n{\"type\":\"result\",\"vms\":[{\"read_bytes\":5,\"vm\":\"a\"}],\"n\":2}\n";
        let expected = [("n", "2"), ("vms.0.read_bytes", "5")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(numbers_of(output), expected);
    }
}
