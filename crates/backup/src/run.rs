//! One backup of one VM: the plan, then the steps of spec hyperv 0.4 and DESIGN 4, in that order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::ObjectPath;
use hyperv::{
    ChainBefore, ChainMember, Checkpoint, CheckpointRequest, CreateError, ErrorKind, Exclusion, FrozenDisk,
    FrozenReader, Host, MergeOutcome, Vm, VmState, VssReadiness,
};
use jiff::Timestamp;
use kopia_repo::{CompressionId, Repository, SessionOptions, WriteSession};
use vhdx::{Guid, VirtualDisk};

use crate::audit::audit;
use crate::commit::{DraftFile, PointDraft, commit, timestamp};
use crate::decision::{Decision, DiskFacts, FullReason, VmFacts, decide, reason_of_failed_query};
use crate::disk_backup::{DiskBackup, StoredDisk, lost_pieces, lost_segments, touched_segments};
use crate::disk_object::DiskObject;
use crate::layout::{LAYOUT_VERSION, Layout};
use crate::observer::{Event, Observer};
use crate::point::{
    AbsentDisk, POINT_VERSION, Point, PointChainFile, PointDescription, PointDisk, ReadMode, list_points,
};
use crate::state::{Converted, HostState, Intent, JournalReferencePoint, VmJournal, random_hex};
use crate::{BackupError, Cancel, Consistency, recovery};

/// How often what vanished from the repository is read again before the run fails.
const MAX_REPAIRS: usize = 3;
/// Longest configuration file that is copied; real ones have a few MiB.
const MAX_CONFIG_FILE_BYTES: u64 = 256 << 20;

/// What to do when the guest cannot be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsistencyPolicy {
    /// Application-consistent, or crash-consistent with a warning.
    PreferApplication,
    /// Application-consistent, or no point.
    RequireApplication,
    /// Do not ask the guest.
    Crash,
}

/// How VMs are backed up.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Read everything, whatever tracking says.
    pub full: bool,
    /// What to ask of the guest.
    pub consistency: ConsistencyPolicy,
    /// Payload segment size, a power of two from 256 KiB to 4 MiB; `None` for the default of the disk's size, or what
    /// the base has.
    pub segment_bytes: Option<u32>,
    /// Compression of contents.
    pub compression: Option<CompressionId>,
    /// How long the merge is waited for.
    pub merge_wait: Duration,
    /// How long an operation in progress on the VM is waited for.
    pub idle_wait: Duration,
    /// Name and version of the program, for the description.
    pub program: String,
}

impl BackupOptions {
    /// The defaults, for this program.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            full: false,
            consistency: ConsistencyPolicy::PreferApplication,
            segment_bytes: None,
            compression: Some(CompressionId::ZSTD_FASTEST),
            merge_wait: Duration::from_secs(10 * 60),
            idle_wait: Duration::from_secs(10 * 60),
            program: program.into(),
        }
    }
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct VmReport {
    /// The new point.
    pub point: Point,
    /// Its description.
    pub description: PointDescription,
    /// What a person should know; with any, the run was not clean.
    pub warnings: Vec<Warning>,
    /// Counters.
    pub stats: RunStats,
}

/// Something about a run that a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Stable name.
    pub code: WarningCode,
    /// A sentence.
    pub text: String,
}

/// Kinds of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WarningCode {
    /// Less consistency than asked for.
    ConsistencyLowered,
    /// A disk is not in the point.
    DiskLeftOut,
    /// The merge was not seen.
    MergePending,
    /// The next run of a disk must be full.
    TrackingLost,
    /// Change tracking was wrong; the disk was read in full.
    TrackingLied,
    /// Something on the host is not ours and not expected.
    Foreign,
    /// A former run was cut off, and what it left was put in order.
    Recovered,
    /// The host remarked something.
    Host,
}

impl WarningCode {
    /// As scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsistencyLowered => "CONSISTENCY_LOWERED",
            Self::DiskLeftOut => "DISK_LEFT_OUT",
            Self::MergePending => "MERGE_PENDING",
            Self::TrackingLost => "TRACKING_LOST",
            Self::TrackingLied => "TRACKING_LIED",
            Self::Foreign => "FOREIGN_CHECKPOINT",
            Self::Recovered => "RECOVERED",
            Self::Host => "HOST_REMARK",
        }
    }

    /// Whether the run is worth less because of it; a recovered leftover is news, not a defect.
    pub fn is_defect(self) -> bool {
        !matches!(self, Self::Recovered)
    }
}

