//! Reports (spec control-api 6.2, console 3.15): protection as JSON, CSV and a page, runs day by day, daily summaries.

use std::collections::BTreeMap;

use control_api::report::{
    History, HistoryDay, HistoryQuery, Report, ReportQuery, ReportRow, ReportSchedule, ReportScheduleRequest,
    ReportSchedules,
};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde_json::json;

use super::{tenant_for, vms};
use crate::access::audit::{self, Entry};
use crate::access::{Filter, Scope};
use crate::alerts::mail;
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::report::kept::{Kept, kept};
use crate::report::{csv, page, period, summary};
use crate::store::{Row, Tx, time_text};
use crate::vm_status;

/// Points of so many VMs are read at a time.
const VMS_AT_ONCE: usize = 500;
/// Points that the report counts: those that could be restored then, also when retention took them since.
const COUNTED: &str = "(p.verify_status IS NULL OR p.verify_status = 'ok')";

/// The client's name and time zone.
async fn client(tx: &mut Tx, scope: Scope) -> Result<(String, String, TimeZone), Failure> {
    let row = tx.row("SELECT name, timezone FROM s3_clients WHERE id = ?", args![scope.client]).await?;
    let row = row.ok_or(Code::NotFound)?;
    let name = row.opt_text("timezone")?.unwrap_or_else(|| "UTC".into());
    let (name, zone) = match TimeZone::get(&name) {
        Ok(zone) => (name, zone),
        Err(_) => ("UTC".to_owned(), TimeZone::UTC),
    };
    Ok((row.text("name")?, name, zone))
}

/// The scope narrowed to a tenant that was asked for.
fn narrowed(scope: Scope, tenant: Option<i64>) -> Result<Scope, Failure> {
    match (scope.tenant, tenant) {
        (_, None) => Ok(scope),
        (Some(own), Some(asked)) if own != asked => Err(Code::NotFound.into()),
        (_, Some(asked)) => Ok(Scope { tenant: Some(asked), ..scope }),
    }
}

/// `cloudbackup_report.php`.
pub async fn protection(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: ReportQuery = call.read()?;
    let format = asked.format.as_deref().unwrap_or("json");
    if !["json", "csv", "html"].contains(&format) {
        return Err(Failure::invalid("format", "is json, csv or html"));
    }
    let scope = narrowed(call.scope()?, asked.tenant_id)?;
    let now = call.app.clock.now();
    let mut tx = call.app.db.read().await?;
    if let Some(tenant) = asked.tenant_id {
        tenant_for(&mut tx, call.scope()?, Some(tenant)).await?;
    }
    let (client, timezone, zone) = client(&mut tx, scope).await?;
    let (from, to) = period::period(asked.from.as_deref(), asked.to.as_deref(), &zone, now)
        .map_err(|(field, why)| Failure::invalid(field, why))?;
    let filter = Filter::within(scope, "s");
    let states = vms::states(&mut tx, &filter).await?;
    let sql = format!(
        "SELECT s.*, a.hostname, t.name AS tenant_name, h.seen_since, h.excluded_at, h.excluded_reason \
         FROM vm_status s LEFT JOIN s3_cloudbackup_agents a ON a.id = s.agent_id \
         LEFT JOIN s3_backup_tenants t ON t.id = s.tenant_id \
         LEFT JOIN (SELECT client_id, vm_guid, MIN(created_at) AS seen_since, MAX(excluded_at) AS excluded_at, \
         MAX(excluded_reason) AS excluded_reason FROM s3_host_vms WHERE client_id = ? GROUP BY client_id, vm_guid) h \
         ON h.vm_guid = s.vm_guid WHERE {} ORDER BY s.severity, s.vm_name, s.id",
        filter.sql
    );
    let values: Vec<crate::store::Value> = std::iter::once(scope.client.into()).chain(filter.args.clone()).collect();
    let rows = tx.rows(&sql, &values).await?;
    let (mut vms, mut covered, mut whole) = (Vec::new(), 0_i64, 0_i64);
    for rows in rows.chunks(VMS_AT_ONCE) {
        let mut points = points(&mut tx, scope, rows, from, to).await?;
        for row in rows {
            let points = points.remove(&row.text("vm_guid")?).unwrap_or_default();
            let (row, kept) = report_row(row, points, from, to, now)?;
            if let Some(kept) = kept {
                covered = covered.saturating_add(kept.covered_secs);
                whole = whole.saturating_add(kept.period_secs);
            }
            vms.push(row);
        }
    }
    drop(tx);
    let report = Report {
        client,
        timezone,
        from: time_text(from),
        to: time_text(to),
        made_at: time_text(now),
        states,
        kept_basis_points: Kept::basis_points(covered, whole),
        vms,
    };
    match format {
        "csv" => Ok(Answer::text("text/csv; charset=utf-8", csv::text(page::cells(&report)))),
        "html" => Ok(Answer::page(page::html(&report), &page::style_sha256())),
        _ => Answer::ok(report),
    }
}

