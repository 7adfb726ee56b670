//! Events and logs that agents push (spec control-api 2.4, 2.5).

use control_api::events::{
    AgentEvent, Event, PushAgentEvents, PushAgentEventsAnswer, PushEvents, PushEventsAnswer, PushLogChunk,
    PushLogChunkAnswer,
};
use control_api::words::Level;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::runs;
use crate::store::{Row, Tx, Value};

/// Events of a run; further ones are dropped (1.7).
const EVENTS_PER_RUN: i64 = 5_000;
/// Events of an agent in a day of UTC.
const AGENT_EVENTS_PER_DAY: i64 = 2_000;
/// Chunks of the verbose log of a run.
const CHUNKS_PER_RUN: i64 = 120;
/// A run that is over takes events for so long.
const LATE_SECS: i64 = 24 * 3600;
/// A compact body inflates to at most this.
const INFLATED: usize = 4 << 20;

/// The list that stands plain or compact.
fn listed<T: DeserializeOwned>(plain: Vec<T>, b64: Option<&str>, encoding: Option<&str>) -> Result<Vec<T>, Failure> {
    let Some(b64) = b64 else { return Ok(plain) };
    let value = super::compact(b64, encoding, INFLATED)?;
    serde_json::from_value(value).map_err(|error| Failure::invalid("events_b64", error))
}

/// `agent_push_events.php`.
pub async fn push_events(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: PushEvents = call.read()?;
    let events = listed(asked.events, asked.events_b64.as_deref(), asked.events_encoding.as_deref())?;
    let mut tx = call.app.db.write().await?;
    let run = runs::of_agent_locked(&mut tx, agent.id, &asked.run_id).await?;
    let id = run.int("id")?;
    if run.opt_time("finished_at")?.is_some_and(|end| after(end, LATE_SECS) < now) {
        return Err(Failure::with(Code::InvalidTransition, "The run ended more than a day ago"));
    }
    let mut answer = PushEventsAnswer {
        inserted: 0,
        dropped: 0,
        truncated: false,
        logs_inserted: 0,
        log_ref: asked.log_ref.clone(),
        duplicate: false,
    };
    if let Some(batch) = &asked.batch_id {
        let sql = "SELECT COUNT(*) FROM s3_cloudbackup_run_events WHERE run_id = ? AND batch_id = ?";
        if tx.count(sql, args![id, batch]).await? > 0 {
            answer.duplicate = true;
            return Answer::ok(answer);
        }
    }
    let mut count = tx.count("SELECT COUNT(*) FROM s3_cloudbackup_run_events WHERE run_id = ?", args![id]).await?;
    for (at, event) in events.iter().enumerate() {
        if count >= EVENTS_PER_RUN && !is_exempt(event) {
            answer.dropped += 1;
            continue;
        }
        insert(&mut tx, id, event, asked.batch_id.as_deref(), at, now).await?;
        answer.inserted += 1;
        count += 1;
    }
    if answer.dropped > 0 {
        answer.truncated = true;
        let sql = "SELECT COUNT(*) FROM s3_cloudbackup_run_events WHERE run_id = ? AND message_id = 'EVENTS_TRUNCATED'";
        if tx.count(sql, args![id]).await? == 0 {
            let params = json!({ "cap": EVENTS_PER_RUN });
            runs::events::write(&mut tx, id, "warning", "warn", "EVENTS_TRUNCATED", params, now).await?;
        }
    }
    for line in &asked.logs {
        let columns = [
            ("run_id", id.into()),
            ("created_at", now.into()),
            ("level", level(&line.level).into()),
            ("code", line.code.as_ref().map(|code| cut(code, 64)).into()),
            ("message", cut(&line.message, 16_384).into()),
            ("details_json", line.details_json.as_ref().map(|details| json!(details)).into()),
        ];
        tx.insert("s3_cloudbackup_run_logs", &columns).await?;
        answer.logs_inserted += 1;
    }
    // A sign of life, where the run still lives and the claim is right.
    if !runs::status(&run)?.is_terminal() && runs::update::check_claim(&run, agent, None).is_ok() {
        let seen = [("last_heartbeat_at", now.into()), ("lease_until", after(now, runs::LEASE_SECS).into())];
        tx.update("s3_cloudbackup_runs", &seen, "id = ?", args![id]).await?;
    }
    changes::touch(&mut tx, run.int("client_id")?, run.opt_int("tenant_id")?, &format!("run-{id}"), now).await?;
    tx.commit().await?;
    Answer::ok(answer)
}

/// What is never dropped: how it ended, and what went wrong.
fn is_exempt(event: &Event) -> bool {
    matches!(event.kind.as_str(), "error" | "summary" | "cancelled") || level(&event.level) == "error"
}

fn level(word: &str) -> &'static str {
    Level::lenient(word).unwrap_or(Level::Info).word()
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

