//! VMs: of a job, and of everything (spec control-api 6.1, console 9).

use std::collections::BTreeMap;

use control_api::catalogue::{JobHead, JobVm, JobVms, JobVmsQuery, LastPoint, ToggleVm, Tracking};
use control_api::protection::{VmFilter, Vms};
use serde_json::{Value as Json, json};

use super::{Window, own_row};
use crate::access::Filter;
use crate::access::audit::{self, Entry};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::protection::RESTORABLE;
use crate::store::{Row, Tx, Value, time_text};
use crate::vm_status;

/// `cloudbackup_vms.php`.
pub async fn all(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: VmFilter = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let now = call.app.clock.now();
    let mut filter = Filter::within(call.scope()?, "s");
    if let Some(host) = asked.host {
        filter = filter.and("s.agent_id = ?", host);
    }
    if let Some(tenant) = asked.tenant_id {
        filter = filter.and("s.tenant_id = ?", tenant);
    }
    if let Some(text) = asked.q.as_ref().filter(|text| !text.is_empty()) {
        filter = filter.and_contains("s.vm_name", text);
    }
    let mut tx = call.app.db.read().await?;
    let states = states(&mut tx, &filter).await?;
    if !asked.state.is_empty() {
        filter = filter.and_in("s.state", asked.state.iter().map(|state| state.word()));
    }
    let order = match asked.sort.as_deref() {
        None | Some("state") => "s.severity, s.vm_name, s.id",
        Some("-state") => "s.severity DESC, s.vm_name, s.id",
        Some("name") => "s.vm_name, s.id",
        Some("-name") => "s.vm_name DESC, s.id",
        Some("age") => "s.newest_snapshot_time DESC, s.id",
        Some("-age") => "s.newest_snapshot_time, s.id",
        Some(_) => return Err(Failure::invalid("sort", "is state, name or age, with a minus to turn it round")),
    };
    let total = tx.count(&format!("SELECT COUNT(*) FROM vm_status s WHERE {}", filter.sql), &filter.args).await?;
    let sql = format!("{SELECT} WHERE {} ORDER BY {order}{}", filter.sql, window.sql());
    let rows = tx.rows(&sql, &filter.args).await?;
    let ids = vm_ids(&mut tx, call, &rows).await?;
    let vms = rows.iter().map(|row| {
        let ids = ids.get(&row.text("vm_guid")?).cloned().unwrap_or_default();
        vm_status::on_wire(row, now, ids)
    });
    let vms = vms.collect::<Result<_, _>>()?;
    Answer::ok(Vms { vms, states, total, limit: window.limit, offset: window.offset })
}

/// `vm_status` with the host's name.
pub const SELECT: &str =
    "SELECT s.*, a.hostname FROM vm_status s LEFT JOIN s3_cloudbackup_agents a ON a.id = s.agent_id";

/// How many VMs of a filter are in each state; every state is named.
pub async fn states(tx: &mut Tx, filter: &Filter) -> Result<control_api::Object, Failure> {
    let mut states = control_api::Object::new();
    for word in control_api::words::Protection::WORDS {
        states.insert((*word).to_owned(), json!(0));
    }
    let sql = format!("SELECT s.state, COUNT(*) AS vms FROM vm_status s WHERE {} GROUP BY s.state", filter.sql);
    for row in tx.rows(&sql, &filter.args).await? {
        states.insert(row.text("state")?, json!(row.int("vms")?));
    }
    Ok(states)
}

/// The rows in jobs of these VMs.
async fn vm_ids(tx: &mut Tx, call: &Call<'_>, rows: &[Row]) -> Result<BTreeMap<String, Vec<i64>>, Failure> {
    let guids: Vec<String> = rows.iter().map(|row| row.text("vm_guid")).collect::<Result<_, _>>()?;
    let filter = Filter::within(call.scope()?, "v").and_in("v.vm_guid", guids);
    let sql = format!("SELECT v.id, v.vm_guid FROM s3_hyperv_vms v WHERE {} ORDER BY v.id", filter.sql);
    let mut ids: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in tx.rows(&sql, &filter.args).await? {
        ids.entry(row.text("vm_guid")?).or_default().push(row.int("id")?);
    }
    Ok(ids)
}

