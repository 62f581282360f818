//! What happens on the copy: the primaries are lost, this region takes over, and clients read and write.
//!
//! Nothing here is a model: the copy's own service fences, seals and answers, as the node's does in a failover; only the words
//! of the metadata plane are played, without its round trips.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use meridian_region_core::drill::{latency, written_keys};
use meridian_types::{
    Bucket, BucketId, DrillBucket, DrillLatency, DrillReport, DrillStep, Effect, Epoch, Key, Outcome, Read, ReadLevel,
    Refusal, RefusalKind, RegionId, Request, RequestId, Response, SessionToken, ShardId, StalePolicy, Value, Write,
    WriteAck,
};
use tokio::time::timeout;

use super::cut::Sampled;
use super::fork::Fork;
use super::teller::Teller;
use crate::router::Caller;

/// How long the copy's groups may take to have leaders, and each turn of the epoch: far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked for leaders.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long one read or write may take, in milliseconds.
const REQUEST_MS: u32 = 30_000;

/// What every written key is set to: about what a small record has.
const VALUE: &[u8] = &[b'd'; 128];

/// Keys on the page that is scanned.
const SCAN_ITEMS: u32 = 100;

/// The most faults that are told of a bucket: the first few say what is wrong (RES-1).
const FAULTS_MAX: usize = 8;

/// One rehearsal.
pub(super) struct Rehearsal<'a> {
    pub(super) fork: &'a Fork,
    pub(super) region: RegionId,
    pub(super) shards: u16,
    /// Part of every key that is written.
    pub(super) id: &'a str,
    pub(super) count: u32,
    pub(super) sample: BTreeMap<BucketId, Vec<Sampled>>,
    /// What is written, once it is known.
    pub(super) keys: BTreeMap<BucketId, Vec<Key>>,
    pub(super) now_ms: &'a (dyn Fn() -> u64 + Send + Sync),
}

