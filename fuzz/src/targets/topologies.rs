//! Documents that operators write. The first byte chooses between a topology and a policy.

use topology::{Policy, Topology};

pub(crate) fn read(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if *first == b'p' {
        match Policy::parse("policy.toml", text) {
            Ok(policy) => {
                assert_eq!(
                    policy.loosened_by(&policy),
                    Vec::<String>::new(),
                    "no policy loosens itself"
                );
                let json = serde_json::to_string(&policy).expect("a policy can be written as JSON");
                assert_eq!(serde_json::from_str::<Policy>(&json).ok(), Some(policy), "{json}");
            }
            Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
        }
        return;
    }
    match Topology::parse("topology.toml", text) {
        Ok(topology) => {
            assert!(topology.primaries().count() > 0, "no world is empty");
            let json = serde_json::to_string(&topology).expect("a topology can be written as JSON");
            assert_eq!(serde_json::from_str::<Topology>(&json).ok(), Some(topology), "{json}");
        }
        Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
    }
}
