//! Texts that operators see.

use std::fmt::Display;

use topology::NodeId;

pub(crate) const NO_PLAN_YET: &str = "this name server has no plan yet, and does not listen for DNS until it has one. See the control planes: meridian status";

pub(crate) fn plan_not_held(node: &NodeId, have: u64, asked: u64) -> String {
    format!("{node} holds plan {have} and not plan {asked}")
}

pub(crate) fn not_a_plan(error: &dyn Display) -> String {
    format!("the request holds no plan that can be applied: {error}")
}

pub(crate) fn not_a_type(kind: &str) -> String {
    format!("\"{kind:.20}\" is no type of record; write A, AAAA, HTTPS, SVCB, NS, SOA, TXT, CAA or TYPE and a number")
}

pub(crate) fn not_in_zone(name: &str, zone: &str) -> String {
    format!("\"{name:.255}\" is not in the zone {zone}; write {zone} or a name that ends with it")
}

pub(crate) fn bad_cookie_secret() -> String {
    "write 32 hexadecimal digits, the same in all name servers of the zone; `openssl rand -hex 16` makes them"
        .to_owned()
}

pub(crate) fn bad_return_step(seconds: u64, most: u64) -> String {
    format!("{seconds} is out of range; write 0 to {most} seconds")
}

pub(crate) fn static_edges_without_mode() -> String {
    "the edges count only with all_out = \"static\"; write that, or remove the line".to_owned()
}

pub(crate) fn no_static_edges() -> String {
    "all_out = \"static\" names the edges of all_out_edges, and there are none; write all_out_edges = [\"edge-iad\"]"
        .to_owned()
}

pub(crate) fn bad_slip() -> String {
    "write 0 to 10: of so many limited replies one is sent, cut".to_owned()
}
