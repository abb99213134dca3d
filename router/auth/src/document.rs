//! The document that names tenants, keys and what was revoked (`devices.toml`). Fleet management distributes it to every edge.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};
use topology::{
    Moment,
    document::{self, Guide},
};

use crate::{Credential, Denied, Device};

/// Longest name of a tenant, in bytes.
const TENANT_BYTES_MAX: usize = 64;
/// Most keys of one device: the old one, and the new one that it gets.
const KEYS_PER_DEVICE: usize = 2;
/// Longest name of a key or a user that is stored, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 128;

/// The content of the document.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    tenants: BTreeMap<Arc<str>, Tenant>,
    keys: HashMap<[u8; 32], Key>,
    revoked: Revoked,
}

/// One tenant, and how much of an edge its devices may use together. Each edge counts for itself. 0: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Unique.
    pub name: Arc<str>,
    /// Most live sessions at once.
    #[serde(default)]
    pub sessions_max: u32,
    /// Most requests and new sessions per minute; so many may come at once.
    #[serde(default)]
    pub requests_per_minute: u32,
    /// Most bytes that its devices send in a day (UTC), in sessions and in requests. An hour of 24 kHz PCM in Realtime has 230 MB.
    #[serde(default)]
    pub bytes_per_day: u64,
}

/// One key. The document has its hash, so whoever reads the document cannot use it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The device's name, also in logs. Two keys may have the same one while the key of a device is exchanged; its sessions stay
    /// its own.
    pub name: Arc<str>,
    /// The tenant.
    pub tenant: Arc<str>,
    /// SHA-256 of the key.
    #[serde(deserialize_with = "sha256")]
    pub sha256: [u8; 32],
    /// End of its life, as in `"2027-03-01T00:00:00Z"`. Without it the key has none.
    #[serde(default, deserialize_with = "moment")]
    pub expires: Option<Moment>,
}

/// Everything that was revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revoked {
    keys: HashSet<Arc<str>>,
    tokens: HashSet<Arc<str>>,
    users: HashSet<(Option<Arc<str>>, Arc<str>)>,
    tenants: HashSet<Arc<str>>,
}

/// The document as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    tenant: Vec<Tenant>,
    #[serde(default)]
    key: Vec<Key>,
    #[serde(default)]
    revoked: Vec<WrittenRevoked>,
}

/// One revocation: exactly one of the first three, or a tenant alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRevoked {
    /// The name of a key.
    key: Option<Arc<str>>,
    /// `jti` of a token.
    token: Option<Arc<str>>,
    /// `sub` of tokens; of this tenant only, if one is named.
    user: Option<Arc<str>>,
    tenant: Option<Arc<str>>,
}

impl Devices {
    /// Reads the document. Problems mention `name` as the file, with the line of each.
    ///
    /// # Errors
    ///
    /// The text is no TOML, has unknown keys, names something twice, or names a tenant that it does not have.
    pub fn parse(name: &str, text: &str) -> Result<Self, topology::Problems> {
        let written: Written = document::parse(name, text, Guide::default(), |written: &Written| problems(written))?;
        let mut revoked = Revoked::default();
        for entry in written.revoked {
            match entry {
                WrittenRevoked { key: Some(key), .. } => drop(revoked.keys.insert(key)),
                WrittenRevoked { token: Some(token), .. } => drop(revoked.tokens.insert(token)),
                WrittenRevoked {
                    user: Some(user),
                    tenant,
                    ..
                } => drop(revoked.users.insert((tenant, user))),
                WrittenRevoked {
                    tenant: Some(tenant), ..
                } => drop(revoked.tenants.insert(tenant)),
                // `problems` refused it.
                WrittenRevoked { .. } => {}
            }
        }
        Ok(Self {
            tenants: written.tenant.into_iter().map(|it| (it.name.clone(), it)).collect(),
            keys: written.key.into_iter().map(|key| (key.sha256, key)).collect(),
            revoked,
        })
    }

