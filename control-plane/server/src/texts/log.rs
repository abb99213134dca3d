//! The warnings of a control plane's log. The fields beside them have the ids, the numbers and the causes.
//!
//! A warning says what is wrong, what this control plane does about it, and what to check or type.

use std::net::SocketAddr;

// Starting.

pub(crate) fn cannot_listen(address: SocketAddr) -> String {
    format!("cannot listen on {address} for edges and operators; write a free address in listen")
}

pub(crate) fn cannot_read(path: impl std::fmt::Display) -> String {
    format!("cannot read {path}; the control plane does not start without this document, so check its path and rights")
}

pub(crate) const ETCD_IS_OPEN: &str = "anyone who reaches etcd can write decisions past every rule; this control plane starts all the \
                                       same; give etcd TLS with client certificates (docs/security.md)";
pub(crate) const NAMES_UNPROVEN: &str = "anyone who reaches this control plane can report for an edge and order as an operator, because \
                                         nobody proves a name; this control plane starts all the same; give every process a certificate \
                                         and write mode = \"required\" in [identity] (docs/security.md)";

// Leading.

pub(crate) const LEADERSHIP_LOST: &str =
    "the leadership was lost; this control plane follows the next leader; look at etcd if it comes again";
pub(crate) const CANNOT_STAND: &str =
    "this control plane cannot stand for election; it tries again after a pause; check that it reaches the store";
pub(crate) const LEASE_NOT_RENEWED: &str = "the lease of the leader was not renewed; it tries again until the lease ends, and another \
                                            leads then; check that it reaches etcd";
pub(crate) const ANOTHER_LEADS: &str =
    "another control plane leads; this one follows; nothing to type, as `meridian status` names the leader";
pub(crate) const RESIGNED: &str = "this version cannot read the documents in the store; this control plane resigned, so that another one \
                                   may lead; start the version that wrote them";

// Decisions and documents.

pub(crate) const DOCUMENTS_UNREADABLE: &str = "the documents in the store cannot be read; nodes keep their plan; start the version that \
                                               wrote them";
pub(crate) const DOCUMENT_OUTDATED: &str = "an older version accepted the document in force, and this version would refuse it; decisions \
                                            continue with it; apply a corrected one: `meridian topology apply FILE --reason WHY` or \
                                            `meridian policy apply FILE --reason WHY`";
pub(crate) const PLAN_INVALID: &str = "the plan in force is not valid for the documents in force; nodes keep the plan they have; look at \
                                       the newest changes: `meridian history`";
pub(crate) const CANNOT_WRITE: &str = "decisions cannot be written; nodes keep the plan they have, and every tick tries again; check the \
                                       store: `meridian status`";

pub(crate) const CANNOT_WRITE_HEAD: &str = "the signed head of the audit log cannot be written; decisions go on, and every 2 s tries again; \
                                            check the store, the certificate, and the space and rights of the folder: `df`, `ls -l`";

// Nodes and vantages.

pub(crate) const NODE_LEFT: &str = "a node that follows plans is not in the topology any more; it gets no further plan; stop its process, and \
                                    exchange the root if its key may be in other hands (docs/security.md#revoke)";
pub(crate) const NODE_IS_AHEAD: &str = "a node has a newer plan than the store; this control plane asks for it and keeps its own plan in \
                                        force meanwhile; `meridian status` says what follows, and docs/operating.md what to do after a \
                                        restore of the store";
pub(crate) const NEWER_PLAN_UNCONFIRMED: &str = "nodes hold a newer plan, and the audit log cannot be read to confirm it; the plan in \
                                                 force stays; check the store: `meridian status`";
pub(crate) const NEWER_PLAN_CONTRADICTED: &str = "nodes hold a plan that the audit log contradicts; it is not taken over; `meridian \
                                                  status` names these nodes, and docs/operating.md what to do";
pub(crate) const PLAN_REFUSED: &str =
    "a node refused a plan; it keeps the one that it has; `meridian status` shows its reason";
pub(crate) const PLAN_UNASKED: &str =
    "a node sent a plan without being asked; this control plane ignores it; check the version of the node";
pub(crate) const PLAN_IMPOSSIBLE: &str = "a node sent a plan with an impossible generation; this control plane ignores it; check the node: \
                                          `meridian status`";
