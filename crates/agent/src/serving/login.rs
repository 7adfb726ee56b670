//! Who may log in to an iSCSI target. Secrets come from files or the environment, never from the command line.

use std::path::Path;

use iscsi::{Authentication, Credentials, Secret};
use zeroize::Zeroizing;

use crate::cli::LoginArgs;
use crate::failure::{Code, Failure};

const SECRET: &str = "E3_CHAP_SECRET";
const MUTUAL_SECRET: &str = "E3_MUTUAL_CHAP_SECRET";

/// How initiators log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// Without a login.
    None,
    /// They prove who they are.
    Chap,
    /// Both sides do.
    MutualChap,
}

impl Login {
    /// What an authentication is.
    pub fn of(authentication: Option<&Authentication>) -> Self {
        match authentication {
            None => Self::None,
            Some(authentication) if authentication.target.is_none() => Self::Chap,
            Some(_) => Self::MutualChap,
        }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Chap => "chap",
            Self::MutualChap => "mutual-chap",
        }
    }
}

/// What the flags and the environment say.
pub fn authentication(arguments: &LoginArgs) -> Result<Option<Authentication>, Failure> {
    let Some(user) = &arguments.chap_user else { return Ok(None) };
    let initiator = credentials(user, arguments.chap_secret_file.as_deref(), "--chap-secret-file", SECRET)?;
    let target = match &arguments.mutual_chap_user {
        Some(user) => {
            let file = arguments.mutual_chap_secret_file.as_deref();
            Some(credentials(user, file, "--mutual-chap-secret-file", MUTUAL_SECRET)?)
        }
        None => None,
    };
    Ok(Some(Authentication { initiator, target }))
}

fn credentials(user: &str, file: Option<&Path>, flag: &str, variable: &str) -> Result<Credentials, Failure> {
    let what = format!("read the login secret of {user}");
    let text = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
                Failure::new(&*what, path.display().to_string(), Code::Usage, error.to_string())
                    .with_steps(&[&format!("check the path of {flag}")])
            })?;
            let line = text.strip_suffix('\n').unwrap_or(&text);
            line.strip_suffix('\r').unwrap_or(line).to_owned()
        }
        None => std::env::var(variable).map_err(|_| {
            Failure::new(&*what, "", Code::Usage, "no secret was given")
                .with_steps(&[&format!("give {flag} FILE"), &format!("set {variable}")])
        })?,
    };
    Ok(Credentials { name: user.to_owned(), secret: Secret::new(text) })
}
