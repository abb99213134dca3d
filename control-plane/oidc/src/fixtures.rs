//! An identity provider on this machine, for tests: metadata, keys, and a device flow whose answers a test writes.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
};

use identity::{
    PeerId, Role,
    ca::{self, Authority, Credential, Leaf},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use topology::Moment;

/// The provider. It answers until the test's process ends.
#[derive(Debug)]
pub struct TestProvider {
    /// Its address, which is its issuer.
    pub issuer: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    issuer: String,
    signer: auth::fixtures::Provider,
    /// Answers to those who ask whether somebody signed in: the next first, and the last one for ever.
    answers: VecDeque<Value>,
    /// The requests so far, as path and form.
    asked: Vec<(String, String)>,
    /// True while it answers nothing but errors.
    is_ill: bool,
    /// True while it has no metadata.
    is_unannounced: bool,
}

impl TestProvider {
    /// Starts one, in plain text.
    ///
    /// # Panics
    ///
    /// The machine has no free port.
    pub fn start() -> Self {
        Self::serve(None)
    }

    /// Starts one that speaks TLS. Returns the root under which it proves its address, in PEM.
    ///
    /// # Panics
    ///
    /// The machine has no free port, or no random numbers.
    pub fn start_tls(now: Moment) -> (Self, String) {
        let (credential, root) = credential(now);
        let chain = CertificateDer::pem_slice_iter(credential.certificate.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("a new certificate");
        let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes()).expect("a new key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a key with its certificate");
        (Self::serve(Some(Arc::new(config))), root)
    }

    fn serve(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let issuer = format!("{scheme}://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State {
            issuer: issuer.clone(),
            signer: auth::fixtures::Provider::new(),
            answers: VecDeque::new(),
            asked: Vec::new(),
            is_ill: false,
            is_unannounced: false,
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                // A client that is gone, or does not believe this provider, is none of the test's business.
                drop(match &tls {
                    None => answer(tcp, &shared),
                    Some(config) => ServerConnection::new(config.clone())
                        .map_err(std::io::Error::other)
                        .and_then(|tls| answer(StreamOwned::new(tls, tcp), &shared)),
                });
            }
        });
        Self { issuer, state }
    }

    /// Sets the answers of its token endpoint, in order; the last one stays.
    pub fn will_answer(&self, answers: impl IntoIterator<Item = Value>) {
        self.state.lock().answers = answers.into_iter().collect();
    }

    /// Whether it answers nothing but errors from now on.
    pub fn set_ill(&self, is_ill: bool) {
        self.state.lock().is_ill = is_ill;
    }

    /// True if it has no metadata from now on.
    pub fn set_unannounced(&self, is_unannounced: bool) {
        self.state.lock().is_unannounced = is_unannounced;
    }

    /// Exchanges its keys.
    pub fn exchange_keys(&self) {
        self.state.lock().signer = auth::fixtures::Provider::new();
    }

    /// The number of requests for a path.
    pub fn asked_for(&self, path: &str) -> usize {
        self.state
            .lock()
            .asked
            .iter()
            .filter(|(asked, _)| asked == path)
            .count()
    }

    /// The form of the newest request for a path.
    pub fn form_for(&self, path: &str) -> Option<String> {
        let state = self.state.lock();
        let mut asked = state.asked.iter().rev();
        asked.find(|(asked, _)| asked == path).map(|(_, form)| form.clone())
    }

    /// An id token with these claims, and `iss`, `aud` "meridian" and `exp` where they are not among them.
    pub fn id_token(&self, claims: &Value, now_s: u64) -> String {
        self.id_token_by("p", claims, now_s)
    }

    /// The same, which says that it is signed with this key.
    pub fn id_token_by(&self, kid: &str, claims: &Value, now_s: u64) -> String {
        let state = self.state.lock();
        let mut all = json!({ "iss": state.issuer, "aud": "meridian", "exp": now_s + 300 });
        for (name, value) in claims.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        state.signer.sign(&json!({ "alg": "ES256", "kid": kid }), &all)
    }
}

/// A certificate for this machine's address, and the root above it.
fn credential(now: Moment) -> (Credential, String) {
    let made = || {
        let root = ca::root("id.example", now)?;
        let issuer = Authority::load(&Authority::load(&root)?.issuer("id.example", now)?)?;
        let id = PeerId {
            zone: "id.example".to_owned(),
            role: Role::Etcd("provider".to_owned()),
        };
        let leaf = Leaf {
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            ..Leaf::of(id)
        };
        Ok::<_, ca::CaError>((issuer.issue(&leaf, now)?, root.certificate))
    };
    made().expect("random numbers")
}

fn answer(stream: impl Read + Write, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    reader.read_line(&mut head)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut form = vec![0; length.min(1 << 16)];
    reader.read_exact(&mut form)?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, body) = {
        let mut state = state.lock();
        state
            .asked
            .push((path.clone(), String::from_utf8_lossy(&form).into_owned()));
        match path.as_str() {
            _ if state.is_ill => (503, json!({})),
            "/.well-known/openid-configuration" if !state.is_unannounced => {
                let issuer = &state.issuer;
                let metadata = json!({
                    "issuer": issuer, "jwks_uri": format!("{issuer}/keys"),
                    "device_authorization_endpoint": format!("{issuer}/device"), "token_endpoint": format!("{issuer}/token"),
                });
                (200, metadata)
            }
            "/keys" => (200, state.signer.set()),
            "/device" => {
                let page = format!("{}/activate", state.issuer);
                let begun = json!({
                    "device_code": "D", "user_code": "WDJB-MJHT", "verification_uri": page, "expires_in": 600, "interval": 1,
                });
                (200, begun)
            }
            "/token" => {
                let next = match state.answers.len() {
                    0 => json!({ "error": "authorization_pending" }),
                    1 => state.answers[0].clone(),
                    _ => state.answers.pop_front().unwrap_or_default(),
                };
                (if next.get("error").is_some() { 400 } else { 200 }, next)
            }
            _ => (404, json!({})),
        }
    };
    let body = body.to_string();
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status} .\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}
