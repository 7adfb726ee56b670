//! Signing in with an OpenID Connect provider, and which providers a client has (spec control-api 6.2, console 3.17).

use control_api::account::{
    BeginOidc, BegunOidc, FinishOidc, GroupRole, OidcProvider, OidcProviderAnswer, OidcProviderRef,
    OidcProviderRequest, OidcProviders, Page,
};
use control_api::words::Role;
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::{Window, own_row, session};
use crate::access::audit::{self, Actor, Entry};
use crate::access::{Filter, password, person};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::oidc::{self, Exchange, Secrets, Subject};
use crate::secret;
use crate::store::{Row, Tx, Value};
use crate::vault;

fn redirect_uri(call: &Call<'_>) -> String {
    format!("{}/oidc", call.app.public_url())
}

/// `console_oidc_start.php`: where to sign in. What comes back from there goes to `console_oidc_finish.php`, by the same
/// browser.
pub async fn start(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: BeginOidc = call.read()?;
    person::check_origin(call.app, &call.headers)?;
    limit(call, now)?;
    let provider = provider(call, &asked.provider).await?;
    let issuer = provider.text("issuer")?;
    let (state, browser) = (secret::token("")?, secret::token("")?);
    let secrets = Secrets { nonce: secret::token("")?, verifier: secret::token("")? };
    let app = call.app.oidc.clone();
    let asked_issuer = issuer.clone();
    let metadata = tokio::task::spawn_blocking(move || app.metadata(&asked_issuer, now)).await;
    let metadata = metadata.map_err(Failure::internal)?.map_err(unreachable)?;
    let mut address =
        url::Url::parse(&metadata.authorization_endpoint).map_err(|_| unreachable("no address to sign in at"))?;
    address.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", &provider.text("oidc_client_id")?),
        ("redirect_uri", &redirect_uri(call)),
        ("scope", &provider.text("scopes")?),
        ("state", &state),
        ("nonce", &secrets.nonce),
        ("code_challenge", &oidc::challenge(&secrets.verifier)),
        ("code_challenge_method", "S256"),
    ]);
    let hash = secret::hash(&state);
    let kept = serde_json::to_string(&secrets).map_err(Failure::internal)?;
    let mut tx = call.app.db.write().await?;
    tx.change("DELETE FROM s3_oidc_logins WHERE expires_at <= ?", args![now]).await?;
    let columns = [
        ("state_hash", hash.into()),
        ("provider_id", provider.int("id")?.into()),
        ("browser_hash", secret::hash(&browser).into()),
        ("wrapped", call.app.vault.wrap(&aad(&hash), &kept)?.into()),
        ("created_at", now.into()),
        ("expires_at", after(now, oidc::LOGIN_SECS).into()),
    ];
    tx.insert("s3_oidc_logins", &columns).await?;
    tx.commit().await?;
    let cookie =
        format!("{}={browser}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={}", oidc::COOKIE, oidc::LOGIN_SECS);
    Ok(Answer::ok(BegunOidc { authorization_url: address.into() })?.set_cookie(cookie))
}

fn aad(state: &[u8; 32]) -> String {
    format!("login {}", crate::hex(state))
}

fn limit(call: &Call<'_>, now: Timestamp) -> Result<(), Failure> {
    call.app.limits.logins.check(&format!("address {}", call.ip), now).map_err(Failure::limited)
}

/// The provider is not there: nobody's fault who calls.
fn unreachable(why: impl std::fmt::Display) -> Failure {
    tracing::warn!("{why}");
    Failure::with(Code::Conflict, "The sign-in provider cannot be used at the moment; the server's log says why")
}

async fn provider(call: &Call<'_>, slug: &str) -> Result<Row, Failure> {
    let sql = "SELECT p.* FROM s3_oidc_providers p JOIN s3_clients c ON c.id = p.client_id \
               WHERE p.slug = ? AND p.is_active = 1 AND c.status = 'active'";
    call.app.db.read().await?.row(sql, args![slug]).await?.ok_or_else(|| Code::NotFound.into())
}