/// Times of the points of these VMs, those of the period and the last one before it.
async fn points(
    tx: &mut Tx,
    scope: Scope,
    rows: &[Row],
    from: Timestamp,
    to: Timestamp,
) -> Result<BTreeMap<String, Vec<Row>>, Failure> {
    let guids: Vec<String> = rows.iter().map(|row| row.text("vm_guid")).collect::<Result<_, _>>()?;
    let filter = Filter::within(scope, "p").and_in("p.vm_guid", guids);
    let before = format!(
        "SELECT p.vm_guid, MAX(p.snapshot_time) AS snapshot_time, MAX(p.verified_at) AS verified_at \
         FROM s3_hyperv_backup_points p WHERE {} AND p.snapshot_time < ? AND {COUNTED} GROUP BY p.vm_guid",
        filter.sql
    );
    let mut all = tx.rows(&before, &filter.args_and(args![from])).await?;
    let within = format!(
        "SELECT p.vm_guid, p.snapshot_time, p.verified_at FROM s3_hyperv_backup_points p \
         WHERE {} AND p.snapshot_time >= ? AND p.snapshot_time < ? AND {COUNTED} ORDER BY p.snapshot_time",
        filter.sql
    );
    all.extend(tx.rows(&within, &filter.args_and(args![from, to])).await?);
    let mut points: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in all {
        points.entry(row.text("vm_guid")?).or_default().push(row);
    }
    Ok(points)
}

fn report_row(
    row: &Row,
    points: Vec<Row>,
    from: Timestamp,
    to: Timestamp,
    now: Timestamp,
) -> Result<(ReportRow, Option<Kept>), Failure> {
    let times: Vec<Timestamp> = points.iter().map(|point| point.time("snapshot_time")).collect::<Result<_, _>>()?;
    let verified: Vec<Option<Timestamp>> =
        points.iter().map(|point| point.opt_time("verified_at")).collect::<Result<_, _>>()?;
    let status = vm_status::status(row, now)?;
    // A VM that is newer than the period owes nothing for the time before it was there.
    let begin = row.opt_time("seen_since")?.map_or(from, |seen| seen.max(from));
    let target = status.target_seconds.map(SignedDuration::from_secs);
    let judged = target.filter(|_| begin < to).map(|target| kept(&times, target, begin, to));
    let remark = match row.opt_time("excluded_at")? {
        Some(at) => {
            let why = row.opt_text("excluded_reason")?.filter(|why| !why.is_empty());
            Some(format!("excluded {}{}", time_text(at), why.map(|why| format!(": {why}")).unwrap_or_default()))
        }
        None => None,
    };
    let counted = times.iter().filter(|at| **at >= from).count();
    let row = ReportRow {
        vm_guid: row.text("vm_guid")?,
        vm_name: row.text("vm_name")?,
        tenant: row.opt_text("tenant_name")?,
        hostname: row.opt_text("hostname")?,
        kept_basis_points: judged.and_then(|kept| Kept::basis_points(kept.covered_secs, kept.period_secs)),
        longest_gap_seconds: judged.map(|kept| kept.longest_gap_secs),
        points: i64::try_from(counted).unwrap_or(i64::MAX),
        newest_snapshot_time: row.opt_time("newest_snapshot_time")?.map(time_text),
        verified_at: verified.into_iter().flatten().max().map(time_text),
        remark,
        status,
    };
    Ok((row, judged))
}

/// `e3backup_backup_history.php`: days of the client's calendar, the oldest first.
pub async fn history(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: HistoryQuery = call.read()?;
    let days = asked.days.unwrap_or(30);
    if !(1..=366).contains(&days) {
        return Err(Failure::invalid("days", "is 1 to 366"));
    }
    let scope = narrowed(call.scope()?, asked.tenant_id)?;
    let now = call.app.clock.now();
    let mut tx = call.app.db.read().await?;
    if let Some(tenant) = asked.tenant_id {
        tenant_for(&mut tx, call.scope()?, Some(tenant)).await?;
    }
    let (_, timezone, zone) = client(&mut tx, scope).await?;
    let today = zone.to_datetime(now).date();
    let first = today.checked_sub((days - 1).days()).map_err(Failure::internal)?;
    let from = period::begin(first, &zone).unwrap_or_else(|| after(now, -days * 86_400));
    let mut found: BTreeMap<String, HistoryDay> = BTreeMap::new();
    for back in 0..days {
        let day = today.checked_sub(back.days()).map_err(Failure::internal)?.to_string();
        found
            .insert(day.clone(), HistoryDay { day, runs: control_api::Object::new(), bytes_transferred: 0, points: 0 });
    }
    // By hour: of every zone on earth that is near enough to say the day, but for some with half an hour.
    let filter =
        Filter::within(scope, "r").and("r.created_at >= ?", after(from, -86_400)).and("r.finished_at >= ?", from);
    let sql = format!(
        "SELECT r.finished_at, r.status, r.bytes_transferred FROM s3_cloudbackup_runs r \
         WHERE {} AND (r.run_type IS NULL OR r.run_type = 'backup')",
        filter.sql
    );
    let day_of = |at: Timestamp| zone.to_datetime(at).date().to_string();
    for row in tx.rows(&sql, &filter.args).await? {
        let Some(day) = found.get_mut(&day_of(row.time("finished_at")?)) else { continue };
        let count = day.runs.entry(row.text("status")?).or_insert_with(|| json!(0));
        *count = json!(count.as_i64().unwrap_or(0) + 1);
        day.bytes_transferred = day.bytes_transferred.saturating_add(row.opt_int("bytes_transferred")?.unwrap_or(0));
    }
    let filter = Filter::within(scope, "p").and("p.created_at >= ?", from);
    let sql = format!("SELECT p.created_at FROM s3_hyperv_backup_points p WHERE {}", filter.sql);
    for row in tx.rows(&sql, &filter.args).await? {
        if let Some(day) = found.get_mut(&day_of(row.time("created_at")?)) {
            day.points += 1;
        }
    }
    Answer::ok(History { timezone, days: found.into_values().collect() })
}

