//! The small endpoints of agents (spec control-api 2.12).

use control_api::agent::{ReportVolumes, ReportVolumesAnswer};
use serde_json::{Value as Json, json};

use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};

/// Volumes of one machine that are kept.
const MOST_VOLUMES: usize = 200;

/// `agent_report_volumes.php`.
pub async fn report_volumes(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let mut asked: ReportVolumes = call.read()?;
    asked.volumes.truncate(MOST_VOLUMES);
    let count = i64::try_from(asked.volumes.len()).unwrap_or(0);
    let mut tx = call.app.db.write().await?;
    let columns = [("volumes_json", Json::Array(asked.volumes).into()), ("volumes_updated_at", now.into())];
    tx.update("s3_cloudbackup_agents", &columns, "id = ?", args![agent.id]).await?;
    tx.commit().await?;
    Answer::ok(ReportVolumesAnswer { count })
}

/// `agent_fetch_jobs.php`: without any secret.
pub async fn fetch_jobs(call: &Call<'_>) -> Result<Answer, Failure> {
    let agent = call.agent()?;
    let sql = "SELECT * FROM s3_cloudbackup_jobs WHERE (agent_id = ? OR host_group_id IN (SELECT m.group_id \
               FROM s3_host_group_members m WHERE m.agent_id = ?)) AND client_id = ? AND status <> 'deleted' \
               ORDER BY id LIMIT 500";
    let mut jobs = Vec::new();
    for row in call.app.db.read().await?.rows(sql, args![agent.id, agent.id, agent.client]).await? {
        jobs.push(json!({
            "id": row.int("id")?,
            "name": row.text("name")?,
            "source_type": row.text("source_type")?,
            "source_display_name": row.text("source_display_name")?,
            "source_path": row.text("source_path")?,
            "local_include_glob": row.opt_text("local_include_glob")?,
            "local_exclude_glob": row.opt_text("local_exclude_glob")?,
            "local_bandwidth_limit_kbps": row.int("local_bandwidth_limit_kbps")?,
            "dest_bucket_id": row.opt_int("dest_bucket_id")?,
            "dest_prefix": row.opt_text("dest_prefix")?,
            "backup_mode": row.text("backup_mode")?,
            "encryption_enabled": row.flag("encryption_enabled")?,
            "validation_mode": row.text("validation_mode")?,
            "throttle_json": row.opt_json::<Json>("throttle_json")?,
            "schedule_json": row.opt_json::<Json>("schedule_json")?,
            "retention_json": row.opt_json::<Json>("retention_json")?,
            "status": row.text("status")?,
        }));
    }
    Answer::ok(json!({ "jobs": jobs }))
}

/// Routes whose engines this server does not have.
pub async fn not_available(_call: &Call<'_>) -> Result<Answer, Failure> {
    Err(Code::EngineNotAvailable.into())
}