/// `console_oidc_finish.php`: what the provider sent back with the person.
pub async fn finish(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: FinishOidc = call.read()?;
    person::check_origin(call.app, &call.headers)?;
    limit(call, now)?;
    let (provider, secrets) = match taken(call, &asked, now).await {
        Err(failure) if failure.code == Code::Unauthorized => {
            call.app.limits.logins.count(format!("address {}", call.ip), now);
            return Err(failure);
        }
        other => other?,
    };
    let subject = match redeem(call, &provider, &asked, secrets, now).await {
        Ok(subject) => subject,
        Err(why) => {
            call.app.limits.logins.count(format!("address {}", call.ip), now);
            return refuse(call, &provider, why, Code::Unauthorized, now).await;
        }
    };
    enter(call, &provider, &subject, now).await
}

/// The login that was begun under that state in this browser; it serves once.
async fn taken(call: &Call<'_>, asked: &FinishOidc, now: Timestamp) -> Result<(Row, Secrets), Failure> {
    let hash = secret::hash(&asked.state);
    let browser = person::cookie(&call.headers, oidc::COOKIE).unwrap_or_default();
    let mut tx = call.app.db.write().await?;
    let sql = format!(
        "SELECT l.wrapped, l.browser_hash, l.expires_at, p.* FROM s3_oidc_logins l \
         JOIN s3_oidc_providers p ON p.id = l.provider_id WHERE l.state_hash = ? AND p.is_active = 1{}",
        tx.for_update()
    );
    let row = tx.row(&sql, args![hash]).await?.ok_or(Code::Unauthorized)?;
    // Another browser's: the one that began may still go on.
    if !secret::same(&secret::hash(&browser), &row.bytes("browser_hash")?) {
        return Err(Code::Unauthorized.into());
    }
    if tx.change("DELETE FROM s3_oidc_logins WHERE state_hash = ?", args![hash]).await? == 0 {
        return Err(Code::Unauthorized.into());
    }
    tx.commit().await?;
    if row.time("expires_at")? <= now {
        return Err(Code::Unauthorized.into());
    }
    let secrets = call.app.vault.unwrap(&aad(&hash), &row.bytes("wrapped")?)?;
    let secrets = serde_json::from_str(&secrets).map_err(Failure::internal)?;
    Ok((row, secrets))
}

async fn redeem(
    call: &Call<'_>,
    provider: &Row,
    asked: &FinishOidc,
    secrets: Secrets,
    now: Timestamp,
) -> Result<Subject, String> {
    let told = |error: Failure| format!("{error:?}");
    let text = |name: &str| provider.text(name).map_err(|error| error.to_string());
    let issuer = text("issuer")?;
    let client_secret = client_secret(call, provider).await.map_err(told)?;
    let exchange = Exchange {
        client_id: text("oidc_client_id")?,
        client_secret,
        code: asked.code.clone(),
        verifier: secrets.verifier,
        nonce: secrets.nonce,
        redirect_uri: redirect_uri(call),
        wanted: vec!["email".into(), text("groups_claim")?],
        issuer: issuer.clone(),
    };
    let (cache, told_issuer) = (call.app.oidc.clone(), asked.iss.clone());
    let done = tokio::task::spawn_blocking(move || {
        let metadata = cache.metadata(&issuer, now).map_err(|error| error.to_string())?;
        // A code of another provider must not be redeemed here, and ours not there (RFC 9207).
        let must_name = metadata.authorization_response_iss_parameter_supported;
        if told_issuer.as_ref().is_some_and(|told| *told != issuer) || (must_name && told_issuer.is_none()) {
            return Err("the answer is not of this provider".to_owned());
        }
        cache.redeem(&exchange, now).map_err(|error| error.to_string())
    });
    done.await.map_err(|error| error.to_string())?
}

async fn client_secret(call: &Call<'_>, provider: &Row) -> Result<Option<String>, Failure> {
    let Some(id) = provider.opt_int("secret_id")? else { return Ok(None) };
    let aad = vault::provider_aad(provider.int("client_id")?);
    Ok(Some(vault::kept(&mut call.app.db.read().await?, &call.app.vault, id, &aad).await?))
}

/// Nobody is signed in; the audit log says why, the caller learns the kind.
async fn refuse(call: &Call<'_>, provider: &Row, why: String, code: Code, now: Timestamp) -> Result<Answer, Failure> {
    let actor = Actor { client: Some(provider.int("client_id")?), ..call.actor() };
    let id = provider.int("id")?.to_string();
    let after = Some(json!({ "why": why }));
    let entry = Entry { action: "login.failed", entity: "oidc_provider", id, before: None, after };
    let mut tx = call.app.db.write().await?;
    audit::record(&mut tx, &actor, now, entry).await?;
    tx.commit().await?;
    match code {
        Code::Unauthorized => Err(code.into()),
        code => Err(Failure::with(code, why)),
    }
}

