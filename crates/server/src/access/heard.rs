//! Signs of life of agents, gathered before they are written down.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::App;
use crate::failure::Failure;
use crate::store::{Value, marks};

/// Agents that were heard of and of whom nothing else is new, until the scheduler writes it down: of a thousand agents
/// that poll that is one transaction in a second. What is lost with the process is said again by the next call.
#[derive(Debug, Default)]
pub struct Heard {
    /// And whether they named their installation.
    agents: Mutex<BTreeMap<i64, bool>>,
}

impl Heard {
    /// Remembers that an agent called.
    pub fn note(&self, agent: i64, named_install: bool) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        *agents.entry(agent).or_default() |= named_install;
    }

    /// Writes it down.
    pub async fn write(&self, app: &App, now: Timestamp) -> Result<(), Failure> {
        let agents = std::mem::take(&mut *self.agents.lock().unwrap_or_else(PoisonError::into_inner));
        if agents.is_empty() {
            return Ok(());
        }
        let mut tx = app.db.write().await?;
        for named_install in [false, true] {
            let ids: Vec<i64> =
                agents.iter().filter(|(_, named)| **named == named_install).map(|(id, _)| *id).collect();
            let mut columns: Vec<(&str, Value)> = vec![("last_seen_at", now.into())];
            if named_install {
                columns.push(("install_seen_at", now.into()));
            }
            for ids in ids.chunks(200) {
                let condition = format!("id IN ({})", marks(ids.len()));
                let ids: Vec<Value> = ids.iter().map(|id| (*id).into()).collect();
                tx.update("s3_cloudbackup_agents", &columns, &condition, &ids).await?;
            }
        }
        Ok(tx.commit().await?)
    }
}
