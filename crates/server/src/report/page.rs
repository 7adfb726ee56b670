//! The protection report as a page to read and print: words rather than tints, no script, no navigation.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control_api::report::{Report, ReportRow};
use sha2::{Digest as _, Sha256};

use crate::alerts::text::escape;

const STYLE: &str = "\
@page{size:A4 landscape;margin:15mm}\
body{font:14px/1.4 system-ui,sans-serif;color:#111;background:#fff;margin:2rem}\
h1{font-size:1.4rem;margin:0 0 .3rem}\
p{margin:.2rem 0}\
table{border-collapse:collapse;width:100%;margin-top:1rem}\
th,td{text-align:left;padding:.3rem .5rem;border-bottom:1px solid #999;vertical-align:top}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
thead{display:table-header-group}\
tr{break-inside:avoid}\
.bad{font-weight:700}\
@media print{body{margin:0;font-size:10pt}}";

/// The hash of the style sheet, for the page's policy.
pub fn style_sha256() -> String {
    STANDARD.encode(Sha256::digest(STYLE.as_bytes()))
}

/// The page.
pub fn html(report: &Report) -> String {
    let mut states: Vec<String> = Vec::new();
    for (state, vms) in &report.states {
        if vms.as_i64().is_some_and(|vms| vms > 0) {
            states.push(format!("{vms} {}", words(state)));
        }
    }
    let kept = report.kept_basis_points.map(|kept| format!("Target kept {} of the time. ", percent(kept)));
    let rows: String = report.vms.iter().map(row).collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Protection: {client}</title>\
         <style>{STYLE}</style></head><body><h1>Protection: {client}</h1>\
         <p>{from} to {to} ({zone}), made {made}</p><p>{count} VMs: {states}. {kept}</p>\
         <table><thead><tr><th>VM</th><th>Tenant</th><th>Host</th><th>State</th><th class=\"n\">Target</th>\
         <th class=\"n\">Kept</th><th class=\"n\">Longest gap</th><th class=\"n\">Points</th><th>Newest</th>\
         <th>Proven</th><th>Remark</th></tr></thead><tbody>{rows}</tbody></table></body></html>\n",
        client = escape(&report.client),
        from = escape(&report.from),
        to = escape(&report.to),
        zone = escape(&report.timezone),
        made = escape(&report.made_at),
        count = report.vms.len(),
        states = if states.is_empty() { "none".into() } else { escape(&states.join(", ")) },
        kept = kept.unwrap_or_default(),
    )
}

fn row(row: &ReportRow) -> String {
    let is_bad = crate::protection::severity(row.status.state) <= 2;
    let class = if is_bad { " class=\"bad\"" } else { "" };
    let reason = if row.status.reason.is_empty() { String::new() } else { format!(": {}", row.status.reason) };
    let text = |value: &Option<String>| escape(value.as_deref().unwrap_or("–"));
    let hours = |seconds: Option<i64>| seconds.map_or_else(|| "–".into(), |seconds| format!("{} h", seconds / 3600));
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td{class}>{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        escape(&row.vm_name),
        text(&row.tenant),
        text(&row.hostname),
        words(row.status.state.word()),
        escape(&reason),
        hours(row.status.target_seconds),
        row.kept_basis_points.map_or_else(|| "–".into(), percent),
        hours(row.longest_gap_seconds),
        row.points,
        text(&row.newest_snapshot_time),
        text(&row.verified_at),
        text(&row.remark),
    )
}

/// A state as people read it.
pub fn words(state: &str) -> String {
    state.replace('_', " ")
}

/// Hundredths of a percent.
pub fn percent(basis_points: i64) -> String {
    format!("{}.{:02} %", basis_points / 100, basis_points % 100)
}

/// The report's rows for CSV: times with zone, sizes and durations as integers.
pub fn cells(report: &Report) -> Vec<Vec<String>> {
    let names = [
        "vm_name",
        "vm_guid",
        "tenant",
        "hostname",
        "state",
        "reason",
        "age_seconds",
        "target_seconds",
        "kept_basis_points",
        "longest_gap_seconds",
        "points",
        "newest_snapshot_time",
        "verified_at",
        "remark",
        "from",
        "to",
    ];
    let number = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let row = |row: &ReportRow| {
        vec![
            row.vm_name.clone(),
            row.vm_guid.clone(),
            text(&row.tenant),
            text(&row.hostname),
            row.status.state.word().to_owned(),
            row.status.reason.clone(),
            number(row.status.age_seconds),
            number(row.status.target_seconds),
            number(row.kept_basis_points),
            number(row.longest_gap_seconds),
            row.points.to_string(),
            text(&row.newest_snapshot_time),
            text(&row.verified_at),
            text(&row.remark),
            report.from.clone(),
            report.to.clone(),
        ]
    };
    std::iter::once(names.map(str::to_owned).to_vec()).chain(report.vms.iter().map(row)).collect()
}
