//! Observations in the narrator's words.

use std::sync::Arc;

use api::v1::{Decision, StatusReply};
use tokio::sync::watch;
use topology::Moment;
use world::World;

use crate::{
    Narrator, Resolver,
    fleet::{Moved, TurnRecord},
    observe::Observer,
};

pub(super) async fn say_dns(narrator: &Narrator, resolver: &Resolver, zone: &str) -> anyhow::Result<()> {
    let answer = resolver.answer().await?;
    let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
    let serial = match resolver.serial().await {
        Ok(serial) => format!(", serial {serial}"),
        Err(_) => String::new(),
    };
    narrator.say(format!(
        "dns: {zone} {} IN A {} ({:.1} ms{serial})",
        answer.ttl_s,
        addresses.join(" "),
        answer.took.as_secs_f64() * 1000.0
    ));
    Ok(())
}

pub(super) fn tell_interruption(narrator: &Narrator, turn: &TurnRecord) {
    for moved in &turn.moves {
        let when = if moved.at_ms < turn.started_at_ms {
            "between two turns".to_owned()
        } else {
            format!("in a turn: \"{}\" → \"{}\"", turn.words, turn.reply)
        };
        let Moved { at_ms, from, to } = moved;
        let from = from.as_deref().unwrap_or("its region");
        narrator.say_at(
            *at_ms,
            format!("session {} goes on in {to} instead of {from}, {when}", turn.session),
        );
    }
    let Some(cut) = turn.interruptions.first() else {
        if !turn.completed() {
            narrator.say(format!(
                "session {}: \"{}\" failed: {}",
                turn.session, turn.words, turn.failure
            ));
        }
        return;
    };
    let how = match cut.code {
        Some(code) => format!("Close {code} \"{}\"", cut.reason),
        None => cut.reason.clone(),
    };
    let again = match (cut.reconnected_after(turn.started_at_ms), &cut.region) {
        (Some(after), region) => format!(
            "connected again{} after {:.2} s",
            region
                .as_ref()
                .map_or_else(String::new, |region| format!(" to {region}")),
            after.as_secs_f64()
        ),
        (None, _) => "could not call again".to_owned(),
    };
    let end = if turn.completed() {
        format!("\"{}\" → \"{}\"", turn.words, turn.reply)
    } else {
        format!("\"{}\" failed: {}", turn.words, turn.failure)
    };
    let when = if cut.at_ms < turn.started_at_ms {
        "between two turns"
    } else {
        "in a turn"
    };
    narrator.say_at(
        cut.at_ms,
        format!("session {} {when}: {how}; {again}; {end}", turn.session),
    );
}

pub(super) fn tell_decision(
    narrator: &Narrator,
    region: &str,
    decision: &Decision,
    detected_at: Moment,
    published_at: Moment,
    status: &StatusReply,
) {
    narrator.say_at(detected_at, format!("{region} is judged down"));
    let number = decision.number.unwrap_or_default().generation;
    narrator.say_at(
        Moment(decision.at_ms),
        format!("plan {number} is decided by {}", decision.actor),
    );
    for reason in &decision.reasons {
        narrator.say_at(Moment(decision.at_ms), format!("{}: {}", reason.code, reason.text));
        for fact in &reason.evidence {
            // One vantage per line.
            narrator.say_at(Moment(decision.at_ms), format!("  {}", fact.replace(" · ", "\n    ")));
        }
    }
    for node in &status.nodes {
        narrator.say_at(
            Moment(node.acknowledged_at_ms),
            format!(
                "{} has plan {}",
                node.node,
                node.acknowledged.unwrap_or_default().generation
            ),
        );
    }
    let routes = status.regions.iter().find(|status| status.region == region);
    if let Some(routes) = routes {
        let shares: Vec<String> = (routes.routes.iter())
            .map(|share| format!("{} % to {}", share.percent, share.region))
            .collect();
        narrator.say_at(
            published_at,
            format!("sessions at home in {region} go {}", shares.join(", ")),
        );
    }
}

/// Reports the planner's waiting reasons about `region` each time they change.
pub(super) fn tell_waiting(observer: &Observer, region: &str, narrator: &Arc<Narrator>) -> tokio::task::JoinHandle<()> {
    let (mut statuses, region, narrator) = (observer.follow(), region.to_owned(), Arc::clone(narrator));
    tokio::spawn(async move {
        let mut last = String::new();
        while statuses.changed().await.is_ok() {
            let text = statuses.borrow_and_update().as_ref().and_then(|status| {
                let reason = status.waiting.iter().find(|reason| reason.region == region)?;
                Some(format!("{}: {}", reason.code, reason.text))
            });
            if let Some(text) = text
                && text != last
            {
                narrator.say(&text);
                last = text;
            }
        }
    })
}

/// Reports each process that ends without the story's doing.
pub(super) fn watch_deaths(world: &World, narrator: &Arc<Narrator>) -> Deaths {
    let (mut deaths, narrator) = (world.deaths(), Arc::clone(narrator));
    let (sender, seen) = watch::channel(Vec::new());
    let task = tokio::spawn(async move {
        while let Ok(death) = deaths.recv().await {
            sender.send_modify(|seen| seen.push(death.name.clone()));
            narrator.say(format!(
                "{} died by itself ({}); log {}:\n{}",
                death.name,
                death.how,
                death.log.display(),
                death.last_words
            ));
        }
    });
    Deaths { seen, task }
}

/// Names of the processes that ended without the story's doing.
pub(super) struct Deaths {
    pub(super) seen: watch::Receiver<Vec<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Deaths {
    fn drop(&mut self) {
        self.task.abort();
    }
}
