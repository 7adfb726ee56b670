//! `retention plan`, `retention apply`, `retention set`.

use std::collections::BTreeSet;
use std::sync::Arc;

use backup::retention::{
    Applied, Because, PlannedPoint, PolicyOrigin, SourcePlan, apply, keep_everything, plan_sources, set_policy,
};
use backup::{Point, SelectError, list_points};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kopia_repo::Repository;
use kopia_repo::format::policy::RetentionPolicy;
use kopia_repo::format::snapshot::SourceInfo;
use kopia_repo::retention::Period;
use serde_json::{Value, json};

use super::backup::short;
use super::holds::{hold_text, holds_json, note_on_space};
use crate::cli::{LimitArgs, RetentionCommand};
use crate::confirm::{can_ask, confirm};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, json_line, line, note};
use crate::units::{points, visible};

/// What is confirmed when no VM is named.
const ALL: &str = "all";

/// `retention …`
pub fn run(context: &Context, command: RetentionCommand) -> Result<Outcome, Failure> {
    let repo = context.repository()?;
    let on = repo.display_name();
    match command {
        RetentionCommand::Plan { vms, limits } => {
            let plans = plan(&repo, &on, &vms, given(&limits).as_ref())?;
            show_plan(context, &on, &plans);
            Ok(Outcome::DONE)
        }
        RetentionCommand::Apply { vms, limits, dry_run, confirm } => {
            let plans = plan(&repo, &on, &vms, given(&limits).as_ref())?;
            if dry_run {
                show_plan(context, &on, &plans);
                return Ok(Outcome::DONE);
            }
            apply_all(context, &repo, &on, &vms, &confirm, &plans)
        }
        RetentionCommand::Set { vms, all: _, keep_all, limits, dry_run, confirm } => {
            let limits = if keep_all { keep_everything() } else { given(&limits).expect("one of them is required") };
            set(context, &repo, &on, &vms, &limits, dry_run, &confirm)
        }
    }
}

/// The policy that the flags make; kinds that are not named keep nothing.
fn given(limits: &LimitArgs) -> Option<RetentionPolicy> {
    let by_period = [
        (Period::Latest, limits.keep_latest),
        (Period::Hourly, limits.keep_hourly),
        (Period::Daily, limits.keep_daily),
        (Period::Weekly, limits.keep_weekly),
        (Period::Monthly, limits.keep_monthly),
        (Period::Annual, limits.keep_annual),
    ];
    if by_period.iter().all(|(_, limit)| limit.is_none()) {
        return None;
    }
    let mut policy = keep_everything();
    by_period.iter().for_each(|(period, limit)| policy.set_limit(*period, limit.unwrap_or(0)));
    Some(policy)
}

fn plan(
    repo: &Arc<Repository>,
    on: &str,
    vms: &[String],
    policy: Option<&RetentionPolicy>,
) -> Result<Vec<SourcePlan>, Failure> {
    let what = "plan the retention";
    if policy.is_some_and(RetentionPolicy::keeps_everything) {
        let why = "with every limit at 0 every point is kept";
        return Err(Failure::new(what, on, Code::Usage, why)
            .with_steps(&["give one limit that is not 0", "store `retention set --keep-all`"]));
    }
    let all = list_points(repo, None).attempt(what, on)?;
    let wanted = wanted_ids(&all, vms).attempt(what, on)?;
    let is_wanted = |point: &Point| wanted.as_ref().is_none_or(|ids| ids.contains(&point.vm_id));
    plan_sources(repo, is_wanted, policy, Timestamp::now(), &TimeZone::system()).attempt(what, on)
}

/// The ids of the VMs that are named, by a name that one of their points has, or by their id; `None` for all.
fn wanted_ids(points: &[Point], vms: &[String]) -> Result<Option<BTreeSet<String>>, SelectError> {
    if vms.is_empty() {
        return Ok(None);
    }
    let mut wanted = BTreeSet::new();
    for vm in vms {
        let fits = |point: &&Point| point.vm_id.eq_ignore_ascii_case(vm) || point.vm_name == *vm;
        let ids: BTreeSet<&String> = points.iter().filter(fits).map(|point| &point.vm_id).collect();
        match ids.len() {
            0 => {
                let hint = " with points in the repository".to_owned();
                return Err(SelectError::NotFound { what: "VM", selector: vm.clone(), hint });
            }
            1 => wanted.extend(ids.into_iter().cloned()),
            _ => {
                let candidates = ids.into_iter().cloned().collect();
                return Err(SelectError::Ambiguous { what: "VM", selector: vm.clone(), candidates });
            }
        }
    }
    Ok(Some(wanted))
}

