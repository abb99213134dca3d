//! The page behind every reason code: the row that `meridian explain reason CODE` prints and that docs/reasons.md lists.

use crate::ReasonCode;

/// The heading under which a reader looks for a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A plan changed.
    Changed,
    /// A rule blocks a change that was wanted.
    Blocked,
    /// A change waits for time, evidence or a person.
    Waiting,
    /// A request ended, or cannot be carried out.
    Request,
    /// The control plane or a node is in trouble; decisions go on.
    Trouble,
}

impl Group {
    /// Every group, in the order of the page.
    pub const ALL: [Self; 5] = [
        Self::Changed,
        Self::Blocked,
        Self::Waiting,
        Self::Request,
        Self::Trouble,
    ];

    /// The heading of the page.
    pub fn title(self) -> &'static str {
        match self {
            Self::Changed => "A plan changed",
            Self::Blocked => "A rule blocks a change",
            Self::Waiting => "A change waits",
            Self::Request => "What became of a request",
            Self::Trouble => "Something is wrong beside the regions",
        }
    }
}

/// The page of a reason code, for a reader at 3 a.m.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The code it explains.
    pub code: ReasonCode,
    /// The heading under which it stands.
    pub group: Group,
    /// The event, or the mistake.
    pub means: &'static str,
    /// The reaction of Meridian by itself.
    pub does: &'static str,
    /// The command to type; its placeholders are in capitals.
    pub next: &'static str,
}

/// Makes `PAGES` and a match without a wildcard, so that a code without a page does not compile.
macro_rules! pages {
    ($($code:ident $group:ident: $means:literal, $does:literal, $next:literal;)*) => {
        /// One page for every code, in the order of [`Group::ALL`].
        pub const PAGES: &[Page] = &[$(Page {
            code: ReasonCode::$code,
            group: Group::$group,
            means: $means,
            does: $does,
            next: $next,
        }),*];

        impl ReasonCode {
            /// Its page; none for a code that only a newer version knows.
            pub fn page(self) -> Option<&'static Page> {
                match self {
                    $(Self::$code => PAGES.iter().find(|page| page.code == Self::$code),)*
                    Self::Unknown(_) => None,
                }
            }
        }
    };
}

