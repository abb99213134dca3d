//! Certificates: an authority in a folder, leaves for processes, trusted roots, and the credential of the person at the terminal.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use api::{Operator, v1};
use clap::{Args, Subcommand};
use identity::{
    Grant, OperatorRole, PeerId, Role,
    ca::{self, Leaf},
    certificate::{self, Summary},
    files::{self, Files},
};
use topology::Moment;
use world::authority::{Folder, operator_folder, operator_leaf, person};

use crate::{
    exit::Failure,
    join,
    length::parse_length,
    output::print,
    present::{plain, span, table},
    role::parse_role,
    texts,
};

/// Longest life of a credential for emergencies. Seals are looked at when it is made anew.
const BREAK_GLASS_MAX: Duration = Duration::from_secs(90 * 86_400);

#[derive(Debug, Subcommand)]
pub(crate) enum CertVerb {
    /// Make a certificate authority: a root for ten years, and an issuer under it for one.
    CreateCa {
        /// Folder for it. Keep root.key offline, and issuer.key where certificates are issued.
        dir: PathBuf,
        /// The zone of the deployment, as in topology.toml: the trust domain of every id.
        #[arg(long)]
        zone: String,
    },
    /// Issue a certificate with a new key.
    Issue {
        /// The process that gets it: edge/NAME, dns/NAME, control-plane/NAME, stack/REGION/NAME or etcd/NAME.
        #[arg(value_name = "KIND/NAME", value_parser = parse_role)]
        role: Role,
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Folder for identity.crt, identity.key and trust.crt.
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
        /// An address of a member of etcd: the one at which it listens, and the one from which it calls others. Only etcd needs addresses.
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// Life of the certificate; by default 24 hours.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        life: Option<Duration>,
    },
    /// Issue a certificate anew under the same authority, with the same id and a new key, also when it has expired. The process that
    /// uses it takes the new one within seconds.
    Renew {
        /// Folder of the identity.
        dir: PathBuf,
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Life of the certificate; by default 24 hours.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        life: Option<Duration>,
    },
    /// Make a token with which one new process joins, once, within minutes. Needs the role admin.
    Token(join::MakeToken),
    /// Make the credential for emergencies: it may do everything, for weeks, and each use is an alarm. Seal it (docs/security.md).
    BreakGlass {
        /// Its name in the audit log, such as safe-1.
        name: String,
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Folder for the credential, on the medium that is sealed.
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
        /// Life of the credential, at most 90d.
        #[arg(long = "for", value_name = "TIME", default_value = "30d", value_parser = parse_length)]
        life: Duration,
    },
    /// Join a deployment with a token: make a key here, show the token to a control plane, and get a certificate and the roots to trust.
    Join(join::Join),
    /// Make the next issuer of an authority. Needs root.key, once a year; all certificates of the old issuer stay valid.
    NextIssuer {
        /// Folder of the authority.
        dir: PathBuf,
    },
    /// Trust another root, or no longer trust one.
    Trust {
        #[command(subcommand)]
        verb: TrustVerb,
    },
    /// List the certificates in files or folders, with the ends of their lives.
    List {
        /// Files, or folders with *.crt files.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrustVerb {
    /// Add the roots in a file to a bundle. Do this everywhere before you issue a certificate under them.
    Add {
        /// File with the new roots.
        root: PathBuf,
        /// The bundle to change.
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
    },
    /// Remove a root from a bundle. Refused while a connected node or a stack still shows a certificate under it.
    Remove {
        /// Fingerprint of the root, as `meridian cert list` shows it.
        fingerprint: String,
        /// The bundle to change.
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
        /// Remove it even if nodes or stacks still show it, and without asking a control plane: for a root whose key was stolen. Nodes under it
        /// lose their connections, and go on serving by their last plan.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Your name, for the audit log; your login name by default.
    #[arg(default_value_t = person())]
    name: String,
    /// Roles of the credential, separated by commas: viewer, operator, approver, admin; with or without regions, as in
    /// operator@us-*.
    #[arg(long, value_name = "ROLE,...", value_parser = parse_grants, required_unless_present_any = ["token", "oidc"])]
    roles: Option<Grants>,
    /// Log in at a control plane with a token of operators.toml instead, which says name and roles; `-` reads it from standard input.
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["roles", "ca", "life"])]
    pub(crate) token: Option<String>,
    /// Log in at the identity provider of the deployment instead: sign in with a browser on any device. It says name and roles.
    #[arg(long, requires = "root", conflicts_with_all = ["roles", "ca", "life", "token"])]
    pub(crate) oidc: bool,
    /// With --oidc: file with the root of the control planes, such as root.crt of the authority.
    #[arg(long, value_name = "FILE", requires = "oidc")]
    pub(crate) root: Option<PathBuf>,
    /// Folder of the authority; by default the running world's.
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Folder for the credential; by default operators/NAME in the state folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) into: Option<PathBuf>,
    /// Life of the credential, at most 12h, which is the default.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
    life: Option<Duration>,
}