    /// The device that shows this key.
    ///
    /// # Errors
    ///
    /// The key is unknown, has expired or was revoked. How long the answer takes says nothing about known keys: their hashes are
    /// compared, and nobody can choose a hash.
    pub fn recognise(&self, key: &str, now: Moment) -> Result<Device, Denied> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let key = self.keys.get(&hash).ok_or(Denied::UnknownKey)?;
        if key.expires.is_some_and(|expires| expires <= now) {
            return Err(Denied::Expired);
        }
        let device = Device {
            tenant: key.tenant.clone(),
            name: key.name.clone(),
            credential: Credential::Key(hash),
            until: key.expires,
        };
        self.permits(&device)?;
        Ok(device)
    }

    /// Whether a device that was recognised is still welcome.
    ///
    /// # Errors
    ///
    /// It was revoked, or its tenant or key is no longer in the document.
    pub fn permits(&self, device: &Device) -> Result<(), Denied> {
        if !self.tenants.contains_key(&device.tenant) {
            return Err(Denied::UnknownTenant);
        }
        if self.revoked.has(device) {
            return Err(Denied::Revoked);
        }
        if let Credential::Key(hash) = &device.credential {
            // A key that was exchanged is another one, though its name is the same.
            let key = self.keys.get(hash).ok_or(Denied::UnknownKey)?;
            if key.name != device.name || key.tenant != device.tenant {
                return Err(Denied::UnknownKey);
            }
        }
        Ok(())
    }

    /// All tenants, by name.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// Revoked names that are no key or tenant of the document: perhaps a slip of the pen, or a key that was removed too.
    pub fn revoked_in_vain(&self) -> Vec<&str> {
        let known: HashSet<&Arc<str>> = self.keys.values().map(|key| &key.name).collect();
        let keys = self.revoked.keys.iter().filter(|name| !known.contains(name));
        let tenants = self.revoked.tenants.iter();
        let tenants = tenants.filter(|name| !self.tenants.contains_key(*name));
        let mut names: Vec<&str> = keys.chain(tenants).map(|name| &**name).collect();
        names.sort_unstable();
        names
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Revoked {
    fn has(&self, device: &Device) -> bool {
        let is_revoked = match &device.credential {
            Credential::Key(_) => self.keys.contains(&device.name),
            Credential::Token(jti) => {
                let user = |tenant| self.users.contains(&(tenant, device.name.clone()));
                jti.as_ref().is_some_and(|jti| self.tokens.contains(jti))
                    || user(None)
                    || user(Some(device.tenant.clone()))
            }
        };
        is_revoked || self.tenants.contains(&device.tenant)
    }
}

fn is_tenant_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=TENANT_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_part)
}

fn problems(written: &Written) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut tenants = HashSet::new();
    let name_problem = |name: &str| {
        let is_good = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(char::is_control);
        (!is_good).then(|| format!("write a name of 1 to {NAME_BYTES_MAX} bytes without control characters"))
    };
    if written.tenant.is_empty() {
        // Half of a file, or an empty one: nobody means that.
        problems.push((
            "tenant".to_owned(),
            "there is none, so nobody could use the service; add a [[tenant]]".to_owned(),
        ));
    }
    for (at, tenant) in written.tenant.iter().enumerate() {
        let key = format!("tenant[{at}].name");
        if !is_tenant_name(&tenant.name) {
            let problem =
                format!("write 1 to {TENANT_BYTES_MAX} letters, digits, '-', '_' and '.', which fit into a header");
            problems.push((key, problem));
        } else if !tenants.insert(&tenant.name) {
            problems.push((key, format!("tenant {} is there twice; keep one", tenant.name)));
        }
    }
    let (mut names, mut hashes) = (HashMap::<&Arc<str>, Vec<&Arc<str>>>::new(), HashSet::new());
    for (at, key) in written.key.iter().enumerate() {
        let place = |field| format!("key[{at}].{field}");
        if let Some(problem) = name_problem(&key.name) {
            problems.push((place("name"), problem));
        } else {
            let tenants = names.entry(&key.name).or_default();
            tenants.push(&key.tenant);
            if tenants.len() > KEYS_PER_DEVICE || tenants[0] != &key.tenant {
                let problem = format!(
                    "key {} is there {} times; a device has two keys of one tenant at most, and only while its key is exchanged: give \
                     one another name",
                    key.name,
                    tenants.len()
                );
                problems.push((place("name"), problem));
            }
        }
        if !hashes.insert(&key.sha256) {
            problems.push((
                place("sha256"),
                format!("key {} is the same key as another; make a new one", key.name),
            ));
        }
        if !tenants.contains(&key.tenant) {
            problems.push((
                place("tenant"),
                format!(
                    "no [[tenant]] is named {}; add it, or name one that is there",
                    key.tenant
                ),
            ));
        }
    }
    for (at, entry) in written.revoked.iter().enumerate() {
        let named = [&entry.key, &entry.token, &entry.user];
        let is_good = match named.into_iter().flatten().count() {
            0 => entry.tenant.is_some(),
            1 => entry.tenant.is_none() || entry.user.is_some(),
            _ => false,
        };
        if !is_good {
            problems.push((
                format!("revoked[{at}]"),
                "write one of key, token, user (with or without its tenant) or tenant".to_owned(),
            ));
        }
    }
    problems
}

