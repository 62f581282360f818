//! Rehearsing a failover on a copy of this region's data, which is removed afterwards
//! (docs/adr/2026-11-27-drills.md).
//!
//! ```text
//! frozen state ──copy──► drills/ID/state ──verify──► the same digests?
//!      ▲ untouched       drills/ID/log   ──start───► groups of its own, this node their only voter
//!      │                                   fence ──► take over ──► read, write        (fork.rs, rehearsal.rs)
//!      └── is it as it was? ◄────────────── remove
//! ```
//!
//! One at a time on a node. Whoever asked listens; when it goes away the drill is given up and its copy removed, and a node
//! removes at its start whatever a drill left behind.
//!
//! Promises kept here: RES-1 (one drill, bounded stores, room on the disk looked at before and while it is filled).
//!
//! Deliberately not here: what the metadata plane decides in a real failover, and how long its round trips take.

mod cut;
mod fork;
mod rehearsal;
mod scratch;
mod teller;
mod untouched;

use std::sync::Arc;
use std::time::Instant;

use meridian_consensus::offline::Offline;
use meridian_region_core::drill::room_bytes;
use meridian_types::{
    Bucket, DRILL_SAMPLE_MAX, DrillNews, DrillReport, DrillSpec, DrillStep, Phase, Refusal, RefusalKind,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::cut::{Cut, Verified, chain};
use self::fork::Fork;
use self::rehearsal::{Rehearsal, micros};
use self::scratch::Scratch;
use self::teller::Teller;
use self::untouched::Before;
use crate::disk::Gauge;
use crate::node::Node;
use crate::store::Store;

pub(crate) use scratch::sweep;
pub(crate) use teller::News;

/// News that wait for their listener.
const NEWS_MAX: usize = 64;

/// How many bytes are copied between two looks at the disk.
const LOOK_BYTES: u64 = 64 << 20;

/// What drills share on this node.
pub(crate) struct Drills {
    one: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
    pub(crate) gauge: Arc<dyn Gauge>,
}

/// A drill that was asked for.
pub(crate) struct Job {
    spec: DrillSpec,
    news: mpsc::Sender<News>,
    /// Held until it is over.
    _one: OwnedSemaphorePermit,
}

impl Drills {
    pub(crate) fn new(gauge: Arc<dyn Gauge>) -> (Drills, mpsc::Receiver<Job>) {
        let (jobs, waiting) = mpsc::channel(1);
        (Drills { one: Arc::new(Semaphore::new(1)), jobs, gauge }, waiting)
    }
}

/// Does what is asked for, one after the other.
pub(crate) async fn serve(node: Arc<Node>, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let teller = Teller::new(job.news);
        let _over = teller.until_over();
        let outcome = Drill::new(&node, &job.spec, &teller).run().await;
        tracing::info!(
            region = %node.region(), buckets = job.spec.buckets.len(),
            outcome = outcome.as_ref().map_or_else(ToString::to_string, |report| format!("good: {}", report.is_good())),
            "a drill is over"
        );
        teller.end(outcome.map(|report| DrillNews::Done(Box::new(report)))).await;
    }
    // The node is ending.
    std::future::pending().await
}