/// `cloudbackup_report_schedules.php`.
pub async fn schedules(call: &Call<'_>) -> Result<Answer, Failure> {
    let filter = Filter::within(call.scope()?, "s");
    let sql = format!("SELECT s.* FROM s3_report_schedules s WHERE {} ORDER BY s.id LIMIT 1000", filter.sql);
    let rows = call.app.db.read().await?.rows(&sql, &filter.args).await?;
    Answer::ok(ReportSchedules { schedules: rows.iter().map(schedule).collect::<Result<_, _>>()? })
}

fn schedule(row: &Row) -> Result<ReportSchedule, Failure> {
    Ok(ReportSchedule {
        id: row.int("id")?,
        tenant_id: row.opt_int("tenant_id")?,
        recipients: row.text("recipients")?,
        hour: row.int("hour")?,
        timezone: row.text("timezone")?,
        only_if_wrong: row.flag("only_if_wrong")?,
        enabled: row.flag("is_enabled")?,
        last_day: row.opt_text("last_day")?,
    })
}

/// `cloudbackup_report_schedule_save.php`: one for a client, and one for each tenant. The first mail is the next day's.
pub async fn save_schedule(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: ReportScheduleRequest = call.read()?;
    let hour = asked.hour.unwrap_or(7);
    if !(0..=23).contains(&hour) {
        return Err(Failure::invalid("hour", "is 0 to 23"));
    }
    if asked.recipients.chars().count() > 1000 {
        return Err(Failure::invalid("recipients", "longer than 1,000 characters"));
    }
    mail::addresses(&asked.recipients).map_err(|why| Failure::invalid("recipients", why))?;
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    let (_, usual, _) = client(&mut tx, person.scope).await?;
    let timezone = asked.timezone.clone().unwrap_or(usual);
    let is_known = timezone.chars().count() <= 64;
    let zone = TimeZone::get(&timezone).ok().filter(|_| is_known);
    let zone = zone.ok_or_else(|| Failure::invalid("timezone", "is no time zone like Europe/Berlin"))?;
    let mut columns = vec![
        ("recipients", asked.recipients.clone().into()),
        ("hour", hour.into()),
        ("timezone", timezone.into()),
        ("only_if_wrong", asked.only_if_wrong.into()),
        ("is_enabled", asked.enabled.unwrap_or(true).into()),
        ("updated_at", now.into()),
    ];
    let key = args![person.scope.client, tenant.unwrap_or(0)];
    let found = "SELECT * FROM s3_report_schedules WHERE client_id = ? AND tenant_key = ?";
    let before = tx.row(found, key).await?;
    if before.is_some() {
        tx.update("s3_report_schedules", &columns, "client_id = ? AND tenant_key = ?", key).await?;
    } else {
        columns.extend([
            ("client_id", person.scope.client.into()),
            ("tenant_id", tenant.into()),
            ("tenant_key", tenant.unwrap_or(0).into()),
            ("last_day", summary::due(None, hour, &zone, now).map(|day| day.to_string()).into()),
            ("created_at", now.into()),
        ]);
        tx.insert("s3_report_schedules", &columns).await?;
    }
    let row = tx.row(found, key).await?.ok_or_else(|| Failure::internal("a schedule that is gone"))?;
    let saved = schedule(&row)?;
    let entry = Entry {
        action: "report_schedule.save",
        entity: "report_schedule",
        id: saved.id.to_string(),
        before: before.as_ref().map(schedule).transpose()?.map(|before| json!(before)),
        after: Some(json!(saved)),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(saved)
}
