//! Every endpoint (spec control-api 2.1, 6): name, methods, who may call it, what it reads and answers, its handler.
//!
//! The router, the OpenAPI document and the walk of the tests are made from this one table.

use control_api::{
    account, agent, alert, approval, catalogue, command, destination, enrolment, envelope, events, hyperv, instant,
    job, nas, progress, protection, report, repository, restore, run, run_list, settings,
};

use super::openapi::{self, Describe, none, of};
use super::{Call, Handled};
use crate::access::Need;
use crate::agent_api::{self, small};
use crate::client_api;

/// One endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name below the base paths; one that begins with a slash is a path by itself.
    pub name: &'static str,
    /// Methods that it answers; `HEAD` goes with `GET`.
    pub methods: &'static [&'static str],
    /// Who may call it.
    pub access: Access,
    /// Largest body.
    pub max_bytes: usize,
    /// What it reads.
    pub request: Describe,
    /// What it answers beside the envelope.
    pub answer: Describe,
    /// What it does.
    pub handler: for<'a> fn(&'a Call<'a>) -> Handled<'a>,
}

impl Endpoint {
    /// Where it is found.
    pub fn paths(&self) -> Vec<String> {
        if self.name.starts_with('/') {
            return vec![self.name.to_owned()];
        }
        super::BASES.iter().map(|base| format!("{base}{}", self.name)).collect()
    }
}

/// Who may call an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody; it proves by itself what has to be proved.
    Anybody,
    /// An agent.
    Agent,
    /// A person or script whose role allows that.
    Person(Need),
}

const GET: &[&str] = &["GET"];
const POST: &[&str] = &["POST"];
const BOTH: &[&str] = &["GET", "POST"];
const MIB: usize = 1 << 20;

macro_rules! endpoints {
    ($($name:literal $methods:ident $access:expr, $request:expr => $answer:expr, $($handler:ident)::+ $(, $max:expr)?;)*) => {
        &[$(Endpoint {
            name: $name,
            methods: $methods,
            access: $access,
            max_bytes: endpoints!(@max $($max)?),
            request: $request,
            answer: $answer,
            handler: |call| Box::pin($($handler)::+(call)),
        }),*]
    };
    (@max) => { MIB };
    (@max $max:expr) => { $max };
}

use Access::{Agent, Anybody};

const fn person(need: Need) -> Access {
    Access::Person(need)
}

