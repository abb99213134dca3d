//! A snapshot document that a node receives: parsed, checked, and put in force.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::LazyLock,
};

use serde_json::Value;
use steering::{Answers, Client, Type};
use topology::{Moment, Snapshot, fixtures::three_primaries};

static GOOD: LazyLock<Value> =
    LazyLock::new(|| serde_json::to_value(three_primaries()).expect("a snapshot can be written as JSON"));

/// Reads a document, or else changes to a good one, because text of the fuzzer's own is rarely a document.
pub(crate) fn take_into_force(bytes: &[u8]) {
    let snapshot = match bytes.split_first() {
        Some((b'{', _)) => serde_json::from_slice(bytes).ok(),
        _ => serde_json::from_value(changed(bytes)).ok(),
    };
    let Some(snapshot): Option<Snapshot> = snapshot else {
        return;
    };
    let (document, checksum) = snapshot.encode();
    match Snapshot::decode(&document, &checksum) {
        Ok(read) => {
            assert_eq!(read, snapshot, "a snapshot is read as it was written");
            assert_eq!(read.encode(), (document, checksum));
            serve(&read);
        }
        Err(refused) => assert_eq!(Err(refused), snapshot.validate(), "both find the same wrong"),
    }
}

/// Compiles everything that a node derives from a snapshot.
fn serve(snapshot: &Snapshot) {
    for edge in snapshot.topology.edges.keys() {
        let table = routing::Table::compile(snapshot, edge);
        assert_eq!(table.number(), snapshot.plan.number());
    }
    let answers = Answers::compile(snapshot, Moment(1_700_000_000_000));
    let zone = steering::labels(answers.zone());
    let client = Client::in_network_of(IpAddr::V4(Ipv4Addr::LOCALHOST));
    for kind in [Type::A, Type::AAAA, Type::NS, Type::SOA, Type::HTTPS] {
        assert!(
            answers.lookup(&zone, kind, &client, 0).is_ok(),
            "the zone is answered for"
        );
    }
}

/// A good document with up to eight changes. Of the three bytes of a change, two choose the place and one the kind.
fn changed(changes: &[u8]) -> Value {
    let mut document = GOOD.clone();
    for change in changes.chunks_exact(3).take(8) {
        let mut count = usize::from(u16::from_be_bytes([change[0], change[1]]));
        let all = nodes(&document);
        count %= all;
        let other = nth(&mut document, &mut (usize::from(change[2]) % all)).map(|node| node.clone());
        let Some(node) = nth(&mut document, &mut count) else {
            continue;
        };
        alter(node, change[2], other);
    }
    document
}

fn alter(node: &mut Value, how: u8, other: Option<Value>) {
    match (how % 8, &mut *node) {
        (0, Value::Object(fields)) => {
            let first = fields.keys().next().cloned();
            first.map(|name| fields.remove(&name));
        }
        (0, Value::Array(items)) => drop(items.pop()),
        (1, Value::Object(fields)) => drop(fields.insert(format!("field-{how}"), Value::from(how))),
        (1, Value::Array(items)) => items.extend(items.first().cloned()),
        (2, Value::Number(number)) => {
            *node = number
                .as_u64()
                .map_or(Value::from(0), |it| Value::from(it.wrapping_add(how.into())));
        }
        (3, _) => *node = Value::from(0),
        (4, _) => *node = Value::from(u64::MAX),
        (5, _) => *node = Value::from(-1.5e300),
        (6, _) => *node = Value::from(""),
        _ => *node = other.unwrap_or(Value::Null),
    }
}

fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(fields) => fields.values().map(nodes).sum(),
        _ => 0,
    }
}

/// The nth value of a document, in document order.
fn nth<'v>(value: &'v mut Value, n: &mut usize) -> Option<&'v mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, n)),
        Value::Object(fields) => fields.values_mut().find_map(|item| nth(item, n)),
        _ => None,
    }
}