fn show_plan(context: &Context, on: &str, plans: &[SourcePlan]) {
    if context.global.json {
        return json_document(&plan_json(plans));
    }
    if context.global.quiet {
        plans.iter().flat_map(SourcePlan::going).for_each(|one| line(&one.point.id));
        return;
    }
    if plans.is_empty() {
        return note(&format!("{on} holds no points yet"));
    }
    let mut table = Table::new(&[
        ("POINT", Align::Left),
        ("VM", Align::Left),
        ("WHEN", Align::Left),
        ("PLAN", Align::Left),
        ("BECAUSE", Align::Left),
    ]);
    for plan in plans {
        for one in &plan.planned {
            let because: Vec<String> = one.because.iter().map(|because| because_text(context, because)).collect();
            table.row(vec![
                short(&one.point.id).to_owned(),
                plan.vm_name.clone(),
                context.time(one.point.started),
                if one.stays() { "keep".to_owned() } else { "let go".to_owned() },
                if one.stays() { because.join(", ") } else { "no rule keeps it".to_owned() },
            ]);
        }
    }
    table.print();
    for plan in plans {
        let whose = match plan.origin {
            PolicyOrigin::Given => "as given",
            PolicyOrigin::Repository => "stored in the repository",
        };
        let (policy, going) = (policy_text(&plan.policy), plan.going().count());
        note(&format!("{}: {policy} ({whose}); {} stay, {going} go", plan.vm_name, plan.planned.len() - going));
    }
}

fn because_text(context: &Context, because: &Because) -> String {
    match because {
        Because::Held(hold) => format!("held ({})", hold_text(context, hold)),
        other => other.to_string(),
    }
}

/// `daily 14, weekly 8`.
fn policy_text(policy: &RetentionPolicy) -> String {
    if policy.keeps_everything() {
        return "keeps every point".to_owned();
    }
    let limits =
        Period::ALL.iter().map(|period| (period.name(), policy.limit(*period))).filter(|(_, limit)| *limit > 0);
    let texts: Vec<String> = limits.map(|(name, limit)| format!("{name} {limit}")).collect();
    format!("keeps {}", texts.join(", "))
}

fn plan_json(plans: &[SourcePlan]) -> Value {
    let going: usize = plans.iter().map(|plan| plan.going().count()).sum();
    let all: usize = plans.iter().map(|plan| plan.planned.len()).sum();
    json!({
        "time_zone": TimeZone::system().iana_name(),
        "keep": all - going,
        "let_go": going,
        "vms": plans.iter().map(source_json).collect::<Vec<_>>(),
    })
}

fn source_json(plan: &SourcePlan) -> Value {
    let source = &plan.source;
    json!({
        "vm_id": plan.vm_id,
        "vm_name": plan.vm_name,
        "source": { "user": source.user_name, "host": source.host, "path": source.path },
        "policy": policy_json(&plan.policy),
        "policy_origin": match plan.origin {
            PolicyOrigin::Given => "given",
            PolicyOrigin::Repository => "repository",
        },
        "points": plan.planned.iter().map(planned_json).collect::<Vec<_>>(),
    })
}

fn policy_json(policy: &RetentionPolicy) -> Value {
    let limits = Period::ALL.iter().map(|period| (format!("keep_{}", period.name()), json!(policy.limit(*period))));
    Value::Object(limits.collect())
}

fn planned_json(one: &PlannedPoint) -> Value {
    let reasons: Vec<String> = one
        .because
        .iter()
        .map(|because| match because {
            Because::Policy(reason) => reason.to_string(),
            Because::Held(_) => "held".to_owned(),
            Because::NewestSound => "newest-sound".to_owned(),
        })
        .collect();
    json!({
        "point_id": one.point.id,
        "started": one.point.started.to_string(),
        "keep": one.stays(),
        "reasons": reasons,
        "holds": holds_json(&one.point.holds),
        "is_damaged": one.point.is_damaged,
    })
}

fn apply_all(
    context: &Context,
    repo: &Arc<Repository>,
    on: &str,
    vms: &[String],
    confirmed: &[String],
    plans: &[SourcePlan],
) -> Result<Outcome, Failure> {
    let going: usize = plans.iter().map(|plan| plan.going().count()).sum();
    if going > 0 {
        if confirmed.is_empty() && can_ask(&context.global) {
            show_plan(context, on, plans);
        }
        let names = names_to_confirm(vms, plans);
        confirm(context, &format!("let {} of {} go", points(going), names.join(", ")), on, &names, confirmed)?;
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let mut results = Vec::with_capacity(plans.len());
    for plan in plans {
        let result = apply(repo, plan, now, &zone).attempt(format!("let points of {} go", plan.vm_name), on);
        let result = SourceResult { plan, result };
        result.show(context);
        results.push(result);
    }
    conclude(context, on, results)
}

/// The VMs that were named; `all` stands for all of them, so that a script need not know them.
fn names_to_confirm<'p>(vms: &[String], plans: &'p [SourcePlan]) -> Vec<&'p str> {
    if vms.is_empty() { vec![ALL] } else { plans.iter().map(|plan| plan.vm_name.as_str()).collect() }
}

/// What came of one VM.
struct SourceResult<'p> {
    plan: &'p SourcePlan,
    result: Result<Applied, Failure>,
}