/// Signs in the person that the provider vouches for, with the role that their groups give now.
async fn enter(call: &Call<'_>, provider: &Row, subject: &Subject, now: Timestamp) -> Result<Answer, Failure> {
    let (client, provider_id) = (provider.int("client_id")?, provider.int("id")?);
    let mapping: Vec<GroupRole> = provider.opt_json("mapping_json")?.unwrap_or_default();
    let groups = subject.claims.get(&provider.text("groups_claim")?).map(oidc::texts).unwrap_or_default();
    let Some(grant) = oidc::role_of(&mapping, &groups).cloned() else {
        let why = "None of your groups has a role here".to_owned();
        return refuse(call, provider, why, Code::ForbiddenRole, now).await;
    };
    let mut tx = call.app.db.write().await?;
    // It was asked over the network: meanwhile it may have been switched off, or become another's.
    let sql = format!("SELECT issuer, is_active FROM s3_oidc_providers WHERE id = ?{}", tx.for_update());
    let still = tx.row(&sql, args![provider_id]).await?.ok_or(Code::Unauthorized)?;
    if !still.flag("is_active")? || still.text("issuer")? != provider.text("issuer")? {
        drop(tx);
        let why = "The provider was changed meanwhile".to_owned();
        return refuse(call, provider, why, Code::Unauthorized, now).await;
    }
    if let Some(tenant) = grant.tenant_id {
        let sql = "SELECT COUNT(*) FROM s3_backup_tenants WHERE id = ? AND client_id = ? AND status = 'active'";
        if tx.count(sql, args![tenant, client]).await? == 0 {
            drop(tx);
            let why = "The tenant of your group is not active".to_owned();
            return refuse(call, provider, why, Code::ForbiddenRole, now).await;
        }
    }
    let sql = format!(
        "SELECT u.id, u.status, r.role, r.tenant_id FROM s3_console_identities i JOIN s3_console_users u \
         ON u.id = i.user_id JOIN s3_console_roles r ON r.user_id = u.id \
         WHERE i.provider_id = ? AND i.subject = ?{}",
        tx.for_update()
    );
    let known = tx.row(&sql, args![provider_id, &subject.id]).await?;
    let user = match known {
        Some(row) if row.text("status")? != "active" => {
            drop(tx);
            return refuse(call, provider, "The account is disabled".into(), Code::Unauthorized, now).await;
        }
        Some(row) => {
            let user = row.int("id")?;
            if row.word("role", Role::of_word)? != grant.role || row.opt_int("tenant_id")? != grant.tenant_id {
                change_role(&mut tx, user, &grant, now).await?;
            }
            user
        }
        None => match new_account(&mut tx, client, provider_id, subject, &grant, now).await? {
            Ok(user) => user,
            Err(why) => {
                drop(tx);
                return refuse(call, provider, why, Code::Conflict, now).await;
            }
        },
    };
    let amr = subject.claims.get("amr").map(oidc::texts).unwrap_or_default();
    let has_both = provider.flag("counts_as_mfa")? || oidc::is_multi_factor(&amr);
    let (token, csrf_token) = person::begin(&mut tx, user, has_both.then_some(now), call.ip, now).await?;
    tx.change("UPDATE s3_console_users SET last_login_at = ? WHERE id = ?", args![now, user]).await?;
    let actor = Actor { client: Some(client), tenant: grant.tenant_id, kind: "user", id: Some(user), ..call.actor() };
    let after = Some(json!({ "provider": provider_id, "role": grant.role.word(), "tenant_id": grant.tenant_id }));
    let entry = Entry { action: "login", entity: "user", id: user.to_string(), before: None, after };
    audit::record(&mut tx, &actor, now, entry).await?;
    tx.commit().await?;
    session::logged_in(call, user, csrf_token, &token).await
}

/// Another role or tenant ends what was begun under the former one.
async fn change_role(tx: &mut Tx, user: i64, grant: &GroupRole, now: Timestamp) -> Result<(), Failure> {
    let columns = [("role", grant.role.word().into()), ("tenant_id", Value::from(grant.tenant_id))];
    tx.update("s3_console_roles", &columns, "user_id = ?", args![user]).await?;
    tx.update("s3_console_users", &columns[1..], "id = ?", args![user]).await?;
    let end = "UPDATE s3_console_sessions SET revoked_at = ? WHERE user_id = ? AND revoked_at IS NULL";
    tx.change(end, args![now, user]).await?;
    Ok(())
}

