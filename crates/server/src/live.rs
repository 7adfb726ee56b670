//! Live updates (console 0.2): each instance reads `console_changes` once a second, however many pages watch.
//!
//! Nothing is remembered between streams: a page that comes back, to this instance or another, says the id of the last
//! change that it saw, and gets what changed since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tracing::warn;

use crate::App;
use crate::access::{Filter, Scope};
use crate::args;
use crate::clock::after;
use crate::failure::Failure;
use crate::store::{Row, Tx};

/// How often the table is read.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Ids are given when a transaction begins to write and seen when it ends: one may appear behind a greater one for so long.
const LATE_SECS: i64 = 30;
/// A stream that lags by more batches than this starts again.
const BATCHES: usize = 64;

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its id.
    pub id: i64,
    /// Whose it is.
    pub client: i64,
    /// And which tenant's.
    pub tenant: Option<i64>,
    /// What changed.
    pub topic: String,
    /// To which version.
    pub version: i64,
}

impl Change {
    fn of(row: &Row) -> Result<Change, Failure> {
        Ok(Change {
            id: row.int("id")?,
            client: row.int("client_id")?,
            tenant: row.opt_int("tenant_id")?,
            topic: row.text("topic")?,
            version: row.int("version")?,
        })
    }

    /// Whether somebody may know of it.
    pub fn is_within(&self, scope: Scope) -> bool {
        self.client == scope.client && scope.tenant.is_none_or(|tenant| self.tenant == Some(tenant))
    }
}

/// What every stream of this instance listens to.
#[derive(Debug)]
pub struct Hub {
    sender: broadcast::Sender<Arc<Vec<Change>>>,
    streams: Arc<AtomicUsize>,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub { sender: broadcast::channel(BATCHES).0, streams: Arc::default() }
    }
}

/// One stream's place at the hub.
#[derive(Debug)]
pub struct Seat {
    /// Changes as they are seen.
    pub changes: broadcast::Receiver<Arc<Vec<Change>>>,
    streams: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hub {
    /// From now on, every change.
    pub fn sit_down(&self) -> Seat {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Seat { changes: self.sender.subscribe(), streams: self.streams.clone() }
    }

    /// How many streams there are.
    pub fn streams(&self) -> f64 {
        f64::from(u32::try_from(self.streams.load(Ordering::Relaxed)).unwrap_or(u32::MAX))
    }
}

/// Reads the table until it is stopped.
pub async fn run(app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    let mut seen = Seen::default();
    let every = READ_EVERY.min(app.settings.tick);
    loop {
        // At once: what changes from here on is news to those who listen.
        match seen.read(&app).await {
            Ok(changes) if changes.is_empty() => {}
            // Nobody listens: nobody misses it.
            Ok(changes) => drop(app.live.sender.send(Arc::new(changes))),
            Err(failure) => warn!("read changes: {failure:?}"),
        }
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Which rows were read already, as far back as one may still appear.
#[derive(Debug, Default)]
struct Seen {
    ids: BTreeMap<i64, Timestamp>,
    below: Option<i64>,
}

impl Seen {
    async fn read(&mut self, app: &App) -> Result<Vec<Change>, Failure> {
        let now = app.clock.now();
        let mut tx = app.db.read().await?;
        let Some(below) = self.below else {
            self.below = Some(last_id(&mut tx).await?);
            return Ok(Vec::new());
        };
        let sql = "SELECT * FROM console_changes WHERE id > ? ORDER BY id LIMIT 5000";
        let rows = tx.rows(sql, args![below]).await?;
        let mut new = Vec::new();
        for row in &rows {
            let change = Change::of(row)?;
            if let std::collections::btree_map::Entry::Vacant(entry) = self.ids.entry(change.id) {
                entry.insert(now);
                new.push(change);
            }
        }
        let done = after(now, -LATE_SECS);
        let below = self.ids.iter().take_while(|(_, read_at)| **read_at < done).last().map(|(id, _)| *id);
        // A clock that was set back does not make it forget; a full page moves on in any case.
        let below = if rows.len() == 5000 { self.ids.last_key_value().map(|(id, _)| *id) } else { below };
        if let Some(below) = below {
            self.below = Some(below);
            self.ids = self.ids.split_off(&(below + 1));
        }
        Ok(new)
    }
}

/// The newest change there is.
pub async fn last_id(tx: &mut Tx) -> Result<i64, Failure> {
    Ok(tx.count("SELECT MAX(id) FROM console_changes", args![]).await?)
}

/// What a page missed that saw change `last`; none when that is not known any more and it reads everything again.
pub async fn since(tx: &mut Tx, scope: Scope, last: i64) -> Result<Option<Vec<Change>>, Failure> {
    let Some(row) = tx.row("SELECT created_at FROM console_changes WHERE id = ?", args![last]).await? else {
        return Ok(None);
    };
    let from = after(row.time("created_at")?, -LATE_SECS);
    let filter = Filter::within(scope, "c").and("(c.id > ? OR c.created_at >= ?)", last);
    let filter = Filter { args: filter.args_and(args![from]), ..filter };
    let sql = format!("SELECT c.* FROM console_changes c WHERE {} AND c.id <> ? ORDER BY c.id", filter.sql);
    let rows = tx.rows(&sql, &filter.args_and(args![last])).await?;
    // Of one topic the newest row says it all.
    let mut changes: Vec<Change> = rows.iter().map(Change::of).collect::<Result<_, _>>()?;
    let mut topics = BTreeSet::new();
    changes.reverse();
    changes.retain(|change| topics.insert(change.topic.clone()));
    changes.reverse();
    Ok(Some(changes))
}
