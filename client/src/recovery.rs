//! Repairs of replicas, what lost primaries kept, rehearsals of a failover and rows for a backup, as operators ask for them: node
//! by node, since each answers for the shards it leads and the disk it has.

use std::time::Duration;

use futures::future::join_all;
use meridian_proto::convert::{
    backup_ask_to_proto, backup_piece_from_proto, bundle_from_proto, drill_news_from_proto, drill_to_proto,
    refusal_of_status, repair_from_proto, replay_from_proto, replay_policy_to_proto, salvage_key_from_proto,
};
use meridian_proto::v1;
use meridian_proto::v1::recovery_client::RecoveryClient;
use meridian_types::{
    BackupAsk, BackupCut, BackupPiece, BackupRow, BucketName, DrillNews, DrillProgress, DrillReport, Effect, Node,
    NodeName, Refusal, RefusalKind, RepairStatus, ReplayPolicy, ReplayReport, SalvageBundle, SalvageId, SalvageKey,
    ShardId,
};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::admin::Admin;
use crate::error::Error;

/// How long a node may take to report about itself.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one part of a bundle may take to be compared, or written back, across an ocean.
const PART_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a node may take to begin a backup of a shard, or to read its next page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer taken, in bytes: a part of a bundle whose last value is as large as values get.
const ANSWER_BYTES_MAX: usize = 64 << 20;

type Stub = RecoveryClient<Channel>;

/// A bucket's rows of a shard as they were at one moment, read page by page.
#[derive(Debug)]
pub struct ShardRows {
    /// The moment, and what the rows add up to.
    pub cut: BackupCut,
    pieces: Streaming<v1::BackupPiece>,
    node: NodeName,
    taken: u64,
}

/// Some of what comes of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardPage {
    /// Entries of the log, by their position.
    Log(Vec<BackupRow>),
    /// Rows.
    Rows(Vec<BackupRow>),
    /// What is needed to tell the log again from here on.
    Context(Vec<BackupRow>),
}

impl ShardRows {
    /// The next page: of the log, of the rows in the order of their keys, of the context; `None` once all have come.
    ///
    /// # Errors
    /// When the node says no, or ends before the end: then rows are missing, and all of it is to be begun again.
    pub async fn next_page(&mut self) -> Result<Option<ShardPage>, Error> {
        let mut took = |rows: &Vec<BackupRow>| self.taken += rows.len() as u64;
        match next_piece(&mut self.pieces, &self.node).await? {
            Some(BackupPiece::Log(log)) => {
                took(&log);
                Ok(Some(ShardPage::Log(log)))
            }
            Some(BackupPiece::Rows(rows)) => {
                took(&rows);
                Ok(Some(ShardPage::Rows(rows)))
            }
            Some(BackupPiece::Context(context)) => {
                took(&context);
                Ok(Some(ShardPage::Context(context)))
            }
            Some(BackupPiece::End { rows }) if rows == self.taken => Ok(None),
            Some(BackupPiece::Cut(_) | BackupPiece::End { .. }) | None => Err(cut_off(&self.node)),
        }
    }
}

async fn next_piece(pieces: &mut Streaming<v1::BackupPiece>, node: &NodeName) -> Result<Option<BackupPiece>, Error> {
    let piece = tokio::time::timeout(PAGE_TIMEOUT, pieces.message()).await.map_err(|_| {
        let why = format!("node {node} gave no rows for {} s", PAGE_TIMEOUT.as_secs());
        Refusal::new(RefusalKind::Unavailable, why)
    })?;
    let piece = piece.map_err(|status| refusal_of_status(&status))?;
    Ok(piece.map(backup_piece_from_proto).transpose()?)
}

fn cut_off(node: &NodeName) -> Error {
    let why = format!("node {node} ended before it had given all rows: is it being stopped?");
    Refusal::new(RefusalKind::Unavailable, why).into()
}

impl Admin {
    /// Repairs of every node: under way, waiting, and the last that are over.
    ///
    /// # Errors
    /// When no endpoint tells the topology. A node that can't be reached is an error of its own row.
    pub async fn repairs(&self) -> Result<Vec<(Node, Result<Vec<RepairStatus>, Error>)>, Error> {
        self.of_every_node(
            async |mut stub: Stub| stub.repairs(v1::RepairsRequest {}).await,
            |answer| answer.repairs.into_iter().map(repair_from_proto).collect(),
        )
        .await
    }

    /// The bundles on every node.
    ///
    /// # Errors
    /// As [`Admin::repairs`].
    pub async fn salvages(&self) -> Result<Vec<(Node, Result<Vec<SalvageBundle>, Error>)>, Error> {
        self.of_every_node(
            async |mut stub: Stub| stub.salvages(v1::SalvagesRequest {}).await,
            |answer| answer.bundles.into_iter().map(bundle_from_proto).collect(),
        )
        .await
    }

    /// Has a node compare a bucket with its primary's in every shard it leads, and make it equal; tells how many those are.
    ///
    /// # Errors
    /// NotFound; Invalid in the primary's own region.
    pub async fn resync(&self, node: &Node, bucket: &BucketName) -> Result<u32, Error> {
        let request = v1::ResyncRequest { bucket: bucket.to_string() };
        Ok(self.once(node, REPORT_TIMEOUT, async |mut stub| stub.resync(request).await).await?.shards)
    }

    /// Lets a node's replicas that were primaries give up what only they have, once that is written down; tells how many
    /// buckets that is about.
    ///
    /// # Errors
    /// NotFound.
    pub async fn reinstate(&self, node: &Node, bucket: Option<&BucketName>) -> Result<u32, Error> {
        let request = v1::ReinstateRequest { bucket: bucket.map_or_else(String::new, ToString::to_string) };
        Ok(self.once(node, REPORT_TIMEOUT, async |mut stub| stub.reinstate(request).await).await?.buckets)
    }

