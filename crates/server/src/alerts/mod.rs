//! Alerts: who is told what, once (console 3.14).
//!
//! `facts` reads what is known, [`causes`] says what of it is wrong and [`steps`] what that changes, both as pure
//! functions of the clock; `record` writes the change and, in the same transaction, a message for everybody whom
//! [`rules`] names. [`outbox`] sends messages until their receivers have them. A kill at any moment loses none: a
//! message is a row before it is sent and until its receiver said that it has it. It may come twice, with the same id,
//! when a server dies between those two.

pub mod causes;
pub mod facts;
pub mod mail;
pub mod outbox;
pub mod record;
pub mod rules;
pub mod steps;
pub mod text;
pub mod webhook;

use jiff::Timestamp;

use crate::App;
use crate::args;
use crate::failure::Failure;
use crate::store::Tx;

pub use causes::{Cause, Subject, Thresholds};

/// Looks at every client.
pub async fn evaluate_all(app: &App, now: Timestamp) -> Result<(), Failure> {
    let clients = app.db.read().await?.rows("SELECT id FROM s3_clients WHERE status = 'active'", args![]).await?;
    for client in clients {
        evaluate(app, client.int("id")?, None, now).await?;
    }
    Ok(())
}

/// Looks at one client. `chain` is what a check of the audit log just found, if there was one.
///
/// Most looks find nothing to change, on a connection that keeps nobody from writing. What is to change is looked at
/// again under the client's lock: of two instances the second finds it done.
pub async fn evaluate(app: &App, client: i64, chain: Option<bool>, now: Timestamp) -> Result<(), Failure> {
    let mut tx = app.db.read().await?;
    let is_quiet = record::todo(&mut tx, client, chain, now).await?.is_empty();
    drop(tx);
    if is_quiet {
        return Ok(());
    }
    let name = format!("alerts-{client}");
    make_lock(app, &name, now).await?;
    let mut tx = app.db.write().await?;
    let lock = format!("SELECT name FROM server_leases WHERE name = ?{}", tx.for_update());
    tx.row(&lock, args![&name]).await?;
    let todo = record::todo(&mut tx, client, chain, now).await?;
    record::apply(&mut tx, client, todo, now).await?;
    tx.commit().await?;
    Ok(())
}

/// A row to lock. In a transaction of its own: on MySQL one that met a row of another instance may not go on.
async fn make_lock(app: &App, name: &str, now: Timestamp) -> Result<(), Failure> {
    let known = "SELECT COUNT(*) FROM server_leases WHERE name = ?";
    if app.db.read().await?.count(known, args![name]).await? > 0 {
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    tx.insert_new("server_leases", &[("name", name.into()), ("holder", "all".into()), ("until", now.into())]).await?;
    Ok(tx.commit().await?)
}

/// Checks the audit log once a day, and tells every client when it does not hang together (spec control-api 10.6).
pub async fn check_chain(app: &App, now: Timestamp) -> Result<(), Failure> {
    if !crate::deletion::take_turn(app, "audit", 86_400, now).await? {
        return Ok(());
    }
    let is_intact = crate::access::audit::is_intact(&mut app.db.read().await?).await?;
    for client in app.db.read().await?.rows("SELECT id FROM s3_clients WHERE status = 'active'", args![]).await? {
        evaluate(app, client.int("id")?, Some(is_intact), now).await?;
    }
    Ok(())
}

/// The client's own thresholds.
pub async fn thresholds(tx: &mut Tx, client: i64) -> Result<Thresholds, Failure> {
    let row = tx.row("SELECT settings_json FROM s3_cloudbackup_settings WHERE client_id = ?", args![client]).await?;
    let settings: Option<control_api::Object> = row.map(|row| row.opt_json("settings_json")).transpose()?.flatten();
    let stored = settings.and_then(|mut settings| settings.remove("alerts"));
    Ok(stored.and_then(|stored| serde_json::from_value(stored).ok()).unwrap_or_default())
}
