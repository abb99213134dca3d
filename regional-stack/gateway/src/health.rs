//! The state of a stack and of each component, as probes, load balancers and orchestrators judge it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;
use topology::Component;

use crate::{stack::Stack, store::Durability};

/// Probes give up after 2 s, so a store that does not answer must be reported before that.
const STORE_LIMIT: Duration = Duration::from_millis(500);

/// The state of a stack.
pub(crate) struct Health {
    status: &'static str,
    /// The state in full, for `/health`.
    pub(crate) report: Value,
}

impl Health {
    /// Whether every component works and the stack takes work.
    pub(crate) fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

/// Tries each component.
pub(crate) async fn check(stack: &Stack) -> Health {
    let mut components: BTreeMap<&str, Value> = BTreeMap::new();
    let mut all_fine = true;
    let mut report = |component: Component, fine: bool, mut detail: Value| {
        all_fine &= fine;
        detail["status"] = json!(if fine { "ok" } else { "failing" });
        components.insert(component.as_str(), detail);
    };

    for (component, queued, fine) in stack.engines() {
        let mut detail = json!({ "queued": queued });
        if component == Component::Asr && !stack.recognizes_with.is_empty() {
            detail["model"] = json!(stack.recognizes_with);
        }
        report(component, fine, detail);
    }
    // The language understanding and the skills are functions in this process: they work when a known question gets
    // its answer.
    let heard = dialogue::interpret("what time is it");
    report(Component::Nlu, heard.command.intent() == "time.query", json!({}));
    let reply = dialogue::act(&mut stack.new_dialogue(), &heard, daemon::clock::now());
    report(Component::Skills, reply.text.starts_with("it is"), json!({}));
    let stored = timeout(STORE_LIMIT, stack.store.load("health", daemon::clock::now())).await;
    // A stack whose disk fails keeps serving, and is healthy: sessions that moved elsewhere would lose the alarms that its memory holds.
    let disk = match stack.store.durability() {
        Durability::None => json!({ "disk": "none" }),
        Durability::OnDisk => json!({ "disk": "ok" }),
        Durability::Failing { unwritten } => json!({ "disk": "failing", "unwritten": unwritten }),
    };
    report(Component::SessionStore, matches!(stored, Ok(Ok(_))), disk);
    report(Component::Gateway, true, json!({ "sessions": stack.sessions.len() }));

    let status = match (stack.draining.is_cancelled(), stack.readiness.is_ready(), all_fine) {
        (true, _, _) => "draining",
        (false, false, _) => "starting",
        (false, true, false) => "failing",
        (false, true, true) => "ok",
    };
    let report = json!({
        "status": status,
        "region": stack.config.region,
        "version": env!("CARGO_PKG_VERSION"),
        "components": components,
    });
    Health { status, report }
}
