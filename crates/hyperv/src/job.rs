//! Methods that may start a job, and waiting for it (spec 8.1 to 8.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{JobFailure, service_is_gone};
use crate::seam::{CimValue, Instance, MethodOutput, Namespace, ObjectPath};
use crate::{Error, Host, cim_xml};

/// Lets another thread stop a wait. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks every wait that holds a clone to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long a job may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobLimits {
    /// After this the job is asked to stop.
    pub limit: Duration,
    /// How much longer its end is awaited then: what a job makes after being given up is a leak (spec 3.7).
    pub after_cancel: Duration,
}

impl JobLimits {
    pub(crate) const DEFAULT: Self =
        Self { limit: Duration::from_secs(20 * 60), after_cancel: Duration::from_secs(5 * 60) };
}

/// A state-changing method call, with all it takes to report it.
pub(crate) struct Invocation<'a> {
    pub attempt: &'a str,
    pub object: &'a ObjectPath,
    pub method: &'static str,
    pub parameters: &'a [(&'a str, CimValue)],
    pub limits: JobLimits,
    pub cancel: Option<&'a Cancel>,
}

/// How a method ended that did not fail.
#[derive(Debug)]
pub(crate) enum Ended {
    /// At once; the outputs are as complete as they will be.
    Now(MethodOutput),
    /// Its job completed, perhaps with warnings. References in `output` may still be null.
    Job { output: MethodOutput, job: ObjectPath, warnings: Vec<String> },
    /// It was sent, and its end cannot be learned: the job expired, or `vmms` restarted. Only looking at the VM tells.
    Unknown { reason: String },
}

/// The job's object on the host (`JobState`, spec 8.2).
const COMPLETED: u64 = 7;
const TERMINATED: u64 = 8;
const KILLED: u64 = 9;
const EXCEPTION: u64 = 10;
const COMPLETED_WITH_WARNINGS: u64 = 32768;

/// `ReturnValue`: a job was started.
const STARTED: u32 = 4096;

enum Stopped {
    Limit,
    Caller,
}

impl Host {
    /// Calls a method once and waits for its job. A call during which the service went away is not repeated, because
    /// it may have been carried out: it ends as [`Ended::Unknown`].
    pub(crate) fn invoke(&self, call: &Invocation<'_>) -> Result<Ended, Error> {
        let answer = self.seam.wmi.call(Namespace::Virtualization, call.object, call.method, call.parameters);
        let output = match answer {
            Ok(output) => output,
            Err(error) if service_is_gone(error.hresult) => {
                return Ok(Ended::Unknown { reason: format!("the service went away during {}: {error}", call.method) });
            }
            Err(source) => return Err(Error::Wmi { attempt: call.attempt.to_owned(), source }),
        };
        match output.return_value {
            0 => Ok(Ended::Now(output)),
            STARTED => match output.get("Job").as_str() {
                Some(job) => {
                    let job = ObjectPath::new(job);
                    self.wait_for_job(call, output, job)
                }
                None => Ok(Ended::Unknown { reason: format!("{} started a job without saying which", call.method) }),
            },
            code => Err(Error::Refused { attempt: call.attempt.to_owned(), method: call.method, code }),
        }
    }