/// An account for somebody new, without a password; or why not.
async fn new_account(
    tx: &mut Tx,
    client: i64,
    provider: i64,
    subject: &Subject,
    grant: &GroupRole,
    now: Timestamp,
) -> Result<Result<i64, String>, Failure> {
    let email = subject.claims.get("email").and_then(Json::as_str).unwrap_or_default();
    let Ok(email) = session::check_email(email) else {
        return Ok(Err("The provider names no mail address of yours".into()));
    };
    if subject.claims.get("email_verified").is_some_and(|verified| verified != &json!(true)) {
        return Ok(Err("The provider has not verified your mail address".into()));
    }
    // An account with a password is not taken over by whoever the provider gives its address.
    if tx.count("SELECT COUNT(*) FROM s3_console_users WHERE email = ?", args![&email]).await? > 0 {
        return Ok(Err("There is an account with your mail address, which does not sign in this way".into()));
    }
    // A password that nobody knows.
    let hash = password::hash(secret::token("")?).await?;
    let user = session::insert_user(tx, client, grant.tenant_id, &email, &hash, grant.role, now).await?;
    let columns = [
        ("user_id", user.into()),
        ("provider_id", provider.into()),
        ("subject", subject.id.clone().into()),
        ("created_at", now.into()),
    ];
    tx.insert("s3_console_identities", &columns).await?;
    Ok(Ok(user))
}

fn on_wire(row: &Row) -> Result<OidcProvider, Failure> {
    Ok(OidcProvider {
        id: row.int("id")?,
        name: row.text("name")?,
        slug: row.text("slug")?,
        issuer: row.text("issuer")?,
        oidc_client_id: row.text("oidc_client_id")?,
        has_client_secret: row.opt_int("secret_id")?.is_some(),
        scopes: row.text("scopes")?,
        groups_claim: row.text("groups_claim")?,
        mapping: row.opt_json("mapping_json")?.unwrap_or_default(),
        counts_as_mfa: row.flag("counts_as_mfa")?,
        is_active: row.flag("is_active")?,
    })
}

/// `e3backup_oidc_list.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let scope = call.scope()?;
    if scope.tenant.is_some() {
        return Answer::ok(OidcProviders { providers: Vec::new(), total: 0 });
    }
    let mut tx = call.app.db.read().await?;
    let filter = Filter::within(scope, "p");
    let count = format!("SELECT COUNT(*) FROM s3_oidc_providers p WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!("SELECT p.* FROM s3_oidc_providers p WHERE {} ORDER BY p.name, p.id{}", filter.sql, window.sql());
    let providers = tx.rows(&sql, &filter.args).await?.iter().map(on_wire).collect::<Result<_, _>>()?;
    Answer::ok(OidcProviders { providers, total })
}

