//! The world of a story: two hosts, a store, an agent on each host, and those who act beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup::BackupError;
use bucket::{Bucket, Faulty};
use hyperv::seam::Seam;
use hyperv_sim::{
    AfterApply, AfterMove, DiskSource, JobStyle, LabHost, LabOptions, MarkerRetention, ReferenceOutputs, Sequences,
    VmOptions,
};
use kopia_repo::format::format_blob::{FORMAT_BLOB_ID, FormatBlob, UnlockedFormat};
use kopia_repo::{ClientOptions, CreateOptions, Repository, Storage, StorageKind};

use crate::border::Border;
use crate::host::{BytesRead, seam};
use crate::laws::{self, Law, Violation};
use crate::model::{Disk, Model, Vm};
use crate::store::Stamped;
use crate::story::{self, Act, Setup, Story};

pub(crate) const HALF_MIB: u64 = 512 << 10;
const PASSWORD: &str = "of a simulation";
/// The names under which the agents know their hosts.
pub(crate) const HOST_NAMES: [&str; 2] = ["HOSTA", "HOSTB"];

/// How often each thing happened.
pub type Counts = BTreeMap<String, u64>;

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) hosts: Vec<HostOf>,
    pub(crate) border: Arc<Border>,
    pub(crate) store: Arc<Faulty<Stamped>>,
    /// A stranger's view of the store, which nothing ever happens to.
    pub(crate) observer: Arc<Repository>,
    pub(crate) agent: Mutex<Option<Arc<Repository>>>,
    pub(crate) offset_ms: Arc<AtomicI64>,
    pub(crate) read: BytesRead,
    pub(crate) model: Mutex<Model>,
    counts: Mutex<Counts>,
    found: Mutex<Option<Violation>>,
}

pub(crate) struct HostOf {
    pub(crate) lab: Arc<LabHost>,
    pub(crate) seam: Seam,
    pub(crate) state: PathBuf,
}

/// A repository as it is right after its creation: deriving the key from the password takes longer than a story.
pub(crate) struct Template {
    store: Stamped,
    pub(crate) repo: Arc<Repository>,
}

pub(crate) fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let _seeded = random::seed_this_thread(0);
        // The beginning of virtual time on the hosts.
        let begin = || UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let client = ClientOptions { clock: Arc::new(begin), inline: true, ..ClientOptions::new("e3", "HOSTA") };
        let store = Arc::new(Stamped::new(Arc::new(begin)));
        let storage = Storage { bucket: store.clone(), kind: StorageKind::ObjectStore };
        let repo = Repository::create(&storage, PASSWORD, &CreateOptions::new("e3"), client);
        Template { repo: repo.expect("memory takes a repository"), store: Stamped::copy_of(&*store, Arc::new(begin)) }
    })
}

/// Folders of stories: in memory where the system has such a place.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("there is room for a folder")
}

impl World {
    /// The world at the beginning of a story. The thread is seeded.
    pub(crate) fn new(story: &Story, trace: bool) -> Arc<Self> {
        let template = template();
        let dir = folder();
        let border = Border::new(trace);
        let offset_ms = Arc::new(AtomicI64::new(0));
        let read = Arc::new(AtomicU64::new(0));
        let hosts: Vec<HostOf> = HOST_NAMES
            .iter()
            .map(|name| {
                let options = lab_options(&story.setup, name);
                let lab = LabHost::create_with(dir.path().join(name), options).expect("a new folder takes a host");
                let seam = seam(&lab, &border, &offset_ms, &read);
                HostOf { lab, seam, state: dir.path().join(format!("state of {name}")) }
            })
            .collect();
        let now = {
            let labs: Vec<_> = hosts.iter().map(|host| host.lab.clock()).collect();
            move || labs.iter().map(|clock| clock.now()).max().expect("there are hosts")
        };
        let store = Arc::new(Faulty::new(Stamped::copy_of(&template.store, Arc::new(now.clone()))));
        let storage = Storage { bucket: store.clone() as Arc<dyn Bucket>, kind: StorageKind::ObjectStore };
        let client =
            ClientOptions { clock: Arc::new(now), inline: true, ..ClientOptions::new("observer", "elsewhere") };
        let observer = template.repo.open_beside(&storage, client).expect("a new repository opens");
        let world = Arc::new(Self {
            setup: story.setup.clone(),
            dir,
            hosts,
            border: border.clone(),
            store,
            observer,
            agent: Mutex::default(),
            offset_ms,
            read,
            model: Mutex::default(),
            counts: Mutex::default(),
            found: Mutex::default(),
        });
        border.surround(&world);
        world.count_tracking();
        for (number, disks) in story.setup.vms.iter().enumerate() {
            world.add_vm(number, disks);
        }
        world
    }

