//! Making and removing recovery checkpoints.

use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::{CimValue, ObjectPath};
use hyperv::{CheckpointKind, CheckpointRequest, Consistency, Error, ErrorKind, FreezeHooks, Vm, cim_xml};

use crate::script::*;

const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
const TAG: &str = "tag:'1' & <2>";
const NO_LONGER_THERE: u32 = 0x8004_1002;
const RPC_UNAVAILABLE: u32 = 0x8007_06BA;

fn recovery(name: &str) -> hyperv::seam::Instance {
    settings(CHECKPOINT, "Snapshot:Recovery", name)
}

fn vm(script: &Arc<Script>) -> Vm {
    script.on_query(ALL_SETTINGS_OF_VM, vec![settings(VM, "System:Realized", "web")]);
    script.on_query(ALL_REFERENCE_POINTS_OF_VM, vec![]);
    script.host().vm(&VM.parse().unwrap()).unwrap().unwrap()
}

/// What is there once the checkpoint exists: its name before and after the renaming, its disk, frozen with a parent.
fn checkpoint_is_there(script: &Arc<Script>) {
    script.on_get(recovery("web - (1/1/2024)"));
    script.on_get(recovery(TAG));
    script.on_call("ModifySystemSettings", Ok(output(0, vec![])));
    disks_are_there(script);
}

fn disks_are_there(script: &Arc<Script>) {
    let (medium, devices) = scsi_disk(CHECKPOINT, 0, r"C:\VMs\web\d_1.avhdx");
    let path = path_of(SETTINGS, CHECKPOINT);
    script.on_query(component_query(&path, Some("Msvm_StorageAllocationSettingData")), vec![medium]);
    script.on_query(component_query(&path, Some("Msvm_ResourceAllocationSettingData")), devices);
    script.on_disk(r"C:\VMs\web\d_1.avhdx", Ok(disk_data(DISK, Some(r"C:\VMs\web\d.vhdx"))));
}

/// The checkpoint is listed from the look after that number of looks.
fn appears_after(script: &Arc<Script>, looks: usize) {
    script.forget_query(ALL_SETTINGS_OF_VM);
    let active = settings(VM, "System:Realized", "web");
    for _ in 0..looks {
        script.on_query(ALL_SETTINGS_OF_VM, vec![active.clone()]);
    }
    script.on_query(ALL_SETTINGS_OF_VM, vec![active, recovery("web - (1/1/2024)")]);
}

#[test]
fn a_job_with_null_outputs_is_followed_to_its_checkpoint() {
    let script = one_vm();
    let vm = vm(&script);
    script.on_call("CreateSnapshot", started(&job_path()));
    for state in [3, 4, 4, 7] {
        script.on_get(job(state, vec![]));
    }
    // A user checkpoint among the results is not ours.
    let user = settings("AAAAAAAA-0000-1111-2222-333344445555", "Snapshot:Realized", "mine");
    script.on_query(job_results_query(SETTINGS), vec![user, recovery("web - (1/1/2024)")]);
    script.on_get(recovery(TAG));
    script.on_call("ModifySystemSettings", Ok(output(0, vec![])));
    disks_are_there(&script);

    let request = CheckpointRequest::new(Consistency::Application, TAG);
    let checkpoint = script.host().create_recovery_checkpoint(&vm, &request).unwrap();

    assert_eq!(checkpoint.instance_id, format!("Microsoft:{CHECKPOINT}"));
    assert_eq!(checkpoint.tag, TAG);
    assert_eq!(checkpoint.consistency, Consistency::Application);
    let disk = &checkpoint.disks[0];
    assert_eq!(disk.slot.to_string(), "SCSI 0:0");
    assert_eq!(disk.chain, [r"C:\VMs\web\d_1.avhdx", r"C:\VMs\web\d.vhdx"]);
    assert_eq!(disk.virtual_disk_id.to_string(), DISK);
    assert_eq!(checkpoint.config_files.vmcx, format!(r"C:\VMs\web\Snapshots\{CHECKPOINT}.vmcx"));
    assert_eq!(checkpoint.config_files.vmgs, format!(r"C:\VMs\web\Snapshots\{CHECKPOINT}.vmgs"));

    let call = &script.calls("CreateSnapshot")[0];
    assert_eq!(call.parameters["SnapshotType"], CimValue::Uint16(32768));
    assert_eq!(call.parameters["AffectedSystem"], CimValue::Reference(vm.path.clone()));
    let asked = cim_xml::parse(call.parameters["SnapshotSettings"].as_str().unwrap()).unwrap();
    assert_eq!(asked.get("ConsistencyLevel"), &CimValue::Uint8(1));
    assert_eq!(asked.get("GuestBackupType"), &CimValue::Uint8(2));
    assert_eq!(asked.get("IgnoreNonSnapshottableDisks"), &CimValue::Boolean(true));

    // The complete instance goes back, with another name.
    let call = &script.calls("ModifySystemSettings")[0];
    let renamed = cim_xml::parse(call.parameters["SystemSettings"].as_str().unwrap()).unwrap();
    assert_eq!(renamed.get("ElementName").as_str(), Some(TAG));
    assert_eq!(renamed.properties.len(), recovery("").properties.len());
}

