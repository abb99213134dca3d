//! One function decides who may call what, at control planes and at stacks; its tests hold the whole table. It denies every other call.

use crate::{Grant, OperatorRole, Peer, Role, texts};

/// A call, with the name that the caller gives itself in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call<'a> {
    /// Follow plans, acknowledge and refuse them, and show the plan in force when the store lost it, as this edge.
    FollowAsEdge {
        /// The id in the hello.
        node: &'a str,
    },
    /// The same, as this name server.
    FollowAsDns {
        /// The id in the hello.
        node: &'a str,
    },
    /// Report what this vantage observed.
    Report {
        /// The vantage in the report.
        vantage: &'a str,
        /// The name of the control plane that is asked: it takes its own observations without a connection.
        asked: &'a str,
    },
    /// Report the questions that this name server answered.
    ReportAsDns {
        /// The name server in the report.
        node: &'a str,
    },
    /// Look: status, why, history, plan, wait, documents, the audit log.
    Look,
    /// Order something: failover, switchover, restore, drain, rollout, freeze, unfreeze, ack, abort.
    Order {
        /// The kind of the order, as operators type it.
        kind: &'a str,
        /// The region that it concerns; `None` if it concerns all or none.
        region: Option<&'a str>,
    },
    /// Agree to another operator's order.
    Approve {
        /// The region that the order concerns.
        region: Option<&'a str>,
    },
    /// Change the rules for all: documents, overrides of safety rules.
    Rule {
        /// Its kind, as operators type it.
        kind: &'a str,
    },
    /// Get a new certificate with the same id.
    Renew,
    /// Call a stack: sessions, requests, copies of sessions, probes.
    CallStack,
    /// Be called as a stack of this region.
    Serve {
        /// The region whose topology names the address.
        region: &'a str,
    },
}

/// The reason for which a call is not allowed, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", texts::denied(id, what, because))]
pub struct Denied {
    /// The id of the caller.
    pub id: String,
    /// The call, as text.
    pub what: String,
    /// The rule.
    pub because: String,
}

/// Decides whether a peer may make a call.
///
/// # Errors
///
/// It may not. The text names the caller, the call, the rule and the remedy.
pub fn authorise(peer: &Peer, call: Call<'_>) -> Result<(), Denied> {
    let role = &peer.id.role;
    let because = match (call, role) {
        (Call::FollowAsEdge { node }, Role::Edge(name)) | (Call::FollowAsDns { node }, Role::Dns(name)) => {
            if node == name {
                return Ok(());
            }
            texts::FOLLOWS_AS_ITSELF.to_owned()
        }
        (Call::FollowAsEdge { .. }, _) => texts::EDGES_FOLLOW_AS_EDGES.to_owned(),
        (Call::FollowAsDns { .. }, _) => texts::DNS_FOLLOWS_AS_DNS.to_owned(),

        (Call::Report { vantage, asked }, Role::Edge(name) | Role::ControlPlane(name)) => {
            if vantage == name && vantage != asked {
                return Ok(());
            }
            texts::REPORTS_AS_ITSELF.to_owned()
        }
        (Call::Report { .. }, _) => texts::VANTAGES_REPORT.to_owned(),

        (Call::ReportAsDns { node }, Role::Dns(name)) => {
            if node == name {
                return Ok(());
            }
            texts::REPORTS_AS_ITSELF.to_owned()
        }
        (Call::ReportAsDns { .. }, _) => texts::NAME_SERVERS_REPORT.to_owned(),

        (Call::CallStack, Role::Edge(_) | Role::ControlPlane(_)) => return Ok(()),
        (Call::CallStack, _) => texts::EDGES_CALL_STACKS.to_owned(),

        (Call::Serve { region }, Role::Stack { region: own, .. }) if own == region => return Ok(()),
        (Call::Serve { .. }, _) => texts::OTHER_REGION_SERVES.to_owned(),

        (call, Role::Operator(_)) => match call.needs() {
            None => texts::operators_log_in(),
            Some((OperatorRole::Viewer, _)) if !peer.grants.is_empty() => return Ok(()),
            Some((role, region)) => {
                let roles = [role, OperatorRole::Admin, OperatorRole::BreakGlass];
                let holds = |grant: &Grant| roles.contains(&grant.role) && grant.covers(region);
                if peer.grants.iter().any(holds) {
                    return Ok(());
                }
                let has = match &peer.grants[..] {
                    [] => "none".to_owned(),
                    _ => peer.roles(),
                };
                texts::needs_role(role, region, &has)
            }
        },
        (Call::Renew, Role::Etcd(_)) => texts::etcd_is_issued(),
        (Call::Renew, _) => return Ok(()),
        (Call::Look | Call::Order { .. } | Call::Approve { .. } | Call::Rule { .. }, _) => texts::only_operators(),
    };
    Err(Denied {
        id: peer.id.to_string(),
        what: call.text(),
        because,
    })
}

