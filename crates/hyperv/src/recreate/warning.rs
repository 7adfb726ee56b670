//! What a re-creation did otherwise than the VM was before.

use std::fmt;

/// Something that a person has to know of a VM that was re-created. Its text is one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecreateWarning {
    /// A network adapter is not connected: this host has no such switch.
    SwitchMissing {
        /// The adapter's name.
        adapter: String,
        /// The switch that was looked for.
        switch: String,
    },
    /// A network adapter is not connected: several switches of this host have the name.
    SwitchAmbiguous {
        /// The adapter's name.
        adapter: String,
        /// The switches' name.
        switch: String,
    },
    /// A network adapter is not connected, because the host refused what its connection had (a VLAN, say).
    ConnectionFeatures {
        /// The adapter's name.
        adapter: String,
        /// Classes of the settings.
        features: Vec<String>,
    },
    /// A disk is not in the VM.
    DiskLeftOut {
        /// Its file or device on the former host.
        path: String,
        /// Why: it was not restored, or it is a disk of the former host.
        why: &'static str,
    },
    /// A drive is empty: its image is not on this host.
    ImageMissing {
        /// The image.
        path: String,
    },
    /// Devices of a kind that is not built.
    DeviceNotBuilt {
        /// The class of their setting.
        class: String,
        /// How many.
        count: usize,
    },
    /// The VM has another id than the former one, although that was asked for. One that is built from settings always has.
    IdNotKept,
    /// The configuration version is another one.
    OtherVersion {
        /// Before.
        was: String,
        /// Now.
        is: String,
    },
    /// The VM has a virtual TPM, made under the key protector of another host.
    TpmOfOtherHost {
        /// That host.
        host: String,
    },
    /// The VM had a virtual TPM and has none now.
    TpmLeftOut,
    /// The VM has an empty virtual TPM.
    TpmEmpty,
    /// Entries of the boot order name files or devices that are not there now.
    BootEntriesLost {
        /// How many.
        count: usize,
    },
    /// Settings that this host's version of Hyper-V does not know.
    SettingsUnknown(Vec<String>),
    /// What the host remarked itself.
    Host(String),
}

impl fmt::Display for RecreateWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwitchMissing { adapter, switch } => write!(
                f,
                "Network adapter {adapter:?} is not connected: this host has no switch {switch:?}; choose another one."
            ),
            Self::SwitchAmbiguous { adapter, switch } => write!(
                f,
                "Network adapter {adapter:?} is not connected: several switches of this host are called {switch:?}; name one by its id."
            ),
            Self::ConnectionFeatures { adapter, features } => write!(
                f,
                "Network adapter {adapter:?} is not connected, because this host refused the settings of its connection ({}); set them by hand, then connect it.",
                features.join(", ")
            ),
            Self::DiskLeftOut { path, why } => write!(f, "The disk {path} is not in the VM: {why}."),
            Self::ImageMissing { path } => write!(f, "A drive is empty, because the image {path} is not on this host."),
            Self::DeviceNotBuilt { class, count } => {
                write!(f, "{count} devices of class {class} were not made again; add them by hand if they are needed.")
            }
            Self::IdNotKept => f.write_str(
                "The VM has a new id, because its former one could not be given to it; its next backup starts a new series.",
            ),
            Self::OtherVersion { was, is } => write!(f, "The configuration version is {is} instead of {was}."),
            Self::TpmOfOtherHost { host } => write!(
                f,
                "The virtual TPM was made on {host:?}; if this host lacks that host's guardian certificates, the VM does not start until they are imported."
            ),
            Self::TpmLeftOut => {
                f.write_str("The VM has no virtual TPM any more; have the BitLocker recovery key at hand.")
            }
            Self::TpmEmpty => f.write_str("The virtual TPM is empty; have the BitLocker recovery key at hand."),
            Self::BootEntriesLost { count } => {
                write!(f, "{count} entries of the boot order were not found again; check it before the first start.")
            }
            Self::SettingsUnknown(names) => {
                write!(f, "This host does not know the settings {}; they were left out.", names.join(", "))
            }
            Self::Host(text) => write!(f, "The host remarked: {text}"),
        }
    }
}