impl Node {
    /// Starts a drill, and tells how it goes.
    pub(crate) fn drill(&self, spec: DrillSpec) -> Result<mpsc::Receiver<News>, Refusal> {
        if spec.buckets.is_empty() || spec.sample == 0 || spec.sample > DRILL_SAMPLE_MAX {
            let message =
                format!("a drill rehearses at least one bucket, with a sample of 1 to {DRILL_SAMPLE_MAX} keys");
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        if self.place.dir.as_os_str().is_empty() {
            return Err(Refusal::new(RefusalKind::Unavailable, "this node has no directory for a copy"));
        }
        let topology = self.authority.topology();
        for id in &spec.buckets {
            let bucket = topology.buckets.get(id).ok_or_else(|| {
                Refusal::new(
                    RefusalKind::NotFound,
                    format!("there is no bucket {id}: `meridian bucket list` shows all"),
                )
            })?;
            self.can_rehearse(bucket)?;
        }
        let busy = || {
            let message =
                "a drill is under way on this node already: wait until it is over, or end the command that started it";
            Refusal::new(RefusalKind::Retry, message)
        };
        let one = Arc::clone(&self.drills.one).try_acquire_owned().map_err(|_| busy())?;
        let (news, listener) = mpsc::channel(NEWS_MAX);
        self.drills.jobs.try_send(Job { spec, news, _one: one }).map_err(|_| busy())?;
        Ok(listener)
    }

    fn can_rehearse(&self, bucket: &Bucket) -> Result<(), Refusal> {
        let (name, here) = (&bucket.name, self.authority.topology().region_label(self.region()));
        let invalid = |why: String| Err(Refusal::new(RefusalKind::Invalid, why));
        match bucket.primary {
            None => invalid(format!("bucket `{name}` is active-active: it has no primary that could be lost")),
            Some(primary) if primary == self.region() => {
                invalid(format!("{here} is the primary of `{name}` already: rehearse a failover to another region"))
            }
            Some(_) if !bucket.is_in(self.region()) => invalid(format!("{here} has no copy of bucket `{name}`")),
            Some(_) if bucket.phase != Phase::Steady => Err(Refusal::new(
                RefusalKind::Retry,
                format!(
                    "the primary of bucket `{name}` is being moved now: see `meridian operation list`, and try again"
                ),
            )),
            Some(_) => Ok(()),
        }
    }
}

/// One drill.
struct Drill<'a> {
    node: &'a Arc<Node>,
    spec: &'a DrillSpec,
    teller: &'a Teller,
    /// Names its directory and its keys.
    id: String,
}

impl<'a> Drill<'a> {
    fn new(node: &'a Arc<Node>, spec: &'a DrillSpec, teller: &'a Teller) -> Drill<'a> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Drill { node, spec, teller, id: now.as_micros().to_string() }
    }

    async fn run(&self) -> Result<DrillReport, Refusal> {
        let (node, before) = (self.node, Before::of(self.node, &self.spec.buckets));
        let mut report = DrillReport {
            node: node.place.node,
            region: node.region(),
            lease_ms: node.authority.lease_ttl_ms(),
            ..DrillReport::default()
        };
        let (state, id) = (node.place.dir.clone(), self.id.clone());
        let scratch = self.blocking(move || Scratch::create(&state, &id)).await?;
        let outcome = self.rehearse(&scratch, &mut report).await;
        let begun = Instant::now();
        self.teller.progress(DrillStep::Remove, 0, 1);
        let removed = self.blocking(move || Ok(scratch.remove())).await?;
        report.steps.push((DrillStep::Remove, micros(begun)));
        report.faults.extend(removed.err());
        match outcome {
            Ok(()) => report.faults.extend(self.touched(&before).await?),
            // What was found out until then says more than that it could not go on.
            Err(_) if !report.is_good() => {}
            Err(why) => return Err(why),
        }
        Ok(report)
    }

