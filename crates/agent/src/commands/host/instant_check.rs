//! Whether a VM could run straight from the backup on this Hyper-V host, looked at before the night of need.

use std::net::TcpListener;

use hyperv::{Host, InitiatorService};
use serde_json::{Value, json};

use super::qemu_check::{Check, Quote, check_json, quote_json, quotes, show_check, show_quotes};
use crate::context::Context;
use crate::units::size;

/// Room for what guests write before somebody looks.
const FREE_BYTES: u64 = 10 << 30;

/// What was found.
pub struct Readiness {
    checks: Vec<Check>,
    quotes: Vec<Quote>,
}

/// Looks at the host, and at the repository if one is named.
pub fn look(context: &Context, host: &Host) -> Readiness {
    let mut checks = vec![initiator(host), loopback(), space(host)];
    let mut found = Vec::new();
    // A host can be checked without a repository.
    if context.location(None).is_ok() {
        match context.repository_for_serving().and_then(|repo| quotes(&repo)) {
            Ok(quotes) => found = quotes,
            Err(failure) => checks.push(Check { name: "repository", is_well: false, text: failure.to_string() }),
        }
    }
    Readiness { checks, quotes: found }
}

impl Readiness {
    /// Whether nothing stands in the way.
    pub fn is_well(&self) -> bool {
        self.checks.iter().all(|check| check.is_well) && self.quotes.iter().all(|quote| quote.first_read.is_ok())
    }

    /// As documented.
    pub fn json(&self) -> Value {
        json!({
            "checks": self.checks.iter().map(check_json).collect::<Vec<_>>(),
            "vms": self.quotes.iter().map(quote_json).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn show(&self) {
        self.checks.iter().for_each(show_check);
        if !self.quotes.is_empty() {
            show_quotes(&self.quotes);
        }
    }
}

fn initiator(host: &Host) -> Check {
    let (is_well, text) = match host.initiator_service() {
        Ok(Some(service)) if service.is_running() => (true, "the service runs".to_owned()),
        Ok(Some(InitiatorService { start_mode, .. })) if start_mode == "Disabled" => {
            (false, "the service MSiSCSI is disabled; set its start type to manual".to_owned())
        }
        Ok(Some(InitiatorService { state, start_mode })) => (
            true,
            format!(
                "the service is {}, start type {}: it is started when it is needed",
                state.to_lowercase(),
                start_mode.to_lowercase()
            ),
        ),
        Ok(None) => (false, "this host has no service MSiSCSI".to_owned()),
        Err(error) => (false, error.to_string()),
    };
    Check { name: "initiator", is_well, text }
}

/// The target listens where only this machine comes; any port will do.
fn loopback() -> Check {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    match bound {
        Ok(address) => Check { name: "ports", is_well: true, text: format!("can be listened on, such as {address}") },
        Err(error) => Check { name: "ports", is_well: false, text: format!("127.0.0.1: {error}") },
    }
}

/// Of the folder that new VMs go to by default.
fn space(host: &Host) -> Check {
    let name = "space";
    let folder = match host.default_vm_folder() {
        Ok(Some(folder)) => folder,
        Ok(None) => {
            return Check { name, is_well: true, text: "the host names no folder for VMs; name one: --folder".into() };
        }
        Err(error) => return Check { name, is_well: false, text: error.to_string() },
    };
    match host.seam().files.free_bytes(&folder) {
        Ok(free) if free < FREE_BYTES => {
            Check { name, is_well: false, text: format!("{folder}: {} free for what guests write", size(free)) }
        }
        Ok(free) => Check { name, is_well: true, text: format!("{folder}: {} free", size(free)) },
        Err(error) => Check { name, is_well: false, text: format!("{folder}: {error}") },
    }
}
