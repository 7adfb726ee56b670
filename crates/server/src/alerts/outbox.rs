//! Sends messages until their receivers have them.
//!
//! A message is taken by one instance at a time, with a lease: what an instance that died had taken is sent by another.
//! Of one rule's messages about one alert the next goes out when the one before has.

use std::sync::Arc;

use control_api::words::AlertChannel;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::mail::{self, Letter};
use super::text;
use super::webhook::{self, Call};
use crate::App;
use crate::args;
use crate::clock::after;
use crate::failure::Failure;
use crate::outgoing::Reach;
use crate::secret;
use crate::store::{Row, Value};
use crate::vault;

/// A message that was taken is this instance's for so long; longer than any receiver's patience.
const LEASE_SECS: i64 = 120;
/// So many are on their way at once.
const AT_ONCE: usize = 8;
/// Given up after so many tries: a day and a half.
const MOST_TRIES: i64 = 40;
/// And after so many when the receiver said that another try is of no use.
const LASTING_TRIES: i64 = 5;

/// Why a message did not arrive.
#[derive(Debug)]
pub struct Trouble {
    /// In words, the receiver's where it gave any.
    pub why: String,
    /// Another try will hardly help.
    pub is_lasting: bool,
}

impl Trouble {
    /// It may go better later.
    pub fn passing(why: impl Into<String>) -> Trouble {
        Trouble { why: why.into(), is_lasting: false }
    }

    /// It will hardly.
    pub fn lasting(why: impl Into<String>) -> Trouble {
        Trouble { why: why.into(), is_lasting: true }
    }
}

/// What follows a try that failed, the `tries`th; none means that it is given up.
pub fn next_try(tries: i64, is_lasting: bool, now: Timestamp) -> Option<Timestamp> {
    if tries >= if is_lasting { LASTING_TRIES } else { MOST_TRIES } {
        return None;
    }
    let doubled = 30_i64.saturating_mul(1 << (tries - 1).clamp(0, 20));
    Some(after(now, doubled.min(3600)))
}

/// Sends until it is stopped.
pub async fn run(app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(app.settings.tick) => {}
        }
        if let Err(failure) = send_due(&app).await {
            error!("send messages: {}", failure.cause.map_or(failure.message, |cause| cause.to_string()));
        }
    }
}

/// One round over what is due; how many were sent.
pub async fn send_due(app: &Arc<App>) -> Result<usize, Failure> {
    let now = app.clock.now();
    let sql = format!("SELECT d.id FROM s3_alert_deliveries d WHERE {DUE} ORDER BY d.next_attempt_at, d.id LIMIT 50");
    let due = app.db.read().await?.rows(&sql, args![now, now]).await?;
    let (mut tasks, mut sent) = (JoinSet::new(), 0);
    for row in due {
        if tasks.len() >= AT_ONCE {
            sent += usize::from(done(tasks.join_next().await));
        }
        let (app, id) = (app.clone(), row.int("id")?);
        tasks.spawn(async move {
            let tried = deliver(&app, id).await;
            tried.inspect_err(|failure| warn!(delivery = id, "{failure:?}")).unwrap_or(false)
        });
    }
    while let Some(ended) = tasks.join_next().await {
        sent += usize::from(done(Some(ended)));
    }
    Ok(sent)
}

fn done(ended: Option<Result<bool, tokio::task::JoinError>>) -> bool {
    ended.is_some_and(|ended| ended.unwrap_or(false))
}

/// Due, or left behind by one that died; and nothing of the same rule and alert goes before it.
const DUE: &str = "((d.status = 'waiting' AND d.next_attempt_at <= ?) OR (d.status = 'sending' AND d.lease_until < ?)) \
                   AND NOT EXISTS (SELECT 1 FROM s3_alert_deliveries e WHERE e.alert_id = d.alert_id \
                   AND e.rule_id = d.rule_id AND e.id < d.id AND e.status IN ('waiting', 'sending'))";

