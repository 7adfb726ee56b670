//! Building instances: every property with the name and type that the schema has for it.

use hyperv::seam::{CimType, CimValue, Instance};

use crate::host::Tx;
use crate::object_path::format_path;
use crate::schema::{Class, schema};

/// Builds an instance of a class of the schema; a wrong name or kind is a mistake of ours.
pub(crate) struct Builder {
    class: &'static Class,
    host: Option<String>,
    instance: Instance,
}

impl Builder {
    pub(crate) fn new(tx: &Tx<'_>, class: &str) -> Self {
        Self { host: Some(tx.options.host_name.clone()), ..Self::embedded(class) }
    }

    /// An instance without a path.
    pub(crate) fn embedded(class: &str) -> Self {
        let class = schema().own(class);
        let properties = class.properties.keys().map(|name| (name.clone(), CimValue::Null)).collect();
        Self { class, host: None, instance: Instance { class: class.name.clone(), path: None, properties } }
    }

    pub(crate) fn class_name(&self) -> &str {
        &self.class.name
    }

    pub(crate) fn has_property(&self, name: &str) -> bool {
        self.class.properties.contains_key(name)
    }

    pub(crate) fn set(mut self, name: &str, value: CimValue) -> Self {
        let kind = self.class.properties.get(name);
        let kind = kind.unwrap_or_else(|| panic!("{} has no property {name}", self.class.name));
        assert!(kind.admits(&value), "{}.{name} is {kind:?}, not {value:?}", self.class.name);
        self.instance.properties.insert(name.to_owned(), value);
        self
    }

    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        self.set(name, CimValue::String(value.to_owned()))
    }

    pub(crate) fn texts(self, name: &str, values: Vec<String>) -> Self {
        self.set(name, CimValue::Array(CimType::String, values.into_iter().map(CimValue::String).collect()))
    }

    pub(crate) fn flag(self, name: &str, value: bool) -> Self {
        self.set(name, CimValue::Boolean(value))
    }

    /// A number, of the type that the schema says.
    pub(crate) fn number(self, name: &str, value: u64) -> Self {
        let base = self.class.properties.get(name).map(|kind| kind.base);
        self.set(name, number_of(base.unwrap_or(CimType::String), value))
    }

    pub(crate) fn numbers(self, name: &str, values: &[u64]) -> Self {
        let base = self.class.properties.get(name).map_or(CimType::String, |kind| kind.base);
        self.set(name, CimValue::Array(base, values.iter().map(|&value| number_of(base, value)).collect()))
    }

    pub(crate) fn date(self, name: &str, unix_ms: u64) -> Self {
        self.set(name, CimValue::DateTime(datetime(unix_ms)))
    }

    pub(crate) fn interval(self, name: &str, ms: u64) -> Self {
        self.set(name, CimValue::DateTime(interval(ms)))
    }

    pub(crate) fn build(mut self) -> Instance {
        if let Some(host) = &self.host {
            let value = |key: &String| {
                let value = self.instance.get(key);
                let number = || value.as_u64().map(|number| number.to_string());
                value.as_str().map(str::to_owned).or_else(number).unwrap_or_default()
            };
            let keys: Vec<(String, String)> = self.class.keys.iter().map(|key| (key.clone(), value(key))).collect();
            let keys: Vec<(&str, &str)> = keys.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            self.instance.path = Some(format_path(host, self.class.namespace, &self.class.name, &keys));
        }
        self.instance
    }
}

fn number_of(base: CimType, value: u64) -> CimValue {
    let fits = "numbers of ours fit their properties";
    match base {
        CimType::Uint8 => CimValue::Uint8(value.try_into().expect(fits)),
        CimType::Uint16 => CimValue::Uint16(value.try_into().expect(fits)),
        CimType::Uint32 => CimValue::Uint32(value.try_into().expect(fits)),
        CimType::Uint64 => CimValue::Uint64(value),
        CimType::Sint32 => CimValue::Sint32(value.try_into().expect(fits)),
        other => panic!("a number for a property of type {other:?}"),
    }
}

/// `yyyymmddHHMMSS.mmmmmm+000` of milliseconds since 1970.
pub(crate) fn datetime(unix_ms: u64) -> String {
    let (days, in_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Days to a date of the Gregorian calendar, counted in eras of 400 years from 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (seconds, micros) = (in_day / 1000, in_day % 1000 * 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}.{micros:06}+000")
}

/// `ddddddddHHMMSS.mmmmmm:000`.
fn interval(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, hour, minute, second) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{days:08}{hour:02}{minute:02}{second:02}.{:06}:000", ms % 1000 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_intervals() {
        for (ms, text) in [
            (0, "19700101000000.000000+000"),
            (951_827_696_789, "20000229123456.789000+000"),
            (1_767_225_600_000, "20260101000000.000000+000"),
            (4_102_444_799_999, "20991231235959.999000+000"),
        ] {
            assert_eq!(datetime(ms), text);
        }
        assert_eq!(interval(90_061_001), "00000001010101.001000:000");
    }
}