/// The value of `--roles`: a list is one value.
#[derive(Debug, Clone)]
struct Grants(Vec<Grant>);

fn parse_grants(text: &str) -> Result<Grants, String> {
    match Grant::list_to_log_in(text)? {
        grants if grants.is_empty() => Err("the list is empty; write at least viewer".to_owned()),
        grants => Ok(Grants(grants)),
    }
}

/// Issues the credential of a person.
pub(crate) fn login(login: Login, state_dir: &Path) -> Result<ExitCode, Failure> {
    let Login {
        name,
        roles,
        ca,
        into,
        life,
        ..
    } = login;
    let grants = roles.map(|Grants(grants)| grants).unwrap_or_default();
    let folder = ca.map_or_else(|| Folder::of_world(state_dir), Folder::at);
    let mut leaf = operator_leaf(&zone_of(&folder)?, &name, grants).map_err(failed)?;
    if let Some(life) = life {
        if life > ca::OPERATOR_LIFE {
            return Err(Failure::usage(texts::credential_life_too_long()));
        }
        leaf.life = life;
    }
    let into = into.unwrap_or_else(|| operator_folder(state_dir, &name));
    // An absolute path: people type the line below in any folder.
    let into = std::path::absolute(&into).with_context(|| format!("cannot use {}", into.display()))?;
    let now = daemon::clock::now();
    folder.issue(&leaf, &into, now).map_err(failed)?;
    let roles: Vec<String> = leaf.grants.iter().map(ToString::to_string).collect();
    print(&format!(
        "{name} has the roles {} until {:#} UTC\nexport MERIDIAN_IDENTITY='{}'",
        roles.join(", "),
        now + leaf.life,
        into.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Carries out a command about certificates. `operator` reaches the control planes, if any are known.
pub(crate) async fn cert(verb: CertVerb, operator: Option<Operator>) -> Result<ExitCode, Failure> {
    let now = daemon::clock::now();
    match verb {
        CertVerb::CreateCa { dir, zone } => {
            let folder = Folder::at(dir.clone());
            let [root, _] = folder.root();
            if root.exists() {
                return Err(Failure::failed(texts::authority_exists(&dir)));
            }
            // The command refuses a name that no id can have now, and not with the first certificate.
            PeerId::new(&zone, Role::Edge("name".to_owned()))
                .map_err(|_| Failure::usage(texts::zone_is_malformed(&zone)))?;
            folder.create(&zone, now).map_err(failed)?;
            print(&format!(
                "{} holds the authority of {zone}\nmove root.key to a place without a network; issuer.key signs for a year",
                dir.display()
            ));
        }
        CertVerb::Issue {
            role,
            ca,
            into,
            addresses,
            life,
        } => {
            if matches!(role, Role::Etcd(_)) == addresses.is_empty() {
                return Err(Failure::usage(texts::addresses_are_for_etcd()));
            }
            let folder = Folder::at(ca);
            let id = PeerId::new(&zone_of(&folder)?, role).map_err(failed)?;
            let leaf = Leaf {
                addresses,
                ..Leaf::of(id)
            };
            issue(&folder, leaf, life, &into, now)?;
        }
        CertVerb::Renew { dir, ca, life } => {
            let files = Files::in_folder(&dir);
            let old = files::read(&files.certificate).map_err(failed)?;
            let folder = Folder::at(ca);
            let roots = files::read(&folder.trust()).map_err(failed)?;
            // The folder of a renewal may contain anything.
            let peer = certificate::verified(&old, &roots, now)
                .ok_or_else(|| texts::not_of_this_authority(&files.certificate))?;
            if let Role::Operator(name) = &peer.id.role {
                return Err(Failure::failed(texts::operators_log_in(name)));
            }
            let leaf = Leaf {
                addresses: ca::addresses_of(&old),
                ..Leaf::of(peer.id)
            };
            issue(&folder, leaf, life, &dir, now)?;
        }
        CertVerb::NextIssuer { dir } => {
            let folder = Folder::at(dir.clone());
            folder.next_issuer(&zone_of(&folder)?, now).map_err(failed)?;
            print(&format!(
                "{} has the next issuer for a year; copy issuer.crt and issuer.key to the control planes that sign, and put root.key away",
                dir.display()
            ));
        }
        CertVerb::BreakGlass { name, ca, into, life } => {
            if life > BREAK_GLASS_MAX {
                return Err(Failure::usage(texts::sealed_too_long()));
            }
            let folder = Folder::at(ca);
            let grants = vec![Grant::everywhere(OperatorRole::BreakGlass)];
            let leaf = operator_leaf(&zone_of(&folder)?, &name, grants).map_err(failed)?;
            issue(&folder, leaf, Some(life), &into, now)?;
            print("seal it: whoever holds this folder may do everything, and each use is an alarm");
        }
        CertVerb::Trust { verb } => trust(verb, operator).await?,
        CertVerb::Token(_) | CertVerb::Join(_) => unreachable!("they were carried out elsewhere"),
        CertVerb::List { paths } => print(&list(&paths, now)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn issue(folder: &Folder, mut leaf: Leaf, life: Option<Duration>, into: &Path, now: Moment) -> Result<(), Failure> {
    leaf.life = life.unwrap_or(leaf.life);
    folder.issue(&leaf, into, now).map_err(failed)?;
    print(&format!(
        "{} until {:#} UTC, in {}",
        leaf.id,
        now + leaf.life,
        into.display()
    ));
    Ok(())
}

async fn trust(verb: TrustVerb, operator: Option<Operator>) -> Result<(), Failure> {
    match verb {
        TrustVerb::Add { root, trust } => {
            let new = certificate::summaries(&files::read(&root).map_err(failed)?);
            if new.is_empty() {
                return Err(Failure::failed(texts::no_certificate(&root)));
            }
            let mut roots = bundle(&trust)?;
            for root in new {
                if !roots.iter().any(|known| known.fingerprint == root.fingerprint) {
                    roots.push(root);
                }
            }
            write_bundle(&trust, &roots)
        }
        TrustVerb::Remove {
            fingerprint,
            trust,
            force,
        } => {
            let mut roots = bundle(&trust)?;
            let before = roots.len();
            roots.retain(|root| root.fingerprint != fingerprint);
            if roots.len() == before {
                let known: Vec<&str> = roots.iter().map(|root| root.fingerprint.as_str()).collect();
                return Err(Failure::failed(texts::no_such_root(&trust, &fingerprint, &known)));
            }
            if roots.is_empty() {
                return Err(Failure::failed(texts::only_root()));
            }
            if !force {
                refuse_while_shown(&fingerprint, operator).await?;
            }
            write_bundle(&trust, &roots)
        }
    }
}

/// Refuses to remove a root while a connected node or a stack shows a certificate under it.
async fn refuse_while_shown(fingerprint: &str, operator: Option<Operator>) -> Result<(), Failure> {
    let operator = operator.ok_or_else(|| texts::root_is_unchecked("no control plane is known"))?;
    let status = operator
        .status()
        .await
        .map_err(|error| Failure::unreachable(texts::root_is_unchecked(error)))?;
    let shown = rest_on(&status, fingerprint);
    if shown.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(texts::root_is_shown(&shown, fingerprint)))
}

/// The connected nodes, and the stacks, that show a certificate under this root.
fn rest_on<'s>(status: &'s v1::StatusReply, fingerprint: &str) -> Vec<&'s str> {
    let nodes = status.nodes.iter().filter(|node| node.connected);
    let nodes = nodes.map(|node| (&node.root, node.node.as_str()));
    let stacks = status.stacks.iter().map(|stack| (&stack.root, stack.id.as_str()));
    let shown = nodes.chain(stacks).filter(|(root, _)| *root == fingerprint);
    shown.map(|(_, name)| name).collect()
}

fn bundle(path: &Path) -> Result<Vec<Summary>, Failure> {
    let text = files::read(path).map_err(failed)?;
    let roots = certificate::summaries(&text);
    if roots.len() < text.matches("-----BEGIN CERTIFICATE-----").count() {
        return Err(Failure::failed(texts::unreadable_certificate(path)));
    }
    if roots.is_empty() {
        return Err(Failure::failed(texts::no_certificate(path)));
    }
    Ok(roots)
}

fn write_bundle(path: &Path, roots: &[Summary]) -> Result<(), Failure> {
    let text: String = roots.iter().map(|root| root.pem.as_str()).collect();
    files::write(path, &text, 0o644).map_err(failed)?;
    let names: Vec<String> = roots
        .iter()
        .map(|root| format!("  {} {}", root.fingerprint, root.name))
        .collect();
    print(&format!("{} now trusts\n{}", path.display(), names.join("\n")));
    Ok(())
}

fn list(paths: &[PathBuf], now: Moment) -> Result<String, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut here: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        here.retain(|path| path.extension().is_some_and(|it| it == "crt"));
        here.sort();
        found.extend(here);
    }
    let mut shown = table(["FILE", "NAME", "ROLES", "FINGERPRINT", "UNTIL", "LEFT"]);
    for path in found {
        let certificates = certificate::summaries(&files::read(&path).map_err(failed)?);
        if certificates.is_empty() {
            return Err(Failure::failed(texts::no_certificate(&path)));
        }
        for it in certificates {
            let left = match it.until.since(now) {
                Duration::ZERO => "expired".to_owned(),
                left => span(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            };
            let until = format!("{:#}", it.until);
            shown.add_row([
                path.display().to_string(),
                it.name,
                it.roles,
                it.fingerprint,
                until,
                left,
            ]);
        }
    }
    Ok(plain(&shown))
}

/// The zone of an authority, from its own names.
fn zone_of(folder: &Folder) -> Result<String, Failure> {
    let [issuer, _] = folder.issuer();
    let text = files::read(&issuer).map_err(failed)?;
    let seen = certificate::summaries(&text);
    let zone = seen.first().and_then(|it| {
        let rest = it.name.strip_prefix("Meridian issuer of ")?;
        Some(rest.split(',').next()?.to_owned())
    });
    zone.ok_or_else(|| Failure::failed(texts::not_an_issuer(&issuer)))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::failed(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_in_use_by_connected_nodes_and_by_stacks() {
        let node = |name: &str, root: &str, connected| v1::NodeStatus {
            node: name.into(),
            root: root.into(),
            connected,
            ..Default::default()
        };
        let stack = |id: &str, root: &str| v1::StackStatus {
            id: id.into(),
            root: root.into(),
            ..Default::default()
        };
        let status = v1::StatusReply {
            nodes: vec![
                node("edge-dub", "old", true),
                node("edge-iad", "new", true),
                node("edge-gone", "old", false),
            ],
            stacks: vec![stack("stack/us-east/a", "old"), stack("stack/us-west/a", "new")],
            ..Default::default()
        };
        assert_eq!(rest_on(&status, "old"), ["edge-dub", "stack/us-east/a"]);
        assert_eq!(rest_on(&status, "new"), ["edge-iad", "stack/us-west/a"]);
        assert!(rest_on(&status, "other").is_empty());
    }
}
