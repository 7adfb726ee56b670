//! Certificates as spec A.9 advises: a private authority, P-256, addresses among the names.
#![allow(dead_code)] // each test file uses its own part

use std::path::{Path, PathBuf};

use nbd::{Tls, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// A folder that clients take as `dir=`, with the server's files beside theirs.
pub struct Pki {
    pub dir: PathBuf,
}

impl Pki {
    /// Makes a folder and an authority of its own.
    pub fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, format!("authority of {}", dir.display()));
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), authority.pem()).unwrap();
        for (name, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            std::fs::write(dir.join(format!("{name}-cert.pem")), certificate.pem()).unwrap();
            std::fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        }
        Self { dir: dir.to_owned() }
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(name)).unwrap()
    }

    /// The server's side; with `clients` they have to show certificates of this authority.
    pub fn tls(&self, clients: bool) -> Result<Tls, TlsError> {
        let authority = self.read("ca-cert.pem");
        Tls::new(&self.read("server-cert.pem"), &self.read("server-key.pem"), clients.then_some(&authority))
    }
}
