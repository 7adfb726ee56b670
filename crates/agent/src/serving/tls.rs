//! TLS of an NBD server, from the files that the command line names.

use std::path::Path;

use nbd::{Tls, TlsError};
use zeroize::Zeroizing;

use crate::cli::TlsArgs;
use crate::failure::{Attempt as _, Code, Failure};

/// What the flags say; `None` without any.
pub fn tls(arguments: &TlsArgs) -> Result<Option<Tls>, Failure> {
    let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) else { return Ok(None) };
    let authorities = arguments.tls_ca.as_deref().map(|path| read(path, "clients' authorities")).transpose()?;
    let certificates = read(certificate, "the server's certificate")?;
    let secret = read(key, "the server's key")?;
    Tls::new(&certificates, &secret, authorities.as_ref().map(|pem| &pem[..])).map(Some).map_err(|error| {
        let on = match (&error, &arguments.tls_ca) {
            (TlsError::Key, _) => key,
            (TlsError::Authorities, Some(authorities)) => authorities,
            _ => certificate,
        };
        Failure::of("set up TLS", on.display().to_string(), &error).with_code(Code::Usage).with_steps(&[
            "give PEM files: --tls-cert with the certificate first, --tls-key with its key, --tls-ca with the authorities",
        ])
    })
}

fn read(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    std::fs::read(path).map(Zeroizing::new).attempt(format!("read {what}"), path.display().to_string())
}