#[test]
fn an_older_class_is_not_given_a_property_it_lacks() {
    let script = one_vm();
    script.on_class("Msvm_VirtualSystemSnapshotSettingData", &["ConsistencyLevel", "IgnoreNonSnapshottableDisks"]);
    let vm = vm(&script);
    let returned = CimValue::Reference(ObjectPath::new(path_of(SETTINGS, CHECKPOINT)));
    script.on_call("CreateSnapshot", Ok(output(0, vec![("ResultingSnapshot", returned)])));
    checkpoint_is_there(&script);
    let request = CheckpointRequest::new(Consistency::Crash, TAG);
    let checkpoint = script.host().create_recovery_checkpoint(&vm, &request).unwrap();
    assert_eq!(checkpoint.disks.len(), 1);
    let call = &script.calls("CreateSnapshot")[0];
    let asked = cim_xml::parse(call.parameters["SnapshotSettings"].as_str().unwrap()).unwrap();
    assert_eq!(asked.get("ConsistencyLevel"), &CimValue::Uint8(2));
    assert!(asked.get("GuestBackupType").is_null());
}

/// Success at once, without saying what was made; a job that expired; a service that restarted under the call, or
/// under the wait for the job: in each, the difference to before finds the checkpoint.
#[test]
fn the_checkpoint_is_found_by_looking() {
    let null_output = |script: &Arc<Script>| script.on_call("CreateSnapshot", Ok(output(0, vec![])));
    let expired = |script: &Arc<Script>| {
        script.on_call("CreateSnapshot", started(&job_path()));
        script.on_get(job(4, vec![]));
        script.on_get_error(&job_path(), NO_LONGER_THERE);
    };
    let no_association = |script: &Arc<Script>| {
        script.on_call("CreateSnapshot", started(&job_path()));
        script.on_get(job(7, vec![]));
        script.on_query_error(job_results_query(SETTINGS), NO_LONGER_THERE);
    };
    let restart_in_call = |script: &Arc<Script>| script.on_call("CreateSnapshot", Err(RPC_UNAVAILABLE));
    let restart_in_wait = |script: &Arc<Script>| {
        script.on_call("CreateSnapshot", started(&job_path()));
        script.on_get(job(4, vec![]));
        script.on_get_error(&job_path(), RPC_UNAVAILABLE);
        script.on_get_error(&job_path(), 0x8007_06BE);
        script.on_get_error(&job_path(), NO_LONGER_THERE);
    };
    let no_job = |script: &Arc<Script>| script.on_call("CreateSnapshot", Ok(output(4096, vec![])));
    type Case<'a> = (&'a str, &'a dyn Fn(&Arc<Script>), usize);
    let cases: [Case<'_>; 6] = [
        ("null output", &null_output, 1),
        ("job expired", &expired, 2),
        ("no association", &no_association, 1),
        ("restart in the call", &restart_in_call, 3),
        ("restart in the wait", &restart_in_wait, 1),
        ("no job", &no_job, 1),
    ];
    for (name, prepare, looks_before_it_appears) in cases {
        let script = one_vm();
        let vm = vm(&script);
        appears_after(&script, looks_before_it_appears);
        prepare(&script);
        checkpoint_is_there(&script);
        let request = CheckpointRequest::new(Consistency::Crash, TAG);
        let checkpoint = script.host().create_recovery_checkpoint(&vm, &request);
        let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(checkpoint.path.as_str(), path_of(SETTINGS, CHECKPOINT), "{name}");
        assert_eq!(script.calls("CreateSnapshot").len(), 1, "{name}: a call that may have worked is not repeated");
    }
}

