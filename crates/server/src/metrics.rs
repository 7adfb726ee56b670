//! The text format of Prometheus (version 0.0.4), and what this process weighs.

use std::fmt::Write as _;

/// Label names with their values.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// Metrics as text.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// A number that goes up and down, for each set of labels.
    pub fn gauge(&mut self, name: &str, help: &str, samples: &[(Labels, f64)]) {
        self.family(name, help, "gauge", samples);
    }

    /// A number that only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, "counter", &[(&[], value)]);
    }

    fn family(&mut self, name: &str, help: &str, kind: &str, samples: &[(Labels, f64)]) {
        // Writing to a String does not fail.
        let _ = writeln!(
            self.text,
            "# HELP {name} {}\n# TYPE {name} {kind}",
            help.replace('\\', "\\\\").replace('\n', "\\n")
        );
        for (labels, value) in samples {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "{name}{labels} {value}");
        }
    }

    /// The whole.
    pub fn text(self) -> String {
        self.text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Memory of this process that lies in RAM, where the system tells.
pub fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_prometheus_reads() {
        let mut out = Exposition::default();
        out.gauge("e3_vms", "VMs.", &[(&[("state", "late")], 3.0), (&[("state", "a\"b\\c\nd")], 0.5)]);
        out.counter("e3_total", "All.", 12.0);
        let expected = "# HELP e3_vms VMs.\n# TYPE e3_vms gauge\ne3_vms{state=\"late\"} 3\n\
                        e3_vms{state=\"a\\\"b\\\\c\\nd\"} 0.5\n# HELP e3_total All.\n# TYPE e3_total counter\ne3_total 12\n";
        assert_eq!(out.text(), expected);
    }
}
