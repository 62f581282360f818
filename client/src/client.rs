//! The client: sends a request where it can be answered, again and again under the same id, until it is.

use std::sync::Arc;
use std::time::Duration;

use meridian_proto::exchange::Failure;
use meridian_types::{
    BucketName, ClientId, Effect, Epoch, Outcome, Refusal, RefusalKind, RegionName, Request, RequestId, Response,
    Topology,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::admin::Admin;
use crate::answer::Meta;
use crate::bucket::Bucket;
use crate::builder::Builder;
use crate::cluster::Cluster;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::retry::RetryPolicy;
use crate::session::Session;
use crate::window::Window;

/// A connection to a cluster. Cheap to clone; all clones share connections and the client's identity.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) settings: Settings,
    window: Window,
    /// Ends with the last clone.
    refresher: JoinHandle<()>,
}

/// What the builder was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) client: ClientId,
    pub(crate) deadline: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) direct_to_primary: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.refresher.abort();
    }
}

impl Client {
    /// Describes a client to be.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(cluster: Arc<Cluster>, settings: Settings) -> Client {
        let refresher = tokio::spawn(Arc::clone(&cluster).keep_fresh());
        Client { inner: Arc::new(Inner { cluster, settings, window: Window::new(), refresher }) }
    }

    /// A bucket by name. Whether it exists shows when it is used.
    ///
    /// # Errors
    /// Invalid when the name can't be a bucket's.
    pub fn bucket(&self, name: &str) -> Result<Bucket, Error> {
        let name = BucketName::new(name).map_err(|why| Refusal::new(RefusalKind::Invalid, why.to_string()))?;
        Ok(Bucket::new(self.clone(), name))
    }

    /// A new session: it has seen nothing yet.
    pub fn session(&self) -> Session {
        Session::new()
    }

    /// What operators do: buckets, digests, lag, the state of nodes.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// This client's id: the scope of its request ids.
    pub fn id(&self) -> ClientId {
        self.inner.settings.client
    }

    /// The topology as last heard; [`Admin::topology`] asks for it anew.
    pub fn known_topology(&self) -> Arc<Topology> {
        self.inner.cluster.topology()
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Sends a request that was put together elsewhere: by a gateway of another protocol, or a test that keeps requests
    /// and answers as they are. A write with an id of this client keeps it, and its lowest outstanding with it: whoever
    /// numbers writes himself does so for all of a client's. Without one it is numbered like any other. The request's
    /// deadline, unless 0, bounds all attempts together.
    ///
    /// # Errors
    /// As those of every call: what to do, and what a write may have done. Invalid for an id of another client: the
    /// connection says whose it is.
    pub async fn ask(&self, request: Request) -> Result<Response, Error> {
        match &request {
            Request::Read { read, .. } => read.validate()?,
            Request::Write { id, .. } if *id != RequestId::default() && id.client != self.id() => {
                let why = "the request has another client's id: build a client of that id";
                return Err(Refusal::new(RefusalKind::Invalid, why).into());
            }
            Request::Write { write, .. } => write.validate()?,
        }
        let deadline = Some(request.deadline_ms()).filter(|ms| *ms > 0).map(|ms| Duration::from_millis(ms.into()));
        Ok(self.answer(request, deadline).await?.0)
    }

    /// Sends a request until it is answered, refused for good, or out of time.
    pub(crate) async fn execute(
        &self,
        request: Request,
        deadline: Option<Duration>,
        session: Option<&Session>,
    ) -> Result<(Outcome, Meta), Error> {
        let (response, attempts) = self.answer(request, deadline).await?;
        if let Some(session) = session {
            session.observe(&response.session);
        }
        Ok(self.inner.conclude(response, attempts))
    }

    /// The answer, and how many attempts it took.
    async fn answer(&self, mut request: Request, deadline: Option<Duration>) -> Result<(Response, u32), Error> {
        let inner = &*self.inner;
        let mut course = Course::new(deadline.unwrap_or(inner.settings.deadline));
        let slot = match &request {
            Request::Read { .. } => None,
            Request::Write { id, .. } if *id != RequestId::default() => None,
            Request::Write { .. } => match timeout_at(course.expires, inner.window.begin()).await {
                Ok(slot) => Some(slot),
                Err(_) => return Err(course.error(crowded())),
            },
        };
        loop {
            let sequence = slot.as_ref().map(|slot| slot.sequence());
            prepare(&mut request, inner, sequence, course.attempt_ms(&inner.settings.retry));
            course.begin(inner, &mut request);
            let endpoint = course.route(inner, &request).ok_or_else(|| course.error(unreachable_refusal()))?;
            course.attempts += 1;
            match endpoint.exchange.attempt(&request).await {
                Ok(response) => {
                    endpoint.worked();
                    inner.learn(request.bucket(), &response);
                    return Ok((response, course.attempts));
                }
                Err(failure) => course.consider(inner, &endpoint, request.bucket(), failure).await?,
            }
        }
    }
}

