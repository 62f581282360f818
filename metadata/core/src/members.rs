//! Changing who serves a region while it serves (design 5).
//!
//! ```text
//!   ChangeMembers ──► target, every shard pending ──ShardsMoved──► none pending: the change is over
//!                          └──another goal, or back to who was there before──► every shard pending again
//! ```
//! Every node of a region holds all of its shards, so what is decided is a list of nodes. What may be asked is decided here; each
//! shard's leader carries it out (`region/node`), and says when its group votes as it should and every earlier configuration is
//! void. Until all have, everybody who was there before still serves: to let a node go may need its own vote.
//!
//! A node that was removed is never registered again, under whatever certificate: a group that lags could count a vote of its new life
//! beside one of the old.
//!
//! Deliberately not here: leases (`metadata/node` refuses to remove who may hold one), and when a silent node is replaced by itself
//! ([`crate::mender`]).

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{
    MemberChange, MembersChange, Membership, Node, NodeId, NodeName, Refusal, RefusalKind, RegionId, RegionName,
    ShardId,
};

use crate::apply::{Done, Occasion, StepTaken, VOTERS_MAX};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::{ClusterState, Fault, rule};

/// The most removed nodes that are remembered: a node a day for a decade.
pub const RETIRED_MAX: usize = 4096;

/// Who comes and goes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Members {
    pub(crate) changes: BTreeMap<RegionId, MemberChange>,
    /// Nodes that were removed, for good.
    pub(crate) retired: BTreeSet<NodeId>,
}

impl Members {
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.retired.is_empty()
    }
}

impl ClusterState {
    /// Regions whose members change.
    pub fn member_changes(&self) -> &BTreeMap<RegionId, MemberChange> {
        &self.members.changes
    }

    /// Who was to vote in a shard's group when the cluster was formed; nobody once that has changed: then its log says it.
    pub fn founders(&self, region: RegionId, shard: ShardId) -> &[NodeId] {
        let group = self.groups.get(&(region, shard)).filter(|group| group.config_epoch == FOUNDING);
        group.map_or(&[], |group| group.voters.as_slice())
    }

    pub(crate) fn change_members(
        &mut self,
        occasion: Occasion<'_>,
        name: &RegionName,
        change: &MembersChange,
    ) -> Result<Done, Refusal> {
        self.require_formed()?;
        let region = self.region_id(name).filter(|region| self.holds_data(*region)).ok_or_else(|| {
            Refusal::new(RefusalKind::NotFound, format!("there is no region `{name}` that holds data"))
        })?;
        let serving = self.voters(region, ShardId(0)).to_vec();
        let under_way = self.members.changes.get(&region);
        let before = under_way.map_or_else(|| serving.clone(), |it| it.before.clone());
        // Another goal in the middle of a change: a node that was to join may have died, too.
        let from = under_way.map_or(&serving, |it| &it.target);
        let target = match change {
            MembersChange::Abort if under_way.is_none() => {
                return Err(invalid(format!("nothing is under way in `{name}` that could be taken back")));
            }
            MembersChange::Abort => before.clone(),
            asked => self.target(region, name, from, asked)?,
        };
        let given_up = under_way.into_iter().flat_map(|it| it.target.iter().chain(&it.strays));
        let strays = given_up.filter(|node| !before.contains(node) && !target.contains(node)).copied().collect();
        let detail = format!("{change}: {} to {}", self.names(from), self.names(&target));
        let pending = (0..self.shards()).map(ShardId).collect();
        let (index, since_ms, who) = (occasion.index, occasion.at_ms, occasion.who.to_owned());
        self.members.changes.insert(region, MemberChange { index, since_ms, who, target, before, strays, pending });
        Ok(Done::new(Reply::Reported, Some(detail)))
    }

    /// After a recovery from one copy, which may be older than what the groups have come to: whoever may vote in some shard serves until
    /// its leaders have brought the groups to what is on record.
    pub(crate) fn recover_members(&mut self, index: u64, since_ms: u64, who: &str) {
        let regions: Vec<RegionId> = self.regions.keys().copied().filter(|region| self.holds_data(*region)).collect();
        for region in regions {
            let serving = self.voters(region, ShardId(0)).to_vec();
            let under_way = self.members.changes.remove(&region);
            let rests = under_way.is_none();
            let (target, before) = under_way.map_or_else(|| (serving.clone(), serving), |it| (it.target, it.before));
            let at_home = self.nodes.values().filter(|node| node.region == region).map(|node| node.id);
            let strays: BTreeSet<_> = at_home.filter(|it| !target.contains(it) && !before.contains(it)).collect();
            if strays.is_empty() && rests {
                continue;
            }
            let pending = (0..self.shards()).map(ShardId).collect();
            let change = MemberChange { index, since_ms, who: who.to_owned(), target, before, strays, pending };
            self.members.changes.insert(region, change);
        }
    }