    fn wait_for_job(&self, call: &Invocation<'_>, output: MethodOutput, job: ObjectPath) -> Result<Ended, Error> {
        let clock = &self.seam.clock;
        let start = clock.monotonic();
        let mut stopped: Option<(Stopped, Duration)> = None;
        let mut stop_sent = false;
        loop {
            let instance = match self.get(call.attempt, &job) {
                Ok(Some(instance)) => instance,
                Ok(None) => {
                    return Ok(Ended::Unknown { reason: format!("the job of {} is gone", call.method) });
                }
                Err(error) if error.kind() == crate::ErrorKind::ServiceGone => {
                    return Ok(Ended::Unknown { reason: format!("the service went away during {}", call.method) });
                }
                Err(error) => return Err(error),
            };
            match instance.get("JobState").as_u64().unwrap_or(0) {
                COMPLETED => return Ok(Ended::Job { output, job, warnings: Vec::new() }),
                COMPLETED_WITH_WARNINGS => {
                    let warnings = self.job_texts(&job);
                    return Ok(Ended::Job { output, job, warnings });
                }
                TERMINATED | KILLED | EXCEPTION if stopped.is_some() => {
                    return Err(self.stopped_error(call, stopped.as_ref(), true));
                }
                TERMINATED | KILLED | EXCEPTION => return Err(self.job_error(call, &job, &instance)),
                _ => {}
            }
            let now = clock.monotonic();
            let elapsed = now.saturating_sub(start);
            match &stopped {
                None if call.cancel.is_some_and(Cancel::is_cancelled) => stopped = Some((Stopped::Caller, now)),
                None if elapsed >= call.limits.limit => stopped = Some((Stopped::Limit, now)),
                None => {}
                Some((_, since)) if now.saturating_sub(*since) >= call.limits.after_cancel => {
                    return Err(self.stopped_error(call, stopped.as_ref(), false));
                }
                Some(_) => {}
            }
            // A job may become cancellable later, so this is asked for until it was accepted once.
            if stopped.is_some() && !stop_sent && instance.get("Cancellable").as_bool() == Some(true) {
                stop_sent = self.ask_job_to_stop(&job);
            }
            clock.sleep(if elapsed < Duration::from_secs(1) {
                Duration::from_millis(100)
            } else {
                Duration::from_millis(500)
            });
        }
    }

    /// `RequestStateChange(4)`. Whether it worked shows in the job's state, not here.
    fn ask_job_to_stop(&self, job: &ObjectPath) -> bool {
        const TERMINATE: u16 = 4;
        let parameters = [("RequestedState", CimValue::Uint16(TERMINATE)), ("TimeoutPeriod", CimValue::Null)];
        let answer = self.seam.wmi.call(Namespace::Virtualization, job, "RequestStateChange", &parameters);
        answer.is_ok_and(|output| matches!(output.return_value, 0 | STARTED))
    }

    fn stopped_error(&self, call: &Invocation<'_>, stopped: Option<&(Stopped, Duration)>, job_ended: bool) -> Error {
        let attempt = call.attempt.to_owned();
        match stopped {
            Some((Stopped::Caller, _)) => Error::Cancelled { attempt, job_ended },
            _ => Error::Timeout { attempt, limit: call.limits.limit, job_ended },
        }
    }

    fn job_error(&self, call: &Invocation<'_>, job: &ObjectPath, instance: &Instance) -> Error {
        let number = |name| instance.get(name).as_u64().and_then(|value| u16::try_from(value).ok()).unwrap_or(0);
        let description = instance.get("ErrorDescription").as_str().unwrap_or_default().trim().to_owned();
        let mut texts = self.job_texts(job);
        texts.retain(|text| *text != description);
        Error::JobFailed {
            attempt: call.attempt.to_owned(),
            method: call.method,
            failure: Box::new(JobFailure { state: number("JobState"), code: number("ErrorCode"), description, texts }),
        }
    }

    /// The messages of `GetErrorEx`. They only add detail to an error that is reported anyway, so none is an answer too.
    fn job_texts(&self, job: &ObjectPath) -> Vec<String> {
        let Ok(output) = self.seam.wmi.call(Namespace::Virtualization, job, "GetErrorEx", &[]) else {
            return Vec::new();
        };
        let errors = output.get("Errors").as_array().unwrap_or_default();
        errors
            .iter()
            .filter_map(CimValue::as_str)
            .map(|text| match cim_xml::parse(text) {
                Ok(error) => error.get("Message").as_str().unwrap_or(text).trim().to_owned(),
                Err(_) => text.trim().to_owned(),
            })
            .filter(|text| !text.is_empty())
            .collect()
    }
}
