//! What machines ask of the server itself: is it alive, can it work, and its figures (`/healthz`, `/readyz`, `/metrics`).

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{agents, vms};
use crate::access::{Filter, Scope};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::metrics::Exposition;
use crate::store::Tx;

/// A database that answers later than this is as good as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// `/healthz`: the process answers; says nothing of the database.
pub async fn alive(_: &Call<'_>) -> Result<Answer, Failure> {
    Ok(Answer::text("text/plain; charset=utf-8", "ok\n".into()))
}

/// `/readyz`: the database answers too, so that a load balancer may send calls here.
pub async fn ready(call: &Call<'_>) -> Result<Answer, Failure> {
    let ask = async { call.app.db.read().await?.count("SELECT 1", args![]).await };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(_)) => Ok(Answer::text("text/plain; charset=utf-8", "ready\n".into())),
        Ok(Err(error)) => Err(Failure { cause: Failure::from(error).cause, ..Code::Maintenance.into() }),
        Err(_) => Err(Failure::with(Code::Maintenance, "The database does not answer within two seconds")),
    }
}

/// `/metrics`, in the text format of Prometheus: figures of the caller's scope, and of this process.
pub async fn metrics(call: &Call<'_>) -> Result<Answer, Failure> {
    let (scope, now) = (call.scope()?, call.app.clock.now());
    let mut out = Exposition::default();
    let started = Instant::now();
    let mut tx = call.app.db.read().await?;
    tx.count("SELECT 1", args![]).await?;
    let took = started.elapsed().as_secs_f64();
    out.gauge("e3_database_up", "Whether the database answers.", &[(&[], 1.0)]);
    out.gauge("e3_database_answer_seconds", "How long it took to answer the smallest question.", &[(&[], took)]);
    scoped(&mut tx, scope, now, &mut out).await?;
    drop(tx);
    out.counter(
        "e3_database_statements_total",
        "Statements of this instance since its start.",
        count(i64::try_from(call.app.db.query_count()).unwrap_or(i64::MAX)),
    );
    out.gauge("e3_live_streams", "Open streams of live updates.", &[(&[], call.app.live.streams())]);
    if let Some(bytes) = crate::metrics::resident_bytes() {
        out.gauge("process_resident_memory_bytes", "Memory of this process.", &[(&[], count(bytes))]);
    }
    out.gauge("e3_build_info", "The version.", &[(&[("version", env!("CARGO_PKG_VERSION"))], 1.0)]);
    Ok(Answer::text("text/plain; version=0.0.4; charset=utf-8", out.text()))
}

