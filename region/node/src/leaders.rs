//! Which node of a region leads a shard: spread evenly over those that vote, and handed on before a node stops.
//!
//! Each shard has a home: the voters take turns, by the shard's number. A leader elsewhere hands over once the home has been able to
//! take over for a while. An election chooses whoever is there; this brings leaders back afterwards, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_types::{NodeId, ShardId};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::node::{Node, ShardNode};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// At so many looks in a row a home must have been able to take over: one that has just come back may go again.
const STEADY_LOOKS: u32 = 5;

/// After an attempt, whatever came of it, a shard is left alone for so many looks: a node that can't keep what it is given must not get
/// it again and again.
const REST_LOOKS: u32 = 30;

/// How long a hand-over may take before the next one is begun.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the shards that this node leads.
#[derive(Debug, Default)]
struct Balance {
    /// Looks in a row at which the home could take over.
    steady: BTreeMap<ShardId, u32>,
    /// Looks for which a shard is left alone.
    resting: BTreeMap<ShardId, u32>,
}

impl Balance {
    /// One look at the shards led here whose home is elsewhere, each with its home and whether that could take over; which one is
    /// to be handed over now.
    fn look(&mut self, away: &[(ShardId, NodeId, bool)]) -> Option<(ShardId, NodeId)> {
        self.resting.retain(|_, looks| {
            *looks -= 1;
            *looks > 0
        });
        self.steady.retain(|shard, _| away.iter().any(|(id, ..)| id == shard));
        for (shard, _, able) in away {
            let looks = self.steady.entry(*shard).or_default();
            *looks = if *able { *looks + 1 } else { 0 };
        }
        let due = |shard: &ShardId| !self.resting.contains_key(shard) && self.steady[shard] >= STEADY_LOOKS;
        let (shard, home, _) = *away.iter().find(|(shard, ..)| due(shard))?;
        self.resting.insert(shard, REST_LOOKS);
        Some((shard, home))
    }
}

/// Brings leaders home.
pub(crate) async fn keep_balance(node: Arc<Node>) {
    let mut balance = Balance::default();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some((shard, home)) = balance.look(&node.away()) {
            let done = node.shard(shard).map(|shard| timeout(PATIENCE, shard.group.hand_over(home)));
            match futures::future::OptionFuture::from(done).await {
                Some(Ok(Ok(()))) => {
                    tracing::info!(region = %node.region(), %shard, to = %home, "the shard is led from its home again")
                }
                Some(Ok(Err(why))) => {
                    tracing::info!(region = %node.region(), %shard, to = %home, %why, "the shard is not handed over")
                }
                Some(Err(_)) | None => {
                    tracing::info!(region = %node.region(), %shard, to = %home, "the shard is not handed over in time")
                }
            }
        }
    }
}

impl Node {
    /// The shards led here whose home is another node.
    fn away(&self) -> Vec<(ShardId, NodeId, bool)> {
        let topology = self.authority.topology();
        let away = |shard: &ShardNode| {
            let home = home(topology.voters(self.region(), shard.id), shard.id)?;
            (home != self.place.node).then(|| (shard.id, home, shard.group.could_take_over(home)))
        };
        self.shards.iter().filter(|shard| shard.board.leads()).filter_map(away).collect()
    }

    /// Hands every shard that this node leads to another voter that could take over at once, all at the same time. Those for which there is
    /// none stay until the group elects somebody.
    pub(crate) async fn hand_over_leadership(&self, patience: Duration) -> usize {
        let topology = self.authority.topology();
        let until = Instant::now() + patience;
        let handed = self.shards.iter().filter(|shard| shard.board.leads()).map(|shard| {
            let mut voters = topology.voters(self.region(), shard.id).to_vec();
            // Not all to the same one.
            let turn = usize::from(shard.id.0) % voters.len().max(1);
            voters.rotate_left(turn);
            let heir =
                voters.into_iter().find(|voter| *voter != self.place.node && shard.group.could_take_over(*voter));
            async move {
                let Some(heir) = heir else { return false };
                matches!(timeout_at(until, shard.group.hand_over(heir)).await, Ok(Ok(())))
            }
        });
        join_all(handed).await.into_iter().filter(|handed| *handed).count()
    }
}

/// Which of the voters leads the shard when all are there.
fn home(voters: &[NodeId], shard: ShardId) -> Option<NodeId> {
    voters.get(usize::from(shard.0) % voters.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: NodeId = NodeId(7);

    #[test]
    fn homes_take_turns() {
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let homes: Vec<_> = (0..6).map(|shard| home(&voters, ShardId(shard)).unwrap().0).collect();
        assert_eq!(homes, [1, 2, 3, 1, 2, 3]);
        assert_eq!(home(&[], ShardId(1)), None);
    }

    #[test]
    fn a_leader_goes_home_once_that_is_steady_and_one_shard_at_a_time() {
        let mut balance = Balance::default();
        let away = [(ShardId(1), HOME, true), (ShardId(4), HOME, true)];
        assert!((1..STEADY_LOOKS).all(|_| balance.look(&away).is_none()));
        assert_eq!(balance.look(&away), Some((ShardId(1), HOME)));
        assert_eq!(balance.look(&away), Some((ShardId(4), HOME)));
        let looks = (0..REST_LOOKS).take_while(|_| balance.look(&away).is_none()).count();
        assert_eq!(u32::try_from(looks), Ok(REST_LOOKS - 2), "what was tried in vain rests");
    }

    #[test]
    fn a_home_that_comes_and_goes_is_not_given_anything() {
        let mut balance = Balance::default();
        for look in 0..100 {
            let away = [(ShardId(1), HOME, look % STEADY_LOOKS != 0)];
            assert_eq!(balance.look(&away), None);
        }
    }
}
