//! What can be set, with the reason for every default.

use std::path::PathBuf;
use std::time::Duration;

use meridian_metadata_core::command::NodeSpec;
use meridian_metadata_core::lease::Drift;
use meridian_metadata_core::state::{LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, MEMBERS_MAX, SHARDS_MAX};
use meridian_types::{NodeId, NodeName, RegionName};
use serde::{Deserialize, Serialize};

use crate::error::OpenError;

/// How the metadata plane runs on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// This node. One of `members`, or a node that joined later.
    pub this: Member,
    /// The nodes the cluster was formed with, the same list in the same order on each of them: regions are
    /// numbered in this order.
    pub members: Vec<Member>,
    /// The directory of the metadata state; created if missing.
    pub dir: PathBuf,
    /// The version of Meridian this node runs.
    pub version: String,
    /// Shards per region. Counts only when the cluster is formed.
    #[serde(default = "shards")]
    pub shards: u16,
    /// How long a lease lasts, in milliseconds. Counts only when the cluster is formed.
    #[serde(default = "lease_ttl_ms")]
    pub lease_ttl_ms: u64,
    /// By how much two nodes' monotonic clocks may differ in speed, in parts per million.
    #[serde(default = "drift_ppm_max")]
    pub drift_ppm_max: u32,
    /// A lease is renewed this often, in milliseconds.
    #[serde(default = "renew_every_ms")]
    pub renew_every_ms: u64,
    /// A renewal that got no answer for so long is given up and tried anew, in milliseconds.
    #[serde(default = "renew_timeout_ms")]
    pub renew_timeout_ms: u64,
    /// One attempt to have a command committed is given up after so long, in milliseconds …
    #[serde(default = "attempt_timeout_ms")]
    pub attempt_timeout_ms: u64,
    /// … and the command refused after so long, in milliseconds.
    #[serde(default = "command_deadline_ms")]
    pub command_deadline_ms: u64,
    /// A bucket whose next primary does not come close within so long is given up, in milliseconds.
    #[serde(default = "catching_up_ms_max")]
    pub catching_up_ms_max: u64,
    /// A member of a region that is silent for so long is replaced by a spare, if there is one, in milliseconds; 0 for never.
    #[serde(default = "repair_after_ms")]
    pub repair_after_ms: u64,
}

/// A node as configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// Its region.
    pub region: RegionName,
    /// Its failure domain within the region.
    pub zone: String,
    /// `host:port` of its gRPC endpoint.
    pub rpc_address: String,
    /// `host:port` of its replication endpoint; empty for a witness.
    #[serde(default)]
    pub replication_address: String,
    /// Whether it votes in the metadata group; others follow it as learners.
    #[serde(default = "voter")]
    pub voter: bool,
}

impl Member {
    /// Its id.
    pub fn id(&self) -> NodeId {
        NodeId::of(&self.name)
    }

    pub(crate) fn spec(&self, version: &str) -> NodeSpec {
        NodeSpec {
            name: self.name.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            rpc_address: self.rpc_address.clone(),
            replication_address: self.replication_address.clone(),
            version: version.to_owned(),
        }
    }
}

fn voter() -> bool {
    true
}

fn shards() -> u16 {
    // Design 1.
    16
}

fn lease_ttl_ms() -> u64 {
    // Design 4. What is left after a missed renewal and the margin, 3.95 s, must outlast the loss of a leader: twice
    // the group's `election_ms_max` (Raft's lease, then the election timeout) and a few round trips.
    5000
}

fn drift_ppm_max() -> u32 {
    // Design 4: 1 %. Quartz is off by 0.01 %; NTP slews by 0.05 %.
    10_000
}

fn renew_every_ms() -> u64 {
    // Design 4.
    1000
}

fn renew_timeout_ms() -> u64 {
    // A renewal costs two round trips (to the leader, and the leader's to a quorum): 300 ms between far regions.
    1500
}

fn attempt_timeout_ms() -> u64 {
    // As a renewal, and a sync on each voter's disk.
    2000
}

fn command_deadline_ms() -> u64 {
    // Outlasts the loss of a leader, also when the first vote is split.
    10_000
}

fn catching_up_ms_max() -> u64 {
    // Writes go on meanwhile, so there is no hurry; but an operator who asked ten minutes ago no longer expects a pause.
    600_000
}

fn repair_after_ms() -> u64 {
    // Longer than a machine takes to start again, shorter than a second failure is likely.
    600_000
}

impl Options {
    /// The defaults for a node of a cluster.
    pub fn new(this: Member, members: Vec<Member>, dir: impl Into<PathBuf>) -> Options {
        Options {
            this,
            members,
            dir: dir.into(),
            version: String::new(),
            shards: shards(),
            lease_ttl_ms: lease_ttl_ms(),
            drift_ppm_max: drift_ppm_max(),
            renew_every_ms: renew_every_ms(),
            renew_timeout_ms: renew_timeout_ms(),
            attempt_timeout_ms: attempt_timeout_ms(),
            command_deadline_ms: command_deadline_ms(),
            catching_up_ms_max: catching_up_ms_max(),
            repair_after_ms: repair_after_ms(),
        }
    }

