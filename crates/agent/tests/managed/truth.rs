//! What the server says of how safe everything is: the same in every place that says it, and as it is.

use serde_json::Value;

use crate::estate::Estate;

/// Alerts about runs; of others there may be some, as the tests move clocks.
const OF_RUNS: [(&str, &str); 2] = [("kinds[]", "run_failed"), ("kinds[]", "run_partly_failed")];

impl Estate {
    /// Every VM is in this state, by the list, the dashboard, the protection report and the metrics.
    pub fn expect_states(&self, expected: &[(&str, &str)]) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let states_of = |answer: &Value, state: &dyn Fn(&Value) -> Value| -> Vec<(String, String)> {
            let vms = answer["vms"].as_array().unwrap_or_else(|| panic!("{answer}"));
            let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
            let mut states: Vec<_> = vms.iter().map(|vm| (text(vm["vm_name"].clone()), text(state(vm)))).collect();
            states.sort_unstable();
            states
        };
        let is_expected = |states: &[(String, String)]| {
            let states: Vec<(&str, &str)> =
                states.iter().map(|(name, state)| (name.as_str(), state.as_str())).collect();
            states == expected
        };
        self.server.wait_for(&format!("{expected:?}"), "cloudbackup_vms.php", &[], |answer| {
            is_expected(&states_of(answer, &|vm| vm["status"]["state"].clone())).then_some(())
        });
        let report = self.server.get("cloudbackup_report.php", &[]);
        assert!(is_expected(&states_of(&report, &|vm| vm["status"]["state"].clone())), "{expected:?}: {report}");
        let dashboard = self.server.get("cloudbackup_dashboard.php", &[]);
        let metrics = self.server.page("/metrics");
        for (state, count) in dashboard["states"].as_object().expect("states") {
            let there = expected.iter().filter(|(_, other)| other == state).count();
            assert_eq!(*count, there, "{state}: {dashboard}");
            assert_eq!(report["states"][state], there, "{state}: {report}");
            let line = format!("e3_vms{{state=\"{state}\"}} {there}");
            assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
        }
    }

    /// One alert about a run is open, and was opened once.
    pub fn expect_an_alert(&self, kind: &str) {
        self.server.wait_for("an alert", "cloudbackup_alerts.php", &OF_RUNS, |answer| {
            let alerts = answer["alerts"].as_array()?;
            let alert = alerts.first()?;
            assert_eq!((alerts.len(), &alert["kind"], &alert["episode"]), (1, &kind.into(), &1.into()), "{answer}");
            Some(())
        });
        let metrics = self.server.page("/metrics");
        let line = format!("e3_alerts{{kind=\"{kind}\"}} 1");
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }

    /// No alert about a run is open; so many were.
    pub fn expect_no_alert(&self, resolved: usize) {
        self.server
            .wait_for("no alert", "cloudbackup_alerts.php", &OF_RUNS, |answer| (answer["total"] == 0).then_some(()));
        let former: Vec<_> = OF_RUNS.into_iter().chain([("states[]", "resolved")]).collect();
        let former = self.server.get("cloudbackup_alerts.php", &former);
        assert_eq!(former["total"], resolved, "{former}");
    }
}
