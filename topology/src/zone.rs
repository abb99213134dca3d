//! What the zone says beside the addresses of edges and name servers: service bindings, and records of the operator.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::document::Section;

/// Most records of one zone that an operator may add.
const RECORDS_MAX: usize = 200;
/// Longest text of a TXT record, in bytes. With its name it still fits into one datagram.
const TXT_BYTES_MAX: usize = 900;
/// Most protocols of a service. Real ones have two or three.
const ALPN_MAX: usize = 8;
/// TTL of an operator's record, in seconds, if it names none.
const TTL_S: u32 = 300;

/// The part of an edge's weight that it has if the document names none.
pub(crate) const WEIGHT: u16 = 100;
/// Largest weight of an edge.
pub(crate) const WEIGHT_MAX: u16 = 1000;

/// What the edges serve, for HTTPS and SVCB records (RFC 9460).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The protocols that edges speak over TLS, such as `h2` and `http/1.1`, preferred ones first. At least one.
    pub alpn: Vec<String>,
}

/// A record that the operator adds to the zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneRecord {
    /// The name below the zone in lower case, `@` for the zone itself. A first label `*` stands for every name that does
    /// not exist there (RFC 4592).
    pub name: String,
    /// Time for which a resolver may cache the record, in seconds, 1..=86,400.
    pub ttl_s: u32,
    /// The type and contents.
    pub data: ZoneData,
}

/// The type and contents of an operator's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ZoneData {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Text, at most 900 bytes.
    Txt(String),
    /// An authority that may issue certificates (RFC 8659).
    Caa {
        /// 0, or 128 for a tag that issuers must understand.
        flags: u8,
        /// `issue`, `issuewild` or `iodef`.
        tag: String,
        /// The authority, or an address for reports.
        value: String,
    },
}

impl ZoneRecord {
    /// The labels of the name below the zone, from the left. Empty for the zone itself.
    pub fn labels(&self) -> Vec<&str> {
        if self.name == "@" {
            return Vec::new();
        }
        self.name.split('.').collect()
    }
}

pub(crate) fn default_weight() -> u16 {
    WEIGHT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
pub(crate) fn is_default_weight(weight: &u16) -> bool {
    *weight == WEIGHT
}

pub(crate) fn read_service(root: &mut Section<'_>) -> Option<Service> {
    let mut section = root.section("service")?;
    let alpn: Option<Vec<String>> = section.required("alpn", "[\"h2\", \"http/1.1\"]");
    if let Some(alpn) = &alpn {
        // A comma or a backslash would have to be escaped in zone files, and no protocol has one (RFC 9460 §7.1.1).
        let is_good = |id: &String| {
            (1..=20).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic() && !b",\\\"".contains(&b))
        };
        if alpn.is_empty() || alpn.len() > ALPN_MAX || !alpn.iter().all(is_good) {
            section.report_at(
                "alpn",
                &format!("write 1 to {ALPN_MAX} protocol names, such as [\"h2\", \"http/1.1\"]"),
            );
        }
    }
    section.finish();
    Some(Service { alpn: alpn? })
}

/// The operator's records. `ids` are the names of edges and name servers, whose addresses the zone has already.
pub(crate) fn read_records(root: &mut Section<'_>, ids: &[&str]) -> Vec<ZoneRecord> {
    let mut records = Vec::new();
    for mut section in root.sections("record") {
        if records.len() == RECORDS_MAX {
            section.report(&format!("there are more than {RECORDS_MAX} records; remove some"));
            section.finish();
            break;
        }
        let record = read_record(&mut section);
        if let Some(record) = record {
            let is_address = matches!(record.data, ZoneData::A(_) | ZoneData::Aaaa(_));
            if is_address && (record.name == "@" || ids.contains(&record.name.as_str())) {
                section.report_at(
                    "name",
                    &format!(
                        "the addresses of \"{}\" follow from [[edge]] and [[name-server]]; write another name",
                        record.name
                    ),
                );
            }
            records.push(record);
        }
        section.finish();
    }
    records
}

fn read_record(section: &mut Section<'_>) -> Option<ZoneRecord> {
    let name: Option<String> = section.required("name", "\"_acme-challenge\"");
    if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
        section.report_at(
            "name",
            &format!(
                "\"{name}\" is not a name below the zone; write \"@\" for the zone itself, or labels in lower case such as \
                 \"_acme-challenge\" or \"*.test\""
            ),
        );
    }
    let kind: Option<String> = section.required("type", "\"TXT\"");
    let ttl_s = section.in_range("ttl_s", TTL_S, 1..=86_400);
    let data: Option<String> = section.required("data", "\"some text\"");
    let (kind, data) = (kind?, data?);
    let read = match kind.as_str() {
        "A" => data.parse().ok().map(ZoneData::A),
        "AAAA" => data.parse().ok().map(ZoneData::Aaaa),
        "TXT" => ((1..=TXT_BYTES_MAX).contains(&data.len())).then(|| ZoneData::Txt(data.clone())),
        "CAA" => caa(&data),
        _ => {
            section.report_at(
                "type",
                &format!("\"{kind}\" is not a type of record here; write A, AAAA, TXT or CAA"),
            );
            return None;
        }
    };
    if read.is_none() {
        let wanted = match kind.as_str() {
            "A" => "an IPv4 address, such as \"192.0.2.1\"".to_owned(),
            "AAAA" => "an IPv6 address, such as \"2001:db8::1\"".to_owned(),
            "TXT" => format!("a text of 1 to {TXT_BYTES_MAX} bytes"),
            _ => "flags, tag and value, such as \"0 issue ca.example.net\"; tags are issue, issuewild and iodef"
                .to_owned(),
        };
        section.report_at("data", &format!("\"{data:.80}\" is no {kind} record; write {wanted}"));
    }
    Some(ZoneRecord {
        name: name?,
        ttl_s,
        data: read?,
    })
}

