//! Secrets stay where they belong: no log, page, file for others or answer of a world repeats one that the world was given.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::Path,
};

use api::{OperatorError, v1::DocumentKind};
use e2e::Stage;
use futures_util::StreamExt as _;
use tokio_tungstenite::{connect_async, tungstenite::client::IntoClientRequest as _};

/// Something that must not be read anywhere else.
struct Secret {
    /// The file or the credential that it comes from.
    what: String,
    text: String,
}

/// Something that people and programs read.
struct Said {
    place: String,
    text: String,
}

/// The base64 characters of a PKCS #8 key on P-256 that hold the private number alone: what precedes it is the same in all keys, and
/// what follows is the public key.
const PRIVATE_NUMBER: std::ops::Range<usize> = 48..88;

/// Looks for every secret of the world in everything that it says, while a device with a credential is connected.
pub(crate) async fn nobody_repeats_a_secret(stage: &Stage) {
    let mut secrets = Vec::new();
    collect(stage.world.state_dir(), &mut secrets);
    let kinds: BTreeSet<&str> = secrets
        .iter()
        .filter_map(|secret| secret.what.rsplit(['/', ' ']).next())
        .collect();
    for kind in [
        "affinity_key",
        "checkpoint_key",
        "state_key",
        "identity.key",
        "issuer.key",
        "root.key",
    ] {
        assert!(kinds.contains(kind), "the world has no {kind}; there are {kinds:?}");
    }

    let edge = stage.world.record().await.edges.into_values().next().unwrap();
    let [shown, offered, asked] = ["Authorization", "Sec-WebSocket-Protocol", "the query"].map(|place| {
        let text = format!("sk-{:016x}{:016x}", random(), random());
        let what = format!("the credential that a device sends in {place}");
        secrets.push(Secret {
            what,
            text: text.clone(),
        });
        text
    });
    let socket = edge.replacen("http", "ws", 1) + "/v1/realtime?model=meridian";
    let mut request = socket.clone().into_client_request().unwrap();
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {shown}").parse().unwrap());
    let (mut session, _) = connect_async(request).await.unwrap();
    session.next().await.expect("the session begins").unwrap();
    let mut request = socket.into_client_request().unwrap();
    let protocols = format!("realtime, openai-insecure-api-key.{offered}");
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocols.parse().unwrap());
    let in_browser = connect_async(request).await;
    // Both as it should be, and for what nobody serves.
    for path in ["/v1/realtime", "/v1/nonsense"] {
        reqwest::get(format!("{edge}{path}?model=meridian&api_key={asked}"))
            .await
            .unwrap();
    }

    let said = everything(stage).await;
    let bytes: usize = said.iter().map(|it| it.text.len()).sum();
    println!(
        "         {} secrets, looked for in {} texts of {bytes} bytes",
        secrets.len(),
        said.len()
    );
    assert_eq!(leaks(&secrets, &said), Vec::<String>::new());
    drop((session, in_browser));
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The keys in the files of a world: PEM or hex in `*.key`, hex in `*_key = "…"`.
fn collect(folder: &Path, secrets: &mut Vec<Secret>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, secrets);
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let what = path.display();
        match path.extension().and_then(|it| it.to_str()) {
            Some("key") => {
                let letters: String = text.lines().filter(|line| !line.starts_with('-')).collect();
                let text = match text.starts_with('-') {
                    true => letters.get(PRIVATE_NUMBER).expect("a key in PKCS #8").to_owned(),
                    false => letters,
                };
                secrets.push(Secret {
                    what: what.to_string(),
                    text,
                });
            }
            Some("toml") => {
                for (key, value) in text.lines().filter_map(|line| line.split_once(" = \"")) {
                    if key.ends_with("_key") && value.len() > 64 {
                        let text = value.trim_end_matches('"').to_owned();
                        secrets.push(Secret {
                            what: format!("{what} {key}"),
                            text,
                        });
                    }
                }
            }
            _ => {}
        }
    }
}

/// All logs, pages of all processes, files for other programs, and all that operators are told.
async fn everything(stage: &Stage) -> Vec<Said> {
    let mut said = Vec::new();
    for entry in std::fs::read_dir(stage.world.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        let is_read = path.extension().is_some_and(|it| it == "log" || it == "json");
        if is_read {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            said.push(Said {
                place: path.display().to_string(),
                text,
            });
        }
    }
    let logs = said
        .iter()
        .filter(|it| it.place.ends_with(".log") && !it.text.is_empty());
    assert!(
        logs.count() >= stage.world.layout().admin.len(),
        "every process has a log"
    );
    for (process, address) in &stage.world.layout().admin {
        for page in ["metrics", "health", "ready", "sessions", "explain"] {
            let url = format!("http://{address}/{page}");
            let text = reqwest::get(url).await.unwrap().text().await.unwrap();
            said.push(Said {
                place: format!("/{page} of {process}"),
                text,
            });
        }
    }
    let operator = stage.world.operator();
    let mut tell = |place: &str, reply: Result<String, OperatorError>| {
        let text = reply.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(!text.is_empty(), "{place}");
        said.push(Said {
            place: place.to_owned(),
            text,
        });
    };
    tell("status", told(operator.status().await));
    tell("history", told(operator.history(1_000).await));
    tell("plan", told(operator.plan(None).await));
    tell("the audit log", told(operator.audit(0).await));
    tell("the topology", told(operator.document(DocumentKind::Topology).await));
    tell("the policy", told(operator.document(DocumentKind::Policy).await));
    for region in stage.world.layout().topology.regions.keys() {
        tell(&format!("why {region}"), told(operator.why(region.as_str()).await));
    }
    said
}

fn told<T: Debug>(reply: Result<T, OperatorError>) -> Result<String, OperatorError> {
    reply.map(|reply| format!("{reply:?}"))
}

/// Every text with a secret in it, and which. Line breaks hide none, also not those of a log in JSON.
fn leaks(secrets: &[Secret], said: &[Said]) -> Vec<String> {
    let mut leaks = Vec::new();
    for Said { place, text } in said {
        let packed: String = text.replace("\\n", "").split_whitespace().collect();
        for secret in secrets {
            if packed.contains(&secret.text) || text.contains(&secret.text) {
                leaks.push(format!("{place} repeats {}", secret.what));
            }
        }
    }
    leaks
}

#[test]
fn a_repeated_secret_is_found_also_across_lines() {
    let secrets = ["MIGHAgEA", "c0ffee"].map(|text| Secret {
        what: format!("key {text}"),
        text: text.to_owned(),
    });
    let said = |text: &str| {
        let place = "edge.log".to_owned();
        leaks(
            &secrets,
            &[Said {
                place,
                text: text.to_owned(),
            }],
        )
    };
    assert_eq!(
        said("{\"message\":\"the key is MIGH\\nAgEA\"}"),
        ["edge.log repeats key MIGHAgEA"]
    );
    assert_eq!(said("c0ff\nee"), ["edge.log repeats key c0ffee"]);
    assert_eq!(said("nothing to see: c0ffe-e"), Vec::<String>::new().as_slice());
}
