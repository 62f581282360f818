//! Who acts and on what: a client in each region, a bucket per policy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{Bucket, Client, ReadLevel, Session};
use meridian_types::{Acks, BucketName, BucketSpec, Policy, RegionName};

use crate::dev::Plan;
use crate::transfer::Store;

/// How long one request may take while everything runs at full load.
const DEADLINE: Duration = Duration::from_secs(30);

/// A client in a region.
#[derive(Clone)]
pub(super) struct Actor {
    pub(super) region: RegionName,
    pub(super) client: Client,
}

/// A bucket of the demo.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    pub(super) name: BucketName,
    pub(super) policy: Policy,
    /// `None` for active-active.
    pub(super) primary: Option<RegionName>,
}

/// Everybody and everything.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) plan: Plan,
    pub(super) actors: Vec<Actor>,
    pub(super) shelves: Vec<Shelf>,
    /// Per shelf and actor: what that actor's writes have come to.
    sessions: Arc<Vec<Vec<Session>>>,
}

impl Stage {
    /// Connects a client in each region and creates the buckets.
    pub(super) async fn set(plan: &Plan) -> anyhow::Result<Stage> {
        let tls = plan.client_tls().load()?;
        let mut actors = Vec::new();
        for place in plan.places() {
            let translate = plan.translate(&place.region);
            let builder = Client::builder()
                .endpoints([format!("https://{}", place.rpc)])
                .tls(tls.clone())
                .deadline(DEADLINE)
                .translate(move |address| translate.get(address).cloned().unwrap_or_else(|| address.to_owned()));
            actors.push(Actor { region: place.region, client: builder.connect().await? });
        }
        let shelves = shelves(&actors[0].region)?;
        for shelf in &shelves {
            actors[0].client.admin().create_bucket(&shelf.spec(), false).await?;
        }
        let sessions = shelves.iter().map(|_| actors.iter().map(|_| Session::new()).collect()).collect();
        Ok(Stage { plan: plan.clone(), actors, shelves, sessions: Arc::new(sessions) })
    }

    /// The round trip from an actor's region to where the shelf's writes are ordered; zero where that is here.
    pub(super) fn round_trip(&self, shelf: &Shelf, region: &RegionName) -> Duration {
        shelf.primary.as_ref().map_or(Duration::ZERO, |primary| self.plan.distances().round_trip(region, primary))
    }

    /// A shelf through the eyes of an actor, for writing and for reading at `level`. Session reads are in the
    /// session of `writer`: they must see what it wrote.
    pub(super) fn view(&self, shelf: usize, actor: usize, writer: usize, level: Level) -> anyhow::Result<View> {
        let bucket = self.actors[actor].client.bucket(self.shelves[shelf].name.as_str())?;
        Ok(View { bucket, level, session: self.sessions[shelf][writer].clone() })
    }

    /// The levels that a shelf has.
    pub(super) fn levels(&self, shelf: usize) -> &'static [Level] {
        if self.shelves[shelf].policy.has_primary() { &Level::ALL } else { &Level::ALL[1..] }
    }
}

/// How files are read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Strong,
    Session,
    Bounded,
    Eventual,
}

/// The bound of `bounded` reads. Whatever is older than that must be visible.
const BOUND: Duration = Duration::from_secs(2);

impl Level {
    pub(super) const ALL: [Level; 4] = [Level::Strong, Level::Session, Level::Bounded, Level::Eventual];

    /// Whether the level promises to find a write at once, however far replication has come.
    pub(super) fn sees_at_once(self) -> bool {
        matches!(self, Level::Strong | Level::Session)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Level::Strong => "strong",
            Level::Session => "session",
            Level::Bounded => "bounded (2 s)",
            Level::Eventual => "eventual",
        }
    }
}

/// A bucket as one client reads and writes it.
pub(super) struct View {
    pub(super) bucket: Bucket,
    level: Level,
    session: Session,
}

impl Store for View {
    async fn put(&self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        self.bucket.put(key, value).session(&self.session).await?;
        Ok(())
    }

    async fn get(&self, key: Bytes) -> anyhow::Result<Option<Bytes>> {
        let call = self.bucket.get(key);
        let call = match self.level {
            Level::Strong => call.strong(),
            Level::Session => call.level(ReadLevel::Session).session(&self.session),
            Level::Bounded => call.bounded(BOUND),
            Level::Eventual => call.eventual(),
        };
        Ok(call.await?.into_value())
    }

    async fn keys(&self, after: Bytes) -> anyhow::Result<Vec<Bytes>> {
        let page = self.bucket.scan("").after(after).keys_only().eventual().next_page().await?;
        Ok(page.map(|page| page.items.into_iter().map(|item| item.key).collect()).unwrap_or_default())
    }
}

impl Shelf {
    fn spec(&self) -> BucketSpec {
        BucketSpec {
            name: self.name.clone(),
            policy: self.policy,
            regions: Vec::new(),
            primary: self.primary.clone(),
            labels: [("made-by".to_owned(), "demo".to_owned())].into(),
        }
    }
}

fn shelves(primary: &RegionName) -> anyhow::Result<Vec<Shelf>> {
    Ok(vec![
        Shelf { name: BucketName::new("files-async")?, policy: Policy::Async, primary: Some(primary.clone()) },
        Shelf {
            name: BucketName::new("files-sync")?,
            policy: Policy::Sync { acks: Acks::Majority },
            primary: Some(primary.clone()),
        },
        Shelf { name: BucketName::new("files-active-active")?, policy: Policy::ActiveActive, primary: None },
    ])
}
