//! What each command does: the one place where the cluster's state changes.
//!
//! Deterministic: the result depends on the state and the command alone. Retried commands find their
//! first answer (ONE-1); a refused command changes nothing but the memory of its refusal.

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketId, BucketName, BucketSpec, Epoch, Hlc, Labels, Node, NodeId, OperationId, Phase, Refusal,
    RefusalKind, Region, RegionId, ShardId, Standing,
};

use crate::command::{Action, Command, Form, NodeSpec};
use crate::event::Event;
use crate::reply::{Answer, Reply};
use crate::spec::{check_form, check_label_change, check_labels, check_node, invalid};
use crate::state::{ClusterState, Formed, NODES_MAX, ShardGroup};

/// The most bytes of each part of a note.
const NOTE_BYTES_MAX: usize = 256;

/// A command that took effect: its reply, and what changed for the event ring.
pub(crate) struct Done {
    pub(crate) reply: Reply,
    /// What the command itself changed (`None`: nothing).
    pub(crate) change: Option<String>,
    /// What it brought about besides: steps of operations.
    pub(crate) steps: Vec<StepTaken>,
}

/// A step of an operation, for the event ring.
pub(crate) struct StepTaken {
    pub(crate) verb: &'static str,
    pub(crate) subject: String,
    pub(crate) detail: String,
}

impl Done {
    pub(crate) fn new(reply: Reply, change: Option<String>) -> Done {
        Done { reply, change, steps: Vec::new() }
    }
}

/// When and by whom a command is carried out.
#[derive(Clone, Copy)]
pub(crate) struct Occasion<'a> {
    pub(crate) index: u64,
    pub(crate) at: Hlc,
    /// What the leader's clock said, whatever earlier ones had said.
    pub(crate) at_ms: u64,
    pub(crate) operation: OperationId,
    pub(crate) who: &'a str,
}

impl ClusterState {
    /// Applies the command that was committed at `index`.
    ///
    /// # Errors
    /// A [`Refusal`] when the command is not possible in this state; it is as much a result as a reply, and
    /// every replica comes to the same one.
    ///
    /// # Panics
    /// When `index` does not rise: the caller applied a log twice.
    pub fn apply(&mut self, index: u64, command: &Command) -> Answer {
        assert!(index > self.index, "metadata index {index} was applied after {}", self.index);
        self.index = index;
        if let Some(first) = self.operations.answer(command.operation, &command.action) {
            return first;
        }
        let at_ms = command.at_ms.min(AT_MS_MAX);
        let at = self.clock.next(at_ms);
        let occasion = Occasion { index, at, at_ms, operation: command.operation, who: &command.who };
        let answer = self.act(occasion, &command.action).map(|mut done| {
            self.follow_changes(occasion, &command.action, &mut done.steps);
            self.record(occasion, &command.action, done.change, done.steps);
            done.reply
        });
        self.operations.remember(command.operation, &command.action, &answer);
        answer
    }

    /// What the command would come to if it were the next one; for dry runs, on a state nobody keeps.
    ///
    /// # Errors
    /// As [`ClusterState::admits`] and [`ClusterState::apply`].
    pub fn try_apply(mut self, command: &Command) -> Answer {
        self.admits(&command.action)?;
        self.apply(self.index + 1, command)
    }

    fn record(&mut self, occasion: Occasion<'_>, action: &Action, change: Option<String>, steps: Vec<StepTaken>) {
        let own = change.map(|detail| StepTaken { verb: action.verb(), subject: action.subject(), detail });
        for StepTaken { verb, subject, detail } in own.into_iter().chain(steps) {
            self.clock = self.clock.next(occasion.at_ms);
            self.events.push(Event {
                index: occasion.index,
                at: self.clock,
                who: occasion.who.to_owned(),
                verb: verb.to_owned(),
                subject,
                detail,
            });
        }
    }

