//! Questions to a person before something is lost or becomes other than it was.
//!
//! What destroys is confirmed by the name of what it is done to: typed at a terminal, or given by `--confirm`. `--yes` is
//! not enough for that.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};

use crate::cli::Global;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::units::visible;

/// Returns when `names`, and nothing else, were confirmed; `what` says what is about to happen, as in `let 3 points go`.
pub fn confirm(context: &Context, what: &str, on: &str, names: &[&str], given: &[String]) -> Result<(), Failure> {
    let wanted: BTreeSet<&str> = names.iter().copied().collect();
    let wanted_flags = wanted.iter().map(|name| format!("--confirm {}", quoted(name))).collect::<Vec<_>>().join(" ");
    let step = format!("look what it is with --dry-run, then say {wanted_flags}");
    let refused = |why: String| Failure::new(what, on, Code::NotConfirmed, why).with_steps(&[step.as_str()]);
    if !given.is_empty() {
        let given: BTreeSet<&str> = given.iter().map(String::as_str).collect();
        return if given == wanted { Ok(()) } else { Err(refused("--confirm names something else".into())) };
    }
    if !can_ask(&context.global) {
        return Err(refused("it cannot be undone, and nobody is there to confirm it".into()));
    }
    let names = names.join(" ");
    let typed = ask(&format!("This will {what}, and cannot be undone. Type {names} to do it: "))?;
    if typed.trim() == names { Ok(()) } else { Err(refused("something else was typed; nothing was done".into())) }
}

/// Goes on only when the name of what is lost was typed: with `--confirm`, or now, at a terminal. `--yes` is not enough.
pub fn name_typed(global: &Global, given: Option<&str>, name: &str, loss: &str) -> Result<(), Failure> {
    let typed = match given {
        Some(given) => given.to_owned(),
        None if can_ask(global) => ask(&format!("{loss}\nType the name of the VM to go on: "))?,
        None => {
            let step = format!("say --confirm {name:?}");
            return Err(Failure::new("ask for confirmation", name, Code::Usage, loss).with_steps(&[&step]));
        }
    };
    if typed.trim() == name {
        return Ok(());
    }
    let why = format!("the name that was typed, {:?}, is not {name:?}; nothing was touched", typed.trim());
    Err(Failure::new("ask for confirmation", name, Code::Usage, why).with_steps(&["type the VM's exact name"]))
}

/// Whether a person, or `--yes`, agrees.
pub fn agreed(global: &Global, question: &str) -> Result<bool, Failure> {
    if global.yes {
        return Ok(true);
    }
    if !can_ask(global) {
        return Ok(false);
    }
    let answer = ask(&format!("{question} [y/N] "))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Whether somebody is there who sees a question and can answer it.
pub fn can_ask(global: &Global) -> bool {
    !global.json && io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn ask(question: &str) -> Result<String, Failure> {
    let mut stderr = io::stderr().lock();
    let lines: Vec<String> = question.split('\n').map(visible).collect();
    // A terminal that is gone answers nothing, which is no.
    let _ = write!(stderr, "{}", lines.join("\n")).and_then(|()| stderr.flush());
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).attempt("read the answer", "the terminal")?;
    Ok(answer)
}

/// As a shell takes it.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) { name.to_owned() } else { format!("'{name}'") }
}
