//! Signs answers (DNSSEC). A signature is made once for each set of records and kept, also from plan to plan: a plan that changes
//! one edge changes few sets. Answers that questions are likely to need are signed beforehand, all others with the first question
//! for them.
//!
//! Names that do not exist, and names for which a wildcard stands, cannot be signed beforehand. Each costs a signature, so
//! strangers get only so many a second; beyond that they are told to come over TCP, which shows that their address is their own.
//!
//! Why it is so: docs/decisions/30-answers-are-signed-once.md.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use steering::{Answers, Client, Period, RecordData, ServiceSet, SetToSign, Type, ZoneKey, denial};
use topology::Moment;

use crate::{Metrics, reply::seconds, texts};

/// Most keys: the one that signs, and the one that signed before or will sign next.
pub const KEYS_MAX: usize = 2;
/// TTL of the keys, in seconds. A rollover waits this long between two steps.
pub const KEYS_TTL_S: u32 = 3600;
/// Signatures begin this long before they are made, because clocks of resolvers are slow.
const BEFORE_S: u32 = 3600;
/// Time for which a signature counts. A name server that cannot sign any more would be noticed long before.
const COUNTS_FOR_S: u32 = 7 * 24 * 3600;
/// A question gets no signature that ends sooner than this. Caches keep a signed answer for minutes at most.
const RENEWED_BEFORE_S: u32 = 2 * 24 * 3600;
/// Signatures that end sooner than this are made anew ahead of questions.
const RENEWED_AHEAD_S: u32 = 3 * 24 * 3600;
/// Time for which the signatures of one pass are taken without another look: less than each of them still counts.
const AHEAD_COUNTS_S: u32 = 24 * 3600;
/// Pause between two looks for signatures that end soon.
const LOOKS_EVERY: Duration = Duration::from_secs(3600);
/// Shortest time between two passes over all likely answers. Plans that follow each other closely share one; meanwhile questions pay
/// for the few new signatures.
const PASS_PAUSE: Duration = Duration::from_secs(1);
/// Most answers that are signed beforehand: less than a second of one core. The other ones are signed with their first question.
const BEFOREHAND_MAX: usize = 16_384;
/// Signatures after which the server lets other tasks of its core go on.
const AT_ONCE: usize = 64;
/// Signatures in one of the two halves of the memory. Each takes some hundred bytes.
const KEPT_MAX: usize = 2 * BEFOREHAND_MAX;
/// Signatures a second for names that do not exist, asked for by clients that did not show that their address is their own. They
/// take less than a tenth of a core.
const DENIALS_PER_S: u64 = 2000;

/// The keys of the zone, and the signatures that were made with them.
pub struct Signer {
    /// The first one signs. All are published, and all sign the set of keys.
    keys: Vec<Key>,
    random: SystemRandom,
    kept: Mutex<Halves>,
    denials: AtomicU64,
    metrics: Metrics,
}

struct Key {
    pair: EcdsaKeyPair,
    public: ZoneKey,
}

/// Signatures by set and key. When the newer half is full, the older one is forgotten; a signature that is used moves to the newer.
#[derive(Default)]
struct Halves {
    newer: HashMap<(SetToSign, usize), Kept>,
    older: HashMap<(SetToSign, usize), Kept>,
}

#[derive(Clone)]
struct Kept {
    contents: Arc<[u8]>,
    zone: Arc<str>,
    period: Period,
}

/// The RRSIG records of the service's sets that were signed beforehand, as bytes behind a question.
#[derive(Debug)]
pub(crate) struct Ahead {
    by_set: HashMap<ServiceSet, Box<[u8]>>,
    made_s: u32,
}

impl Ahead {
    /// The record of a set; its TTL is 0. `None` too if the last pass is long ago, or the clock was set.
    pub(crate) fn get(&self, set: ServiceSet, now_s: u32) -> Option<&[u8]> {
        let is_good = now_s.wrapping_sub(self.made_s) < AHEAD_COUNTS_S || self.made_s.wrapping_sub(now_s) < BEFORE_S;
        self.by_set.get(&set).filter(|_| is_good).map(|record| &**record)
    }
}

