//! The state machine of one shard, as consensus drives it: region/core decides, the store keeps, the board tells.

use std::sync::Arc;

use bytes::Bytes;
use meridian_consensus::{Committed, Mark, Persist, SnapshotSource, StateError, StateMachine};
use meridian_failpoint::failpoint;
use meridian_region_core::{Applied, Mutations, Shard};
use meridian_types::entry::{Header, Kind};
use meridian_types::{BucketId, Epoch, Lsn, RegionId, ShardId};

use crate::board::{Board, Conditions, News};
use crate::options::Options;
use crate::store::Store;

/// Sees what every entry did, right after it was applied to the core and before anybody is told. For observers that know
/// everything, as a simulated planet has; a server has none.
pub trait Witness: Send + Sync + 'static {
    /// `entry` at `lsn` of the own log did `applied`; `shard` is as it was left. A batch that fails to be stored ends the node.
    fn applied(&self, shard: &Shard, lsn: Lsn, entry: &[u8], applied: &Applied);
}

/// One shard of this region on this node.
pub(crate) struct Machine {
    region: RegionId,
    shard: ShardId,
    shards: u16,
    store: Store,
    board: Arc<Board>,
    witness: Option<Arc<dyn Witness>>,
}

impl Machine {
    /// Loads a shard from the store.
    pub(crate) fn open(
        store: &Store,
        region: RegionId,
        shard: ShardId,
        shards: u16,
        options: &Options,
        witness: Option<Arc<dyn Witness>>,
    ) -> Result<(Machine, Arc<Board>), StateError> {
        let applied = store.mark(shard)?.map_or(Lsn(0), |mark| mark.lsn);
        let core = load(store, region, shard, shards)?;
        let board = Arc::new(Board::new(core, applied, options, shards));
        Ok((Machine { region, shard, shards, store: store.clone(), board: Arc::clone(&board), witness }, board))
    }

    /// Applies the batch to the core: what changes, the answers, and what to publish.
    fn decide(&self, batch: &[Committed]) -> Result<(Mutations, Vec<Bytes>, News), StateError> {
        let mut changes = Mutations::new();
        let mut results = Vec::with_capacity(batch.len());
        let mut news = News::default();
        let mut touched: Vec<BucketId> = Vec::new();
        let (mut everything, mut conditions) = (false, false);
        let mut core = self.board.core();
        for entry in batch {
            let applied = core.apply(&self.store, entry.lsn, &entry.payload, &mut changes).map_err(damaged)?;
            if let Some(witness) = &self.witness {
                witness.applied(&core, entry.lsn, &entry.payload, &applied);
            }
            news.bytes += entry.payload.len() as u64;
            let header = Header::decode(&entry.payload).map_err(damaged)?;
            news.own_hlc = news.own_hlc.max(header.hlc);
            conditions |= matches!(header.kind, Kind::Frame | Kind::DropBucket | Kind::Repair);
            match header {
                Header { kind: Kind::Frame | Kind::DropBucket, .. } => everything = true,
                header if !touched.contains(&header.bucket) => touched.push(header.bucket),
                _ => {}
            }
            results.push(applied.result.clone());
            gather(&mut news, entry, applied);
        }
        core.checkpoint(&mut changes);
        news.hlc = core.last_hlc();
        news.conditions = conditions.then(|| Conditions::of(&core));
        if everything {
            let public = self.board.public();
            // Besides those that entries of the batch name: a fence changes no digest.
            touched.extend(core.digests().filter(|(id, it)| public.digests.get(id) != Some(it)).map(|(id, _)| id));
            touched.extend(public.digests.keys().filter(|id| core.digest(**id).is_none()));
            touched.sort_unstable();
            touched.dedup();
        }
        let epochs = touched.iter().map(|bucket| (*bucket, core.epoch(*bucket), core.fence(*bucket)));
        news.epochs = epochs.filter(|(_, epoch, fence)| *epoch.max(fence) > Epoch(1)).collect();
        news.digests = touched.into_iter().map(|bucket| (bucket, core.digest(bucket).cloned())).collect();
        Ok((changes, results, news))
    }
}

fn gather(news: &mut News, entry: &Committed, applied: Applied) {
    if let Some(note) = applied.note {
        news.own.push((note.bucket, entry.lsn, entry.payload.len() as u64));
        news.notes.push((entry.lsn, note));
    }
    // Whoever waits here forwarded a request, and takes this region's copy for the second one. What this region ordered
    // itself, when it was still the primary, is the first copy and maybe the only one (DUR-2).
    if applied.frame.is_some() {
        news.answered.extend(applied.answered);
    }
    news.frames.extend(applied.frame);
}