/// `cloudbackup_hyperv_vms.php`.
pub async fn of_job(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: JobVmsQuery = call.read()?;
    let (scope, now) = (call.scope()?, call.app.clock.now());
    let (condition, value) = crate::jobs::named("j.", &asked.job_id);
    let filter = Filter::within(scope, "j").and_sql("j.status <> 'deleted'").and(&condition, value);
    let mut tx = call.app.db.read().await?;
    let sql = format!("SELECT j.* FROM s3_cloudbackup_jobs j WHERE {}", filter.sql);
    let job = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    let id = job.int("id")?;
    let disks = "SELECT d.* FROM s3_hyperv_vm_disks d JOIN s3_hyperv_vms v ON v.id = d.vm_id \
                 WHERE v.job_id = ? AND d.gone_at IS NULL ORDER BY d.id";
    let mut disks_of: BTreeMap<i64, Vec<Json>> = BTreeMap::new();
    for row in tx.rows(disks, args![id]).await? {
        disks_of.entry(row.int("vm_id")?).or_default().push(disk(&row)?);
    }
    let points = format!(
        "SELECT p.* FROM s3_hyperv_backup_points p JOIN (SELECT q.vm_id, MAX(q.id) AS newest \
         FROM s3_hyperv_backup_points q JOIN s3_hyperv_vms v ON v.id = q.vm_id \
         WHERE v.job_id = ? AND q.deleted_at IS NULL GROUP BY q.vm_id) n ON n.newest = p.id WHERE {RESTORABLE}"
    );
    let mut newest: BTreeMap<i64, Row> = BTreeMap::new();
    for row in tx.rows(&points, args![id]).await? {
        newest.insert(row.int("vm_id")?, row);
    }
    let sql = "SELECT v.*, c.created_at AS tracked_since, c.id AS checkpoint, \
               (SELECT COUNT(*) FROM s3_hyperv_backup_points p WHERE p.vm_id = v.id AND p.deleted_at IS NULL) AS points, \
               (SELECT x.state FROM s3_cloudbackup_run_vm_results x WHERE x.vm_id = v.id ORDER BY x.id DESC LIMIT 1) \
               AS last_state \
               FROM s3_hyperv_vms v LEFT JOIN s3_hyperv_checkpoints c ON c.vm_id = v.id AND c.is_active = 1 \
               WHERE v.job_id = ? ORDER BY v.vm_name, v.id";
    let rows = tx.rows(sql, args![id]).await?;
    let guids: Vec<String> =
        rows.iter().map(|row| Ok(row.opt_text("vm_guid")?.unwrap_or_default())).collect::<Result<_, Failure>>()?;
    let filter = Filter::within(scope, "s").and_in("s.vm_guid", guids);
    let mut protection = BTreeMap::new();
    for row in tx.rows(&format!("{SELECT} WHERE {}", filter.sql), &filter.args).await? {
        protection.insert(row.text("vm_guid")?, vm_status::status(&row, now)?);
    }
    let mut vms = Vec::new();
    for row in &rows {
        let (vm_id, guid) = (row.int("id")?, row.opt_text("vm_guid")?.unwrap_or_default());
        let last_point = newest.get(&vm_id).map(last_point).transpose()?;
        let is_tracked = row.opt_int("checkpoint")?.is_some();
        vms.push(JobVm {
            vm_id,
            vm_name: row.text("vm_name")?,
            generation: row.int("generation")?,
            is_linux: row.flag("is_linux")?,
            integration_services: row.flag("integration_services")?,
            rct_enabled: row.flag("rct_enabled")?,
            backup_enabled: row.flag("backup_enabled")?,
            state: row.opt_text("state")?,
            missing_since: row.opt_time("missing_since")?.map(time_text),
            disks: disks_of.remove(&vm_id).unwrap_or_default(),
            status: word(row, last_point.as_ref())?.into(),
            last_point,
            point_count: row.int("points")?,
            next_read: if is_tracked { "incremental" } else { "full" }.into(),
            tracking: Tracking { active: is_tracked, since: row.opt_time("tracked_since")?.map(time_text) },
            protection: protection.get(&guid).cloned(),
            vm_guid: guid,
        });
    }
    let job = JobHead { id, name: job.text("name")?, agent_id: job.opt_int("agent_id")?, status: job.text("status")? };
    Answer::ok(JobVms { job, vms })
}

