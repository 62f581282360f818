//! Clients that live in the regions: each request is sent from inside the namespace of the region it is for, by an SDK
//! client that knows the node there and no other.
//!
//! A thread per region lives in its namespace and serves what the workload, which lives elsewhere, wants asked. All
//! threads share the machine's monotonic clock, so that times of different regions compare.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use meridian_client::{Client, ClientId};
use meridian_types::{BucketName, Refusal, RefusalKind, RegionId, Request, Response};
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::ground::Ground;
use super::namespaces;
use crate::real::{Dial, Planet};
use crate::target::Target;

/// Requests that may wait for a region's thread: more than there are clients.
const WAITING_MAX: usize = 1024;

/// How long connecting may take: a node that is stopped accepts a connection and never answers.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// The clients of all regions, as one target. Its threads end with its last clone.
#[derive(Clone)]
pub struct Regions {
    asks: BTreeMap<RegionId, mpsc::Sender<Ask>>,
    meter: Meter,
    began: Instant,
}

struct Ask {
    request: Request,
    reply: oneshot::Sender<Result<Response, Refusal>>,
}

/// Answers so far, for whoever prints progress. Cheap to clone.
#[derive(Clone, Default)]
pub struct Meter(Arc<Mutex<BTreeMap<BucketName, Counted>>>);

/// Answers of one bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Answered.
    pub answered: u64,
    /// Refused.
    pub refused: u64,
    /// When the last answer came.
    pub last: Option<Instant>,
}

impl Meter {
    /// Per bucket.
    pub fn read(&self) -> BTreeMap<BucketName, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, bucket: &BucketName, is_answer: bool) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = counted.entry(bucket.clone()).or_default();
        if is_answer {
            counted.answered += 1;
            counted.last = Some(Instant::now());
        } else {
            counted.refused += 1;
        }
    }
}

impl Regions {
    /// Opens a thread in each region's namespace. `ids` are the regions in the order of the planet's nodes; `began` is
    /// the moment that times count from.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn open(ground: &Ground, planet: &Planet, ids: &[RegionId], began: Instant) -> anyhow::Result<Regions> {
        let mut asks = BTreeMap::new();
        for (at, id) in ids.iter().enumerate() {
            let (sender, receiver) = mpsc::channel(WAITING_MAX);
            let (namespace, dial) = (ground.region(at).name().to_owned(), planet.dial_only(at));
            std::thread::Builder::new()
                .name(format!("clients-{id}"))
                .spawn(move || live(&namespace, dial, receiver))
                .context("starting the clients of a region")?;
            asks.insert(*id, sender);
        }
        Ok(Regions { asks, meter: Meter::default(), began })
    }

    /// Answers so far.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }
}

impl Target for Regions {
    async fn ask(&self, region: RegionId, request: Request) -> Result<Response, Refusal> {
        let bucket = request.bucket().clone();
        let told = match self.asks.get(&region) {
            Some(asks) => pass_on(asks, request).await,
            None => Err(Refusal::new(RefusalKind::NotFound, format!("there is no region {region}"))),
        };
        self.meter.count(&bucket, told.is_ok());
        told
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn pass_on(asks: &mpsc::Sender<Ask>, request: Request) -> impl Future<Output = Result<Response, Refusal>> + use<> {
    let asks = asks.clone();
    async move {
        let (reply, answer) = oneshot::channel();
        if asks.send(Ask { request, reply }).await.is_err() {
            return Err(Refusal::new(RefusalKind::Unavailable, "the clients of the region are gone"));
        }
        let gone = "the clients of the region went away with the request";
        answer.await.unwrap_or_else(|_| {
            Err(Refusal::new(RefusalKind::Unavailable, gone).with_effect(meridian_types::Effect::Unknown))
        })
    }
}

/// The life of a region's thread.
fn live(namespace: &str, dial: Dial, asks: mpsc::Receiver<Ask>) {
    let served = namespaces::enter(namespace).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(Arc::new(dial), asks));
        Ok(())
    });
    if let Err(error) = served {
        // The workload is told "unavailable" from here on; this says why.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("clients of a region: {error:#}\n"));
    }
}

async fn serve(dial: Arc<Dial>, mut asks: mpsc::Receiver<Ask>) {
    let mut clients: HashMap<ClientId, Arc<OnceCell<Client>>> = HashMap::new();
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(ask) = asks.recv().await {
        let id = match &ask.request {
            Request::Write { id, .. } => id.client,
            // Reads have no identity; they share a connection.
            Request::Read { .. } => ClientId(0),
        };
        let client = Arc::clone(clients.entry(id).or_default());
        let dial = Arc::clone(&dial);
        under_way.spawn(async move {
            let told = match client.get_or_try_init(|| connect(&dial, id)).await {
                Ok(client) => client.ask(ask.request).await.map_err(refusal),
                Err(refusal) => Err(refusal),
            };
            // Whoever asked may have stopped listening.
            let _ = ask.reply.send(told);
        });
        while under_way.try_join_next().is_some() {}
    }
    // Whoever asked is gone, and with it the interest in answers that are still to come.
}

/// Nothing was sent yet when this fails.
async fn connect(dial: &Dial, id: ClientId) -> Result<Client, Refusal> {
    let connected = async { if id == ClientId(0) { dial.connect().await } else { dial.connect_as(id).await } };
    match tokio::time::timeout(CONNECT_PATIENCE, connected).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(Refusal::new(RefusalKind::Unavailable, format!("{error:#}"))),
        Err(_) => Err(Refusal::new(RefusalKind::Unavailable, "the node does not take connections")),
    }
}

fn refusal(error: meridian_client::Error) -> Refusal {
    Refusal { kind: error.kind, effect: error.effect, message: error.message }
}
