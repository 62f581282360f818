//! The metadata plane as the rest of a node sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_metadata_core::event;
use meridian_metadata_core::lose::agreed;
use meridian_metadata_core::state::LEASE_TTL_MS_MAX;
use meridian_metadata_core::{AbortScope, Action, ClusterState, Command, Reply};
use meridian_proto::v1::metadata_peer_server::MetadataPeerServer;
use meridian_types::release::FORMAT_NEWEST;
use meridian_types::{
    Bucket, BucketChange, BucketId, BucketName, BucketSpec, Effect, EventPage, EventQuery, FailoverSpec, Labels,
    MemberChange, MembersChange, NodeId, NodeName, Operation, OperationId, Plan, PlanId, Refusal, RefusalKind,
    RegionChange, RegionId, RegionName, Selection, ShardId, StandingWord, SwitchoverSpec, Topology, Word,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ask::Asker;
use crate::clock::wall_ms;
use crate::copy::LocalCopy;
use crate::leader::Leader;
use crate::peer::{self, PeerService};
use crate::register::Registration;
use crate::tell::Telling;

/// The metadata plane on this node. Cheap to clone; works while [`crate::Service`] runs.
#[derive(Clone)]
pub struct Handle {
    pub(crate) copy: Arc<LocalCopy>,
    pub(crate) leader: Arc<Leader>,
    pub(crate) asker: Arc<Asker>,
    pub(crate) registration: watch::Receiver<Registration>,
    pub(crate) words: mpsc::Sender<Telling>,
}

impl Handle {
    /// This node's copy of the cluster. Asks nobody.
    pub fn topology(&self) -> Arc<Topology> {
        self.copy.topology()
    }

    /// Every change of it; intermediate ones may be skipped.
    pub fn changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.copy.changes()
    }

    /// Until when this node may act as primary on the topology it has, by its own monotonic clock; `None` or a
    /// moment that has passed means it may not. One atomic load, to be compared with the clock *after* the
    /// write is committed and before it is acknowledged.
    pub fn lease_until(&self) -> Option<Instant> {
        self.copy.lease.until()
    }

    /// For how long this node may have acted without a break, so that whoever counted it as gone did so before that; zero when it may not
    /// act now.
    pub fn lease_tenure(&self) -> Duration {
        self.copy.lease.tenure(Instant::now())
    }

    /// Every change of [`Handle::lease_until`]. Running out is no change: compare with the clock.
    pub fn lease_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.copy.lease.changes()
    }

    /// Who leads the metadata group, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.leadership().leader
    }

    /// Tells the metadata leader from now on which regions this node hears nothing from: what automatic failover rests on.
    pub fn listen(&self, silent: impl Fn() -> BTreeSet<RegionId> + Send + Sync + 'static) {
        self.asker.ears.listen(Box::new(silent));
    }

    /// Whether this node votes in the metadata group.
    pub fn votes(&self) -> bool {
        self.leader.votes()
    }

    /// The voters of the metadata group, as this node's log has them.
    pub fn voters(&self) -> Vec<NodeId> {
        self.leader.voters()
    }

    /// If this node leads the metadata group: the nodes whose lease it granted and that has not run out.
    pub fn leases(&self) -> Vec<NodeId> {
        self.leader.live()
    }

    /// The metadata index this node has applied.
    pub fn index(&self) -> u64 {
        self.copy.index()
    }

    /// Whether the cluster is formed and knows this node as it is now.
    pub fn is_registered(&self) -> bool {
        *self.registration.borrow() == Registration::Done
    }

    /// The last changes to the cluster, oldest first: who did what, when. Asks nobody.
    pub fn events(&self, query: &EventQuery) -> EventPage {
        self.copy.read(|state| event::page(state, query))
    }

    /// Empty when healthy; else one sentence each, with the remedy.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match &*self.registration.borrow() {
            Registration::Done => {}
            Registration::Pending => problems.push(
                "this node is not registered yet: a majority of the metadata voters must be up and reachable from here"
                    .to_owned(),
            ),
            Registration::Refused(why) => problems.push(format!("this node's registration was refused: {why}")),
        }
        if self.lease_until().is_none_or(|until| until <= Instant::now()) {
            problems.push(
                "this node holds no lease, so it accepts no writes as primary: a majority of the metadata voters must be up and reachable from here"
                    .to_owned(),
            );
        }
        problems
    }

    /// The gRPC service for other nodes.
    pub fn peer_service(&self) -> MetadataPeerServer<PeerService> {
        peer::server(Arc::clone(&self.leader), Arc::clone(&self.copy))
    }

    /// Creates a bucket and returns it, known to this node. A dry run decides by this node's copy and changes nothing.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] names the fields in conflict, [`RefusalKind::NotFound`] an unknown region,
    /// [`RefusalKind::Exists`] a name that is taken; [`RefusalKind::Unavailable`] without a metadata quorum.
    pub async fn create_bucket(&self, spec: BucketSpec, dry_run: bool, who: &str) -> Result<Bucket, Refusal> {
        self.run(Action::CreateBucket(spec), dry_run, who).await.and_then(bucket_of)
    }

    /// Deletes a bucket with all its data and returns its id, retired for ever.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`]; [`RefusalKind::Unavailable`] without a metadata quorum.
    pub async fn delete_bucket(&self, name: BucketName, dry_run: bool, who: &str) -> Result<BucketId, Refusal> {
        match self.run(Action::DeleteBucket { name }, dry_run, who).await? {
            Reply::Deleted { bucket } => Ok(bucket),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes labels of a bucket and returns it.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`]; [`RefusalKind::Invalid`] beyond the bounds of labels; [`RefusalKind::Unavailable`]
    /// without a metadata quorum.
    pub async fn set_labels(
        &self,
        name: BucketName,
        set: Labels,
        remove: BTreeSet<String>,
        who: &str,
    ) -> Result<Bucket, Refusal> {
        self.run(Action::SetLabels { name, set, remove }, false, who).await.and_then(bucket_of)
    }

    /// Changes what can be changed of a bucket at any time, and returns it. A dry run decides by this node's copy and changes
    /// nothing.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`]; [`RefusalKind::Invalid`] names the fields in conflict; [`RefusalKind::Unavailable`]
    /// without a metadata quorum.
    pub async fn set_bucket(
        &self,
        name: BucketName,
        change: BucketChange,
        dry_run: bool,
        who: &str,
    ) -> Result<Bucket, Refusal> {
        let operation = change.operation.unwrap_or_else(|| OperationId(rand::random()));
        if let Some(detect_ms) = change.detect_ms {
            let command = command(operation, Action::SetDetection { name, detect_ms }, who);
            let mut bucket = self.run_as(&command, dry_run).await.and_then(bucket_of)?;
            bucket.auto.detect_ms = detect_ms;
            return Ok(bucket);
        }
        let reason = change.reason;
        let action = match (change.regions, change.policy, change.cross) {
            (Some(RegionChange::Remove(region)), _, Some(cross)) if let Some(consent) = &change.accept_loss => {
                let (epoch, accepted) = agreed(consent, &name, &region)?;
                Action::LoseRegion { name, region, epoch, accepted, pause_ms_max: cross.pause_ms_max }
            }
            (Some(change), _, Some(cross)) => Action::CrossRegions { name, change, pause_ms_max: cross.pause_ms_max },
            (Some(change), ..) => Action::SetRegions { name, change },
            (None, Some(policy), Some(cross)) => Action::Cross { name, policy, auto: change.auto, cross },
            (None, Some(policy), None) => Action::SetPolicy { name, policy, auto: change.auto },
            (None, None, _) => {
                let reason = String::new();
                Action::SetBucket { name, change: BucketChange { regions: None, cross: None, reason, ..change } }
            }
        };
        let command = command(operation, action.on_record(reason), who);
        self.run_as(&command, dry_run).await.and_then(bucket_of)
    }

    /// Puts on record what an operator did to what is not the metadata plane's: the event ring says who, when and what.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] beyond its bounds; [`RefusalKind::Unavailable`] without a metadata quorum.
    pub async fn note(&self, deed: &str, subject: String, detail: String, who: &str) -> Result<(), Refusal> {
        self.run(Action::Note { deed: deed.to_owned(), subject, detail }, false, who).await.map(|_| ())
    }

    /// Plans to move primaries, and returns the operation once it is known here; whoever asks again under the same id gets
    /// the same one. A dry run decides by this node's copy and changes nothing.
    ///
    /// # Errors
    /// [`RefusalKind::Retry`] names the operation that has one of the buckets; [`RefusalKind::Invalid`] and
    /// [`RefusalKind::NotFound`] what can't move; [`RefusalKind::Unavailable`] without a metadata quorum.
    pub async fn switchover(
        &self,
        spec: SwitchoverSpec,
        operation: OperationId,
        dry_run: bool,
        who: &str,
    ) -> Result<Arc<Plan>, Refusal> {
        self.operate(command(operation, Action::Switchover(spec), who), dry_run).await
    }

    async fn operate(&self, command: Command, dry_run: bool) -> Result<Arc<Plan>, Refusal> {
        if dry_run {
            let mut state = self.copy.read(|state| state.clone());
            let plan = plan_of(&state.apply(state.index() + 1, &command)?)?;
            return state.plan(plan).cloned().ok_or_else(|| not_here(plan));
        }
        let plan = plan_of(&self.commit(&command).await?)?;
        self.plan(plan).ok_or_else(|| not_here(plan))
    }

    /// Plans to replace primaries that are lost, and returns the operation once it is known here; whoever asks again under the
    /// same id gets the same one. A dry run decides by this node's copy and changes nothing.
    ///
    /// # Errors
    /// [`RefusalKind::Consent`] when something could be lost that nobody has agreed to; else as [`Handle::switchover`].
    pub async fn failover(
        &self,
        spec: FailoverSpec,
        operation: OperationId,
        dry_run: bool,
        who: &str,
    ) -> Result<Arc<Plan>, Refusal> {
        self.operate(command(operation, Action::Failover(spec), who), dry_run).await
    }

    /// The buckets that are selected, as this node knows them.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`] names what there is not.
    pub fn selected(&self, buckets: &Selection) -> Result<Vec<Arc<Bucket>>, Refusal> {
        self.copy.read(|state| state.selected(buckets))
    }

    /// Gives up what is under way of an operation: old primaries are restored. Returns it as it then is.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`]; [`RefusalKind::Conflict`] when it has ended; [`RefusalKind::Unavailable`] without a
    /// metadata quorum.
    pub async fn abort(&self, plan: PlanId, why: String, who: &str) -> Result<Operation, Refusal> {
        self.run(Action::Abort { plan, scope: AbortScope::All, why }, false, who).await?;
        self.operation(plan).ok_or_else(|| not_here(plan))
    }

    /// Every operation under way and those remembered, oldest first, as this node knows them: what moves primaries, and what changes
    /// buckets. Asks nobody.
    pub fn operations(&self) -> Vec<Operation> {
        let mut known: Vec<Operation> = self.copy.read(|state| {
            let moves = state.plans().map(|plan| Operation::Moves(Arc::clone(plan)));
            moves.chain(state.changes().map(|change| Operation::Change(Arc::clone(change)))).collect()
        });
        known.sort_by_key(Operation::id);
        known
    }

    /// An operation of either kind, as this node knows it. Asks nobody.
    pub fn operation(&self, id: PlanId) -> Option<Operation> {
        self.copy.read(|state| {
            let moves = state.plan(id).map(|plan| Operation::Moves(Arc::clone(plan)));
            moves.or_else(|| state.change_of(id).map(|change| Operation::Change(Arc::clone(change))))
        })
    }

    /// The operations that move primaries, under way and remembered, oldest first, as this node knows them. Asks nobody.
    pub fn plans(&self) -> Vec<Arc<Plan>> {
        self.copy.read(|state| state.plans().cloned().collect())
    }

    /// An operation that moves primaries, as this node knows it. Asks nobody.
    pub fn plan(&self, id: PlanId) -> Option<Arc<Plan>> {
        self.copy.read(|state| state.plan(id).cloned())
    }

    /// Tells the metadata plane what this node's shards have come to in an operation; words that are told at the same time go
    /// together. Resolves once it is on record, or was no longer news.
    ///
    /// # Errors
    /// [`RefusalKind::Unavailable`] when no metadata quorum was reached in time: tell it again, it can't count twice.
    pub async fn tell(&self, word: Word) -> Result<(), Refusal> {
        let (heard, answer) = oneshot::channel();
        let stopped = || Refusal::new(RefusalKind::Unavailable, "the metadata plane has stopped on this node");
        self.words.send(Telling { word, heard }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Tells the metadata plane how copies of a bucket come along in this node's shards. Resolves once it is on record, or was
    /// no longer news.
    ///
    /// # Errors
    /// [`RefusalKind::Unavailable`] when no metadata quorum was reached in time: tell it again, it can't count twice.
    pub async fn tell_standing(&self, word: StandingWord) -> Result<(), Refusal> {
        self.say(|region| Action::ReportStanding { region, words: vec![word] }).await
    }

    /// Puts on record what this node says for its region.
    async fn say(&self, word: impl FnOnce(RegionId) -> Action) -> Result<(), Refusal> {
        let topology = self.topology();
        let node = topology.nodes.get(&self.asker.this()).ok_or_else(|| {
            Refusal::new(RefusalKind::Retry, "this node is not registered yet: nobody would believe its words")
        })?;
        let command = command(OperationId(rand::random()), word(node.region), node.name.as_str());
        self.asker.propose(&command).await.map(|_| ())
    }

    /// Changes who serves a region's shards, and returns the change once it is known here. A dry run decides by this node's copy and
    /// changes nothing.
    ///
    /// # Errors
    /// [`RefusalKind::Conflict`] while another one is under way there; [`RefusalKind::Invalid`], [`RefusalKind::Exists`] and
    /// [`RefusalKind::NotFound`] name what can't be; [`RefusalKind::Unavailable`] without a metadata quorum.
    pub async fn change_members(
        &self,
        region: RegionName,
        change: MembersChange,
        dry_run: bool,
        who: &str,
    ) -> Result<(RegionId, MemberChange), Refusal> {
        let command =
            command(OperationId(rand::random()), Action::ChangeMembers { region: region.clone(), change }, who);
        let changed = if dry_run {
            let mut state = self.copy.read(|state| state.clone());
            state.apply(state.index() + 1, &command)?;
            state.topology()
        } else {
            self.commit(&command).await?;
            Topology::clone(&self.topology())
        };
        let id = changed.region_named(region.as_str()).map(|region| region.id);
        id.and_then(|id| Some((id, changed.changes.get(&id).cloned()?))).ok_or_else(|| {
            let message = "the change is over already, or this node has not heard of it yet: see `meridian node list`";
            Refusal::new(RefusalKind::Unavailable, message).with_effect(Effect::Applied)
        })
    }

    /// Removes a node that holds nothing, for good: its name is not used again.
    ///
    /// # Errors
    /// [`RefusalKind::Conflict`] while it holds shards; [`RefusalKind::Unavailable`] while it may hold a lease, or votes in the
    /// metadata plane, or without a metadata quorum; [`RefusalKind::NotFound`].
    pub async fn remove_node(&self, name: NodeName, dry_run: bool, who: &str) -> Result<(), Refusal> {
        self.run(Action::RemoveNode { name }, dry_run, who).await.map(drop)
    }

    /// Ends an upgrade, or with `dry_run` only says whether it could: from then on what only this release can say may be on record, and no node
    /// goes back to the one before. The newest format of commands that is then.
    ///
    /// # Errors
    /// [`RefusalKind::Conflict`], naming a node that runs an older release or never said what; [`RefusalKind::Unavailable`] without a
    /// metadata quorum.
    pub async fn finalize(&self, dry_run: bool, who: &str) -> Result<u8, Refusal> {
        self.run(Action::Finalize { format: FORMAT_NEWEST }, dry_run, who).await?;
        Ok(FORMAT_NEWEST)
    }

    /// Who was to vote in a region's groups when the cluster was formed, and the shards for which that has changed since.
    pub fn founders(&self, region: RegionId) -> (Vec<NodeId>, BTreeSet<ShardId>) {
        self.copy.read(|state| {
            let (mut founders, mut moved) = (Vec::new(), BTreeSet::new());
            for shard in (0..state.shards()).map(ShardId) {
                match state.founders(region, shard) {
                    [] => drop(moved.insert(shard)),
                    voters => founders = voters.to_vec(),
                }
            }
            (founders, moved)
        })
    }

    /// Tells the metadata plane that shards have moved as a change of members asks. Resolves once it is on record, or was no longer
    /// news.
    ///
    /// # Errors
    /// [`RefusalKind::Unavailable`] when no metadata quorum was reached in time: tell it again, it can't count twice.
    pub async fn tell_moved(&self, shards: BTreeSet<ShardId>, change: u64) -> Result<(), Refusal> {
        self.say(|region| Action::ShardsMoved { region, shards, change }).await
    }

    /// How long a lease lasts, in milliseconds; the longest there can be until the cluster is formed.
    pub fn lease_ttl_ms(&self) -> u64 {
        let ttl = self.copy.read(ClusterState::lease_ttl);
        ttl.map_or(LEASE_TTL_MS_MAX, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(LEASE_TTL_MS_MAX))
    }

    async fn run(&self, action: Action, dry_run: bool, who: &str) -> Result<Reply, Refusal> {
        self.run_as(&command(OperationId(rand::random()), action, who), dry_run).await
    }

    async fn run_as(&self, command: &Command, dry_run: bool) -> Result<Reply, Refusal> {
        if dry_run {
            // The very decision, on a copy of the copy.
            return self.copy.read(|state| state.clone()).try_apply(command);
        }
        self.commit(command).await
    }

    async fn commit(&self, command: &Command) -> Result<Reply, Refusal> {
        // A leader of an older release could not say why: it can't read the command.
        self.copy.read(|state| state.admits(&command.action))?;
        match self.copy.read(|state| state.clone()).try_apply(command) {
            // What is invalid here is invalid everywhere; everything else is for the leader to say.
            Err(refusal) if refusal.kind == RefusalKind::Invalid => Err(refusal),
            Ok(_) | Err(_) => self.asker.propose(command).await,
        }
    }
}

fn command(operation: OperationId, action: Action, who: &str) -> Command {
    Command { operation, who: who.to_owned(), at_ms: wall_ms(), action }
}

fn plan_of(reply: &Reply) -> Result<PlanId, Refusal> {
    match reply {
        Reply::Operation { plan } => Ok(*plan),
        other => Err(unexpected(other)),
    }
}

fn not_here(plan: PlanId) -> Refusal {
    Refusal::new(
        RefusalKind::Unavailable,
        format!("{plan} was put on record, but this node has not heard of it yet, or no longer remembers it: see `meridian operation show {plan}`"),
    )
    .with_effect(Effect::Applied)
}

fn bucket_of(reply: Reply) -> Result<Bucket, Refusal> {
    match reply {
        Reply::Bucket(bucket) => Ok(bucket),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("the metadata plane answered something else: {reply:?}"))
}