    fn add_vm(&self, number: usize, disks: &[u8]) {
        let lab = &self.hosts[0].lab;
        let name = format!("VM{number}");
        let sources: Vec<DiskSource> =
            disks.iter().map(|units| DiskSource::Empty { size_bytes: u64::from(*units) * HALF_MIB }).collect();
        let id = lab.add_vm(&name, &sources, VmOptions::default()).expect("a new host takes a VM");
        let disks = self.disks_of(lab, &id, 0);
        self.model().vms.push(Vm {
            id,
            name,
            host: 0,
            running: true,
            disks,
            detached: Vec::new(),
            checkpoints: Vec::new(),
            foreign_checkpoints: Vec::new(),
            foreign_reference_points: Vec::new(),
            run: None,
            full_excused: false,
        });
    }

    /// The disks of a VM as its files have them.
    pub(crate) fn disks_of(&self, lab: &LabHost, vm: &str, event: u64) -> Vec<Disk> {
        let count = lab.disk_count(vm).expect("the VM is there");
        (0..count).map(|disk| Disk::new(key_of(lab, vm, disk), laws::guest_disk(lab, vm, disk), event)).collect()
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vm_count(&self) -> usize {
        self.model().vms.len()
    }

    pub(crate) fn count(&self, what: impl Into<String>) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what.into()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (what, deaths) in self.border.deaths() {
            *counts.entry(format!("crash {what}")).or_default() += deaths;
        }
        counts
    }

    /// Remembers the first violation.
    pub(crate) fn find(&self, law: Law, what: String) {
        let violation = Violation { law, what };
        self.border.tell(&format!("found {violation}"));
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(violation);
    }

    pub(crate) fn found(&self) -> Option<Violation> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn lab(&self, vm: usize) -> Arc<LabHost> {
        let host = self.model().vms[vm].host;
        self.hosts[host].lab.clone()
    }

    pub(crate) fn id_and_lab(&self, vm: usize) -> (String, Arc<LabHost>) {
        let id = self.model().vms[vm].id.clone();
        (id, self.lab(vm))
    }

    /// Both hosts live in the same time.
    pub(crate) fn synchronise(&self) {
        let times: Vec<SystemTime> = self.hosts.iter().map(|host| host.lab.clock().now()).collect();
        let latest = *times.iter().max().expect("there are hosts");
        for (host, time) in self.hosts.iter().zip(times) {
            host.lab.clock().sleep(latest.duration_since(time).unwrap_or_default());
        }
    }

    /// Time passes, also for what is due on the hosts.
    pub(crate) fn wait(&self, duration: Duration) {
        self.synchronise();
        for host in &self.hosts {
            host.lab.clock().sleep(duration);
        }
        for vm in 0..self.vm_count() {
            let (id, lab) = self.id_and_lab(vm);
            let _ = lab.is_at_rest(&id);
        }
    }

    pub(crate) fn set_clock_offset(&self, seconds: i64) {
        self.model().clock_offset_s = seconds;
        self.offset_ms.store(seconds * 1000, Ordering::Relaxed);
    }

