//! Scenarios: what clients do on which planet, and what breaks when. Small TOML files, or drawn from a seed.
//!
//! Files in `chaos/scenarios` are the faults that others met, each told once; those in `chaos/pinned` are worlds in which
//! this product or this planet failed, each with its seed and a sentence. `chaos/tests/seeds.rs` plays them all.
//!
//! ```toml
//! name = "a primary that is cut off for longer than its lease"
//! seconds = 40           # clients work for so long; the last third of it on a planet that is whole
//! regions = 3
//! nodes = 1              # of each region
//! shards = 2
//!
//! [[buckets]]
//! name = "orders"
//! policy = "sync:majority"
//! workloads = [{ kind = "register", clients = 4 }]
//!
//! [[faults]]
//! at_ms = 5000
//! what = { kind = "isolate", node = 0, lasts_ms = 9000 }
//! ```

mod draw;
pub(crate) mod words;

use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_types::{AutoFailover, AutoMode, BucketName, BucketSpec, Labels, NameError, Policy, RegionName};
use serde::{Deserialize, Serialize};

use crate::workload::Kind;
use crate::world::{Fault, Location, PURGE_ENTRIES, RETENTION_BYTES, Setup, WINDOW_BYTES};

/// A scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// A sentence.
    pub name: String,
    /// The seed of the world it is to be played in; without one, any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How long clients work. Whatever is still broken after two thirds of it is healed then.
    pub seconds: u64,
    /// How many regions.
    #[serde(default = "regions")]
    pub regions: usize,
    /// How many nodes each of them has: 1, 3 or 5. Those numbered from 0 are the first nodes of the regions, then come all second ones, and
    /// so on: of three regions of three, 1, 4 and 7 are in the second one.
    #[serde(default = "nodes", skip_serializing_if = "is_usual_nodes")]
    pub nodes: usize,
    /// Shards per region.
    #[serde(default = "shards")]
    pub shards: u16,
    /// How far wall clocks are apart at most, in milliseconds.
    #[serde(default = "wall_skew_ms")]
    pub wall_skew_ms: u64,
    /// How often nodes make their state durable, in milliseconds.
    #[serde(default = "persist_every_ms")]
    pub persist_every_ms: u64,
    /// Bytes of frames that may be on their way to one node, of the lanes of one kind.
    #[serde(default = "window_bytes", skip_serializing_if = "is_usual_window")]
    pub window_bytes: usize,
    /// How much log a node keeps for regions that are behind, in bytes, of all its shards together.
    #[serde(default = "retention_bytes", skip_serializing_if = "is_usual_retention")]
    pub retention_bytes: u64,
    /// How many entries of a log are purged at a time.
    #[serde(default = "purge_entries", skip_serializing_if = "is_usual_purge")]
    pub purge_entries: u64,
    /// The buckets, and who works on them.
    pub buckets: Vec<BucketPlan>,
    /// What breaks when.
    #[serde(default)]
    pub faults: Vec<Planned>,
}

/// A bucket and its clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketPlan {
    /// Its name.
    pub name: BucketName,
    /// Its policy: `async`, `async block:20ops`, `sync:one`, `sync:majority`, `sync:all`, `sync:2`, `sync:2 degrade:1500`,
    /// `active-active`.
    #[serde(with = "words::policy")]
    pub policy: Policy,
    /// What it does by itself when its primary is lost: `manual`, `observe-only`, `zero-loss`, `bounded:5s,20ops`.
    #[serde(with = "words::auto", default, skip_serializing_if = "is_manual")]
    pub auto: AutoMode,
    /// The least time between two such failovers, in milliseconds.
    #[serde(default = "auto_interval_ms", skip_serializing_if = "is_usual_interval")]
    pub auto_interval_ms: u64,
    /// The most of them in a day.
    #[serde(default = "auto_per_day", skip_serializing_if = "is_usual_per_day")]
    pub auto_per_day: u32,
    /// Whether keys with a time to live are written there, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub brief: bool,
    /// The nodes whose regions do not hold it in the beginning; clients are there all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<usize>,
    /// What clients do there.
    pub workloads: Vec<WorkloadPlan>,
}

/// Clients of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadPlan {
    /// What they do.
    #[serde(with = "words::kind")]
    pub kind: Kind,
    /// How many.
    #[serde(default = "clients")]
    pub clients: u32,
    /// On how many keys.
    #[serde(default = "keys")]
    pub keys: u32,
    /// The mean pause between two operations of a client, in milliseconds.
    #[serde(default = "think_ms")]
    pub think_ms: u64,
    /// What each request is given, in milliseconds.
    #[serde(default = "deadline_ms")]
    pub deadline_ms: u32,
}