/// Counters of a run on a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Bytes asked of the source, the audit's not included.
    pub read_bytes: u64,
    /// Bytes re-read to check change tracking.
    pub audit_bytes: u64,
    /// Bytes of segments that differ from the base.
    pub changed_bytes: u64,
    /// Stored contents of disks and files, as they lie in packs.
    pub data_bytes: u64,
    /// Stored index streams, directories and manifests, as they lie in packs.
    pub metadata_bytes: u64,
    /// Everything put to the storage.
    pub uploaded_bytes: u64,
    /// Entries of all disks, and how many of them were looked up in a fresh index.
    pub entries: u64,
    /// See `entries`.
    pub entries_checked: u64,
}

/// What runs on one host share.
pub struct BackupContext<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its name, as sources and descriptions give it.
    pub host_name: &'a str,
    /// Where to.
    pub repo: &'a Arc<Repository>,
    /// The host's locks and journals.
    pub state: &'a HostState,
    /// How.
    pub options: &'a BackupOptions,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Who may stop it.
    pub cancel: &'a Cancel,
}

/// A new run id: one per invocation, however many VMs it covers.
pub fn new_run_id() -> String {
    random_hex(8)
}

/// Backs up one VM. On an error there is no new point, and the host is as it was before, or the journal knows what is
/// left to do.
pub fn back_up_vm(context: &BackupContext<'_>, vm: &Vm, run_id: &str) -> Result<VmReport, BackupError> {
    let _lock = context.state.lock_vm(vm.id.as_str(), &vm.name)?;
    let mut run = Run { context, run_id, warnings: Vec::new(), journal: context.state.journal(vm.id.as_str())? };
    run.phase(&vm.name, "looking at the host");
    let vm = &run.wait_until_idle(vm)?;
    let recovered = recovery::recover(context, vm, &mut run.journal)?;
    run.warnings.extend(recovered.into_iter().map(|text| Warning { code: WarningCode::Recovered, text }));
    let vm = &run.wait_until_idle(vm)?;
    run.check_backupable(vm)?;
    let base = run.base(vm)?;
    run.journal_intent(vm)?;
    match run.checkpoint_to_point(vm, base) {
        Ok(report) => Ok(report),
        Err(error) => {
            run.undo(vm, &error);
            Err(error)
        }
    }
}

struct Run<'a> {
    context: &'a BackupContext<'a>,
    run_id: &'a str,
    warnings: Vec<Warning>,
    journal: VmJournal,
}

/// The newest point of a VM, with its description.
struct Base {
    point: Point,
    description: PointDescription,
}

/// A frozen disk with all that was found out about it.
struct OpenDisk<'f> {
    frozen: &'f FrozenDisk,
    label: String,
    reader: FrozenReader,
    chain: Vec<ChainMember>,
    most_recent_id: Option<String>,
    facts: DiskFacts,
}

/// A disk after it was stored.
struct FinishedDisk {
    stored: StoredDisk,
    read: ReadMode,
    audit_bytes: u64,
}

impl<'a> Run<'a> {
    /// Steps 1 to 13. Everything that an error leaves behind is in the journal.
    fn checkpoint_to_point(&mut self, vm: &Vm, base: Option<Base>) -> Result<VmReport, BackupError> {
        let context = self.context;
        let clock = &*context.host.seam().clock;
        let started = self.intent().started;
        self.phase(&vm.name, "creating the checkpoint");
        let (checkpoint, consistency, reason) = self.checkpoint(vm)?;
        let frozen = timestamp(clock);
        self.host_remarks(&checkpoint.warnings);

        self.phase(&vm.name, "reading the definition");
        let session = WriteSession::new(context.repo.clone(), SessionOptions::default())?;
        let mut files = self.definition_files(vm, &checkpoint, &session)?;

        let disks = checkpoint
            .disks
            .iter()
            .map(|frozen| self.open_disk(vm, &checkpoint, frozen))
            .collect::<Result<Vec<_>, _>>()?;
        let mut finished = Vec::with_capacity(disks.len());
        for disk in &disks {
            finished.push(self.back_up_disk(vm, disk, base.as_ref(), &session)?);
        }

        self.phase(&vm.name, "making it durable");
        session.flush()?;
        let (entries, entries_checked) = self.check_entries(&disks, &mut finished, &session)?;
        if context.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }

        let description = self.describe(vm, base.as_ref(), &disks, &finished, started, frozen, consistency, reason);
        for disk in &description.disks {
            let (folder, name) = disk.file.rsplit_once('/').expect("disks lie in a folder");
            files.push(DraftFile {
                folder: folder.into(),
                name: name.into(),
                object: disk.object.clone(),
                size_bytes: disk.file_bytes,
            });
        }
        let stats = session.stats();
        let description = PointDescription { stored_bytes: stats.data_bytes + stats.metadata_bytes, ..description };
        let source_host = base
            .as_ref()
            .map_or_else(|| context.host_name.to_owned(), |base| base.point.snapshot.manifest.source.host.clone());
        let draft = PointDraft { description, source_host, files };
        drop(session);