    /// The voters of the metadata group, in the order of `members`.
    pub fn voters(&self) -> Vec<NodeId> {
        self.members.iter().filter(|member| member.voter).map(Member::id).collect()
    }

    pub(crate) fn drift(&self) -> Drift {
        Drift::from_ppm(self.drift_ppm_max)
    }

    pub(crate) fn renew_every(&self) -> Duration {
        Duration::from_millis(self.renew_every_ms)
    }

    pub(crate) fn renew_timeout(&self) -> Duration {
        Duration::from_millis(self.renew_timeout_ms)
    }

    pub(crate) fn attempt_timeout(&self) -> Duration {
        Duration::from_millis(self.attempt_timeout_ms)
    }

    pub(crate) fn command_deadline(&self) -> Duration {
        Duration::from_millis(self.command_deadline_ms)
    }

    pub(crate) fn catching_up_max(&self) -> Duration {
        Duration::from_millis(self.catching_up_ms_max)
    }

    /// `None` for never.
    pub(crate) fn repair_after(&self) -> Option<Duration> {
        (self.repair_after_ms > 0).then(|| Duration::from_millis(self.repair_after_ms))
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let bad = |option, reason: String| Err(OpenError::Options { option, reason });
        if self.members.len() > MEMBERS_MAX {
            return bad("members", format!("at most {MEMBERS_MAX} nodes can form a cluster"));
        }
        if !self.members.iter().any(|member| member.voter) {
            return bad("members", "at least one member must have `voter = true`".to_owned());
        }
        for (at, member) in self.members.iter().enumerate() {
            if self.members.iter().take(at).any(|earlier| earlier.name == member.name) {
                return bad("members", format!("`{}` is listed twice", member.name));
            }
        }
        match self.members.iter().find(|member| member.name == self.this.name) {
            Some(listed) if listed.region != self.this.region || listed.voter != self.this.voter => {
                return bad("this", format!("`{}` differs from its entry in `members`", self.this.name));
            }
            None if self.this.voter => {
                return bad("this", format!("`{}` is no member, so it must have `voter = false`", self.this.name));
            }
            Some(_) | None => {}
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return bad("shards", format!("use 1 to {SHARDS_MAX}"));
        }
        if !(LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&self.lease_ttl_ms) {
            return bad("lease_ttl_ms", format!("use {LEASE_TTL_MS_MIN} to {LEASE_TTL_MS_MAX}"));
        }
        if self.renew_every_ms == 0 || self.renew_every_ms * 2 > self.lease_ttl_ms {
            return bad("renew_every_ms", "at least two renewals must fit into `lease_ttl_ms`".to_owned());
        }
        if self.drift_ppm_max > Drift::PPM_MAX {
            return bad("drift_ppm_max", format!("use at most {}", Drift::PPM_MAX));
        }
        if self.renew_timeout_ms == 0 || self.attempt_timeout_ms == 0 || self.command_deadline_ms == 0 {
            return bad("renew_timeout_ms, attempt_timeout_ms, command_deadline_ms", "must not be 0".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, region: &str) -> Member {
        Member {
            name: NodeName::new(name).unwrap(),
            region: RegionName::new(region).unwrap(),
            zone: "a".to_owned(),
            rpc_address: "127.0.0.1:1".to_owned(),
            replication_address: "127.0.0.1:2".to_owned(),
            voter: true,
        }
    }

    fn options() -> Options {
        Options::new(member("a-1", "a"), vec![member("a-1", "a"), member("b-1", "b")], "/tmp/x")
    }

    #[test]
    fn options_that_cannot_work_are_refused_by_name() {
        assert!(options().validate().is_ok());
        let refused = |change: &dyn Fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            match options.validate() {
                Err(OpenError::Options { option, .. }) => option,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(&|o| o.members.push(member("a-1", "c"))), "members");
        assert_eq!(refused(&|o| o.members.iter_mut().for_each(|m| m.voter = false)), "members");
        assert_eq!(refused(&|o| o.this.region = RegionName::new("z").unwrap()), "this");
        assert_eq!(refused(&|o| o.this = member("z-1", "a")), "this");
        assert_eq!(refused(&|o| o.shards = 0), "shards");
        assert_eq!(refused(&|o| o.lease_ttl_ms = 1), "lease_ttl_ms");
        assert_eq!(refused(&|o| o.renew_every_ms = 4000), "renew_every_ms");
        assert_eq!(refused(&|o| o.drift_ppm_max = 900_000), "drift_ppm_max");
    }

    #[test]
    fn options_can_be_written_with_little_text() {
        let text = r#"
            dir = "/var/lib/meridian/metadata"
            version = "0.1.0"
            this = { name = "a-1", region = "a", zone = "z", rpc_address = "h:1", replication_address = "h:2" }
            members = [{ name = "a-1", region = "a", zone = "z", rpc_address = "h:1", replication_address = "h:2" }]
        "#;
        let options: Options = toml::from_str(text).unwrap();
        assert_eq!((options.lease_ttl_ms, options.renew_every_ms, options.shards), (5000, 1000, 16));
        assert!(options.validate().is_ok());
    }
}
