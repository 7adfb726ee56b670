//! What to do about the failures that hosts are known for (spec 9.1, 11).

use crate::{CreateError, Error, ErrorKind};

impl Error {
    /// What a person can do about it, if the host's code is one whose cause is known; one or two sentences.
    pub fn advice(&self) -> Option<&'static str> {
        if let Self::TpmMayNotOpen { .. } = self {
            return Some(
                "Import the guardian certificates of the VM's former host (store \"Shielded VM Local Certificates\"), or \
                 restore it with an empty virtual TPM and have the BitLocker recovery key at hand.",
            );
        }
        if let Self::Wmi { .. } = self {
            // The call itself was refused, so the account is ours, not the VM's.
            return (self.kind() == ErrorKind::AccessDenied)
                .then_some("Run this elevated, as an administrator or a member of Hyper-V Administrators.");
        }
        self.hresults().into_iter().find_map(of_hresult).or_else(|| self.of_kind())
    }

    /// Whether the guest may freeze a few minutes later: a writer or a snapshot was slow, or at work. One more try, then
    /// the policy decides (spec 9.1, 11 row 13).
    pub fn guest_may_recover(&self) -> bool {
        self.hresults().iter().any(|code| matches!(code, 0x8004_23F2 | 0x8004_23F3 | 0x8004_2314 | 0x8004_2316))
    }

    fn of_kind(&self) -> Option<&'static str> {
        Some(match self.kind() {
            ErrorKind::VssFailed => {
                "The guest did not freeze: look at its event log, at `vssadmin list writers` on Windows, or at whether \
                 hv_vss_daemon runs on Linux."
            }
            ErrorKind::NoSpace => "Make room on the volume that holds the VM's disks.",
            _ => return None,
        })
    }
}

impl CreateError {
    /// See [`Error::advice`].
    pub fn advice(&self) -> Option<&'static str> {
        self.error.advice()
    }

    /// See [`Error::guest_may_recover`].
    pub fn guest_may_recover(&self) -> bool {
        self.error.guest_may_recover()
    }
}

fn of_hresult(code: u32) -> Option<&'static str> {
    Some(match code {
        // Rows 31 and 42.
        0x8007_0569 | 0x8007_052F => {
            "Group policy has taken the right \"Log on as a service\" from \"NT VIRTUAL MACHINE\\Virtual Machines\"; give \
             it back, then run `gpupdate /force`."
        }
        // Rows 12 and 43.
        0x8007_0005 => {
            "The VM's own account has no access to one of its files or folders. Set the file on its drive once more \
             (the host then grants the access), or mend the folder's permissions."
        }
        // Rows 8 and 24.
        0x8007_0020 => {
            "Another process holds one of the VM's files: a virus scanner, a mounted disk, or a handle left by lost \
             storage. Moving the VM to another node, or restarting the host, frees the latter."
        }
        // Row 9.
        0x8007_0050 => {
            "A file of an interrupted backup (…AutoRecovery.avhdx) is in the way. Check that no disk's chain uses it \
             before you remove it."
        }
        // Row 10.
        0x8007_0002 | 0x8007_0003 => {
            "A file that the VM's settings name is missing: a disk, the parent of one, or an ISO image. Restore it, or \
             take it out of the settings."
        }
        // Rows 11 and 36.
        0x8007_0070 | 0x8007_0027 => "Make room on the volume that holds the VM's disks.",
        0x8007_0299 => {
            "The file system cannot extend the disk file any more (too many fragments). Move the VM's storage to another \
             volume."
        }
        // Spec 6.7, memory.
        0x8007_000E | 0x8007_05AA => "The host has too little free memory; start with less, or stop another VM.",
        // Rows 13 and 14, and spec 9.1.
        0x8004_23F2 | 0x8004_23F3 | 0x8004_2314 | 0x8004_2313 => {
            "The guest was too busy to freeze in time; run the backup when it has less to do."
        }
        0x8004_2316 => "Another snapshot is being made inside the guest; run the backup when that is done.",
        0x8004_23F4 => "A writer in the guest has failed; restart its service, then see `vssadmin list writers`.",
        0x8004_231F => "The guest's volumes lack room for a snapshot: about 300 MB are needed on each.",
        0x8004_2317 => "The guest has as many snapshots as it can; remove old ones with `vssadmin delete shadows`.",
        0x8004_2306 => "A snapshot provider in the guest refused; see its event log.",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JobFailure;

    fn failed(description: &str) -> Error {
        Error::JobFailed {
            attempt: "start VM".into(),
            method: "RequestStateChange",
            failure: Box::new(JobFailure {
                state: 10,
                code: 32768,
                description: description.into(),
                texts: Vec::new(),
            }),
        }
    }

    #[test]
    fn known_codes_come_with_advice() {
        for (text, word) in [
            ("logon failure 0x80070569", Some("Log on as a service")),
            ("0x8007052F", Some("Log on as a service")),
            ("access 0x80070005", Some("account")),
            ("unknown 0xDEADBEEF, then 0x80070050", Some("AutoRecovery")),
            ("0x800423F4", Some("vssadmin list writers")),
            ("0x80042300", Some("hv_vss_daemon")),
            ("nothing said", None),
        ] {
            let advice = failed(text).advice();
            match word {
                Some(word) => assert!(advice.unwrap_or_default().contains(word), "{text}: {advice:?}"),
                None => assert_eq!(advice, None, "{text}"),
            }
        }
        for (code, recovers) in [("0x800423F2", true), ("0x80042316", true), ("0x800423F4", false), ("none", false)] {
            assert_eq!(failed(code).guest_may_recover(), recovers, "{code}");
        }
        let tpm = Error::TpmMayNotOpen { attempt: "start".into(), source: Box::new(failed("?")) };
        assert!(tpm.advice().unwrap().contains("guardian"));
        assert_eq!(CreateError::from(failed("0x80070070")).advice(), failed("0x80070070").advice());
    }
}
