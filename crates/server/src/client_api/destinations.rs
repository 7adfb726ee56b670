//! Destinations and the repositories in them (spec control-api 4.7, 4.8). Keys go in and never come out.

use control_api::destination::{DestinationAnswer, DestinationRequest, DestinationRow, Destinations};
use control_api::repository::{Repositories, Repository};
use serde_json::json;

use super::{Window, own_row, tenant_for};
use crate::access::audit::{self, Entry};
use crate::access::{Filter, Scope};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Tx, Value};
use crate::vault;

/// `cloudbackup_destination_create.php`: with the one repository that lies in it.
pub async fn create(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DestinationRequest = call.read()?;
    let place = Place::of(&asked)?;
    let name = asked.name.clone().filter(|name| !name.trim().is_empty()).ok_or_else(|| Failure::missing("name"))?;
    let client = person.scope.client;
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    place.check_alone(&mut tx).await?;
    let secret_id = match &asked.secret_key {
        Some(key) => Some(keep(&mut tx, call, client, key).await?),
        None => None,
    };
    let columns = [
        ("client_id", client.into()),
        ("tenant_id", tenant.into()),
        ("name", name.clone().into()),
        ("dest_type", place.kind.into()),
        ("endpoint", place.endpoint.clone().into()),
        ("region", asked.region.clone().into()),
        ("bucket", place.bucket.clone().into()),
        ("prefix", place.prefix.clone().into()),
        ("place_hash", place.hash().into()),
        ("path_style", asked.path_style.clone().unwrap_or_else(|| "path".into()).into()),
        ("access_key", asked.access_key.clone().into()),
        ("secret_id", secret_id.into()),
        ("ca_bundle_pem", asked.ca_bundle_pem.clone().into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    let id = match tx.insert("s3_cloudbackup_destinations", &columns).await {
        Err(error) if error.is_duplicate() => return Err(taken()),
        other => other?,
    };
    make_repository(&mut tx, call, client, tenant, id, &asked, &place).await?;
    let after = json!({ "name": name, "endpoint": place.endpoint, "bucket": place.bucket, "prefix": place.prefix });
    let entry = Entry {
        action: "destination.create",
        entity: "destination",
        id: id.to_string(),
        before: None,
        after: Some(after),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let row = read(&mut tx, person.scope, id).await?;
    tx.commit().await?;
    Answer::ok(DestinationAnswer { destination: on_wire(&row)? })
}

fn taken() -> Failure {
    Failure::validation(&[("prefix".into(), "another destination lies there, above it or below it".into())])
}

/// What a place is found by.
pub fn place_hash(kind: &str, endpoint: &str, bucket: &str, prefix: &str) -> [u8; 32] {
    secret::hash(&format!("{kind}\n{endpoint}\n{bucket}\n{prefix}"))
}

/// Where a destination lies.
struct Place {
    kind: &'static str,
    endpoint: String,
    bucket: String,
    prefix: String,
}

impl Place {
    fn of(asked: &DestinationRequest) -> Result<Place, Failure> {
        let mut wrong: Vec<(String, String)> = Vec::new();
        let mut say = |field: &str, why: &str| wrong.push((field.to_owned(), why.to_owned()));
        let prefix = asked.prefix.clone().unwrap_or_default();
        let is_relative = !prefix.starts_with('/') && !prefix.split('/').any(|part| part == ".." || part == ".");
        if !is_relative || prefix.chars().count() > 1024 || (!prefix.is_empty() && !prefix.ends_with('/')) {
            say("prefix", "ends with a slash, begins with none, and has no dots as parts");
        }
        if asked.path_style.as_ref().is_some_and(|style| !["auto", "path", "virtual"].contains(&style.as_str())) {
            say("path_style", "is auto, path or virtual");
        }
        let place = match asked.dest_type.as_deref().unwrap_or("s3") {
            "local" => {
                let path = asked.dest_local_path.clone().unwrap_or_default();
                if path.is_empty() || path.chars().count() > 512 {
                    say("dest_local_path", "is a path on the agent's machine");
                }
                Place { kind: "local", endpoint: path, bucket: String::new(), prefix }
            }
            "s3" => {
                let endpoint = asked.endpoint.clone().unwrap_or_default();
                if let Err(why) = check_endpoint(&endpoint, asked.allow_http) {
                    say("endpoint", why);
                }
                let bucket = asked.bucket.clone().unwrap_or_default();
                let is_bucket = (3..=63).contains(&bucket.len())
                    && bucket
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
                    && !bucket.starts_with(['-', '.'])
                    && !bucket.ends_with(['-', '.']);
                if !is_bucket {
                    say("bucket", "has 3 to 63 small letters, digits, dots and hyphens");
                }
                if asked.access_key.as_ref().is_none_or(|key| key.is_empty() || key.len() > 191) {
                    say("access_key", "is missing");
                }
                if asked.secret_key.as_ref().is_none_or(String::is_empty) {
                    say("secret_key", "is missing");
                }
                Place { kind: "s3", endpoint, bucket, prefix }
            }
            _ => {
                say("dest_type", "is s3 or local");
                Place { kind: "s3", endpoint: String::new(), bucket: String::new(), prefix }
            }
        };
        if wrong.is_empty() { Ok(place) } else { Err(Failure::validation(&wrong)) }
    }

    fn hash(&self) -> [u8; 32] {
        place_hash(self.kind, &self.endpoint, &self.bucket, &self.prefix)
    }

    /// No destination of anybody lies in the same place, above it or below it: two repositories would be one (4.7).
    async fn check_alone(&self, tx: &mut Tx) -> Result<(), Failure> {
        // A folder is a folder of one machine only, and which, nobody here knows.
        if self.kind == "local" {
            return Ok(());
        }
        let sql = "SELECT prefix FROM s3_cloudbackup_destinations WHERE endpoint = ? AND bucket = ? AND is_active = 1";
        for row in tx.rows(sql, args![&self.endpoint, &self.bucket]).await? {
            let other = row.text("prefix")?;
            if other.starts_with(&self.prefix) || self.prefix.starts_with(&other) {
                return Err(taken());
            }
        }
        Ok(())
    }
}

fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), &'static str> {
    let url = url::Url::parse(endpoint).map_err(|_| "is an address like https://s3.example.com")?;
    let is_loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => return Err("names no host"),
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && (is_loopback || allow_http)) {
        return Err("is https");
    }
    let is_bare = url.path().trim_matches('/').is_empty() && url.query().is_none() && url.fragment().is_none();
    if !is_bare || !url.username().is_empty() || url.password().is_some() || endpoint.chars().count() > 512 {
        return Err("has no path, query or user in it");
    }
    Ok(())
}

