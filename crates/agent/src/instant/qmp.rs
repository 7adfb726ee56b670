//! QEMU's control socket (QMP), as far as it takes to let QEMU move a disk while its guest runs.
//!
//! The node that a session serves is mirrored to a local file, every write going to both, until they are equal; then
//! the guest is put over to the file (spec block-serving C.8, E.4).

use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backup::{Event, Observer};
use serde_json::{Value, json};

/// QEMU answers at once; it may have to wait for a disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest line that is read.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Why QEMU did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket.
    #[error("speak to QEMU over {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What came was no answer.
    #[error("understand QEMU's answer to {command}: {answer}")]
    Answer {
        /// What was asked.
        command: String,
        /// What came.
        answer: String,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {text}")]
    Refused {
        /// What was asked.
        command: String,
        /// In its words.
        text: String,
    },
    /// The machine has no such disk.
    #[error("find the disk {node} of the machine: it runs without that; start it with the arguments of `instant show`")]
    NoNode {
        /// The node.
        node: String,
    },
    /// The local file.
    #[error("create {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mirror broke off; the guest goes on as before.
    #[error("mirror {node}: {text}; the guest goes on with the session, and the file is worth nothing")]
    Broken {
        /// The node.
        node: String,
        /// In QEMU's words.
        text: String,
    },
    /// It was not waited for.
    #[error("mirror {node}: stopped; QEMU goes on, and the same command waits for it again")]
    Stopped {
        /// The node.
        node: String,
    },
}

/// A connection to QEMU.
pub struct Qmp {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and greets.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let failed = |source| QmpError::Socket { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
        let mut qmp = Self { path: path.to_owned(), reader: BufReader::new(stream) };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Answer { command: "a connection".into(), answer: greeting.to_string() });
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// One command; gives what it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = json!({ "execute": command, "arguments": arguments });
        let sent = self.reader.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.map_err(|source| QmpError::Socket { path: self.path.clone(), source })?;
        loop {
            let answer = self.line()?;
            if answer.get("event").is_some() {
                continue;
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            return Err(match answer["error"]["desc"].as_str() {
                Some(text) => QmpError::Refused { command: command.to_owned(), text: text.to_owned() },
                None => QmpError::Answer { command: command.to_owned(), answer: answer.to_string() },
            });
        }
    }

    fn line(&mut self) -> Result<Value, QmpError> {
        let failed = |source| QmpError::Socket { path: self.path.clone(), source };
        let mut bytes = Vec::new();
        io::Read::take(&mut self.reader, MAX_LINE_BYTES).read_until(b'\n', &mut bytes).map_err(failed)?;
        if bytes.is_empty() {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let text = String::from_utf8_lossy(&bytes);
        serde_json::from_str(&text)
            .map_err(|_| QmpError::Answer { command: "the last command".into(), answer: text.into_owned() })
    }

    fn has_node(&mut self, node: &str) -> Result<bool, QmpError> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true }))?;
        Ok(nodes.as_array().is_some_and(|nodes| nodes.iter().any(|one| one["node-name"] == node)))
    }

    fn job(&mut self, id: &str) -> Result<Option<Value>, QmpError> {
        let jobs = self.execute("query-jobs", json!({}))?;
        Ok(jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == id).cloned()))
    }
}

/// One disk of a running machine, and the file it moves to.
pub struct Mirror<'a> {
    /// The node that stands on the session.
    pub node: &'a str,
    /// The file; it becomes a raw image.
    pub file: &'a Path,
    /// The disk's size.
    pub size_bytes: u64,
}

impl Mirror<'_> {
    /// Moves it; after a stop the same call goes on.
    pub fn run(&self, qmp: &mut Qmp, observer: &dyn Observer, is_stopped: &dyn Fn() -> bool) -> Result<(), QmpError> {
        let (node, job_id) = (self.node, format!("e3-{}", self.node));
        if qmp.job(&job_id)?.is_none() {
            if !qmp.has_node(node)? {
                // The guest was put over to the file before.
                if qmp.has_node(&self.local_node())? {
                    return Ok(());
                }
                return Err(QmpError::NoNode { node: node.to_owned() });
            }
            self.begin(qmp, &job_id)?;
        }
        observer.event(Event::Started { subject: node, total_bytes: self.size_bytes, what: "mirror" });
        let mut shown = 0;
        loop {
            let Some(job) = qmp.job(&job_id)? else {
                return Err(QmpError::Broken { node: node.to_owned(), text: "the job is gone".into() });
            };
            let done = job["current-progress"].as_u64().unwrap_or(0).min(self.size_bytes);
            observer.event(Event::Advanced { subject: node, bytes: done.saturating_sub(shown) });
            shown = shown.max(done);
            match job["status"].as_str() {
                Some("ready") => {
                    qmp.execute("job-complete", json!({ "id": job_id }))?;
                }
                Some("concluded") => {
                    let broken = job["error"].as_str().map(str::to_owned);
                    qmp.execute("job-dismiss", json!({ "id": job_id }))?;
                    if let Some(text) = broken {
                        qmp.execute("blockdev-del", json!({ "node-name": self.local_node() }))?;
                        return Err(QmpError::Broken { node: node.to_owned(), text });
                    }
                    break;
                }
                _ => {}
            }
            if is_stopped() {
                return Err(QmpError::Stopped { node: node.to_owned() });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        observer.event(Event::Finished { subject: node });
        qmp.execute("blockdev-del", json!({ "node-name": node }))?;
        Ok(())
    }

    fn local_node(&self) -> String {
        format!("{}-local", self.node)
    }

    fn begin(&self, qmp: &mut Qmp, job_id: &str) -> Result<(), QmpError> {
        let failed = |source| QmpError::File { path: self.file.to_owned(), source };
        let local = self.local_node();
        if !qmp.has_node(&local)? {
            let file = OpenOptions::new().write(true).create_new(true).open(self.file).map_err(failed)?;
            file.set_len(self.size_bytes).and_then(|()| file.sync_all()).map_err(failed)?;
            let below = json!({ "driver": "file", "filename": self.file, "discard": "unmap" });
            let node = json!({ "driver": "raw", "node-name": local, "discard": "unmap", "file": below });
            qmp.execute("blockdev-add", node)?;
        }
        let mirror = json!({
            "job-id": job_id,
            "device": self.node,
            "target": local,
            "sync": "full",
            "copy-mode": "write-blocking",
            "auto-dismiss": false,
        });
        qmp.execute("blockdev-mirror", mirror)?;
        Ok(())
    }
}