/// Another product's checkpoint was there before: whatever the host answers, it is not ours.
#[test]
fn an_older_checkpoint_is_never_taken_for_the_new_one() {
    let foreign = settings("FFFFFFFF-0000-1111-2222-333344445555", "Snapshot:Recovery", "other product");
    for by_job in [false, true] {
        let script = one_vm();
        let vm = vm(&script);
        let active = settings(VM, "System:Realized", "web");
        script.forget_query(ALL_SETTINGS_OF_VM);
        script.on_query(ALL_SETTINGS_OF_VM, vec![active.clone(), foreign.clone()]);
        script.on_query(ALL_SETTINGS_OF_VM, vec![active, foreign.clone(), recovery("web - (1/1/2024)")]);
        if by_job {
            script.on_call("CreateSnapshot", started(&job_path()));
            script.on_get(job(7, vec![]));
            script.on_query(job_results_query(SETTINGS), vec![foreign.clone()]);
        } else {
            let returned = CimValue::Reference(foreign.path.clone().unwrap());
            script.on_call("CreateSnapshot", Ok(output(0, vec![("ResultingSnapshot", returned)])));
            script.on_get(foreign.clone());
        }
        checkpoint_is_there(&script);
        let made = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
        assert_eq!(made.unwrap().instance_id, format!("Microsoft:{CHECKPOINT}"));
    }
}

#[test]
fn success_without_a_checkpoint_is_an_error() {
    let script = one_vm();
    let vm = vm(&script);
    script.on_call("CreateSnapshot", started(&job_path()));
    script.on_get(job(7, vec![]));
    script.on_query(job_results_query(SETTINGS), vec![]);
    let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("no new recovery checkpoint"), "{error}");
    assert!(error.to_string().contains("\"web\""), "{error}");
}

#[test]
fn a_service_that_goes_away_is_not_called_a_failure_of_the_vm() {
    let script = one_vm();
    let vm = vm(&script);
    script.on_call("CreateSnapshot", Err(RPC_UNAVAILABLE));
    let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceGone, "{error}");
    assert!(script.elapsed() > Duration::from_secs(10), "looked for a while: {:?}", script.elapsed());
}

#[test]
fn two_new_checkpoints_are_not_guessed_between() {
    let script = one_vm();
    let vm = vm(&script);
    let other = settings("BBBBBBBB-0000-1111-2222-333344445555", "Snapshot:Recovery", "other");
    script.forget_query(ALL_SETTINGS_OF_VM);
    script.on_query(ALL_SETTINGS_OF_VM, vec![settings(VM, "System:Realized", "web")]);
    script.on_query(ALL_SETTINGS_OF_VM, vec![recovery("a"), other]);
    script.on_call("CreateSnapshot", Ok(output(0, vec![])));
    let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
    assert_eq!(error.unwrap_err().left_behind.len(), 2);
}