/// `status` of a VM in its job (6.1).
fn word(row: &Row, last: Option<&LastPoint>) -> Result<&'static str, Failure> {
    if !row.flag("backup_enabled")? {
        return Ok("disabled");
    }
    if row.opt_time("missing_since")?.is_some() {
        return Ok("missing");
    }
    if row.opt_text("last_state")?.as_deref() == Some("failed") {
        return Ok("failed");
    }
    Ok(match last {
        None => "never",
        Some(point) if point.has_warnings => "warning",
        Some(_) => "ok",
    })
}

fn last_point(row: &Row) -> Result<LastPoint, Failure> {
    Ok(LastPoint {
        id: row.int("id")?,
        run_id: row.int("run_id")?,
        backup_type: row.text("backup_type")?,
        consistency_level: row.text("consistency_level")?,
        created_at: time_text(row.time("created_at")?),
        total_size_bytes: row.opt_int("total_size_bytes")?,
        changed_size_bytes: row.opt_int("changed_size_bytes")?,
        has_warnings: row.flag("has_warnings")?,
        full_reason: row.opt_text("full_reason")?,
    })
}

/// A disk of a VM, in the names of 5.1.
pub fn disk(row: &Row) -> Result<Json, Failure> {
    Ok(json!({
        "id": row.int("id")?,
        "path": row.text("disk_path")?,
        "controller_type": row.text("controller_type")?,
        "controller_number": row.int("controller_number")?,
        "controller_location": row.int("controller_location")?,
        "size_bytes": row.opt_int("size_bytes")?,
        "used_bytes": row.opt_int("used_bytes")?,
        "vhd_format": row.text("vhd_format")?,
        "rct_enabled": row.flag("rct_enabled")?,
        "virtual_disk_id": row.opt_text("virtual_disk_id")?,
        "excluded_reason": row.opt_text("excluded_reason")?,
    }))
}

/// `cloudbackup_hyperv_toggle_vm.php`: a person takes a VM out of its job, or in again.
pub async fn toggle(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: ToggleVm = call.read()?;
    if asked.reason.as_ref().is_some_and(|reason| reason.chars().count() > 255) {
        return Err(Failure::invalid("reason", "longer than 255 characters"));
    }
    let mut tx = call.app.db.write().await?;
    let vm = own_row(&mut tx, person.scope, "s3_hyperv_vms", asked.vm_id, Code::NotFound).await?;
    let columns = [("backup_enabled", asked.enabled.into()), ("updated_at", now.into())];
    tx.update("s3_hyperv_vms", &columns, "id = ?", args![asked.vm_id]).await?;
    let columns: [(&str, Value); 3] = if asked.enabled {
        [("excluded_by", Value::Null), ("excluded_at", Value::Null), ("excluded_reason", Value::Null)]
    } else {
        [
            ("excluded_by", person.user.into()),
            ("excluded_at", now.into()),
            ("excluded_reason", asked.reason.clone().into()),
        ]
    };
    let condition = "client_id = ? AND vm_guid = ? AND agent_id = ?";
    let place = args![person.scope.client, vm.opt_text("vm_guid")?, vm.opt_int("agent_id")?];
    tx.update("s3_host_vms", &columns, condition, place).await?;
    let entry = Entry {
        action: "vm.toggle",
        entity: "vm",
        id: asked.vm_id.to_string(),
        before: Some(json!({ "enabled": vm.flag("backup_enabled")? })),
        after: Some(json!({ "enabled": asked.enabled, "reason": asked.reason })),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    vm_status::refresh(call.app, person.scope.client, now).await?;
    Answer::done()
}
