//! Writes down a tail: from the log, and from the state where the log no longer has it.

use std::collections::BTreeSet;

use bytes::Bytes;
use meridian_consensus::ReadLogError;
use meridian_failpoint::failpoint;
use meridian_region_core::repair::Terms;
use meridian_region_core::repair::message::Pinned;
use meridian_region_core::salvage::{Head, Lost, Part, is_of_tail, keys_of, lost_rows, outcome};
use meridian_types::entry::Header;
use meridian_types::{BucketId, Lsn, RepairStep};

use super::{head_name, id_of, part_name, seal};
use crate::node::{Node, ShardNode};
use crate::repair::propose;

/// Bytes of entries and values in one part: what an operator's request brings at a time.
const PART_BYTES: usize = 1 << 20;

/// Rows looked up at a time where the log is gone.
const ROWS_AT_A_TIME: usize = 1024;

/// Bytes of log read at a time.
const LOOK_BYTES: usize = 1 << 20;

/// Removed keys in one entry of the log: 4 MiB, if all are as long as keys can be.
const REMOVED_AT_A_TIME: usize = 1024;

/// What the rows here are, where some of them have been exchanged before the tail is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The tail's: if some have, another node has written it down.
    OfTheTail,
    /// Whatever they are: nobody wrote it down, for none of it was to be given up then.
    AsTheyAre,
}

/// A bundle that is being written.
struct Bundle<'a> {
    node: &'a Node,
    shard: &'a ShardNode,
    head: Head,
    removed: BTreeSet<Bytes>,
    part: Part,
    part_bytes: usize,
    /// Keys of the part that is being gathered.
    gathered: BTreeSet<Bytes>,
}

impl Node {
    /// Writes down what this region has of its own beyond what the source has of it, if anything. To be called once the
    /// bucket is closed and before the first of its rows is replaced: nothing of it changes meanwhile.
    pub(crate) async fn salvage(
        &self,
        shard: &ShardNode,
        terms: &Terms,
        pinned: &Pinned,
        rows: Rows,
    ) -> Result<(), String> {
        self.pass_over(shard, terms, pinned).await?;
        let Some(head) = self.head_of(shard, terms, pinned) else { return Ok(()) };
        let id = id_of(&head);
        if self.kept(head_name(id)).await?.is_some() {
            return Ok(());
        }
        if rows == Rows::OfTheTail && shard.board.core().has_moved(terms.bucket) {
            // Another node wrote it down when it led the shard: here the rows are no longer what was lost.
            tracing::warn!(salvage = %id, "the salvage of this repair is on another node of the region");
            return Ok(());
        }
        let place = (shard, head.bucket, pinned.goal.epoch);
        let removals = self.removals(place, &pinned.goal.digest.positions, &head.fork).await;
        let (removed, known) = removals.map_or((BTreeSet::new(), None), |(removed, known)| (removed, Some(known)));
        let head = Head { known, ..head };
        let bundle = Bundle {
            node: self,
            shard,
            head,
            removed,
            part: Part::default(),
            part_bytes: 0,
            gathered: BTreeSet::new(),
        };
        failpoint("salvage.write.before");
        let head = bundle.write().await?;
        failpoint("salvage.write.after");
        tracing::warn!(
            region = %self.region(), shard = %head.shard, bucket = %head.bucket, epoch = %head.epoch, winner = %head.winner,
            entries = head.entries, keys = head.keys, bytes = head.bytes, salvage = %id,
            "what only this region had of the bucket was written down: see `meridian salvage list`"
        );
        Ok(())
    }

    /// What this repair passes over of the history is told to those who watch for removals; if it can't be told, nothing is
    /// claimed about them any more.
    async fn pass_over(&self, shard: &ShardNode, terms: &Terms, pinned: &Pinned) -> Result<(), String> {
        let seen = {
            let core = shard.board.core();
            if !core.is_watched(terms.bucket) {
                return Ok(());
            }
            core.positions(terms.bucket)
        };
        let place = (shard, terms.bucket, pinned.goal.epoch);
        let Some((removed, _)) = self.removals(place, &pinned.goal.digest.positions, &seen).await else {
            tracing::warn!(
                region = %self.region(), shard = %terms.shard, bucket = %terms.bucket,
                "a repair passes over a part of the history that no log has any more: of keys of earlier salvage bundles that are \
                 absent it can't be told whether they were deleted"
            );
            return self.unwatch(shard, terms.bucket).await;
        };
        let removed: Vec<Bytes> = removed.into_iter().collect();
        for some in removed.chunks(REMOVED_AT_A_TIME) {
            propose(self, shard, terms.bucket, RepairStep::PassedOver { removed: some.to_vec() }).await?;
        }
        Ok(())
    }

    /// Forgets which keys of the bucket are watched.
    pub(super) async fn unwatch(&self, shard: &ShardNode, bucket: BucketId) -> Result<(), String> {
        while propose(self, shard, bucket, RepairStep::Unwatch).await?.1.more {}
        Ok(())
    }