    pub(crate) fn restart_agent(&self) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Looks whether a checkpoint of a run appeared; what it froze is what the guest has now. Called before anything
    /// changes a disk, and at calls that follow the making of a checkpoint.
    pub(crate) fn observe_freeze(&self) {
        for vm in 0..self.vm_count() {
            let (id, lab) = {
                let model = self.model();
                if model.vms[vm].run.is_none() {
                    continue;
                }
                (model.vms[vm].id.clone(), self.hosts[model.vms[vm].host].lab.clone())
            };
            let Ok((_, recovery)) = lab.checkpoints(&id) else { continue };
            let mut model = self.model();
            let event = model.event;
            let vm = &mut model.vms[vm];
            let frozen = vm.freeze(event);
            let foreign = vm.foreign_checkpoints.clone();
            let run = vm.run.as_mut().expect("checked above");
            for checkpoint in recovery {
                let seen = run.known.contains(&checkpoint) || foreign.contains(&checkpoint);
                if !seen && run.frozen.iter().all(|(known, _)| *known != checkpoint) {
                    run.frozen.push((checkpoint, frozen.clone()));
                }
            }
        }
    }
}

fn lab_options(setup: &Setup, name: &str) -> LabOptions {
    let tracking = &setup.tracking;
    LabOptions {
        host_name: name.into(),
        jobs: if setup.synchronous { JobStyle::Synchronous } else { JobStyle::ByJob },
        reference_outputs: if setup.null_references { ReferenceOutputs::Null2025 } else { ReferenceOutputs::Filled },
        marker_retention: if tracking.keeps_markers { MarkerRetention::Keep } else { MarkerRetention::DropAtOnce },
        granularity_bytes: 1 << tracking.granularity,
        superset: tracking.superset,
        longest_range_bytes: if tracking.short_ranges { 64 << 10 } else { 0 },
        refuse_whole_disk_query: tracking.refuses_whole_disk,
        sequences: if tracking.reuses_ids { Sequences::ReusedAfterRevert } else { Sequences::NeverReused },
        after_apply: if tracking.lies_after_apply { AfterApply::OldIdsAnswerWrongly } else { AfterApply::OldIdsFail },
        after_move: match tracking.after_move {
            story::AfterMove::Kept => AfterMove::Kept,
            story::AfterMove::Lost => AfterMove::Lost,
            story::AfterMove::KeptButWrong => AfterMove::KeptButWrong,
        },
        allow_second_recovery_checkpoint: true,
        ..LabOptions::default()
    }
}

impl World {
    fn count_tracking(&self) {
        let tracking = &self.setup.tracking;
        let modes = [
            ("superset", tracking.superset),
            ("short ranges", tracking.short_ranges),
            ("refuses whole disk", tracking.refuses_whole_disk),
            ("reuses ids", tracking.reuses_ids),
            ("lies after apply", tracking.lies_after_apply),
            ("kept after move", tracking.after_move == story::AfterMove::Kept),
            ("lost after move", tracking.after_move == story::AfterMove::Lost),
            ("kept but wrong after move", tracking.after_move == story::AfterMove::KeptButWrong),
            ("keeps markers", tracking.keeps_markers),
        ];
        for (mode, is_on) in modes {
            if is_on {
                self.count(format!("tracking {mode}"));
            }
        }
        self.count(format!("tracking granularity {}", 1_u64 << tracking.granularity));
    }
}

/// The words of a panic.
pub(crate) fn text_of(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Name of the first file of a disk's chain.
pub(crate) fn key_of(lab: &LabHost, vm: &str, disk: usize) -> String {
    key_of_chain(&lab.disk_chain(vm, disk).expect("the VM has the disk"))
}

pub(crate) fn key_of_chain(chain: &[String]) -> String {
    let base = chain.last().expect("a chain has a file");
    base.rsplit('\\').next().expect("a path has a name").to_lowercase()
}

/// The name of an act, without what it is done to.
pub(crate) fn name_of(act: &Act) -> String {
    let text = format!("{act:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// The name of an error's variant: no paths, no numbers.
pub(crate) fn kind_of(error: &BackupError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The keys of every story's repository, as the password unlocks them.
pub(crate) fn unlocked() -> &'static UnlockedFormat {
    static UNLOCKED: OnceLock<UnlockedFormat> = OnceLock::new();
    UNLOCKED.get_or_init(|| {
        let blob = template().store.get(FORMAT_BLOB_ID).expect("a repository has a format blob");
        FormatBlob::parse(&blob).expect("it was just made").unlock(PASSWORD).expect("with this password")
    })
}