static ENDPOINTS: &[Endpoint] = endpoints! {
    // Agents.
    "agent_enroll.php" POST Anybody, of::<enrolment::Enroll> => of::<enrolment::Enrolled>, agent_api::enrol::enroll;
    "agent_login.php" POST Anybody, of::<enrolment::AgentLogin> => of::<enrolment::Enrolled>, agent_api::device_code::login;
    "agent_device_code.php" POST Anybody, of::<enrolment::DeviceCode> => of::<enrolment::BegunDeviceCode>, agent_api::device_code::device_code;
    "agent_rotate_token.php" POST Agent, none => of::<enrolment::RotatedToken>, agent_api::enrol::rotate_token;
    "agent_next_run.php" BOTH Agent, of::<run::NextRun> => of::<run::NextRunAnswer>, agent_api::runs::next_run;
    "agent_update_run.php" POST Agent, of::<progress::UpdateRun> => of::<progress::UpdateRunAnswer>, agent_api::runs::update_run, 4 * MIB;
    "agent_push_events.php" POST Agent, of::<events::PushEvents> => of::<events::PushEventsAnswer>, agent_api::events::push_events, 4 * MIB;
    "agent_push_agent_events.php" POST Agent, of::<events::PushAgentEvents> => of::<events::PushAgentEventsAnswer>, agent_api::events::push_agent_events, 4 * MIB;
    "agent_push_log_chunk.php" POST Agent, of::<events::PushLogChunk> => of::<events::PushLogChunkAnswer>, agent_api::events::push_log_chunk, 2 * MIB;
    "agent_poll.php" GET Agent, of::<command::Poll> => of::<command::PollAnswer>, agent_api::commands::poll;
    "agent_poll_pending_commands.php" GET Agent, none => of::<command::PendingCommands>, agent_api::commands::poll_pending;
    "agent_poll_commands.php" BOTH Agent, of::<command::PollRunCommands> => of::<command::RunCommands>, agent_api::commands::poll_run;
    "agent_complete_command.php" POST Agent, of::<command::CompleteCommand> => of::<envelope::Done>, agent_api::commands::complete;
    "agent_report_browse.php" POST Agent, of::<command::ReportBrowse> => of::<envelope::Done>, agent_api::commands::report_browse, 12 * MIB;
    "agent_report_volumes.php" POST Agent, of::<agent::ReportVolumes> => of::<agent::ReportVolumesAnswer>, small::report_volumes;
    "agent_fetch_jobs.php" GET Agent, none => none, small::fetch_jobs;
    "agent_start_run.php" POST Agent, of::<run::AgentStartRun> => none, agent_api::runs::start_run;
    "agent_poll_repo_operations.php" GET Agent, of::<repository::PollRepoOperations> => of::<repository::PollRepoOperationsAnswer>, agent_api::repositories::poll;
    "agent_complete_repo_operation.php" POST Agent, of::<repository::CompleteRepoOperation> => of::<envelope::Done>, agent_api::repositories::complete;
    "agent_update_progress.php" POST Agent, of::<agent::UpdateProgress> => of::<envelope::Done>, client_api::agent_updates::progress;
    "agent_hyperv_discover.php" POST Agent, of::<hyperv::Discover> => of::<hyperv::DiscoverAnswer>, agent_api::discover::discover, 4 * MIB;
    "agent_hyperv_update_checkpoint.php" POST Agent, of::<progress::UpdateCheckpoint> => of::<progress::UpdateCheckpointAnswer>, agent_api::runs::update_checkpoint, 4 * MIB;
    "agent_hyperv_get_restore_info.php" GET Agent, of::<hyperv::RestoreInfoQuery> => of::<hyperv::RestoreInfo>, agent_api::restore_info::get;
    "agent_hyperv_update_session.php" POST Agent, of::<instant::UpdateSession> => of::<instant::UpdateSessionAnswer>, small::not_available;
    "agent_repo_credentials.php" POST Agent, of::<run::RenewCredentials> => of::<run::RenewedCredentials>, agent_api::runs::renew_credentials;
    "cloudnas_pending_mounts.php" POST Agent, of::<nas::PendingMounts> => none, small::not_available;
    "cloudnas_update_status.php" POST Agent, of::<nas::UpdateMount> => none, small::not_available;

    // Everybody.
    "health.php" GET Anybody, none => of::<envelope::Health>, client_api::health;
    "/healthz" GET Anybody, none => none, client_api::probes::alive;
    "/readyz" GET Anybody, none => none, client_api::probes::ready;
    "openapi.json" GET Anybody, none => none, openapi::get;
    "console_setup.php" POST Anybody, of::<account::Setup> => of::<account::LoggedIn>, client_api::setup::setup;
    "console_login.php" POST Anybody, of::<account::Login> => of::<account::LoggedIn>, client_api::session::login;
    "console_oidc_start.php" POST Anybody, of::<account::BeginOidc> => of::<account::BegunOidc>, client_api::oidc::start;
    "console_oidc_finish.php" POST Anybody, of::<account::FinishOidc> => of::<account::LoggedIn>, client_api::oidc::finish;

    // People and scripts.
    "console_logout.php" POST person(Need::Begun), none => of::<envelope::Done>, client_api::session::logout;
    "console_mfa.php" POST person(Need::Begun), of::<account::Mfa> => of::<account::MfaAnswer>, client_api::mfa::mfa;
    "console_session.php" GET person(Need::Begun), none => of::<account::CurrentSession>, client_api::session::current;
    "cloudbackup_list_jobs.php" GET person(Need::View), of::<account::Page> => of::<job::Jobs>, client_api::jobs::list;
    "cloudbackup_get_job.php" GET person(Need::View), of::<job::JobRef> => of::<job::JobAnswer>, client_api::jobs::get;
    "cloudbackup_create_job.php" POST person(Need::Operate), of::<job::JobRequest> => of::<job::JobAnswer>, client_api::jobs::create;
    "cloudbackup_update_job.php" POST person(Need::Operate), of::<job::JobRequest> => of::<job::JobAnswer>, client_api::jobs::update;
    "cloudbackup_delete_job.php" POST person(Need::Operate), of::<job::DeleteJob> => of::<envelope::Done>, client_api::jobs::delete;
    "cloudbackup_validate_job.php" POST person(Need::Operate), of::<job::JobRequest> => of::<job::ValidatedJob>, client_api::jobs::validate;
    "cloudbackup_start_run.php" POST person(Need::Operate), of::<run_list::StartRun> => of::<run_list::StartedRun>, client_api::runs::start;
    "cloudbackup_cancel_run.php" POST person(Need::Operate), of::<run_list::CancelRun> => of::<run_list::CancelledRun>, client_api::runs::cancel;
    "cloudbackup_list_runs.php" GET person(Need::View), of::<run_list::RunFilter> => of::<run_list::Runs>, client_api::runs::list;
    "e3backup_run_list.php" GET person(Need::View), of::<run_list::RunFilter> => of::<run_list::RunPage>, client_api::runs::page;
    "cloudbackup_get_run.php" GET person(Need::View), of::<run_list::RunRef> => of::<run_list::RunDetail>, client_api::runs::get;
    "cloudbackup_progress.php" GET person(Need::View), of::<run_list::RunRef> => none, client_api::runs::progress;
    "cloudbackup_get_run_events.php" GET person(Need::View), of::<events::RunEventsQuery> => of::<events::RunEvents>, client_api::runs::events;
    "cloudbackup_get_run_logs.php" GET person(Need::View), of::<events::RunEventsQuery> => of::<events::RunLogs>, client_api::runs::logs;
    "cloudbackup_hyperv_vms.php" GET person(Need::View), of::<catalogue::JobVmsQuery> => of::<catalogue::JobVms>, client_api::vms::of_job;
    "cloudbackup_vms.php" GET person(Need::View), of::<protection::VmFilter> => of::<protection::Vms>, client_api::vms::all;
    "cloudbackup_hyperv_toggle_vm.php" POST person(Need::Operate), of::<catalogue::ToggleVm> => of::<envelope::Done>, client_api::vms::toggle;
    "cloudbackup_hyperv_refresh_vm_discovery.php" POST person(Need::Operate), of::<job::JobRef> => of::<command::Queued>, client_api::questions::refresh;
    "cloudbackup_hyperv_backup_points.php" GET person(Need::View), of::<catalogue::PointsQuery> => of::<catalogue::Points>, client_api::points::of_vm;
    "e3backup_restore_points_list.php" GET person(Need::View), of::<catalogue::PointListQuery> => of::<catalogue::PointList>, client_api::points::list;
    "cloudbackup_point_hold.php" POST person(Need::Hold), of::<catalogue::HoldPoint> => of::<envelope::Done>, client_api::points::hold;
    "cloudbackup_point_delete.php" POST person(Need::Admin), of::<catalogue::DeletePoints> => of::<catalogue::DeletedPoints>, client_api::points::delete;
    "cloudbackup_verify_point.php" POST person(Need::Hold), of::<catalogue::VerifyPoint> => of::<command::Queued>, client_api::points::verify;
    "cloudbackup_hyperv_start_restore.php" POST person(Need::Restore), of::<restore::StartRestore> => of::<restore::StartedRestore>, client_api::restore::start;
    "cloudbackup_dashboard.php" GET person(Need::Report), none => of::<protection::Dashboard>, client_api::dashboard::get;
    "e3backup_agent_list.php" GET person(Need::View), of::<account::Page> => of::<agent::Agents>, client_api::agents::list;
    "e3backup_agent_toggle.php" POST person(Need::Admin), of::<enrolment::ToggleAgent> => of::<envelope::Done>, client_api::agents::toggle;
    "agent_disable.php" POST person(Need::Admin), of::<enrolment::DisableAgent> => of::<envelope::Done>, client_api::agents::disable;
    "agent_delete.php" POST person(Need::Admin), of::<enrolment::AgentRef> => of::<envelope::Done>, client_api::agents::delete;
    "e3backup_host_group_list.php" GET person(Need::View), of::<account::Page> => of::<agent::HostGroups>, client_api::groups::list;
    "e3backup_host_group_create.php" POST person(Need::Admin), of::<agent::HostGroupRequest> => of::<agent::HostGroupAnswer>, client_api::groups::create;
    "e3backup_host_group_update.php" POST person(Need::Admin), of::<agent::HostGroupRequest> => of::<agent::HostGroupAnswer>, client_api::groups::update;
    "e3backup_token_create.php" POST person(Need::Admin), of::<enrolment::CreateEnrolmentToken> => of::<enrolment::CreatedEnrolmentToken>, client_api::tokens::create_enrolment;
    "e3backup_token_list.php" GET person(Need::Admin), of::<account::Page> => of::<enrolment::EnrolmentTokens>, client_api::tokens::list_enrolment;
    "e3backup_token_revoke.php" POST person(Need::Admin), of::<enrolment::RevokeEnrolmentToken> => of::<envelope::Done>, client_api::tokens::revoke_enrolment;
    "e3backup_api_token_create.php" POST person(Need::SignedIn), of::<account::CreateApiToken> => of::<account::CreatedApiToken>, client_api::tokens::create_api;
    "e3backup_api_token_revoke.php" POST person(Need::SignedIn), of::<account::RevokeApiToken> => of::<envelope::Done>, client_api::tokens::revoke_api;
    "agent_list_hyperv_vms.php" POST person(Need::Operate), of::<enrolment::AgentRef> => of::<command::Queued>, client_api::questions::list_vms;
    "agent_list_hyperv_vm_details.php" POST person(Need::Operate), of::<enrolment::AgentRef> => of::<command::Queued>, client_api::questions::vm_details;
    "agent_browse_filesystem.php" POST person(Need::Operate), of::<enrolment::AgentRef> => of::<command::Queued>, client_api::questions::browse;
    "agent_list_disks.php" POST person(Need::Operate), of::<enrolment::AgentRef> => of::<command::Queued>, client_api::questions::list_disks;
    "agent_list_volumes.php" GET person(Need::Operate), of::<enrolment::AgentRef> => none, client_api::questions::volumes;
    "agent_poll_hyperv_vms.php" GET person(Need::View), of::<command::CommandQuery> => of::<command::CommandState>, client_api::questions::status;
    "cloudbackup_command_status.php" GET person(Need::View), of::<command::CommandQuery> => of::<command::CommandState>, client_api::questions::status;
    "cloudbackup_destination_list.php" GET person(Need::View), of::<account::Page> => of::<destination::Destinations>, client_api::destinations::list;
    "cloudbackup_destination_create.php" POST person(Need::Admin), of::<destination::DestinationRequest> => of::<destination::DestinationAnswer>, client_api::destinations::create;
    "cloudbackup_destination_update.php" POST person(Need::Admin), of::<destination::DestinationRequest> => of::<destination::DestinationAnswer>, client_api::destinations::update;
    "cloudbackup_repository_list.php" GET person(Need::View), of::<account::Page> => of::<repository::Repositories>, client_api::destinations::repositories;
    "e3backup_user_list.php" GET person(Need::Own), of::<account::Page> => of::<account::Users>, client_api::people::list_users;
    "e3backup_user_create.php" POST person(Need::Own), of::<account::UserRequest> => of::<account::UserAnswer>, client_api::people::create_user;
    "e3backup_user_update.php" POST person(Need::Own), of::<account::UserRequest> => of::<account::UserAnswer>, client_api::people::update_user;
    "e3backup_tenant_list.php" GET person(Need::View), of::<account::Page> => of::<account::Tenants>, client_api::people::list_tenants;
    "e3backup_tenant_create.php" POST person(Need::Own), of::<account::TenantRequest> => of::<account::TenantAnswer>, client_api::people::create_tenant;
    "e3backup_tenant_update.php" POST person(Need::Own), of::<account::TenantRequest> => of::<account::TenantAnswer>, client_api::people::update_tenant;
    "cloudbackup_hyperv_snapshots.php" GET person(Need::View), of::<catalogue::SnapshotsQuery> => of::<catalogue::Snapshots>, client_api::points::snapshots;
    "cloudbackup_restore_preflight.php" POST person(Need::Restore), of::<restore::StartRestore> => of::<command::Queued>, client_api::preflight::preflight;
    "cloudbackup_destination_delete.php" POST person(Need::Admin), of::<destination::DeleteDestination> => of::<envelope::Done>, client_api::destination_care::delete;
    "cloudbackup_destination_test.php" POST person(Need::Admin), of::<destination::TestDestination> => of::<destination::TestedDestination>, client_api::destination_care::test;
    "e3backup_agent_request_update.php" POST person(Need::Admin), of::<agent::RequestUpdate> => of::<agent::UpdateState>, client_api::agent_updates::request;
    "e3backup_agent_update_status.php" GET person(Need::Admin), of::<agent::UpdateRef> => of::<agent::UpdateState>, client_api::agent_updates::status;
    "e3backup_user_delete.php" POST person(Need::Own), of::<account::DeleteUser> => of::<envelope::Done>, client_api::people::delete_user;
    "e3backup_tenant_delete.php" POST person(Need::Own), of::<account::DeleteTenant> => of::<envelope::Done>, client_api::people::delete_tenant;
    "e3backup_api_token_list.php" GET person(Need::SignedIn), of::<account::Page> => of::<account::ApiTokens>, client_api::tokens::list_api;
    "e3backup_oidc_list.php" GET person(Need::Own), of::<account::Page> => of::<account::OidcProviders>, client_api::oidc::list;
    "e3backup_oidc_save.php" POST person(Need::Own), of::<account::OidcProviderRequest> => of::<account::OidcProviderAnswer>, client_api::oidc::save;
    "e3backup_oidc_delete.php" POST person(Need::Own), of::<account::OidcProviderRef> => of::<envelope::Done>, client_api::oidc::delete;
    "cloudbackup_search.php" GET person(Need::View), of::<settings::SearchQuery> => of::<settings::Hits>, client_api::search::search;
    "cloudbackup_view_list.php" GET person(Need::View), none => of::<settings::SavedViews>, client_api::search::views;
    "cloudbackup_view_save.php" POST person(Need::View), of::<settings::SaveView> => of::<envelope::Done>, client_api::search::save_view;
    "cloudbackup_view_delete.php" POST person(Need::View), of::<settings::ViewRef> => of::<envelope::Done>, client_api::search::delete_view;
    "e3backup_device_code.php" GET person(Need::Admin), of::<enrolment::DeviceCodeQuery> => of::<enrolment::DeviceAsking>, agent_api::device_code::show;
    "e3backup_device_confirm.php" POST person(Need::Admin), of::<enrolment::ConfirmDevice> => of::<envelope::Done>, agent_api::device_code::confirm;
    "cloudbackup_settings.php" BOTH person(Need::Admin), of::<settings::SettingsRequest> => of::<settings::ClientSettings>, client_api::settings::settings;
    "cloudbackup_approval_list.php" GET person(Need::Admin), of::<approval::ApprovalQuery> => of::<approval::Approvals>, client_api::approvals::list;
    "cloudbackup_approval_decide.php" POST person(Need::Admin), of::<approval::DecideApproval> => of::<envelope::Done>, client_api::approvals::decide;
    "cloudbackup_pending_list.php" GET person(Need::View), of::<account::Page> => of::<approval::PendingDeletions>, client_api::approvals::pending;
    "cloudbackup_pending_undo.php" POST person(Need::Admin), of::<approval::UndoDeletion> => of::<envelope::Done>, client_api::approvals::undo;
    "cloudbackup_alerts.php" GET person(Need::View), of::<alert::AlertFilter> => of::<alert::Alerts>, client_api::alerts::list;
    "cloudbackup_alert_ack.php" POST person(Need::Operate), of::<alert::AckAlerts> => of::<alert::AckedAlerts>, client_api::alerts::acknowledge;
    "cloudbackup_alert_rules.php" GET person(Need::Admin), of::<account::Page> => of::<alert::AlertRules>, client_api::alert_rules::list;
    "cloudbackup_alert_rule_save.php" POST person(Need::Admin), of::<alert::AlertRuleRequest> => of::<alert::SavedAlertRule>, client_api::alert_rules::save;
    "cloudbackup_alert_rule_delete.php" POST person(Need::Admin), of::<alert::AlertRuleRef> => of::<envelope::Done>, client_api::alert_rules::delete;
    "cloudbackup_alert_rule_test.php" POST person(Need::Admin), of::<alert::AlertRuleRef> => of::<alert::QueuedDelivery>, client_api::alert_rules::test;
    "cloudbackup_alert_thresholds.php" POST person(Need::Admin), of::<alert::Thresholds> => of::<alert::Thresholds>, client_api::alert_rules::thresholds;
    "cloudbackup_alert_deliveries.php" GET person(Need::Admin), of::<alert::DeliveryFilter> => of::<alert::Deliveries>, client_api::alert_rules::deliveries;
    "cloudbackup_report.php" GET person(Need::Report), of::<report::ReportQuery> => of::<report::Report>, client_api::reports::protection;
    "e3backup_backup_history.php" GET person(Need::Report), of::<report::HistoryQuery> => of::<report::History>, client_api::reports::history;
    "cloudbackup_report_schedules.php" GET person(Need::Admin), none => of::<report::ReportSchedules>, client_api::reports::schedules;
    "cloudbackup_report_schedule_save.php" POST person(Need::Admin), of::<report::ReportScheduleRequest> => of::<report::ReportSchedule>, client_api::reports::save_schedule;
    "/metrics" GET person(Need::Report), none => none, client_api::probes::metrics;
    "/live" GET person(Need::SignedIn), of::<report::LiveQuery> => none, client_api::live::topics;
    "cloudbackup_run_stream.php" GET person(Need::View), of::<run_list::RunRef> => none, client_api::live::run;
    "cloudbackup_audit.php" GET person(Need::Audit), of::<account::AuditQuery> => of::<account::AuditEvents>, client_api::audit::list;

    // Engines that this server does not have.
    "cloudbackup_hyperv_instant_restore_status.php" GET person(Need::View), of::<instant::SessionRef> => of::<instant::SessionAnswer>, small::not_available;
    "cloudbackup_hyperv_instant_migrate.php" POST person(Need::Restore), of::<instant::SessionRef> => none, small::not_available;
    "cloudbackup_hyperv_instant_stop.php" POST person(Need::Restore), of::<instant::SessionRef> => none, small::not_available;
    "cloudbackup_hyperv_instant_list.php" GET person(Need::View), none => none, small::not_available;
    "cloudbackup_start_restore.php" POST person(Need::Restore), none => none, small::not_available;
    "agent_browse_snapshot.php" POST person(Need::Restore), none => none, small::not_available;
    "cloudbackup_browse_vm_disk.php" POST person(Need::Restore), none => none, small::not_available;
    "cloudbackup_restore_vm_files.php" POST person(Need::Restore), none => none, small::not_available;
    "cloudbackup_download.php" GET person(Need::Restore), none => none, small::not_available;
    "cloudbackup_files_search.php" GET person(Need::Restore), none => none, small::not_available;
    "cloudbackup_file_versions.php" GET person(Need::Restore), none => none, small::not_available;
    "cloudbackup_file_preview.php" GET person(Need::Restore), none => none, small::not_available;
    "cloudbackup_recovery_kit.php" POST person(Need::Admin), none => none, small::not_available;
    "cloudbackup_proof_list.php" GET person(Need::Report), none => none, small::not_available;
    "cloudbackup_create_bucket.php" POST person(Need::Admin), none => none, small::not_available;
    "bucket_list.php" GET person(Need::Admin), none => none, small::not_available;
    "cloudnas_list_mounts.php" GET person(Need::Operate), none => none, small::not_available;
    "cloudnas_create_mount.php" POST person(Need::Operate), of::<nas::CreateMount> => none, small::not_available;
    "cloudnas_mount.php" POST person(Need::Operate), none => none, small::not_available;
    "cloudnas_unmount.php" POST person(Need::Operate), none => none, small::not_available;
    "cloudnas_delete_mount.php" POST person(Need::Operate), none => none, small::not_available;
    "cloudnas_settings.php" BOTH person(Need::Operate), none => none, small::not_available;
    "cloudnas_available_drives.php" GET person(Need::Operate), none => none, small::not_available;
    "cloudnas_mount_snapshot.php" POST person(Need::Operate), none => none, small::not_available;
    "cloudnas_unmount_snapshot.php" POST person(Need::Operate), none => none, small::not_available;
};

/// Every endpoint.
pub fn all() -> &'static [Endpoint] {
    ENDPOINTS
}
