//! Windows Management Instrumentation, as far as Hyper-V needs it.

use super::{CimValue, Instance, ObjectPath};

/// A WMI namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// `root\virtualization\v2`.
    Virtualization,
    /// `root\cimv2`.
    Cimv2,
    /// `root\Microsoft\Windows\Storage`.
    Storage,
    /// `root\MSCluster`: there on the nodes of a failover cluster, and where its tools are installed.
    Cluster,
}

impl Namespace {
    /// The namespace's path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Virtualization => r"root\virtualization\v2",
            Self::Cimv2 => r"root\cimv2",
            Self::Storage => r"root\Microsoft\Windows\Storage",
            Self::Cluster => r"root\MSCluster",
        }
    }
}

/// What a method gave back.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodOutput {
    /// `ReturnValue`: 0 done, 4096 a job was started, others are the method's own codes.
    pub return_value: u32,
    /// Output parameters by name; absent ones are null.
    pub out: std::collections::BTreeMap<String, CimValue>,
}

impl MethodOutput {
    /// An output parameter; null and a missing one read the same.
    #[track_caller]
    pub fn get(&self, name: &str) -> &CimValue {
        static NULL: CimValue = CimValue::Null;
        super::observe::output_is_read(self, name);
        self.out.get(name).unwrap_or(&NULL)
    }
}

/// A call failed below its method: no `ReturnValue` came back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {message} (0x{hresult:08X})")]
pub struct WmiError {
    /// What was attempted, with its object: `query "SELECT …"`, `call CreateSnapshot on …`.
    pub operation: String,
    /// The HRESULT (0x80041002 not found, 0x8004100E no such namespace, 0x800706BA the service is gone, …).
    pub hresult: u32,
    /// The provider's text, possibly localised.
    pub message: String,
}

/// Queries, objects and methods of one host.
pub trait Wmi: Send + Sync {
    /// Runs a WQL query, `ASSOCIATORS OF {…}` included, and collects the result.
    /// A missing class, and a caller without rights, give an empty result, not an error.
    fn query(&self, namespace: Namespace, wql: &str) -> Result<Vec<Instance>, WmiError>;

    /// One object by path; 0x80041002 when it is gone.
    fn get(&self, namespace: Namespace, path: &ObjectPath) -> Result<Instance, WmiError>;

    /// Whether the class exists, with the names of its properties: how a property of newer hosts is found out.
    fn class_properties(&self, namespace: Namespace, class: &str) -> Result<Option<Vec<String>>, WmiError>;

    /// Invokes a method of an object with named, typed input parameters.
    fn call(
        &self,
        namespace: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError>;
}