/// Something that breaks, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Milliseconds after clients begin.
    pub at_ms: u64,
    /// What.
    pub what: Fault,
}

fn is_manual(mode: &AutoMode) -> bool {
    *mode == AutoMode::Manual
}

/// How often a bucket may fail over by itself: a world lasts a minute.
fn auto_interval_ms() -> u64 {
    3_000
}

fn is_usual_interval(ms: &u64) -> bool {
    *ms == auto_interval_ms()
}

fn auto_per_day() -> u32 {
    20
}

fn is_usual_per_day(times: &u32) -> bool {
    *times == auto_per_day()
}

fn window_bytes() -> usize {
    WINDOW_BYTES
}

fn is_usual_window(bytes: &usize) -> bool {
    *bytes == window_bytes()
}

fn retention_bytes() -> u64 {
    RETENTION_BYTES
}

fn is_usual_retention(bytes: &u64) -> bool {
    *bytes == retention_bytes()
}

fn purge_entries() -> u64 {
    PURGE_ENTRIES
}

fn is_usual_purge(entries: &u64) -> bool {
    *entries == purge_entries()
}

fn regions() -> usize {
    3
}

fn nodes() -> usize {
    1
}

fn is_usual_nodes(nodes: &usize) -> bool {
    *nodes == self::nodes()
}

fn shards() -> u16 {
    2
}

fn wall_skew_ms() -> u64 {
    20
}

fn persist_every_ms() -> u64 {
    10_000
}

fn clients() -> u32 {
    3
}

fn keys() -> u32 {
    4
}

fn think_ms() -> u64 {
    200
}

fn deadline_ms() -> u32 {
    2_000
}

/// Why a scenario can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("the scenario {} can't be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no scenario; the cause names line and field.
    #[error("the scenario {} can't be understood", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A field has a value that can't work.
    #[error("the scenario's `{field}` can't be used: {reason}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
}