#[test]
fn a_failed_job_says_why_and_what_it_left() {
    let script = one_vm();
    let vm = vm(&script);
    appears_after(&script, 1);
    script.on_call("CreateSnapshot", started(&job_path()));
    let failed = vec![
        ("ErrorCode", CimValue::Uint16(32768)),
        ("ErrorDescription", text("Der Prüfpunkt konnte nicht erstellt werden.")),
    ];
    script.on_get(job(10, failed));
    let message = "<INSTANCE CLASSNAME=\"Msvm_Error\"><PROPERTY NAME=\"Message\" TYPE=\"string\"><VALUE>VSS &lt;writer&gt; (0x800423F4)</VALUE></PROPERTY></INSTANCE>";
    script.on_call("GetErrorEx", Ok(output(0, vec![("Errors", texts(&[message, "plain 0x80070005"]))])));
    let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Application, TAG));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VssFailed);
    assert_eq!(error.hresults(), [0x8004_23F4, 0x8007_0005]);
    assert_eq!(error.left_behind, [ObjectPath::new(path_of(SETTINGS, CHECKPOINT))]);
    let shown = error.to_string();
    for part in ["web", VM, "CreateSnapshot", "32768", "Prüfpunkt", "VSS <writer>"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn return_codes_have_kinds() {
    for (code, kind) in [
        (32775, ErrorKind::Busy),
        (32774, ErrorKind::Busy),
        (32769, ErrorKind::AccessDenied),
        (32770, ErrorKind::Unsupported),
        (5, ErrorKind::Busy),
        (32768, ErrorKind::Other),
        (40000, ErrorKind::Other),
    ] {
        let script = one_vm();
        let vm = vm(&script);
        script.on_call("CreateSnapshot", Ok(output(code, vec![])));
        let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
        let error = error.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}");
        assert!(error.to_string().contains(&code.to_string()), "{error}");
    }
}

#[test]
fn a_job_that_takes_too_long_is_stopped_and_watched() {
    let cancellable = || job(4, vec![("Cancellable", CimValue::Boolean(true))]);
    // It stops, it does not stop, and it completes after all: then the checkpoint is used, not leaked.
    for (last_state, waits_after) in [(Some(8), false), (None, true), (Some(7), false)] {
        let script = one_vm();
        let vm = vm(&script);
        script.on_call("CreateSnapshot", started(&job_path()));
        script.on_call("RequestStateChange", Ok(output(4096, vec![])));
        // 10 looks in the first second, 2 a second later; 5 minutes are the limit.
        for _ in 0..700 {
            script.on_get(cancellable());
        }
        script.on_get(last_state.map_or_else(cancellable, |state| job(state, vec![])));
        script.on_query(job_results_query(SETTINGS), vec![recovery("web - (1/1/2024)")]);
        script.on_get(recovery(TAG));
        script.on_call("ModifySystemSettings", Ok(output(0, vec![])));
        disks_are_there(&script);
        let made = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
        let stops = script.calls("RequestStateChange");
        assert_eq!(stops.len(), 1, "asked to stop once");
        assert_eq!(stops[0].parameters["RequestedState"], CimValue::Uint16(4));
        if last_state == Some(7) {
            assert_eq!(made.unwrap().tag, TAG);
            continue;
        }
        let error = made.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(matches!(error.error, Error::Timeout { job_ended, .. } if job_ended != waits_after), "{error}");
        let at_least = Duration::from_secs(if waits_after { 20 * 60 } else { 5 * 60 });
        assert!(script.elapsed() >= at_least, "{:?}", script.elapsed());
    }
}

#[test]
fn a_caller_can_cancel() {
    let script = one_vm();
    let vm = vm(&script);
    let request = CheckpointRequest::new(Consistency::Crash, TAG);
    request.cancel.cancel();
    let error = script.host().create_recovery_checkpoint(&vm, &request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(script.calls("CreateSnapshot").is_empty());
}

#[test]
fn a_name_that_does_not_stick_leaves_the_checkpoint_named() {
    let script = one_vm();
    let vm = vm(&script);
    appears_after(&script, 1);
    script.on_call("CreateSnapshot", Ok(output(0, vec![])));
    script.on_get(recovery("web - (1/1/2024)"));
    script.on_call("ModifySystemSettings", Ok(output(32775, vec![])));
    script.on_call("ModifySystemSettings", Ok(output(32773, vec![])));
    let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("32773"), "{error}");
    assert_eq!(error.left_behind.len(), 1);
    assert_eq!(script.calls("ModifySystemSettings").len(), 2, "busy is tried again, a refusal is not");
}