/// Whether a signature is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// The set belongs to a name of the zone.
    Likely,
    /// A stranger chose the name.
    Unlikely,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tags: Vec<u16> = self.keys.iter().map(|key| key.public.tag()).collect();
        f.debug_struct("Signer").field("tags", &tags).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads keys from files: ECDSA on P-256 as PKCS #8 in PEM. Only their owner may read them.
    pub fn read(files: &[PathBuf], metrics: Metrics) -> anyhow::Result<Self> {
        let mut keys: Vec<Key> = Vec::new();
        for file in files {
            let text = identity::files::read_key(file)?;
            let key = parse_key(&text).with_context(|| texts::not_a_zone_key(file))?;
            anyhow::ensure!(
                keys.iter().all(|known| known.public.tag() != key.public.tag()),
                texts::equal_keys(file)
            );
            keys.push(key);
        }
        Ok(Self::with(keys, metrics))
    }

    /// Signs with this key, as PKCS #8 in PEM.
    pub fn of(key: &str, metrics: Metrics) -> anyhow::Result<Self> {
        Ok(Self::with(vec![parse_key(key)?], metrics))
    }

    fn with(keys: Vec<Key>, metrics: Metrics) -> Self {
        Self {
            keys,
            random: SystemRandom::new(),
            kept: Mutex::default(),
            denials: AtomicU64::new(0),
            metrics,
        }
    }

    /// The tags of the keys, the signing one first.
    pub fn tags(&self) -> Vec<u16> {
        self.keys.iter().map(|key| key.public.tag()).collect()
    }

    /// The contents of the zone's DNSKEY records.
    pub(crate) fn keys(&self) -> Vec<RecordData> {
        self.keys.iter().map(|key| key.public.contents()).collect()
    }

    /// The contents of the RRSIG records of a set. Empty if the system has no random numbers: the answer then goes out unsigned,
    /// and resolvers that validate ask another name server.
    pub(crate) fn signatures(
        &self,
        set: &SetToSign,
        zone: &Arc<str>,
        now: Moment,
        reuse: Reuse,
        is_key_set: bool,
    ) -> Vec<RecordData> {
        let signing = if is_key_set { self.keys.len() } else { 1 };
        let of = |key| self.signature(set, key, zone, now, reuse, RENEWED_BEFORE_S);
        let contents = (0..signing).filter_map(of);
        contents
            .map(|contents| RecordData::Opaque(Type::RRSIG, contents))
            .collect()
    }

    fn signature(
        &self,
        set: &SetToSign,
        key: usize,
        zone: &Arc<str>,
        now: Moment,
        reuse: Reuse,
        left_s: u32,
    ) -> Option<Arc<[u8]>> {
        let now_s = seconds(now);
        if reuse == Reuse::Unlikely {
            return self.sign(set, key, zone, period(now_s));
        }
        let named = (set.clone(), key);
        if let Some(kept) = self.kept.lock().get(&named)
            && kept.zone == *zone
            && kept.period.from_s <= now_s
            && kept.period.until_s.saturating_sub(now_s) >= left_s
        {
            return Some(kept.contents);
        }
        let period = period(now_s);
        let contents = self.sign(set, key, zone, period)?;
        let kept = Kept {
            contents: contents.clone(),
            zone: zone.clone(),
            period,
        };
        self.kept.lock().put(named, kept);
        Some(contents)
    }

    fn sign(&self, set: &SetToSign, key: usize, zone: &str, period: Period) -> Option<Arc<[u8]>> {
        let key = self.keys.get(key)?;
        let mut contents = set.head(&key.public, zone, period);
        let message = [&contents, set.records()].concat();
        match key.pair.sign(&self.random, &message) {
            Ok(signature) => {
                self.metrics.signatures.inc();
                contents.extend(signature.as_ref());
                Some(contents.into())
            }
            Err(ring::error::Unspecified) => {
                tracing::error!("{}", texts::CANNOT_SIGN);
                None
            }
        }
    }

    /// Takes one of the signatures that strangers may ask for in this second. False if there is none left.
    pub(crate) fn take_denial(&self, now: Moment) -> bool {
        let second = now.0 / 1000;
        // The second and the count of it, in one number.
        let took = self.denials.fetch_update(Relaxed, Relaxed, |known| {
            if known >> 32 == second & 0xffff_ffff {
                (known & 0xffff_ffff < DENIALS_PER_S).then_some(known + 1)
            } else {
                Some(second << 32 | 1)
            }
        });
        took.is_ok()
    }

    /// Signs the answers that questions are likely to need. `None` when `is_over` says that newer answers are in force.
    pub(crate) async fn sign_ahead(&self, answers: &Answers, now: Moment, is_over: impl Fn() -> bool) -> Option<Ahead> {
        let zone: Arc<str> = answers.zone().into();
        let mut by_set = HashMap::new();
        for (nth, (set, of)) in sets_ahead(answers, &self.keys()).into_iter().enumerate() {
            let keys = if of == Of::Keys { self.keys.len() } else { 1 };
            for key in 0..keys {
                let signature = self.signature(&set, key, &zone, now, Reuse::Likely, RENEWED_AHEAD_S);
                if let (Some(contents), Of::Service(set)) = (signature, of) {
                    by_set.insert(set, steering::opaque_record(Type::RRSIG, &contents).into());
                }
            }
            if nth % AT_ONCE == AT_ONCE - 1 {
                if is_over() {
                    return None;
                }
                tokio::task::yield_now().await;
            }
        }
        Some(Ahead {
            by_set,
            made_s: seconds(now),
        })
    }

    /// Number of signatures in memory.
    pub fn kept(&self) -> usize {
        let kept = self.kept.lock();
        kept.newer.len() + kept.older.len()
    }
}

