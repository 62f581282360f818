//! Rehearsed failovers.

use meridian_types::{
    BucketId, BucketName, DrillBucket, DrillLatency, DrillNews, DrillProgress, DrillReport, DrillShard, DrillStep,
    Epoch, Lsn, NodeId, Refusal, SetHash,
};

use super::cluster::{named, unreadable, wide};
use super::{invalid, region, shard};
use crate::v1;
use crate::v1::drill_news::News;

/// What is rehearsed, on the wire: the names of buckets, and how many keys of each are read and written.
pub fn drill_to_proto(buckets: &[BucketName], sample: u32) -> v1::DrillFailoverRequest {
    v1::DrillFailoverRequest { buckets: buckets.iter().map(ToString::to_string).collect(), sample }
}

/// Reads it back.
///
/// # Errors
/// Invalid for bad names.
pub fn drill_from_proto(request: v1::DrillFailoverRequest) -> Result<(Vec<BucketName>, u32), Refusal> {
    let buckets = request.buckets.iter().map(|name| named(BucketName::new(name)));
    Ok((buckets.collect::<Result<_, _>>()?, request.sample))
}

/// What a drill tells, on the wire.
pub fn drill_news_to_proto(news: DrillNews) -> v1::DrillNews {
    let news = match news {
        DrillNews::Progress(it) => {
            News::Progress(v1::DrillProgress { step: step_to_proto(it.step), done: it.done, total: it.total })
        }
        DrillNews::Done(report) => News::Report(report_to_proto(*report)),
    };
    v1::DrillNews { news: Some(news) }
}

/// Reads it back.
///
/// # Errors
/// When it is none, or of a later version.
pub fn drill_news_from_proto(news: v1::DrillNews) -> Result<DrillNews, Refusal> {
    match news.news.ok_or_else(|| unreadable("what a drill tells"))? {
        News::Progress(it) => {
            let step = step_from_proto(it.step)?;
            Ok(DrillNews::Progress(DrillProgress { step, done: it.done, total: it.total }))
        }
        News::Report(report) => Ok(DrillNews::Done(Box::new(report_from_proto(report)?))),
    }
}

fn step_to_proto(step: DrillStep) -> i32 {
    let step = match step {
        DrillStep::Copy => v1::DrillStep::Copy,
        DrillStep::Verify => v1::DrillStep::Verify,
        DrillStep::Start => v1::DrillStep::Start,
        DrillStep::Fence => v1::DrillStep::Fence,
        DrillStep::TakeOver => v1::DrillStep::TakeOver,
        DrillStep::Read => v1::DrillStep::Read,
        DrillStep::Write => v1::DrillStep::Write,
        DrillStep::Remove => v1::DrillStep::Remove,
    };
    step.into()
}

fn step_from_proto(step: i32) -> Result<DrillStep, Refusal> {
    let unknown = || invalid("the drill has a step that this version does not know");
    Ok(match v1::DrillStep::try_from(step).map_err(|_| unknown())? {
        v1::DrillStep::Unspecified => return Err(unknown()),
        v1::DrillStep::Copy => DrillStep::Copy,
        v1::DrillStep::Verify => DrillStep::Verify,
        v1::DrillStep::Start => DrillStep::Start,
        v1::DrillStep::Fence => DrillStep::Fence,
        v1::DrillStep::TakeOver => DrillStep::TakeOver,
        v1::DrillStep::Read => DrillStep::Read,
        v1::DrillStep::Write => DrillStep::Write,
        v1::DrillStep::Remove => DrillStep::Remove,
    })
}

fn report_to_proto(report: DrillReport) -> v1::DrillReport {
    let took = |(step, us): (DrillStep, u64)| v1::DrillTook { step: step_to_proto(step), us };
    v1::DrillReport {
        node: report.node.0,
        region: u32::from(report.region.0),
        bytes: report.bytes,
        steps: report.steps.into_iter().map(took).collect(),
        shards: report.shards.into_iter().map(shard_to_proto).collect(),
        buckets: report.buckets.into_iter().map(bucket_to_proto).collect(),
        faults: report.faults,
        lease_ms: report.lease_ms,
    }
}