    async fn rehearse(&self, scratch: &Scratch, report: &mut DrillReport) -> Result<(), Refusal> {
        let begun = Instant::now();
        let (cut, copy, bytes) = self.copy(scratch).await?;
        report.bytes = bytes;
        report.steps.push((DrillStep::Copy, micros(begun)));

        let begun = Instant::now();
        let verified = self.verify(cut, copy).await?;
        report.shards = verified.shards;
        report.steps.push((DrillStep::Verify, micros(begun)));
        if !report.is_good() {
            return Err(Refusal::new(RefusalKind::Corrupt, "the copy is not what the replica says it is"));
        }

        let begun = Instant::now();
        let (fork, service) = Fork::open(self.node, scratch, &self.spec.buckets).await?;
        report.steps.push((DrillStep::Start, micros(begun)));
        let clock = Arc::clone(&self.node.clock);
        let mut rehearsal = Rehearsal {
            fork: &fork,
            region: self.node.region(),
            shards: self.node.place.shards,
            id: &self.id,
            count: self.spec.sample,
            sample: verified.sample,
            keys: Default::default(),
            now_ms: &move || clock.wall_ms(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let service = service.run(async move {
            // Nothing is sent: it is dropped once the rehearsal is over.
            let _ = stopped.await;
        });
        let failed = fork.consensus.fatal();
        tokio::pin!(service);
        let outcome = tokio::select! {
            biased;
            why = self.teller.left() => Err(why),
            why = failed => Err(Refusal::new(RefusalKind::Internal, format!("the copy failed: {}", chain(&why)))),
            ended = &mut service => {
                fork.close().await;
                let why = ended.err().map_or_else(|| "it ended".to_owned(), |why| chain(&why));
                return Err(Refusal::new(RefusalKind::Internal, format!("the copy failed: {why}")));
            }
            played = rehearsal.play(self.teller, report) => played,
        };
        drop(stop);
        // Its tasks have ended then, and with them their hold on the copy's files.
        if let Err(why) = service.await {
            tracing::debug!(%why, "a drill's copy did not end cleanly");
        }
        fork.close().await;
        outcome
    }

    /// Copies what there is now, if there is room for it.
    async fn copy(&self, scratch: &Scratch) -> Result<(Cut, Store, u64), Refusal> {
        let (node, buckets) = (Arc::clone(self.node), self.spec.buckets.clone());
        let (scratch, teller) = (scratch.clone(), self.teller.clone());
        self.blocking(move || {
            let cut = Cut::take(&node.store, node.region(), node.place.shards, &buckets)?;
            let (needed, reserve) = (room_bytes(cut.digests()), node.options.disk_reserve_bytes);
            let gauge = node.drills.gauge.as_ref();
            scratch.has_room(gauge, needed, reserve)?;
            let cannot = |why: &dyn std::error::Error| {
                Refusal::new(RefusalKind::Unavailable, format!("the copy for the drill can't be made: {}", chain(why)))
            };
            let copy = Store::open(&scratch.state(), &fork::store_options()).map_err(|why| cannot(&why))?;
            let log = Offline::open(&fork::log_options(node.place.node, &scratch)).map_err(|why| cannot(&why))?;
            let (mut copied, mut look_at) = (0, LOOK_BYTES);
            let mut copying = teller.copying(cut.digests().map(|digest| digest.bytes).sum());
            let mut pace = |bytes| {
                copied = copying(bytes)?;
                if copied < look_at {
                    return Ok(());
                }
                look_at = copied + LOOK_BYTES;
                // What the node itself wrote meanwhile counts as well.
                scratch.has_room(gauge, LOOK_BYTES, reserve)
            };
            cut.copy(&copy, &log, &mut pace)?;
            Ok((cut, copy, copied))
        })
        .await
    }

    async fn verify(&self, cut: Cut, copy: Store) -> Result<Verified, Refusal> {
        let (teller, sample, now_ms) = (self.teller.clone(), self.spec.sample, self.node.clock.wall_ms());
        let total = self.spec.buckets.len() as u64 * u64::from(self.node.place.shards);
        self.blocking(move || {
            let mut verified = |done| {
                teller.progress(DrillStep::Verify, done, total);
                teller.heard()
            };
            cut.verify(&copy, (sample, now_ms), &mut verified)
        })
        .await
    }

    /// What is not as it was before, in a sentence each.
    async fn touched(&self, before: &Before) -> Result<Vec<String>, Refusal> {
        let mut faults = before.compare(self.node);
        let (store, shards) = (self.node.store.clone(), self.node.place.shards);
        let (buckets, id) = (self.spec.buckets.clone(), self.id.clone());
        let strays = self.blocking(move || {
            let found = untouched::strays(&store, shards, &buckets, &id);
            found.map_err(|why| Refusal::new(RefusalKind::Internal, chain(&why)))
        });
        let strays = strays.await?;
        if strays > 0 {
            faults.push(format!("{strays} keys that the drill wrote are in the buckets themselves: delete them"));
        }
        Ok(faults)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let stopping =
            |_| Refusal::new(RefusalKind::Unavailable, "the node is stopping: its next start removes the copy");
        self.node.blocking.run(call).await.map_err(stopping)?
    }
}
