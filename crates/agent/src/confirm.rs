//! What destroys is confirmed by the name of what it is done to: typed at a terminal, or given by `--confirm`. `--yes`
//! is not enough.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};

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
    if !can_ask(context) {
        return Err(refused("it cannot be undone, and nobody is there to confirm it".into()));
    }
    let typed_names = names.join(" ");
    let mut stderr = io::stderr().lock();
    write!(stderr, "This will {what}, and cannot be undone. Type {} to do it: ", visible(&typed_names))
        .and_then(|()| stderr.flush())
        .attempt(what, "the terminal")?;
    let mut typed = String::new();
    io::stdin().read_line(&mut typed).attempt(what, "the terminal")?;
    if typed.trim() == typed_names { Ok(()) } else { Err(refused("something else was typed; nothing was done".into())) }
}

/// Whether somebody is there who sees a question and can answer it.
pub fn can_ask(context: &Context) -> bool {
    !context.global.json && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// As a shell takes it.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) { name.to_owned() } else { format!("'{name}'") }
}
