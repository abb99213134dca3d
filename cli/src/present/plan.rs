use std::fmt::Write as _;

use api::v1;

use super::{
    json::{document, plan_json},
    text::{lines, plain, reason_line, routes, table},
};
use crate::output::Output;

/// `meridian plan` and dry runs: the plan that would follow, capacity, and safety rules.
pub(crate) fn plan(plan: &v1::PlanReply, output: Output) -> String {
    if output == Output::Json {
        return document(plan_json(plan));
    }
    let mut text = String::new();
    let generation = plan.number.unwrap_or_default().generation;
    let _ = match (plan.outcome(), plan.changes) {
        (_, true) => writeln!(text, "plan {} would follow plan {generation}", generation + 1),
        (v1::Outcome::AwaitingApproval, _) => {
            writeln!(text, "it would wait for a second person; plan {generation} stays")
        }
        (_, false) => writeln!(text, "plan {generation} stays"),
    };
    for (title, reasons) in [
        ("changes", &plan.changed),
        ("blocked by a rule", &plan.refused),
        ("waiting", &plan.waiting),
    ] {
        lines(&mut text, title, reasons.iter().map(reason_line));
    }
    let mut regions = table(["REGION", "HEALTH", "STATE", "LEVEL", "SESSIONS GO"]);
    for region in &plan.regions {
        regions.add_row([
            &region.region,
            &region.health,
            &region.state,
            &region.level,
            &routes(region),
        ]);
    }
    let _ = writeln!(text, "\n{}", plain(&regions));
    let mut capacity = table(["REGION", "RESOURCE", "NOW", "THEN", "MAX", "LEFT"]);
    for load in &plan.loads {
        let left = f64::from(load.max) - load.next;
        let number = |sessions: f64| format!("{sessions:.0}");
        capacity.add_row([
            load.region.clone(),
            load.resource.clone(),
            number(load.now),
            number(load.next),
            load.max.to_string(),
            number(left),
        ]);
    }
    for column in 2..6 {
        if let Some(column) = capacity.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "\n{}", plain(&capacity));
    if !plan.checks.is_empty() {
        let mut rules = table(["RULE", "REGION", "SAYS", "BECAUSE"]);
        for check in &plan.checks {
            let says = match check.passed {
                true => "passed".to_owned(),
                false => format!("blocked by {}", check.rule),
            };
            rules.add_row([check.rule.as_str(), &check.region, &says, &check.text]);
        }
        let _ = writeln!(text, "\n{}", plain(&rules));
    }
    text
}
