//! Another password for a repository (spec 2.8): the same secrets under another key.

use crate::blob::{BlobStore, Storage};
use crate::error::OpenError;
use crate::format::format_blob::{BLOB_CFG_ID, FORMAT_BLOB_ID, FormatBlob, UnlockError};
use crate::repository::{ClientOptions, Repository, check_upgrade_lock, retention_of};

/// What [`Repository::change_password`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordChange {
    /// The password was the old one.
    Changed,
    /// It was the new one already.
    WasThere,
}

impl Repository {
    /// Gives a repository another password. Its contents stay as they are, so whoever once opened it with the old one
    /// can still have its keys: this is no way to lock out a thief. Clients that have it open notice when they look at
    /// the format again, and need the new password then.
    ///
    /// `kopia.blobcfg` is written before `kopia.repository`, as Kopia does. Cut off in between, the repository opens with
    /// neither password; the same call again completes it.
    pub fn change_password(
        storage: &Storage,
        old: &str,
        new: &str,
        client: &ClientOptions,
    ) -> Result<PasswordChange, OpenError> {
        let store = storage.bucket.display_name();
        let failed = |source| OpenError::Storage { store: store.clone(), source };
        let damaged = |problem: String| OpenError::Damaged { store: store.clone(), problem };
        let unsupported = |problem: String| OpenError::Unsupported { store: store.clone(), problem };
        let refused = |error| match error {
            UnlockError::WrongPassword => OpenError::WrongPassword { store: store.clone() },
            other => unsupported(other.to_string()),
        };
        let blobs = BlobStore::open(storage).map_err(failed)?;
        let optional = |id| match blobs.get(id) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(failed(error)),
        };
        let json = optional(FORMAT_BLOB_ID)?.ok_or_else(|| OpenError::NotFound { store: store.clone() })?;
        let outer = FormatBlob::parse(&json).map_err(|error| damaged(error.to_string()))?;
        let (unlocked, found) = match outer.unlock(old) {
            Ok(unlocked) => (unlocked, PasswordChange::Changed),
            // A change that ended, and whose caller did not learn it.
            Err(UnlockError::WrongPassword) => (outer.unlock(new).map_err(refused)?, PasswordChange::WasThere),
            Err(error) => return Err(refused(error)),
        };
        unlocked.format.check().map_err(|error| unsupported(error.to_string()))?;
        if !unlocked.format.enable_password_change {
            return Err(unsupported("its keys are made from the password, as format version 1 had it".into()));
        }
        let now = (client.clock)();
        check_upgrade_lock(&unlocked.format, now, &store)?;
        let (changed, under_new) = outer.with_password(&unlocked, new).map_err(refused)?;
        let cfg = match optional(BLOB_CFG_ID)? {
            None => None,
            Some(bytes) => {
                // Under the new key, it is of a change that was cut off.
                let cfg = unlocked.decrypt_blob_cfg(&bytes).or_else(|_| under_new.decrypt_blob_cfg(&bytes));
                Some(cfg.map_err(|error| damaged(error.to_string()))?)
            }
        };
        if found == PasswordChange::WasThere {
            return Ok(found);
        }
        if let Some(cfg) = cfg {
            blobs.set_retention(retention_of(&cfg).map_err(damaged)?);
            blobs.put(BLOB_CFG_ID, &[&under_new.encrypt_blob_cfg(&cfg)], now).map_err(failed)?;
        }
        blobs.put(FORMAT_BLOB_ID, &[&changed.to_json()], now).map_err(failed)?;
        Ok(found)
    }
}
