//! Counts for the first screen (spec control-api 6.2).

use control_api::Object;
use control_api::protection::Dashboard;
use serde_json::json;

use super::{agents, vms};
use crate::access::Filter;
use crate::clock::after;
use crate::failure::Failure;
use crate::http::{Answer, Call};
use crate::vm_status;

/// `cloudbackup_dashboard.php`.
pub async fn get(call: &Call<'_>) -> Result<Answer, Failure> {
    let (scope, now) = (call.scope()?, call.app.clock.now());
    let mut tx = call.app.db.read().await?;
    let all = Filter::within(scope, "s");
    let states = vms::states(&mut tx, &all).await?;
    let worst = format!(
        "{} WHERE {} AND s.severity < 6 ORDER BY s.severity, s.newest_snapshot_time, s.id LIMIT 20",
        vms::SELECT,
        all.sql
    );
    let worst = tx.rows(&worst, &all.args).await?;
    let worst = worst.iter().map(|row| vm_status::on_wire(row, now, Vec::new())).collect::<Result<_, _>>()?;
    let filter = Filter::within(scope, "r").and("r.created_at >= ?", after(now, -86_400));
    let sql =
        format!("SELECT r.status, COUNT(*) AS runs FROM s3_cloudbackup_runs r WHERE {} GROUP BY r.status", filter.sql);
    let mut runs_last_24h = Object::new();
    for row in tx.rows(&sql, &filter.args).await? {
        runs_last_24h.insert(row.text("status")?, json!(row.int("runs")?));
    }
    let active = Filter::within(scope, "a").and_sql("a.status = 'active'");
    let count = format!("SELECT COUNT(*) FROM s3_cloudbackup_agents a WHERE {}", active.sql);
    let agents = tx.count(&count, &active.args).await?;
    let online = active.and("a.last_seen_at > ?", after(now, -agents::ONLINE_SECS));
    let count = format!("SELECT COUNT(*) FROM s3_cloudbackup_agents a WHERE {}", online.sql);
    let agents_online = tx.count(&count, &online.args).await?;
    let filter = Filter::within(scope, "p").and_sql("p.deleted_at IS NULL");
    let count = format!("SELECT COUNT(*) FROM s3_hyperv_backup_points p WHERE {}", filter.sql);
    let points = tx.count(&count, &filter.args).await?;
    Answer::ok(Dashboard { states, runs_last_24h, agents_online, agents_silent: agents - agents_online, points, worst })
}
