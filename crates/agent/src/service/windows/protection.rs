//! Secrets wrapped by Windows under a key of this machine (DPAPI).
#![allow(unsafe_code)]

use std::io;

use windows::Win32::Foundation::{HLOCAL, LocalFree};
use windows::Win32::Security::Cryptography::{
    CRYPT_INTEGER_BLOB, CRYPTPROTECT_LOCAL_MACHINE, CRYPTPROTECT_UI_FORBIDDEN, CryptProtectData, CryptUnprotectData,
};
use windows::core::PCWSTR;
use zeroize::Zeroize as _;

/// For any account: an administrator enrols, the service reads.
const FLAGS: u32 = CRYPTPROTECT_LOCAL_MACHINE | CRYPTPROTECT_UI_FORBIDDEN;

/// Wraps a secret; only this machine unwraps it.
pub fn protect(secret: &[u8]) -> io::Result<Vec<u8>> {
    let mut wrapped = Output::default();
    // SAFETY: the input lives during the call and is only read; the output is ours.
    unsafe { CryptProtectData(&input(secret)?, PCWSTR::null(), None, None, None, FLAGS, &mut wrapped.0) }
        .map_err(io::Error::from)?;
    Ok(wrapped.take())
}

/// Unwraps what [`protect`] wrapped.
pub fn unprotect(wrapped: &[u8]) -> io::Result<Vec<u8>> {
    let mut secret = Output::default();
    // SAFETY: the input lives during the call and is only read; the output is ours.
    unsafe { CryptUnprotectData(&input(wrapped)?, None, None, None, None, FLAGS, &mut secret.0) }
        .map_err(io::Error::from)?;
    Ok(secret.take())
}

fn input(bytes: &[u8]) -> io::Result<CRYPT_INTEGER_BLOB> {
    let len = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(CRYPT_INTEGER_BLOB { cbData: len, pbData: bytes.as_ptr().cast_mut() })
}

/// Memory that the system allocated for a result.
#[derive(Default)]
struct Output(CRYPT_INTEGER_BLOB);

impl Output {
    /// A copy; what the system allocated is overwritten.
    fn take(mut self) -> Vec<u8> {
        let bytes = self.bytes();
        let copy = bytes.to_vec();
        bytes.zeroize();
        copy
    }

    fn bytes(&mut self) -> &mut [u8] {
        if self.0.pbData.is_null() {
            return &mut [];
        }
        // SAFETY: a call that succeeded left so many bytes there, and nobody else knows of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.pbData, self.0.cbData as usize) }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.0.pbData.is_null() {
            // SAFETY: the system allocated it with LocalAlloc, and it is freed here only.
            let _ = unsafe { LocalFree(Some(HLOCAL(self.0.pbData.cast()))) };
        }
    }
}
