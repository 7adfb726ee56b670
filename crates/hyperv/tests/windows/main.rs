//! The Windows half against the machine it runs on: under Wine as far as Wine goes, and on Windows in full.

#![cfg(windows)]

mod files;
mod virt_disk;
mod wmi;

/// Whether this is Wine, and no Windows: what a test skips then is a gap of Wine's, not of the product.
fn is_wine() -> bool {
    std::path::Path::new(r"C:\windows\system32\winecfg.exe").is_file()
}
