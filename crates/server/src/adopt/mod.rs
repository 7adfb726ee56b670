//! `repo adopt`: the catalogue is a cache, and a repository says by itself what lies in it (spec control-api 2.10).
//!
//! [`read`] lists every point of a repository; [`adopt`] makes the rows of them: a destination with the repository's key, a
//! paused job for each host that points were taken on, its runs, VMs and points. Done again, it changes only what differs:
//! where a row and a manifest disagree, the manifest is right.
//!
//! Not here: which agent goes on with an adopted job; a person says that, and then the job is like any other.

mod read;
mod rows;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

use crate::access::audit;
use crate::agent_api::repositories;
use crate::args;
use crate::clock::after;
use crate::secret::{self, Vault};
use crate::store::{Db, Tx};

pub use read::{Found, FoundDisk, FoundPoint, read};
pub use rows::Adopted;

/// Into which client's catalogue.
#[derive(Debug, Clone, Default)]
pub struct Into {
    /// The client; without it the only one, or one that is made in an empty database.
    pub client: Option<i64>,
    /// One of its tenants, by slug.
    pub tenant: Option<String>,
    /// What the destination is called; without it, where it lies.
    pub name: Option<String>,
}

/// The client and tenant that rows get.
#[derive(Debug, Clone, Copy)]
struct Owner {
    client: i64,
    tenant: Option<i64>,
}

/// Makes the rows of what was found, under the repository's one maintenance lease, in one transaction.
pub async fn adopt(
    db: &Db,
    vault: &Vault,
    found: &Found,
    password: &str,
    into: &Into,
    now: Timestamp,
) -> Result<Adopted> {
    let mut tx = db.write().await?;
    audit::begin(&mut tx).await?;
    let owner = owner(&mut tx, into, now).await?;
    let repository = rows::repository(&mut tx, vault, found, password, into, owner, now).await?;
    let token = secret::token("adopt_")?;
    if !repositories::lock(&mut tx, repository.row, None, &token, now).await.map_err(crate::describe)? {
        bail!("an agent works on this repository; its lease ends within ten minutes: try again then");
    }
    let adopted = rows::points(&mut tx, found, &repository, owner, now).await?;
    rows::record(&mut tx, found, &adopted, owner, now).await?;
    let free = "UPDATE s3_kopia_repo_locks SET expires_at = ? WHERE repo_id = ? AND lock_token = ?";
    tx.change(free, args![after(now, -1), repository.row, token]).await?;
    tx.commit().await?;
    Ok(adopted)
}

async fn owner(tx: &mut Tx, into: &Into, now: Timestamp) -> Result<Owner> {
    let clients = tx.rows("SELECT id FROM s3_clients ORDER BY id", args![]).await?;
    let client = match (into.client, clients.as_slice()) {
        (Some(wanted), _) => {
            let is_there = tx.count("SELECT COUNT(*) FROM s3_clients WHERE id = ?", args![wanted]).await? > 0;
            if !is_there {
                bail!("there is no client {wanted}");
            }
            wanted
        }
        (None, [only]) => only.int("id")?,
        // The account that is made through the set-up link joins it.
        (None, []) => {
            let columns = [("name", "Adopted".into()), ("created_at", now.into()), ("updated_at", now.into())];
            tx.insert("s3_clients", &columns).await?
        }
        (None, several) => bail!("there are {} clients: say which with --client", several.len()),
    };
    let tenant = match &into.tenant {
        Some(slug) => {
            let sql = "SELECT id FROM s3_backup_tenants WHERE client_id = ? AND slug = ? AND status = 'active'";
            let row = tx.row(sql, args![client, slug]).await?;
            Some(row.with_context(|| format!("client {client} has no tenant {slug}"))?.int("id")?)
        }
        None => None,
    };
    Ok(Owner { client, tenant })
}
