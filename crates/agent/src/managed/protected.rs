//! Where the agent's token lies: wrapped by the system where it offers that, else in a file that only its owner reads
//! (spec control-api 1.6).

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use super::durable::write_private;

/// The file, in the folder of the enrolment.
const FILE: &str = "token";

/// Keeps the token, durably.
pub fn keep(folder: &Path, token: &str) -> io::Result<()> {
    write_private(&folder.join(FILE), &wrap(token.as_bytes())?)
}

/// When it was kept.
pub fn changed(folder: &Path) -> io::Result<std::time::SystemTime> {
    std::fs::metadata(folder.join(FILE))?.modified()
}

/// The token.
pub fn read(folder: &Path) -> io::Result<Zeroizing<String>> {
    let bytes = unwrap(&Zeroizing::new(std::fs::read(folder.join(FILE))?))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| io::Error::other("the token is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(windows)]
fn wrap(bytes: &[u8]) -> io::Result<Vec<u8>> {
    crate::service::protect_for_machine(bytes)
}

#[cfg(windows)]
fn unwrap(bytes: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
    crate::service::unprotect(bytes).map(Zeroizing::new)
}

#[cfg(not(windows))]
fn wrap(bytes: &[u8]) -> io::Result<Vec<u8>> {
    Ok(bytes.to_vec())
}

#[cfg(not(windows))]
fn unwrap(bytes: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
    Ok(Zeroizing::new(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_and_replaced_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        for token in ["agt_first", "agt_second"] {
            keep(folder.path(), token).unwrap();
            assert_eq!(read(folder.path()).unwrap().as_str(), token);
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        #[cfg(windows)]
        assert!(!std::fs::read(folder.path().join(FILE)).unwrap().windows(4).any(|part| part == b"agt_"));
    }
}
