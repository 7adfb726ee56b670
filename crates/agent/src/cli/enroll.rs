//! `enroll …`.

use std::path::PathBuf;

use clap::Args;

pub const ENROLL_EXAMPLES: &str = "\
Examples:
  e3-backup-agent enroll https://backup.example.com --token-file token.txt
  e3-backup-agent enroll https://10.0.0.5:8443 --token-file token.txt --fingerprint 3F:9A:…
  E3_ENROLL_TOKEN=enr_… e3-backup-agent enroll https://backup.example.com --host lab:./lab

A token is made in the server (e3backup_token_create.php). The fingerprint is what `e3-server serve` prints; a server with
a certificate of a public authority needs none. Afterwards `run`, or the service, does what the server says.";

/// `enroll …`
#[derive(Args, Debug)]
pub struct EnrollArgs {
    /// Address of the server: https://HOST or https://HOST:PORT
    pub server: String,
    /// The enrolment token; others may see what stands on a command line: prefer a file or the environment
    #[arg(long, env = "E3_ENROLL_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File that holds the enrolment token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Trust the one certificate with this SHA-256
    #[arg(long, value_name = "SHA256", conflicts_with = "ca")]
    pub fingerprint: Option<String>,
    /// Trust only the certificates in this PEM file
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// A name for people, beside the host's own
    #[arg(long)]
    pub name: Option<String>,
    /// Enrol although this host is enrolled: the old token dies
    #[arg(long)]
    pub again: bool,
}
