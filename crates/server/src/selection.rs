//! Which VMs a job takes (spec control-api 4.9, console 9): decided purely, then given rows.

use control_api::Object;
use control_api::job::Selection;
use jiff::Timestamp;
use serde_json::Value;

use crate::args;
use crate::failure::Failure;
use crate::store::{Row, Tx};

/// A VM that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Hyper-V's id, upper case.
    pub guid: String,
    /// Its label.
    pub name: String,
    /// What people put on it.
    pub tags: Vec<String>,
    /// A person took it out.
    pub is_excluded: bool,
}

/// What a job says about VMs.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The console's way; goes before the others.
    pub select: Option<Selection>,
    /// Every VM, also new ones.
    pub backup_all: bool,
    /// Names or GUIDs.
    pub vms: Vec<String>,
    /// Names or GUIDs that are not taken.
    pub exclude: Vec<String>,
}

impl Wanted {
    /// What a job's row says.
    pub fn of_job(job: &Row, config: &Object) -> Result<Wanted, Failure> {
        Ok(Wanted { select: job.opt_json("select_json")?, ..Wanted::of_config(config) })
    }

    /// What `hyperv_config` alone says.
    pub fn of_config(config: &Object) -> Wanted {
        let list = |key: &str| {
            let values = config.get(key).and_then(Value::as_array).into_iter().flatten();
            values.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Wanted {
            select: None,
            backup_all: config.get("backup_all_vms").and_then(Value::as_bool).unwrap_or(false),
            vms: list("vms"),
            exclude: list("exclude_vms"),
        }
    }

    /// Whether that VM is taken, and why.
    pub fn decide(&self, vm: &Candidate) -> (bool, &'static str) {
        if vm.is_excluded {
            return (false, "excluded by a person");
        }
        let named = |list: &[String]| list.iter().any(|word| names(word, vm));
        if let Some(select) = &self.select {
            if named(&select.except) {
                return (false, "an exception of this job");
            }
            return match select.mode.as_str() {
                "all" => (true, "every VM"),
                "list" if named(&select.vms) => (true, "in the list"),
                "patterns" if select.patterns.iter().any(|pattern| fits(pattern, &vm.name)) => (true, "fits a pattern"),
                "tags" if select.tags.iter().any(|tag| vm.tags.contains(tag)) => (true, "has a tag"),
                _ => (false, "not chosen"),
            };
        }
        if self.backup_all {
            return if named(&self.exclude) { (false, "an exception of this job") } else { (true, "every VM") };
        }
        if named(&self.vms) { (true, "in the list") } else { (false, "not chosen") }
    }
}

/// Whether a word is the VM's name or GUID, without regard to case.
fn names(word: &str, vm: &Candidate) -> bool {
    let word = word.trim_matches(['{', '}']).to_lowercase();
    word == vm.name.to_lowercase() || word == vm.guid.to_lowercase()
}

/// Whether a name fits a pattern in which `*` is anything and `?` one letter, without regard to case.
pub fn fits(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
    let name: Vec<char> = name.to_lowercase().chars().collect();
    // The last star seen, and where in the name it was tried: going back there is enough.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(letter) if *letter == '?' || *letter == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|letter| *letter == '*')
}

/// A VM that a run takes.
#[derive(Debug)]
pub struct Taken {
    /// Its row in the job.
    pub id: i64,
    /// Hyper-V's id.
    pub guid: String,
    /// Its label.
    pub name: String,
}

/// Reads what is known of the VMs on an agent.
pub async fn candidates(tx: &mut Tx, agent: i64) -> Result<Vec<Candidate>, Failure> {
    let sql = "SELECT * FROM s3_host_vms WHERE agent_id = ? AND missing_since IS NULL ORDER BY vm_name, vm_guid";
    tx.rows(sql, args![agent]).await?.iter().map(candidate).collect()
}

/// A row of the host's inventory.
pub fn candidate(row: &Row) -> Result<Candidate, Failure> {
    Ok(Candidate {
        guid: row.text("vm_guid")?,
        name: row.text("vm_name")?,
        tags: row.opt_json("tags_json")?.unwrap_or_default(),
        is_excluded: row.opt_time("excluded_at")?.is_some(),
    })
}

/// The VMs that the job takes on that agent now; one that has no row in the job yet gets one.
pub async fn resolve(
    tx: &mut Tx,
    job: &Row,
    config: &Object,
    agent: i64,
    now: Timestamp,
) -> Result<Vec<Taken>, Failure> {
    let wanted = Wanted::of_job(job, config)?;
    let mut taken = Vec::new();
    for vm in candidates(tx, agent).await? {
        if !wanted.decide(&vm).0 {
            continue;
        }
        let (id, is_enabled) = row_of(tx, job, agent, &vm.guid, &vm.name, now).await?;
        if is_enabled {
            taken.push(Taken { id, guid: vm.guid, name: vm.name });
        }
    }
    Ok(taken)
}

/// The row of a VM in a job, made if there is none, and whether it is taken at all.
pub async fn row_of(
    tx: &mut Tx,
    job: &Row,
    agent: i64,
    guid: &str,
    name: &str,
    now: Timestamp,
) -> Result<(i64, bool), Failure> {
    let find = "SELECT id, backup_enabled, agent_id, vm_name FROM s3_hyperv_vms WHERE job_id = ? AND vm_guid = ?";
    let job_id = job.int("id")?;
    if let Some(row) = tx.row(find, args![job_id, guid]).await? {
        let id = row.int("id")?;
        if row.opt_int("agent_id")? != Some(agent) || row.text("vm_name")? != name {
            let columns = [("agent_id", agent.into()), ("vm_name", name.into()), ("updated_at", now.into())];
            tx.update("s3_hyperv_vms", &columns, "id = ?", args![id]).await?;
        }
        return Ok((id, row.flag("backup_enabled")?));
    }
    let columns = [
        ("job_id", job_id.into()),
        ("vm_name", name.into()),
        ("vm_guid", guid.into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
        ("agent_id", agent.into()),
        ("client_id", job.int("client_id")?.into()),
        ("tenant_id", job.opt_int("tenant_id")?.into()),
        ("last_seen_at", now.into()),
    ];
    Ok((tx.insert("s3_hyperv_vms", &columns).await?, true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vm(name: &str, tags: &[&str], is_excluded: bool) -> Candidate {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Candidate { guid: "6A1B-01".into(), name: name.into(), tags, is_excluded }
    }

    #[test]
    fn a_job_takes_what_it_says() {
        let config = |value: Value| Wanted::of_config(value.as_object().expect("object"));
        let select =
            |value: Value| Wanted { select: serde_json::from_value(value).expect("selection"), ..Wanted::default() };
        let dc = vm("DC01", &["ad"], false);
        for (case, wanted, vm, expected) in [
            ("nothing said", config(json!({})), &dc, false),
            ("by name, any case", config(json!({"vms": ["dc01"]})), &dc, true),
            ("by GUID in braces", config(json!({"vms": ["{6a1b-01}"]})), &dc, true),
            ("another name", config(json!({"vms": ["DC0"]})), &dc, false),
            ("all", config(json!({"backup_all_vms": true})), &dc, true),
            ("all but", config(json!({"backup_all_vms": true, "exclude_vms": ["DC01"]})), &dc, false),
            ("excluded by a person", config(json!({"backup_all_vms": true})), &vm("DC01", &[], true), false),
            ("select all", select(json!({"mode": "all"})), &dc, true),
            ("select all except", select(json!({"mode": "all", "except": ["dc01"]})), &dc, false),
            ("pattern", select(json!({"mode": "patterns", "patterns": ["dc*"]})), &dc, true),
            ("no pattern fits", select(json!({"mode": "patterns", "patterns": ["sql*"]})), &dc, false),
            ("tag", select(json!({"mode": "tags", "tags": ["ad"]})), &dc, true),
            ("list of another mode", select(json!({"mode": "tags", "vms": ["DC01"]})), &dc, false),
            ("unknown mode takes nothing", select(json!({"mode": "some"})), &dc, false),
        ] {
            assert_eq!(wanted.decide(vm).0, expected, "{case}");
        }
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("dc*", "DC01", true),
            ("dc?", "DC01", false),
            ("*01", "dc01", true),
            ("*0*1*", "d0x01", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("dc01", "dc011", false),
            ("", "x", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
