//! Everything of the region's data cluster that one node holds, shared by its requests and its background tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use meridian_consensus::{Leadership, Stopwatch};
use meridian_region_core::Following;
use meridian_region_core::exposure::Exposed;
use meridian_types::entry::{Header, Kind};
use meridian_types::{
    Bucket, BucketId, Epoch, Hlc, Lane, Lsn, NodeId, Refusal, RegionId, Request, RequestId, ShardId, Topology,
};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;

use crate::admission::Admission;
use crate::authority::Authority;
use crate::backup::Backups;
use crate::blocking::Blocking;
use crate::board::Board;
use crate::clock::Clock;
use crate::copies::{Copies, Ticket};
use crate::disk::{self, Disk};
use crate::drill::Drills;
use crate::exposures::Exposures;
use crate::group::{Barrier, Groups, ShardGroup};
use crate::lanes::Lanes;
use crate::metrics::Metrics;
use crate::options::{Options, Place};
use crate::peers::Peers;
use crate::proposer::Proposer;
use crate::repair::Repairs;
use crate::salvage::Vault;
use crate::signs::Signs;
use crate::store::Store;

/// The most scans at a time: each reads in a thread of its own and gathers a page per shard (RES-1).
pub(crate) const SCANS_MAX: usize = 8;

/// One node.
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) blocking: Blocking,
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) peers: Peers,
    pub(crate) admission: Arc<Admission>,
    pub(crate) disk: Disk,
    /// The log that all shards share.
    pub(crate) log: Arc<dyn Groups>,
    /// Runs while the store's journal is brought to the disk.
    pub(crate) writing_back: Stopwatch,
    /// Bytes of the store on disk at the last write-back.
    pub(crate) state_bytes: AtomicU64,
    /// By shard number.
    pub(crate) shards: Vec<ShardNode>,
    pub(crate) scans: Semaphore,
    pub(crate) repairs: Repairs,
    pub(crate) drills: Drills,
    pub(crate) backups: Backups,
    pub(crate) metrics: Metrics,
    /// When other regions were last heard of.
    pub(crate) signs: Signs,
    /// Buckets at their ceiling, in a sentence each.
    pub(crate) breaches: Mutex<BTreeMap<BucketId, String>>,
    /// What buckets with a ceiling have exposed here, at the last look.
    pub(crate) exposures: Mutex<BTreeMap<BucketId, Exposed>>,
    /// Who has followed buckets whose lane has turned.
    pub(crate) following: Mutex<Following>,
}

/// One shard on this node.
pub(crate) struct ShardNode {
    pub(crate) id: ShardId,
    pub(crate) group: Arc<dyn ShardGroup>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) board: Arc<Board>,
    pub(crate) proposer: Proposer,
    pub(crate) lanes: Lanes,
    /// What primaries last said is lacking here.
    pub(crate) exposures: Exposures,
    copies: Mutex<Copies<oneshot::Sender<()>>>,
    /// Repairs of its buckets that ended well, here or from here.
    pub(crate) mended: watch::Sender<u64>,
    /// How far consensus was last told that it may purge.
    purgeable: AtomicU64,
    /// Looks in a row at which this node took itself for the leader and could not prove it.
    unproven: AtomicU32,
}

/// After so many looks, one a second, a leader that can't prove that it leads is taken for deposed by those who would wait for it: longer than
/// an election takes.
const UNPROVEN_MAX: u32 = 3;

/// How long a proof is waited for at a look.
const PROOF_PATIENCE: Duration = Duration::from_secs(1);

/// The bucket of a request under the right to act on it: the lease was looked at first, the topology second (FEN-1).
#[derive(Clone)]
pub(crate) struct Standing {
    pub(crate) topology: Arc<Topology>,
    pub(crate) bucket: Arc<Bucket>,
    /// Whether the lease held before the topology was read.
    pub(crate) lease: bool,
}

impl Node {
    /// The shard of that number; every shard of the region is on every of its nodes.
    pub(crate) fn shard(&self, shard: ShardId) -> Option<&ShardNode> {
        self.shards.get(usize::from(shard.0))
    }

    /// This region.
    pub(crate) fn region(&self) -> RegionId {
        self.place.region
    }

    /// Refuses what would have to wait for a disk that has no space left, or that hangs.
    pub(crate) fn writable(&self) -> Result<(), Refusal> {
        self.disk.writable()?;
        self.log.stalled().map_or(Ok(()), |age| Err(disk::stalled(age)))
    }

    /// When a request that arrives now is given up.
    pub(crate) fn deadline(&self, request: &Request) -> Instant {
        let ms = match request.deadline_ms() {
            0 => self.options.deadline_ms_default,
            ms => ms,
        };
        Instant::now() + Duration::from_millis(u64::from(ms))
    }

