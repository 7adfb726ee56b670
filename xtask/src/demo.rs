//! `cargo xtask demo`: a backup and a restore, played with real disks and explained.
//!
//! The agent's program is called as a user calls it; the guest's part is played by this program, through the
//! simulated host. What a disk held at the time of each backup is noted by reading the guest's disk, so that the
//! comparison at the end owes nothing to the code that backed it up.

mod guest;
mod lab_disk;
mod page_cache;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use self::lab_disk::LabDisk;
use self::lab_disk::RawFile;
use crate::agent::Agent;
use crate::disk_content::expect_content;
use crate::figures::{size, table};
use crate::folder::{disk_usage_bytes, make_empty};
use crate::options::DemoOptions;
use crate::process::{find_program, output_of};
use crate::report::{heading, seconds};
use crate::workspace::Workspace;

const PASSWORD: &str = "a password for the demo only";

/// Plays the whole story; fails when anything restored differs from what the guest had.
pub fn run(options: &DemoOptions) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let folder = make_empty(&options.dir)?;
    if options.server {
        return server::run(&workspace, &folder, options.then_exit);
    }
    let agent = Agent::build(&workspace, &folder, PASSWORD)?;
    fs::create_dir(folder.join("restored")).context("create the folder for restored disks")?;

    let machines = match &options.disk {
        Some(disk) => vec![Machine { name: "mine", play: Play::OwnDisk(disk.clone()) }],
        None => vec![
            Machine { name: "files01", play: Play::Files { disk_gib: 4, files_mib: 300, day_mib: 16 } },
            Machine { name: "web01", play: Play::Files { disk_gib: 1, files_mib: 60, day_mib: 8 } },
        ],
    };
    let mut story = Story { agent, folder, machines, rows: Vec::new(), stored_bytes: 0 };
    let begun = Instant::now();
    story.play()?;
    println!("\nThe story took {} after the build.", seconds(begun.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// A virtual machine of the story.
struct Machine {
    name: &'static str,
    play: Play,
}

/// What its guest does.
enum Play {
    /// Formats its disk, and works with files.
    Files { disk_gib: u64, files_mib: usize, day_mib: usize },
    /// Writes at random places of a disk that the user brought.
    OwnDisk(PathBuf),
}

/// What a guest's disk held at some time.
struct Moment {
    sha256: String,
    files: Option<guest::Listing>,
}

struct Story {
    agent: Agent,
    folder: PathBuf,
    machines: Vec<Machine>,
    /// Of the table at the end: step, time, repository's growth.
    rows: Vec<[String; 3]>,
    stored_bytes: u64,
}

impl Story {
    fn play(&mut self) -> Result<()> {
        heading("a Hyper-V host in a folder, and an empty repository");
        println!("The host is simulated; its disks are real VHDX files. The repository is in Kopia's format.");
        self.agent.show(["lab", "create", &self.lab()])?;
        for machine in &self.machines {
            match &machine.play {
                Play::Files { disk_gib, .. } => {
                    let size = format!("{disk_gib}GiB");
                    self.agent.show(["lab", "add-vm", &self.lab(), machine.name, "--size", &size])?;
                }
                Play::OwnDisk(disk) => {
                    let disk = disk.to_str().context("the path of the disk is not Unicode")?;
                    self.agent.show(["lab", "add-vm", &self.lab(), machine.name, "--disk", disk])?;
                }
            }
        }
        self.agent.show(["repo", "create"])?;
        self.agent.show(["vm", "list"])?;
        self.stored_bytes = disk_usage_bytes(self.agent.repository())?;

        heading("day 0: the first backup is a full one");
        self.first_day()?;
        let day_0 = self.note_moment()?;
        self.back_up("full backup")?;

        heading("day 1: the guests work; the next backup reads what they changed");
        self.work(1)?;
        let day_1 = self.note_moment()?;
        self.back_up("incremental, day 1")?;

        heading("day 2: and again");
        self.work(2)?;
        let day_2 = self.note_moment()?;
        self.back_up("incremental, day 2")?;
        for (machine, ((a, b), c)) in self.machines.iter().zip(day_0.iter().zip(&day_1).zip(&day_2)) {
            if a.sha256 == b.sha256 || b.sha256 == c.sha256 {
                bail!("the guest of {} changed nothing in a day: the comparison would prove nothing", machine.name);
            }
        }

        heading("back to day 1");
        println!("Every point is a whole disk: the middle one is restored without the first or the last.");
        self.restore_and_compare(&day_1)?;

        heading("the points, and a check of every byte of them");
        self.agent.show(["points", "list"])?;
        let points: Vec<String> =
            self.names().iter().flat_map(|name| [1, 2, 3].map(|newest| format!("{name}@{newest}"))).collect();
        let arguments = ["verify"].into_iter().chain(points.iter().map(String::as_str)).chain(["--level", "full"]);
        let (time, _) = self.agent.show(arguments)?;
        self.row(&format!("verify every byte of {} points", points.len()), time, None);
        self.close()
    }

    fn first_day(&mut self) -> Result<()> {
        for machine in &self.machines {
            let Play::Files { files_mib, disk_gib, .. } = machine.play else { continue };
            let begun = Instant::now();
            let mut disk = LabDisk::open(self.agent.lab(), machine.name)?;
            guest::format_disk(&mut disk, machine.name)?;
            guest::install_files(&mut disk, files_mib, disk_gib)?;
            println!(
                "{}: partitioned, formatted with FAT32, about {files_mib} MiB of files written ({})",
                machine.name,
                seconds(begun.elapsed())
            );
        }
        Ok(())
    }

    fn work(&mut self, day: u64) -> Result<()> {
        for machine in &self.machines {
            match &machine.play {
                Play::Files { day_mib, .. } => {
                    let mut disk = LabDisk::open(self.agent.lab(), machine.name)?;
                    guest::work_for_a_day(&mut disk, day, *day_mib)?;
                    println!(
                        "{}: a journal grew, a database changed in {day_mib} places, {} pictures came, \
                         one document was deleted and one renamed",
                        machine.name,
                        day_mib / 4
                    );
                }
                Play::OwnDisk(_) => {
                    self.agent.show([
                        "lab",
                        "write",
                        &self.lab(),
                        machine.name,
                        "--seed",
                        &day.to_string(),
                        "--mib",
                        "64",
                    ])?;
                }
            }
        }
        Ok(())
    }

    /// Reads every disk as its guest does.
    fn note_moment(&self) -> Result<Vec<Moment>> {
        let note = |machine: &Machine| {
            let mut disk = LabDisk::open(self.agent.lab(), machine.name)?;
            let files = match machine.play {
                Play::Files { .. } => Some(guest::list_files(&mut disk)?),
                Play::OwnDisk(_) => None,
            };
            let sha256 = disk.sha256()?;
            let count = files.as_ref().map_or(String::new(), |files| format!(", {} files", files.len()));
            println!("noted what {} holds: SHA-256 {}…{count}", machine.name, &sha256[..16]);
            Ok(Moment { sha256, files })
        };
        self.machines.iter().map(note).collect()
    }

    fn back_up(&mut self, step: &str) -> Result<()> {
        let (time, _) = self.agent.show(["backup"].into_iter().chain(self.names()))?;
        let stored_bytes = disk_usage_bytes(self.agent.repository())?;
        self.row(step, time, Some(stored_bytes.saturating_sub(self.stored_bytes)));
        self.stored_bytes = stored_bytes;
        Ok(())
    }

    fn restore_and_compare(&mut self, moments: &[Moment]) -> Result<()> {
        for (name, moment) in self.names().into_iter().zip(moments) {
            let point = format!("{name}@2");
            let raw = self.folder.join("restored").join(format!("{name}.raw"));
            let vhdx = raw.with_extension("vhdx");
            for (file, format) in [(&raw, "raw"), (&vhdx, "vhdx")] {
                let shown = file.to_str().context("the path of the demo's folder is not Unicode")?;
                let (time, _) = self.agent.show(["restore", "disk", &point, "--to", shown, "--format", format])?;
                self.row(&format!("restore {point}, {format}"), time, None);
            }
            for file in [&raw, &vhdx] {
                expect_content(file, &moment.sha256, "the restore")?;
            }
            println!("\nequal: both files hold what the guest had, SHA-256 {}…", &moment.sha256[..16]);
            if let Some(expected) = &moment.files {
                compare_files(&raw, expected)?;
            }
            compare_by_qemu(&raw, &vhdx)?;
        }
        Ok(())
    }

    fn row(&mut self, step: &str, time: Duration, grown_bytes: Option<u64>) {
        self.rows.push([step.to_owned(), seconds(time), grown_bytes.map_or_else(|| "–".into(), size)]);
    }

    /// The table, and what to try next.
    fn close(&self) -> Result<()> {
        heading("what was seen");
        let header = ["STEP", "TIME", "REPOSITORY GREW BY"].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = [header].into_iter().chain(self.rows.iter().map(|row| row.to_vec())).collect();
        print!("{}", table(&rows));
        let on_disk = disk_usage_bytes(self.agent.lab())?;
        println!(
            "\nThe guests' disks occupy {} now, the repository with three points of each {}.",
            size(on_disk),
            size(self.stored_bytes)
        );
        println!("Everything restored is what the guests had at that moment, byte for byte.");

        let environment = self.folder.join("environment.sh");
        let exports = self.agent.environment().map(|(name, value)| format!("export {name}='{value}'\n")).concat();
        let folder_of_program = self.agent.program().parent().unwrap_or(Path::new("/"));
        let path = format!("export PATH='{}':\"$PATH\"\n", folder_of_program.display());
        fs::write(&environment, exports + &path).with_context(|| format!("write {}", environment.display()))?;

        let (name, folder) = (self.machines[0].name, self.folder.display());
        println!("\nThe folder {folder} is yours to play with. Next:\n");
        println!("  . {}", environment.display());
        println!("  e3-backup-agent points show {name}@latest");
        println!("  e3-backup-agent lab write {} {name} --seed 7 --mib 20", self.lab());
        println!("  e3-backup-agent backup {name}");
        println!("  e3-backup-agent restore disk {name}@1 --to {folder}/restored/newest.vhdx");
        println!("  e3-backup-agent verify {name}@latest --level full");
        if let Play::Files { .. } = self.machines[0].play {
            println!("  sudo mount -o loop,ro,offset=1048576 {folder}/restored/{name}.raw /mnt   look into a disk");
        }
        println!("  export KOPIA_PASSWORD=\"$E3_PASSWORD\" KOPIA_CONFIG_PATH={folder}/kopia.config");
        println!("  kopia repository connect filesystem --path {folder}/repo");
        println!("  kopia snapshot list --all                     stock Kopia sees the same points");
        println!("  cargo xtask demo --disk YOUR.vhdx             the same with a disk of your own");
        Ok(())
    }

    fn names(&self) -> Vec<&'static str> {
        self.machines.iter().map(|machine| machine.name).collect()
    }

    fn lab(&self) -> String {
        self.agent.lab().display().to_string()
    }
}

/// Looks into the restored disk's file system.
fn compare_files(raw: &Path, expected: &guest::Listing) -> Result<()> {
    let mut disk = RawFile::open(raw)?;
    let found = guest::list_files(&mut disk)?;
    let shown =
        found.iter().filter(|(path, _)| path.to_lowercase().contains("day") || path.contains("Journals")).take(8);
    for (path, (len_bytes, sha256)) in shown {
        println!("  {:>10}  {}…  {path}", size(*len_bytes), &sha256[..12]);
    }
    if &found != expected {
        let paths = || found.keys().chain(expected.keys());
        let odd = paths().find(|path| found.get(*path) != expected.get(*path));
        bail!("the files in {} DIFFER, first at {}", raw.display(), odd.map_or("?", String::as_str));
    }
    println!("equal: all {} files in it, by path, size and SHA-256", found.len());
    Ok(())
}

/// A second opinion on the VHDX, where QEMU's tools are installed.
fn compare_by_qemu(raw: &Path, vhdx: &Path) -> Result<()> {
    let Some(qemu_img) = find_program("qemu-img") else { return Ok(()) };
    let mut command = std::process::Command::new(qemu_img);
    command.args(["compare", "-f", "raw", "-F", "vhdx"]).args([raw, vhdx]);
    output_of(&mut command).context("compare the raw disk and the VHDX")?;
    println!("equal: qemu-img, too, finds the same disk in both files");
    Ok(())
}