/// Takes one message and sends it; whether this instance did.
async fn deliver(app: &Arc<App>, id: i64) -> Result<bool, Failure> {
    let now = app.clock.now();
    let lease = secret::id128()?;
    let mut tx = app.db.write().await?;
    let taken = tx
        .change(
            "UPDATE s3_alert_deliveries SET status = 'sending', attempts = attempts + 1, lease_token = ?, lease_until = ? \
             WHERE id = ? AND ((status = 'waiting' AND next_attempt_at <= ?) OR (status = 'sending' AND lease_until < ?))",
            args![&lease, after(now, LEASE_SECS), id, now, now],
        )
        .await?;
    if taken == 0 {
        return Ok(false);
    }
    let row = tx.row("SELECT * FROM s3_alert_deliveries WHERE id = ?", args![id]).await?;
    let row = row.ok_or_else(|| Failure::internal("a message that is gone"))?;
    let key = match row.opt_int("secret_id")? {
        Some(secret) => {
            let aad = vault::webhook_aad(row.int("client_id")?);
            Some(vault::kept(&mut tx, &app.vault, secret, &aad).await?)
        }
        None => None,
    };
    tx.commit().await?;
    let outcome = hand_over(app, &row, key, now).await?;
    let attempts = row.int("attempts")?;
    let (status, answer, next) = match outcome {
        Ok(answer) => {
            info!(delivery = id, event = row.text("event")?, "delivered");
            ("delivered", answer, None)
        }
        Err(Trouble { why, is_lasting }) => match next_try(attempts, is_lasting, now) {
            Some(next) => ("waiting", why, Some(spread(next, id, attempts))),
            None => {
                error!(delivery = id, attempts, "given up: {why}");
                ("given_up", why, None)
            }
        },
    };
    let mut columns: Vec<(&str, Value)> = vec![
        ("status", status.into()),
        ("answer", text::line(&answer, 1000).into()),
        ("lease_token", Value::Null),
        ("lease_until", Value::Null),
    ];
    match next {
        Some(next) => columns.push(("next_attempt_at", next.into())),
        None => columns.push(("finished_at", app.clock.now().into())),
    }
    let mut tx = app.db.write().await?;
    // Where the lease ended meanwhile, whoever has it now says how it went.
    tx.update("s3_alert_deliveries", &columns, "id = ? AND lease_token = ?", args![id, &lease]).await?;
    tx.commit().await?;
    Ok(status == "delivered")
}

/// Up to a tenth later, so that what failed together does not come back together.
fn spread(at: Timestamp, id: i64, attempts: i64) -> Timestamp {
    let step = (id.wrapping_mul(7919).wrapping_add(attempts)).rem_euclid(3000);
    at.saturating_add(SignedDuration::from_millis(step)).unwrap_or(at)
}

async fn hand_over(
    app: &Arc<App>,
    row: &Row,
    key: Option<String>,
    now: Timestamp,
) -> Result<Result<String, Trouble>, Failure> {
    let (id, event, target) = (row.int("id")?, row.text("event")?, row.text("target")?);
    let payload: Json = row.opt_json("payload_json")?.unwrap_or_default();
    let server = app.public_url();
    let channel = row.word("channel", AlertChannel::of_word)?;
    let thread = match row.opt_int("alert_id")? {
        Some(alert) => Some(format!("e3-alert-{alert}-{}", row.int("episode")?)),
        None => None,
    };
    let (mail, reach) = (app.settings.mail.clone(), reach(app));
    let work = move || match channel {
        AlertChannel::Mail => {
            let Some(mail) = mail else {
                return Err(Trouble::passing("this server was not told how to send mail (--mail-relay)"));
            };
            let is_summary = event == "summary";
            let text = if is_summary {
                crate::report::summary::text(&payload, &server)
            } else {
                text::of_alert(&event, &payload, &server)
            };
            let letter = Letter { to: target, is_blind: is_summary, text, id: format!("e3-delivery-{id}"), thread };
            mail::send(&mail, &letter)
        }
        AlertChannel::Webhook => {
            let Some(key) = key else { return Err(Trouble::lasting("the rule has no key")) };
            let body = json!({
                "schema": 1,
                "delivery_id": id,
                "event": event,
                "sent_at": crate::store::time_text(now),
                "server": server,
                "alert": payload,
            });
            let body = body.to_string();
            webhook::send(&Call { url: &target, delivery: id, event: &event, body: &body, key: &key, at: now }, &reach)
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(Failure::internal)
}

/// Where this server's webhooks may go.
pub fn reach(app: &App) -> Reach {
    let reach = Reach::new(app.settings.allow_private_webhooks, "--allow-private-webhooks");
    Reach { roots_pem: app.settings.webhook_roots_pem.clone(), ..reach }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_slower_and_end() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().expect("time");
        for (tries, is_lasting, expected) in [
            (1, false, Some(30)),
            (2, false, Some(60)),
            (7, false, Some(1920)),
            (8, false, Some(3600)),
            (39, false, Some(3600)),
            (40, false, None),
            (1, true, Some(30)),
            (4, true, Some(240)),
            (5, true, None),
        ] {
            let next = next_try(tries, is_lasting, now).map(|next| next.duration_since(now).as_secs());
            assert_eq!(next, expected, "try {tries}, lasting {is_lasting}");
        }
    }
}
