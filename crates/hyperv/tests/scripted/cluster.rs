//! Hosts in failover clusters, and hosts in none.

use hyperv::seam::CimValue;
use hyperv::{ClusteredVm, Error, FindError, TrackingSupport};

use crate::inventory::bulk;
use crate::script::*;

const CLUSTER: &str = "SELECT * FROM MSCluster_Cluster";
const ELSEWHERE: &str = "9A1B2C3D-0000-1111-2222-333344445555";

fn resource_query(vm: &str) -> String {
    format!(
        "SELECT Name, OwnerNode FROM MSCluster_Resource WHERE Type = 'Virtual Machine' AND PrivateProperties.VmID = '{vm}'"
    )
}

#[test]
fn a_host_without_a_cluster_says_so() {
    let script = one_vm();
    let vm = VM.parse().unwrap();
    assert_eq!(script.host().cluster().unwrap(), None);
    script.on_query_error(resource_query(VM), NO_NAMESPACE);
    assert_eq!(script.host().clustered_vm(&vm).unwrap(), None);
    // The tools are installed, and no cluster was made.
    script.forget_query(CLUSTER);
    script.on_query(CLUSTER, vec![]);
    assert_eq!(script.host().cluster().unwrap(), None);
    // What is broken is not called absent.
    script.forget_query(CLUSTER);
    script.on_query_error(CLUSTER, 0x8004_1003);
    assert!(script.host().cluster().is_err());
}

#[test]
fn a_vm_of_another_node_is_found_there() {
    let script = one_vm();
    script.on_query(format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = '{ELSEWHERE}'"), vec![]);
    let resource = vec![("Name", text("Virtual Machine db")), ("OwnerNode", text("HV02"))];
    script.on_query(resource_query(ELSEWHERE), vec![instance("MSCluster_Resource", "r", resource)]);
    let found = script.host().clustered_vm(&ELSEWHERE.parse().unwrap()).unwrap();
    assert_eq!(found, Some(ClusteredVm { resource: "Virtual Machine db".into(), owner_node: "HV02".into() }));
    match script.host().find_vm(ELSEWHERE) {
        Err(FindError::Host(error @ Error::OnOtherNode { .. })) => {
            assert!(error.to_string().contains("HV02"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // A VM that no node has is not found, whatever the cluster answers.
    for answer in [Ok(vec![]), Err(0x8004_1001)] {
        script.forget_query(&resource_query(ELSEWHERE));
        match answer {
            Ok(found) => script.on_query(resource_query(ELSEWHERE), found),
            Err(code) => script.on_query_error(resource_query(ELSEWHERE), code),
        }
        script.on_query("SELECT * FROM Msvm_ComputerSystem", vec![]);
        assert!(matches!(script.host().find_vm(ELSEWHERE), Err(FindError::NotFound { .. })));
    }
}

#[test]
fn an_old_functional_level_has_no_increments() {
    for (level, expected) in [(8, TrackingSupport::HostTooOld), (9, TrackingSupport::Supported)] {
        let (medium, devices) = scsi_disk(VM, 0, r"C:\VMs\web\d.vhdx");
        let script =
            bulk(vec![computer(VM, "web")], vec![settings(VM, "System:Realized", "web")], vec![medium], devices);
        script.forget_query(CLUSTER);
        let cluster = vec![("Name", text("C1")), ("ClusterFunctionalLevel", CimValue::Uint32(level))];
        script.on_query(CLUSTER, vec![instance("MSCluster_Cluster", "c", cluster)]);
        assert_eq!(script.host().list_vms().unwrap()[0].disks[0].tracking, expected, "level {level}");
        script.on_query("SELECT * FROM Win32_OperatingSystem", vec![]);
        assert_eq!(script.host().probe().unwrap().reference_points, level >= 9);
    }
}
