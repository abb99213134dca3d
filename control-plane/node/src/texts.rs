//! Every sentence of a node that an operator reads: in its log, in `meridian status` as the reason for which it refuses a plan. Each
//! says what is wrong and what the node does; what helps is named where a person can help.

use std::{fmt::Display, time::Duration};

use topology::PlanNumber;

// Plans that are refused.

pub(crate) fn not_newer(offered: PlanNumber, have: PlanNumber) -> String {
    format!("plan {offered} is older than plan {have}, which this node keeps; nothing to type unless it goes on")
}

pub(crate) fn contradicts(number: PlanNumber) -> String {
    format!(
        "this node keeps plan {number} with other contents; check for a second leader (`meridian status`) or a store that was restored"
    )
}

/// `why` names the fault of a snapshot.
pub(crate) fn invalid(why: impl Display) -> String {
    format!("{why}; this node keeps the plan that it has")
}

pub(crate) fn older_than_on_disk(number: PlanNumber, kept: PlanNumber) -> String {
    format!("plan {number} is older than plan {kept} on disk; the node keeps the newer one")
}

pub(crate) const REFUSED: &str =
    "this node refused a plan; it keeps the one that it has, and `meridian status` shows the reason";

// The last good plan.

pub(crate) const CANNOT_SAVE: &str = "cannot write the last good plan; the plan is applied, and a restart without a control plane would \
     start from an older one. Check space and rights of this path: `df`, `ls -l`";
pub(crate) const CANNOT_LOAD: &str =
    "cannot read the last good plan; the node starts without this one. Check the rights of this path: `ls -l`";
pub(crate) const DAMAGED: &str = "a last good plan is damaged; the node renames it to *.damaged and does not use it";

pub(crate) const PLAN_OF_ANOTHER: &str = "a last good plan has no code of this node's key, so another process wrote it or it is another \
     node's; the node renames it to *.foreign and does not use it. Find out who writes there: `ls -l`";
pub(crate) const PLAN_WITHOUT_CODE: &str = "the last good plan is from before codes, or its key was removed; the node takes it this once and \
     wrote it with a code. If this is not the first start of this release, find out who removed the key";
pub(crate) const NO_PLAN_KEY: &str =
    "cannot use the key of the last good plan; the node starts without that plan, and gets one from a control plane";
pub(crate) const CANNOT_ADOPT: &str = "cannot write the key of the last good plan; the plan is used without it. Check space and rights of this path: `df`, `ls -l`";
pub(crate) const NOT_A_PLAN_KEY: &str =
    "it holds no key of 64 hex digits; remove it, and the node makes another one and takes the plan that is there";
pub(crate) const NO_RANDOM_NUMBERS: &str = "the system has no random numbers; check that /dev/urandom is there";

pub(crate) fn plan_key_is_readable(mode: u32) -> String {
    format!("others can read it (mode {mode:o}); type `chmod 600` with its path")
}

// Control planes that do not answer.

pub(crate) const CANNOT_FOLLOW: &str =
    "cannot follow plans of this control plane; the node keeps the plan that it has, and tries again";
pub(crate) const CANNOT_RENEW: &str =
    "cannot renew the certificate of this process; it keeps the one that it has, and tries again within a minute";
pub(crate) const READS_TOO_SLOWLY: &str =
    "this control plane reads too slowly; this node drops its oldest reports for it";

pub(crate) const UNWANTED: &str = "this control plane does not count this node's reports; the node sends further ones. The reason says what to correct";
pub(crate) const CLOCKS_APART: &str = "this node's clock and the control plane's clock are too far apart; decisions go on. Check the \
     time service of both: `timedatectl`, `chronyc tracking`";

pub(crate) fn no_https_url() -> String {
    "no control plane has an https:// URL; write one in control_planes".to_owned()
}

pub(crate) fn says(endpoint: &str, text: impl Display) -> String {
    format!("{endpoint}: {text}")
}

pub(crate) fn late(endpoint: &str, limit: Duration) -> String {
    format!("{endpoint}: no answer within {limit:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_says_what_is_wrong_and_what_the_node_or_a_person_does() {
        let number = PlanNumber::default();
        let constants = [
            REFUSED,
            CANNOT_SAVE,
            CANNOT_LOAD,
            DAMAGED,
            PLAN_OF_ANOTHER,
            PLAN_WITHOUT_CODE,
            NO_PLAN_KEY,
            CANNOT_ADOPT,
            NOT_A_PLAN_KEY,
            NO_RANDOM_NUMBERS,
            CANNOT_FOLLOW,
            CANNOT_RENEW,
            READS_TOO_SLOWLY,
            UNWANTED,
            CLOCKS_APART,
        ];
        let sentences = [
            not_newer(number, number),
            contradicts(number),
            invalid("the snapshot is damaged: it does not match its checksum"),
            older_than_on_disk(number, number),
            no_https_url(),
            plan_key_is_readable(0o644),
        ];
        for text in sentences.iter().map(String::as_str).chain(constants) {
            assert!(text.contains("; "), "says one thing only: {text}");
            assert!(!text.ends_with(['.', ';', ':']) && text.len() < 240, "{text}");
        }
        // Causes, behind the control plane that they are of.
        assert_eq!(says("cp-1", "it follows"), "cp-1: it follows");
        assert_eq!(late("cp-1", Duration::from_secs(2)), "cp-1: no answer within 2s");
    }
}
