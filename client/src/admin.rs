//! What operators do. Destructive requests are never repeated by themselves: when their answer is lost, the error's
//! effect is unknown, and the operator looks first.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use meridian_proto::convert::{
    bucket_from_proto, change_to_proto, digests_from_proto, lag_from_proto, node_status_from_proto, refusal_of_status,
    spec_to_proto,
};
use meridian_proto::v1;
use meridian_proto::v1::cluster_client::ClusterClient;
use meridian_types::{
    Bucket, BucketChange, BucketLag, BucketName, BucketSpec, Effect, Labels, LaneStatus, Node, NodeId, NodeStatus,
    Refusal, RefusalKind, RegionId, RegionName, ShardDigest, Topology,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::client::{Client, region_name};
use crate::error::Error;

/// The largest answer taken from a node, in bytes: digests of many buckets.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long a node may take to report about itself.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a change of the metadata plane may take; a little longer than the node itself allows.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(32);

/// The operator's view of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub(crate) client: Client,
}

/// What one region answered; a region that can't be reached doesn't hide the others.
#[derive(Clone, Debug)]
pub struct RegionAnswer<T> {
    /// The region.
    pub region: RegionName,
    /// Its answer.
    pub answer: Result<T, Error>,
}

/// How far other regions are behind one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// The region the others are behind.
    pub source: RegionId,
    /// One row per bucket and target region.
    pub buckets: Vec<BucketLag>,
    /// One row per shard, target region and lane.
    pub lanes: Vec<LaneStatus>,
}

pub(crate) type ClusterStub = ClusterClient<Channel>;

/// A question to one node. The inner result is the answer's own: whether it could be read.
pub(crate) trait Ask<T>:
    Fn(ClusterStub) -> BoxFuture<'static, Result<Result<T, Refusal>, Status>> + Send + Sync
{
}