async fn keep(tx: &mut Tx, call: &Call<'_>, client: i64, key: &str) -> Result<i64, Failure> {
    let (aad, now) = (vault::destination_aad(client), call.app.clock.now());
    vault::keep(tx, &call.app.vault, client, vault::STORE_KEY, &aad, key, now).await
}

/// A repository's password is made once, here, and does not depend on the keys of the store (4.8).
async fn make_repository(
    tx: &mut Tx,
    call: &Call<'_>,
    client: i64,
    tenant: Option<i64>,
    destination: i64,
    asked: &DestinationRequest,
    place: &Place,
) -> Result<(), Failure> {
    let now = call.app.clock.now();
    let repository = uuid::Uuid::new_v4().simple().to_string();
    let password = match &asked.repository_password {
        Some(password) if password.is_empty() => return Err(Failure::invalid("repository_password", "empty")),
        Some(password) => password.clone(),
        None => secret::token("")?,
    };
    let columns = [
        ("repository_id", repository.clone().into()),
        ("client_id", client.into()),
        ("tenant_id", tenant.into()),
        ("bucket_id", destination.into()),
        ("root_prefix", place.prefix.clone().into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    let id = tx.insert("s3_cloudbackup_repositories", &columns).await?;
    let aad = vault::repository_aad(&repository, 1);
    let columns: [(&str, Value); 8] = [
        ("repository_ref", id.into()),
        ("key_version", 1_i64.into()),
        ("wrap_alg", secret::WRAP_ALGORITHM.into()),
        ("wrapped_repo_secret", call.app.vault.wrap(&aad, &password)?.into()),
        ("kek_ref", call.app.vault.key_ref.clone().into()),
        ("mode", "v2".into()),
        ("created_at", now.into()),
        ("created_by", call.person()?.user.into()),
    ];
    tx.insert("s3_cloudbackup_repository_keys", &columns).await?;
    Ok(())
}

async fn read(tx: &mut Tx, scope: Scope, id: i64) -> Result<Row, Failure> {
    let filter = Filter::within(scope, "d").and("d.id = ?", id);
    let sql = format!("{SELECT} WHERE {}", filter.sql);
    tx.row(&sql, &filter.args).await?.ok_or_else(|| Code::NotFound.into())
}

const SELECT: &str = "SELECT d.*, r.repository_id FROM s3_cloudbackup_destinations d \
                      LEFT JOIN s3_cloudbackup_repositories r ON r.bucket_id = d.id AND r.status = 'active'";

fn on_wire(row: &Row) -> Result<DestinationRow, Failure> {
    let key = row.opt_text("access_key")?;
    let last4 = key.map(|key| key.chars().rev().take(4).collect::<Vec<_>>().into_iter().rev().collect());
    Ok(DestinationRow {
        id: row.int("id")?,
        name: row.text("name")?,
        tenant_id: row.opt_int("tenant_id")?,
        dest_type: row.text("dest_type")?,
        endpoint: row.text("endpoint")?,
        region: row.opt_text("region")?,
        bucket: row.text("bucket")?,
        prefix: row.text("prefix")?,
        path_style: row.text("path_style")?,
        access_key_last4: last4,
        is_active: row.flag("is_active")?,
        repository_id: row.opt_text("repository_id")?,
    })
}

/// `cloudbackup_destination_list.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "d");
    let mut tx = call.app.db.read().await?;
    let total = tx
        .count(&format!("SELECT COUNT(*) FROM s3_cloudbackup_destinations d WHERE {}", filter.sql), &filter.args)
        .await?;
    let sql = format!("{SELECT} WHERE {} ORDER BY d.name, d.id{}", filter.sql, window.sql());
    let rows = tx.rows(&sql, &filter.args).await?;
    let destinations = rows.iter().map(on_wire).collect::<Result<_, _>>()?;
    Answer::ok(Destinations { destinations, total })
}

/// `cloudbackup_destination_update.php`: its name and keys; a destination does not move.
pub async fn update(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DestinationRequest = call.read()?;
    let id = asked.id.ok_or_else(|| Failure::missing("id"))?;
    for (field, is_asked) in [
        ("endpoint", asked.endpoint.is_some()),
        ("bucket", asked.bucket.is_some()),
        ("prefix", asked.prefix.is_some()),
        ("dest_local_path", asked.dest_local_path.is_some()),
        ("repository_password", asked.repository_password.is_some()),
    ] {
        if is_asked {
            return Err(Failure::validation(&[(field.into(), "cannot be changed: make a new destination".into())]));
        }
    }
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, person.scope, "s3_cloudbackup_destinations", id, Code::NotFound).await?;
    let mut columns: Vec<(&str, Value)> = vec![("updated_at", now.into())];
    if let Some(name) = &asked.name {
        columns.push(("name", name.into()));
    }
    if let Some(key) = &asked.access_key {
        columns.push(("access_key", key.into()));
    }
    if let Some(pem) = &asked.ca_bundle_pem {
        columns.push(("ca_bundle_pem", pem.into()));
    }
    if let Some(key) = &asked.secret_key {
        let secret = keep(&mut tx, call, row.int("client_id")?, key).await?;
        columns.push(("secret_id", secret.into()));
    }
    tx.update("s3_cloudbackup_destinations", &columns, "id = ?", args![id]).await?;
    let after = json!({ "name": asked.name, "keys_changed": asked.secret_key.is_some() || asked.access_key.is_some() });
    let entry = Entry {
        action: "destination.update",
        entity: "destination",
        id: id.to_string(),
        before: None,
        after: Some(after),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let row = read(&mut tx, person.scope, id).await?;
    tx.commit().await?;
    Answer::ok(DestinationAnswer { destination: on_wire(&row)? })
}

/// `cloudbackup_repository_list.php`.
pub async fn repositories(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "r").and_sql("r.status <> 'deleted'");
    let mut tx = call.app.db.read().await?;
    let total = tx
        .count(&format!("SELECT COUNT(*) FROM s3_cloudbackup_repositories r WHERE {}", filter.sql), &filter.args)
        .await?;
    let sql = format!(
        "SELECT r.*, (SELECT COUNT(*) FROM s3_hyperv_backup_points p WHERE p.repository_id = r.repository_id \
         AND p.deleted_at IS NULL) AS points FROM s3_cloudbackup_repositories r WHERE {} ORDER BY r.id{}",
        filter.sql,
        window.sql()
    );
    let mut repositories = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        repositories.push(Repository {
            id: row.int("id")?,
            repository_id: row.text("repository_id")?,
            destination_id: row.opt_int("bucket_id")?,
            root_prefix: row.text("root_prefix")?,
            status: row.text("status")?,
            point_count: row.int("points")?,
        });
    }
    Answer::ok(Repositories { repositories, total })
}