impl Inner {
    /// Takes the hint when an answer shows that the topology moved on.
    fn learn(&self, bucket: &BucketName, response: &Response) {
        let topology = self.cluster.topology();
        let known = topology.bucket_ids.get(bucket).and_then(|id| topology.buckets.get(id));
        if known.is_none_or(|known| known.epoch < response.epoch) || !topology.regions.contains_key(&response.region) {
            self.cluster.is_outdated();
        }
    }

    fn conclude(&self, response: Response, attempts: u32) -> (Outcome, Meta) {
        let meta = Meta {
            region: region_name(&self.cluster.topology(), response.region),
            epoch: response.epoch,
            hlc: response.freshness.hlc,
            staleness: response.freshness.staleness_ms.map(Duration::from_millis),
            durability: response.durability,
            attempts,
        };
        (response.outcome, meta)
    }

    /// The node of the bucket's primary region, where the request would end up anyway.
    fn primary(&self, request: &Request) -> Option<Arc<Endpoint>> {
        let topology = self.cluster.topology();
        let bucket = topology.buckets.get(topology.bucket_ids.get(request.bucket())?)?;
        let primary = bucket.primary?;
        let mut nodes = topology.nodes.values().filter(|node| node.region == primary);
        nodes.find_map(|node| self.cluster.endpoints.of_node(node.id))
    }
}

/// The region's name, or its number while the topology doesn't have it.
pub(crate) fn region_name(topology: &Topology, region: meridian_types::RegionId) -> RegionName {
    match topology.regions.get(&region) {
        Some(known) => known.name.clone(),
        None => unnamed(region),
    }
}

fn unnamed(region: meridian_types::RegionId) -> RegionName {
    match RegionName::new(&format!("region-{region}")) {
        Ok(name) => name,
        Err(why) => unreachable!("`region-` and a number is a valid name: {why}"),
    }
}

/// Fills in what differs from attempt to attempt, and the id, which doesn't.
fn prepare(request: &mut Request, inner: &Inner, number: Option<u64>, attempt_ms: u32) {
    match request {
        Request::Read { deadline_ms, .. } => *deadline_ms = attempt_ms,
        Request::Write { deadline_ms, id, lowest_outstanding, .. } => {
            *deadline_ms = attempt_ms;
            if let Some(sequence) = number {
                *id = RequestId { client: inner.settings.client, sequence };
                *lowest_outstanding = inner.window.lowest();
            }
        }
    }
}

fn crowded() -> Refusal {
    Refusal::new(
        RefusalKind::Retry,
        "too many writes of this client are open, the oldest for too long: nothing was sent; write fewer at a time",
    )
}

fn unreachable_refusal() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "the client has no endpoint: pass one to the builder")
}

/// One request's way through its attempts.
struct Course {
    began: Instant,
    expires: Instant,
    attempts: u32,
    /// How often another node than the nearest is wanted.
    rotation: usize,
    /// How often a node said "retry" without another being tried.
    patience: u32,
    /// The worst that any attempt may have done: a later refusal doesn't undo it.
    effect: Effect,
    /// The node's own word that it took effect: says more than how a later attempt elsewhere failed.
    applied: Option<Refusal>,
    /// Where an active-active write may have taken effect already. Only that region would recognise it (ONE-1):
    /// another one would order it a second time before the first copy arrives there.
    origin: Option<Arc<Endpoint>>,
    /// No attempt of the epoch it was begun under can take effect any more.
    anew: bool,
}

impl Course {
    fn new(deadline: Duration) -> Course {
        let began = Instant::now();
        // A deadline beyond any clock is none; a day is as good.
        let expires = began + deadline.min(Duration::from_secs(86_400));
        Course {
            began,
            expires,
            attempts: 0,
            rotation: 0,
            patience: 0,
            effect: Effect::None,
            applied: None,
            origin: None,
            anew: false,
        }
    }

    /// Says under which epoch a write is begun, once, and again when every attempt of then is known to have come to nothing: before
    /// that another region could order it a second time in a bucket that has come to be written everywhere (ONE-1).
    fn begin(&mut self, inner: &Inner, request: &mut Request) {
        let known = inner.cluster.epoch(request.bucket());
        let Request::Write { begun, .. } = request else { return };
        if self.attempts == 0 && *begun == Epoch(0) || self.anew && known > *begun {
            (*begun, self.anew) = (known, false);
        }
    }

