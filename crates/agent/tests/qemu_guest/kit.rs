//! A guest made of Debian packages: a kernel, an initrd, and a disk with busybox and the QEMU guest agent on ext4.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::cpio::Archive;
use crate::filesystem::program;
use crate::support::{hex, random_bytes};

/// Programs that the test runs, with the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mke2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("dpkg", "dpkg"),
    ("apt-get", "apt"),
];
/// Modules of Debian's kernel that lead to the disk and the agent's port, in the order of their dependencies.
const MODULES: [&str; 7] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
    "char/virtio_console",
];
const INITRD_INIT: &str = include_str!("initrd-init.sh");
const GUEST_INIT: &str = include_str!("guest-init.sh");
const DISK_BYTES: u64 = 1 << 30;
/// Incompressible data that is on the disk from the beginning.
pub const PAYLOAD_BYTES: usize = 64 << 20;

/// What it is made of.
pub const PAYLOAD_SEED: u64 = 4711;

/// Files to boot a guest from.
pub struct Kit {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Raw; must not be changed.
    pub disk: PathBuf,
}

impl Kit {
    /// Makes the guest, or takes the one that was made before. The error says what is missing on this machine.
    pub fn obtain() -> Result<Kit, String> {
        for (name, package) in PROGRAMS {
            if Command::new(program(name)).arg("--version").output().is_err() {
                return Err(format!("{name} is not installed (Debian package {package})"));
            }
        }
        if !cfg!(target_arch = "x86_64") {
            return Err("the guest is made for x86-64".into());
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        fs::create_dir_all(&folder).unwrap();
        // Other tests, and other runs, wait for whoever makes it.
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        let kit =
            Kit { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd.img"), disk: folder.join("disk.raw") };
        let recipe = hex(&Sha256::digest([INITRD_INIT, GUEST_INIT, include_str!("kit.rs")].concat()));
        let made = folder.join("made-by");
        if fs::read_to_string(&made).is_ok_and(|found| found == recipe) {
            return Ok(kit);
        }
        let packages = unpack_packages(&folder)?;
        kit.make(&packages, &folder)?;
        fs::remove_dir_all(packages).unwrap();
        fs::write(made, recipe).unwrap();
        Ok(kit)
    }

    fn make(&self, packages: &Path, folder: &Path) -> Result<(), String> {
        let kernel = only_file(&packages.join("boot"), "vmlinuz-");
        fs::copy(&kernel, &self.kernel).unwrap();
        let version = kernel.file_name().unwrap().to_str().unwrap().trim_start_matches("vmlinuz-").to_owned();
        let drivers = packages.join("lib/modules").join(version).join("kernel/drivers");
        let busybox = fs::read(packages.join("bin/busybox")).unwrap();

        let mut initrd = Archive::default();
        for folder in ["bin", "dev", "proc", "sys", "newroot", "modules"] {
            initrd.folder(folder);
        }
        initrd.file("bin/busybox", &busybox);
        initrd.file("init", INITRD_INIT.as_bytes());
        let mut order = String::new();
        for module in MODULES {
            let (_, name) = module.split_once('/').unwrap();
            let content =
                fs::read(drivers.join(format!("{module}.ko"))).map_err(|e| format!("module {module}: {e}"))?;
            initrd.file(&format!("modules/{name}.ko"), &content);
            order += &format!("{name}.ko\n");
        }
        initrd.file("modules/order", order.as_bytes());
        fs::write(&self.initrd, initrd.finish()).unwrap();

        let root = folder.join("root");
        make_root(&root, packages, &busybox)?;
        let _ = fs::remove_file(&self.disk);
        File::create(&self.disk).unwrap().set_len(DISK_BYTES).unwrap();
        // Nothing is left for the guest to initialise: it would write to the disk by itself.
        run(Command::new(program("mke2fs"))
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-L",
                "root",
                "-E",
                "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
            ])
            .arg("-d")
            .arg(&root)
            .arg(&self.disk))?;
        fs::remove_dir_all(root).unwrap();
        Ok(())
    }
}

/// The guest's root folder.
fn make_root(root: &Path, packages: &Path, busybox: &[u8]) -> Result<(), String> {
    let _ = fs::remove_dir_all(root);
    let libraries = "lib/x86_64-linux-gnu";
    for folder in ["bin", "sbin", "dev", "proc", "sys", "run", "etc", "data", "var", "lib64", "usr/sbin", libraries] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::os::unix::fs::symlink("/run", root.join("var/run")).unwrap();
    write_program(&root.join("bin/busybox"), busybox);
    write_program(&root.join("sbin/init"), GUEST_INIT.as_bytes());
    let agent = packages.join("usr/sbin/qemu-ga");
    write_program(&root.join("usr/sbin/qemu-ga"), &fs::read(&agent).unwrap());
    // QEMU's package has brought the same libraries to this machine.
    let needed = run(Command::new("ldd").arg(&agent))?;
    if needed.contains("not found") {
        return Err(format!("libraries of the guest agent are not installed: {needed}"));
    }
    for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(library).file_name().unwrap();
        let folder = if library.starts_with("/lib64/") { "lib64" } else { libraries };
        write_program(&root.join(folder).join(name), &fs::read(library).unwrap());
    }
    fs::write(root.join("data/payload.bin"), random_bytes(PAYLOAD_BYTES, PAYLOAD_SEED)).unwrap();
    Ok(())
}

fn write_program(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Downloads the packages and unpacks them into a folder; nothing is installed.
fn unpack_packages(folder: &Path) -> Result<PathBuf, String> {
    let depends = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = kernel.ok_or("apt knows no kernel package linux-image-cloud-amd64 (`apt-get update`)")?;
    let packages = folder.join("packages");
    let _ = fs::remove_dir_all(&packages);
    fs::create_dir_all(&packages).unwrap();
    run(Command::new("apt-get")
        .args(["download", "-q", kernel, "qemu-guest-agent", "busybox-static"])
        .current_dir(&packages))?;
    for entry in fs::read_dir(&packages).unwrap() {
        let package = entry.unwrap().path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&package).arg(&packages))?;
        }
    }
    Ok(packages)
}

fn only_file(folder: &Path, prefix: &str) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found = files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    found.next().expect("the package holds it")
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
