//! What a person puts into QEMU's command line, or libvirt's definition of a machine.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::record::{CHAP_SECRET, Record, RecordedDisk, Served};

/// How long QEMU holds a guest's requests while it connects again.
const RECONNECT_SECONDS: u32 = 60;
/// Firmware of generation 2, where Debian and its descendants put it.
pub const UEFI: &str = "/usr/share/ovmf/OVMF.fd";

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// AHCI: every system has a driver.
    Sata,
    /// The fastest; Linux has it, Windows needs drivers.
    Virtio,
    /// virtio-scsi.
    Scsi,
}

/// The machine that is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// 1 starts with a BIOS, 2 with UEFI.
    pub generation: u8,
    /// Virtual processors.
    pub processors: u64,
    /// Memory.
    pub memory_mib: u64,
    /// Of its disks.
    pub bus: Bus,
}

/// A value within an option, where a comma would end it.
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

/// What makes the machine, without its disks.
pub fn machine_arguments(machine: &Machine) -> Vec<String> {
    let (memory, processors) = (machine.memory_mib.to_string(), machine.processors.to_string());
    let mut arguments: Vec<String> = ["-machine", "q35", "-accel", "kvm", "-accel", "tcg", "-cpu", "max"]
        .into_iter()
        .chain(["-m", &memory, "-smp", &processors, "-nic", "user,model=e1000e"])
        .map(str::to_owned)
        .collect();
    if machine.generation == 2 {
        arguments.extend(["-bios".to_owned(), UEFI.to_owned()]);
    }
    arguments
}

/// The disks, while they are served from `folder`'s session.
pub fn served_disks(record: &Record, folder: &Path) -> Vec<String> {
    let mut arguments = controller(record.machine.bus);
    if matches!(record.served, Served::Iscsi { .. }) {
        let file = value(&folder.join(CHAP_SECRET).display().to_string());
        arguments.extend(["-object".to_owned(), format!("secret,id=chap0,file={file}")]);
    }
    for (nth, disk) in record.disks.iter().enumerate() {
        let name = &disk.name;
        let node = match &record.served {
            Served::NbdSocket(path) => {
                let path = value(&path.display().to_string());
                format!(
                    "driver=nbd,server.type=unix,server.path={path},export={name},reconnect-delay={RECONNECT_SECONDS}"
                )
            }
            Served::Nbd(address) => format!(
                "driver=nbd,server.type=inet,server.host={},server.port={},export={name},reconnect-delay={RECONNECT_SECONDS}",
                address.ip(),
                address.port()
            ),
            // It connects again by itself, for as long as it takes.
            Served::Iscsi { portal, target, user } => format!(
                "driver=iscsi,transport=tcp,portal={portal},target={target},lun={nth},user={},password-secret=chap0",
                value(user)
            ),
        };
        arguments.extend(["-blockdev".to_owned(), format!("{node},node-name={name},discard=unmap")]);
        arguments.extend(device(record.machine.bus, disk, nth));
    }
    arguments
}

/// The disks, once they are files.
pub fn local_disks(record: &Record, files: &[String]) -> Vec<String> {
    let mut arguments = controller(record.machine.bus);
    for (nth, (disk, file)) in record.disks.iter().zip(files).enumerate() {
        let format = if file.to_ascii_lowercase().ends_with(".vhdx") { "vhdx" } else { "raw" };
        let (file, name) = (value(file), &disk.name);
        let node = format!("driver={format},node-name={name},discard=unmap,file.driver=file,file.filename={file}");
        arguments.extend(["-blockdev".to_owned(), node]);
        arguments.extend(device(record.machine.bus, disk, nth));
    }
    arguments
}

fn controller(bus: Bus) -> Vec<String> {
    match bus {
        Bus::Sata | Bus::Virtio => Vec::new(),
        Bus::Scsi => vec!["-device".to_owned(), "virtio-scsi-pci,id=scsi0".to_owned()],
    }
}

/// A guest whose disk fails for a while is stopped, not told of errors: `cont` lets it go on.
fn device(bus: Bus, disk: &RecordedDisk, nth: usize) -> [String; 2] {
    let model = match bus {
        Bus::Sata => format!("ide-hd,bus=ide.{nth}"),
        Bus::Virtio => "virtio-blk-pci".to_owned(),
        Bus::Scsi => "scsi-hd,bus=scsi0.0".to_owned(),
    };
    let boot = nth + 1;
    ["-device".to_owned(), format!("{model},drive={},werror=stop,rerror=stop,bootindex={boot}", disk.name)]
}

