//! The bench kills or freezes a region while hundreds of callers talk to it, in a world of real processes, and the callers count
//! their losses: once through the edge, whose sessions go on in another region, and once through the peers, in front of the same
//! stack with another one as its backup.
//!
//! The stacks recognise and speak by script: a sound carries its text and a checksum, as a modem's does. Real recognition of 500 people
//! at once does not fit on two cores and is not the subject of this bench; everything else is as in production.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use client::{Call, CallOptions, Pacing, Turn, TurnEnd, Utterance};
use drill::report::percentile;
use futures_util::{StreamExt as _, future::join_all, stream};
use identity::Mode;
use serde::Serialize;
use speech::scripted::sound_of;
use tokio::time::{Instant, sleep_until};
use topology::{Moment, RegionId};
use world::{Engine, World};

use crate::proxies::{Kind, Over, Place, Proxy};

/// Callers at once.
pub(crate) const CALLERS: usize = 500;
/// The region of the callers, the edge near it, and the region that peers use after its loss.
const REGION: &str = "us-east";
pub(crate) const EDGE: &str = "edge-iad";
const BACKUP: &str = "us-west";
/// The edge of the reference caller, whose region sees no fault.
const OTHER_EDGE: &str = "edge-dub";
/// Callers begin to speak at times spread over this duration: people do not speak in step.
const SPREAD: Duration = Duration::from_millis(1_500);
/// The fault comes this long after the first caller began. By then all speak, and none has finished.
const FAULT_AFTER: Duration = Duration::from_millis(2_500);
/// Bytes of a second of the devices' audio, and of a millisecond, the unit in which a stack reports how much it heard.
const BYTES_PER_MS: usize = 48;
/// Longest wait for the end of a reply, much longer than a session needs to go on. A caller that waits longer has lost the session.
const LIMIT: Duration = Duration::from_secs(30);
/// Callers who connect at the same time, before the measurement.
const OPEN_AT_ONCE: usize = 50;

/// The fault of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL: its sockets die.
    Kill,
    /// SIGSTOP: its sockets stay, and send nothing.
    Freeze,
}

/// The callers after a fault.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Callers {
    /// All callers.
    pub(crate) sessions: usize,
    /// Callers who got no reply to their turn on the same connection.
    pub(crate) lost: usize,
    /// The time from the fault to the notice that the session goes on, in milliseconds, for each session that moved.
    pub(crate) resume_ms: Vec<f64>,
    /// Bytes of lost audio: of utterances that the answering region did not hear, and of replies that callers did not hear.
    pub(crate) bytes_lost: usize,
    /// Bytes of audio that a region or a caller heard twice.
    pub(crate) bytes_duplicated: usize,
    /// The number of lost sessions, by reason.
    pub(crate) why: BTreeMap<String, usize>,
}

impl Callers {
    /// A percentile of the time to go on, in milliseconds.
    pub(crate) fn resume_ms(&self, q: f64) -> f64 {
        percentile(&mut self.resume_ms.clone(), q)
    }
}

/// The utterance of every caller, and last that of the reference caller. The bench makes the sounds once, because that takes seconds.
pub(crate) fn utterances() -> Arc<Vec<Utterance>> {
    Arc::new(
        (0..=CALLERS)
            .map(|number| Utterance::from_16k(&sound_of(&words(number))))
            .collect(),
    )
}

/// A world in which hundreds can talk, and a call to another region without a fault, with which the bench compares all others.
pub(crate) struct Scene {
    world: World,
    place: Place,
    options: CallOptions,
    utterances: Arc<Vec<Utterance>>,
    reference: Reference,
}

struct Reference {
    heard: Duration,
    reply: Vec<i16>,
    said_bytes: usize,
}

