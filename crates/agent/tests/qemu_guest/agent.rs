//! The guest agent: commands in the guest, and the freezing of its file systems.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// A connection to the agent in the guest; it takes one at a time. Clones share it.
#[derive(Clone)]
pub struct Agent {
    stream: Arc<Mutex<BufReader<UnixStream>>>,
}

impl Agent {
    /// Waits for the agent to answer.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let agent = Self { stream: Arc::new(Mutex::new(BufReader::new(stream))) };
        agent.call("guest-ping", json!({})).unwrap();
        agent
    }

    /// One command of the agent's protocol. The error is the agent's.
    pub fn call(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut stream = self.stream.lock().unwrap();
        let request = json!({ "execute": command, "arguments": arguments });
        let failed = |error: std::io::Error| format!("{command}: {error}");
        stream.get_mut().write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
        let mut line = String::new();
        stream.read_line(&mut line).map_err(failed)?;
        let answer: Value = serde_json::from_str(&line).map_err(|error| format!("{command}: {error}: {line:?}"))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(format!("{command}: {answer}")),
        }
    }

    /// Runs a shell command in the guest, which has to succeed; gives what it printed.
    pub fn shell(&self, command: &str) -> String {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", command], "capture-output": true });
        let started = self.call("guest-exec", arguments).unwrap();
        loop {
            let status = self.call("guest-exec-status", json!({ "pid": started["pid"] })).unwrap();
            if status["exited"] == true {
                let output = status["out-data"].as_str().map(decode_base64).unwrap_or_default();
                assert_eq!(status["exitcode"], 0, "{command}: {status} {output}");
                return output.trim_end().to_owned();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn decode_base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for symbol in text.bytes().take_while(|&symbol| symbol != b'=') {
        let value = ALPHABET.iter().position(|&one| one == symbol).expect("base64");
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
