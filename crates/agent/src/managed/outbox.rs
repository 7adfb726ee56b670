//! Calls that must not be lost: kept on disk, each in a file of its own, until the server has taken or refused them
//! (spec control-api 0.5).
//!
//! What belongs to one run or command goes out in the order in which it came; one whose turn fails does not hold up the
//! others. Events wait here, too, while the server is away: so many, then the newest are dropped; results never are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{CallError, Client};
use super::durable::{make_private_folder, sync_folder_of, write_private};

/// Batches of events that wait at most.
const MAX_WAITING_EVENTS: usize = 2_000;

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What it belongs to: `run-7`, `command-3`.
    pub subject: String,
    /// The endpoint.
    pub name: String,
    /// The run that it is about.
    #[serde(default)]
    pub run_id: Option<i64>,
    /// The claim that held the run when it was written.
    #[serde(default)]
    pub claim: Option<String>,
    /// It can be done without.
    #[serde(default)]
    pub is_event: bool,
    /// What is sent; never a secret.
    pub body: Value,
}

/// What waits. Its files are the truth; the map is what they are about.
#[derive(Debug)]
pub struct Outbox {
    folder: PathBuf,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    records: BTreeMap<u64, Record>,
    next: u64,
    dropped_events: u64,
}

/// What became of a look at everything that waits.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Taken, or refused for good.
    pub done: usize,
    /// What the server would not take, with its reason; it is gone.
    pub refused: Vec<(Record, CallError)>,
    /// Why something still waits.
    pub failure: Option<CallError>,
}

/// Sends one call, under a claim.
type Send<'a> = dyn Fn(&Record, Option<&str>) -> Result<(), CallError> + 'a;