impl<T, F> Ask<T> for F where F: Fn(ClusterStub) -> BoxFuture<'static, Result<Result<T, Refusal>, Status>> + Send + Sync {}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    /// The topology, asked for anew.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn topology(&self) -> Result<Arc<Topology>, Error> {
        self.reach().await?;
        Ok(self.client.known_topology())
    }

    /// Creates a bucket; with `dry_run` only says what would be created.
    ///
    /// # Errors
    /// Invalid, naming the fields in conflict; Exists; Unavailable without a majority of the metadata plane.
    pub async fn create_bucket(&self, spec: &BucketSpec, dry_run: bool) -> Result<Bucket, Error> {
        let request = spec_to_proto(spec, dry_run);
        let bucket = change(self.reach().await?, async |mut stub| stub.create_bucket(request).await).await?;
        let bucket = bucket_from_proto(bucket)?;
        if !dry_run {
            self.client.inner().cluster.bucket_created(&bucket.name);
            self.client.inner().cluster.is_outdated();
        }
        Ok(bucket)
    }

    /// Deletes a bucket with everything in it; with `dry_run` only checks that it could.
    ///
    /// # Errors
    /// NotFound; Unavailable without a majority of the metadata plane.
    pub async fn delete_bucket(&self, name: &BucketName, dry_run: bool) -> Result<(), Error> {
        let request = v1::DeleteBucketRequest { name: name.to_string(), dry_run };
        change(self.reach().await?, async |mut stub| stub.delete_bucket(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.bucket_deleted(name);
            self.client.inner().cluster.is_outdated();
        }
        Ok(())
    }

    /// Sets and removes labels of a bucket.
    ///
    /// # Errors
    /// NotFound; Unavailable without a majority of the metadata plane.
    pub async fn set_labels(&self, name: &BucketName, set: Labels, remove: Vec<String>) -> Result<Bucket, Error> {
        let request = v1::SetBucketLabelsRequest { name: name.to_string(), set: set.into_iter().collect(), remove };
        let bucket = change(self.reach().await?, async |mut stub| stub.set_bucket_labels(request).await).await?;
        self.client.inner().cluster.is_outdated();
        Ok(bucket_from_proto(bucket)?)
    }

    /// Changes what can be changed of a bucket at any time; with `dry_run` only says what it would be.
    ///
    /// # Errors
    /// NotFound; Invalid, naming the fields in conflict; Unavailable without a majority of the metadata plane.
    pub async fn set_bucket(&self, name: &BucketName, asked: &BucketChange, dry_run: bool) -> Result<Bucket, Error> {
        let request = change_to_proto(name, asked, dry_run);
        let bucket = change(self.reach().await?, async |mut stub| stub.set_bucket(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.is_outdated();
        }
        Ok(bucket_from_proto(bucket)?)
    }

    /// The digests of a bucket, or of all, in every region. Regions are equal when, per bucket and shard, equal positions
    /// have equal hashes ([`meridian_types::BucketDigest::agrees_with`]).
    ///
    /// # Errors
    /// When no endpoint tells the topology. A region that can't be reached is an error of its own row.
    pub async fn digests(&self, bucket: Option<&BucketName>) -> Result<Vec<RegionAnswer<Vec<ShardDigest>>>, Error> {
        let request = v1::DigestsRequest { bucket: bucket.map_or_else(String::new, ToString::to_string) };
        self.per_region(move |mut stub| {
            let request = request.clone();
            async move {
                let answer = stub.digests(request).await?;
                Ok(digests_from_proto(answer.into_inner()).map(|(_, rows)| rows))
            }
            .boxed()
        })
        .await
    }

    /// Per region, how far the others are behind it, for a bucket or for all. A node tells of the shards it leads, so that
    /// all of them are asked; a region answers when one of its nodes does.
    ///
    /// # Errors
    /// As [`Admin::digests`].
    pub async fn lag(&self, bucket: Option<&BucketName>) -> Result<Vec<RegionAnswer<Lag>>, Error> {
        let request = v1::LagRequest { bucket: bucket.map_or_else(String::new, ToString::to_string) };
        let ask = move |mut stub: ClusterStub| {
            let request = request.clone();
            async move {
                let answer = stub.lag(request).await?;
                Ok(lag_from_proto(answer.into_inner()).map(|(source, buckets, lanes)| Lag { source, buckets, lanes }))
            }
            .boxed()
        };
        let topology = self.topology().await?;
        let regions = topology.data_regions().map(|region| {
            let nodes: Vec<_> = topology.serving(region).into_iter().cloned().collect();
            let (ask, region) = (&ask, region_name(&topology, region));
            async move {
                let answers = join_all(nodes.iter().map(|node| self.ask(node, ask))).await;
                RegionAnswer { region, answer: merged(answers) }
            }
        });
        Ok(join_all(regions).await)
    }

    /// What a node knows of itself.
    ///
    /// # Errors
    /// NotFound when the topology doesn't have the node; else as any request.
    pub async fn node_status(&self, node: NodeId) -> Result<NodeStatus, Error> {
        let topology = self.client.known_topology();
        let known = match topology.nodes.get(&node) {
            Some(known) => known.clone(),
            None => self.topology().await?.nodes.get(&node).cloned().ok_or_else(|| {
                Refusal::new(RefusalKind::NotFound, format!("no node {node} in the topology: see `meridian status`"))
            })?,
        };
        let ask = |mut stub: ClusterStub| {
            async move {
                let answer = stub.node_status(v1::NodeStatusRequest {}).await?;
                Ok(node_status_from_proto(answer.into_inner()))
            }
            .boxed()
        };
        self.ask(&known, &ask).await
    }

    /// What every node of the topology knows of itself.
    ///
    /// # Errors
    /// When no endpoint tells the topology. A node that can't be reached is an error of its own row.
    pub async fn node_statuses(&self) -> Result<Vec<(Node, Result<NodeStatus, Error>)>, Error> {
        let topology = self.topology().await?;
        let asked = topology.nodes.values().map(|node| {
            let (admin, node) = (self.clone(), node.clone());
            async move {
                let status = admin.node_status(node.id).await;
                (node, status)
            }
        });
        Ok(join_all(asked).await)
    }

    /// An endpoint that has just answered: a change sent to it is unlikely to get lost.
    pub(crate) async fn reach(&self) -> Result<ClusterStub, Error> {
        let reached = self.client.inner().cluster.refresh().await;
        let endpoint = reached.map_err(|tried| {
            let attempts = u32::try_from(tried.len()).unwrap_or(u32::MAX);
            let why: Vec<String> = tried.into_iter().map(|(at, why)| format!("{at}: {why}")).collect();
            let refusal = Refusal::new(RefusalKind::Unavailable, format!("no endpoint answers: {}", why.join("; ")));
            Error::new(refusal, attempts, Duration::ZERO)
        })?;
        Ok(stub(endpoint.channel.clone()))
    }

    /// Asks one node of each region with data: the first that answers.
    async fn per_region<T: Send>(&self, ask: impl Ask<T>) -> Result<Vec<RegionAnswer<T>>, Error> {
        let topology = self.topology().await?;
        let mut regions = Vec::new();
        for region in topology.data_regions() {
            let nodes = topology.serving(region).into_iter().cloned().collect();
            regions.push(self.first_answer(region_name(&topology, region), nodes, &ask));
        }
        Ok(join_all(regions).await)
    }

    async fn first_answer<T: Send>(&self, region: RegionName, nodes: Vec<Node>, ask: &impl Ask<T>) -> RegionAnswer<T> {
        let mut answer = Err(Error::from(Refusal::new(RefusalKind::Unavailable, NOBODY_YET)));
        for node in &nodes {
            answer = self.ask(node, ask).await;
            if answer.is_ok() {
                break;
            }
        }
        RegionAnswer { region, answer }
    }

    pub(crate) async fn ask<T: Send>(&self, node: &Node, ask: &impl Ask<T>) -> Result<T, Error> {
        let endpoint = self
            .client
            .inner()
            .cluster
            .endpoints
            .connect(node.id, &node.rpc_address)
            .map_err(|why| Refusal::new(RefusalKind::Invalid, format!("node {}: {why}", node.name)))?;
        let answer = match tokio::time::timeout(REPORT_TIMEOUT, ask(stub(endpoint.channel.clone()))).await {
            Ok(answer) => answer.map_err(|status| refusal_of_status(&status).with_effect(Effect::None)),
            Err(_) => Err(Refusal::new(
                RefusalKind::Unavailable,
                format!("node {} did not answer within {} s", node.name, REPORT_TIMEOUT.as_secs()),
            )),
        };
        Ok(answer??)
    }
}

/// What the nodes of a region tell of its lag, together.
fn merged(answers: Vec<Result<Lag, Error>>) -> Result<Lag, Error> {
    let mut whole: Option<Lag> = None;
    let mut silent = None;
    for answer in answers {
        match (answer, &mut whole) {
            (Ok(part), None) => whole = Some(part),
            (Ok(part), Some(whole)) => whole.add(part),
            (Err(why), _) => silent = Some(why),
        }
    }
    let nobody = || Error::from(Refusal::new(RefusalKind::Unavailable, NOBODY_YET));
    whole.ok_or_else(|| silent.unwrap_or_else(nobody))
}

impl Lag {
    /// What another node of the same source tells of other shards.
    fn add(&mut self, part: Lag) {
        self.lanes.extend(part.lanes);
        for row in part.buckets {
            match self.buckets.iter_mut().find(|it| (it.bucket, it.target) == (row.bucket, row.target)) {
                None => self.buckets.push(row),
                Some(sum) => sum.add(row),
            }
        }
    }
}

/// What is said of a region without nodes.
const NOBODY_YET: &str = "no node of the region has registered yet: see `meridian status`";

fn stub(channel: Channel) -> ClusterStub {
    ClusterClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(crate) async fn change<T>(
    stub: ClusterStub,
    send: impl AsyncFnOnce(ClusterStub) -> Result<Response<T>, Status>,
) -> Result<T, Error> {
    match tokio::time::timeout(CHANGE_TIMEOUT, send(stub)).await {
        Ok(answer) => Ok(answer.map_err(|status| refusal_of_status(&status))?.into_inner()),
        Err(_) => Err(Refusal::new(
            RefusalKind::Unavailable,
            format!("no answer within {} s: look at the topology before trying again", CHANGE_TIMEOUT.as_secs()),
        )
        .with_effect(Effect::Unknown)
        .into()),
    }
}
