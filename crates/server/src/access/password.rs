//! Passwords: Argon2id, and the same time for an account that does not exist (spec control-api 10.4).

use std::sync::LazyLock;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};

use crate::failure::Failure;
use crate::secret;

/// Shortest password that an account takes.
pub const SHORTEST: usize = 12;

/// The hash of a password, with its parameters.
pub async fn hash(password: String) -> Result<String, Failure> {
    let salt = secret::random::<16>()?;
    run(move || hash_now(&password, &salt)).await?
}

fn hash_now(password: &str, salt: &[u8]) -> Result<String, Failure> {
    let salt = SaltString::encode_b64(salt).map_err(Failure::internal)?;
    let hashed = Argon2::default().hash_password(password.as_bytes(), &salt).map_err(Failure::internal)?;
    Ok(hashed.to_string())
}

/// Whether that is the password of the hash. Without a hash it is never, and takes as long.
pub async fn matches(password: String, hash: Option<String>) -> Result<bool, Failure> {
    static NOBODY: LazyLock<String> = LazyLock::new(|| hash_now("", b"nobody has this.").unwrap_or_default());
    run(move || {
        let is_somebody = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODY.clone());
        let parsed = PasswordHash::new(&hash).map_err(Failure::internal)?;
        Ok(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok() && is_somebody)
    })
    .await?
}

/// Away from the threads that answer calls.
async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::internal)
}