impl SourceResult<'_> {
    fn show(&self, context: &Context) {
        if context.global.json {
            let mut object = self.to_json();
            object["type"] = "vm".into();
            return json_line(&object);
        }
        match &self.result {
            Ok(applied) if context.global.quiet => applied.gone.iter().for_each(|point| line(&point.id)),
            Ok(applied) => {
                for point in &applied.gone {
                    let (id, time) = (short(&point.id), context.time(point.started()));
                    line(&visible(&format!("{id}  {}  {time}   gone", point.vm_name)));
                }
                for id in &applied.stay_after_all {
                    note(&format!("point {id} of {} stays: it is held or needed by now", self.plan.vm_name));
                }
            }
            Err(failure) => failure.print(context.global.verbose > 0),
        }
    }

    fn to_json(&self) -> Value {
        let (gone, stay, error) = match &self.result {
            Ok(applied) => {
                let gone: Vec<&str> = applied.gone.iter().map(|point| point.id.as_str()).collect();
                (json!(gone), json!(applied.stay_after_all), Value::Null)
            }
            Err(failure) => (json!([]), json!([]), failure.to_json()),
        };
        json!({
            "vm_id": self.plan.vm_id,
            "vm_name": self.plan.vm_name,
            "gone": gone,
            "stay_after_all": stay,
            "error": error,
        })
    }
}

fn conclude(context: &Context, on: &str, results: Vec<SourceResult<'_>>) -> Result<Outcome, Failure> {
    let failed = results.iter().filter(|result| result.result.is_err()).count();
    if failed > 0 && failed == results.len() {
        let first = results.into_iter().find_map(|result| result.result.err()).expect("all of them failed");
        return Err(first.printed(!context.global.json));
    }
    let exit = if failed > 0 { 3 } else { 0 };
    let gone: usize = results.iter().filter_map(|result| result.result.as_ref().ok()).map(|one| one.gone.len()).sum();
    if context.global.json {
        json_line(&json!({
            "type": "result",
            "exit": exit,
            "gone": gone,
            "vms": results.iter().map(SourceResult::to_json).collect::<Vec<_>>(),
        }));
    } else if gone == 0 && failed == 0 {
        note(&format!("nothing goes from {on}: every point is kept by a rule"));
    } else if gone > 0 {
        note_on_space(context);
    }
    Ok(Outcome { exit })
}

/// Stores a policy. One that lets points go which the stored one keeps is confirmed like their deletion.
fn set(
    context: &Context,
    repo: &Arc<Repository>,
    on: &str,
    vms: &[String],
    limits: &RetentionPolicy,
    is_dry_run: bool,
    confirmed: &[String],
) -> Result<Outcome, Failure> {
    let what = "set the retention policy";
    let before = plan(repo, on, vms, None)?;
    let after: Vec<SourcePlan> =
        if limits.keeps_everything() { before.clone() } else { plan(repo, on, vms, Some(limits))? };
    let stayed: BTreeSet<&str> = before
        .iter()
        .flat_map(|plan| &plan.planned)
        .filter(|one| one.stays())
        .map(|one| one.point.id.as_str())
        .collect();
    let doomed: Vec<&str> = match limits.keeps_everything() {
        true => Vec::new(),
        false => after
            .iter()
            .flat_map(SourcePlan::going)
            .map(|one| one.point.id.as_str())
            .filter(|id| stayed.contains(id))
            .collect(),
    };
    if !is_dry_run {
        if !doomed.is_empty() {
            let names = names_to_confirm(vms, &after);
            let deed =
                format!("shorten the retention of {}, by which {} will go", names.join(", "), points(doomed.len()));
            confirm(context, &deed, on, &names, confirmed)?;
        }
        let sources: Vec<SourceInfo> = before.iter().map(|plan| plan.source.clone()).collect();
        set_policy(repo, &sources, limits).attempt(what, on)?;
    }
    if context.global.json {
        let vms: Vec<Value> = before
            .iter()
            .map(|plan| {
                let former = policy_json(&plan.policy);
                json!({ "vm_id": plan.vm_id, "vm_name": plan.vm_name, "former_policy": former })
            })
            .collect();
        let policy = policy_json(limits);
        json_document(&json!({ "policy": policy, "is_stored": !is_dry_run, "newly_let_go": doomed, "vms": vms }));
        return Ok(Outcome::DONE);
    }
    let word = if is_dry_run { "would be stored" } else { "stored" };
    for plan in &before {
        if context.global.quiet {
            line(&plan.vm_id);
        } else {
            line(&visible(&format!("{}   {}   {word}", plan.vm_name, policy_text(limits))));
        }
    }
    if before.is_empty() {
        note(&format!("{on} holds no points yet: a policy belongs to a VM that has some"));
    } else if !doomed.is_empty() && !context.global.quiet {
        note(&format!("the next `retention apply` lets {} go: see `retention plan`", points(doomed.len())));
    }
    Ok(Outcome::DONE)
}
