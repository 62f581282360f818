//! Repairs, salvage, drills and backups of this node, as operators ask for them; what changes data is put on record (who, when,
//! how much).

use futures::StreamExt;
use futures::stream;
use meridian_gateway::{BackupStream, DrillStream, Recoveries};
use meridian_proto::identity::Identity;
use meridian_types::{
    BackupAsk, BucketName, DrillSpec, Refusal, RepairStatus, ReplayPolicy, ReplayReport, SalvageBundle, SalvageId,
    SalvageKey, ShardId,
};

use super::front::Front;

impl Recoveries for Front {
    fn repairs(&self) -> Result<Vec<RepairStatus>, Refusal> {
        Ok(self.data()?.region.repairs())
    }

    fn resync(&self, bucket: BucketName) -> Result<usize, Refusal> {
        match self.bucket_id(Some(bucket))? {
            Some(bucket) => self.data()?.region.resync(bucket),
            None => Ok(0),
        }
    }

    fn reinstate(&self, bucket: Option<BucketName>) -> Result<usize, Refusal> {
        let bucket = self.bucket_id(bucket)?;
        Ok(self.data()?.region.reinstate(bucket))
    }

    async fn salvages(&self) -> Result<Vec<SalvageBundle>, Refusal> {
        self.data()?.region.salvages().await
    }

    async fn salvage_keys(&self, id: SalvageId, part: u32, judged: bool) -> Result<Vec<SalvageKey>, Refusal> {
        self.data()?.region.salvage_keys(id, part, judged).await
    }

    async fn replay(
        &self,
        id: SalvageId,
        part: u32,
        policy: ReplayPolicy,
        dry_run: bool,
        who: Identity,
    ) -> Result<ReplayReport, Refusal> {
        let report = self.data()?.region.replay(id, part, policy, dry_run).await?;
        if !dry_run && report.restored > 0 {
            let detail = format!("{} keys of part {part} were written back ({policy})", report.restored);
            self.note("replay-salvage", id, detail, &who).await;
        }
        Ok(report)
    }

    async fn drop_salvage(&self, id: SalvageId, dry_run: bool, who: Identity) -> Result<(), Refusal> {
        let bundle = self.data()?.region.salvage(id).await?;
        if dry_run {
            return Ok(());
        }
        self.data()?.region.drop_salvage(id).await?;
        let detail = format!("{} keys, of which {} had been written back", bundle.keys, bundle.restored);
        self.note("drop-salvage", id, detail, &who).await;
        Ok(())
    }

    fn drill(&self, buckets: Vec<BucketName>, sample: u32, who: Identity) -> Result<DrillStream, Refusal> {
        let ids = buckets.iter().map(|name| self.bucket_id(Some(name.clone())));
        let ids: Vec<_> = ids.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let news = self.data()?.region.drill(DrillSpec { buckets: ids, sample })?;
        tracing::info!(buckets = buckets.len(), sample, %who, "an operator rehearses a failover to this region");
        let next = |mut news: tokio::sync::mpsc::Receiver<_>| async move { news.recv().await.map(|told| (told, news)) };
        Ok(stream::unfold(news, next).boxed())
    }

    async fn back_up(
        &self,
        bucket: BucketName,
        shard: ShardId,
        ask: BackupAsk,
        who: Identity,
    ) -> Result<BackupStream, Refusal> {
        let region = &self.data()?.region;
        let Some(id) = self.bucket_id(Some(bucket.clone()))? else { return Ok(stream::empty().boxed()) };
        let pieces = region.back_up(id, shard, ask).await?;
        tracing::info!(%bucket, %shard, %who, "an operator backs a bucket up");
        Ok(pieces)
    }
}

impl Front {
    /// Puts on record what was done. It is done: that the record could not be made is logged, and takes nothing back.
    async fn note(&self, verb: &str, id: SalvageId, detail: String, who: &Identity) {
        let topology = self.metadata().topology();
        let bucket =
            topology.buckets.get(&id.bucket).map_or_else(|| format!("bucket-{}", id.bucket), |it| it.name.to_string());
        let subject = format!("{bucket}/{id}");
        tracing::warn!(%subject, verb, detail, %who, "an operator changed what a lost primary had kept");
        if let Err(why) = self.metadata().note(verb, subject, detail, &who.uri()).await {
            tracing::error!(%why, verb, salvage = %id, "what an operator did could not be put on record");
        }
    }
}