        // Nothing may hold a handle when the merge begins; and the chain must still be the one that was read.
        let chains: Vec<(FrozenDisk, Vec<ChainMember>)> =
            disks.into_iter().map(|disk| (disk.frozen.clone(), disk.chain)).collect();
        self.check_chains(vm, &chains)?;

        self.phase(&vm.name, "converting the checkpoint");
        let converted = self.convert(vm, &checkpoint, &draft)?;
        self.phase(&vm.name, "writing the point");
        let (point, of_commit) = commit(context.repo, clock, &draft, &converted)?;
        let description = point.describe(context.repo)?;
        let depths: Vec<ChainBefore> = checkpoint.disks.iter().map(ChainBefore::from).collect();
        self.finish(vm, &converted, &depths)?;

        let sum = |of: fn(&PointDisk) -> u64| description.disks.iter().map(of).sum();
        let stats = RunStats {
            read_bytes: sum(|disk| disk.read_bytes),
            audit_bytes: sum(|disk| disk.audit_bytes),
            changed_bytes: sum(|disk| disk.changed_bytes),
            data_bytes: stats.data_bytes + of_commit.data_bytes,
            metadata_bytes: stats.metadata_bytes + of_commit.metadata_bytes,
            uploaded_bytes: stats.uploaded_bytes + of_commit.uploaded_bytes,
            entries,
            entries_checked,
        };
        Ok(VmReport { point, description, warnings: std::mem::take(&mut self.warnings), stats })
    }

    // ---- before the checkpoint -----------------------------------------------------------------------------------

    /// Waits while the host does something to the VM; a checkpoint in that state fails or hurts.
    fn wait_until_idle(&self, vm: &Vm) -> Result<Vm, BackupError> {
        let clock = &self.context.host.seam().clock;
        let start = clock.monotonic();
        loop {
            let now = self
                .context
                .host
                .vm(&vm.id)
                .map_err(BackupError::host(format!("look at VM {}", vm.name)))?
                .ok_or_else(|| BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: "it is no longer on this host".into(),
                })?;
            let waiting = match (&now.operation, &now.state) {
                (Some(operation), _) => format!("{operation:?}"),
                (None, VmState::InTransition { value, text }) => format!("state {value} {text}"),
                (None, _) => return Ok(now),
            };
            if self.context.cancel.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            if clock.monotonic().saturating_sub(start) >= self.context.options.idle_wait {
                return Err(BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: format!("the host has been busy with it for too long ({waiting}); try again later"),
                });
            }
            clock.sleep(Duration::from_millis(200));
        }
    }

    fn check_backupable(&mut self, vm: &Vm) -> Result<(), BackupError> {
        let refuse = |problem: String| Err(BackupError::NotBackupable { vm: vm.name.clone(), problem });
        if let VmState::Critical(state) = vm.state {
            return refuse(format!("its storage is lost (state {state}); bring the storage back first"));
        }
        if let Some(disk) = vm.unreadable_disks.first() {
            return refuse(format!("its disk {} cannot be read: {}", disk.path, disk.problem));
        }
        if vm.disks.is_empty() {
            return refuse("no disk of it can be backed up".into());
        }
        for disk in &vm.excluded_disks {
            let text = format!("{} is not in the point: {}", disk.path, exclusion_text(disk.reason));
            self.warn(&vm.name, WarningCode::DiskLeftOut, text);
        }
        for checkpoint in vm.recovery_checkpoints() {
            let text = format!(
                "a backup checkpoint that is not ours is on the VM and was left alone: {:?}; two backup products on one \
                 VM confuse each other",
                checkpoint.name
            );
            self.warn(&vm.name, WarningCode::Foreign, text);
        }
        Ok(())
    }

    fn base(&self, vm: &Vm) -> Result<Option<Base>, BackupError> {
        let Some(point) = list_points(self.context.repo, Some(vm.id.as_str()))?.pop() else { return Ok(None) };
        let description = point.describe(self.context.repo)?;
        Ok(Some(Base { point, description }))
    }

    fn journal_intent(&mut self, vm: &Vm) -> Result<(), BackupError> {
        let attempt = 1;
        let tag = format!("e3:{}:{}:{attempt}", self.context.state.agent_id(), self.run_id);
        self.journal.intent = Some(Intent {
            run_id: self.run_id.to_owned(),
            attempt,
            repository_id: self.context.repo.id(),
            started: timestamp(&*self.context.host.seam().clock),
            tag,
            known_checkpoints: vm.checkpoints.iter().map(|one| one.path.to_string()).collect(),
            known_reference_points: vm.reference_points.iter().map(|one| one.path.to_string()).collect(),
            draft: None,
            converted: None,
            doomed: Vec::new(),
        });
        self.save(vm)
    }

    // ---- the checkpoint and its disks ----------------------------------------------------------------------------

    /// Makes the checkpoint by the policy; the reason says why less was reached than asked for.
    fn checkpoint(&mut self, vm: &Vm) -> Result<(Checkpoint, Consistency, Option<String>), BackupError> {
        let policy = self.context.options.consistency;
        let running = vm.state == VmState::Running;
        let mut lowered = None;
        if policy != ConsistencyPolicy::Crash && running {
            // Asking a guest that cannot answer costs its whole time-out and fails (spec hyperv 3.6).
            let hopeless = match vm.vss {
                VssReadiness::Disabled => Some("backup is switched off in the VM's integration services".to_owned()),
                VssReadiness::NotResponding(status) => Some(format!("the guest's backup service reports {status}")),
                VssReadiness::Ready | VssReadiness::Unknown => None,
            };
            match hopeless {
                Some(reason) if policy == ConsistencyPolicy::PreferApplication => lowered = Some(reason),
                _ => match self.create(vm, hyperv::Consistency::Application) {
                    Ok(checkpoint) => return Ok((checkpoint, Consistency::Application, None)),
                    Err(error) => {
                        // What has nothing to do with the guest would fail again, or leave a second checkpoint behind
                        // one whose fate is not known.
                        let of_guest = matches!(
                            error.kind(),
                            ErrorKind::VssFailed | ErrorKind::Timeout | ErrorKind::Unsupported | ErrorKind::Other
                        );
                        if policy == ConsistencyPolicy::RequireApplication || !of_guest {
                            return Err(self.no_checkpoint(vm, error));
                        }
                        lowered = Some(chain_text(&error));
                    }
                },
            }
        }
        let checkpoint = self.create(vm, hyperv::Consistency::Crash).map_err(|error| self.no_checkpoint(vm, error))?;
        if let Some(reason) = &lowered {
            let text = format!("only crash-consistent: {reason}");
            self.warn(&vm.name, WarningCode::ConsistencyLowered, text);
        }
        // A VM that does not run has nothing in flight: its disks are as consistent as the guest left them.
        let consistency = if vm.state == VmState::Off { Consistency::Offline } else { Consistency::Crash };
        Ok((checkpoint, consistency, lowered))
    }

    fn create(&self, vm: &Vm, consistency: hyperv::Consistency) -> Result<Checkpoint, CreateError> {
        let request = CheckpointRequest {
            cancel: self.context.cancel.clone(),
            ..CheckpointRequest::new(consistency, self.intent().tag.clone())
        };
        self.context.host.create_recovery_checkpoint(vm, &request).inspect_err(|error| {
            for path in &error.left_behind {
                // Best effort now; the journal makes sure later.
                let _ = self.context.host.destroy_checkpoint(path);
            }
        })
    }

    fn no_checkpoint(&self, vm: &Vm, error: CreateError) -> BackupError {
        if self.context.cancel.is_cancelled() {
            return BackupError::Cancelled;
        }
        BackupError::Host { attempt: format!("create a checkpoint of {}", vm.name), source: Box::new(error) }
    }

    fn definition_files(
        &self,
        vm: &Vm,
        checkpoint: &Checkpoint,
        session: &WriteSession,
    ) -> Result<Vec<DraftFile>, BackupError> {
        let failed = |what: &str| BackupError::host(format!("{what} of {}", vm.name));
        let definition =
            self.context.host.capture_checkpoint_definition(vm, checkpoint).map_err(failed("read the definition"))?;
        let json = serde_json::to_vec_pretty(&definition.to_json()).expect("the definition is plain data");
        let mut files = vec![self.write_file(session, "", "vm.json", &json)?];
        for config in self.context.host.open_config_files(checkpoint).map_err(failed("open the configuration files"))? {
            let len = config.facts.len_bytes;
            if len > MAX_CONFIG_FILE_BYTES {
                return Err(BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: format!("its configuration file {} has {len} bytes", config.path),
                });
            }
            let mut bytes = vec![0; len as usize];
            config
                .file
                .read_exact_at(&mut bytes, 0)
                .map_err(BackupError::host(format!("read {} of {}", config.path, vm.name)))?;
            files.push(self.write_file(session, "config", hyperv::file_name(&config.path), &bytes)?);
        }
        Ok(files)
    }

    /// A small file, cut like everything else when it is longer than a segment.
    fn write_file(
        &self,
        session: &WriteSession,
        folder: &str,
        name: &str,
        bytes: &[u8],
    ) -> Result<DraftFile, BackupError> {
        let object = session.write_file_object(bytes, 1 << 20, self.context.options.compression)?;
        Ok(DraftFile {
            folder: folder.into(),
            name: name.into(),
            object: object.to_string(),
            size_bytes: bytes.len() as u64,
        })
    }

    fn open_disk<'f>(
        &self,
        vm: &Vm,
        checkpoint: &Checkpoint,
        frozen: &'f FrozenDisk,
    ) -> Result<OpenDisk<'f>, BackupError> {
        let label = format!("{} {}", vm.name, frozen.slot);
        let host = self.context.host;
        let failed = |what: &str| BackupError::host(format!("{what} {label}"));
        let reader = host.open_frozen(frozen).map_err(failed("open the frozen disk of"))?;
        let chain = host.chain_facts(frozen).map_err(failed("look at the files of"))?;
        let tracking = reader.tracking_state().ok();
        let present = |facts: &Option<hyperv::seam::FileFacts>| facts.as_ref().is_some_and(|facts| facts.len_bytes > 0);
        let info = reader.info();
        let facts = DiskFacts {
            virtual_disk_id: frozen.virtual_disk_id.to_string(),
            ambiguous: checkpoint.disks.iter().filter(|one| one.virtual_disk_id == frozen.virtual_disk_id).count() > 1,
            size_bytes: info.size_bytes,
            sector_bytes: (info.logical_sector_bytes, info.physical_sector_bytes),
            chain: chain.iter().map(|file| PointChainFile::of(&file.file_name, &file.facts)).collect(),
            companions: chain.first().is_some_and(|leaf| present(&leaf.rct) && present(&leaf.mrt)),
            tracking: tracking.as_ref().is_some_and(|state| state.enabled),
            most_recent_id: tracking.as_ref().map(|state| state.most_recent_id.clone()).unwrap_or_default(),
        };
        let most_recent_id = tracking.map(|state| state.most_recent_id).filter(|id| !id.is_empty());
        Ok(OpenDisk { frozen, label, reader, chain, most_recent_id, facts })
    }

    // ---- reading -------------------------------------------------------------------------------------------------

    fn back_up_disk(
        &mut self,
        vm: &Vm,
        disk: &OpenDisk<'_>,
        base: Option<&Base>,
        session: &WriteSession,
    ) -> Result<FinishedDisk, BackupError> {
        let facts = VmFacts {
            forced: self.context.options.full,
            host: self.context.host_name.to_owned(),
            replication_mode: vm.replication_mode,
            user_checkpoints: vm.user_checkpoints().map(|one| one.instance_id.clone()).collect(),
            segment_bytes: self.context.options.segment_bytes,
        };
        let decision = decide(&facts, &disk.facts, base.map(|base| &base.description));
        let reason = match (decision, base) {
            (Decision::Full(reason), _) => reason,
            (Decision::Changes { .. }, None) => unreachable!("changes need a base"),
            (Decision::Changes { base_disk, rct_id }, Some(base)) => {
                match self.incremental(vm, disk, base, base_disk, &rct_id, session)? {
                    Ok(finished) => return Ok(finished),
                    Err(reason) => reason,
                }
            }
        };
        self.full(disk, reason, session)
    }

    /// The inner error is the reason for a full instead.
    fn incremental(
        &mut self,
        vm: &Vm,
        disk: &OpenDisk<'_>,
        base: &Base,
        base_disk: u32,
        rct_id: &str,
        session: &WriteSession,
    ) -> Result<Result<FinishedDisk, FullReason>, BackupError> {
        let changed = match disk.reader.changed_ranges(rct_id) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(disk = disk.label, %error, "changes cannot be told");
                return match reason_of_failed_query(error.kind) {
                    Some(reason) => Ok(Err(reason)),
                    None => Err(BackupError::host(format!("ask what changed on {}", disk.label))(error)),
                };
            }
        };
        let of_base = base
            .description
            .disks
            .iter()
            .find(|one| one.number == base_disk)
            .expect("the decision names a disk of the base");
        let object = match base.point.open_disk(self.context.repo, of_base) {
            Ok(object) => object,
            Err(error) if error.is_damage() => {
                tracing::error!(disk = disk.label, point = base.point.id, %error, "the base cannot be used");
                return Ok(Err(FullReason::BaseUnusable));
            }
            Err(error) => return Err(error),
        };
        let touched = touched_segments(object.layout(), &changed);
        let clock = &*self.context.host.seam().clock;
        let audited = audit(&disk.reader, &disk.label, &object, &touched, clock, self.context.cancel);
        let audit_bytes = match audited {
            Ok(bytes) => bytes,
            Err(error @ BackupError::TrackingLied { .. }) => {
                let text = format!("{error}; read in full, and points since the last full read of it are doubtful");
                self.warn(&vm.name, WarningCode::TrackingLied, text);
                return Ok(Err(FullReason::AuditFailed));
            }
            Err(error) => return Err(error),
        };
        let segment = u64::from(object.layout().segment_bytes());
        let total: u64 = touched.iter().map(|range| (range.end - range.start) * segment).sum();
        let stored = self.with_progress(&disk.label, "incremental", total, |progress| {
            self.disk_backup(disk, session, progress).incremental(&object, &changed)
        })?;
        Ok(Ok(FinishedDisk { stored, read: ReadMode::Incremental { base: base.point.id.clone() }, audit_bytes }))
    }

    fn full(
        &self,
        disk: &OpenDisk<'_>,
        reason: FullReason,
        session: &WriteSession,
    ) -> Result<FinishedDisk, BackupError> {
        let geometry = disk.reader.geometry();
        let segment_bytes =
            self.context.options.segment_bytes.unwrap_or_else(|| Layout::default_segment_bytes(geometry.size_bytes));
        let layout = Layout::new(geometry, segment_bytes)
            .map_err(|source| BackupError::Layout { disk: disk.label.clone(), source })?;
        if let Some(problem) = disk.reader.allocation_problem() {
            tracing::warn!(disk = disk.label, problem, "the allocation is not known: every byte is read");
        }
        let total = allocated_bytes(&disk.reader).unwrap_or(geometry.size_bytes);
        let stored = self.with_progress(&disk.label, "full", total, |progress| {
            self.disk_backup(disk, session, progress).full(layout)
        })?;
        Ok(FinishedDisk { stored, read: ReadMode::Full { reason }, audit_bytes: 0 })
    }

    fn disk_backup<'d>(
        &'d self,
        disk: &'d OpenDisk<'_>,
        session: &'d WriteSession,
        progress: &'d (dyn Fn(u64) + Sync),
    ) -> DiskBackup<'d> {
        DiskBackup {
            disk: &disk.reader,
            label: &disk.label,
            virtual_disk_id: disk.frozen.virtual_disk_id,
            session,
            compression: self.context.options.compression,
            clock: &*self.context.host.seam().clock,
            cancel: self.context.cancel,
            progress,
        }
    }

    fn with_progress<T>(
        &self,
        label: &str,
        what: &str,
        total_bytes: u64,
        work: impl FnOnce(&(dyn Fn(u64) + Sync)) -> Result<T, BackupError>,
    ) -> Result<T, BackupError> {
        let observer = self.context.observer;
        observer.event(Event::Started { subject: label, total_bytes, what });
        let result = work(&|bytes| observer.event(Event::Advanced { subject: label, bytes }));
        observer.event(Event::Finished { subject: label });
        result
    }

    /// Looks every entry up in a fresh index while the frozen disks can still be read; what others removed meanwhile is
    /// read again. Returns entries and look-ups.
    fn check_entries(
        &self,
        disks: &[OpenDisk<'_>],
        finished: &mut [FinishedDisk],
        session: &WriteSession,
    ) -> Result<(u64, u64), BackupError> {
        let repo = self.context.repo;
        let (mut entries, mut checked) = (0, 0);
        for (disk, finished) in disks.iter().zip(finished) {
            repo.refresh()?;
            let mut repairs = 0;
            loop {
                let object = DiskObject::open(repo.clone(), finished.stored.object, finished.stored.layout)?;
                let mut looked_up = 0;
                let lost = lost_segments(&object, &mut looked_up)?;
                checked += looked_up;
                if lost.is_empty() && !lost_pieces(repo, object.object())? {
                    entries += object.segments();
                    break;
                }
                repairs += 1;
                if repairs > MAX_REPAIRS {
                    return Err(BackupError::ReadBack {
                        problem: format!(
                            "{} contents of {} keep vanishing from the repository",
                            lost.len(),
                            disk.label
                        ),
                    });
                }
                tracing::warn!(disk = disk.label, contents = lost.len(), "contents vanished meanwhile: read again");
                finished.stored = self.disk_backup(disk, session, &|_| ()).repair(&finished.stored, &lost)?;
                session.flush()?;
                repo.refresh()?;
            }
        }
        Ok((entries, checked))
    }

    #[allow(clippy::too_many_arguments)] // one value for every field that comes from elsewhere
    fn describe(
        &self,
        vm: &Vm,
        base: Option<&Base>,
        disks: &[OpenDisk<'_>],
        finished: &[FinishedDisk],
        started: Timestamp,
        frozen: Timestamp,
        consistency: Consistency,
        consistency_reason: Option<String>,
    ) -> PointDescription {
        // A point must not be older than its base, or "latest" would name the base: clocks do go back.
        let started = match base {
            Some(base) if base.description.started >= started => {
                base.description.started.checked_add(jiff::SignedDuration::from_millis(1)).unwrap_or(started)
            }
            _ => started,
        };
        let mut names: HashMap<Guid, u32> = HashMap::new();
        let disks = (0..).zip(disks.iter().zip(finished)).map(|(number, (disk, finished))| {
            let id = disk.frozen.virtual_disk_id;
            let count = names.entry(id).and_modify(|count| *count += 1).or_insert(0);
            let suffix = if *count == 0 { String::new() } else { format!("-{count}") };
            let geometry = finished.stored.layout.geometry();
            PointDisk {
                number,
                virtual_disk_id: id.to_string(),
                slot: disk.frozen.slot.to_string(),
                path: disk.frozen.path.clone(),
                size_bytes: geometry.size_bytes(),
                logical_sector_bytes: geometry.disk().logical_sector_bytes,
                physical_sector_bytes: geometry.disk().physical_sector_bytes,
                layout_version: LAYOUT_VERSION,
                segment_bytes: finished.stored.layout.segment_bytes(),
                file: format!("disks/{id}{suffix}.vhdx"),
                object: finished.stored.object.to_string(),
                file_bytes: finished.stored.len_bytes,
                slots: finished.stored.slots,
                data_write_guid: finished.stored.data_write.to_string(),
                read: finished.read.clone(),
                read_bytes: finished.stored.read_bytes,
                changed_bytes: finished.stored.changed_bytes,
                audit_bytes: finished.audit_bytes,
                rct_id: None,
                most_recent_id: disk.most_recent_id.clone(),
                chain: disk.facts.chain.clone(),
            }
        });
        let asked = match self.context.options.consistency {
            ConsistencyPolicy::Crash => Consistency::Crash,
            _ => Consistency::Application,
        };
        PointDescription {
            version: POINT_VERSION,
            point_id: random_hex(16),
            run_id: self.run_id.to_owned(),
            attempt: self.intent().attempt,
            vm_id: vm.id.to_string(),
            vm_name: vm.name.clone(),
            host: self.context.host_name.to_owned(),
            replication_mode: vm.replication_mode,
            started,
            frozen,
            stored: frozen,
            stored_bytes: 0,
            consistency_asked: asked,
            consistency,
            consistency_reason,
            reference_point: None,
            user_checkpoints: vm.user_checkpoints().map(|one| one.instance_id.clone()).collect(),
            disks: disks.collect(),
            absent_disks: vm
                .excluded_disks
                .iter()
                .map(|disk| AbsentDisk { disk: disk.path.clone(), reason: exclusion_text(disk.reason).into() })
                .collect(),
            program: self.context.options.program.clone(),
        }
    }

    // ---- ending --------------------------------------------------------------------------------------------------

    fn check_chains(&self, vm: &Vm, chains: &[(FrozenDisk, Vec<ChainMember>)]) -> Result<(), BackupError> {
        for (disk, before) in chains {
            let now = self
                .context
                .host
                .chain_facts(disk)
                .map_err(BackupError::host(format!("look at the files of {} {}", vm.name, disk.slot)))?;
            let identity = |chain: &[ChainMember]| -> Vec<(String, String, u64, std::time::SystemTime)> {
                chain
                    .iter()
                    .map(|file| {
                        (file.path.clone(), file.facts.file_id.clone(), file.facts.len_bytes, file.facts.modified)
                    })
                    .collect()
            };
            if identity(&now) != identity(before) {
                return Err(BackupError::NotBackupable {
                    vm: vm.name.clone(),
                    problem: format!(
                        "the frozen files of {} changed while they were read: something else works on this VM",
                        disk.slot
                    ),
                });
            }
        }
        Ok(())
    }

    /// Ends the checkpoint. With user checkpoints made or applied meanwhile no reference point is taken: the next run is
    /// full (spec hyperv 0.4).
    fn convert(&mut self, vm: &Vm, checkpoint: &Checkpoint, draft: &PointDraft) -> Result<Converted, BackupError> {
        let host = self.context.host;
        self.journal.intent.as_mut().expect("written before the checkpoint").draft = Some(draft.clone());
        self.save(vm)?;
        let now = host.vm(&vm.id).map_err(BackupError::host(format!("look at VM {}", vm.name)))?;
        let users = |vm: &Vm| {
            let mut ids: Vec<String> = vm.user_checkpoints().map(|one| one.instance_id.clone()).collect();
            ids.sort();
            ids
        };
        let disks = draft.description.disks.len();
        let converted = if now.as_ref().is_some_and(|now| users(now) == users(vm)) {
            let conversion = host
                .convert_to_reference_point(checkpoint)
                .map_err(BackupError::host(format!("convert the checkpoint of {}", vm.name)))?;
            self.host_remarks(&conversion.warnings);
            for defect in &conversion.defects {
                let text = format!("the next backup of a disk will be full: {defect}");
                self.warn(&vm.name, WarningCode::TrackingLost, text);
            }
            Converted {
                rct_ids: checkpoint.disks.iter().map(|disk| conversion.rct_id(disk).map(str::to_owned)).collect(),
                crash_only: conversion.reference_point.consistency == Some(hyperv::Consistency::Crash),
                reference_point: Some(conversion.reference_point.path.to_string()),
            }
        } else {
            host.destroy_checkpoint(&checkpoint.path)
                .map_err(BackupError::host(format!("remove the checkpoint of {}", vm.name)))?;
            let text = "user checkpoints changed during the run; the next run is full".to_owned();
            self.warn(&vm.name, WarningCode::TrackingLost, text);
            Converted { reference_point: None, rct_ids: vec![None; disks], crash_only: false }
        };
        self.journal.intent.as_mut().expect("written before the checkpoint").converted = Some(converted.clone());
        self.save(vm)?;
        Ok(converted)
    }

    /// After the commit: the superseded reference point goes, the merge is watched, the journal is closed.
    fn finish(&mut self, vm: &Vm, converted: &Converted, before: &[ChainBefore]) -> Result<(), BackupError> {
        self.phase(&vm.name, "watching the merge");
        recovery::supersede(self.context, vm, &mut self.journal, converted)?;
        let limit = self.context.options.merge_wait;
        let seen = self
            .context
            .host
            .wait_for_merge(&vm.id, before, limit)
            .map_err(BackupError::host(format!("watch the merge of {}", vm.name)));
        let text = match seen {
            Ok(MergeOutcome::Merged) => None,
            Ok(MergeOutcome::StillMerging { .. }) => {
                Some(format!("the host is still merging after {} s", limit.as_secs()))
            }
            Ok(MergeOutcome::Blocked { merging_is_off: true, .. }) => {
                Some("merging is switched off for this VM".to_owned())
            }
            Ok(MergeOutcome::Blocked { .. }) => {
                Some("the host does not merge: a file of the chain is in use, or the volume is full".to_owned())
            }
            // The point is committed and restorable whatever the host says now.
            Err(error) => Some(chain_text(&error)),
        };
        if let Some(text) = text {
            self.warn(&vm.name, WarningCode::MergePending, format!("the merge was not seen to end: {text}"));
        }
        self.journal.intent = None;
        self.save(vm)
    }

    /// After a failure: what the run made on the host is removed now, if the host lets us; the journal knows it anyway.
    fn undo(&mut self, vm: &Vm, error: &BackupError) {
        tracing::info!(vm = vm.name, error = %chain_text(error), "the backup failed: removing what it made");
        if let Err(error) = recovery::recover(self.context, vm, &mut self.journal) {
            tracing::warn!(vm = vm.name, error = %chain_text(&error), "left for the next run to remove");
        }
    }

    fn intent(&self) -> &Intent {
        self.journal.intent.as_ref().expect("written before the first deed")
    }

    fn save(&self, vm: &Vm) -> Result<(), BackupError> {
        self.context.state.write_journal(vm.id.as_str(), &self.journal)
    }

    fn phase(&self, vm: &str, phase: &str) {
        self.context.observer.event(Event::Phase { subject: vm, phase });
    }

    fn warn(&mut self, vm: &str, code: WarningCode, text: String) {
        self.context.observer.event(Event::Warning { subject: vm, text: &text });
        self.warnings.push(Warning { code, text });
    }

    fn host_remarks(&mut self, texts: &[String]) {
        for text in texts {
            self.warnings.push(Warning { code: WarningCode::Host, text: text.clone() });
        }
    }
}

impl JournalReferencePoint {
    pub(crate) fn path(&self) -> ObjectPath {
        ObjectPath::new(self.path.clone())
    }
}

/// Bytes that the chain says hold data: for progress only.
fn allocated_bytes(disk: &FrozenReader) -> Option<u64> {
    let mut total = 0;
    for extent in disk.extents(0..disk.geometry().size_bytes) {
        let extent = extent.ok()?;
        if extent.kind == vhdx::ExtentKind::Data {
            let Range { start, end } = extent.range;
            total += end - start;
        }
    }
    Some(total)
}

fn exclusion_text(reason: Exclusion) -> &'static str {
    match reason {
        Exclusion::PassThrough => "a pass-through disk of the host cannot be frozen",
        Exclusion::Shared => "a disk that several VMs share cannot be frozen",
        Exclusion::VhdSet => "a VHD set needs checkpoints of a group of VMs",
        Exclusion::FibreChannel => "a disk behind a virtual fibre channel adapter cannot be frozen",
    }
}

/// An error with its causes in one line.
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
