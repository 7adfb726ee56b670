//! Key protectors and virtual TPMs, as far as a restore can get them wrong.
//!
//! A key protector names the guardian that can open it and the wrapping key inside. The content of a virtual TPM, in the
//! `.vmgs`, is wrapped with such a key; both are replaced by new ones at every start of the VM, so only a protector and a
//! `.vmgs` of the same instant fit each other.

use crate::configuration::Configuration;
use crate::failure::{FAILED, Failure};
use crate::guest::SplitMix;
use crate::state::new_guid;

const MAGIC: &str = "48565350";
const GUID_DIGITS: usize = 32;
/// Real ones are some kilobytes of XML and certificates.
const PROTECTOR_DIGITS: usize = 2048;

/// A protector for a guardian, with a wrapping key, as hexadecimal digits.
pub(crate) fn protector(guardian: &str, key: &str) -> String {
    let digits = |guid: &str| guid.replace('-', "").to_lowercase();
    let mut text = format!("{MAGIC}{}{}", digits(guardian), digits(key));
    let mut filling = vec![0; (PROTECTOR_DIGITS - text.len()) / 2];
    let seed = text.bytes().fold(0, |seed, byte| SplitMix::new(seed ^ u64::from(byte)).next());
    SplitMix::new(seed).fill(&mut filling);
    text.extend(filling.iter().map(|byte| format!("{byte:02x}")));
    text
}

/// Guardian and wrapping key of a protector; `None` when it is not one.
fn open(protector: &str) -> Option<(String, String)> {
    let rest = protector.strip_prefix(MAGIC)?;
    let guid = |at: usize| {
        let digits = rest.get(at..at + GUID_DIGITS)?;
        Some(uuid::Uuid::try_parse(digits).ok()?.hyphenated().to_string().to_uppercase())
    };
    (protector.len() == PROTECTOR_DIGITS).then(|| Some((guid(0)?, guid(GUID_DIGITS)?))).flatten()
}

pub(crate) fn is_protector(text: &str) -> bool {
    open(text).is_some()
}

/// Why a VM's TPM cannot be used on a host with these guardians, if it cannot.
pub(crate) fn refusal(settings: &Configuration, guardians: &[String]) -> Option<Failure> {
    if !settings.security_flag("TpmEnabled") {
        return None;
    }
    let refuse = |why: &str| Some(Failure::new(FAILED, format!("The key protector could not be unwrapped. {why}")));
    let Some((guardian, key)) = settings.key_protector.as_deref().and_then(open) else {
        return refuse("The virtual machine has no key protector.");
    };
    if !guardians.contains(&guardian) {
        return refuse("The certificates of its guardian are not on this host.");
    }
    match &settings.tpm_key {
        Some(content) if *content != key => refuse("It does not belong to this guest state file."),
        _ => None,
    }
}

/// What a start does: a new wrapping key, for the host's own guardian.
pub(crate) fn roll(settings: &mut Configuration, guardian: &str) {
    if settings.security_flag("TpmEnabled") {
        let key = new_guid();
        settings.key_protector = Some(protector(guardian, &key));
        settings.tpm_key = Some(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protector_opens_only_with_its_guardian_and_its_guest_state() {
        let (ours, other) = (new_guid(), new_guid());
        let mut settings = Configuration::new("web", 2);
        assert_eq!(refusal(&settings, std::slice::from_ref(&ours)), None, "no TPM");
        settings.first_of_class_mut(crate::configuration::SECURITY).unwrap().properties.put("TpmEnabled", true);
        assert!(refusal(&settings, std::slice::from_ref(&ours)).is_some(), "no protector");
        roll(&mut settings, &ours);
        assert_eq!(refusal(&settings, std::slice::from_ref(&ours)), None);
        assert!(refusal(&settings, std::slice::from_ref(&other)).is_some(), "another host");
        let before = settings.clone();
        roll(&mut settings, &ours);
        settings.tpm_key.clone_from(&before.tpm_key);
        assert!(refusal(&settings, std::slice::from_ref(&ours)).is_some(), "a guest state of another instant");
        settings.tpm_key = None;
        assert_eq!(refusal(&settings, std::slice::from_ref(&ours)), None, "an empty TPM");
        for bad in ["", "48565350", &before.key_protector.clone().unwrap()[1..]] {
            assert!(!is_protector(bad), "{bad}");
        }
    }
}