    pub(crate) fn act(&mut self, occasion: Occasion<'_>, action: &Action) -> Result<Done, Refusal> {
        match action {
            Action::FormCluster(form) => self.form(form),
            Action::FormClusterAt { form, format } => self.form_at(form, *format),
            Action::Finalize { format } => self.finalize(*format),
            Action::RegisterNode(node) => self.register(node),
            Action::CreateBucket(spec) => self.create_bucket(occasion.at, spec),
            Action::DeleteBucket { name } => self.delete_bucket(name),
            Action::SetLabels { name, set, remove } => self.set_labels(name, set, remove),
            Action::Switchover(spec) => self.plan_switchover(occasion, spec),
            Action::Report { region, words } => Ok(self.hear(occasion, *region, words)),
            Action::Abort { plan, scope, why } => self.abort(occasion, *plan, scope, why),
            Action::SetBucket { name, change } => self.set_bucket(occasion, name, change),
            Action::SetDetection { name, detect_ms } => self.set_detection(name, *detect_ms),
            Action::SetPolicy { name, policy, auto } => self.set_policy(occasion, name, *policy, auto.as_ref()),
            Action::SetRegions { name, change } => self.set_regions(occasion, name, change),
            Action::Cross { name, policy, auto, cross } => self.cross(occasion, (name, *policy), auto.as_ref(), cross),
            Action::CrossRegions { name, change, pause_ms_max } => {
                self.regroup(occasion, name, change, Some(*pause_ms_max))
            }
            Action::LoseRegion { name, region, epoch, accepted, pause_ms_max } => {
                self.lose_region(occasion, (name, region), (*epoch, *accepted), *pause_ms_max)
            }
            Action::GiveUpCrossing { bucket, index, why } => {
                Ok(self.give_up_crossing(occasion.at, *bucket, *index, why))
            }
            Action::ReportStanding { region, words } => Ok(self.hear_standing(occasion.at, *region, words)),
            Action::Failover(spec) => self.plan_failover(occasion, spec),
            Action::Advance { plan, seen } => self.advance(occasion, *plan, seen),
            Action::Observe { bucket, epoch, what } => Ok(self.observe(*bucket, *epoch, what)),
            Action::Note { deed, subject, detail } => note(deed, subject, detail),
            Action::ChangeMembers { region, change } => self.change_members(occasion, region, change),
            Action::ShardsMoved { region, shards, change } => Ok(self.note_moved(*region, shards, *change)),
            Action::RemoveNode { name } => self.remove_node(name),
            Action::Change { ask, reason } => self.change(occasion, ask, reason),
        }
    }

    pub(crate) fn form(&mut self, form: &Form) -> Result<Done, Refusal> {
        if let Some(formed) = &self.formed {
            // Every new leader proposes it until it sees the cluster; the first one won.
            return Ok(Done::new(Reply::Formed { cluster: formed.cluster }, None));
        }
        check_form(form)?;
        self.formed = Some(Formed { cluster: form.cluster, shards: form.shards, lease_ttl_ms: form.lease_ttl_ms });
        for member in &form.members {
            let region = self.region_id(&member.region).unwrap_or_else(|| self.add_region(member));
            self.nodes.insert(NodeId::of(&member.name), node_of(member, region));
        }
        for region in self.regions.keys() {
            // A witness votes in the metadata group, and that is all.
            if self.nodes.values().all(|node| node.region != *region || node.is_witness()) {
                continue;
            }
            let at_home = form.members.iter().map(|m| NodeId::of(&m.name)).filter(|id| self.is_in(*id, *region));
            let voters: Vec<_> = at_home.take(VOTERS_MAX).collect();
            for shard in (0..form.shards).map(ShardId) {
                self.groups.insert((*region, shard), ShardGroup { voters: voters.clone(), config_epoch: 1 });
            }
        }
        let witnesses = self.regions.keys().filter(|region| !self.holds_data(**region)).count();
        let change = format!(
            "{} regions{}, {} nodes, {} shards, leases of {} ms",
            self.regions.len(),
            if witnesses == 0 { String::new() } else { format!(" ({witnesses} without data)") },
            self.nodes.len(),
            form.shards,
            form.lease_ttl_ms
        );
        Ok(Done::new(Reply::Formed { cluster: form.cluster }, Some(change)))
    }

    fn add_region(&mut self, member: &NodeSpec) -> RegionId {
        self.last_region = RegionId(self.last_region.0 + 1);
        self.regions.insert(self.last_region, Region { id: self.last_region, name: member.region.clone() });
        self.last_region
    }