pub(crate) const PLAN_UNREADABLE: &str =
    "the plan that a node sent cannot be read; this control plane ignores it; check the version of the node";
pub(crate) const CLOCK_WENT_BACK: &str = "the clock of this control plane went back; it drops the observations so far; check the time \
                                          service (`timedatectl`, `chronyc tracking`)";
pub(crate) const CLOCKS_APART: &str = "the clocks of this vantage and of this control plane are too far apart; from 20 s on its reports do not \
                                       count; check the time service of both (`timedatectl`, `chronyc tracking`)";
pub(crate) const VANTAGE_IS_SUSPECT: &str = "this vantage contradicts all others; its reports count only where another vantage agrees; \
                                             check its network";
pub(crate) const REPORT_UNWANTED: &str =
    "a report does not count; the vantage hears the reason, and decisions go on; correct what the reason names";
pub(crate) const CANNOT_RENEW: &str = "this control plane cannot sign a certificate; the node keeps its own and asks again within a \
                                       minute; check issuer_certificate and issuer_key in [identity]";

pub(crate) const CANNOT_SIGN_FIRST: &str = "this control plane cannot sign a first certificate; the process asks another one or tries again; \
                                            check issuer_certificate and issuer_key in [identity]";
pub(crate) const CANNOT_LOOK_FOR_TOKEN: &str = "the token of a process that joins cannot be looked for; the process tries again; check the store: \
                                                `meridian status`";
pub(crate) const LOGINS_UNDESCRIBED: &str = "this control plane cannot tell people where to log in; they ask another one or try again; check trust in \
                                             [operators.oidc]";
pub(crate) const PROVIDER_HAS_NO_KEYS: &str = "the keys of the identity provider cannot be had; people ask another control plane or try again; check \
                                               that this one reaches the provider";
pub(crate) const TOKENS_REFUSED: &str =
    "the tokens of operators are no good; those from before stay in force; correct the file that the error names";

// The store's mirror.

pub(crate) const MIRROR_LISTS: &str = "the mirror lost the store's changes; it lists all again after a pause; check that this control plane reaches the store";
pub(crate) const STORE_WENT_BACK: &str = "the store went back to an older state, as after a restore from a snapshot; this control plane \
                                          follows it from there; see docs/operating.md, a restored store";
pub(crate) const MIRROR_DIFFERS: &str =
    "the mirror differs from the store; it takes the store's content; please report this line";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_warning_says_what_is_wrong_what_the_control_plane_does_and_what_to_check() {
        for text in [
            ETCD_IS_OPEN,
            NAMES_UNPROVEN,
            LEADERSHIP_LOST,
            CANNOT_STAND,
            LEASE_NOT_RENEWED,
            ANOTHER_LEADS,
            RESIGNED,
            DOCUMENTS_UNREADABLE,
            DOCUMENT_OUTDATED,
            PLAN_INVALID,
            CANNOT_WRITE,
            NODE_LEFT,
            CANNOT_WRITE_HEAD,
            NODE_IS_AHEAD,
            NEWER_PLAN_UNCONFIRMED,
            NEWER_PLAN_CONTRADICTED,
            PLAN_REFUSED,
            PLAN_UNASKED,
            PLAN_IMPOSSIBLE,
            PLAN_UNREADABLE,
            CLOCK_WENT_BACK,
            CLOCKS_APART,
            VANTAGE_IS_SUSPECT,
            REPORT_UNWANTED,
            CANNOT_RENEW,
            CANNOT_SIGN_FIRST,
            CANNOT_LOOK_FOR_TOKEN,
            LOGINS_UNDESCRIBED,
            PROVIDER_HAS_NO_KEYS,
            TOKENS_REFUSED,
            MIRROR_LISTS,
            STORE_WENT_BACK,
            MIRROR_DIFFERS,
        ] {
            assert_eq!(text.split("; ").count(), 3, "not three parts: {text}");
            assert!(!text.ends_with('.') && !text.contains("  "), "{text}");
        }
        let address = "127.0.0.1:7070".parse().unwrap();
        for text in [cannot_listen(address), cannot_read("policy.toml")] {
            assert!(text.contains("; ") && !text.ends_with('.'), "{text}");
        }
    }
}
