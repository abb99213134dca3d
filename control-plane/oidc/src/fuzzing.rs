//! Entry point of the fuzzer (`fuzz/`): the answers of a provider, or of whoever answers in its place.

use std::collections::BTreeMap;

use identity::Grant;

use crate::{
    Rules, flow,
    http::{self, Metadata},
};

/// The body of an answer: what a control plane and the command read of it is refused, or bounded.
///
/// # Panics
///
/// An answer gets more than the rules allow: roles without a group of theirs, a name that fits no certificate, or a wait without end.
pub fn answer(body: &[u8]) {
    let text = String::from_utf8_lossy(body);
    let url = "https://id.example";
    if let Ok(metadata) = http::parsed::<Metadata>(url, "metadata", &text) {
        for url in [&metadata.jwks_uri, &metadata.token_endpoint] {
            // The client asks where `is_private` allows.
            let _ = crate::is_private(url);
        }
    }
    flow::read_answer(&text);
    let Ok(claims) = http::parsed::<BTreeMap<String, serde_json::Value>>(url, "claims", &text) else {
        return;
    };
    let grants = Grant::list("operator,approver@us-*").expect("the roles are well-formed");
    let rules = Rules {
        name_claim: "sub".to_owned(),
        groups_claim: "groups".to_owned(),
        roles: [("sre".to_owned(), grants)].into(),
    };
    if let Ok(person) = rules.person(&claims) {
        let groups = claims.get("groups").map(ToString::to_string).unwrap_or_default();
        assert!(
            groups.contains("\"sre\""),
            "{} has the roles of a group without being in it",
            person.name
        );
        assert_eq!(claims["sub"].as_str(), Some(&*person.name));
        assert!(!person.name.contains(topology::text::is_hidden), "{:?}", person.name);
    }
}