/// The elements `<disk>` of a libvirt domain.
pub fn libvirt(record: &Record) -> String {
    let bus = match record.machine.bus {
        Bus::Sata => "sata",
        Bus::Virtio => "virtio",
        Bus::Scsi => "scsi",
    };
    let letter = if record.machine.bus == Bus::Virtio { 'v' } else { 's' };
    let mut text = String::new();
    for (nth, disk) in (0..26_u8).zip(&record.disks) {
        let source = match &record.served {
            Served::NbdSocket(path) => {
                let path = escaped(&path.display().to_string());
                nbd_source(&disk.name, &format!("transport='unix' socket='{path}'"))
            }
            Served::Nbd(address) => {
                nbd_source(&disk.name, &format!("name='{}' port='{}'", address.ip(), address.port()))
            }
            Served::Iscsi { portal, target, user } => format!(
                "  <source protocol='iscsi' name='{target}/{nth}'>\n    <host name='{}' port='{}'/>\n    \
                 <auth username='{}'><secret type='iscsi' usage='e3-{}'/></auth>\n  </source>\n",
                portal.ip(),
                portal.port(),
                escaped(user),
                record.session,
            ),
        };
        let device = char::from(b'a' + nth);
        text += "<disk type='network' device='disk'>\n";
        text += "  <driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop' discard='unmap'/>\n";
        text += &source;
        text += &format!("  <target dev='{letter}d{device}' bus='{bus}'/>\n</disk>\n");
    }
    text
}

fn nbd_source(export: &str, host: &str) -> String {
    format!(
        "  <source protocol='nbd' name='{export}'>\n    <host {host}/>\n    <reconnect delay='{RECONNECT_SECONDS}'/>\n  \
         </source>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// As a shell takes it, an option on each line.
pub fn command_line(arguments: &[String]) -> String {
    let mut text = "qemu-system-x86_64".to_owned();
    for argument in arguments {
        text += if argument.starts_with('-') { " \\\n    " } else { " " };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:=/@%+".contains(c);
        match argument.chars().all(is_plain) {
            true => text += argument,
            false => text += &format!("'{}'", argument.replace('\'', "'\\''")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(served: Served, bus: Bus) -> Record {
        let disk = |number: u32| RecordedDisk {
            number,
            name: format!("disk{number}"),
            virtual_disk_id: String::new(),
            size_bytes: 1 << 30,
        };
        Record {
            session: "5e".into(),
            point_id: "p".into(),
            vm_id: "v".into(),
            vm_name: "DC01".into(),
            begun: jiff::Timestamp::UNIX_EPOCH,
            served,
            machine: Machine { generation: 2, processors: 2, memory_mib: 4096, bus },
            disks: vec![disk(0), disk(2)],
            hyperv: None,
        }
    }

    #[test]
    fn every_transport_is_written_as_qemu_reads_it() {
        let folder = Path::new("/s/5e");
        let socket = record(Served::NbdSocket("/s/a,b/nbd.sock".into()), Bus::Virtio);
        let arguments = served_disks(&socket, folder).join(" ");
        let first = "-blockdev driver=nbd,server.type=unix,server.path=/s/a,,b/nbd.sock,export=disk0,\
                     reconnect-delay=60,node-name=disk0,discard=unmap \
                     -device virtio-blk-pci,drive=disk0,werror=stop,rerror=stop,bootindex=1";
        assert!(arguments.starts_with(first), "{arguments}");
        assert!(arguments.contains("export=disk2") && arguments.contains("bootindex=2"), "{arguments}");

        let tcp = record(Served::Nbd("127.0.0.1:10809".parse().unwrap()), Bus::Sata);
        let arguments = served_disks(&tcp, folder).join(" ");
        assert!(arguments.contains("server.type=inet,server.host=127.0.0.1,server.port=10809"), "{arguments}");
        assert!(arguments.contains("ide-hd,bus=ide.0") && arguments.contains("ide-hd,bus=ide.1"), "{arguments}");

        let iscsi = Served::Iscsi {
            portal: "127.0.0.1:3260".parse().unwrap(),
            target: "iqn.2026-01.internal.e3:5e".into(),
            user: "e3".into(),
        };
        let iscsi = record(iscsi, Bus::Scsi);
        let arguments = served_disks(&iscsi, folder).join(" ");
        let secret = format!("-object secret,id=chap0,file={} ", folder.join("chap-secret").display());
        assert!(arguments.contains(&secret), "{arguments}");
        assert!(arguments.contains("target=iqn.2026-01.internal.e3:5e,lun=1,user=e3,password-secret=chap0"));
        assert!(arguments.contains("virtio-scsi-pci,id=scsi0") && arguments.contains("scsi-hd,bus=scsi0.0"));
        let text = libvirt(&iscsi);
        assert!(
            text.contains("name='iqn.2026-01.internal.e3:5e/1'") && text.contains("dev='sdb' bus='scsi'"),
            "{text}"
        );
    }

    #[test]
    fn files_are_what_their_names_say() {
        let record = record(Served::NbdSocket("s".into()), Bus::Virtio);
        let arguments = local_disks(&record, &["/d/a.vhdx".into(), "/d/b.raw".into()]).join(" ");
        assert!(arguments.contains("driver=vhdx,node-name=disk0") && arguments.contains("driver=raw,node-name=disk2"));
    }

    #[test]
    fn a_shell_reads_the_command_line_back() {
        let arguments = ["-m", "1", "-bios", "/it's here/OVMF.fd"].map(str::to_owned);
        let text = command_line(&arguments);
        assert_eq!(text, "qemu-system-x86_64 \\\n    -m 1 \\\n    -bios '/it'\\''s here/OVMF.fd'");
    }
}