/// `e3backup_oidc_save.php`: who may enter by which group is as much as any role, so a fresh second factor is asked for.
pub async fn save(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: OidcProviderRequest = call.read()?;
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    person.require_fresh(now)?;
    let mut tx = call.app.db.write().await?;
    let client = person.scope.client;
    let before = match asked.id {
        Some(id) => Some(own_row(&mut tx, person.scope, "s3_oidc_providers", id, Code::NotFound).await?),
        None => None,
    };
    if asked.issuer.as_ref().is_some_and(|issuer| !call.app.oidc.may_ask(issuer)) {
        let why = "is an https address in the public network, without a user in it (the server's \
                   --allow-private-sign-in allows others)";
        return Err(Failure::validation(&[("issuer".into(), why.into())]));
    }
    let mut columns = columns(&asked, before.is_none())?;
    if let (Some(row), Some(issuer)) = (&before, &asked.issuer)
        && row.text("issuer")? != *issuer
    {
        // Nobody enters through it while this is decided.
        let sql = format!("SELECT id FROM s3_oidc_providers WHERE id = ?{}", tx.for_update());
        tx.row(&sql, args![row.int("id")?]).await?;
        let sql = "SELECT COUNT(*) FROM s3_console_identities WHERE provider_id = ?";
        if tx.count(sql, args![row.int("id")?]).await? > 0 {
            // Another issuer gives its own people names that may be those of people known here.
            let why = "has accounts: make another provider for another issuer".to_owned();
            return Err(Failure::validation(&[("issuer".into(), why)]));
        }
    }
    for grant in asked.mapping.iter().flatten() {
        if let Some(tenant) = grant.tenant_id {
            super::tenant_for(&mut tx, person.scope, Some(tenant)).await?;
        }
    }
    if let Some(given) = &asked.client_secret {
        let aad = vault::provider_aad(client);
        let kind = "oidc_client_secret";
        let kept = vault::keep(&mut tx, &call.app.vault, client, kind, &aad, given, now).await?;
        columns.push(("secret_id", kept.into()));
    }
    columns.push(("updated_at", now.into()));
    let id = match &before {
        Some(row) => {
            let id = row.int("id")?;
            tx.update("s3_oidc_providers", &columns, "id = ?", args![id]).await?;
            id
        }
        None => {
            columns.extend([("client_id", client.into()), ("created_at", now.into())]);
            match tx.insert("s3_oidc_providers", &columns).await {
                Err(error) if error.is_duplicate() => {
                    return Err(Failure::validation(&[("slug".into(), "is taken".into())]));
                }
                other => other?,
            }
        }
    };
    let row = own_row(&mut tx, person.scope, "s3_oidc_providers", id, Code::NotFound).await?;
    let provider = on_wire(&row)?;
    let before = before.as_ref().map(on_wire).transpose()?.map(|before| json!(before));
    let after = Some(json!(provider));
    let entry = Entry { action: "oidc.save", entity: "oidc_provider", id: id.to_string(), before, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(OidcProviderAnswer { provider })
}

fn columns(asked: &OidcProviderRequest, is_new: bool) -> Result<Vec<(&'static str, Value)>, Failure> {
    let mut wrong: Vec<(String, String)> = Vec::new();
    let mut columns: Vec<(&'static str, Value)> = Vec::new();
    for (name, value, default, most) in [
        ("name", &asked.name, None, 191),
        ("slug", &asked.slug, None, 100),
        ("issuer", &asked.issuer, None, 512),
        ("oidc_client_id", &asked.oidc_client_id, None, 255),
        ("scopes", &asked.scopes, Some("openid email profile"), 255),
        ("groups_claim", &asked.groups_claim, Some("groups"), 64),
    ] {
        match value.as_deref().or(default.filter(|_| is_new)) {
            Some(text) if text.trim().is_empty() || text.chars().count() > most => {
                wrong.push((name.into(), format!("has 1 to {most} characters")));
            }
            Some(text) => columns.push((name, text.into())),
            None if is_new => wrong.push((name.into(), "is missing".into())),
            None => {}
        }
    }
    let is_slug =
        |slug: &String| slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if asked.slug.as_ref().is_some_and(|slug| !is_slug(slug)) {
        wrong.push(("slug".into(), "has small letters, digits and hyphens".into()));
    }
    if asked.scopes.as_ref().is_some_and(|scopes| !scopes.split(' ').any(|scope| scope == "openid")) {
        wrong.push(("scopes".into(), "openid is one of them".into()));
    }
    if asked.mapping.as_ref().is_some_and(|mapping| mapping.len() > 500) {
        wrong.push(("mapping".into(), "has at most 500 rules".into()));
    }
    if !wrong.is_empty() {
        return Err(Failure::validation(&wrong));
    }
    if asked.mapping.is_some() || is_new {
        columns.push(("mapping_json", json!(asked.mapping.clone().unwrap_or_default()).into()));
    }
    columns.extend(asked.counts_as_mfa.map(|counts| ("counts_as_mfa", counts.into())));
    columns.extend(asked.is_active.map(|is_active| ("is_active", is_active.into())));
    Ok(columns)
}

/// `e3backup_oidc_delete.php`: the accounts that came by it stay, and cannot sign in any more.
pub async fn delete(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: OidcProviderRef = call.read()?;
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    person.require_fresh(now)?;
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, person.scope, "s3_oidc_providers", asked.provider_id, Code::NotFound).await?;
    let end = "UPDATE s3_console_sessions SET revoked_at = ? WHERE revoked_at IS NULL AND user_id IN \
               (SELECT user_id FROM s3_console_identities WHERE provider_id = ?)";
    tx.change(end, args![now, asked.provider_id]).await?;
    tx.change("DELETE FROM s3_oidc_providers WHERE id = ?", args![asked.provider_id]).await?;
    let before = Some(json!(on_wire(&row)?));
    let id = asked.provider_id.to_string();
    let entry = Entry { action: "oidc.delete", entity: "oidc_provider", id, before, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}
