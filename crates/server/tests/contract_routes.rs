//! The contract's list of routes, and the router's own (spec control-api 2.1, 6.1, 6.2, 8; console 9): what is missing
//! is seen, and who may call what is as the contract's table of roles has it.

use std::collections::BTreeMap;

use control_api::words::Role;
use server::access::{Need, allows};
use server::http::routes::{self, Access};

/// The routes by section: who may call them, then their names. `agent`: with an agent's token. `-`: they prove by
/// themselves what has to be proved. Else the least role, and `any` for every role.
const CONTRACT: &str = "
    2.1 -                agent_enroll agent_login agent_device_code
    2.1 agent            agent_rotate_token agent_next_run agent_update_run agent_push_events agent_push_agent_events
                         agent_push_log_chunk agent_poll agent_poll_pending_commands agent_poll_commands
                         agent_complete_command agent_report_browse agent_report_volumes agent_fetch_jobs agent_start_run
                         agent_poll_repo_operations agent_complete_repo_operation agent_update_progress
                         agent_hyperv_discover agent_hyperv_update_checkpoint agent_hyperv_get_restore_info
                         agent_hyperv_update_session agent_repo_credentials cloudnas_pending_mounts cloudnas_update_status
    0.2 -                health
    6.1 viewer           cloudbackup_hyperv_vms cloudbackup_hyperv_backup_points cloudbackup_hyperv_instant_restore_status
                         cloudbackup_hyperv_snapshots
    6.1 restore_operator cloudbackup_hyperv_start_restore
    6.1 operator         cloudbackup_hyperv_toggle_vm cloudbackup_hyperv_refresh_vm_discovery
    6.2 -                console_login console_oidc_start console_oidc_finish
    6.2 any              console_logout console_session console_mfa
    6.2 viewer           cloudbackup_list_jobs cloudbackup_get_job
    6.2 operator         cloudbackup_create_job cloudbackup_update_job cloudbackup_delete_job cloudbackup_validate_job
    6.2 operator         cloudbackup_start_run cloudbackup_cancel_run
    6.2 viewer           cloudbackup_list_runs e3backup_run_list cloudbackup_get_run
    6.2 viewer           cloudbackup_progress cloudbackup_get_run_events cloudbackup_get_run_logs cloudbackup_run_stream
    6.2 viewer           e3backup_agent_list
    6.2 admin            e3backup_agent_toggle agent_disable agent_delete e3backup_agent_request_update
                         e3backup_agent_update_status e3backup_token_create e3backup_token_list e3backup_token_revoke
    6.2 operator         agent_list_hyperv_vms agent_list_hyperv_vm_details agent_browse_filesystem agent_list_volumes
                         agent_list_disks
    6.2 viewer           agent_poll_hyperv_vms cloudbackup_command_status
    6.2 viewer           e3backup_restore_points_list
    6.2 hold             cloudbackup_point_hold cloudbackup_verify_point
    6.2 admin            cloudbackup_point_delete
    6.2 restore_operator cloudbackup_start_restore agent_browse_snapshot cloudbackup_browse_vm_disk
                         cloudbackup_restore_vm_files cloudbackup_download cloudbackup_hyperv_instant_migrate
                         cloudbackup_hyperv_instant_stop
    6.2 viewer           cloudbackup_hyperv_instant_list
    6.2 viewer           cloudbackup_destination_list
    6.2 admin            cloudbackup_destination_create cloudbackup_destination_update cloudbackup_destination_delete
                         cloudbackup_destination_test cloudbackup_create_bucket bucket_list
    6.2 any              cloudbackup_dashboard cloudbackup_report e3backup_backup_history
    6.2 viewer           e3backup_tenant_list
    6.2 owner            e3backup_tenant_create e3backup_tenant_update e3backup_tenant_delete
                         e3backup_user_list e3backup_user_create e3backup_user_update e3backup_user_delete
                         e3backup_oidc_list e3backup_oidc_save e3backup_oidc_delete
    6.2 any              e3backup_api_token_create e3backup_api_token_list e3backup_api_token_revoke
    6.2 audit            cloudbackup_audit
    6.2 admin            cloudbackup_settings e3backup_user_notification_settings
    8   operator         cloudnas_list_mounts cloudnas_create_mount cloudnas_mount cloudnas_unmount cloudnas_delete_mount
                         cloudnas_settings cloudnas_available_drives cloudnas_mount_snapshot cloudnas_unmount_snapshot
    c9  viewer           cloudbackup_vms cloudbackup_search cloudbackup_alerts
    c9  operator         cloudbackup_alert_ack
    c9  admin            cloudbackup_alert_rules
    c9  restore_operator cloudbackup_restore_preflight cloudbackup_files_search cloudbackup_file_versions
                         cloudbackup_file_preview
    c9  any              cloudbackup_proof_list
    c9  viewer           cloudbackup_view_list cloudbackup_view_save cloudbackup_view_delete cloudbackup_pending_list
    c9  admin            cloudbackup_approval_list cloudbackup_approval_decide cloudbackup_pending_undo
                         cloudbackup_recovery_kit e3backup_device_code e3backup_device_confirm
