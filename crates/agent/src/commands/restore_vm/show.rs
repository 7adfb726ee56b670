//! Plans, obstacles and differences, for people and for scripts.

use backup::{RestoreObstacle, RestorePlan};
use hyperv::{Difference, Identity, Severity, Way, Why};
use serde_json::{Value, json};

use crate::commands::backup::short;
use crate::output::{Align, Table};
use crate::units::{duration, size, visible};

/// The plan in a few lines.
pub fn show_plan(plan: &RestorePlan, host: &str, say: &dyn Fn(&str)) {
    let wanted = &plan.wanted;
    let identity = match (wanted.identity, plan.way) {
        (Identity::Keep, Way::Import) => "under its own id",
        _ => "with a new id",
    };
    let (point, stored) = (short(&plan.point.id), &plan.definition.summary.name);
    let (name, root) = (&wanted.name, &wanted.data_root);
    say(&visible(&format!("plan     {stored} of point {point} as {name} on {host}, {identity}, in {root}")));
    for disk in &plan.disks {
        let (total, data) = (size(disk.size_bytes), size(disk.data_bytes));
        say(&visible(&format!(
            "         disk {} ({}), {total} with {data} of data, to {}",
            disk.number, disk.slot, disk.path
        )));
    }
    for (number, step) in (1..).zip(steps(plan)) {
        say(&visible(&format!("         {number} {step}")));
    }
    let quote = &plan.quote;
    let about = quote.estimate.map_or(String::new(), |time| format!(", about {}", duration(time)));
    let free = quote.free_bytes.map_or("unknown space".to_owned(), size);
    say(&format!(
        "quote    {} to read in up to {} requests{about}; {} needed now, {} when the disks fill, {free} free",
        size(quote.data_bytes),
        quote.requests,
        size(quote.needs_now_bytes),
        size(quote.needs_full_bytes),
    ));
}

fn steps(plan: &RestorePlan) -> Vec<String> {
    let disks = match plan.disks.len() {
        1 => "1 disk".to_owned(),
        count => format!("{count} disks"),
    };
    let mut steps = vec![format!("write {disks}, every hash checked")];
    if let Some((vm, days)) = &plan.replaces {
        steps.push(format!("stop {}, rename it, and keep it {days} days", vm.name));
    }
    let how = match plan.way {
        Way::Import => "import the VM",
        Way::Build => "build the VM from its settings",
    };
    let network = &plan.wanted.network;
    let mut connected: Vec<String> =
        network.switches.iter().map(|(old, new)| format!("what was on {old} on {new}")).collect();
    if network.reconnect {
        connected.push("connected as it was".to_owned());
    }
    let connected = if connected.is_empty() { "not connected".to_owned() } else { connected.join(", ") };
    steps.push(format!("{how}, {connected}"));
    steps.push("compare its settings".to_owned());
    steps.push(if plan.power_on { "start it".to_owned() } else { "leave it off".to_owned() });
    steps
}

/// In three groups; of what passed only the number.
pub fn show_obstacles(obstacles: &[RestoreObstacle], say: &dyn Fn(&str)) {
    for (severity, title) in [(Severity::Block, "solve"), (Severity::Decide, "decide")] {
        for one in obstacles.iter().filter(|one| one.severity == severity) {
            let options = match one.options.is_empty() {
                true => String::new(),
                false => format!("  -> {}", one.options.join(" / ")),
            };
            say(&visible(&format!("{title:<8} {}  {}: {}{options}", one.code, one.on, one.why)));
        }
    }
    let passed = obstacles.iter().filter(|one| one.severity == Severity::Passed).count();
    say(&format!("passed   {passed} checks"));
}

/// The settings that are other than they were; what nothing explains comes first.
pub fn show_differences(differences: &[Difference]) {
    if differences.is_empty() {
        return;
    }
    let mut table =
        Table::new(&[("SETTING", Align::Left), ("WAS", Align::Left), ("IS", Align::Left), ("WHY", Align::Left)]);
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    for difference in differences {
        table.row(vec![
            difference.item.clone(),
            text(&difference.was),
            text(&difference.is),
            difference.why.to_string(),
        ]);
    }
    table.print();
}

pub fn plan_json(plan: &RestorePlan, host: &str, exit: u8) -> Value {
    let disks: Vec<Value> = plan
        .disks
        .iter()
        .map(|disk| {
            json!({
                "number": disk.number,
                "slot": disk.slot,
                "path": disk.path,
                "size_bytes": disk.size_bytes,
                "file_bytes": disk.file_bytes,
                "data_bytes": disk.data_bytes,
            })
        })
        .collect();
    json!({
        "type": "plan",
        "restore_type": "full",
        "point_id": plan.point.id,
        "host": host,
        "vm_name": plan.wanted.name,
        "directory": plan.wanted.data_root,
        "way": match plan.way { Way::Import => "import", Way::Build => "build" },
        "new_vm_id": plan.wanted.identity == Identity::New || plan.way == Way::Build,
        "replaces": plan.replaces.as_ref().map(|(vm, days)| json!({
            "vm_id": vm.id.to_string(),
            "vm_name": vm.name,
            "keep_old_days": days,
        })),
        "disks": disks,
        "obstacles": plan.obstacles.iter().map(obstacle_json).collect::<Vec<_>>(),
        "plan": steps(plan),
        "quote": {
            "bytes": plan.quote.data_bytes,
            "seconds": plan.quote.estimate.map(|time| time.as_secs_f64().ceil()),
            "requests": plan.quote.requests,
            "needs_now_bytes": plan.quote.needs_now_bytes,
            "needs_full_bytes": plan.quote.needs_full_bytes,
            "free_bytes": plan.quote.free_bytes,
        },
        "exit": exit,
    })
}

pub fn obstacle_json(obstacle: &RestoreObstacle) -> Value {
    json!({
        "code": obstacle.code,
        "severity": obstacle.severity.as_str(),
        "on": obstacle.on,
        "why": obstacle.why,
        "options": obstacle.options,
    })
}

pub fn difference_json(difference: &Difference) -> Value {
    json!({
        "item": difference.item,
        "was": difference.was,
        "is": difference.is,
        "why": match difference.why {
            Why::Wanted => "wanted",
            Why::GivenByHost => "given_by_host",
            Why::NotBuilt => "not_built",
            Why::Unexplained => "unexplained",
        },
    })
}