    /// The keys of one part of a bundle; `judged`: with what became of each at the bucket's primary.
    ///
    /// # Errors
    /// NotFound; Corrupt.
    pub async fn salvage_keys(
        &self,
        node: &Node,
        id: SalvageId,
        part: u32,
        judged: bool,
    ) -> Result<Vec<SalvageKey>, Error> {
        let request = v1::SalvageKeysRequest { id: id.to_string(), part, judged };
        let answer = self.once(node, PART_TIMEOUT, async |mut stub| stub.salvage_keys(request).await).await?;
        Ok(answer.keys.into_iter().map(salvage_key_from_proto).collect::<Result<_, _>>()?)
    }

    /// Writes one part of a bundle back; with `dry_run` only says what would become of it.
    ///
    /// # Errors
    /// NotFound; Corrupt. Keys that could not be written are in the report.
    pub async fn replay(
        &self,
        node: &Node,
        id: SalvageId,
        part: u32,
        policy: ReplayPolicy,
        dry_run: bool,
    ) -> Result<ReplayReport, Error> {
        let policy = replay_policy_to_proto(policy).into();
        let request = v1::ReplayRequest { id: id.to_string(), part, policy, dry_run };
        let answer = self.once(node, PART_TIMEOUT, async |mut stub| stub.replay(request).await).await?;
        Ok(replay_from_proto(answer))
    }

    /// Forgets a bundle; with `dry_run` only checks that it is there.
    ///
    /// # Errors
    /// NotFound.
    pub async fn drop_salvage(&self, node: &Node, id: SalvageId, dry_run: bool) -> Result<(), Error> {
        let request = v1::DropSalvageRequest { id: id.to_string(), dry_run };
        self.once(node, REPORT_TIMEOUT, async |mut stub| stub.drop_salvage(request).await).await.map(|_| ())
    }

    /// Has a node rehearse a failover of buckets to its region, with a sample of so many keys of each, and tells how far it is.
    /// Dropping the future gives the drill up; the node removes its copy.
    ///
    /// # Errors
    /// NotFound and Invalid for buckets that can't fail over to there; Retry while another drill is under way; Unavailable
    /// without room on its disk. What a drill finds to be wrong is in the report.
    pub async fn drill_failover(
        &self,
        node: &Node,
        buckets: &[BucketName],
        sample: u32,
        mut progress: impl FnMut(DrillProgress),
    ) -> Result<DrillReport, Error> {
        let request = drill_to_proto(buckets, sample);
        // Once it has begun, it takes as long as it takes: that the node is there is seen by the connection.
        let mut news = self.once(node, REPORT_TIMEOUT, async |mut stub| stub.drill_failover(request).await).await?;
        while let Some(told) = news.message().await.map_err(|status| refusal_of_status(&status))? {
            match drill_news_from_proto(told)? {
                DrillNews::Progress(so_far) => progress(so_far),
                DrillNews::Done(report) => return Ok(*report),
            }
        }
        let why = format!("node {} ended the drill without a report: is it being stopped?", node.name);
        Err(Refusal::new(RefusalKind::Unavailable, why).into())
    }

    /// Begins to read a bucket's rows of a shard from a node that leads it in its region, as they are now, or what changed since an
    /// earlier backup: the cut says which.
    ///
    /// # Errors
    /// NotFound; Invalid where the bucket is not held; Redirect when another node leads the shard; Retry for what may pass.
    pub async fn back_up(
        &self,
        node: &Node,
        bucket: &BucketName,
        shard: ShardId,
        ask: BackupAsk,
    ) -> Result<ShardRows, Error> {
        let request = backup_ask_to_proto(bucket, shard, ask);
        let mut pieces = self.once(node, PAGE_TIMEOUT, async |mut stub| stub.back_up(request).await).await?;
        match next_piece(&mut pieces, &node.name).await? {
            Some(BackupPiece::Cut(cut)) => Ok(ShardRows { cut, pieces, node: node.name.clone(), taken: 0 }),
            Some(BackupPiece::Log(_) | BackupPiece::Rows(_) | BackupPiece::Context(_) | BackupPiece::End { .. })
            | None => Err(cut_off(&node.name)),
        }
    }

    async fn of_every_node<T, R>(
        &self,
        ask: impl AsyncFn(Stub) -> Result<Response<R>, Status>,
        read: impl Fn(R) -> Result<Vec<T>, Refusal>,
    ) -> Result<Vec<(Node, Result<Vec<T>, Error>)>, Error> {
        let topology = self.topology().await?;
        let (ask, read) = (&ask, &read);
        let asked = topology.nodes.values().map(async |node| {
            let answer = self.once(node, REPORT_TIMEOUT, ask).await;
            let answer = answer.and_then(|answer| Ok(read(answer)?));
            (node.clone(), answer)
        });
        Ok(join_all(asked).await)
    }

    async fn once<R>(
        &self,
        node: &Node,
        patience: Duration,
        ask: impl AsyncFnOnce(Stub) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let endpoints = &self.client.inner().cluster.endpoints;
        let endpoint = endpoints
            .connect(node.id, &node.rpc_address)
            .map_err(|why| Refusal::new(RefusalKind::Invalid, format!("node {}: {why}", node.name)))?;
        let stub = RecoveryClient::new(endpoint.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        match tokio::time::timeout(patience, ask(stub)).await {
            Ok(answer) => Ok(answer.map_err(|status| refusal_of_status(&status))?.into_inner()),
            Err(_) => Err(Refusal::new(
                RefusalKind::Unavailable,
                format!("node {} did not answer within {} s", node.name, patience.as_secs()),
            )
            .with_effect(Effect::Unknown)
            .into()),
        }
    }
}
