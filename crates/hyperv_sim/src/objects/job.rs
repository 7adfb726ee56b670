//! Jobs as objects.

use hyperv::seam::Instance;

use crate::builder::Builder;
use crate::host::Tx;
use crate::state::Job;

pub(super) fn concrete_job(tx: &Tx<'_>, job: &Job) -> Instance {
    let duration = job.due_ms.saturating_sub(job.started_ms).max(1);
    let elapsed = tx.call_ms.saturating_sub(job.started_ms);
    // A quarter of the time a job is starting, a second at most; then it runs.
    let (state, percent, until) = match &job.end {
        Some(end) => (u64::from(end.state), 100, end.at_ms),
        None if elapsed < (duration / 4).min(1000) => (3, 0, tx.call_ms),
        None => (4, (elapsed * 100 / duration).min(99), tx.call_ms),
    };
    let caption = match job.kind {
        61 => "Importing Virtual Machine",
        62 => "Exporting Virtual Machine",
        70 => "Creating Virtual Machine Checkpoint",
        72 => "Deleting Virtual Machine Checkpoint",
        140 => "Validating Planned Virtual Machine",
        141 => "Realizing Planned Virtual Machine",
        200 => "Converting Virtual Machine Checkpoint to Reference Point",
        202 => "Deleting Reference Point",
        _ => job.method.as_str(),
    };
    let end = job.end.as_ref();
    let failed = end.is_some_and(|end| end.error_code != 0);
    let mut builder = Builder::new(tx, "Msvm_ConcreteJob")
        .text("InstanceID", &job.id)
        .text("ElementName", caption)
        .text("Caption", caption)
        .text("Name", &job.method)
        .number("JobState", state)
        .number("JobType", job.kind.into())
        .text("JobStatus", if failed { "Error" } else { "OK" })
        .number("PercentComplete", percent)
        .interval("ElapsedTime", until.saturating_sub(job.started_ms))
        .date("StartTime", job.started_ms)
        .date("TimeOfLastStateChange", until)
        .interval("TimeBeforeRemoval", tx.options.job_retention_ms)
        .flag("Cancellable", is_cancellable(job))
        .flag("DeleteOnCompletion", true)
        .number("ErrorCode", end.map_or(0, |end| end.error_code.into()))
        .number("HealthState", 5)
        .numbers("OperationalStatus", &[2]);
    if failed {
        let text = end.map_or("", |end| end.error_description.as_str());
        builder = builder.text("ErrorDescription", text).text("ErrorSummaryDescription", text);
    }
    builder.build()
}

/// Only the making of a checkpoint can be called off.
pub(crate) fn is_cancellable(job: &Job) -> bool {
    job.kind == 70 && job.end.is_none()
}
