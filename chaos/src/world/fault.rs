//! What can be broken, as values: each says for how long, and mends itself.

mod kind;

use std::time::Duration;

use meridian_types::{Policy, ShardId};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

pub(crate) use self::kind::WITHIN_DRIFT_PPM;
use super::disk::Keep;
use super::network::Place;
use super::planet::Planet;
use super::replication::intake::SKEW_MS_MAX;
use crate::check::Assumption;
use crate::trace::Fact;

/// How a primary is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Its nodes are gone at once.
    Crash,
    /// Its nodes are cut off from all others, not from each other; its clients still reach them.
    Cut,
}

/// Something that breaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// A node is gone at once, and starts again after a while.
    Crash {
        /// Which.
        node: usize,
        /// What its disk keeps of what was not synced.
        keep: Keep,
        /// How long it is away.
        #[serde(with = "ms", rename = "away_ms")]
        away: Duration,
    },
    /// Every node of a region is gone at once.
    CrashRegion {
        /// A node of it.
        node: usize,
        /// What the disks keep of what was not synced.
        keep: Keep,
        /// How long.
        #[serde(with = "ms", rename = "away_ms")]
        away: Duration,
    },
    /// The node that leads a shard in a region by then is gone at once.
    CrashLeader {
        /// A node of the region.
        node: usize,
        /// Of which shard.
        shard: u16,
        /// What its disk keeps of what was not synced.
        keep: Keep,
        /// How long it is away.
        #[serde(with = "ms", rename = "away_ms")]
        away: Duration,
    },
    /// A node is gone for good, and its disk with it. Others of its region hold what it held.
    LoseNode {
        /// Which.
        node: usize,
    },
    /// Nothing breaks: a node is told to stop, and starts again after a while.
    Stop {
        /// Which.
        node: usize,
        /// How long it is away.
        #[serde(with = "ms", rename = "away_ms")]
        away: Duration,
    },
    /// Every node is gone at once.
    Blackout {
        /// What the disks keep of what was not synced.
        keep: Keep,
        /// How long.
        #[serde(with = "ms", rename = "away_ms")]
        away: Duration,
    },
    /// Nothing passes from one node to another.
    Partition {
        /// From here …
        from: usize,
        /// … to there,
        to: usize,
        /// and, if so, back.
        both_ways: bool,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A node is cut off from all others, those of its region among them; the region's clients still reach it.
    Isolate {
        /// Which.
        node: usize,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// The nodes of a region are cut off from all others, not from each other; its clients still reach them.
    CutRegion {
        /// A node of it.
        node: usize,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// The node that leads a shard in a region by then is cut off from the others there. Clients and other regions still reach it, so it
    /// goes on believing that it leads.
    CutLeader {
        /// A node of the region.
        node: usize,
        /// Of which shard.
        shard: u16,
        /// Whether it is heard still, and only hears nobody.
        #[serde(default)]
        deaf: bool,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A region's clients do not hear their node: it does what it is asked and nobody learns of it.
    Muteness {
        /// Which node.
        node: usize,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// Packets between two nodes get lost, both ways.
    Loss {
        /// One …
        from: usize,
        /// … and the other.
        to: usize,
        /// The share that is lost.
        share: f64,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// Messages between two nodes take longer, both ways.
    Delay {
        /// One …
        from: usize,
        /// … and the other.
        to: usize,
        /// By how much, on average.
        #[serde(with = "ms", rename = "slower_ms")]
        slower: Duration,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// The link from one node to another is narrow.
    Narrow {
        /// From here …
        from: usize,
        /// … to there.
        to: usize,
        /// What passes.
        bytes_per_second: u64,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// Syncs of a disk take long.
    SlowDisk {
        /// Whose.
        node: usize,
        /// The longest.
        #[serde(with = "ms", rename = "sync_ms")]
        sync: Duration,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// No sync of a disk ends.
    StalledDisk {
        /// Whose.
        node: usize,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// Syncs of a disk fail (EIO): its node ends at the first of them, and starts again when the disk is well.
    FailingDisk {
        /// Whose.
        node: usize,
        /// What the disk keeps of what the failed sync was to bring.
        keep: Keep,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A disk is full.
    FullDisk {
        /// Whose.
        node: usize,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A node's process stands still (SIGSTOP, SIGCONT).
    Pause {
        /// Which.
        node: usize,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A node is slow: each of its tasks has its turn late.
    SlowNode {
        /// Which.
        node: usize,
        /// How late at most; a tenth of it at least.
        #[serde(with = "ms", rename = "latest_ms")]
        latest: Duration,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A node's clocks run at another speed.
    Drift {
        /// Whose.
        node: usize,
        /// Parts per million of true time.
        rate_ppm: u64,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// A node's wall clock is set, and set back.
    Step {
        /// Whose.
        node: usize,
        /// By how much.
        by_ms: i64,
        /// How long it is wrong.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// The metadata leader is gone at once, whoever that is.
    CrashMetadataLeader {
        /// How long it is away.
        #[serde(with = "ms", rename = "away_ms")]
        away: Duration,
    },
    /// The region that is a bucket's primary by then is lost for a while.
    LosePrimary {
        /// Of which bucket.
        bucket: usize,
        /// How.
        how: Loss,
        /// How long.
        #[serde(with = "ms", rename = "lasts_ms")]
        lasts: Duration,
    },
    /// Nothing breaks: an operator moves a bucket's primary, while everything else goes on.
    Switchover {
        /// Which bucket.
        bucket: usize,
        /// The node whose region is to be the primary.
        to: usize,
        /// How far behind it may be when writes stop, in milliseconds.
        lag_ms_max: u64,
        /// For how long writes may stop, in milliseconds.
        pause_ms_max: u64,
    },
    /// Nothing breaks: an operator gives a bucket's primary up for lost, rightly or not.
    Failover {
        /// Which bucket.
        bucket: usize,
        /// The node whose region is to be the primary; whoever has most without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<usize>,
        /// Whether the loss that an estimate tells is agreed to; else none is.
        #[serde(default)]
        forced: bool,
    },
    /// Nothing breaks: an operator changes a bucket's policy while it serves, and is patient where that has to wait.
    ChangePolicy {
        /// Which bucket.
        bucket: usize,
        /// What it is to be.
        #[serde(with = "crate::scenario::words::policy")]
        to: Policy,
        /// Whether by setting what differs, where only that does; else by naming the whole policy.
        #[serde(default)]
        settings: bool,
    },
    /// Nothing breaks: an operator has a node's region hold a bucket, or hold it no more, while it serves, and is patient where that
    /// has to wait. What removes a region that joins gives its joining up.
    ChangeRegions {
        /// Which bucket.
        bucket: usize,
        /// The node whose region it is.
        node: usize,
        /// Whether it is to hold it.
        add: bool,
    },
    /// Nothing breaks: an operator has all regions write a bucket, or one of them again, while it serves, and is patient where that has to
    /// wait.
    Cross {
        /// Which bucket.
        bucket: usize,
        /// What its policy is to be.
        #[serde(with = "crate::scenario::words::policy")]
        to: Policy,
        /// The node whose region is to order its writes, if one is to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        primary: Option<usize>,
        /// For how long writes may stop, in milliseconds.
        pause_ms_max: u64,
    },
    /// Nothing breaks: an operator gives a node's region up for lost in a bucket that every region writes, whether it is or not, and agrees to
    /// what an estimate says of that.
    LoseRegion {
        /// Which bucket.
        bucket: usize,
        /// The node whose region it is.
        node: usize,
    },
    /// Nothing breaks: an operator gives a crossing up that is under way.
    TurnBack {
        /// Of which bucket.
        bucket: usize,
    },
    /// A record of a node's log gets a wrong bit.
    RotLog {
        /// Whose.
        node: usize,
    },
    /// A key of a node's state store gets a wrong bit.
    RotState {
        /// Whose.
        node: usize,
    },
}

impl Fault {
    /// Breaks it and mends it after its time.
    pub async fn strike(self, planet: &Planet) {
        planet.hit(self.kind());
        let what = format!("{self:?}");
        let disturbs = !matches!(
            self,
            Fault::Crash { .. }
                | Fault::CrashRegion { .. }
                | Fault::CrashLeader { .. }
                | Fault::LoseNode { .. }
                | Fault::Stop { .. }
                | Fault::LosePrimary { how: Loss::Crash, .. }
                | Fault::Switchover { .. }
                | Fault::Failover { .. }
                | Fault::ChangePolicy { .. }
                | Fault::ChangeRegions { .. }
                | Fault::LoseRegion { .. }
                | Fault::Cross { .. }
                | Fault::TurnBack { .. }
        );
        planet.fact(Fact::Fault { what: what.clone(), disturbs });
        let kind = self.kind();
        let meetings = planet.meetings();
        let asked = self.bucket().map(|bucket| planet.spec(bucket));
        match &asked {
            Some(spec) => spec.iter().for_each(|spec| meetings.is_asked(kind, &spec.name)),
            None => meetings.breaks(kind),
        }
        self.last(planet).await;
        if asked.is_none() {
            meetings.is_mended(kind);
        }
        planet.fact(Fact::Mended { what });
    }

    async fn last(self, planet: &Planet) {
        match self {
            Fault::Crash { node, keep, away } => gone(planet, &[node], keep, away).await,
            Fault::CrashRegion { node, keep, away } => gone(planet, &planet.beside(node), keep, away).await,
            Fault::CrashLeader { node, shard, keep, away } => {
                let leader = planet.leader_of(node, ShardId(shard));
                gone(planet, leader.as_slice(), keep, away).await;
            }
            Fault::LoseNode { node } => planet.lose(node),
            Fault::Stop { node, away } => {
                planet.stop(node).await;
                sleep(away).await;
                planet.restart(node);
            }
            Fault::Blackout { keep, away } => {
                let all: Vec<usize> = (0..planet.nodes()).collect();
                gone(planet, &all, keep, away).await;
            }
            Fault::CrashMetadataLeader { away } => {
                let leader = planet.metadata_leader();
                gone(planet, leader.as_slice(), Keep::All, away).await;
            }
            Fault::Pause { node, lasts } => {
                planet.pause(node);
                sleep(lasts).await;
                planet.resume(node);
            }
            Fault::SlowNode { node, latest, lasts } => {
                planet.slow_down(node, Some(latest));
                sleep(lasts).await;
                planet.slow_down(node, None);
            }
            Fault::LosePrimary { bucket, how, lasts } => {
                let Some(node) = planet.primary_of(bucket) else { return };
                match how {
                    Loss::Crash => gone(planet, &planet.beside(node), Keep::All, lasts).await,
                    Loss::Cut => Fault::CutRegion { node, lasts }.weather(planet).await,
                }
            }
            Fault::Partition { .. }
            | Fault::Isolate { .. }
            | Fault::CutRegion { .. }
            | Fault::CutLeader { .. }
            | Fault::Muteness { .. }
            | Fault::Loss { .. }
            | Fault::Delay { .. }
            | Fault::Narrow { .. } => self.weather(planet).await,
            Fault::SlowDisk { .. } | Fault::StalledDisk { .. } | Fault::FullDisk { .. } | Fault::FailingDisk { .. } => {
                self.disk(planet).await
            }
            Fault::Drift { .. } | Fault::Step { .. } => self.clock(planet).await,
            Fault::Switchover { bucket, to, lag_ms_max, pause_ms_max } => {
                planet.switch_over(bucket, to, lag_ms_max, pause_ms_max).await;
            }
            Fault::Failover { bucket, to, forced } => planet.fail_over(bucket, to, forced).await,
            Fault::ChangePolicy { bucket, to, settings } => planet.change_policy(bucket, to, settings).await,
            Fault::ChangeRegions { bucket, node, add } => planet.change_regions(bucket, node, add).await,
            Fault::LoseRegion { bucket, node } => planet.lose_region(bucket, node).await,
            Fault::Cross { bucket, to, primary, pause_ms_max } => {
                planet.cross(bucket, (to, primary), pause_ms_max).await;
            }
            Fault::TurnBack { bucket } => planet.turn_back(bucket).await,
            Fault::RotLog { node } => rot(planet, node, true),
            Fault::RotState { node } => rot(planet, node, false),
        }
    }

    async fn weather(self, planet: &Planet) {
        let (lines, lasts) = self.lines(planet);
        let network = planet.network();
        for (from, to) in &lines {
            network.set_weather(*from, *to, |weather| match self {
                Fault::Loss { share, .. } => weather.loss = share,
                Fault::Delay { slower, .. } => weather.slower = slower,
                Fault::Narrow { bytes_per_second, .. } => weather.bytes_per_second = Some(bytes_per_second),
                _ => weather.cut = true,
            });
        }
        sleep(lasts).await;
        for (from, to) in lines {
            network.set_weather(from, to, |weather| match self {
                Fault::Loss { .. } => weather.loss = 0.0,
                Fault::Delay { .. } => weather.slower = Duration::ZERO,
                Fault::Narrow { .. } => weather.bytes_per_second = None,
                _ => weather.cut = false,
            });
        }
    }

    /// The lines it strikes, and for how long.
    fn lines(&self, planet: &Planet) -> (Vec<(Place, Place)>, Duration) {
        let line = |from, to| (Place::Node(from), Place::Node(to));
        match *self {
            Fault::Partition { from, to, both_ways: false, lasts } | Fault::Narrow { from, to, lasts, .. } => {
                (vec![line(from, to)], lasts)
            }
            Fault::Partition { from, to, lasts, .. }
            | Fault::Loss { from, to, lasts, .. }
            | Fault::Delay { from, to, lasts, .. } => (vec![line(from, to), line(to, from)], lasts),
            Fault::Isolate { node, lasts } => {
                let others = (0..planet.nodes()).filter(|other| *other != node);
                (others.flat_map(|other| [line(node, other), line(other, node)]).collect(), lasts)
            }
            Fault::CutRegion { node, lasts } => {
                let inside = planet.beside(node);
                let others = (0..planet.nodes()).filter(|other| !inside.contains(other));
                let across = |other| inside.iter().flat_map(move |node| [line(*node, other), line(other, *node)]);
                (others.flat_map(across).collect(), lasts)
            }
            Fault::CutLeader { node, shard, deaf, lasts } => {
                let leader = planet.leader_of(node, ShardId(shard));
                let others = planet.beside(node).into_iter().filter(|other| Some(*other) != leader);
                let lines = |other| {
                    let heard = leader.filter(|_| !deaf).map(|leader| line(leader, other));
                    heard.into_iter().chain(leader.map(|leader| line(other, leader)))
                };
                (others.flat_map(lines).collect(), lasts)
            }
            Fault::Muteness { node, lasts } => {
                let clients = planet.region_of(node).map(Place::Clients);
                (clients.into_iter().map(|clients| (Place::Node(node), clients)).collect(), lasts)
            }
            _ => (Vec::new(), Duration::ZERO),
        }
    }

    async fn disk(self, planet: &Planet) {
        let (Fault::SlowDisk { node, lasts, .. }
        | Fault::StalledDisk { node, lasts }
        | Fault::FullDisk { node, lasts }
        | Fault::FailingDisk { node, lasts, .. }) = self
        else {
            return;
        };
        let Some(body) = planet.body(node) else { return };
        let before = body.disk.manner();
        body.disk.set_manner(|manner| match self {
            Fault::SlowDisk { sync, .. } => manner.sync = (sync / 10, sync),
            Fault::StalledDisk { .. } => manner.stalled = true,
            Fault::FailingDisk { keep, .. } => manner.failing = Some(keep),
            _ => manner.full = true,
        });
        sleep(lasts).await;
        body.disk.set_manner(|manner| match self {
            Fault::SlowDisk { .. } => manner.sync = before.sync,
            Fault::StalledDisk { .. } => manner.stalled = false,
            Fault::FailingDisk { .. } => manner.failing = None,
            _ => manner.full = false,
        });
        // Whoever watches over processes starts one that has ended.
        if matches!(self, Fault::FailingDisk { .. }) {
            planet.restart(node);
        }
    }

    async fn clock(self, planet: &Planet) {
        let (Fault::Drift { node, lasts, .. } | Fault::Step { node, lasts, .. }) = self else { return };
        let Some(body) = planet.body(node) else { return };
        let believe = || {
            if let Some(life) = planet.life(node) {
                life.plane.copy.believe();
            }
        };
        match self {
            Fault::Drift { rate_ppm, .. } => {
                if !WITHIN_DRIFT_PPM.contains(&rate_ppm) {
                    planet.violate(Assumption::ClockRates);
                }
                let ahead_ms = lasts.as_millis() * u128::from(rate_ppm.saturating_sub(1_000_000)) / 1_000_000;
                if ahead_ms > u128::from(SKEW_MS_MAX) {
                    planet.violate(Assumption::ClockAhead);
                }
                body.clock.set_rate(rate_ppm);
            }
            Fault::Step { by_ms, .. } => body.clock.set_wall(by_ms),
            _ => {}
        }
        believe();
        sleep(lasts).await;
        match self {
            Fault::Drift { .. } => body.clock.set_rate(1_000_000),
            Fault::Step { by_ms, .. } => body.clock.set_wall(-by_ms),
            _ => {}
        }
        believe();
    }
}

/// Nodes are gone at once, and start again after a while.
async fn gone(planet: &Planet, nodes: &[usize], keep: Keep, away: Duration) {
    nodes.iter().for_each(|node| planet.crash(*node, keep));
    if !nodes.is_empty() {
        sleep(away).await;
    }
    nodes.iter().for_each(|node| planet.restart(*node));
}

/// Durations as whole milliseconds.
mod ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

fn rot(planet: &Planet, node: usize, log: bool) {
    let Some(body) = planet.body(node) else { return };
    let rotten = if log { body.disk.rot().is_some() } else { body.disk.engine.rot(planet.dice()) };
    if rotten {
        planet.violate(Assumption::Disks);
        let what = if log { "a record of the log" } else { "a key of the state" };
        planet.fact(Fact::Rotted { replica: body.replica, what });
    }
}