";

/// Routes of the contract that are not there yet. One that has come may stay named here; one that is missing may not be
/// missing from here.
const OPEN: [&str; 7] = [
    "cloudbackup_run_stream",
    "cloudbackup_report",
    "e3backup_backup_history",
    "e3backup_user_notification_settings",
    "cloudbackup_alerts",
    "cloudbackup_alert_ack",
    "cloudbackup_alert_rules",
];

/// The routes of [`CONTRACT`] with who may call them.
fn contract() -> BTreeMap<&'static str, &'static str> {
    let mut routes = BTreeMap::new();
    let mut least = "";
    for line in CONTRACT.lines() {
        let is_new = line.starts_with("    ") && !line.starts_with("     ");
        let mut words = line.split_whitespace();
        if is_new {
            words.next();
            least = words.next().expect("who may call it");
        }
        for name in words {
            assert!(routes.insert(name, least).is_none(), "{name} stands in the table twice");
        }
    }
    routes
}

/// Whether that role may call what has that least role. Roles are no ladder: who restores does not operate (6.3).
fn may(role: Role, least: &str) -> bool {
    match least {
        "any" => true,
        "viewer" => role != Role::Auditor,
        "operator" => matches!(role, Role::Operator | Role::Admin | Role::Owner),
        "hold" => matches!(role, Role::Operator | Role::RestoreOperator | Role::Admin | Role::Owner),
        "restore_operator" => matches!(role, Role::RestoreOperator | Role::Admin | Role::Owner),
        "admin" => matches!(role, Role::Admin | Role::Owner),
        "owner" => role == Role::Owner,
        "audit" => matches!(role, Role::Auditor | Role::Admin | Role::Owner),
        other => panic!("the table has an unknown role {other}"),
    }
}

#[test]
fn every_route_of_the_contract_is_there_for_those_it_names() {
    let contract = contract();
    assert!(contract.len() > 110, "only {} routes were read from the table", contract.len());
    let router: BTreeMap<&str, Access> =
        routes::all().iter().map(|route| (route.name.trim_end_matches(".php"), route.access)).collect();
    let missing: Vec<&&str> =
        contract.keys().filter(|name| !router.contains_key(**name) && !OPEN.contains(*name)).collect();
    assert!(missing.is_empty(), "routes of the contract that are missing: {missing:?}");
    for name in OPEN.iter().filter(|name| router.contains_key(**name)) {
        println!("{name} has come: it need not be named as open");
    }
    for (name, least) in &contract {
        let Some(access) = router.get(name) else { continue };
        match (access, *least) {
            (Access::Anybody, "-") | (Access::Agent, "agent") => {}
            (Access::Person(need), least) if !["-", "agent"].contains(&least) => {
                for role in Role::ALL {
                    assert_eq!(allows(*role, *need), may(*role, least), "{name}: {role}, {need:?}");
                }
            }
            (access, least) => panic!("{name} is for {access:?}, the contract says {least}"),
        }
    }
}

/// A session without its second factor reaches nothing but what it needs to show one, or to leave.
#[test]
fn only_three_routes_are_open_to_half_a_session() {
    let open = routes::all().iter().filter(|route| route.access == Access::Person(Need::Begun));
    let mut open: Vec<&str> = open.map(|route| route.name).collect();
    open.sort_unstable();
    assert_eq!(open, ["console_logout.php", "console_mfa.php", "console_session.php"]);
}