fn caa(text: &str) -> Option<ZoneData> {
    let (flags, rest) = text.split_once(' ')?;
    let (tag, value) = rest.trim_start().split_once(' ')?;
    let value = value.trim().trim_matches('"');
    let flags = flags.parse().ok().filter(|flags| [0, 128].contains(flags))?;
    let is_good = ["issue", "issuewild", "iodef"].contains(&tag) && (1..=200).contains(&value.len());
    (is_good && value.is_ascii()).then(|| ZoneData::Caa {
        flags,
        tag: tag.to_owned(),
        value: value.to_owned(),
    })
}

fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(is_good)
    };
    let below = name.strip_prefix("*.").unwrap_or(name);
    // With a zone of 100 bytes the whole name is still far below 255 bytes.
    name.len() <= 128 && (name == "@" || name == "*" || below.split('.').all(is_label))
}

#[cfg(test)]
mod tests {
    use crate::Topology;

    const SMALL: &str = include_str!("../testdata/small.toml");

    #[test]
    fn records_and_bindings_are_read() {
        let text = format!(
            "{SMALL}\n[service]\nalpn = [\"h2\", \"http/1.1\"]\n\
             [[record]]\nname = \"_acme-challenge\"\ntype = \"TXT\"\ndata = \"token\"\n\
             [[record]]\nname = \"@\"\ntype = \"CAA\"\ndata = \"0 issue ca.example.net\"\nttl_s = 60\n\
             [[record]]\nname = \"*.test\"\ntype = \"A\"\ndata = \"192.0.2.7\"\n"
        );
        let topology = Topology::parse("t", &text).unwrap();
        assert_eq!(topology.service.unwrap().alpn, ["h2", "http/1.1"]);
        let [challenge, issuer, wildcard] = &topology.records[..] else {
            panic!("{:?}", topology.records);
        };
        assert_eq!((challenge.labels(), challenge.ttl_s), (vec!["_acme-challenge"], 300));
        assert!(issuer.labels().is_empty() && issuer.ttl_s == 60);
        assert_eq!(wildcard.labels(), ["*", "test"]);
    }

    #[test]
    fn every_wrong_record_is_reported_with_what_to_write() {
        let text = format!(
            "{SMALL}\n[service]\nalpn = []\n\
             [[record]]\nname = \"Bad_\"\ntype = \"TXT\"\ndata = \"x\"\n\
             [[record]]\nname = \"a\"\ntype = \"MX\"\ndata = \"x\"\n\
             [[record]]\nname = \"a\"\ntype = \"A\"\ndata = \"::1\"\n\
             [[record]]\nname = \"@\"\ntype = \"CAA\"\ndata = \"7 issue x\"\n\
             [[record]]\nname = \"edge-iad\"\ntype = \"A\"\ndata = \"192.0.2.7\"\n\
             [[record]]\nname = \"a\"\ntype = \"TXT\"\ndata = \"x\"\nttl_s = 0\n"
        );
        let text = Topology::parse("t", &text).unwrap_err().to_string();
        for complaint in [
            "service.alpn: write 1 to 8 protocol names",
            "record.name: \"Bad_\" is not a name below the zone; write \"@\"",
            "record.type: \"MX\" is not a type of record here; write A, AAAA, TXT or CAA",
            "record.data: \"::1\" is no A record; write an IPv4 address",
            "record.data: \"7 issue x\" is no CAA record; write flags, tag and value",
            "record.name: the addresses of \"edge-iad\" follow from [[edge]] and [[name-server]]; write another name",
            "record.ttl_s: 0 is out of range; write 1 to 86400",
        ] {
            assert!(text.contains(complaint), "{complaint}\nnot in\n{text}");
        }
    }

    /// Nodes compare the digest of a topology with that of their plan, also nodes of an older version.
    #[test]
    fn a_topology_without_any_of_this_is_written_as_before() {
        let topology = Topology::parse("t", SMALL).unwrap();
        let text = serde_json::to_string(&topology).unwrap();
        assert!(
            !text.contains("weight") && !text.contains("records") && !text.contains("service"),
            "{text}"
        );
    }
}