impl Call<'_> {
    /// The role that an operator needs, and the region in which it must hold. `None`: no operator makes this call.
    fn needs(&self) -> Option<(OperatorRole, Option<&str>)> {
        match *self {
            Self::Look => Some((OperatorRole::Viewer, None)),
            Self::Order { region, .. } => Some((OperatorRole::Operator, region)),
            Self::Approve { region } => Some((OperatorRole::Approver, region)),
            Self::Rule { .. } => Some((OperatorRole::Admin, None)),
            Self::FollowAsEdge { .. }
            | Self::FollowAsDns { .. }
            | Self::Report { .. }
            | Self::ReportAsDns { .. }
            | Self::Renew => None,
            Self::CallStack | Self::Serve { .. } => None,
        }
    }

    /// The kind of call, as a label of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::FollowAsEdge { .. } | Self::FollowAsDns { .. } => "follow",
            Self::Report { .. } | Self::ReportAsDns { .. } => "report",
            Self::Look => "look",
            Self::Order { .. } => "order",
            Self::Approve { .. } => "approve",
            Self::Rule { .. } => "rule",
            Self::Renew => "renew",
            Self::CallStack => "call-stack",
            Self::Serve { .. } => "serve",
        }
    }

    /// The caller's wish, as text.
    pub fn text(&self) -> String {
        let at = |region: Option<&str>| region.map_or_else(String::new, |region| format!(" {region:.64}"));
        match *self {
            Self::FollowAsEdge { node } => format!("follow plans as edge {node:.64}"),
            Self::FollowAsDns { node } => format!("follow plans as name server {node:.64}"),
            Self::Report { vantage, .. } => format!("report as {vantage:.64}"),
            Self::ReportAsDns { node } => format!("report as name server {node:.64}"),
            Self::Look => "read the state of the deployment".to_owned(),
            Self::Order { kind, region } => format!("order {kind}{}", at(region)),
            Self::Approve { region } => format!("approve an order{}", at(region)),
            Self::Rule { kind } => format!("change the {kind}"),
            Self::Renew => "renew a certificate here".to_owned(),
            Self::CallStack => "call a stack".to_owned(),
            Self::Serve { region } => format!("serve as a stack of {region:.64}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use topology::Moment;

    use super::*;
    use crate::PeerId;

    fn peer(role: &str, grants: &str) -> Peer {
        Peer {
            id: PeerId::new("voice.example", role.parse().unwrap()).unwrap(),
            grants: Grant::list(grants).unwrap(),
            serial: "01".to_owned(),
            from: Moment(0),
            until: Moment(1),
            root: String::new(),
        }
    }

    /// Every kind of peer, and for each call who may make it.
    #[test]
    fn the_table() {
        let everyone = [
            ("edge/edge-dub", ""),
            ("edge/edge-iad", ""),
            ("edge/cp-1", ""),
            ("dns/ns1", ""),
            ("dns/edge-dub", ""),
            ("control-plane/cp-1", ""),
            ("control-plane/cp-2", ""),
            ("stack/us-east/a", ""),
            ("stack/us-east/us-west", ""),
            ("stack/us-west/us-east", ""),
            ("etcd/etcd-1", ""),
            ("operator/nobody", ""),
            ("operator/vera", "viewer"),
            ("operator/olaf", "operator"),
            ("operator/uma", "operator@us-*"),
            ("operator/anne", "approver"),
            ("operator/ulf", "approver@us-east"),
            ("operator/ada", "admin"),
            ("operator/safe", "break-glass"),
        ];
        let (order, region) = ("failover", Some("us-east"));
        for (call, allowed) in [
            (Call::FollowAsEdge { node: "edge-dub" }, vec!["edge/edge-dub"]),
            (Call::FollowAsDns { node: "ns1" }, vec!["dns/ns1"]),
            // An edge and a name server of one name are two.
            (Call::FollowAsDns { node: "edge-dub" }, vec!["dns/edge-dub"]),
            (Call::FollowAsEdge { node: "unknown" }, vec![]),
            (
                Call::Report {
                    vantage: "edge-dub",
                    asked: "cp-1",
                },
                vec!["edge/edge-dub"],
            ),
            (
                Call::Report {
                    vantage: "edge-iad",
                    asked: "cp-1",
                },
                vec!["edge/edge-iad"],
            ),
            (
                Call::Report {
                    vantage: "ns1",
                    asked: "cp-1",
                },
                vec![],
            ),
            (
                Call::Report {
                    vantage: "cp-2",
                    asked: "cp-1",
                },
                vec!["control-plane/cp-2"],
            ),
            // A name server with the name of an edge reports as a name server only.
            (Call::ReportAsDns { node: "ns1" }, vec!["dns/ns1"]),
            (Call::ReportAsDns { node: "edge-dub" }, vec!["dns/edge-dub"]),
            (Call::ReportAsDns { node: "cp-1" }, vec![]),
            // Its own observations come from inside; an edge of the same name cannot speak for it.
            (
                Call::Report {
                    vantage: "cp-1",
                    asked: "cp-1",
                },
                vec![],
            ),
            (
                Call::Look,
                vec![
                    "operator/vera",
                    "operator/olaf",
                    "operator/uma",
                    "operator/anne",
                    "operator/ulf",
                    "operator/ada",
                    "operator/safe",
                ],
            ),
            (
                Call::Order { kind: order, region },
                vec!["operator/olaf", "operator/uma", "operator/ada", "operator/safe"],
            ),
            (
                Call::Order {
                    kind: order,
                    region: Some("eu-west"),
                },
                vec!["operator/olaf", "operator/ada", "operator/safe"],
            ),
            (
                Call::Order {
                    kind: "freeze",
                    region: None,
                },
                vec!["operator/olaf", "operator/ada", "operator/safe"],
            ),
            (
                Call::Approve { region },
                vec!["operator/anne", "operator/ulf", "operator/ada", "operator/safe"],
            ),
            (
                Call::Approve { region: None },
                vec!["operator/anne", "operator/ada", "operator/safe"],
            ),
            (Call::Rule { kind: "policy" }, vec!["operator/ada", "operator/safe"]),
            (
                Call::Renew,
                vec![
                    "edge/edge-dub",
                    "edge/edge-iad",
                    "edge/cp-1",
                    "dns/ns1",
                    "dns/edge-dub",
                    "control-plane/cp-1",
                    "control-plane/cp-2",
                    "stack/us-east/a",
                    "stack/us-east/us-west",
                    "stack/us-west/us-east",
                ],
            ),
            (
                Call::CallStack,
                vec![
                    "edge/edge-dub",
                    "edge/edge-iad",
                    "edge/cp-1",
                    "control-plane/cp-1",
                    "control-plane/cp-2",
                ],
            ),
            // The region counts, and not the name that a stack has in it.
            (
                Call::Serve { region: "us-east" },
                vec!["stack/us-east/a", "stack/us-east/us-west"],
            ),
            (Call::Serve { region: "us-west" }, vec!["stack/us-west/us-east"]),
            (Call::Serve { region: "edge-dub" }, vec![]),
        ] {
            let may = |(role, grants): &(&str, &str)| authorise(&peer(role, grants), call).is_ok();
            let those: Vec<&str> = everyone.iter().filter(|it| may(it)).map(|(role, _)| *role).collect();
            assert_eq!(those, allowed, "{call:?}");
        }
    }

    #[test]
    fn a_denial_names_the_caller_the_rule_and_the_remedy() {
        let call = Call::Order {
            kind: "failover",
            region: Some("eu-west"),
        };
        let denied = authorise(&peer("operator/uma", "operator@us-*"), call).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "spiffe://voice.example/operator/uma may not order failover eu-west: it needs the role operator in eu-west, and this \
             certificate has operator@us-*; log in with one that has it"
        );
        let denied = authorise(
            &peer("edge/edge-iad", ""),
            Call::Report {
                vantage: "edge-dub",
                asked: "cp-1",
            },
        );
        assert_eq!(
            denied.unwrap_err().to_string(),
            "spiffe://voice.example/edge/edge-iad may not report as edge-dub: a vantage reports under its own id only; correct the \
             node's name in its configuration, or its certificate"
        );
    }
}