impl Scene {
    /// Sets the scene. The peers have no certificate and need stacks that admit `Permissive`; edges prove who they are there, and ask the
    /// stacks for their certificates, all the same.
    pub(crate) async fn set(
        place: &Place,
        utterances: &Arc<Vec<Utterance>>,
        stacks_admit: Mode,
    ) -> anyhow::Result<Self> {
        let mut settings = world::Settings::new(place.folder.join("world"));
        settings.engine = Engine::Scripted;
        settings.stacks_admit = stacks_admit;
        let world = World::start(settings).await?;
        let options = CallOptions {
            host: Some(world.layout().topology.zone.clone()),
            turn_end: TurnEnd::Commit,
            turn_timeout: LIMIT,
            ..CallOptions::default()
        };
        let mut scene = Self {
            world,
            place: place.clone(),
            options,
            utterances: utterances.clone(),
            reference: Reference {
                heard: Duration::ZERO,
                reply: Vec::new(),
                said_bytes: 0,
            },
        };
        scene.reference = scene.reference().await?;
        Ok(scene)
    }

    /// A turn without a fault.
    async fn reference(&self) -> anyhow::Result<Reference> {
        let mut call = Call::open(edge_address(&self.world, OTHER_EDGE)?, &self.options).await?;
        let utterance = &self.utterances[CALLERS];
        let turn = call.turn(utterance, Pacing::RealTime).await?;
        call.hang_up().await;
        ensure!(
            turn.transcript == words(CALLERS),
            "the stack heard \"{}\"",
            turn.transcript
        );
        ensure!(!turn.reply_audio.is_empty(), "the stack said nothing");
        Ok(Reference {
            heard: turn.heard.context("the stack does not say how much it heard")?,
            reply: turn.reply_audio,
            said_bytes: utterance.duration().as_millis() as usize * BYTES_PER_MS,
        })
    }

    fn stack(&self, region: &str) -> anyhow::Result<SocketAddr> {
        let region = self.world.layout().topology.regions.get(&RegionId::new(region)?);
        let stack = region.and_then(|region| region.stacks.first());
        stack
            .map(|stack| stack.address)
            .context("the topology of the world has changed")
    }

    /// Plays the fault while all callers talk to the region through a proxy.
    pub(crate) async fn play(&self, kind: Kind, fault: Fault) -> anyhow::Result<Callers> {
        if kind == Kind::Meridian {
            return self.callers(edge_address(&self.world, EDGE)?, fault).await;
        }
        let stacks = [self.stack(REGION)?, self.stack(BACKUP)?];
        let proxy = Proxy::start(kind, &stacks, &self.place).await?;
        let callers = self.callers(proxy.address(Over::Plain), fault).await;
        proxy.stop().await;
        callers
    }

    pub(crate) async fn restore(&self) -> anyhow::Result<()> {
        self.world.restart(REGION).await?;
        Ok(())
    }

    pub(crate) async fn clear(self) {
        // A frozen process does not handle SIGTERM.
        let _ = self.world.kill(REGION).await;
        self.world.shutdown().await;
    }

    async fn callers(&self, address: SocketAddr, fault: Fault) -> anyhow::Result<Callers> {
        let opening = (0..CALLERS).map(|_| Call::open(address, &self.options));
        let calls: Vec<_> = stream::iter(opening).buffer_unordered(OPEN_AT_ONCE).collect().await;
        let calls = calls
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .context("nothing had happened yet")?;
        // The peers do not report the region of a session, but only one region is possible.
        let elsewhere = calls
            .iter()
            .find(|call| call.region().is_some_and(|region| region != REGION));
        ensure!(elsewhere.is_none(), "a session is in {:?}", elsewhere.map(Call::region));
        let began = Instant::now();
        let talking: Vec<_> = calls
            .into_iter()
            .enumerate()
            .map(|(number, call)| {
                let begins = began + SPREAD.mul_f64(number as f64 / CALLERS as f64);
                tokio::spawn(talk(number, call, self.utterances.clone(), begins))
            })
            .collect();
        sleep_until(began + FAULT_AFTER).await;
        let at = match fault {
            Fault::Kill => self.world.kill(REGION).await?,
            Fault::Freeze => {
                let at = daemon::clock::now();
                self.world.stop(REGION).await?;
                at
            }
        };
        let mut callers = Callers::default();
        for ended in join_all(talking).await {
            let (number, result, moved_at) = ended?;
            callers.sessions += 1;
            if let Some(moved_at) = moved_at {
                callers.resume_ms.push(moved_at.since(at).as_secs_f64() * 1e3);
            }
            match result {
                Ok(turn) => self.compare(&mut callers, number, &turn),
                Err(why) => {
                    callers.lost += 1;
                    callers.bytes_lost += self.reference.said_bytes;
                    *callers.why.entry(why).or_default() += 1;
                }
            }
        }
        Ok(callers)
    }

