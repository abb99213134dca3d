//! The answers to calls that are not carried out: what is wrong with the call, and what its maker does about it.

use std::{fmt::Display, time::Duration};

use topology::NodeId;

// Callers that are not let in.

pub(crate) fn must_prove() -> &'static str {
    "this control plane wants to know who calls: use https:// and a certificate (`meridian cert issue KIND/NAME --ca DIR --into DIR`, \
     `meridian login NAME --roles ROLE`)"
}

pub(crate) fn other_author(own: &str, claimed: &str) -> String {
    format!(
        "author: the certificate is {own}'s, and the request says \"{claimed:.64}\"; leave --author out, or log in as that person \
         (`meridian login NAME --roles ROLE`)"
    )
}

// Fields of requests.

pub(crate) fn kind_missing() -> &'static str {
    "kind: missing; set the kind of the request"
}

pub(crate) fn duration_out_of_range() -> &'static str {
    "duration: must be greater than zero and at most 24h; write one such as --for 30m, or change the policy for longer"
}

pub(crate) fn no_such_region(name: &str, known: &[&str]) -> String {
    format!("there is no region \"{name:.64}\"; there are {}", known.join(", "))
}

pub(crate) fn missing(field: &str) -> String {
    format!("{field}: missing; write one")
}

pub(crate) fn has_hidden_letters(field: &str) -> String {
    format!("{field}: contains line breaks, control characters or invisible characters; remove them")
}

pub(crate) fn too_long(field: &str, bytes: usize, bytes_max: usize) -> String {
    format!("{field}: is {bytes} bytes, the limit is {bytes_max}; write a shorter one")
}

// Nodes that follow plans.

pub(crate) fn no_hello() -> &'static str {
    "the first message of a node is its hello; send node and kind before anything else"
}

pub(crate) fn no_plan_yet() -> &'static str {
    "there is no plan yet; the node asks again by itself, and `meridian status` shows why"
}

pub(crate) fn no_such_node(id: impl Display) -> String {
    format!(
        "{id} is neither an edge nor a name server of the topology; correct the node's name, or add it to the topology \
         (`meridian topology apply FILE --reason WHY`)"
    )
}

// Certificates.

pub(crate) fn shows_no_certificate() -> &'static str {
    "only a peer that shows a certificate gets a new one; connect to https:// with the old one"
}

pub(crate) fn not_due() -> &'static str {
    "the certificate is not due: it is renewed once a third of its life is over; the process asks again by itself"
}

pub(crate) fn left_the_topology(role: impl Display) -> String {
    format!(
        "{role} is not in the topology any more, so its certificate is not renewed; stop it, or add it again (`meridian topology apply \
         FILE --reason WHY`)"
    )
}

pub(crate) fn no_issuer() -> &'static str {
    "this control plane signs no certificates; renew them where the authority is (`meridian cert renew DIR --ca DIR`)"
}

pub(crate) fn other_root(own: &str, issuers: &str) -> String {
    format!(
        "the certificate rests on the root {own}, and this control plane issues under {issuers}; issue it anew where the authority is: \
         `meridian cert issue KIND/NAME --ca DIR --into DIR`"
    )
}

pub(crate) fn issuer_untrusted() -> &'static str {
    "the issuer of this control plane does not lead to a root that it trusts; exchange issuer_certificate and issuer_key"
}

pub(crate) fn bad_request(error: impl Display) -> String {
    format!("request: {error}; write the PKCS #10 request of a new key in PEM")
}

pub(crate) fn cannot_sign(error: impl Display) -> String {
    format!("this control plane cannot sign now: {error}; the process asks another one by itself")
}

pub(crate) fn signing_failed() -> &'static str {
    "signing failed inside this control plane, which is a fault of Meridian; the process asks another one by itself"
}

// Requests that the deciding task does not carry out.

pub(crate) fn too_many_requests(author: &str, wait: Duration) -> String {
    format!(
        "author: too many requests of {author} changed nothing within a minute; ask again in {} s. `meridian plan` says what \
         would change, as often as you like",
        wait.as_secs() + 1
    )
}

pub(crate) fn too_many_documents(author: &str, wait: Duration) -> String {
    format!(
        "author: {author} applied too many documents within ten minutes; apply the next in {} s. `meridian topology diff FILE` and \
         `meridian policy diff FILE` check a file as often as you like",
        wait.as_secs() + 1
    )
}

pub(crate) fn stopping() -> &'static str {
    "the control plane stops; whether it carried the request out is unknown: `meridian status`"
}

pub(crate) fn no_such_name_server(node: &NodeId) -> String {
    format!("no name server {node} follows plans here; it has to follow them under the name with which it reports")
}

pub(crate) fn history_late(limit: Duration) -> String {
    format!("the store did not answer within {limit:?}; ask again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refused_call_says_what_its_maker_does() {
        let second = Duration::from_secs(1);
        let answers = [
            must_prove().to_owned(),
            other_author("ada", "bob"),
            kind_missing().to_owned(),
            duration_out_of_range().to_owned(),
            no_such_region("atlantis", &["us-east"]),
            missing("reason"),
            has_hidden_letters("reason"),
            too_long("reason", 400, 300),
            no_hello().to_owned(),
            no_plan_yet().to_owned(),
            no_such_node("edge-mars"),
            shows_no_certificate().to_owned(),
            not_due().to_owned(),
            left_the_topology("edge/edge-sold"),
            no_issuer().to_owned(),
            other_root("0011", "2233"),
            issuer_untrusted().to_owned(),
            bad_request("no PEM"),
            cannot_sign("no file"),
            signing_failed().to_owned(),
            too_many_requests("ada", second),
            too_many_documents("ada", second),
            stopping().to_owned(),
            no_such_name_server(&NodeId::new("ns1").expect("a name")),
            history_late(second),
        ];
        for text in &answers {
            let helps = ["; ", ": `meridian ", ": use "].iter().any(|help| text.contains(help));
            assert!(helps, "does not say what to do: {text}");
            assert!(!text.ends_with(['.', ';', ':']), "{text}");
        }
    }
}