pages! {
    // A plan changed.
    Genesis Changed:
        "The control plane wrote the first plan of this deployment.",
        "Every primary serves its own sessions.",
        "`meridian status` shows the plan. If you did not start a new deployment, the store was lost: see plan-recovered.";
    TopologyChanged Changed:
        "Somebody applied a new topology.",
        "Sessions of regions that the new topology lacks move to the backups it names; everything else stays.",
        "`meridian history` names who applied it; `meridian topology diff FILE` compares a file with it.";
    Failover Changed:
        "A trigger fired for a region, and every safety rule agreed.",
        "Edges move the region's live sessions to its backups within seconds. The region stays evacuated until an operator restores it.",
        "`meridian why REGION` shows the evidence. When the region is healthy again: `meridian restore REGION --reason WHY`.";
    ForcedFailover Changed:
        "An operator moved a region's sessions to its backups.",
        "Edges move the live sessions now, whatever the region's health. Nodes that refuse the plan do not undo it.",
        "`meridian restore REGION --reason WHY` brings them back.";
    Switchover Changed:
        "An operator moves a healthy region's sessions away in steps.",
        "Each step moves a share of the sessions at the boundaries of their turns, and waits for the hold of the policy.",
        "`meridian abort ACTION --reason WHY` stops it and gives the region its sessions back.";
    DrainStep Changed:
        "A region that is being emptied gave away the next share of its sessions.",
        "The next step follows after the hold of the policy, if the backups have room.",
        "`meridian why REGION` shows how far it is; `meridian abort ACTION --reason WHY` stops it.";
    RestoreStep Changed:
        "A returning region took back the next share of its sessions.",
        "The next step follows after the hold of the policy, while the region stays healthy.",
        "`meridian why REGION` shows how far it is; `meridian abort ACTION --reason WHY` sends the sessions away again.";
    RestoreDone Changed:
        "A region has all its sessions back.",
        "Nothing more: the region serves as before.",
        "Nothing to type. If replicated data is still written elsewhere, see promotion-held.";
    RestoreAborted Changed:
        "A returning region failed again, or an operator stopped its return.",
        "Its sessions go to its backups again.",
        "`meridian why REGION` shows what failed; `meridian restore REGION --reason WHY` tries again.";
    Promoted Changed:
        "Another region became the writer of a region's replicated data.",
        "The plan names the new writer; your replication follows it.",
        "`meridian restore REGION --reason WHY` makes the region its own writer again once it has caught up.";
    Demoted Changed:
        "A region writes its replicated data itself again.",
        "The plan names the region as its own writer again.",
        "Nothing to type.";
    EdgeDrained Changed:
        "An operator keeps an edge out of DNS answers for a while.",
        "Devices learn of it when their cached answer ends; sessions on the edge go on.",
        "`meridian abort ACTION --reason WHY` ends it early.";
    EdgeRestored Changed:
        "The time for which an edge was drained is over, or the drain was stopped.",
        "DNS answers name the edge again.",
        "Nothing to type.";
    EdgeLost Changed:
        "The control plane hears nothing of an edge, or most vantages cannot connect to it.",
        "DNS answers leave the edge out until it works again; the policy's `edges.lost_max` bounds how many.",
        "Look at the edge's machine and network. `meridian status` shows since when; nothing to type once it works.";
    EdgeReturned Changed:
        "An edge that was lost works again.",
        "DNS answers name it after the policy's `edges.returned_after`.",
        "Nothing to type.";
    StackDrained Changed:
        "An operator keeps new sessions off one stack.",
        "Its sessions move to other stacks of the region, at the boundaries of their turns.",
        "`meridian drain --stack ADDRESS --for 2h --reason WHY --wait 10m` reports when it is empty; `meridian abort ACTION --reason WHY` ends it early.";
    StackRestored Changed:
        "A stack gets sessions again.",
        "Edges count it among the stacks of its region from this plan on.",
        "Nothing to type.";
    RolloutStep Changed:
        "A larger share of the users goes to the version that is rolled out.",
        "The next step follows after the hold of the policy, while the version's guards pass.",
        "`meridian abort ACTION --reason WHY` sends everybody back to the old version.";
    RolloutDone Changed:
        "All users are on the version that was rolled out.",
        "The old version's stacks get no sessions.",
        "Nothing to type. Stop the old stacks when `meridian status` shows no sessions on them.";
    RolledBack Changed:
        "A guard found the new version worse, or an operator stopped the rollout.",
        "All users go to the old version. The version is not tried again by itself.",
        "`meridian history` shows the figures of the guard.";
    LevelChanged Changed:
        "A region's service is degraded further, or less, because a component fails or works again.",
        "Stacks of the region answer with less (docs/glossary.md lists the levels); sessions stay.",
        "`meridian why REGION` names the component.";
    PlanTakenBack Changed:
        "A majority of the edges refuse a plan that moves nobody off a dead region and that nobody ordered.",
        "The content of the plan before it is in force again, and automation rests for a while.",
        "`meridian status` names the edges and why they refuse. `meridian unfreeze --reason WHY` ends the rest early.";
    PlanRecovered Changed:
        "The store forgot plans that a majority of the nodes still hold, with the same digest.",
        "The newest of them is in force again; drains and rollouts that only the store knew are lost.",
        "Find out why the store went back (a restored backup, a lost disk). `meridian history` shows what is known.";
    RuleOverridden Changed:
        "A safety rule is OFF for a while: one person asked, another agreed.",
        "The rule is checked and shown, and blocks nothing until that time.",
        "`meridian abort ACTION --reason WHY` turns the rule on again at once.";

    // A rule blocks a change.
    EverythingLooksDead Blocked:
        "No region looks healthy, so the control plane's own view may be broken.",
        "Nothing moves by itself.",
        "Check the network of the vantages: `meridian status`. If a region is really down: `meridian failover REGION --reason WHY`.";
    CorrelatedEvidence Blocked:
        "Two or more primaries turned bad within a few ticks of each other, seen by the same vantages only: the evidence may be at fault.",
        "Nothing moves by itself.",
        "`meridian why REGION` shows which vantages. If a region is really down: `meridian failover REGION --reason WHY`.";
    EvacuationLimit Blocked:
        "As many regions as automation may leave at a time are bad or moving already.",
        "This region waits until one of them is healthy or settled.",
        "`meridian failover REGION --reason WHY` moves it all the same.";
    RegionsServingMin Blocked:
        "Too few regions would be left serving (`safety.regions_serving_min`).",
        "Nothing moves.",
        "`meridian failover REGION --force --reason WHY`, and a second person approves it.";
    NoFitBackup Blocked:
        "None of the region's backups is fit to take sessions.",
        "The region keeps its sessions; the control plane tries again at every tick.",
        "`meridian status` shows the backups. You know better: `meridian failover REGION --force --reason WHY`.";
    NoHeadroom Blocked:
        "The backups lack room for the region's sessions.",
        "The sessions without room stay where they are, and the control plane tries again at every tick.",
        "`meridian plan` shows the capacity table. Add stacks, or `meridian failover REGION --force --reason WHY`.";
    Frozen Blocked:
        "An operator froze automation.",
        "The control plane judges and explains, and changes nothing by itself until the freeze ends; a switchover, drain or restore stops where it is.",
        "`meridian unfreeze --reason WHY` ends it early. `meridian failover REGION --reason WHY` moves a region all the same.";
    AutomationOff Blocked:
        "The policy turns automation off (`safety.automation = false`).",
        "The control plane judges and explains, and carries out orders only.",
        "`meridian failover REGION --reason WHY` moves a region; `meridian policy apply FILE --reason WHY` turns automation on.";
    HoldDown Blocked:
        "The region moved too often of late. Leaving and returning count alike, because callers feel both; a region that a person emptied while it was healthy does not count.",
        "The region's return waits until its penalty has decayed.",
        "`meridian ack REGION --reason WHY` lifts the hold-down.";
    NotHealthy Blocked:
        "The region is not healthy enough to take sessions back.",
        "It stays evacuated.",
        "`meridian why REGION` names the component that fails; `meridian restore REGION --reason WHY` once it works.";
    StaleSamples Blocked:
        "The newest reports on the region are too old to decide by.",
        "The last verdict stands; nothing moves by itself on it.",
        "Check that edges and control planes reach each other: `meridian status` shows when each vantage was heard last.";
    RpoExceeded Blocked:
        "Promoting the backup would lose more of the newest data than the class's RPO allows, or nobody knows how much.",
        "The writer stays.",
        "`meridian failover REGION --promote --accept-loss 30m --reason WHY`, and a second person approves it.";
    RefusedByNodes Blocked:
        "Nodes refuse the plan in force.",
        "A node that refuses keeps the last plan it applied. A minority changes nothing for the others; after a majority automation rests.",
        "`meridian status` names the nodes and why. `meridian unfreeze --reason WHY` ends the rest early.";
    LooserPolicy Blocked:
        "The new policy would loosen a safety rule or make detection blind.",
        "The policy in force stays until two people override this rule.",
        "`meridian override looser-policy --for 30m --reason WHY`, and a second person approves it. Then apply the policy again.";
    RiskyTopology Blocked:
        "The new topology would change where devices find the service, or what regions have room for.",
        "The topology in force stays until two people override this rule.",
        "`meridian override risky-topology --for 30m --reason WHY`, and a second person approves it. Then apply the topology again.";
    LastEdge Blocked:
        "No edge would be left in DNS answers.",
        "The edge stays.",
        "Bring another edge back first: `meridian status` lists them.";
    LastStack Blocked:
        "No stack of the region would be left.",
        "The stack stays.",
        "Empty the whole region instead: `meridian drain --region REGION --reason WHY`.";
    InvalidPlan Blocked:
        "The control plane made a plan that breaks an invariant. This is a fault of Meridian.",
        "The plan is thrown away; the one in force stays.",
        "Please report it with `meridian audit export FILE`. Orders of another kind still work.";

    // A change waits.
    TriggerPending Waiting:
        "A region or component was bad in some ticks, and its trigger needs more of them.",
        "The trigger fires when enough ticks are bad, or the region is found healthy again.",
        "`meridian why REGION` counts the ticks. You are sure: `meridian failover REGION --reason WHY`.";
    NoData Waiting:
        "Too few samples came in to judge the region.",
        "The last verdict stands.",
        "`meridian status` shows which vantages report.";
    StackFails Waiting:
        "One stack answers and fails its callers all the same, while others of its region do well.",
        "Edges send it no newcomers while they see it fail; the region stays.",
        "`meridian drain --stack ADDRESS --for 2h --reason WHY` moves its callers to the others.";
    RestoreReady Waiting:
        "An evacuated region is healthy again.",
        "It stays evacuated until an operator restores it.",
        "`meridian restore REGION --reason WHY`.";
    RestoreHold Waiting:
        "A returning region is between two steps.",
        "The next step follows when the hold ends and the region is still healthy.",
        "`meridian why REGION` shows until when.";
    DrainHold Waiting:
        "A region that is being emptied is between two steps.",
        "The next step follows when the hold ends.",
        "`meridian why REGION` shows until when.";
    PartlyMoved Waiting:
        "A part of the region's sessions found no place at its backups.",
        "That part stays; the control plane tries again at every tick.",
        "`meridian plan` shows the capacity table.";
    PromotionHeld Waiting:
        "A region is evacuated, and its replicated data keeps its writer.",
        "The control plane changes no writer by itself.",
        "`meridian failover REGION --promote --reason WHY` makes a backup the writer.";
    RolloutHold Waiting:
        "A rollout is between two steps.",
        "The next step follows when the hold ends and the version's guards pass.",
        "`meridian status` shows until when; `meridian abort ACTION --reason WHY` rolls back.";
    NeedsApproval Waiting:
        "The request needs a second person.",
        "Nothing changes until somebody else approves it, or it expires.",
        "`meridian approve ACTION --reason WHY`, by somebody else.";
    EdgeNew Waiting:
        "An edge is new in the topology.",
        "DNS answers name it once it has followed plans, sent reports and been reached for the policy's `edges.returned_after`.",
        "Start the edge and let it follow this control plane; `meridian status` shows whether it is heard.";
    EdgeFloor Waiting:
        "An edge looks lost, and too many edges would be left out of DNS answers.",
        "DNS answers still name it.",
        "Check the network between the edges and the control plane: `meridian status`. You are sure: `meridian drain --edge EDGE --for 1h --reason WHY`.";

    // The end of a request.
    OrderDone Request:
        "Most edges apply the plan that carries an order out.",
        "The order is over.",
        "Nothing to type.";
    AlreadySo Request:
        "The state that was asked for is in force already.",
        "Nothing changes.",
        "Nothing to type.";
    Approved Request:
        "A second person agreed to a request.",
        "The request is carried out.",
        "Nothing to type.";
    Acknowledged Request:
        "An operator lifted a region's hold-down.",
        "The region may move again.",
        "Nothing to type.";
    Aborted Request:
        "An operator or a guard stopped an action.",
        "Changes that can be taken back safely are taken back.",
        "`meridian history` shows who and why.";
    Unfrozen Request:
        "An operator ended every freeze and every rest of automation.",
        "Automation decides again from this tick on.",
        "Nothing to type.";
    Expired Request:
        "The time of a request or a standing order ran out.",
        "It counts no longer.",
        "`meridian history` shows the request; type it again if you still need it.";
    AskedAlready Request:
        "The same request waits for a second person already.",
        "The earlier request stands.",
        "`meridian approve ACTION --reason WHY`, by somebody else.";
    SamePerson Request:
        "The approval came from the person who asked.",
        "The request still waits.",
        "Somebody else types `meridian approve ACTION --reason WHY`.";
    ShownChanged Request:
        "The approval is for something else than what the request would do now, or it does not say what was shown.",
        "The request still waits.",
        "`meridian approve ACTION --reason WHY` shows what the request would do now, and asks.";
    NoSuchAction Request:
        "There is no such action, or it is over.",
        "Nothing changes.",
        "`meridian status` lists the actions.";
    RolloutRunning Request:
        "Another rollout runs.",
        "The new one is refused.",
        "Wait for it, or `meridian abort ACTION --reason WHY`.";
    BadRequest Request:
        "The request makes no sense in this topology: the text says why.",
        "Nothing changes.",
        "`meridian topology get` lists regions, edges and stacks.";

    // Something is wrong beside the regions.
    ClockSkew Trouble:
        "The clocks of a vantage and of the control plane are too far apart.",
        "Decisions go on. Reports of a vantage whose clock is more than 20 s off do not count.",
        "`timedatectl` or `chronyc tracking` on the machine that is named shows why its clock is off; `meridian status` shows when it is right again.";
    VantageSuspect Trouble:
        "A vantage sees a region fail that all others see work, or work that all others see fail, in three ticks or more.",
        "A claim that it alone makes does not count. Its claims count again after six ticks without such a contradiction.",
        "Check the network of that node: `meridian why REGION` shows what each vantage saw. If it looks well, take the node out of the topology and give it another name and key.";
    ClockWentBack Trouble:
        "The control plane's clock went back.",
        "It judges anew from the ticks that follow.",
        "`timedatectl` or `chronyc tracking` on the control plane's machine shows its time service; nothing to type once the clock is right.";
    PlanUnproven Trouble:
        "Nodes say that they hold a newer plan than the store, and too few hold the same one.",
        "The control plane does not believe them; each node keeps its plan.",
        "Check that the nodes belong to this deployment: `meridian status` names them.";
    OutdatedDocument Trouble:
        "An older version took the document in force, and this version has stricter limits.",
        "The control plane reads the document within its limits.",
        "`meridian policy get` or `meridian topology get`, correct it, and apply it: the text names the keys.";
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, path::Path};

    use super::*;

    /// The text of docs/reasons.md.
    fn document() -> String {
        let mut page = "# Reason codes\n\nEvery line of `meridian status`, `why`, `history` and `plan` begins with a reason code. \
                        `meridian explain reason CODE` prints one row of this page, which is made from `topology/src/reasons.rs`.\n"
            .to_owned();
        for group in Group::ALL {
            let _ = write!(
                page,
                "\n## {}\n\n| code | what it means | what Meridian does | what to type |\n|---|---|---|---|\n",
                group.title()
            );
            for it in PAGES.iter().filter(|it| it.group == group) {
                let _ = writeln!(page, "| `{}` | {} | {} | {} |", it.code, it.means, it.does, it.next);
            }
        }
        page
    }

    #[test]
    fn the_page_in_the_docs_is_that_of_the_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, document()).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == document(),
            "docs/reasons.md lags behind; run UPDATE_DOCS=1 cargo test -p topology reasons"
        );
    }

    /// A page says what is wrong, what Meridian does, and what to type, in whole sentences that begin with their subject.
    #[test]
    fn every_page_says_all_three_in_plain_words() {
        for page in PAGES {
            for text in [page.means, page.does, page.next] {
                let begins = text.split(' ').next().unwrap();
                assert!(
                    !["What", "Who", "Whoever", "Whatever"].contains(&begins),
                    "{}: {text}",
                    page.code
                );
                assert!(text.ends_with('.') && text.len() < 240, "{}: {text}", page.code);
            }
            // A word between backquotes may be a key of the policy.
            let types = ["`meridian ", "`timedatectl`"].iter().any(|it| page.next.contains(it));
            let types = types || page.next.starts_with("Nothing to type");
            assert!(types, "{} names no command: {}", page.code, page.next);
            assert_eq!(page.code.page(), Some(page));
        }
        let mut order: Vec<Group> = PAGES.iter().map(|page| page.group).collect();
        order.dedup();
        assert_eq!(order, Group::ALL, "pages stand by group, in the order of the groups");
    }
}
