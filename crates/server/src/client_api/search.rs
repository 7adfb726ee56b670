//! Finding things by name, and views that a person keeps (console 2, 9).

use control_api::settings::{Hit, Hits, SaveView, SavedView, SavedViews, SearchQuery, ViewRef};

use crate::access::Filter;
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::time_text;

/// What is searched: kind, table, the columns of name and id, what is not there any more.
const PLACES: [(&str, &str, &str, &str); 3] = [
    ("vm", "s3_hyperv_vms", "vm_name", "1 = 1"),
    ("job", "s3_cloudbackup_jobs", "name", "x.status <> 'deleted'"),
    ("agent", "s3_cloudbackup_agents", "hostname", "x.status <> 'deleted'"),
];
/// Views of one person.
const MOST_VIEWS: i64 = 200;

/// `cloudbackup_search.php`: names that contain the text; a number also finds the point and the run of that id.
pub async fn search(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: SearchQuery = call.read()?;
    let scope = call.scope()?;
    let limit = asked.limit.unwrap_or(10);
    if !(1..=50).contains(&limit) {
        return Err(Failure::invalid("limit", "is 1 to 50"));
    }
    let text = asked.q.trim();
    if text.is_empty() || text.chars().count() > 255 {
        return Err(Failure::invalid("q", "has 1 to 255 characters"));
    }
    let mut tx = call.app.db.read().await?;
    let mut hits = Vec::new();
    for (kind, table, name, is_there) in PLACES {
        let filter = Filter::within(scope, "x").and_sql(is_there).and_contains(&format!("x.{name}"), text);
        let sql = format!(
            "SELECT x.id, x.{name} AS name, x.tenant_id FROM {table} x WHERE {} ORDER BY x.{name}, x.id LIMIT {limit}",
            filter.sql
        );
        for row in tx.rows(&sql, &filter.args).await? {
            let (id, name) = (row.int("id")?, row.text("name")?);
            hits.push(Hit { kind: kind.into(), id, name, tenant_id: row.opt_int("tenant_id")? });
        }
    }
    if let Ok(id) = text.parse::<i64>() {
        for (kind, sql) in [
            (
                "point",
                "SELECT x.vm_name AS name, x.tenant_id FROM s3_hyperv_backup_points x WHERE x.deleted_at IS NULL AND",
            ),
            (
                "run",
                "SELECT j.name AS name, x.tenant_id FROM s3_cloudbackup_runs x \
                 JOIN s3_cloudbackup_jobs j ON j.id = x.job_id WHERE",
            ),
        ] {
            let filter = Filter::within(scope, "x").and("x.id = ?", id);
            if let Some(row) = tx.row(&format!("{sql} {}", filter.sql), &filter.args).await? {
                let name = row.text("name")?;
                hits.push(Hit { kind: kind.into(), id, name, tenant_id: row.opt_int("tenant_id")? });
            }
        }
    }
    Answer::ok(Hits { hits })
}

/// `cloudbackup_view_list.php`: the caller's own.
pub async fn views(call: &Call<'_>) -> Result<Answer, Failure> {
    let sql = "SELECT * FROM s3_saved_views WHERE user_id = ? ORDER BY name";
    let mut views = Vec::new();
    for row in call.app.db.read().await?.rows(sql, args![call.person()?.user]).await? {
        views.push(SavedView {
            id: row.int("id")?,
            name: row.text("name")?,
            path: row.text("path")?,
            created_at: time_text(row.time("created_at")?),
        });
    }
    Answer::ok(SavedViews { views })
}

/// `cloudbackup_view_save.php`.
pub async fn save_view(call: &Call<'_>) -> Result<Answer, Failure> {
    let (user, now) = (call.person()?.user, call.app.clock.now());
    let asked: SaveView = call.read()?;
    let name = asked.name.trim();
    if name.is_empty() || name.chars().count() > 191 {
        return Err(Failure::invalid("name", "has 1 to 191 characters"));
    }
    // A path of this server and nothing else: who follows a view stays here.
    let is_path = asked.path.starts_with('/') && !asked.path.starts_with("//") && !asked.path.contains('\\');
    if !is_path || asked.path.chars().count() > 1024 || asked.path.chars().any(char::is_control) {
        return Err(Failure::invalid("path", "is a path of this server, of at most 1,024 characters"));
    }
    let mut tx = call.app.db.write().await?;
    let sql = "UPDATE s3_saved_views SET path = ? WHERE user_id = ? AND name = ?";
    let known = "SELECT COUNT(*) FROM s3_saved_views WHERE user_id = ? AND name = ?";
    if tx.count(known, args![user, name]).await? > 0 {
        tx.change(sql, args![&asked.path, user, name]).await?;
    } else {
        if tx.count("SELECT COUNT(*) FROM s3_saved_views WHERE user_id = ?", args![user]).await? >= MOST_VIEWS {
            return Err(Failure::validation(&[("name".into(), format!("at most {MOST_VIEWS} views"))]));
        }
        let columns = [
            ("user_id", user.into()),
            ("name", name.into()),
            ("path", asked.path.clone().into()),
            ("created_at", now.into()),
        ];
        tx.insert("s3_saved_views", &columns).await?;
    }
    tx.commit().await?;
    Answer::done()
}

/// `cloudbackup_view_delete.php`.
pub async fn delete_view(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: ViewRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let sql = "DELETE FROM s3_saved_views WHERE id = ? AND user_id = ?";
    if tx.change(sql, args![asked.view_id, call.person()?.user]).await? == 0 {
        return Err(Code::NotFound.into());
    }
    tx.commit().await?;
    Answer::done()
}
