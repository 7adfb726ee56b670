//! The repository password: from a file, the environment, or a person, never from the command line.
//!
//! It is overwritten in memory when it is dropped.

use std::io::{self, IsTerminal as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::cli::Global;
use crate::failure::{Attempt as _, Code, Failure};

const VARIABLE: &str = "E3_PASSWORD";
/// English words of BIP 39 (Trezor and others, MIT): 2,048, none of them the beginning of another's first four letters.
const WORDS: &str = include_str!("words.txt");
/// 11 bits each.
const MADE_WORDS: usize = 8;

/// How a recovery kit begins. A password file may be one: the password is then what follows [`KIT_LABEL`].
pub const KIT_HEADING: &str = "e3 recovery kit";
/// What stands before the password in a recovery kit.
pub const KIT_LABEL: &str = "Password    ";

/// A password for a new repository.
pub struct NewPassword {
    /// The password.
    pub text: Zeroizing<String>,
    /// It was made here, and has to be shown.
    pub made: bool,
}

/// The password of a repository that exists.
pub fn existing(global: &Global, store: &str) -> Result<Zeroizing<String>, Failure> {
    if let Some(password) = given(global)? {
        return Ok(password);
    }
    let what = format!("open the repository in {store}");
    if global.yes || !has_terminal(global) {
        let why = "no password was given, and there is nobody to ask";
        return Err(Failure::new(what, "", Code::NoPassword, why));
    }
    rpassword::prompt_password("Repository password: ").map(Zeroizing::new).attempt(what, "the terminal")
}

/// The password for a new repository: checked, and made from words when a person at a terminal gives none.
pub fn new(global: &Global, store: &str) -> Result<NewPassword, Failure> {
    let what = format!("create a repository in {store}");
    chosen(global, what, given(global)?, "Repository password", &[])
}

/// The other password for a repository, of a file or a person.
pub fn another(global: &Global, store: &str, file: Option<&Path>) -> Result<NewPassword, Failure> {
    let given = file.map(|file| read(file, "--new-password-file")).transpose()?;
    let what = format!("change the password of the repository in {store}");
    chosen(
        global,
        what,
        given,
        "New repository password",
        &["give --new-password-file FILE", "say --yes to have one made"],
    )
}

fn chosen(
    global: &Global,
    what: String,
    given: Option<Zeroizing<String>>,
    name: &str,
    steps: &[&str],
) -> Result<NewPassword, Failure> {
    let text = match given {
        Some(password) => password,
        None if !has_terminal(global) => {
            let failure = Failure::new(what, "", Code::NoPassword, "no password was given, and there is nobody to ask");
            return Err(if steps.is_empty() { failure } else { failure.with_steps(steps) });
        }
        None if global.yes => return Ok(NewPassword { text: make(), made: true }),
        None => {
            let ask =
                |prompt: &str| rpassword::prompt_password(prompt).map(Zeroizing::new).attempt(&*what, "the terminal");
            let first = ask(&format!("{name} (Enter makes one): "))?;
            if first.is_empty() {
                return Ok(NewPassword { text: make(), made: true });
            }
            if ask("The same again: ")? != first {
                return Err(Failure::new(what, "", Code::BadPassword, "the two passwords differ")
                    .with_steps(&["run it again, and type the same twice"]));
            }
            first
        }
    };
    let problem = match text.as_str() {
        "" => "the password is empty",
        text if text.trim() != text => "the password begins or ends with white space, which is lost too easily",
        _ => return Ok(NewPassword { text, made: false }),
    };
    Err(Failure::new(what, "", Code::BadPassword, problem))
}

/// Whether the environment gives one.
pub fn is_in_environment() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Whether nobody has to be asked.
pub fn is_given(global: &Global) -> Result<bool, Failure> {
    given(global).map(|password| password.is_some())
}

/// From the file of `--password-file`, without the end of its line, or from the environment.
fn given(global: &Global) -> Result<Option<Zeroizing<String>>, Failure> {
    if let Some(path) = &global.password_file {
        return read(path, "--password-file").map(Some);
    }
    match std::env::var(VARIABLE) {
        Ok(password) => Ok(Some(Zeroizing::new(password))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::new("read the password", VARIABLE, Code::Usage, "it is not UTF-8")
                .with_steps(&["give --password-file FILE"]))
        }
    }
}

/// The password that a file holds, the file being named by that flag.
fn read(path: &Path, flag: &str) -> Result<Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
        Failure::new("read the password file", path.display().to_string(), Code::Usage, error.to_string())
            .with_steps(&[&*format!("check the path of {flag}")])
    })?;
    Ok(of_file(&text))
}

/// All of a file without the end of its line, or the password of a recovery kit.
fn of_file(text: &str) -> Zeroizing<String> {
    // Editors under Windows begin a file with it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let without_end = |text: &str| {
        let text = text.strip_suffix('\n').unwrap_or(text);
        Zeroizing::new(text.strip_suffix('\r').unwrap_or(text).to_owned())
    };
    let of_kit = || text.split_inclusive('\n').find_map(|line| line.strip_prefix(KIT_LABEL));
    match text.starts_with(KIT_HEADING).then(of_kit).flatten() {
        Some(line) => without_end(line),
        None => without_end(text),
    }
}

/// Somebody who can be asked, and who sees what is made.
fn has_terminal(global: &Global) -> bool {
    !global.json && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Eight words: 88 bits, behind the repository's slow key derivation.
fn make() -> Zeroizing<String> {
    let words: Vec<&str> = WORDS.lines().collect();
    assert!(words.len().is_power_of_two(), "so that a remainder prefers no word");
    let mut random = Zeroizing::new([0; 2 * MADE_WORDS]);
    getrandom::fill(&mut random[..]).expect("the operating system gives random bytes");
    let (pairs, _) = random.as_chunks::<2>();
    let chosen: Vec<&str> =
        pairs.iter().map(|pair| words[usize::from(u16::from_ne_bytes(*pair)) % words.len()]).collect();
    Zeroizing::new(chosen.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_holds_a_password_or_is_a_recovery_kit() {
        let kit = format!("{KIT_HEADING}, made today\r\n\r\nId          1\r\n{KIT_LABEL}two words \r\nrest\r\n");
        for (text, expected) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\n", "secret"),
            ("\u{feff}secret\r\n", "secret"),
            ("secret\n\n", "secret\n"),
            (" with spaces \n", " with spaces "),
            (&kit, "two words "),
            ("Password    x\n", "Password    x"),
            ("e3 recovery kit\n", "e3 recovery kit"),
        ] {
            assert_eq!(of_file(text).as_str(), expected, "{text:?}");
        }
    }

    #[test]
    fn made_passwords_are_eight_different_draws() {
        let (one, other) = (make(), make());
        assert_eq!(one.split('-').count(), MADE_WORDS);
        assert!(one.split('-').all(|word| WORDS.lines().any(|known| known == word)), "{}", one.as_str());
        assert_ne!(one, other);
    }

    #[test]
    fn the_words_are_whole() {
        assert_eq!(WORDS.lines().count(), 2048);
        assert!(
            WORDS.lines().all(|word| (3..=8).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase()))
        );
    }
}
