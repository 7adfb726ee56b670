//! No secret of server and agents anywhere but where it belongs: known ones are planted and all are searched for, in
//! every file, log, answer and command line.

use std::path::Path;

use serde_json::json;

use crate::canaries::Search;
use crate::estate::{Estate, HOSTS, Repository};
use crate::support::files_below;

const PASSWORD: &str = "canary pass/word+41bd?&=x";
const SECRET_KEY: &str = "canary/secret+key=77aa&5d~";

#[test]
fn secrets_are_found_only_where_they_belong_and_found_there() {
    let mut estate = Estate::enrolled(None);
    estate.add_vm(0, "DC01", 4, 1);
    let agent_tokens: Vec<String> = HOSTS.iter().map(|host| token_of(&estate, host)).collect();
    let spent = estate.server.enrolment_token();
    let secrets = [
        ("repository password", PASSWORD),
        ("secret key", SECRET_KEY),
        ("first agent's token", &agent_tokens[0]),
        ("second agent's token", &agent_tokens[1]),
        ("enrolment token", &spent),
        ("API token", estate.server.token()),
    ];
    let search = Search::of(&secrets);
    let mut told: Vec<(String, Vec<u8>)> = Vec::new();

    // A run that works, one that cannot reach its store, a restore, a verification, and a command that fails.
    (0..2).for_each(|host| estate.start_agent(host, &[("E3_LOG", "debug".to_owned())]));
    estate.wait_for_vms(&["DC01"]);
    let folder = json!({
        "name": "folder", "dest_type": "local", "dest_local_path": estate.desk.path("repo"),
        "repository_password": PASSWORD,
    });
    let folder = estate.destination(&folder);
    let job = estate.job(0, folder, &json!({}));
    let run = estate.start_run(job).remove(0);
    assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    let bucket = estate.destination(&json!({
        "name": "bucket", "endpoint": "http://127.0.0.1:1", "bucket": "backups", "prefix": "x/", "allow_http": true,
        "access_key": "AKIAEXAMPLE", "secret_key": SECRET_KEY, "repository_password": PASSWORD,
    }));
    let away = estate.job(0, bucket, &json!({"name": "away"}));
    let lost = estate.start_run(away).remove(0);
    let point = estate.server.points_of("DC01")[0]["id"].clone();
    estate.server.post("cloudbackup_verify_point.php", &json!({"backup_point_id": point, "level": "full"}));
    let restore = json!({"backup_point_id": point, "target_agent_id": estate.agent_ids[1], "target_vm_name": "copy"});
    let restore = estate.server.post("cloudbackup_hyperv_start_restore.php", &restore);
    assert_eq!(estate.server.ended(&restore["restore_run_id"])["run"]["status"], "success");
    // While everything still runs, and the lost run holds its keys.
    for process in estate.processes() {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(Path::new("/proc").join(process.to_string()).join(file)).unwrap_or_default();
            told.push((format!("{file} of process {process}"), bytes));
        }
    }
    estate.server.post("cloudbackup_cancel_run.php", &json!({"run_id": lost}));
    estate.server.ended(&lost);
    let of_run = run.to_string();
    for (name, query) in [
        ("cloudbackup_list_jobs.php", vec![]),
        ("cloudbackup_get_job.php", vec![("job_id", "1")]),
        ("cloudbackup_destination_list.php", vec![]),
        ("cloudbackup_repository_list.php", vec![]),
        ("e3backup_run_list.php", vec![]),
        ("cloudbackup_get_run.php", vec![("run_id", &*of_run)]),
        ("cloudbackup_progress.php", vec![("run_id", &*of_run)]),
        ("cloudbackup_get_run_events.php", vec![("run_id", &*of_run)]),
        ("e3backup_restore_points_list.php", vec![]),
        ("e3backup_agent_list.php", vec![]),
        ("e3backup_token_list.php", vec![]),
        ("cloudbackup_vms.php", vec![]),
    ] {
        told.push((format!("the answer of {name}"), estate.server.get(name, &query).to_string().into_bytes()));
    }
    (0..2).for_each(|host| assert!(estate.stop_agent(host).success()));
    estate.server.kill();

    let mut astray = Vec::new();
    for (place, bytes) in &told {
        astray.extend(search.found(bytes).into_iter().map(|canary| format!("{canary} in {place}")));
    }
    let mut at_home = 0;
    for file in files_below(&estate.desk.path("")) {
        for canary in search.found(&std::fs::read(&file).unwrap()) {
            let belongs = HOSTS.iter().zip(["first", "second"]).any(|(host, which)| {
                // Its letters are the same in a URL and in JSON.
                file == estate.desk.path(&format!("{host}/e3-state/managed/token"))
                    && canary.starts_with(&format!("{which} agent's token ("))
            });
            if !belongs {
                astray.push(format!("{canary} in {}", file.display()));
            }
            at_home += usize::from(belongs && canary.ends_with("(raw)"));
        }
    }
    assert_eq!(astray, Vec::<String>::new());
    // The search finds what is there, or it would prove nothing; and what it searched has something in it.
    assert_eq!(at_home, HOSTS.len(), "the agents' tokens");
    let has = |file: &str, text: &str| {
        String::from_utf8_lossy(&std::fs::read(estate.desk.path(file)).unwrap()).contains(text)
    };
    // What was written last is in its log yet.
    let is_in_database =
        ["server/e3-server.sqlite", "server/e3-server.sqlite-wal"].iter().any(|file| has(file, "AKIAEXAMPLE"));
    assert!(is_in_database, "the database is searched");
    assert!(has("server.log", "DEBUG") && has("hv01.log", "DEBUG"), "the logs are searched");
    let opened = Repository { password: PASSWORD, ..Repository::folder() };
    assert_eq!(estate.stored_points(&opened), 1, "the password is the repository's");
}

fn token_of(estate: &Estate, host: &str) -> String {
    std::fs::read_to_string(estate.desk.path(&format!("{host}/e3-state/managed/token"))).unwrap()
}

#[test]
fn an_old_token_is_changed_and_the_agent_goes_on_with_the_new_one() {
    let mut estate = Estate::enrolled(None);
    let before = token_of(&estate, HOSTS[0]);
    estate.add_vm(0, "DC01", 1, 1);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["DC01"]);
    // Ninety days pass for the token, and the agent starts again.
    assert!(estate.stop_agent(0).success());
    let file = std::fs::File::options().write(true).open(estate.desk.path("hv01/e3-state/managed/token")).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(91 * 24 * 3600);
    file.set_modified(old).unwrap();
    drop(file);
    estate.add_vm(0, "FS02", 1, 2);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["FS02"]);
    assert_ne!(token_of(&estate, HOSTS[0]), before);
    assert!(estate.stop_agent(0).success());
}