impl Rehearsal<'_> {
    /// Goes through all of it.
    ///
    /// # Errors
    /// When it can't go on; what was measured until then is in `report`.
    pub(super) async fn play(&mut self, teller: &Teller, report: &mut DrillReport) -> Result<(), Refusal> {
        self.led(teller, report).await?;
        let begun = Instant::now();
        teller.progress(DrillStep::Fence, 0, 1);
        self.fork.plane.fence(self.region);
        self.fenced(report).await?;
        report.steps.push((DrillStep::Fence, micros(begun)));

        let promoted = Instant::now();
        teller.progress(DrillStep::TakeOver, 0, 1);
        self.fork.plane.promote(self.region);
        let buckets = self.fork.plane.buckets();
        for bucket in &buckets {
            self.keys.insert(bucket.id, written_keys(self.id, bucket.id, self.shards, self.count)?);
        }
        let first = join_all(buckets.iter().map(|bucket| self.first_answers(bucket, promoted))).await;
        for (bucket, first) in buckets.iter().zip(first) {
            let (read_us, write_us) = first?;
            let latency = |first_us| DrillLatency { first_us, ..DrillLatency::default() };
            let (reads, writes) = (latency(read_us), latency(write_us));
            let (bucket, epoch) = (bucket.id, bucket.epoch);
            report.buckets.push(DrillBucket { bucket, epoch, reads, writes, faults: Vec::new() });
        }
        report.steps.push((DrillStep::TakeOver, micros(promoted)));
        self.measure(teller, report).await;
        Ok(())
    }

    /// Reads and writes in every bucket, one request after the other.
    async fn measure(&self, teller: &Teller, report: &mut DrillReport) {
        let count = |many: usize| many as u64;
        let buckets = self.fork.plane.buckets();
        let (begun, mut done) = (Instant::now(), 0);
        let total = count(self.sample.values().map(Vec::len).sum());
        for (bucket, row) in buckets.iter().zip(&mut report.buckets) {
            let tell = &mut || {
                done += 1;
                teller.progress(DrillStep::Read, done, total);
            };
            self.read(bucket, row, tell).await;
        }
        report.steps.push((DrillStep::Read, micros(begun)));

        let (begun, mut done) = (Instant::now(), 0);
        let total = count(self.keys.values().map(Vec::len).sum());
        for (bucket, row) in buckets.iter().zip(&mut report.buckets) {
            let tell = &mut || {
                done += 1;
                teller.progress(DrillStep::Write, done, total);
            };
            self.write(bucket, row, tell).await;
        }
        report.steps.push((DrillStep::Write, micros(begun)));
    }

    /// Waits until every shard of the copy has a leader: a real failover's shards have one already.
    async fn led(&self, teller: &Teller, report: &mut DrillReport) -> Result<(), Refusal> {
        let begun = Instant::now();
        let all = u64::from(self.shards);
        loop {
            let led = u64::from(self.fork.handle.shards().0);
            teller.progress(DrillStep::Start, led, all);
            if led == all {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(late(&format!("only {led} of {all} shards of the copy have a leader")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // The time it took to open them is in it already.
        if let Some((_, took)) = report.steps.iter_mut().find(|(step, _)| *step == DrillStep::Start) {
            *took += micros(begun);
        }
        Ok(())
    }

    /// Waits until every shard has said what it has; one that is not whole could not be taken over.
    async fn fenced(&self, report: &mut DrillReport) -> Result<(), Refusal> {
        let plane = &self.fork.plane;
        let expected = plane.buckets().len() * usize::from(self.shards);
        let mut fenced = plane.fenced();
        let all = timeout(PATIENCE, fenced.wait_for(|fenced| fenced.len() == expected)).await;
        let Ok(Ok(all)) = all else { return Err(late("not every shard of the copy was fenced")) };
        for (at, remains) in all.iter() {
            let row = report.shards.iter_mut().find(|row| (row.bucket, row.shard) == *at);
            if let (false, Some(row)) = (remains.whole, row) {
                "it is incomplete: it is being repaired, or waits for the end of an epoch; a failover would not choose this region now"
                    .clone_into(&mut row.fault);
            }
        }
        if report.is_good() {
            return Ok(());
        }
        Err(Refusal::new(RefusalKind::Conflict, "not every shard of the copy is whole"))
    }

    /// Reads a key, and writes one in every shard, all at once as clients do that have waited: each waits until the epoch has
    /// begun in its shard. Tells when the read was answered, and the first write acknowledged, in microseconds since `promoted`.
    async fn first_answers(&self, bucket: &Bucket, promoted: Instant) -> Result<(u64, u64), Refusal> {
        let mut reached: BTreeMap<ShardId, &Key> = BTreeMap::new();
        for key in self.keys.get(&bucket.id).into_iter().flatten() {
            reached.entry(key.shard(bucket.id, self.shards)).or_insert(key);
        }
        let read = async {
            if let Some(first) = self.sample.get(&bucket.id).and_then(|sample| sample.first()) {
                self.get(bucket, &first.key).await?;
            }
            Ok::<u64, Refusal>(micros(promoted))
        };
        let writes = join_all(reached.into_values().map(|key| async move {
            self.put(bucket, key).await?;
            Ok::<u64, Refusal>(micros(promoted))
        }));
        let (read, writes) = futures::future::join(read, writes).await;
        let writes = writes.into_iter().collect::<Result<Vec<u64>, Refusal>>()?;
        Ok((read?, writes.into_iter().min().unwrap_or_default()))
    }

    /// Reads the sample, and a page.
    async fn read(&self, bucket: &Bucket, row: &mut DrillBucket, done: &mut (dyn FnMut() + Send)) {
        let sample = self.sample.get(&bucket.id).map(Vec::as_slice).unwrap_or_default();
        let mut took = Vec::with_capacity(sample.len());
        for sampled in sample {
            let begun = Instant::now();
            let answer = self.get(bucket, &sampled.key).await;
            took.push(micros(begun));
            if let Some(fault) = self.judge(sampled, &answer) {
                blame(row, format!("a key of it was read wrongly: {fault}"));
            }
            done();
        }
        row.reads = latency(row.reads.first_us, took);
        match self.scan(bucket).await {
            Ok(0) if !sample.is_empty() => blame(row, "a scan finds nothing, but there are keys".to_owned()),
            Ok(_) => {}
            Err(why) => blame(row, format!("it can't be scanned: {}", why.message)),
        }
    }

    /// Why an answer is not what was there.
    fn judge(&self, sampled: &Sampled, answer: &Result<Response, Refusal>) -> Option<String> {
        let found = match answer {
            Err(why) => return Some(why.message.clone()),
            Ok(response) => match &response.outcome {
                Outcome::Value(found) => found,
                _ => return Some("the answer is none to a read".to_owned()),
            },
        };
        match found {
            None if sampled.expires_at_ms.is_some_and(|at| at <= (self.now_ms)()) => None,
            None => Some("it is gone".to_owned()),
            Some(found) if found.version != sampled.version => Some("it has another version".to_owned()),
            Some(found) if crc32c::crc32c(&found.value) != sampled.checksum => Some("it has another value".to_owned()),
            Some(_) => None,
        }
    }

    /// Writes every key and reads it back.
    async fn write(&self, bucket: &Bucket, row: &mut DrillBucket, done: &mut (dyn FnMut() + Send)) {
        let keys = self.keys.get(&bucket.id).map(Vec::as_slice).unwrap_or_default();
        let mut took = Vec::with_capacity(keys.len());
        for key in keys {
            let begun = Instant::now();
            let written = self.put(bucket, key).await;
            took.push(micros(begun));
            let read = match written {
                Ok(()) => self.get(bucket, key).await,
                Err(why) => Err(why),
            };
            match read.map(|response| response.outcome) {
                Ok(Outcome::Value(Some(found))) if found.value == VALUE => {}
                Ok(_) => blame(row, "a key that was written and acknowledged is not there".to_owned()),
                Err(why) => blame(row, format!("a key could not be written and read back: {}", why.message)),
            }
            done();
        }
        row.writes = latency(row.writes.first_us, took);
    }

    async fn put(&self, bucket: &Bucket, key: &Key) -> Result<(), Refusal> {
        let request = Request::Write {
            bucket: bucket.name.clone(),
            write: Write::Put { key: key.clone(), value: Value::new(VALUE)?, ttl_ms: None },
            ack: WriteAck::Policy,
            id: RequestId::default(),
            lowest_outstanding: 1,
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: REQUEST_MS,
        };
        self.fork.handle.execute(request, Caller::Client).await.map(|_| ())
    }

    async fn get(&self, bucket: &Bucket, key: &Key) -> Result<Response, Refusal> {
        self.ask(bucket, Read::Get { key: key.clone() }).await
    }

    async fn scan(&self, bucket: &Bucket) -> Result<usize, Refusal> {
        let read =
            Read::Scan { prefix: Default::default(), after: Default::default(), limit: SCAN_ITEMS, values: true };
        match self.ask(bucket, read).await?.outcome {
            Outcome::Page { items, .. } => Ok(items.len()),
            _ => Err(Refusal::new(RefusalKind::Internal, "the answer is none to a scan")),
        }
    }

    async fn ask(&self, bucket: &Bucket, read: Read) -> Result<Response, Refusal> {
        let request = Request::Read {
            bucket: bucket.name.clone(),
            read,
            level: ReadLevel::Strong,
            stale: StalePolicy::Wait,
            session: SessionToken::default(),
            deadline_ms: REQUEST_MS,
        };
        self.fork.handle.execute(request, Caller::Client).await
    }
}

fn blame(row: &mut DrillBucket, fault: String) {
    if row.faults.len() < FAULTS_MAX && !row.faults.contains(&fault) {
        row.faults.push(fault);
    }
}

fn late(what: &str) -> Refusal {
    let message = format!("{what} within {} s: try again when the node has less to do", PATIENCE.as_secs());
    Refusal::new(RefusalKind::Retry, message).with_effect(Effect::None)
}

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
