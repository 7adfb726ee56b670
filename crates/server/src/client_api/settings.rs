//! A client's settings (spec control-api 6.2).

use control_api::settings::{ClientSettings, SettingsRequest};
use jiff::tz::TimeZone;
use serde_json::{Map, Value as Json, json};

use crate::access::Need;
use crate::access::audit::{self, Entry};
use crate::access::gate::{self, Deed};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::store::{Tx, Value};

/// `cloudbackup_settings.php`: by GET what they are, by POST what shall change.
pub async fn settings(call: &Call<'_>) -> Result<Answer, Failure> {
    let client = call.scope()?.client;
    if call.method != axum::http::Method::POST {
        return Answer::ok(read(&mut call.app.db.read().await?, client).await?.1);
    }
    change(call).await
}

/// The settings as they are stored, with what this version does not interpret, and as they are told.
async fn read(tx: &mut Tx, client: i64) -> Result<(Map<String, Json>, ClientSettings), Failure> {
    let sql = format!("SELECT settings_json FROM s3_cloudbackup_settings WHERE client_id = ?{}", tx.for_update());
    let row = tx.row(&sql, args![client]).await?;
    let stored: Map<String, Json> =
        row.map(|row| row.opt_json("settings_json")).transpose()?.flatten().unwrap_or_default();
    let timezone = tx.row("SELECT timezone FROM s3_clients WHERE id = ?", args![client]).await?;
    let limits: Limits = serde_json::from_value(Json::Object(stored.clone())).unwrap_or_default();
    let policy = Policy::of(Some(Json::Object(stored.clone())));
    let told = ClientSettings {
        timezone: timezone.map(|row| row.opt_text("timezone")).transpose()?.flatten(),
        runs_per_agent: limits.runs_per_agent,
        runs_per_repository: limits.runs_per_repository,
        four_eyes: policy.four_eyes,
        delete_delay_hours: policy.delete_delay_hours,
        mfa_required_roles: policy.mfa_required_roles,
    };
    Ok((stored, told))
}

async fn change(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: SettingsRequest = call.read()?;
    // They are the whole client's.
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    check(&asked)?;
    let client = person.scope.client;
    let mut tx = call.app.db.write().await?;
    let (mut stored, before) = read(&mut tx, client).await?;
    let mut set = |name: &str, value: Option<Json>| {
        if let Some(value) = value {
            stored.insert(name.to_owned(), value);
        }
    };
    set("runs_per_agent", asked.runs_per_agent.map(Json::from));
    set("runs_per_repository", asked.runs_per_repository.map(Json::from));
    set("four_eyes", asked.four_eyes.map(Json::from));
    set("delete_delay_hours", asked.delete_delay_hours.map(Json::from));
    set("mfa_required_roles", asked.mfa_required_roles.as_ref().map(|roles| json!(roles)));
    let policy = Policy::of(Some(Json::Object(stored.clone())));
    let is_about_people = asked.four_eyes.is_some() || asked.mfa_required_roles.is_some();
    if is_about_people || asked.delete_delay_hours.is_some() {
        call.require(Need::Own)?;
    }
    let is_weaker = policy.is_weaker_than(&person.policy);
    if is_weaker {
        person.require_fresh(now)?;
    }
    let columns = [("settings_json", Json::Object(stored).into()), ("updated_at", now.into())];
    if tx.update("s3_cloudbackup_settings", &columns, "client_id = ?", args![client]).await? == 0 {
        let mut all: Vec<(&str, Value)> = columns.to_vec();
        all.push(("client_id", client.into()));
        tx.insert("s3_cloudbackup_settings", &all).await?;
    }
    if let Some(zone) = &asked.timezone {
        tx.change("UPDATE s3_clients SET timezone = ?, updated_at = ? WHERE id = ?", args![zone, now, client]).await?;
    }
    let (_, told) = read(&mut tx, client).await?;
    let entry = Entry {
        action: "settings.update",
        entity: "client",
        id: client.to_string(),
        before: Some(json!(before)),
        after: Some(json!(told)),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    if is_weaker {
        let deed = Deed { entity: "client", id: client.to_string(), tenant: None, reason: None };
        if let Some(waits) = gate::finish(tx, call, deed).await? {
            return Ok(waits);
        }
    } else {
        tx.commit().await?;
    }
    Answer::ok(told)
}

fn check(asked: &SettingsRequest) -> Result<(), Failure> {
    for (field, value, most) in
        [("runs_per_agent", asked.runs_per_agent, 64), ("runs_per_repository", asked.runs_per_repository, 1000)]
    {
        if value.is_some_and(|value| !(1..=most).contains(&value)) {
            return Err(Failure::invalid(field, format!("is 1 to {most}")));
        }
    }
    if asked.delete_delay_hours.is_some_and(|hours| !(0..=720).contains(&hours)) {
        return Err(Failure::invalid("delete_delay_hours", "is 0 to 720"));
    }
    if let Some(zone) = &asked.timezone
        && (TimeZone::get(zone).is_err() || zone.chars().count() > 64)
    {
        return Err(Failure::invalid("timezone", format!("{zone:?} is no time zone")));
    }
    Ok(())
}
