//! Words that mean the same everywhere: in requests, answers and the database.

words! {
    /// Which engine a job runs (4.3).
    pub enum Engine { Sync = "sync", Kopia = "kopia", DiskImage = "disk_image", Hyperv = "hyperv" }

    /// Where a job reads from: the design's words, then those that are stored and not runnable (4.2).
    pub enum SourceType {
        Local = "local", NetworkShare = "network_share", DiskVolume = "disk_volume", Hyperv = "hyperv",
        S3Compatible = "s3_compatible", Aws = "aws", Sftp = "sftp", GoogleDrive = "google_drive", Dropbox = "dropbox",
        Smb = "smb", Nas = "nas", LocalAgent = "local_agent",
    }

    /// Where a run stands (3.1).
    pub enum RunStatus {
        Queued = "queued", Starting = "starting", Running = "running", Success = "success", Warning = "warning",
        PartialSuccess = "partial_success", Failed = "failed", Cancelled = "cancelled",
    }

    /// What a run does; none means a backup (3.1).
    pub enum RunType {
        Backup = "backup", Restore = "restore", HypervRestore = "hyperv_restore", DiskRestore = "disk_restore",
        HypervInstantRestore = "hyperv_instant_restore", FileRestore = "file_restore", Verify = "verify",
    }

    /// Who asked for a run (3.1).
    pub enum TriggerType {
        Manual = "manual", Schedule = "schedule", Validation = "validation", Agent = "agent", Api = "api",
        Retry = "retry",
    }

    /// Whether a job runs.
    pub enum JobStatus { Active = "active", Paused = "paused", Deleted = "deleted" }

    /// Whether an agent may work.
    pub enum AgentStatus { Active = "active", Disabled = "disabled", Deleted = "deleted" }

    /// What an agent's machine is (1.2).
    pub enum HostRole { HypervHost = "hyperv_host", Server = "server", Workstation = "workstation" }

    /// How a disk or point was read; the stored image is complete either way (5.4).
    pub enum BackupType { Full = "Full", Incremental = "Incremental" }

    /// Consistency that was reached (2.3).
    pub enum Consistency { Crash = "Crash", Application = "Application" }

    /// Consistency that is asked for (4.9).
    pub enum WantedConsistency {
        Application = "application", Crash = "crash", ApplicationRequired = "application_required",
    }

    /// Level of an event (2.4); `warning` is taken as `warn`.
    pub enum Level { Info = "info", Warn = "warn", Error = "error" }

    /// Where a command stands (2.6).
    pub enum CommandStatus {
        Pending = "pending", Processing = "processing", Completed = "completed", Failed = "failed",
        Cancelled = "cancelled",
    }

    /// Work on a repository (2.8).
    pub enum RepoOperationType {
        RetentionApply = "retention_apply", MaintenanceQuick = "maintenance_quick",
        MaintenanceFull = "maintenance_full", Verify = "verify", DeletePoints = "delete_points",
    }

    /// What a person may do (6.3).
    pub enum Role {
        Viewer = "viewer", Operator = "operator", RestoreOperator = "restore_operator", Admin = "admin",
        Owner = "owner", Auditor = "auditor",
    }

    /// What a session's second factor asks for (10.4): nothing, a code, or to be set up.
    pub enum MfaState { Done = "done", None = "none", Verify = "verify", Enrol = "enrol" }

    /// What `console_mfa.php` does.
    pub enum MfaAction {
        Enrol = "enrol", Confirm = "confirm", Verify = "verify", RecoveryCodes = "recovery_codes", Remove = "remove",
    }

    /// Where an action stands that waits for a second administrator (6.3).
    pub enum ApprovalStatus { Pending = "pending", Approved = "approved", Refused = "refused", Expired = "expired" }

    /// The one protection state of a VM, worst first (console 0.4).
    pub enum Protection {
        AtRisk = "at_risk", Never = "never_backed_up", Cannot = "cannot_be_backed_up", InNoJob = "in_no_job",
        Late = "late", Unknown = "unknown", Excluded = "excluded", Protected = "protected",
    }

    /// State of an instant restore session (5.6).
    pub enum InstantStatus {
        Starting = "Starting", Active = "Active", Migrating = "Migrating", Completed = "Completed", Failed = "Failed",
    }

    /// What a verification found (5.7).
    pub enum VerifyStatus { Ok = "ok", Damaged = "damaged", Failed = "failed" }

    /// What an alert is about (console 3.14).
    pub enum AlertKind {
        NoGoodPoint = "no_good_point", RunFailed = "run_failed", RunPartlyFailed = "run_partly_failed",
        AgentSilent = "agent_silent", CheckpointOld = "checkpoint_old", TrackingAuditFailed = "tracking_audit_failed",
        RepositoryGrowth = "repository_growth", PointDamaged = "point_damaged",
        AuditChainBroken = "audit_chain_broken",
    }

    /// Where an alert stands (console 3.14).
    pub enum AlertState { Open = "open", Acknowledged = "acknowledged", Resolved = "resolved" }

    /// How an alert reaches somebody (console 3.14).
    pub enum AlertChannel { Mail = "mail", Webhook = "webhook" }

    /// How long a schedule's plain words reach (4.4).
    pub enum ScheduleType {
        Manual = "manual", Hourly = "hourly", Daily = "daily", Weekly = "weekly", Cron = "cron",
    }
}

impl RunStatus {
    /// Whether nothing follows any more (3.2).
    pub fn is_terminal(self) -> bool {
        !matches!(self, RunStatus::Queued | RunStatus::Starting | RunStatus::Running)
    }
}

impl Level {
    /// The level of that word; engines that say `warning` mean `warn`.
    pub fn lenient(word: &str) -> Option<Level> {
        if word == "warning" { Some(Level::Warn) } else { Level::of_word(word) }
    }
}