    /// The members that a change asks for.
    fn target(
        &self,
        region: RegionId,
        name: &RegionName,
        from: &[NodeId],
        change: &MembersChange,
    ) -> Result<Vec<NodeId>, Refusal> {
        let mut members = from.to_vec();
        match change {
            MembersChange::Join(nodes) => {
                for node in nodes {
                    members.push(self.spare(region, node)?);
                }
            }
            MembersChange::Replace(old, new) => {
                let (old, new) = (self.member(&members, name, old)?, self.spare(region, new)?);
                members.iter_mut().filter(|member| **member == old).for_each(|member| *member = new);
            }
            MembersChange::Drain(nodes) => {
                let leaving = nodes.iter().map(|node| self.member(&members, name, node));
                let leaving = leaving.collect::<Result<BTreeSet<_>, _>>()?;
                members = self.without(region, &members, &leaving);
            }
            MembersChange::Abort => {}
        }
        if members.iter().collect::<BTreeSet<_>>().len() < members.len() {
            return Err(invalid("a node is named twice: name each once"));
        }
        if !members.len().is_multiple_of(2) && members.len() <= VOTERS_MAX {
            return Ok(members);
        }
        Err(invalid(format!(
            "`{name}` would have {} nodes that hold its shards: it can have 1, 3 or 5; have spares join two at a time, or name a spare to take the place (`meridian node replace`)",
            members.len()
        )))
    }

    /// The members without those who leave; spares take their places, those in zones of their own first.
    fn without(&self, region: RegionId, members: &[NodeId], leaving: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let zone = |node: &NodeId| self.nodes.get(node).map(|node| node.zone.as_str());
        let stays: Vec<NodeId> = members.iter().copied().filter(|node| !leaving.contains(node)).collect();
        let mut zones: BTreeSet<_> = stays.iter().map(zone).collect();
        let mut spares: Vec<NodeId> = self.spares(region).map(|node| node.id).collect();
        let mut next = || {
            let apart = spares.iter().position(|spare| !zones.contains(&zone(spare)));
            let place = apart.or((!spares.is_empty()).then_some(0))?;
            zones.insert(zone(&spares[place]));
            Some(spares.remove(place))
        };
        // In place, so that the turns of the others as leaders stay as they are.
        members.iter().filter_map(|node| if leaving.contains(node) { next() } else { Some(*node) }).collect()
    }

    /// Nodes of a region that hold nothing.
    pub(crate) fn spares(&self, region: RegionId) -> impl Iterator<Item = &Node> {
        let here = move |node: &&Node| node.region == region && !node.is_witness() && !self.is_member(node.id, region);
        self.nodes.values().filter(here)
    }

    /// Whether some node of some region holds nothing.
    pub fn has_spare(&self) -> bool {
        self.nodes.values().any(|node| !node.is_witness() && !self.serves(node.id))
    }

    fn is_member(&self, node: NodeId, region: RegionId) -> bool {
        let change = self.members.changes.get(&region);
        let comes_or_goes = change
            .is_some_and(|it| it.target.contains(&node) || it.before.contains(&node) || it.strays.contains(&node));
        comes_or_goes || self.voters(region, ShardId(0)).contains(&node)
    }