/// The answer is success, but the name is what counts: at once, after a while, or never.
#[test]
fn a_name_is_looked_at_after_it_was_set() {
    for (old_names, success) in [(1, true), (3, true), (100, false)] {
        let script = one_vm();
        let vm = vm(&script);
        appears_after(&script, 1);
        script.on_call("CreateSnapshot", Ok(output(0, vec![])));
        script.on_call("ModifySystemSettings", Ok(output(0, vec![])));
        for _ in 0..old_names {
            script.on_get(recovery("web - (1/1/2024)"));
        }
        script.on_get(recovery(TAG));
        disks_are_there(&script);
        let made = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
        match made {
            Ok(checkpoint) => assert_eq!((success, checkpoint.tag.as_str()), (true, TAG)),
            Err(error) => assert!(!success && error.to_string().contains("its name is still"), "{error}"),
        }
    }
}

#[test]
fn what_is_gone_counts_as_destroyed() {
    let path = ObjectPath::new(path_of(SETTINGS, CHECKPOINT));
    let gone = |script: &Arc<Script>| script.on_get_error(path.as_str(), NO_LONGER_THERE);
    let there = |script: &Arc<Script>| script.on_get(recovery("x"));
    type Case<'a> = (&'a str, Result<u32, u32>, &'a dyn Fn(&Arc<Script>), bool);
    let cases: [Case<'_>; 6] = [
        ("done", Ok(0), &there, true),
        ("refused, and gone", Ok(32773), &gone, true),
        ("refused, and there", Ok(32775), &there, false),
        ("not found", Err(NO_LONGER_THERE), &gone, true),
        ("restart, and gone", Err(RPC_UNAVAILABLE), &gone, true),
        ("restart, and there", Err(RPC_UNAVAILABLE), &there, false),
    ];
    for (name, answer, state, success) in cases {
        let script = one_vm();
        script.on_call("DestroySnapshot", answer.map(|code| output(code, vec![])));
        state(&script);
        let result = script.host().destroy_checkpoint(&path);
        assert_eq!(result.is_ok(), success, "{name}: {result:?}");
        let call = &script.calls("DestroySnapshot")[0];
        assert_eq!(call.parameters["AffectedSnapshot"], CimValue::Reference(path.clone()));
    }
}

#[test]
fn a_checkpoint_without_a_disk_of_the_vm_is_refused() {
    let script = one_vm();
    let vm = vm(&script);
    appears_after(&script, 1);
    script.on_call("CreateSnapshot", Ok(output(0, vec![])));
    checkpoint_is_there(&script);
    let other = "99999999-0000-1111-2222-333344445555";
    script.on_disk(r"C:\VMs\web\d_1.avhdx", Ok(disk_data(other, Some(r"C:\VMs\web\d.vhdx"))));
    let error = script.host().create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, TAG));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("does not hold the disk at SCSI 0:0"), "{error}");
    assert_eq!(error.left_behind.len(), 1);
}

#[test]
fn the_applied_checkpoint_is_named() {
    let script = one_vm();
    let vm = vm(&script);
    let query =
        format!("ASSOCIATORS OF {{{}}} WHERE AssocClass = Msvm_LastAppliedSnapshot ResultClass = {SETTINGS}", vm.path);
    script.on_query(&query, vec![]);
    assert_eq!(script.host().last_applied_checkpoint(&vm).unwrap(), None);
    script.forget_query(&query);
    script.on_query(&query, vec![settings("AAAAAAAA-0000-1111-2222-333344445555", "Snapshot:Realized", "mine")]);
    let found = script.host().last_applied_checkpoint(&vm).unwrap();
    assert_eq!(found.as_deref(), Some("Microsoft:AAAAAAAA-0000-1111-2222-333344445555"));
}

