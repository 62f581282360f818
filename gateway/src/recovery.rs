//! The `Recovery` service: repairs of replicas, what lost primaries kept, rehearsals of a failover, and rows for a backup, as
//! operators ask this node for them.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_proto::convert::{
    backup_ask_from_proto, backup_piece_to_proto, bundle_to_proto, drill_from_proto, drill_news_to_proto,
    repair_to_proto, replay_policy_from_proto, replay_to_proto, salvage_id, salvage_key_to_proto, status_of_refusal,
};
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_proto::v1::recovery_server::Recovery;
use meridian_types::{
    BackupAsk, BackupPiece, BucketName, DrillNews, Refusal, RefusalKind, RepairStatus, ReplayPolicy, ReplayReport,
    SalvageBundle, SalvageId, SalvageKey, ShardId,
};
use tonic::{Request, Response, Status};

/// What a drill tells, until it is over.
pub type DrillStream = BoxStream<'static, Result<DrillNews, Refusal>>;

/// What a shard gives to a backup, until its end.
pub type BackupStream = BoxStream<'static, Result<BackupPiece, Refusal>>;

/// Repairs, salvage, drills and backups of the node that answers.
pub trait Recoveries: Send + Sync + 'static {
    /// Its repairs: under way, waiting, and the last that are over.
    ///
    /// # Errors
    /// While the node is starting.
    fn repairs(&self) -> Result<Vec<RepairStatus>, Refusal>;

    /// Compares a bucket with its primary's, and makes it equal where it differs; tells in how many shards.
    ///
    /// # Errors
    /// NotFound; Invalid in the primary's own region.
    fn resync(&self, bucket: BucketName) -> Result<usize, Refusal>;

    /// Lets replicas that were primaries give up what only they have; tells how many buckets that is about.
    ///
    /// # Errors
    /// NotFound.
    fn reinstate(&self, bucket: Option<BucketName>) -> Result<usize, Refusal>;

    /// The bundles on its disk.
    ///
    /// # Errors
    /// When the disk fails or one is damaged.
    fn salvages(&self) -> impl Future<Output = Result<Vec<SalvageBundle>, Refusal>> + Send;

    /// The keys of one part of a bundle; `judged`: with what became of each.
    ///
    /// # Errors
    /// NotFound; Corrupt.
    fn salvage_keys(
        &self,
        id: SalvageId,
        part: u32,
        judged: bool,
    ) -> impl Future<Output = Result<Vec<SalvageKey>, Refusal>> + Send;

    /// Writes one part of a bundle back.
    ///
    /// # Errors
    /// NotFound; Corrupt.
    fn replay(
        &self,
        id: SalvageId,
        part: u32,
        policy: ReplayPolicy,
        dry_run: bool,
        who: Identity,
    ) -> impl Future<Output = Result<ReplayReport, Refusal>> + Send;

    /// Forgets a bundle.
    ///
    /// # Errors
    /// NotFound.
    fn drop_salvage(
        &self,
        id: SalvageId,
        dry_run: bool,
        who: Identity,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Rehearses a failover of buckets to this node's region; dropping what it tells gives it up.
    ///
    /// # Errors
    /// NotFound and Invalid for buckets that can't fail over to here; Retry while another drill is under way.
    fn drill(&self, buckets: Vec<BucketName>, sample: u32, who: Identity) -> Result<DrillStream, Refusal>;

    /// Gives a bucket's rows of a shard away; dropping them gives it up.
    ///
    /// # Errors
    /// NotFound; Invalid where the bucket is not held; Redirect when another node leads the shard.
    fn back_up(
        &self,
        bucket: BucketName,
        shard: ShardId,
        ask: BackupAsk,
        who: Identity,
    ) -> impl Future<Output = Result<BackupStream, Refusal>> + Send;
}

/// Serves operators.
pub struct RecoveryService<R> {
    recoveries: Arc<R>,
}

impl<R: Recoveries> RecoveryService<R> {
    /// In front of this.
    pub fn new(recoveries: Arc<R>) -> RecoveryService<R> {
        RecoveryService { recoveries }
    }
}

#[tonic::async_trait]
impl<R: Recoveries> Recovery for RecoveryService<R> {
    type DrillFailoverStream = BoxStream<'static, Result<v1::DrillNews, Status>>;
    type BackUpStream = BoxStream<'static, Result<v1::BackupPiece, Status>>;

    async fn repairs(&self, request: Request<v1::RepairsRequest>) -> Result<Response<v1::RepairsResponse>, Status> {
        caller(&request)?;
        let repairs = self.recoveries.repairs().map_err(status_of_refusal)?;
        Ok(Response::new(v1::RepairsResponse { repairs: repairs.into_iter().map(repair_to_proto).collect() }))
    }

