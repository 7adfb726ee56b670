//! A guest that runs: a QEMU process whose disk is an NBD export.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::kit::Kit;

/// Emulated, on a machine that may be busy with other tests.
const BOOT_LIMIT: Duration = Duration::from_secs(150);

/// Ends with this value, or with the thread that started it.
pub struct Machine {
    qemu: Child,
    serial: PathBuf,
    log: PathBuf,
    /// Where the guest agent listens.
    pub agent_socket: PathBuf,
}

impl Machine {
    /// Starts the guest on the export `disk` at the Unix socket `nbd`, with its files in `folder`.
    pub fn start(kit: &Kit, nbd: &Path, folder: &Path) -> Self {
        let drive = format!(
            "if=none,id=d0,driver=nbd,server.type=unix,server.path={},export=disk,discard=unmap",
            nbd.display()
        );
        Self::start_on(kit, &["-drive", &drive, "-device", "virtio-blk-pci,drive=d0"].map(str::to_owned), folder)
    }

    /// Starts the guest on the first virtio disk of these arguments; `qmp` in `folder` is QEMU's control socket.
    pub fn start_on(kit: &Kit, disks: &[String], folder: &Path) -> Self {
        let (serial, log, agent_socket) = (folder.join("serial"), folder.join("qemu.log"), folder.join("qga.sock"));
        let mut command = match Command::new("setpriv").arg("--version").output() {
            // So that a test that is killed leaves no guest behind.
            Ok(_) => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
                command
            }
            Err(_) => Command::new("qemu-system-x86_64"),
        };
        command
            .args(["-accel", "tcg", "-machine", "q35", "-m", "256", "-smp", "1"])
            .args(["-nodefaults", "-nographic", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .arg("-kernel")
            .arg(&kit.kernel)
            .arg("-initrd")
            .arg(&kit.initrd)
            .args(["-append", "console=ttyS0 quiet panic=1"])
            .args(disks)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", folder.join("qmp").display()))
            .arg("-chardev")
            .arg(format!("socket,path={},server=on,wait=off,id=q0", agent_socket.display()))
            .args(["-device", "virtio-serial", "-device", "virtserialport,chardev=q0,name=org.qemu.guest_agent.0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let mut machine = Self { qemu: command.spawn().unwrap(), serial, log, agent_socket };
        machine.wait_until_ready();
        machine
    }

    fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        loop {
            let said = self.said();
            if said.contains("GUEST-READY") {
                println!("the guest was ready after {:.1} s", begun.elapsed().as_secs_f64());
                return;
            }
            let ended = self.qemu.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < BOOT_LIMIT,
                "the guest does not start ({ended:?}): {said}{}",
                fs::read_to_string(&self.log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the guest has written to its console.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
