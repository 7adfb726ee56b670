//! What a person is told when something fails: one block, one code, one exit code.
//!
//! [`Code`] is the catalogue (`code.rs`). `classify.rs` maps the typed errors of the libraries to it; nothing else in
//! this program looks into an error to decide how it ends.

mod classify;
mod code;

use std::error::Error;
use std::io::{self, Write as _};

use serde_json::{Value, json};

use crate::units::visible;
use classify::{code_of, host_advice};
pub use code::Code;

/// Something that failed, in the words of the error block.
#[derive(Debug)]
pub struct Failure {
    /// What was attempted.
    what: Box<str>,
    /// On which VM, disk, host, repository; may be empty.
    on: Box<str>,
    /// Why it failed.
    why: Box<str>,
    /// What to do: one to three steps.
    steps: Vec<String>,
    /// What kind of failure it is.
    code: Code,
    /// The error and its causes, outermost first.
    causes: Vec<String>,
    /// The block is out already.
    is_printed: bool,
}

impl Failure {
    /// A failure that this program found out by itself.
    pub fn new(what: impl Into<Box<str>>, on: impl Into<Box<str>>, code: Code, why: impl Into<Box<str>>) -> Self {
        let steps = code.steps().iter().map(|step| (*step).to_owned()).collect();
        Self { what: what.into(), on: on.into(), why: why.into(), steps, code, causes: Vec::new(), is_printed: false }
    }

    /// A failure of a library.
    pub fn of(what: impl Into<Box<str>>, on: impl Into<Box<str>>, error: &(dyn Error + 'static)) -> Self {
        let mut causes: Vec<String> = chain(error).map(ToString::to_string).collect();
        // Errors that pass another one on speak with its words.
        causes.dedup();
        let mut failure = Self { causes, ..Self::new(what, on, code_of(error), chain_text(error)) };
        // What is known of the host's very code goes before what its kind suggests.
        if let Some(advice) = chain(error).find_map(host_advice) {
            failure.steps.insert(0, advice.to_owned());
        }
        failure
    }

    /// The same with other steps.
    pub fn with_steps(mut self, steps: &[&str]) -> Self {
        self.steps = steps.iter().map(|step| (*step).to_owned()).collect();
        self
    }

    /// The same as another kind.
    pub fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// The same, of which the block is out already if `is_printed`.
    pub fn printed(self, is_printed: bool) -> Self {
        Self { is_printed, ..self }
    }

    /// What kind of failure it is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The exit code of the program.
    pub fn exit(&self) -> u8 {
        self.code.exit()
    }

    /// Tells the person or the script; with `json`, as the last object on standard output.
    pub fn report(&self, json: bool, verbose: bool) {
        if json {
            let mut value = self.to_json();
            value["type"] = "error".into();
            crate::output::json_line(&value);
        } else if !self.is_printed {
            self.print(verbose);
        }
    }

    /// The block, to standard error.
    pub fn print(&self, verbose: bool) {
        // Standard error that is closed leaves nobody to tell.
        let _ = io::stderr().lock().write_all(self.block(verbose, crate::output::is_colored()).as_bytes());
    }

    fn block(&self, verbose: bool, colored: bool) -> String {
        let (red, plain) = if colored { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let mut text = format!("{red}error:{plain} {}\n", visible(&self.what));
        if !self.on.is_empty() {
            text += &format!("  on   {}\n", visible(&self.on));
        }
        text += &format!("  why  {}\n", visible(&self.why));
        if !self.steps.is_empty() {
            text += &format!("  do   {}\n", visible(&self.steps.join("; or ")));
        }
        text += &format!("  code {}   exit {}\n", self.code.name(), self.exit());
        if verbose {
            for cause in &self.causes {
                text += &format!("  cause  {}\n", visible(cause));
            }
        }
        text
    }

    /// Without `type`, as it stands in results that list failures.
    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code.name(),
            "what": self.what,
            "on": self.on,
            "why": self.why,
            "do": self.steps,
            "causes": self.causes,
            "exit": self.exit(),
        })
    }
}

/// In one line, for logs.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        if !self.on.is_empty() {
            write!(f, " ({})", self.on)?;
        }
        write!(f, ": {} [{}, exit {}]", self.why, self.code.name(), self.exit())?;
        if !self.steps.is_empty() {
            write!(f, " To do: {}", self.steps.join("; or "))?;
        }
        Ok(())
    }
}

/// Says what was attempted, when it fails.
pub trait Attempt<T> {
    /// Makes the error a [`Failure`] to do `what` on `on`.
    fn attempt(self, what: impl Into<Box<str>>, on: impl Into<Box<str>>) -> Result<T, Failure>;
}

impl<T, E: Error + 'static> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl Into<Box<str>>, on: impl Into<Box<str>>) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(what, on, &error))
    }
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |one| (*one).source())
}

/// An error with its causes in one line, each said once.
pub fn chain_text(error: &(dyn Error + 'static)) -> String {
    chain(error).fold(String::new(), |text, one| {
        let next = one.to_string();
        match text.is_empty() {
            true => next,
            false if text.ends_with(&next) => text,
            false => format!("{text}: {next}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use bucket::{BucketError, ErrorKind, Operation};
    use kopia_repo::OpenError;

    use super::*;

    #[test]
    fn the_block_has_at_most_six_lines_and_no_control_characters() {
        let failure = Failure::of("back up a\nb", "VM \u{1b}[2J", &OpenError::WrongPassword { store: "s".into() });
        let block = failure.block(false, false);
        assert_eq!(
            block,
            "error: back up a\u{fffd}b\n  on   VM \u{fffd}[2J\n  why  the password does not open the repository in s\n  \
             do   give the password it was created with (--password-file, E3_PASSWORD)\n  \
             code WRONG_PASSWORD   exit 12\n"
        );
        assert!(block.lines().count() <= 6);
        assert!(failure.block(true, false).contains("  cause  the password"));
    }

    #[test]
    fn causes_are_said_once() {
        let source = BucketError::new(ErrorKind::Unreachable, Operation::Put, "p/1", "somewhere", "no");
        let error = OpenError::Storage { store: "s".into(), source };
        assert_eq!(chain_text(&error), "open the repository in s: put \"p/1\" in somewhere: no");
    }
}
