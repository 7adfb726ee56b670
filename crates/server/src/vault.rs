//! Keys of destinations and repositories: read wrapped, unwrapped when they are handed out (spec control-api 4.8).

use control_api::Object;
use control_api::run::Destination;
use jiff::Timestamp;

use crate::args;
use crate::failure::Failure;
use crate::secret::{self, Vault};
use crate::store::{Row, Tx};

/// What the key of a destination is called among the secrets.
pub const STORE_KEY: &str = "s3_secret_key";

/// The wrapped keys of a job.
#[derive(Debug)]
pub struct Keys {
    destination: Option<Row>,
    secret: Option<(String, Vec<u8>)>,
    repository: Option<(String, Vec<u8>, String)>,
    format: Option<Object>,
}

/// The keys in clear, for one delivery. Neither printed nor kept.
pub struct Opened {
    /// With access and secret key.
    pub destination: Destination,
    /// None in the customer's own mode.
    pub repository_password: Option<String>,
    /// How the password came to be.
    pub mode: Option<String>,
    /// For a new repository.
    pub format: Option<Object>,
}

/// The place that a destination's secret is bound to.
pub fn destination_aad(client: i64) -> String {
    format!("destination of client {client}")
}

/// The place that a repository's password is bound to.
pub fn repository_aad(repository: &str, key_version: i64) -> String {
    format!("repository {repository} key {key_version}")
}

/// The place that the key of a client's webhooks is bound to.
pub fn webhook_aad(client: i64) -> String {
    format!("webhook of client {client}")
}

/// The place that the secret of a client's sign-in provider is bound to.
pub fn provider_aad(client: i64) -> String {
    format!("sign-in provider of client {client}")
}

/// Wraps a secret of a client and keeps it; its id. `aad` is the place that it is bound to.
pub async fn keep(
    tx: &mut Tx,
    vault: &Vault,
    client: i64,
    kind: &str,
    aad: &str,
    secret: &str,
    now: Timestamp,
) -> Result<i64, Failure> {
    let columns = [
        ("client_id", client.into()),
        ("kind", kind.into()),
        ("wrapped", vault.wrap(aad, secret)?.into()),
        ("wrap_alg", secret::WRAP_ALGORITHM.into()),
        ("kek_ref", vault.key_ref.clone().into()),
        ("key_version", 1_i64.into()),
        ("aad", aad.into()),
        ("created_at", now.into()),
    ];
    Ok(tx.insert("s3_secrets", &columns).await?)
}

/// A secret that was kept for that place, in clear. One that was put there from another place does not open.
pub async fn kept(tx: &mut Tx, vault: &Vault, id: i64, aad: &str) -> Result<String, Failure> {
    Ok(vault.unwrap(aad, &wrapped(tx, id).await?)?)
}

async fn wrapped(tx: &mut Tx, id: i64) -> Result<Vec<u8>, Failure> {
    let row = tx.row("SELECT wrapped FROM s3_secrets WHERE id = ?", args![id]).await?;
    Ok(row.ok_or_else(|| Failure::internal("a secret that is gone"))?.bytes("wrapped")?)
}

/// The keys of that job's destination and repository.
pub async fn keys_of_job(tx: &mut Tx, job: &Row) -> Result<Keys, Failure> {
    keys(tx, job.opt_int("dest_bucket_id")?, job.opt_text("repository_id")?).await
}

/// The keys of a destination and a repository.
pub async fn keys(tx: &mut Tx, destination: Option<i64>, repository: Option<String>) -> Result<Keys, Failure> {
    let mut keys = Keys { destination: None, secret: None, repository: None, format: None };
    if let Some(id) = destination {
        let sql = "SELECT * FROM s3_cloudbackup_destinations WHERE id = ? AND is_active = 1";
        let row = tx.row(sql, args![id]).await?.ok_or_else(|| Failure::internal("a destination that is gone"))?;
        if let Some(secret) = row.opt_int("secret_id")? {
            keys.secret = Some((destination_aad(row.int("client_id")?), wrapped(tx, secret).await?));
        }
        keys.destination = Some(row);
    }
    if let Some(repository) = repository {
        let sql = "SELECT k.key_version, k.wrapped_repo_secret, k.mode, r.format_json \
                   FROM s3_cloudbackup_repository_keys k \
                   JOIN s3_cloudbackup_repositories r ON r.id = k.repository_ref \
                   WHERE r.repository_id = ? AND r.status = 'active' ORDER BY k.key_version DESC LIMIT 1";
        let row =
            tx.row(sql, args![&repository]).await?.ok_or_else(|| Failure::internal("a repository without key"))?;
        let aad = repository_aad(&repository, row.int("key_version")?);
        keys.repository = Some((aad, row.bytes("wrapped_repo_secret")?, row.text("mode")?));
        keys.format = row.opt_json("format_json")?;
    }
    Ok(keys)
}

impl Keys {
    /// The keys in clear.
    pub fn open(&self, vault: &Vault) -> Result<Opened, Failure> {
        let secret = self.secret.as_ref().map(|(aad, wrapped)| vault.unwrap(aad, wrapped)).transpose()?;
        let password = self.repository.as_ref().map(|(aad, wrapped, _)| vault.unwrap(aad, wrapped)).transpose()?;
        let mode = self.repository.as_ref().map(|(_, _, mode)| mode.clone());
        let mut destination = none();
        if let Some(row) = &self.destination {
            let is_local = row.text("dest_type")? == "local";
            destination.dest_type = Some(row.text("dest_type")?);
            destination.dest_prefix = Some(row.text("prefix")?);
            if is_local {
                destination.dest_local_path = Some(row.text("endpoint")?);
            } else {
                destination.dest_bucket_name = Some(row.text("bucket")?);
                destination.dest_endpoint = Some(row.text("endpoint")?);
                destination.dest_region = row.opt_text("region")?;
                destination.dest_path_style = Some(row.text("path_style")?);
                destination.dest_access_key = row.opt_text("access_key")?;
                destination.dest_secret_key = secret;
                destination.ca_bundle_pem = row.opt_text("ca_bundle_pem")?;
            }
        }
        Ok(Opened { destination, repository_password: password, mode, format: self.format.clone() })
    }
}

fn none() -> Destination {
    Destination {
        dest_type: None,
        dest_bucket_name: None,
        dest_prefix: None,
        dest_endpoint: None,
        dest_region: None,
        dest_path_style: None,
        dest_local_path: None,
        dest_access_key: None,
        dest_secret_key: None,
        dest_session_token: None,
        dest_credentials_expire_at: None,
        ca_bundle_pem: None,
        bucket_auto_create: false,
        dest_auto_create_bucket: false,
    }
}