async fn insert(
    tx: &mut Tx,
    run: i64,
    event: &Event,
    batch: Option<&str>,
    at: usize,
    now: Timestamp,
) -> Result<(), Failure> {
    let params = json!(event.params_json);
    if params.to_string().len() > 65_536 {
        return Err(Failure::invalid("params_json", "larger than 64 KiB"));
    }
    let seq = event.seq.or(i64::try_from(at).ok());
    let code = event.code.as_ref().unwrap_or(&event.message_id);
    let columns: [(&str, Value); 10] = [
        ("run_id", run.into()),
        ("ts", now.into()),
        ("type", cut(&event.kind, 32).into()),
        ("level", level(&event.level).into()),
        ("code", cut(code, 128).into()),
        ("message_id", cut(&event.message_id, 128).into()),
        ("params_json", params.into()),
        ("agent_ts", event.ts.as_ref().and_then(|ts| ts.parse::<Timestamp>().ok()).into()),
        ("agent_seq", seq.into()),
        ("batch_id", batch.map(|batch| cut(batch, 64)).into()),
    ];
    tx.insert("s3_cloudbackup_run_events", &columns).await?;
    Ok(())
}

/// `agent_push_agent_events.php`.
pub async fn push_agent_events(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: PushAgentEvents = call.read()?;
    let events: Vec<AgentEvent> = listed(asked.events, asked.events_b64.as_deref(), asked.events_encoding.as_deref())?;
    let mut tx = call.app.db.write().await?;
    let day = Timestamp::from_second(now.as_second() - now.as_second().rem_euclid(86_400)).unwrap_or(now);
    let today = "SELECT COUNT(*) FROM s3_cloudbackup_agent_events WHERE agent_id = ? AND ts >= ?";
    let mut count = tx.count(today, args![agent.id, day]).await?;
    let mut answer = PushAgentEventsAnswer { inserted: 0, dropped: 0, deduped: 0, truncated: false };
    for event in events {
        if let Some(key) = &event.dedupe_key {
            let since = after(now, -60);
            let sql =
                "SELECT COUNT(*) FROM s3_cloudbackup_agent_events WHERE agent_id = ? AND dedupe_key = ? AND ts > ?";
            if tx.count(sql, args![agent.id, cut(key, 191), since]).await? > 0 {
                answer.deduped += 1;
                continue;
            }
        }
        if count >= AGENT_EVENTS_PER_DAY {
            answer.dropped += 1;
            answer.truncated = true;
            continue;
        }
        let columns = [
            ("agent_id", agent.id.into()),
            ("ts", now.into()),
            ("source", cut(event.source.as_deref().unwrap_or("agent"), 16).into()),
            ("level", level(&event.level).into()),
            ("code", cut(&event.code, 64).into()),
            ("message_id", event.message_id.as_ref().map(|id| cut(id, 64)).into()),
            ("params_json", json!(event.params_json).into()),
            ("agent_ts", event.ts.as_ref().and_then(|ts| ts.parse::<Timestamp>().ok()).into()),
            ("dedupe_key", event.dedupe_key.as_ref().map(|key| cut(key, 191)).into()),
        ];
        tx.insert("s3_cloudbackup_agent_events", &columns).await?;
        if event.code == "CLOCK_SKEW" {
            let skew = event.params_json.get("skew_ms").and_then(serde_json::Value::as_i64);
            tx.update("s3_cloudbackup_agents", &[("clock_skew_ms", skew.into())], "id = ?", args![agent.id]).await?;
        }
        answer.inserted += 1;
        count += 1;
    }
    tx.commit().await?;
    Answer::ok(answer)
}

/// `agent_push_log_chunk.php`.
pub async fn push_log_chunk(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: PushLogChunk = call.read()?;
    if asked.chunk_seq < 0 {
        return Err(Failure::invalid("chunk_seq", "below zero"));
    }
    let encoding = if asked.encoding == "gzip" { "gzip+base64" } else { &asked.encoding };
    let text = super::inflate(&asked.content_b64, encoding, 16 << 20)?;
    let mut tx = call.app.db.write().await?;
    let run: Row = runs::of_agent_locked(&mut tx, agent.id, &asked.run_id).await?;
    let id = run.int("id")?;
    let count = tx.count("SELECT COUNT(*) FROM s3_cloudbackup_admin_log_chunks WHERE run_id = ?", args![id]).await?;
    let find = "SELECT COUNT(*) FROM s3_cloudbackup_admin_log_chunks WHERE run_id = ? AND chunk_seq = ?";
    let duplicate = tx.count(find, args![id, asked.chunk_seq]).await? > 0;
    let byte_count = i64::try_from(text.len()).unwrap_or(i64::MAX);
    if !duplicate {
        if count >= CHUNKS_PER_RUN {
            return Err(Code::ChunksCapReached.into());
        }
        let source = asked.source.as_deref().filter(|word| ["agent", "tray", "run"].contains(word)).unwrap_or("agent");
        let columns = [
            ("run_id", id.into()),
            ("chunk_seq", asked.chunk_seq.into()),
            ("source", source.into()),
            ("content", asked.content_b64.into_bytes().into()),
            ("line_count", asked.line_count.into()),
            ("created_at", now.into()),
        ];
        tx.insert("s3_cloudbackup_admin_log_chunks", &columns).await?;
    }
    tx.commit().await?;
    let remaining_capacity = CHUNKS_PER_RUN - count - i64::from(!duplicate);
    Answer::ok(PushLogChunkAnswer { byte_count, remaining_capacity, duplicate })
}

/// The params of a stored event.
pub fn params(row: &Row) -> Result<serde_json::Map<String, Json>, Failure> {
    Ok(row.opt_json("params_json")?.unwrap_or_default())
}