    /// What would be lost.
    fn head_of(&self, shard: &ShardNode, terms: &Terms, pinned: &Pinned) -> Option<Head> {
        let core = shard.board.core();
        let (region, mut fork) = (self.region(), core.positions(terms.bucket));
        let (end, cut) = (fork.of(region), pinned.goal.digest.positions.of(region));
        if end <= cut {
            return None;
        }
        fork.0.insert(region, cut);
        Some(Head {
            bucket: terms.bucket,
            shard: terms.shard,
            region,
            epoch: core.epoch(terms.bucket),
            winner: terms.source,
            fork,
            end,
            log_from: cut,
            created_ms: self.clock.wall_ms(),
            ..Head::default()
        })
    }

    async fn kept(&self, name: String) -> Result<Option<Vec<u8>>, String> {
        let vault = self.vault.clone();
        let read = self.blocking.run(move || match vault.read(&name) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        });
        read.await.map_err(|_| "the node is stopping".to_owned())?.map_err(|why| unwritable(&why))
    }

    pub(super) async fn keep(&self, name: String, body: Bytes) -> Result<(), String> {
        self.disk.writable().map_err(|why| why.to_string())?;
        let vault = self.vault.clone();
        let written = self.blocking.run(move || vault.put(&name, &seal(&body)));
        written.await.map_err(|_| "the node is stopping".to_owned())?.map_err(|why| unwritable(&why))
    }
}

fn unwritable(why: &std::io::Error) -> String {
    format!(
        "the salvage can't be written ({why}): nothing is replaced before it is; free space in the data directory, or make it writable"
    )
}

impl Bundle<'_> {
    async fn write(mut self) -> Result<Head, String> {
        let mut at = self.begin().await?;
        while at < self.head.end {
            let slice = self.shard.group.read_log(at, LOOK_BYTES).await.map_err(|why| why.to_string())?;
            if slice.reached <= at {
                return Err("the own log ends before the tail does".to_owned());
            }
            let end = self.head.end;
            for entry in slice.entries.into_iter().filter(|entry| entry.lsn <= end) {
                self.take(entry.lsn, entry.payload).await?;
            }
            at = slice.reached;
        }
        self.close_part().await?;
        self.node.keep(head_name(id_of(&self.head)), self.head.encode()).await?;
        Ok(self.head)
    }

    /// Where the log begins that still has the tail; what is gone from it is taken from the state.
    async fn begin(&mut self) -> Result<Lsn, String> {
        let cut = self.head.cut();
        match self.shard.group.read_log(cut, 1).await {
            Ok(_) => return Ok(cut),
            Err(ReadLogError::Trimmed { oldest }) => self.head.log_from = Lsn(oldest.0 - 1).min(self.head.end),
            Err(why) => return Err(why.to_string()),
        }
        let mut after = Bytes::new();
        loop {
            let (store, head) = (self.node.store.clone(), self.head.clone());
            let rows = self.node.blocking.run(move || lost_rows(&store, &head, &after, ROWS_AT_A_TIME));
            let rows = rows.await.map_err(|_| "the node is stopping".to_owned())?.map_err(|why| why.to_string())?;
            let Some(last) = rows.last() else { return Ok(self.head.log_from) };
            after = last.key.clone();
            for lost in rows {
                self.add(lost).await?;
            }
        }
    }

    async fn take(&mut self, lsn: Lsn, entry: Bytes) -> Result<(), String> {
        let header = Header::decode(&entry).map_err(|why| why.to_string())?;
        if !is_of_tail(&header, self.head.bucket) || !self.shard.board.core().is_effective(lsn, &header) {
            return Ok(());
        }
        for (key, touch) in keys_of(&header, &entry).map_err(|why| why.to_string())? {
            if self.gathered.contains(&key) {
                continue;
            }
            let lost = outcome(&self.node.store, &self.head, &key, touch).map_err(|why| why.to_string())?;
            if let Some(value) = lost {
                self.gathered.insert(key.clone());
                self.add(Lost { key, value, removed: false }).await?;
            }
        }
        self.head.entries += 1;
        self.part_bytes += entry.len();
        self.part.entries.push((lsn, entry));
        if self.part_bytes >= PART_BYTES { self.close_part().await } else { Ok(()) }
    }

    async fn add(&mut self, lost: Lost) -> Result<(), String> {
        let removed = self.removed.contains(&lost.key);
        self.part_bytes += lost.key.len() + lost.value.as_ref().map_or(0, |value| value.value.len());
        self.part.keys.push(Lost { removed, ..lost });
        self.head.keys += 1;
        if self.part_bytes >= PART_BYTES { self.close_part().await } else { Ok(()) }
    }

    /// A key that is written again in a later part comes in both, with the same outcome.
    async fn close_part(&mut self) -> Result<(), String> {
        let part = std::mem::take(&mut self.part);
        if part == Part::default() {
            return Ok(());
        }
        self.head.bytes += std::mem::take(&mut self.part_bytes) as u64;
        self.gathered.clear();
        let keys = part.keys.iter().map(|lost| lost.key.clone()).collect();
        propose(self.node, self.shard, self.head.bucket, RepairStep::Watch { keys }).await?;
        self.node.keep(part_name(id_of(&self.head), self.head.parts), part.encode()).await?;
        self.head.parts += 1;
        Ok(())
    }
}