/// Regions a planet may have, in this order: cities with large data centres.
const PLACES: [(&str, f64, f64); 6] = [
    ("us-east", 38.9, -77.4),
    ("eu-west", 53.3, -6.3),
    ("ap-northeast", 35.7, 139.7),
    ("us-west", 45.6, -121.2),
    ("sa-east", -23.5, -46.6),
    ("ap-southeast", -33.9, 151.2),
];

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// [`Error`] names the file and the field.
    pub fn read(path: &Path) -> Result<Scenario, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let scenario: Scenario = toml::from_str(&text)
            .map_err(|source| Error::Malformed { path: path.to_owned(), source: Box::new(source) })?;
        scenario.validate()?;
        Ok(scenario)
    }

    /// Every scenario of a directory, by file name.
    ///
    /// # Errors
    /// As [`Scenario::read`].
    pub fn all(dir: &Path) -> Result<Vec<(String, Scenario)>, Error> {
        let unreadable = |source| Error::Unreadable { path: dir.to_owned(), source };
        let mut scenarios = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            scenarios.push((name, Scenario::read(&path)?));
        }
        scenarios.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(scenarios)
    }

    /// Draws one from a seed: which kinds of faults there are, how strong, on which planet, under which load.
    pub fn drawn(seed: u64, seconds: u64) -> Scenario {
        draw::scenario(seed, seconds)
    }

    fn validate(&self) -> Result<(), Error> {
        let invalid = |field, reason: String| Err(Error::Invalid { field, reason });
        if !(2..=PLACES.len()).contains(&self.regions) {
            return invalid("regions", format!("use 2 to {}", PLACES.len()));
        }
        if ![1, 3, 5].contains(&self.nodes) {
            return invalid("nodes", "a region has 1, 3 or 5".to_owned());
        }
        if let Some(why) = self.faults.iter().find_map(|planned| self.misses(&planned.what)) {
            return invalid("faults", why);
        }
        if self.shards == 0 {
            return invalid("shards", "there is at least one".to_owned());
        }
        if self.seconds < 6 {
            return invalid("seconds", "less than 6 leave no time for anything".to_owned());
        }
        for (place, bucket) in self.buckets.iter().enumerate() {
            if bucket.without.iter().any(|node| *node >= self.regions) {
                return invalid("without", format!("nodes are numbered from 0 to {}", self.regions - 1));
            }
            let holders = (0..self.regions).filter(|node| !bucket.without.contains(node)).count();
            bucket.policy.validate(holders).or_else(|why| invalid("policy", why.to_string()))?;
            let (interval_ms_min, per_day_max) = (bucket.auto_interval_ms, bucket.auto_per_day);
            let auto = AutoFailover::<RegionName> {
                mode: bucket.auto,
                interval_ms_min,
                per_day_max,
                ..AutoFailover::default()
            };
            auto.validate(bucket.policy, &[]).or_else(|why| invalid("auto", why.to_string()))?;
            let active = bucket.policy == Policy::ActiveActive;
            // What one kind of bucket can't serve is refused there, and works in the other.
            let crosses = |it: &Planned| matches!(it.what, Fault::Cross { bucket, .. } if bucket == place);
            let crosses = self.faults.iter().any(crosses);
            let fits = |kind: &Kind| {
                let of_its_own = if active { &Kind::ACTIVE_ACTIVE[..] } else { &Kind::WITH_PRIMARY[..] };
                crosses || of_its_own.contains(kind)
            };
            if let Some(plan) = bucket.workloads.iter().find(|plan| !fits(&plan.kind)) {
                return invalid("kind", format!("a bucket with policy {} can't serve {:?}", bucket.policy, plan.kind));
            }
        }
        Ok(())
    }

    /// Why a fault can't strike this planet, if it can't.
    fn misses(&self, fault: &Fault) -> Option<String> {
        let nodes = self.regions * self.nodes;
        if let Some(node) = fault.nodes().into_iter().find(|node| *node >= nodes) {
            return Some(format!("there is no node {node}: they are numbered from 0 to {}", nodes - 1));
        }
        let alone = self.nodes == 1 && matches!(fault, Fault::LoseNode { .. });
        alone.then(|| "a region of one node can't lose it for good: give it `nodes = 3`".to_owned())
    }

    /// The planet it plays on.
    ///
    /// # Errors
    /// Never: the names are valid.
    pub fn setup(&self) -> Result<Setup, NameError> {
        let place = |(name, latitude, longitude): &(&str, f64, f64)| {
            Ok((RegionName::new(name)?, Location { latitude: *latitude, longitude: *longitude }))
        };
        let regions: Vec<(RegionName, Location)> =
            PLACES.iter().take(self.regions).map(place).collect::<Result<_, _>>()?;
        let holders = |plan: &BucketPlan| {
            let holds =
                |(node, (name, _)): (usize, &(RegionName, _))| (!plan.without.contains(&node)).then(|| name.clone());
            if plan.without.is_empty() { Vec::new() } else { regions.iter().enumerate().filter_map(holds).collect() }
        };
        let bucket = |plan: &BucketPlan| BucketSpec {
            name: plan.name.clone(),
            policy: plan.policy,
            regions: holders(plan),
            primary: None,
            labels: Labels::default(),
            auto: AutoFailover {
                mode: plan.auto,
                interval_ms_min: plan.auto_interval_ms,
                per_day_max: plan.auto_per_day,
                ..AutoFailover::default()
            },
        };
        let buckets = self.buckets.iter().map(bucket).collect();
        Ok(Setup {
            regions,
            nodes: self.nodes,
            shards: self.shards,
            buckets,
            wall_skew_ms: self.wall_skew_ms,
            persist_every: Duration::from_millis(self.persist_every_ms),
            window_bytes: self.window_bytes,
            retention_bytes: self.retention_bytes,
            purge_entries: self.purge_entries,
            ..Setup::three_regions()?
        })
    }

    /// When everything is healed, after clients began.
    pub fn heals_after(&self) -> Duration {
        Duration::from_secs(self.seconds) * 2 / 3
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_drawn_scenario_is_valid_and_survives_its_own_words() {
        for seed in 0..500 {
            let scenario = Scenario::drawn(seed, 60);
            scenario.validate().unwrap();
            assert_eq!(scenario, Scenario::drawn(seed, 60));
            let text = toml::to_string(&scenario).unwrap();
            assert_eq!(toml::from_str::<Scenario>(&text).unwrap(), scenario, "{text}");
        }
    }

    #[test]
    fn a_bucket_may_begin_without_a_region_and_its_policy_is_held_to_those_that_are_left() {
        let text = |policy: &str, node: usize| {
            format!(
                "name = 'x'\nseconds = 30\n[[buckets]]\nname = 'b'\npolicy = '{policy}'\nwithout = [{node}]\nworkloads = []\n"
            )
        };
        let read = |text: &str| toml::from_str::<Scenario>(text).unwrap();
        let two_left = read(&text("sync:2", 1));
        two_left.validate().unwrap();
        let names: Vec<_> = two_left.setup().unwrap().buckets[0].regions.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["us-east", "ap-northeast"]);
        assert!(read(&text("sync:3", 1)).validate().is_err());
        assert!(read(&text("async", 3)).validate().unwrap_err().to_string().contains("0 to 2"));
    }

    #[test]
    fn regions_of_buckets_of_both_kinds_change_in_drawn_scenarios() {
        let changes = |active: bool| {
            let has = |seed: &u64| {
                let scenario = Scenario::drawn(*seed, 60);
                let of = |what: &Fault| match what {
                    Fault::ChangeRegions { bucket, .. } => Some(!scenario.buckets[*bucket].policy.has_primary()),
                    _ => None,
                };
                scenario.faults.iter().any(|planned| of(&planned.what) == Some(active))
            };
            (0..500).filter(has).count()
        };
        let (with_primary, active) = (changes(false), changes(true));
        assert!((60..180).contains(&with_primary) && (25..120).contains(&active), "{with_primary}, {active}");
    }

    #[test]
    fn regions_have_several_nodes_in_a_seventh_of_the_drawn_scenarios_and_none_of_the_first_ones_is_lost() {
        let drawn: Vec<Scenario> = (0..500).map(|seed| Scenario::drawn(seed, 60)).filter(|it| it.nodes > 1).collect();
        assert!((45..100).contains(&drawn.len()), "{}", drawn.len());
        let calm = drawn.iter().filter(|it| it.faults.is_empty()).count();
        assert!(calm > 0 && calm < drawn.len() / 4, "{calm}");
        let lost = |it: &Scenario, planned: &Planned| match planned.what {
            Fault::LoseNode { node } => Some(node >= it.regions),
            _ => None,
        };
        let lost: Vec<bool> = drawn.iter().flat_map(|it| it.faults.iter().filter_map(move |at| lost(it, at))).collect();
        assert!(!lost.is_empty() && lost.iter().all(|second| *second), "those vote in the metadata plane");
    }

    #[test]
    fn what_can_not_strike_a_planet_is_refused() {
        let text = |nodes: usize, what: &str| {
            format!("name = 'x'\nseconds = 30\nnodes = {nodes}\nbuckets = []\n[[faults]]\nat_ms = 1\nwhat = {what}\n")
        };
        let judge = |text: String| toml::from_str::<Scenario>(&text).unwrap().validate().map_err(|why| why.to_string());
        assert_eq!(judge(text(3, "{ kind = 'lose-node', node = 8 }")), Ok(()));
        assert!(judge(text(3, "{ kind = 'lose-node', node = 9 }")).unwrap_err().contains("0 to 8"));
        assert!(judge(text(1, "{ kind = 'lose-node', node = 2 }")).unwrap_err().contains("nodes = 3"));
        assert!(judge(text(2, "{ kind = 'lose-node', node = 2 }")).unwrap_err().contains("1, 3 or 5"));
    }

    #[test]
    fn buckets_of_both_kinds_cross_in_a_fifth_of_the_drawn_scenarios() {
        let crossings = |active: bool| {
            let has = |seed: &u64| {
                let scenario = Scenario::drawn(*seed, 60);
                let first = scenario.faults.iter().find_map(|planned| match planned.what {
                    Fault::Cross { bucket, .. } => Some(!scenario.buckets[bucket].policy.has_primary()),
                    _ => None,
                });
                first == Some(active)
            };
            (0..500).filter(has).count()
        };
        let (opened, closed) = (crossings(false), crossings(true));
        assert!((100..140).contains(&(opened + closed)) && closed > 10, "{opened}, {closed}");
    }

    #[test]
    fn regions_are_given_up_for_lost_where_all_write_in_drawn_scenarios() {
        let loses = |seed: &u64| {
            let drawn = Scenario::drawn(*seed, 60);
            drawn.faults.iter().any(|planned| matches!(planned.what, Fault::LoseRegion { .. }))
        };
        let count = (0..500).filter(loses).count();
        assert!((30..120).contains(&count), "{count}");
    }

    #[test]
    fn every_kind_of_fault_is_drawn_and_has_its_word() {
        let faults = |seed| Scenario::drawn(seed, 60).faults;
        let drawn: BTreeSet<&str> = (0..2000).flat_map(faults).map(|planned| planned.what.kind()).collect();
        assert_eq!(drawn, Fault::KINDS.into_iter().collect());
    }

    #[test]
    fn logs_are_short_in_one_of_eight_drawn_scenarios() {
        let short = (0..1000).filter(|seed| Scenario::drawn(*seed, 60).retention_bytes < 64 << 10).count();
        assert!((90..160).contains(&short), "{short}");
    }

    #[test]
    fn one_in_twenty_drawn_scenarios_has_no_faults() {
        let calm = (0..1000).filter(|seed| Scenario::drawn(*seed, 60).faults.is_empty()).count();
        assert!((20..100).contains(&calm), "{calm}");
    }

    #[test]
    fn a_wrong_word_is_named() {
        let text =
            "name = 'x'\nseconds = 30\n[[buckets]]\nname = 'b'\npolicy = 'async'\nworkloads = [{ kind = 'juggle' }]\n";
        let why = toml::from_str::<Scenario>(text).unwrap_err().to_string();
        assert!(why.contains("kind") && why.contains("juggle"), "{why}");
    }
}