fn report_from_proto(report: v1::DrillReport) -> Result<DrillReport, Refusal> {
    let took = |it: v1::DrillTook| Ok((step_from_proto(it.step)?, it.us));
    Ok(DrillReport {
        node: NodeId(report.node),
        region: region(report.region)?,
        bytes: report.bytes,
        steps: report.steps.into_iter().map(took).collect::<Result<_, Refusal>>()?,
        shards: report.shards.into_iter().map(shard_from_proto).collect::<Result<_, _>>()?,
        buckets: report.buckets.into_iter().map(bucket_from_proto).collect(),
        faults: report.faults,
        lease_ms: report.lease_ms,
    })
}

fn shard_to_proto(it: DrillShard) -> v1::DrillShard {
    v1::DrillShard {
        bucket: it.bucket.0,
        shard: u32::from(it.shard.0),
        lsn: it.lsn.0,
        keys: it.keys,
        said: it.said.0.to_be_bytes().to_vec().into(),
        found: it.found.0.to_be_bytes().to_vec().into(),
        fault: it.fault,
    }
}

fn shard_from_proto(it: v1::DrillShard) -> Result<DrillShard, Refusal> {
    Ok(DrillShard {
        bucket: BucketId(it.bucket),
        shard: shard(it.shard)?,
        lsn: Lsn(it.lsn),
        keys: it.keys,
        said: SetHash(wide(&it.said, "a digest")?),
        found: SetHash(wide(&it.found, "a digest")?),
        fault: it.fault,
    })
}

fn bucket_to_proto(it: DrillBucket) -> v1::DrillBucket {
    let latency = |it: DrillLatency| v1::DrillLatency {
        count: it.count,
        first_us: it.first_us,
        p50_us: it.p50_us,
        p99_us: it.p99_us,
    };
    let (reads, writes) = (Some(latency(it.reads)), Some(latency(it.writes)));
    v1::DrillBucket { bucket: it.bucket.0, epoch: it.epoch.0, reads, writes, faults: it.faults }
}

fn bucket_from_proto(it: v1::DrillBucket) -> DrillBucket {
    let latency = |it: Option<v1::DrillLatency>| {
        let it = it.unwrap_or_default();
        DrillLatency { count: it.count, first_us: it.first_us, p50_us: it.p50_us, p99_us: it.p99_us }
    };
    let (reads, writes) = (latency(it.reads), latency(it.writes));
    DrillBucket { bucket: BucketId(it.bucket), epoch: Epoch(it.epoch), reads, writes, faults: it.faults }
}

#[cfg(test)]
mod tests {
    use meridian_types::{RegionId, ShardId};

    use super::*;

    #[test]
    fn what_a_drill_tells_comes_back_as_it_went() {
        for step in DrillStep::ALL {
            let news = DrillNews::Progress(DrillProgress { step, done: 1, total: 2 });
            assert_eq!(drill_news_from_proto(drill_news_to_proto(news.clone())), Ok(news));
        }
        let reads = DrillLatency { count: 1, first_us: 2, p50_us: 3, p99_us: 4 };
        let shard = DrillShard {
            bucket: BucketId(1),
            shard: ShardId(2),
            lsn: Lsn(3),
            keys: 4,
            said: SetHash(5),
            found: SetHash(6),
            fault: "differs".to_owned(),
        };
        let bucket = DrillBucket {
            bucket: BucketId(1),
            epoch: Epoch(2),
            reads,
            faults: vec!["gone".to_owned()],
            ..DrillBucket::default()
        };
        let report = DrillReport {
            node: NodeId(9),
            region: RegionId(2),
            bytes: 7,
            steps: DrillStep::ALL.map(|step| (step, 1)).to_vec(),
            shards: vec![shard],
            buckets: vec![bucket],
            faults: vec!["cut off".to_owned()],
            lease_ms: 5000,
        };
        let news = DrillNews::Done(Box::new(report));
        assert_eq!(drill_news_from_proto(drill_news_to_proto(news.clone())), Ok(news));
        assert!(drill_news_from_proto(v1::DrillNews { news: None }).is_err());
        assert!(step_from_proto(0).is_err() && step_from_proto(99).is_err());
    }

    #[test]
    fn what_is_asked_for_comes_back_as_it_went() {
        let names = vec![BucketName::new("a").unwrap(), BucketName::new("b").unwrap()];
        assert_eq!(drill_from_proto(drill_to_proto(&names, 7)), Ok((names, 7)));
        assert!(drill_from_proto(v1::DrillFailoverRequest { buckets: vec!["//".to_owned()], sample: 1 }).is_err());
    }
}