    async fn resync(&self, request: Request<v1::ResyncRequest>) -> Result<Response<v1::ResyncResponse>, Status> {
        caller(&request)?;
        let bucket = bucket_name(&request.into_inner().bucket)?;
        let shards = self.recoveries.resync(bucket).map_err(status_of_refusal)?;
        Ok(Response::new(v1::ResyncResponse { shards: u32::try_from(shards).unwrap_or(u32::MAX) }))
    }

    async fn reinstate(
        &self,
        request: Request<v1::ReinstateRequest>,
    ) -> Result<Response<v1::ReinstateResponse>, Status> {
        caller(&request)?;
        let name = request.into_inner().bucket;
        let bucket = if name.is_empty() { None } else { Some(bucket_name(&name)?) };
        let buckets = self.recoveries.reinstate(bucket).map_err(status_of_refusal)?;
        Ok(Response::new(v1::ReinstateResponse { buckets: u32::try_from(buckets).unwrap_or(u32::MAX) }))
    }

    async fn salvages(&self, request: Request<v1::SalvagesRequest>) -> Result<Response<v1::SalvagesResponse>, Status> {
        caller(&request)?;
        let bundles = self.recoveries.salvages().await.map_err(status_of_refusal)?;
        Ok(Response::new(v1::SalvagesResponse { bundles: bundles.into_iter().map(bundle_to_proto).collect() }))
    }

    async fn salvage_keys(
        &self,
        request: Request<v1::SalvageKeysRequest>,
    ) -> Result<Response<v1::SalvageKeysResponse>, Status> {
        caller(&request)?;
        let request = request.into_inner();
        let id = salvage_id(&request.id).map_err(status_of_refusal)?;
        let keys = self.recoveries.salvage_keys(id, request.part, request.judged).await.map_err(status_of_refusal)?;
        Ok(Response::new(v1::SalvageKeysResponse { keys: keys.into_iter().map(salvage_key_to_proto).collect() }))
    }

    async fn replay(&self, request: Request<v1::ReplayRequest>) -> Result<Response<v1::ReplayResponse>, Status> {
        let who = caller(&request)?;
        let request = request.into_inner();
        let id = salvage_id(&request.id).map_err(status_of_refusal)?;
        let policy = replay_policy_from_proto(request.policy).map_err(status_of_refusal)?;
        let replayed = self.recoveries.replay(id, request.part, policy, request.dry_run, who).await;
        Ok(Response::new(replay_to_proto(replayed.map_err(status_of_refusal)?)))
    }

    async fn drop_salvage(
        &self,
        request: Request<v1::DropSalvageRequest>,
    ) -> Result<Response<v1::DropSalvageResponse>, Status> {
        let who = caller(&request)?;
        let request = request.into_inner();
        let id = salvage_id(&request.id).map_err(status_of_refusal)?;
        self.recoveries.drop_salvage(id, request.dry_run, who).await.map_err(status_of_refusal)?;
        Ok(Response::new(v1::DropSalvageResponse {}))
    }

    async fn drill_failover(
        &self,
        request: Request<v1::DrillFailoverRequest>,
    ) -> Result<Response<Self::DrillFailoverStream>, Status> {
        let who = caller(&request)?;
        let (buckets, sample) = drill_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        let news = self.recoveries.drill(buckets, sample, who).map_err(status_of_refusal)?;
        Ok(Response::new(news.map(|told| told.map(drill_news_to_proto).map_err(status_of_refusal)).boxed()))
    }

    async fn back_up(&self, request: Request<v1::BackUpRequest>) -> Result<Response<Self::BackUpStream>, Status> {
        let who = caller(&request)?;
        let request = request.into_inner();
        let bucket = bucket_name(&request.bucket)?;
        let (shard, ask) = backup_ask_from_proto(request).map_err(status_of_refusal)?;
        let pieces = self.recoveries.back_up(bucket, shard, ask, who).await;
        let pieces = pieces.map_err(status_of_refusal)?;
        Ok(Response::new(pieces.map(|it| it.map(backup_piece_to_proto).map_err(status_of_refusal)).boxed()))
    }
}

fn caller<T>(request: &Request<T>) -> Result<Identity, Status> {
    Identity::of_request(request).map_err(status_of_refusal)
}

fn bucket_name(name: &str) -> Result<BucketName, Status> {
    BucketName::new(name).map_err(|why| status_of_refusal(Refusal::new(RefusalKind::Invalid, why.to_string())))
}