fn load(store: &Store, region: RegionId, shard: ShardId, shards: u16) -> Result<Shard, StateError> {
    Ok(Shard::load(store, region, shard).map_err(damaged)?.with_shards(shards))
}

fn damaged(why: impl std::error::Error + Send + Sync + 'static) -> StateError {
    StateError::with_source("the state of a shard can't be used", why)
}

impl StateMachine for Machine {
    fn mark(&self) -> Result<Option<Mark>, StateError> {
        self.store.mark(self.shard)
    }

    fn apply(&mut self, batch: &[Committed], mark: &Mark) -> Result<Vec<Bytes>, StateError> {
        let (changes, results, mut news) = self.decide(batch)?;
        news.applied = mark.lsn;
        self.board.bound_removals(&news);
        failpoint("state.commit.before");
        self.store.commit(self.shard, changes, mark)?;
        failpoint("state.commit.after");
        for frame in &news.frames {
            for divergence in &frame.diverged {
                tracing::error!(
                    region = %self.region, shard = %self.shard, bucket = %divergence.bucket, source = %frame.source,
                    ours = %divergence.ours, theirs = %divergence.theirs,
                    "this replica differs from its source at equal positions: it serves no more reads until it is repaired"
                );
            }
        }
        self.board.publish(news);
        failpoint("shard.publish.after");
        Ok(results)
    }

    fn persist(&mut self) -> Result<Persist, StateError> {
        // Read now: what is applied meanwhile is not promised.
        let (store, applied) = (self.store.clone(), self.board.applied());
        Ok(Box::new(move || store.persist().map(|()| applied)))
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        self.store.snapshot(self.shard)
    }

    fn restore(
        &mut self,
        pieces: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
        mark: &Mark,
    ) -> Result<(), StateError> {
        self.board.begin_replacing();
        self.store.restore(self.shard, pieces, mark)?;
        let core = load(&self.store, self.region, self.shard, self.shards)?;
        self.board.replace(core, mark.lsn);
        tracing::info!(region = %self.region, shard = %self.shard, lsn = %mark.lsn, "the shard was replaced by a snapshot");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meridian_region_core::{Answered, FrameApplied};
    use meridian_types::entry::Body;
    use meridian_types::{Epoch, Hlc, Lane, RequestId};

    use super::*;
    use crate::options::StoreOptions;

    fn entry(lsn: u64, kind: Kind, bucket: u32, epoch: u64, body: &Body) -> Committed {
        let header = Header {
            kind,
            origin: RegionId(1),
            bucket: BucketId(bucket),
            epoch: Epoch(epoch),
            hlc: Hlc(lsn),
            id: RequestId::default(),
            lowest_outstanding: 0,
        };
        Committed { lsn: Lsn(lsn), payload: header.encode(body) }
    }

    #[test]
    fn fen_2_a_fence_in_one_batch_with_what_changes_other_buckets_is_made_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let (mut machine, board) =
            Machine::open(&store, RegionId(1), ShardId(0), 1, &Options::default(), None).unwrap();
        let batch = [entry(1, Kind::Fence, 7, 3, &Body::Fence), entry(2, Kind::DropBucket, 8, 1, &Body::DropBucket)];
        machine.apply(&batch, &Mark { lsn: Lsn(2), bytes: Bytes::from_static(b"2") }).unwrap();
        assert_eq!((board.epoch(BucketId(7)), board.fence(BucketId(7))), (Epoch(1), Epoch(3)));
    }

    #[test]
    fn dur_2_only_what_another_region_ordered_answers_a_forwarded_request() {
        let entry = Committed { lsn: Lsn(9), payload: Bytes::from_static(b"entry") };
        let result = Bytes::from_static(b"result");
        let answered = vec![Answered { bucket: BucketId(7), id: RequestId::default(), result }];
        let own = Applied { result: Bytes::new(), answered, note: None, frame: None };
        let lane = Lane::Sync;
        let frame = FrameApplied { source: RegionId(2), lane, watermark: Lsn(9), diverged: Vec::new() };
        let theirs = Applied { frame: Some(frame), ..own.clone() };
        let mut news = News::default();
        gather(&mut news, &entry, own);
        assert!(news.answered.is_empty());
        gather(&mut news, &entry, theirs);
        assert_eq!(news.answered.len(), 1);
    }
}