impl Outbox {
    /// Opens the folder, with what a former process left in it. A file that cannot be read is moved aside.
    pub fn open(folder: &Path) -> io::Result<Self> {
        make_private_folder(folder)?;
        let mut waiting = Waiting::default();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(number) = number_of(&path) else { continue };
            waiting.next = waiting.next.max(number + 1);
            match serde_json::from_slice(&fs::read(&path)?) {
                Ok(record) => drop(waiting.records.insert(number, record)),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a waiting call cannot be read; it is set aside");
                    fs::rename(&path, path.with_extension("bad"))?;
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), waiting: Mutex::new(waiting) })
    }

    /// Keeps a call; it is durable when this returns.
    pub fn put(&self, record: Record) -> io::Result<()> {
        let mut waiting = self.lock();
        if record.is_event {
            let events = waiting.records.values().filter(|record| record.is_event).count();
            if events >= MAX_WAITING_EVENTS {
                waiting.dropped_events += 1;
                return Ok(());
            }
        }
        let number = waiting.next;
        let json = serde_json::to_vec(&record).map_err(io::Error::other)?;
        write_private(&self.path(number), &json)?;
        waiting.next += 1;
        waiting.records.insert(number, record);
        Ok(())
    }

    /// How many calls wait.
    pub fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// Batches of events that were dropped since this was asked last.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped_events)
    }

    /// Whether the answer to a command waits.
    pub fn answers(&self, command_id: i64) -> bool {
        self.lock().records.values().any(|record| record.body["command_id"].as_i64() == Some(command_id))
    }

    /// Whether anything but events waits.
    pub fn has_results(&self) -> bool {
        self.lock().records.values().any(|record| !record.is_event)
    }

    /// Sends what waits, once each, in order. `claim_of` is the claim by which a run is held now.
    pub fn deliver(&self, client: &Client, claim_of: &dyn Fn(i64) -> Option<String>) -> Delivered {
        self.deliver_by(&|record, claim| client.post::<Value>(&record.name, claim, &record.body).map(drop), claim_of)
    }

    fn deliver_by(&self, send: &Send<'_>, claim_of: &dyn Fn(i64) -> Option<String>) -> Delivered {
        let mut delivered = Delivered::default();
        let mut stuck: BTreeSet<String> = BTreeSet::new();
        let numbers: Vec<u64> = self.lock().records.keys().copied().collect();
        for number in numbers {
            let Some(record) = self.lock().records.get(&number).cloned() else { continue };
            if stuck.contains(&record.subject) {
                continue;
            }
            let claim = record.run_id.and_then(claim_of).or_else(|| record.claim.clone());
            match send(&record, claim.as_deref()) {
                Ok(()) => delivered.done += 1,
                // Who is turned away keeps what it has: an administrator may let it in again.
                Err(error)
                    if error.is_transient() || error.is_shut_out() || error.code() == "agent_version_too_old" =>
                {
                    stuck.insert(record.subject);
                    let is_away = !matches!(error, CallError::Refused { status: 500.., .. });
                    delivered.failure = Some(error);
                    if is_away {
                        return delivered;
                    }
                    continue;
                }
                Err(error) => {
                    delivered.done += 1;
                    delivered.refused.push((record, error));
                }
            }
            if let Err(error) = self.remove(number) {
                // It goes out again, which the server knows to take.
                tracing::warn!(%error, "a call that was delivered cannot be removed from the outbox");
                return delivered;
            }
        }
        delivered
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        let path = self.path(number);
        fs::remove_file(&path)?;
        self.lock().records.remove(&number);
        sync_folder_of(&path)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(subject: &str, body: i64) -> Record {
        Record {
            subject: subject.into(),
            name: "x.php".into(),
            run_id: None,
            claim: Some("old".into()),
            is_event: false,
            body: json!(body),
        }
    }

    fn refused(status: u16) -> CallError {
        CallError::Refused { status, code: "c".into(), message: String::new(), retry_after_secs: None }
    }

    #[test]
    fn what_waits_survives_and_goes_out_in_the_order_of_its_subject() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        for (subject, body) in [("run-1", 1), ("run-2", 2), ("run-1", 3), ("command-1", 4)] {
            outbox.put(record(subject, body)).unwrap();
        }
        drop(outbox);
        std::fs::write(folder.path().join("0000000000000009.json"), "{").unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        assert_eq!(outbox.len(), 4);
        let sent = Mutex::new(Vec::new());
        // The server fails over the first run, refuses the command, and takes the second run.
        let send = |record: &Record, _: Option<&str>| {
            sent.lock().unwrap().push(record.body.as_i64().unwrap());
            match record.subject.as_str() {
                "run-1" => Err(refused(500)),
                "command-1" => Err(refused(422)),
                _ => Ok(()),
            }
        };
        let delivered = outbox.deliver_by(&send, &|_| None);
        assert_eq!(*sent.lock().unwrap(), [1, 2, 4], "3 waits behind 1");
        assert_eq!((delivered.done, delivered.refused.len(), delivered.failure.is_some()), (2, 1, true));
        let left: Vec<String> = outbox.lock().records.values().map(|record| record.subject.clone()).collect();
        assert_eq!(left, ["run-1", "run-1"]);
        // A new one comes behind all that were, also behind the one that was set aside.
        outbox.put(record("run-3", 5)).unwrap();
        drop(outbox);
        let outbox = Outbox::open(folder.path()).unwrap();
        sent.lock().unwrap().clear();
        outbox.deliver_by(
            &|record, _| {
                sent.lock().unwrap().push(record.body.as_i64().unwrap());
                Ok(())
            },
            &|_| None,
        );
        assert_eq!(*sent.lock().unwrap(), [1, 3, 5]);
        assert_eq!(Outbox::open(folder.path()).unwrap().len(), 0);
    }

    #[test]
    fn nothing_is_lost_while_the_server_is_away_or_shuts_the_agent_out() {
        for error in [CallError::Unreachable("away".into()), refused(401), refused(429)] {
            let folder = tempfile::tempdir().unwrap();
            let outbox = Outbox::open(folder.path()).unwrap();
            outbox.put(record("run-1", 1)).unwrap();
            outbox.put(record("run-2", 2)).unwrap();
            let tries = Mutex::new(0);
            let send = |_: &Record, _: Option<&str>| {
                *tries.lock().unwrap() += 1;
                Err(error.clone())
            };
            let delivered = outbox.deliver_by(&send, &|_| None);
            assert_eq!((delivered.failure, outbox.len(), *tries.lock().unwrap()), (Some(error), 2, 1));
        }
    }

    #[test]
    fn a_run_that_was_claimed_again_is_reported_by_its_new_claim() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        outbox.put(Record { run_id: Some(7), ..record("run-7", 1) }).unwrap();
        outbox.put(Record { run_id: Some(8), ..record("run-8", 2) }).unwrap();
        let claims = Mutex::new(Vec::new());
        let send = |_: &Record, claim: Option<&str>| {
            claims.lock().unwrap().push(claim.map(str::to_owned));
            Ok(())
        };
        outbox.deliver_by(&send, &|run| (run == 7).then(|| "new".to_owned()));
        assert_eq!(*claims.lock().unwrap(), [Some("new".to_owned()), Some("old".to_owned())]);
    }

    #[test]
    fn events_are_dropped_when_too_many_wait_and_results_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        {
            let mut waiting = outbox.lock();
            for number in 0..MAX_WAITING_EVENTS as u64 {
                waiting.records.insert(number, Record { is_event: true, ..record("run-1", 0) });
            }
            waiting.next = MAX_WAITING_EVENTS as u64;
        }
        outbox.put(Record { is_event: true, ..record("run-1", 1) }).unwrap();
        assert_eq!((outbox.len(), outbox.take_dropped(), outbox.take_dropped()), (MAX_WAITING_EVENTS, 1, 0));
        outbox.put(record("run-1", 2)).unwrap();
        assert_eq!(outbox.len(), MAX_WAITING_EVENTS + 1);
    }
}