    /// Whether a node holds shards of its region, or is about to.
    pub(crate) fn serves(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|known| self.is_member(node, known.region))
    }

    fn spare(&self, region: RegionId, name: &NodeName) -> Result<NodeId, Refusal> {
        let node = self.known_node(name)?;
        if node.region != region || node.is_witness() {
            let home = self.region_name(node.region);
            return Err(invalid(format!("`{name}` is a node of `{home}`: a node serves the region that it is in")));
        }
        match self.is_member(node.id, region) {
            true => Err(Refusal::new(RefusalKind::Exists, format!("`{name}` holds the shards of its region already"))),
            false => Ok(node.id),
        }
    }

    fn member(&self, members: &[NodeId], region: &RegionName, name: &NodeName) -> Result<NodeId, Refusal> {
        let node = self.known_node(name)?;
        match members.contains(&node.id) {
            true => Ok(node.id),
            false => Err(invalid(format!("`{name}` holds no shards of `{region}`: see `meridian node list`"))),
        }
    }

    fn known_node(&self, name: &NodeName) -> Result<&Node, Refusal> {
        self.nodes.get(&NodeId::of(name)).ok_or_else(|| {
            let message = format!(
                "there is no node `{name}`: a node registers by itself once it is started, see `meridian node list`"
            );
            Refusal::new(RefusalKind::NotFound, message)
        })
    }

    fn names(&self, nodes: &[NodeId]) -> String {
        let name = |id: &NodeId| self.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.to_string());
        nodes.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// These shards' groups vote as their region's change asks, and no other configuration can decide any more. Of another change, or
    /// said again, it means nothing.
    pub(crate) fn note_moved(&mut self, region: RegionId, shards: &BTreeSet<ShardId>, index: u64) -> Done {
        let mut done = Done::new(Reply::Reported, None);
        let Some(change) = self.members.changes.get_mut(&region).filter(|change| change.index == index) else {
            return done;
        };
        for shard in shards {
            if let Some(group) = self.groups.get_mut(&(region, *shard)).filter(|_| change.pending.remove(shard)) {
                group.voters = change.target.clone();
                group.config_epoch = group.config_epoch.saturating_add(1);
            }
        }
        if change.pending.is_empty()
            && let Some(over) = self.members.changes.remove(&region)
        {
            let subject = self.region_name(region);
            let detail = format!("served by {}", self.names(&over.target));
            done.steps.push(StepTaken { verb: "members-changed", subject, detail });
        }
        done
    }

    pub(crate) fn remove_node(&mut self, name: &NodeName) -> Result<Done, Refusal> {
        let node = self.known_node(name)?.clone();
        match self.topology().membership(node.id) {
            Some(Membership::Spare) => {}
            Some(Membership::Witness) => {
                return Err(invalid(format!("`{name}` is a witness, which the metadata plane was formed with")));
            }
            Some(is @ (Membership::Member | Membership::Joining | Membership::Leaving)) => {
                let is = if is == Membership::Member { "a member".to_owned() } else { is.to_string() };
                let message = format!("`{name}` is {is}, it holds shards: `meridian node drain {name}` first");
                return Err(Refusal::new(RefusalKind::Conflict, message));
            }
            None => return Err(invalid(format!("`{name}` is not registered"))),
        }
        if self.members.retired.len() >= RETIRED_MAX {
            let message = format!("{RETIRED_MAX} nodes have been removed from this cluster, the most it can remember");
            return Err(Refusal::new(RefusalKind::Unavailable, message));
        }
        self.nodes.remove(&node.id);
        self.members.retired.insert(node.id);
        Ok(Done::new(Reply::Reported, Some(format!("of {}", self.region_name(node.region)))))
    }

    /// Refuses whoever was removed.
    pub(crate) fn check_not_retired(&self, name: &NodeName) -> Result<(), Refusal> {
        if !self.members.retired.contains(&NodeId::of(name)) {
            return Ok(());
        }
        let message = format!(
            "node `{name}` was removed from the cluster: its name is not used again; give the machine another name, a certificate for it, and an empty `data_dir`"
        );
        Err(Refusal::new(RefusalKind::Denied, message))
    }

    pub(crate) fn validate_members(&self) -> Result<(), Fault> {
        rule(self.members.retired.len() <= RETIRED_MAX, "too many removed nodes are remembered")?;
        rule(self.members.retired.iter().all(|node| !self.nodes.contains_key(node)), "a removed node is a node")?;
        for (region, change) in &self.members.changes {
            let at_home = |node: &NodeId| self.nodes.get(node).is_some_and(|node| node.region == *region);
            rule(self.holds_data(*region), "members change in a region that holds no data")?;
            rule(
                change.target.iter().chain(&change.before).chain(&change.strays).all(at_home),
                "a node joins a region that it is not in",
            )?;
            let odd = |nodes: &[NodeId]| !nodes.len().is_multiple_of(2) && nodes.len() <= VOTERS_MAX;
            rule(odd(&change.target) && odd(&change.before), "a region is to have an even number of members")?;
            rule(!change.pending.is_empty(), "a change of members is over and still there")?;
            rule(change.pending.iter().all(|shard| shard.0 < self.shards()), "a shard moves that does not exist")?;
            rule(change.index <= self.index, "a change of members is from the future")?;
            let moved = |shard: &ShardId| self.voters(*region, *shard) == change.target;
            let mut others = (0..self.shards()).map(ShardId).filter(|shard| !change.pending.contains(shard));
            rule(others.all(|shard| moved(&shard)), "a shard has moved, but not to where it was to")?;
        }
        Ok(())
    }
}

/// The epoch of a group's configuration that the cluster was formed with.
const FOUNDING: u64 = 1;

#[cfg(test)]
pub(crate) mod tests;