    /// What one attempt may take, in milliseconds; at least 1.
    fn attempt_ms(&self, retry: &RetryPolicy) -> u32 {
        let remaining = self.expires.saturating_duration_since(Instant::now()).min(retry.attempt_max);
        u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX).max(1)
    }

    fn route(&self, inner: &Inner, request: &Request) -> Option<Arc<Endpoint>> {
        if let Some(origin) = &self.origin {
            return Some(inner.cluster.beside(origin));
        }
        if inner.settings.direct_to_primary
            && self.attempts == 0
            && needs_primary(request)
            && let Some(primary) = inner.primary(request)
        {
            return Some(primary);
        }
        inner.cluster.endpoints.pick(self.rotation)
    }

    fn error(&self, refusal: Refusal) -> Error {
        let refusal = match &self.applied {
            Some(applied) if refusal.effect == Effect::None => applied.clone(),
            _ => refusal,
        };
        let effect = if refusal.effect == Effect::None { self.effect } else { refusal.effect };
        Error::new(refusal.with_effect(effect), self.attempts, self.began.elapsed())
    }

    /// What to do about a failure: `Ok` to try again (after the right pause), `Err` to give up.
    async fn consider(
        &mut self,
        inner: &Inner,
        endpoint: &Arc<Endpoint>,
        bucket: &BucketName,
        failure: Failure,
    ) -> Result<(), Error> {
        let (Failure::Broken(refusal) | Failure::Refused(refusal)) = &failure;
        if refusal.effect != Effect::None && self.origin.is_none() && !inner.cluster.has_primary(bucket) {
            self.origin = Some(Arc::clone(endpoint));
        }
        let (refusal, next) = match failure {
            Failure::Broken(refusal) => {
                endpoint.failed();
                let next = if self.origin.is_none() && inner.cluster.endpoints.has_usable() {
                    Next::AtOnce
                } else if refusal.kind == RefusalKind::Denied {
                    Next::GiveUp
                } else {
                    Next::Pause
                };
                (refusal, next)
            }
            Failure::Refused(refusal) => {
                endpoint.worked();
                let next = self.after_refusal(inner, bucket, refusal.kind);
                (refusal, next)
            }
        };
        if refusal.effect != Effect::None {
            self.effect = refusal.effect;
        }
        if refusal.effect == Effect::Applied {
            self.applied = Some(refusal.clone());
        }
        let pause = match next {
            Next::GiveUp => return Err(self.error(refusal)),
            Next::AtOnce => Duration::ZERO,
            Next::Pause => inner.settings.retry.pause(self.attempts),
        };
        if self.attempts >= inner.settings.retry.attempts_max || Instant::now() + pause >= self.expires {
            return Err(self.error(refusal));
        }
        tracing::debug!(%bucket, attempts = self.attempts, kind = %refusal.kind, reason = %refusal.message, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn after_refusal(&mut self, inner: &Inner, bucket: &BucketName, kind: RefusalKind) -> Next {
        match kind {
            RefusalKind::Retry | RefusalKind::Unavailable => {
                // The same node twice: most reasons pass. Then another: some don't.
                self.patience += 1;
                if self.patience.is_multiple_of(2) {
                    self.rotation += 1;
                }
                Next::Pause
            }
            RefusalKind::Redirect | RefusalKind::Fenced => {
                self.anew |= kind == RefusalKind::Fenced;
                inner.cluster.is_outdated();
                self.rotation += 1;
                Next::Pause
            }
            RefusalKind::NotFound if inner.cluster.is_news(bucket) => Next::Pause,
            RefusalKind::NotFound => {
                inner.cluster.is_outdated();
                Next::GiveUp
            }
            RefusalKind::Conflict
            | RefusalKind::Invalid
            | RefusalKind::Exists
            | RefusalKind::Stale
            | RefusalKind::Corrupt
            | RefusalKind::Denied
            | RefusalKind::Internal
            | RefusalKind::Consent => Next::GiveUp,
        }
    }
}

/// What follows a failed attempt.
enum Next {
    GiveUp,
    AtOnce,
    Pause,
}

/// Whether only the primary can answer it.
fn needs_primary(request: &Request) -> bool {
    match request {
        Request::Write { .. } => true,
        Request::Read { level, .. } => matches!(level, meridian_types::ReadLevel::Strong),
    }
}