/// Everything that is somebody's. VMs are counted by the very query of the lists and the dashboard.
async fn scoped(tx: &mut Tx, scope: Scope, now: Timestamp, out: &mut Exposition) -> Result<(), Failure> {
    let states = vms::states(tx, &Filter::within(scope, "s")).await?;
    let samples = states.iter().map(|(state, vms)| (state.clone(), vms.as_i64().unwrap_or(0))).collect();
    words(out, "e3_vms", "VMs by protection state.", "state", samples);

    let filter = Filter::within(scope, "r").and_sql("r.status IN ('queued', 'starting', 'running')");
    let samples = by_word(tx, "r.status", "s3_cloudbackup_runs r", &filter, &["queued", "starting", "running"]).await?;
    words(out, "e3_runs", "Runs that are not over, by status.", "status", samples);
    let over = ["success", "warning", "partial_success", "failed", "cancelled"];
    let filter = Filter::within(scope, "r").and("r.created_at >= ?", after(now, -86_400)).and_in("r.status", over);
    let samples = by_word(tx, "r.status", "s3_cloudbackup_runs r", &filter, &over).await?;
    words(out, "e3_runs_ended_24h", "Runs of the last 24 hours that are over, by status.", "status", samples);
    let filter = Filter::within(scope, "r")
        .and_sql("r.status = 'queued'")
        .and("(r.not_before IS NULL OR r.not_before <= ?)", now);
    let oldest = format!(
        "SELECT MIN(COALESCE(r.not_before, r.created_at)) AS oldest FROM s3_cloudbackup_runs r WHERE {}",
        filter.sql
    );
    let oldest = tx.row(&oldest, &filter.args).await?.map(|row| row.opt_time("oldest")).transpose()?.flatten();
    let waits = oldest.map_or(0, |oldest| now.duration_since(oldest).as_secs().max(0));
    out.gauge("e3_queue_oldest_seconds", "How long the oldest run waits that may start.", &[(&[], count(waits))]);

    let active = Filter::within(scope, "a").and_sql("a.status = 'active'");
    let sql = format!("SELECT COUNT(*) FROM s3_cloudbackup_agents a WHERE {}", active.sql);
    let all = tx.count(&sql, &active.args).await?;
    let online = active.and("a.last_seen_at > ?", after(now, -agents::ONLINE_SECS));
    let sql = format!("SELECT COUNT(*) FROM s3_cloudbackup_agents a WHERE {}", online.sql);
    let online = tx.count(&sql, &online.args).await?;
    let samples = vec![("online".to_owned(), online), ("silent".to_owned(), all - online)];
    words(out, "e3_agents", "Active agents, by whether they were heard of within three minutes.", "state", samples);

    let filter = Filter::within(scope, "c").and_sql("c.status IN ('pending', 'processing')");
    let samples = by_word(tx, "c.status", "s3_cloudbackup_run_commands c", &filter, &["pending", "processing"]).await?;
    words(out, "e3_commands", "Commands that agents have not answered, by status.", "status", samples);
    let filter = Filter::within(scope, "p").and_sql("p.deleted_at IS NULL");
    let points = format!("SELECT COUNT(*) FROM s3_hyperv_backup_points p WHERE {}", filter.sql);
    out.gauge("e3_points", "Restore points.", &[(&[], count(tx.count(&points, &filter.args).await?))]);

    let filter = Filter::within(scope, "l").and_sql("l.state <> 'resolved'");
    let samples = by_word(tx, "l.kind", "s3_alerts l", &filter, control_api::words::AlertKind::WORDS).await?;
    words(out, "e3_alerts", "Alerts that are open or acknowledged, by kind.", "kind", samples);
    let states = ["waiting", "sending", "given_up"];
    let filter = Filter::within(scope, "d").and_in("d.status", states);
    let samples = by_word(tx, "d.status", "s3_alert_deliveries d", &filter, &states).await?;
    words(
        out,
        "e3_alert_deliveries",
        "Messages that did not reach their receivers (yet), by status.",
        "status",
        samples,
    );
    Ok(())
}

/// Rows by the word in a column; each of `words` is named, also where it has none.
async fn by_word(
    tx: &mut Tx,
    column: &str,
    table: &str,
    filter: &Filter,
    words: &[&str],
) -> Result<Vec<(String, i64)>, Failure> {
    let sql = format!("SELECT {column} AS word, COUNT(*) AS many FROM {table} WHERE {} GROUP BY {column}", filter.sql);
    let mut samples: Vec<(String, i64)> = words.iter().map(|word| ((*word).to_owned(), 0)).collect();
    for row in tx.rows(&sql, &filter.args).await? {
        let word = row.text("word")?;
        if let Some(sample) = samples.iter_mut().find(|(known, _)| *known == word) {
            sample.1 = row.int("many")?;
        }
    }
    Ok(samples)
}

fn words(out: &mut Exposition, name: &str, help: &str, label: &str, samples: Vec<(String, i64)>) {
    let labels: Vec<([(&str, &str); 1], f64)> =
        samples.iter().map(|(word, many)| ([(label, word.as_str())], count(*many))).collect();
    let samples: Vec<(&[(&str, &str)], f64)> = labels.iter().map(|(labels, many)| (labels.as_slice(), *many)).collect();
    out.gauge(name, help, &samples);
}

#[expect(clippy::cast_precision_loss, reason = "the format knows no other numbers")]
fn count(many: i64) -> f64 {
    many as f64
}