impl Halves {
    fn get(&mut self, named: &(SetToSign, usize)) -> Option<Kept> {
        if let Some(kept) = self.newer.get(named) {
            return Some(kept.clone());
        }
        let (named, kept) = self.older.remove_entry(named)?;
        self.put(named, kept.clone());
        Some(kept)
    }

    fn put(&mut self, named: (SetToSign, usize), kept: Kept) {
        if self.newer.len() >= KEPT_MAX {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(named, kept);
    }
}

/// The kind of a set that is signed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// The keys, which every key signs.
    Keys,
    /// The service.
    Service(ServiceSet),
    /// Another name, or a denial.
    Name,
}

/// The sets that are signed ahead.
fn sets_ahead(answers: &Answers, keys: &[RecordData]) -> Vec<(SetToSign, Of)> {
    let mut sets = Vec::new();
    let anybody = Client::behind([0, 0, 0, 0].into());
    let names = answers.own_names();
    if let Some(zone) = names.first() {
        sets.push((
            SetToSign::new(zone, KEYS_TTL_S, &keys.iter().collect::<Vec<_>>()),
            Of::Keys,
        ));
    }
    for name in names.iter().take(BEFOREHAND_MAX / 4) {
        let denial = denial_of(answers, name, &anybody);
        sets.push((SetToSign::new(name, answers.negative_ttl_s(), &[&denial]), Of::Name));
    }
    for set in answers.likely_sets(BEFOREHAND_MAX - sets.len()) {
        let records: Vec<&RecordData> = set.records.iter().collect();
        let of = set.set.map_or(Of::Name, Of::Service);
        sets.push((SetToSign::new(&set.owner, set.ttl_s, &records), of));
    }
    sets
}

/// The NSEC record of a name in the zone (RFC 9824 §3).
pub(crate) fn denial_of(answers: &Answers, name: &[u8], client: &Client) -> RecordData {
    let mut types = answers.types_of(name, client).unwrap_or_else(|| vec![Type::NXNAME]);
    types.extend([Type::RRSIG, Type::NSEC]);
    if is_zone(answers, name) {
        types.push(Type::DNSKEY);
    }
    denial(name, &types)
}

/// Whether a name of the zone is the zone itself.
pub(crate) fn is_zone(answers: &Answers, name: &[u8]) -> bool {
    // Its labels take as many bytes as its letters and dots, and one more at each end.
    name.len() == answers.zone().len() + 2
}

fn period(now_s: u32) -> Period {
    Period {
        from_s: now_s.saturating_sub(BEFORE_S),
        until_s: now_s.saturating_add(COUNTS_FOR_S),
    }
}

fn parse_key(text: &str) -> anyhow::Result<Key> {
    let pem = pem::parse(text)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pem.contents(), &SystemRandom::new())
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    // An uncompressed point: 4, x, y.
    let point = pair.public_key().as_ref().split_first().map(|(_, point)| point);
    let point: &[u8; 64] = point.and_then(<[u8]>::first_chunk).context("no point")?;
    Ok(Key {
        public: ZoneKey::new(point),
        pair,
    })
}

/// Signs the answers in force ahead of questions, after each plan and before signatures end. Never returns.
pub async fn keep_signed(signer: Arc<Signer>, responder: Arc<crate::Responder>) {
    let mut changes = responder.changes();
    loop {
        changes.mark_unchanged();
        let answers = responder.answers();
        let is_over = || changes.has_changed().unwrap_or(false);
        if let Some(signed) = signer.sign_ahead(&answers, daemon::clock::now(), is_over).await {
            responder.set_signed(&answers, signed);
        }
        signer
            .metrics
            .signatures_kept
            .set(i64::try_from(signer.kept()).unwrap_or(i64::MAX));
        tokio::time::sleep(PASS_PAUSE).await;
        // The sender lives as long as the responder, which this task holds.
        let _ = tokio::time::timeout(LOOKS_EVERY, changes.changed()).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;