    /// Whether this region may still act as the bucket's primary under the epoch of `standing` (FEN-1): asked again after
    /// every wait, before anything is acknowledged. Lease first, topology second.
    pub(crate) fn still_primary(&self, standing: &Standing) -> bool {
        let lease = self.authority.lease_holds();
        let topology = self.authority.topology();
        let now = topology.buckets.get(&standing.bucket.id);
        lease
            && now.is_some_and(|now| {
                now.primary == Some(self.region()) && now.epoch == standing.bucket.epoch && !now.is_between_primaries()
            })
    }

    /// The nodes of `region` that have what its group for `shard` committed: its quorum.
    pub(crate) fn quorum(&self, topology: &Topology, region: RegionId, shard: ShardId) -> u16 {
        u16::try_from(topology.quorum(region, shard)).unwrap_or(u16::MAX)
    }

    /// The header of an entry that this node proposes; the timestamp is stamped later.
    pub(crate) fn header(&self, kind: Kind, bucket: BucketId, epoch: Epoch) -> Header {
        Header {
            kind,
            origin: self.region(),
            bucket,
            epoch,
            hlc: Hlc(0),
            id: RequestId::default(),
            lowest_outstanding: 0,
        }
    }
}

impl ShardNode {
    pub(crate) fn new(id: ShardId, group: Arc<dyn ShardGroup>, board: Arc<Board>, clock: Arc<dyn Clock>) -> ShardNode {
        let proposer = Proposer::new(Arc::clone(&group), Arc::clone(&board), clock);
        let leadership = group.leadership();
        ShardNode {
            id,
            group,
            leadership,
            board,
            proposer,
            lanes: Lanes::default(),
            exposures: Exposures::default(),
            copies: Mutex::default(),
            mended: watch::Sender::default(),
            purgeable: AtomicU64::new(0),
            unproven: AtomicU32::new(0),
        }
    }

    /// Whether this node leads the shard, and others may wait for what it orders. One that is cut off from those who followed it goes on
    /// believing, is reached by other regions, and would take in what it can apply no more for as long as that lasts (ISO-1).
    pub(crate) fn leads_surely(&self) -> bool {
        self.board.leads() && self.unproven.load(Ordering::Relaxed) < UNPROVEN_MAX
    }

    /// Looks whether this node can prove that it leads, if it believes so.
    pub(crate) async fn look_for_proof(&self) {
        let is_proven = match self.board.leads().then(|| self.group.read_barrier()) {
            None | Some(Barrier::Passed(_)) => true,
            Some(barrier) => matches!(tokio::time::timeout(PROOF_PATIENCE, barrier.pass()).await, Ok(Ok(_))),
        };
        if is_proven {
            self.unproven.store(0, Ordering::Relaxed);
        } else {
            self.unproven.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The node that leads the shard in this region, if one is known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.leadership.borrow().leader
    }

    fn copies(&self) -> std::sync::MutexGuard<'_, Copies<oneshot::Sender<()>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `target` has everything of the lane up to `lsn`.
    pub(crate) fn acknowledged(&self, lane: Lane, target: RegionId, lsn: Lsn) {
        let satisfied = self.copies().acknowledged(lane, target, lsn);
        for tell in satisfied {
            // Who gave up a moment ago needs no telling.
            let _ = tell.send(());
        }
        self.board.ceilings.elsewhere(lane, target, lsn);
    }

    /// Nobody needs entries up to here.
    pub(crate) fn allow_purge(&self, floor: Lsn) {
        if self.purgeable.fetch_max(floor.0, Ordering::AcqRel) < floor.0 {
            self.group.allow_purge(floor);
        }
    }

    /// What `target` has of the lane.
    pub(crate) fn acked(&self, lane: Lane, target: RegionId) -> Lsn {
        self.copies().acked(lane, target)
    }

    /// The regions `among` that have `lsn` of the lane.
    pub(crate) fn holders(&self, lane: Lane, lsn: Lsn, among: &[RegionId]) -> Vec<RegionId> {
        self.copies().holders(lane, lsn, among).collect()
    }

    /// Waits until `needed` of the regions `among` have `lsn` (DUR-2); `false` when the deadline passes first, or this node leads the shard no
    /// more, for then it hears of no copies.
    pub(crate) async fn copied(
        &self,
        lane: Lane,
        lsn: Lsn,
        among: &[RegionId],
        needed: usize,
        deadline: Instant,
    ) -> bool {
        if needed == 0 {
            return true;
        }
        let (tell, told) = oneshot::channel();
        let Ok(ticket) = self.copies().wait(lane, lsn, among, needed, tell) else { return true };
        let _leave = Leave { shard: self, ticket };
        let mut leadership = self.leadership.clone();
        let deposed = leadership.wait_for(|now| !now.leads);
        tokio::select! {
            biased;
            told = tokio::time::timeout_at(deadline, told) => matches!(told, Ok(Ok(()))),
            _ = deposed => false,
        }
    }
}

/// Ends a wait however it ends: answered, late, or given up by its caller.
struct Leave<'a> {
    shard: &'a ShardNode,
    ticket: Ticket,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shard.copies().leave(self.ticket);
    }
}
