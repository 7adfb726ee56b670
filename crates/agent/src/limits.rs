//! Limits of the configuration: how fast the agent reads disks, and moves bytes to and from repositories.
//!
//! ```toml
//! [limits]
//! upload = "50MiB"             # per second
//! download = "100MiB"
//! read = "400MiB"              # from the host's disks
//! read_latency = "100ms"       # a slower answer of the storage makes readers rest
//! vms_at_once = 2
//! disks_at_once = 4
//!
//! [[limits.window]]            # the first that fits counts
//! days = ["mon", "tue", "wed", "thu", "fri"]
//! from = "08:00"               # local time; to an earlier time: over midnight
//! to = "18:00"
//! upload = "5MiB"
//! ```
//!
//! A job has the same under `job.limits`, but for the last two; what it says and what the agent says both hold.

use std::num::NonZeroUsize;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use backup::{ReadLimits, Resources};
use bucket::{Bucket, RateLimiter, SystemClock, Throttled};
use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use serde::{Deserialize, Serialize};

use crate::service::{Day, time_of_day};
use crate::units::parse_size;

/// VMs backed up at a time, unless the configuration says otherwise.
const VMS_AT_ONCE: usize = 2;
/// Disks read at a time, unless the configuration says otherwise.
const DISKS_AT_ONCE: usize = 4;

/// What `[limits]` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    upload: Option<ByteRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    download: Option<ByteRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<ByteRate>,
    /// A request to the host's storage that takes longer makes its reader rest.
    #[serde(with = "latency", skip_serializing_if = "Option::is_none")]
    pub read_latency: Option<Duration>,
    /// VMs backed up at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vms_at_once: Option<NonZeroUsize>,
    /// Disks read at a time, of all VMs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks_at_once: Option<NonZeroUsize>,
    #[serde(rename = "window", skip_serializing_if = "Vec::is_empty")]
    windows: Vec<Window>,
}

/// Other rates at some hours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    days: Vec<Day>,
    #[serde(with = "hour")]
    from: Time,
    #[serde(with = "hour")]
    to: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload: Option<ByteRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    download: Option<ByteRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<ByteRate>,
}

/// Bytes per second, such as `"50MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct ByteRate(u64);

impl TryFrom<String> for ByteRate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_rate(&text).map(Self)
    }
}

impl From<ByteRate> for String {
    fn from(rate: ByteRate) -> String {
        rate.0.to_string()
    }
}

/// Reads `50MiB` or `50MiB/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text.trim().strip_suffix("/s").unwrap_or(text))? {
        0 => Err("a rate of 0 would stop everything; leave it out for no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

/// What a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Upload,
    Download,
    Read,
}

impl Limits {
    /// VMs backed up at a time.
    pub fn vms_at_once(&self) -> usize {
        self.vms_at_once.map_or(VMS_AT_ONCE, NonZeroUsize::get)
    }

    /// Disks read at a time.
    pub fn disks_at_once(&self) -> usize {
        self.disks_at_once.map_or(DISKS_AT_ONCE, NonZeroUsize::get)
    }

    /// A limit of uploads whenever it is.
    pub fn set_upload(&mut self, bytes_per_second: u64) {
        self.upload = Some(ByteRate(bytes_per_second));
        self.windows.iter_mut().for_each(|window| window.upload = None);
    }

    /// Another limit of uploads at some hours of some days, of all where none is named.
    pub fn add_upload_window(&mut self, days: Vec<Day>, from: Time, to: Time, bytes_per_second: u64) {
        let upload = Some(ByteRate(bytes_per_second));
        self.windows.push(Window { days, from, to, upload, download: None, read: None });
    }

    /// Limits of downloads, and of reads from the host's disks, whenever it is.
    pub fn set_others(&mut self, download: Option<u64>, read: Option<u64>) {
        (self.download, self.read) = (download.map(ByteRate), read.map(ByteRate));
    }

    /// The rate at a time: that of the first window that is open and says something, else the one outside windows.
    fn rate(&self, way: Way, at: &ZonedDateTime) -> Option<u64> {
        let open = self.windows.iter().filter(|window| window.is_open(at));
        let of_windows = open.filter_map(|window| match way {
            Way::Upload => window.upload,
            Way::Download => window.download,
            Way::Read => window.read,
        });
        let outside = match way {
            Way::Upload => self.upload,
            Way::Download => self.download,
            Way::Read => self.read,
        };
        let mut of_windows = of_windows;
        of_windows.next().or(outside).map(|rate| rate.0)
    }
}

impl Window {
    fn is_open(&self, at: &ZonedDateTime) -> bool {
        let time = at.time();
        let fits = |date: jiff::civil::Date| {
            self.days.is_empty() || self.days.iter().any(|day| day.weekday() == date.weekday())
        };
        if self.from < self.to {
            return fits(at.date()) && self.from <= time && time < self.to;
        }
        // Over midnight, or all day: behind it the day before counts.
        if time >= self.from {
            return fits(at.date());
        }
        time < self.to && at.date().yesterday().is_ok_and(fits)
    }
}

/// The limiters of one set of limits, which may change while they are used.
#[derive(Clone, Debug)]
pub struct Throttle {
    limits: Arc<RwLock<Limits>>,
    upload: Arc<RateLimiter>,
    download: Arc<RateLimiter>,
    read: Arc<RateLimiter>,
}

