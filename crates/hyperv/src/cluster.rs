//! Failover clusters: which node runs a VM, and what the cluster's age allows (spec 4.10).
//!
//! Every call about a VM has to run on the node that owns it. A host outside of a cluster answers "no cluster" to all
//! of this, and nothing else changes for it.

use crate::error::{INVALID_CLASS, INVALID_NAMESPACE};
use crate::seam::Namespace;
use crate::{Error, Host, VmId, wql};

/// The cluster that a host belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// `ClusterFunctionalLevel`: 8 for Server 2012 R2, 9 for 2016, and so on; `None` where the class does not say.
    pub functional_level: Option<u64>,
}

/// The functional level of Server 2016, which reference points need.
const LEVEL_2016: u64 = 9;

impl Cluster {
    /// Whether reference points, hence incremental backups, can work. A cluster whose nodes are newer than its
    /// functional level has none; raising the level (`Update-ClusterFunctionalLevel`) brings them (spec 2.7).
    pub fn has_reference_points(&self) -> bool {
        self.functional_level.is_none_or(|level| level >= LEVEL_2016)
    }
}

/// A VM as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusteredVm {
    /// Name of its resource.
    pub resource: String,
    /// The node that owns it now: where a backup of it has to run.
    pub owner_node: String,
}

impl Host {
    /// The cluster of this host; `None` on a host that is in none.
    pub fn cluster(&self) -> Result<Option<Cluster>, Error> {
        let clusters = self.find_in_cluster("look for a cluster", &wql::all("MSCluster_Cluster"))?;
        Ok(clusters.first().map(|cluster| Cluster {
            name: cluster.get("Name").as_str().unwrap_or_default().to_owned(),
            functional_level: cluster.get("ClusterFunctionalLevel").as_u64(),
        }))
    }

    /// The VM among the cluster's roles; `None` when it is no role, or there is no cluster.
    pub fn clustered_vm(&self, id: &VmId) -> Result<Option<ClusteredVm>, Error> {
        let query = format!(
            "SELECT Name, OwnerNode FROM MSCluster_Resource WHERE Type = 'Virtual Machine' AND PrivateProperties.VmID = {}",
            wql::literal(id.as_str())
        );
        let resources = self.find_in_cluster(&format!("look for VM {id} in the cluster"), &query)?;
        Ok(resources.first().map(|resource| {
            let text = |name| resource.get(name).as_str().unwrap_or_default().to_owned();
            ClusteredVm { resource: text("Name"), owner_node: text("OwnerNode") }
        }))
    }

    /// Whether this host, in its cluster if it has one, can make reference points. A cluster that does not answer is no
    /// reason to give up increments: the conversion would fail and be reported.
    pub(crate) fn makes_reference_points(&self, attempt: &str) -> Result<bool, Error> {
        let has_class = self.class_properties(attempt, crate::host::REFERENCE_POINT_SERVICE)?.is_some();
        Ok(has_class && !matches!(self.cluster(), Ok(Some(cluster)) if !cluster.has_reference_points()))
    }

    fn find_in_cluster(&self, attempt: &str, wql: &str) -> Result<Vec<crate::seam::Instance>, Error> {
        // Asked once only: a stopped cluster service must not hold up a host that can do without it.
        match self.seam.wmi.query(Namespace::Cluster, wql) {
            Ok(found) => Ok(found),
            Err(error) if matches!(error.hresult, INVALID_NAMESPACE | INVALID_CLASS) => Ok(Vec::new()),
            Err(source) => Err(Error::Wmi { attempt: attempt.to_owned(), source }),
        }
    }
}

/// Whether a path lies on a cluster shared volume: the same path on every node, and slower to read on a node that does
/// not own the volume.
pub fn is_on_cluster_shared_volume(path: &str) -> bool {
    let mut parts = path.split(['\\', '/']);
    let drive = parts.next().unwrap_or_default();
    drive.len() == 2
        && drive.ends_with(':')
        && parts.next().is_some_and(|folder| folder.eq_ignore_ascii_case("ClusterStorage"))
        && parts.next().is_some_and(|volume| !volume.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_volumes_are_told_by_their_path() {
        for (path, shared) in [
            (r"C:\ClusterStorage\Volume1\web\d.vhdx", true),
            (r"c:/clusterstorage/Volume 2/d.vhdx", true),
            (r"C:\ClusterStorage", false),
            (r"C:\ClusterStorage\", false),
            (r"D:\VMs\ClusterStorage\d.vhdx", false),
            (r"\\files\ClusterStorage\d.vhdx", false),
            ("", false),
        ] {
            assert_eq!(is_on_cluster_shared_volume(path), shared, "{path}");
        }
    }

    #[test]
    fn old_functional_levels_have_no_reference_points() {
        for (functional_level, expected) in [(Some(8), false), (Some(9), true), (Some(12), true), (None, true)] {
            let cluster = Cluster { name: "C".into(), functional_level };
            assert_eq!(cluster.has_reference_points(), expected, "{functional_level:?}");
        }
    }
}