    /// Counts the audio that is missing in a turn, and the audio that is in it twice, in bytes.
    fn compare(&self, callers: &mut Callers, number: usize, turn: &Turn) {
        let heard = turn.heard.unwrap_or_default();
        let bytes = |length: Duration| length.as_millis() as usize * BYTES_PER_MS;
        callers.bytes_lost += bytes(self.reference.heard.saturating_sub(heard));
        callers.bytes_duplicated += bytes(heard.saturating_sub(self.reference.heard));
        if turn.transcript != words(number) && heard == self.reference.heard {
            // The length is right and the content is not, so none of the audio counts.
            callers.bytes_lost += self.reference.said_bytes;
        }
        let (lost, duplicated) = difference(&self.reference.reply, &turn.reply_audio);
        callers.bytes_lost += 2 * lost;
        callers.bytes_duplicated += 2 * duplicated;
    }
}

/// The address of devices at an edge of a world.
pub(crate) fn edge_address(world: &World, name: &str) -> anyhow::Result<SocketAddr> {
    let mut edges = world.layout().topology.edges.values();
    let edge = edges.find(|edge| edge.id.as_str() == name);
    let edge = edge.context("the topology of the world has changed")?;
    let address = edge.addresses.first().context("an edge has an address")?;
    Ok((*address, edge.port).into())
}

/// Missing and surplus samples of a recording: the rest of the expected and of the heard audio after their common beginning and end are
/// removed.
fn difference(said: &[i16], heard: &[i16]) -> (usize, usize) {
    let begin = said.iter().zip(heard).take_while(|(said, heard)| said == heard).count();
    let (said, heard) = (&said[begin..], &heard[begin..]);
    let end = said
        .iter()
        .rev()
        .zip(heard.iter().rev())
        .take_while(|(said, heard)| said == heard)
        .count();
    (said.len() - end, heard.len() - end)
}

/// The result of one caller: the reply, and the time at which the session went on elsewhere.
async fn talk(
    number: usize,
    mut call: Call,
    utterances: Arc<Vec<Utterance>>,
    begins: Instant,
) -> (usize, Result<Turn, String>, Option<Moment>) {
    sleep_until(begins).await;
    let turn = call.turn(&utterances[number], Pacing::RealTime).await;
    let moved_at = call.take_moves().first().map(|moved| moved.at);
    if turn.is_ok() {
        call.hang_up().await;
    }
    (number, turn.map_err(|error| error.to_string()), moved_at)
}

/// The words of a caller: as long as those of every other caller, and different. Speaking them takes four seconds.
fn words(number: usize) -> String {
    format!(
        "this is caller {number:05} who has something to say that nobody understands because it makes no sense at all whatsoever"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_came_twice_is_counted() {
        let said = [1, 2, 3, 4, 5, 6];
        assert_eq!(difference(&said, &said), (0, 0));
        assert_eq!(difference(&said, &[1, 2, 5, 6]), (2, 0));
        assert_eq!(difference(&said, &[1, 2, 3, 2, 3, 4, 5, 6]), (0, 2));
        assert_eq!(difference(&said, &[]), (6, 0));
        assert_eq!(difference(&said, &[1, 2, 9, 4, 5, 6]), (1, 1));
    }

    #[test]
    fn callers_say_things_of_one_length() {
        assert_eq!(words(0).len(), words(CALLERS).len());
        let seconds = Utterance::from_16k(&sound_of(&words(7))).duration();
        assert!(
            (FAULT_AFTER + Duration::from_secs(1)..FAULT_AFTER + SPREAD + Duration::from_secs(1)).contains(&seconds)
        );
    }
}