fn sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    use serde::de::Error as _;
    let text = String::deserialize(deserializer)?;
    let mut hash = [0; 32];
    // The text may be a key that somebody wrote here by mistake, so no error repeats it.
    hex::decode_to_slice(&text, &mut hash).map_err(|_| {
        D::Error::custom("not the SHA-256 of a key in hex; make one with `meridian device-key NAME --tenant TENANT`")
    })?;
    Ok(hash)
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Moment>, D::Error> {
    use serde::de::Error as _;
    let text = String::deserialize(deserializer)?;
    let at: jiff::Timestamp = text
        .parse()
        .map_err(|_| D::Error::custom("not a time; write one as in \"2027-03-01T00:00:00Z\""))?;
    Ok(Some(Moment(u64::try_from(at.as_millisecond()).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "sesame".
    fn hash(key: &str) -> String {
        hex::encode(Sha256::digest(key))
    }

    fn document(more: &str) -> String {
        format!(
            "[[tenant]]\nname = \"acme\"\nsessions_max = 10\n\n[[key]]\nname = \"kitchen\"\ntenant = \"acme\"\nsha256 = \"{}\"\n\
             expires = \"2027-03-01T00:00:00Z\"\n\n[[key]]\nname = \"hall\"\ntenant = \"acme\"\nsha256 = \"{}\"\n{more}",
            hash("sesame"),
            hash("open")
        )
    }

    const NOW: Moment = Moment(1_796_000_000_000);

    #[test]
    fn a_key_is_recognised_by_its_hash_until_it_expires_or_is_revoked() {
        let devices = Devices::parse("devices.toml", &document("")).unwrap();
        let device = devices.recognise("sesame", NOW).unwrap();
        assert_eq!((&*device.tenant, &*device.name), ("acme", "kitchen"));
        assert_eq!(devices.recognise("Sesame", NOW), Err(Denied::UnknownKey));
        assert_eq!(devices.recognise(&hash("sesame"), NOW), Err(Denied::UnknownKey));
        let march: jiff::Timestamp = "2027-03-01T00:00:00Z".parse().unwrap();
        let march = Moment(march.as_millisecond() as u64);
        assert_eq!(devices.recognise("sesame", march), Err(Denied::Expired));
        assert!(devices.recognise("open", march).is_ok(), "no end was written");

        let revoked = document("[[revoked]]\nkey = \"kitchen\"\n");
        let revoked = Devices::parse("devices.toml", &revoked).unwrap();
        assert_eq!(revoked.permits(&device), Err(Denied::Revoked));
        assert!(revoked.recognise("open", NOW).is_ok());
        let without = Devices::parse("devices.toml", "[[tenant]]\nname = \"acme\"\n").unwrap();
        assert_eq!(without.permits(&device), Err(Denied::UnknownKey), "its key was removed");
        let exchanged = document("").replace(&hash("sesame"), &hash("another"));
        let exchanged = Devices::parse("devices.toml", &exchanged).unwrap();
        assert_eq!(exchanged.permits(&device), Err(Denied::UnknownKey), "a thief had it");
        let again = exchanged.recognise("another", NOW).unwrap();
        assert_eq!(again.holder(), device.holder(), "its sessions stay its own");
        assert_eq!(Devices::default().permits(&device), Err(Denied::UnknownTenant));
    }

    #[test]
    fn a_user_is_revoked_everywhere_or_in_one_tenant() {
        let device = |tenant: &str, jti: Option<&str>| Device {
            tenant: tenant.into(),
            name: "ada".into(),
            credential: Credential::Token(jti.map(Into::into)),
            until: None,
        };
        let denied = |entry: &str, device: &Device| {
            let text = format!("[[tenant]]\nname = \"acme\"\n[[tenant]]\nname = \"bolt\"\n[[revoked]]\n{entry}\n");
            Devices::parse("devices.toml", &text).unwrap().permits(device).err()
        };
        let (acme, bolt) = (device("acme", Some("7")), device("bolt", None));
        assert_eq!(denied("user = \"ada\"", &acme), Some(Denied::Revoked));
        assert_eq!(denied("user = \"ada\"", &bolt), Some(Denied::Revoked));
        let in_acme = "user = \"ada\"\ntenant = \"acme\"";
        assert_eq!(
            (denied(in_acme, &acme), denied(in_acme, &bolt)),
            (Some(Denied::Revoked), None)
        );
        assert_eq!(denied("token = \"7\"", &acme), Some(Denied::Revoked));
        assert_eq!(denied("token = \"7\"", &bolt), None);
        assert_eq!(denied("tenant = \"bolt\"", &bolt), Some(Denied::Revoked));
        // A key of the same name is another device.
        let key = Device {
            credential: Credential::Key([0; 32]),
            ..acme.clone()
        };
        assert_ne!(denied("user = \"ada\"", &key), Some(Denied::Revoked));
        assert_ne!(key.holder(), acme.holder());
    }

    /// A further key.
    fn another(name: &str, tenant: &str, key: &str) -> String {
        format!(
            "[[key]]\nname = \"{name}\"\ntenant = \"{tenant}\"\nsha256 = \"{}\"\n",
            hash(key)
        )
    }

    #[test]
    fn a_device_has_two_keys_while_its_key_is_exchanged_and_stays_the_same_device() {
        let both = Devices::parse("devices.toml", &document(&another("kitchen", "acme", "new"))).unwrap();
        let (old, new) = (
            both.recognise("sesame", NOW).unwrap(),
            both.recognise("new", NOW).unwrap(),
        );
        assert_eq!(old.holder(), new.holder(), "its sessions are its own with either key");
        let text = document(&another("kitchen", "acme", "new")).replace(&hash("sesame"), &hash("other"));
        let later = Devices::parse("devices.toml", &text).unwrap();
        assert_eq!(later.permits(&old), Err(Denied::UnknownKey), "the old key is gone");
        later.permits(&new).unwrap();
        let text = document(&(another("kitchen", "acme", "new") + "[[revoked]]\nkey = \"kitchen\"\n"));
        let revoked = Devices::parse("devices.toml", &text).unwrap();
        for device in [&old, &new] {
            assert_eq!(revoked.permits(device), Err(Denied::Revoked), "a name revokes both");
        }
    }

    #[test]
    fn each_mistake_is_named_with_its_line_and_no_key_is_repeated() {
        let problem = |text: &str| Devices::parse("devices.toml", text).unwrap_err().to_string();
        let wrong = [
            (
                "[[key]]\nname = \"a\"\ntenant = \"acme\"\nsha256 = \"sesame\"\n",
                "SHA-256",
            ),
            ("", "nobody could use the service"),
            (
                &document("[[revoked]]\nuser = \"ada\"\ntoken = \"7\"\n"),
                "write one of key",
            ),
            (&document("[[revoked]]\n"), "write one of key"),
            (&document("[[tenant]]\nname = \"acme\"\n"), "twice"),
            (
                &document(&(another("kitchen", "acme", "x") + &another("kitchen", "acme", "y"))),
                "3 times",
            ),
            (
                &document(&format!(
                    "[[tenant]]\nname = \"ache\"\n{}",
                    another("kitchen", "ache", "x")
                )),
                "two keys of one tenant",
            ),
            (
                &document(&format!(
                    "[[key]]\nname = \"attic\"\ntenant = \"acme\"\nsha256 = \"{}\"\n",
                    hash("open")
                )),
                "same key",
            ),
            (
                &document(&format!(
                    "[[key]]\nname = \"attic\"\ntenant = \"ache\"\nsha256 = \"{}\"\n",
                    hash("x")
                )),
                "ache",
            ),
            (&document("expires = \"tomorrow\"\n"), "2027-03-01T00:00:00Z"),
            (&document("colour = 1\n"), "colour"),
        ];
        for (text, says) in wrong {
            let problem = problem(text);
            assert!(
                problem.contains(says) && problem.starts_with("devices.toml:"),
                "{problem}"
            );
            assert!(!problem.contains("sesame"), "{problem}");
        }
    }
}