impl Throttle {
    /// On the clock of this machine.
    pub fn new(limits: Limits) -> Self {
        let limits = Arc::new(RwLock::new(limits));
        let limiter = |way| {
            let limiter = RateLimiter::new(Arc::new(SystemClock::default()));
            let limits = limits.clone();
            limiter.set_rate(move || {
                let now = Timestamp::now().to_zoned_datetime(TimeZone::system());
                limits.read().unwrap_or_else(std::sync::PoisonError::into_inner).rate(way, &now)
            });
            Arc::new(limiter)
        };
        let (upload, download, read) = (limiter(Way::Upload), limiter(Way::Download), limiter(Way::Read));
        Self { limits, upload, download, read }
    }

    /// Other limits from now on, also for what is going on.
    pub fn change(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(std::sync::PoisonError::into_inner) = limits;
    }
}

/// What a process does not exceed: its own limits, and those of the job at hand.
#[derive(Clone, Debug)]
pub struct Throttles {
    own: Throttle,
    of_job: Option<Throttle>,
    /// Shared by all runs.
    pub resources: Arc<Resources>,
}

impl Throttles {
    /// By the configuration.
    pub fn new(limits: &Limits) -> Self {
        let resources = Arc::new(Resources::new(limits.disks_at_once()));
        Self { own: Throttle::new(limits.clone()), of_job: None, resources }
    }

    /// The same, and a job's own.
    pub fn with_job(&self, limits: &Limits) -> Self {
        let of_job = (*limits != Limits::default()).then(|| Throttle::new(limits.clone()));
        Self { of_job, ..self.clone() }
    }

    /// The same, and a job's own, which may change while they are used.
    pub fn with(&self, of_job: Throttle) -> Self {
        Self { of_job: Some(of_job), ..self.clone() }
    }

    /// The limits of the configuration changed. How many disks are read at once stays until the next start.
    pub fn change(&self, limits: &Limits) {
        self.own.change(limits.clone());
    }

    /// A store that keeps to the limits.
    pub fn wrap(&self, bucket: Arc<dyn Bucket>) -> Arc<dyn Bucket> {
        let up = self.each(|throttle| &throttle.upload);
        let down = self.each(|throttle| &throttle.download);
        Arc::new(Throttled::new(bucket, up, down))
    }

    /// How disks are read.
    pub fn reads(&self) -> ReadLimits {
        let latency = |throttle: &Throttle| {
            throttle.limits.read().unwrap_or_else(std::sync::PoisonError::into_inner).read_latency
        };
        let latencies = [Some(&self.own), self.of_job.as_ref()].into_iter().flatten().filter_map(latency);
        ReadLimits { rate: self.each(|throttle| &throttle.read), latency: latencies.min() }
    }

    fn each(&self, of: impl Fn(&Throttle) -> &Arc<RateLimiter>) -> Vec<Arc<RateLimiter>> {
        [Some(&self.own), self.of_job.as_ref()].into_iter().flatten().map(|throttle| of(throttle).clone()).collect()
    }
}

mod latency {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub fn serialize<S: Serializer>(latency: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        latency.map(|latency| format!("{}ms", latency.as_millis())).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::units::parse_duration(&text).map(Some).map_err(de::Error::custom)
    }
}

mod hour {
    use jiff::civil::Time;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub fn serialize<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
        time.strftime("%H:%M").to_string().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        super::time_of_day(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFICE: &str = r#"
        upload = "50MiB"
        read_latency = "100ms"
        vms_at_once = 3
        [[window]]
        days = ["mon", "fri"]
        from = "08:00"
        to = "18:00"
        upload = "5MiB/s"
        [[window]]
        days = ["fri"]
        from = "22:00"
        to = "06:00"
        upload = "1GiB"
        read = "200MiB"
    "#;

    #[test]
    fn rates_follow_the_hours() {
        let limits: Limits = toml::from_str(OFFICE).unwrap();
        assert_eq!((limits.vms_at_once(), limits.disks_at_once()), (3, DISKS_AT_ONCE));
        assert_eq!(limits.read_latency, Some(Duration::from_millis(100)));
        // 2026-11-27 is a Friday.
        for (time, upload_mib, read_mib) in [
            ("2026-11-27T07:59:59", 50, None),
            ("2026-11-27T08:00:00", 5, None),
            ("2026-11-27T17:59:59", 5, None),
            ("2026-11-27T18:00:00", 50, None),
            ("2026-11-27T22:00:00", 1024, Some(200)),
            ("2026-11-28T05:59:00", 1024, Some(200)),
            ("2026-11-28T06:00:00", 50, None),
            ("2026-11-28T23:00:00", 50, None),
            ("2026-11-26T12:00:00", 50, None),
        ] {
            let at: ZonedDateTime = format!("{time}[Europe/Berlin]").parse().unwrap();
            assert_eq!(limits.rate(Way::Upload, &at), Some(upload_mib << 20), "{time}");
            assert_eq!(limits.rate(Way::Read, &at), read_mib.map(|mib: u64| mib << 20), "{time}");
            assert_eq!(limits.rate(Way::Download, &at), None, "{time}");
        }
        let again: Limits = toml::from_str(&toml::to_string(&limits).unwrap()).unwrap();
        assert_eq!(again, limits);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in
            ["upload = \"0\"", "upload = \"fast\"", "vms_at_once = 0", "[[window]]\nfrom = \"25:00\"\nto = \"1:00\""]
        {
            assert!(toml::from_str::<Limits>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_changed_limit_holds_at_once() {
        let throttle = Throttle::new(Limits::default());
        assert_eq!(throttle.upload.rate(), None);
        throttle.change(toml::from_str("upload = \"1MiB\"").unwrap());
        assert_eq!((throttle.upload.rate(), throttle.read.rate()), (Some(1 << 20), None));
    }
}
