//! Agents that wait for news: each instance asks the database once a second for all of them together, however many wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::App;
use crate::access::agent::Agent;
use crate::args;
use crate::failure::Failure;
use crate::runs::IS_BACKUP;

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// For whom there is something.
#[derive(Debug, Default)]
pub struct News {
    /// Agents with a run, a command, or a run that is cancelled.
    agents: BTreeSet<i64>,
    /// Clients with work on a repository, which any of their agents may do.
    clients: BTreeSet<i64>,
    /// The settings of every agent.
    epochs: BTreeMap<i64, i64>,
}

impl News {
    /// Whether an agent may find something when it looks; `known` are the settings that it has.
    pub fn concerns(&self, agent: &Agent, busy: bool, known: Option<i64>) -> bool {
        self.agents.contains(&agent.id)
            || (!busy && self.clients.contains(&agent.client))
            || known.is_some_and(|known| self.epochs.get(&agent.id).is_some_and(|now| *now != known))
    }

    async fn read(app: &App) -> Result<News, Failure> {
        let now = app.clock.now();
        let mut tx = app.db.read().await?;
        let mut news = News::default();
        let runs = format!(
            "SELECT DISTINCT agent_id AS id FROM s3_cloudbackup_runs WHERE status = 'queued' AND cancel_requested = 0 \
             AND {IS_BACKUP} AND (not_before IS NULL OR not_before <= ?) AND agent_id IS NOT NULL"
        );
        let cancelled = "SELECT DISTINCT agent_id AS id FROM s3_cloudbackup_runs \
                         WHERE status IN ('starting', 'running') AND cancel_requested = 1 AND agent_id IS NOT NULL";
        let commands = "SELECT DISTINCT agent_id AS id FROM s3_cloudbackup_run_commands \
                        WHERE status = 'pending' AND agent_id IS NOT NULL";
        for (sql, of) in [(runs.as_str(), args![now]), (cancelled, args![]), (commands, args![])] {
            for row in tx.rows(sql, of).await? {
                news.agents.insert(row.int("id")?);
            }
        }
        let operations = "SELECT DISTINCT client_id AS id FROM s3_kopia_repo_operations \
                          WHERE status = 'queued' AND next_attempt_at <= ?";
        for row in tx.rows(operations, args![now]).await? {
            news.clients.insert(row.int("id")?);
        }
        for row in tx.rows("SELECT id, config_epoch FROM s3_cloudbackup_agents", args![]).await? {
            news.epochs.insert(row.int("id")?, row.int("config_epoch")?);
        }
        Ok(news)
    }
}

/// Where they wait.
#[derive(Debug)]
pub struct Waiting(watch::Sender<Arc<News>>);

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting(watch::channel(Arc::default()).0)
    }
}

impl Waiting {
    /// From now on, what is new. Taken before an agent looks for itself, nothing is missed: what is there stays news until
    /// somebody takes it.
    pub fn sit_down(&self) -> watch::Receiver<Arc<News>> {
        self.0.subscribe()
    }
}

/// Asks until it is stopped.
pub async fn run(app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(ASK_EVERY.min(app.settings.tick)) => {}
        }
        if app.waiting.0.receiver_count() == 0 {
            continue;
        }
        match News::read(&app).await {
            Ok(news) => _ = app.waiting.0.send_replace(Arc::new(news)),
            Err(failure) => warn!("look for news of agents: {failure:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_look_for_whom_there_may_be_something() {
        let news = News { agents: [1].into(), clients: [7].into(), epochs: [(1, 5), (2, 5), (3, 5)].into() };
        for (case, id, client, busy, known, expected) in [
            ("a run", 1, 6, true, Some(5), true),
            ("nothing", 2, 6, false, Some(5), false),
            ("work on the client's repository", 2, 7, false, None, true),
            ("the same, while it is busy", 2, 7, true, None, false),
            ("other settings", 2, 6, true, Some(4), true),
            ("one that said nothing of its settings", 2, 6, true, None, false),
            ("one that is new", 4, 6, false, Some(1), false),
        ] {
            let agent = Agent {
                id,
                client,
                tenant: None,
                boot: None,
                claim: None,
                caps: Vec::new(),
                uses_old_token: false,
                hostname: None,
            };
            assert_eq!(news.concerns(&agent, busy, known), expected, "{case}");
        }
    }
}