    fn register(&mut self, spec: &NodeSpec) -> Result<Done, Refusal> {
        self.require_formed()?;
        check_node(spec)?;
        self.check_not_retired(&spec.name)?;
        let region = self.region_id(&spec.region).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("node `{}` is in region `{}`, which is not part of this cluster", spec.name, spec.region),
            )
        })?;
        let node = node_of(spec, region);
        if node.is_witness() == self.holds_data(region) {
            return Err(invalid(format!(
                "node `{}` {}: a region either holds data or is a witness, for good; give the node another region",
                node.name,
                if node.is_witness() {
                    format!("is a witness, but region `{}` holds data", spec.region)
                } else {
                    format!("holds data, but region `{}` is a witness", spec.region)
                }
            )));
        }
        let reply = Reply::Registered { node: node.id, region };
        let change = match self.nodes.get(&node.id) {
            Some(known) if *known == node => None,
            Some(known) if known.name != node.name => {
                return Err(conflict(format!(
                    "`{}` and `{}` have the same node id: rename one",
                    known.name, node.name
                )));
            }
            Some(known) if known.region != region => {
                return Err(conflict(format!(
                    "node `{}` is registered in another region; a node can't move: give it another name",
                    node.name
                )));
            }
            None if self.nodes.len() >= NODES_MAX => {
                return Err(Refusal::new(
                    RefusalKind::Unavailable,
                    format!("the cluster has {NODES_MAX} nodes, the most it can have"),
                ));
            }
            Some(_) | None => Some(format!(
                "rpc {}, replication {}, zone {}, version {}",
                node.rpc_address, node.replication_address, node.zone, node.version
            )),
        };
        if change.is_some() {
            self.nodes.insert(node.id, node);
        }
        Ok(Done::new(reply, change))
    }

    fn create_bucket(&mut self, at: Hlc, spec: &BucketSpec) -> Result<Done, Refusal> {
        let placement = self.place(spec)?;
        let id = BucketId(self.last_bucket.0.checked_add(1).ok_or_else(|| {
            Refusal::new(RefusalKind::Unavailable, "this cluster has used up its bucket ids: create another cluster")
        })?);
        let bucket = Bucket {
            id,
            name: spec.name.clone(),
            policy: spec.policy,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: placement.primary,
            regions: placement.regions,
            labels: spec.labels.clone(),
            created: at,
            standing: Standing::Sync { since: at },
            auto: placement.auto,
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        };
        self.last_bucket = id;
        self.bucket_ids.insert(spec.name.clone(), id);
        self.buckets.insert(id, Arc::new(bucket.clone()));
        let change = format!("bucket {id}, {}, {} regions", bucket.policy, bucket.regions.len());
        Ok(Done::new(Reply::of_bucket(bucket), Some(change)))
    }

    fn delete_bucket(&mut self, name: &BucketName) -> Result<Done, Refusal> {
        let bucket = self.existing(name)?;
        self.check_still(bucket)?;
        let id = bucket.id;
        self.buckets.remove(&id);
        self.bucket_ids.remove(name);
        Ok(Done::new(Reply::Deleted { bucket: id }, Some(format!("bucket {id}"))))
    }

    fn set_labels(&mut self, name: &BucketName, set: &Labels, remove: &BTreeSet<String>) -> Result<Done, Refusal> {
        check_label_change(set, remove)?;
        let mut bucket = Bucket::clone(self.existing(name)?);
        let before = bucket.labels.clone();
        bucket.labels.retain(|key, _| !remove.contains(key));
        bucket.labels.extend(set.clone());
        check_labels(&bucket.labels)?;
        let change = (bucket.labels != before).then(|| format!("{} set, {} removed", set.len(), remove.len()));
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done::new(Reply::of_bucket(bucket), change))
    }

    fn is_in(&self, node: NodeId, region: RegionId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.region == region)
    }

    pub(crate) fn existing(&self, name: &BucketName) -> Result<&Arc<Bucket>, Refusal> {
        self.bucket_named(name).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("there is no bucket named `{name}`: see `meridian bucket list` for those that exist"),
            )
        })
    }
}

/// The most voters of one shard's group (design 1): more cost every write another copy and no quorum less.
pub(crate) const VOTERS_MAX: usize = 5;

/// The year 9999: a proposer's broken clock must not use up the timestamps of all others.
const AT_MS_MAX: u64 = 253_402_300_799_999;

/// What an operator did elsewhere: it changes nothing but the ring.
fn note(deed: &str, subject: &str, detail: &str) -> Result<Done, Refusal> {
    if deed.len().max(subject.len()).max(detail.len()) > NOTE_BYTES_MAX {
        let why = format!("a note for the record has at most {NOTE_BYTES_MAX} bytes in each of its parts");
        return Err(Refusal::new(RefusalKind::Invalid, why));
    }
    Ok(Done::new(Reply::Reported, Some(format!("{deed}: {detail}"))))
}

fn node_of(spec: &NodeSpec, region: RegionId) -> Node {
    Node {
        id: NodeId::of(&spec.name),
        name: spec.name.clone(),
        region,
        zone: spec.zone.clone(),
        rpc_address: spec.rpc_address.clone(),
        replication_address: spec.replication_address.clone(),
        version: spec.version.clone(),
    }
}

fn conflict(message: String) -> Refusal {
    Refusal::new(RefusalKind::Conflict, message)
}
