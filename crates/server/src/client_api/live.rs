//! Live updates as server-sent events (console 0.2, spec control-api 6.2): topics of a page, and one run.
//!
//! A stream holds no connection of the database and keeps no session alive: it ends with the session, and with a change
//! of what its reader may see.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use control_api::id::Id;
use control_api::report::LiveQuery;
use control_api::run_list::RunRef;
use http_body::Frame;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::runs;
use crate::App;
use crate::access::person::{Person, still};
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::live::{self, Change, Seat};

/// A line that says nothing, so that nobody on the way takes the stream for dead; the session is looked at as often.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Topics of one page.
const MOST_TOPICS: usize = 20;
/// Pieces that a slow reader may be behind, before the stream waits for it.
const AHEAD: usize = 32;
/// Streams of one instance.
const MOST_STREAMS: f64 = 2000.0;

/// The body of a stream: what its task sends.
struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// What the task of a stream works with.
struct Stream {
    app: Arc<App>,
    person: Person,
    headers: HeaderMap,
    pieces: mpsc::Sender<Bytes>,
    seat: Seat,
    comment: Interval,
}

/// What a stream waits for.
enum Wakes {
    Changes(Arc<Vec<Change>>),
    Lagged,
    Comment,
    Over,
}

impl Stream {
    fn open(call: &Call<'_>) -> Result<(Stream, Body), Failure> {
        if call.app.live.streams() >= MOST_STREAMS {
            return Err(Failure::limited(15));
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        let mut comment = interval(COMMENT_EVERY.min(call.app.settings.long_poll.max(Duration::from_millis(100))));
        comment.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stream = Stream {
            app: call.app.clone(),
            person: call.person()?.clone(),
            headers: call.headers.clone(),
            pieces: sender,
            seat: call.app.live.sit_down(),
            comment,
        };
        Ok((stream, Body::new(Pieces(receiver))))
    }

    /// Sends a piece; false when nobody reads any more.
    async fn say(&self, text: String) -> bool {
        self.pieces.send(Bytes::from(text)).await.is_ok()
    }

    async fn wait(&mut self) -> Wakes {
        tokio::select! {
            () = self.pieces.closed() => Wakes::Over,
            _ = self.comment.tick() => Wakes::Comment,
            changes = self.seat.changes.recv() => match changes {
                Ok(changes) => Wakes::Changes(changes),
                Err(RecvError::Lagged(_)) => Wakes::Lagged,
                Err(RecvError::Closed) => Wakes::Over,
            },
        }
    }

    /// Whether the reader is still who they were, with the same rights.
    async fn is_still_theirs(&self) -> bool {
        match still(&self.app, &self.headers).await {
            Ok(now) => (now.user, now.role, now.scope) == (self.person.user, self.person.role, self.person.scope),
            // A database that is away for a moment ends no stream; one that says no does.
            Err(failure) => failure.code == Code::ServerError,
        }
    }
}

/// `/live`: an event for each change of a topic that was asked for, named like it, with the version as data.
pub async fn topics(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: LiveQuery = call.read()?;
    let wanted: BTreeSet<String> = asked.topics.into_iter().filter(|topic| !topic.is_empty()).collect();
    let is_topic = |topic: &String| {
        topic.len() <= 64 && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if wanted.is_empty() || wanted.len() > MOST_TOPICS || !wanted.iter().all(is_topic) {
        return Err(Failure::invalid("topics", "are 1 to 20 words like run-123, with commas between them"));
    }
    let last = last_event_id(call);
    // Seated before the table is read: a change in between is told twice rather than never.
    let (mut stream, body) = Stream::open(call)?;
    let mut tx = call.app.db.read().await?;
    let (newest, missed) = match last {
        Some(last) => (live::last_id(&mut tx).await?, live::since(&mut tx, stream.person.scope, last).await?),
        None => (live::last_id(&mut tx).await?, Some(Vec::new())),
    };
    drop(tx);
    tokio::spawn(async move {
        // An id alone makes no event; a reader that comes back names it.
        let mut begin = format!("retry: 3000\nid: {newest}\n\n");
        match &missed {
            Some(changes) => begin += &events(changes.iter(), &wanted),
            None => begin += &format!("id: {newest}\nevent: resync\ndata: {newest}\n\n"),
        }
        let mut goes_on = stream.say(begin).await;
        while goes_on {
            goes_on = match stream.wait().await {
                Wakes::Over => false,
                Wakes::Lagged => stream.say("event: resync\ndata: 0\n\n".into()).await,
                Wakes::Comment => stream.is_still_theirs().await && stream.say(": still here\n\n".into()).await,
                Wakes::Changes(changes) => {
                    let scope = stream.person.scope;
                    let text = events(changes.iter().filter(|change| change.is_within(scope)), &wanted);
                    text.is_empty() || stream.say(text).await
                }
            };
        }
    });
    Ok(Answer::events(body))
}

/// Of several changes of a topic the last one is enough.
fn events<'a>(changes: impl Iterator<Item = &'a Change>, wanted: &BTreeSet<String>) -> String {
    let mut last = std::collections::BTreeMap::new();
    for change in changes.filter(|change| wanted.contains(&change.topic)) {
        last.insert(&change.topic, change);
    }
    let mut last: Vec<&Change> = last.into_values().collect();
    last.sort_by_key(|change| change.id);
    last.iter()
        .map(|change| format!("id: {}\nevent: {}\ndata: {}\n\n", change.id, change.topic, change.version))
        .collect()
}

fn last_event_id(call: &Call<'_>) -> Option<i64> {
    call.headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok()
}

/// `cloudbackup_run_stream.php`: `progress` when it changes, `run_event` for each event, and `end`.
pub async fn run(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunRef = call.read()?;
    let mut since = last_event_id(call).unwrap_or(0);
    let (mut stream, body) = Stream::open(call)?;
    let scope = stream.person.scope;
    let mut tx = call.app.db.read().await?;
    let (_, first) = runs::progress_of(&mut tx, scope, &asked.run_id).await?;
    drop(tx);
    let id = Id::Number(first["run_id"].as_i64().ok_or_else(|| Failure::internal("a run without id"))?);
    let topic = format!("run-{}", first["run_id"]);
    tokio::spawn(async move {
        let mut told = None;
        // What stands now is told first; then whenever it changes.
        let mut is_due = true;
        loop {
            if is_due {
                match news(&stream.app, &stream.person, &id, &mut since, &mut told).await {
                    Ok((text, is_over)) => {
                        if (!text.is_empty() && !stream.say(text).await) || is_over {
                            return;
                        }
                    }
                    // The next change, or the next comment, tries again.
                    Err(failure) => tracing::warn!("live run: {}", failure.message),
                }
            }
            is_due = match stream.wait().await {
                Wakes::Over => return,
                Wakes::Lagged => true,
                Wakes::Changes(changes) => {
                    changes.iter().any(|change| change.topic == topic && change.is_within(scope))
                }
                Wakes::Comment => {
                    if !stream.is_still_theirs().await || !stream.say(": still here\n\n".into()).await {
                        return;
                    }
                    true
                }
            };
        }
    });
    Ok(Answer::events(body))
}

/// What is new of a run, as text of the stream, and whether nothing follows.
async fn news(
    app: &App,
    person: &Person,
    id: &Id,
    since: &mut i64,
    told: &mut Option<String>,
) -> Result<(String, bool), Failure> {
    let mut tx = app.db.read().await?;
    let (status, progress) = runs::progress_of(&mut tx, person.scope, id).await?;
    let events = runs::events_of(&mut tx, person.scope, id, *since, 1000).await?;
    let mut text = String::new();
    let progress = progress.to_string();
    if told.as_ref() != Some(&progress) {
        text += &format!("event: progress\ndata: {progress}\n\n");
        *told = Some(progress);
    }
    for event in &events {
        *since = event.id;
        text += &format!("id: {}\nevent: run_event\ndata: {}\n\n", event.id, json!(event));
    }
    let is_over = status.is_terminal() && events.len() < 1000;
    if is_over {
        text += &format!("event: end\ndata: {}\n\n", status.word());
    }
    Ok((text, is_over))
}