#[test]
fn checkpoints_are_told_apart() {
    let script = one_vm();
    let mut user = settings("AAAAAAAA-0000-1111-2222-333344445555", "Snapshot:Realized", "before the update");
    user.properties.insert("CreationTime".into(), CimValue::DateTime("19700101000100.000000+000".into()));
    let replica = settings("BBBBBBBB-0000-1111-2222-333344445555", "Snapshot:Replica:Standard", "r");
    let all = vec![settings(VM, "System:Realized", "web"), user, recovery(TAG), replica];
    script.on_query(ALL_SETTINGS_OF_VM, all);
    let found = script.host().list_checkpoints(&VM.parse().unwrap()).unwrap();
    let kinds: Vec<_> = found.iter().map(|checkpoint| checkpoint.kind.clone()).collect();
    let other = CheckpointKind::Other("Replica:Standard".into());
    assert_eq!(kinds, [CheckpointKind::User, CheckpointKind::Recovery, other]);
    assert_eq!(found[0].created, Some(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(60)));
    assert_eq!(found[1].name, TAG);
}

/// Notes when it is called, as how many checkpoints had been asked for by then.
#[derive(Debug)]
struct Hooks {
    script: Arc<Script>,
    before: Result<(), String>,
    after: Result<(), String>,
    called: std::sync::Mutex<Vec<(&'static str, usize)>>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Hooks {
    fn new(script: &Arc<Script>, before: Result<(), &str>, after: Result<(), &str>) -> Arc<Self> {
        let owned = |result: Result<(), &str>| result.map_err(str::to_owned);
        let (before, after) = (owned(before), owned(after));
        Arc::new(Self { script: script.clone(), before, after, called: Default::default() })
    }

    fn note(&self, what: &'static str) {
        self.called.lock().unwrap().push((what, self.script.calls("CreateSnapshot").len()));
    }

    fn called(&self) -> Vec<(&'static str, usize)> {
        self.called.lock().unwrap().clone()
    }
}

impl FreezeHooks for Hooks {
    fn before(&self) -> Result<(), String> {
        self.note("before");
        self.before.clone()
    }

    fn after(&self) -> Result<(), String> {
        self.note("after");
        self.after.clone()
    }
}

fn with_hooks(hooks: &Arc<Hooks>) -> CheckpointRequest {
    CheckpointRequest { hooks: Some(hooks.clone()), ..CheckpointRequest::new(Consistency::Application, TAG) }
}

#[test]
fn hooks_stand_around_the_request() {
    let script = one_vm();
    let vm = vm(&script);
    let returned = CimValue::Reference(ObjectPath::new(path_of(SETTINGS, CHECKPOINT)));
    script.on_call("CreateSnapshot", Ok(output(0, vec![("ResultingSnapshot", returned)])));
    checkpoint_is_there(&script);
    let hooks = Hooks::new(&script, Ok(()), Err("the database does not answer"));
    let checkpoint = script.host().create_recovery_checkpoint(&vm, &with_hooks(&hooks)).unwrap();
    assert_eq!(hooks.called(), [("before", 0), ("after", 1)]);
    assert_eq!(checkpoint.warnings, ["after the freeze: the database does not answer"]);
}

#[test]
fn what_was_held_is_let_go_when_the_checkpoint_fails() {
    let script = one_vm();
    let vm = vm(&script);
    script.on_call("CreateSnapshot", Ok(output(32775, vec![])));
    let hooks = Hooks::new(&script, Ok(()), Ok(()));
    script.host().create_recovery_checkpoint(&vm, &with_hooks(&hooks)).unwrap_err();
    assert_eq!(hooks.called(), [("before", 0), ("after", 1)]);

    // A hook that failed may have held something, too; and the host is not asked.
    let script = one_vm();
    let vm = self::vm(&script);
    let hooks = Hooks::new(&script, Err("no route to the guest"), Ok(()));
    let error = script.host().create_recovery_checkpoint(&vm, &with_hooks(&hooks)).unwrap_err();
    assert!(matches!(error.error, Error::Hook { .. }) && error.to_string().contains("no route"), "{error}");
    assert_eq!(hooks.called(), [("before", 0), ("after", 0)]);
}
