//! Who acts and on what: a client in each region, a bucket per policy.

use std::sync::Arc;
use std::time::Duration;

use meridian_client::{Client, ReadLevel, Session};
use meridian_types::{Acks, BucketName, BucketSpec, Policy, RegionName, WriteAck};

use crate::dev::Plan;
use crate::transfer::BucketStore;

/// How long one request may take while everything runs at full load: a slow machine makes the demo slow, not wrong.
const DEADLINE: Duration = Duration::from_secs(100);

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
                // What is measured from a region must not be answered by another one that happened to be less busy.
                .discover(false)
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

    /// The round trip from a region to where the shelf's writes are ordered; `None` where that is right there.
    pub(super) fn round_trip(&self, shelf: &Shelf, region: &RegionName) -> Option<Duration> {
        let elsewhere = shelf.primary.as_ref().filter(|primary| *primary != region);
        elsewhere.map(|primary| self.plan.distances().round_trip(region, primary))
    }

    /// A shelf through the eyes of an actor, for writing and for reading at `level`. Session reads are in the
    /// session of `writer`: they must see what it wrote.
    pub(super) fn view(&self, shelf: usize, actor: usize, writer: usize, level: Level) -> anyhow::Result<BucketStore> {
        Ok(BucketStore {
            bucket: self.actors[actor].client.bucket(self.shelves[shelf].name.as_str())?,
            ack: WriteAck::Policy,
            level: level.read_level(),
            session: self.sessions[shelf][writer].clone(),
            deadline: DEADLINE,
        })
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
const BOUND_MS: u64 = 2000;

impl Level {
    pub(super) const ALL: [Level; 4] = [Level::Strong, Level::Session, Level::Bounded, Level::Eventual];

    /// Whether the level promises to find a write at once, however far replication has come.
    pub(super) fn sees_at_once(self) -> bool {
        matches!(self, Level::Strong | Level::Session)
    }

    fn read_level(self) -> ReadLevel {
        match self {
            Level::Strong => ReadLevel::Strong,
            Level::Session => ReadLevel::Session,
            Level::Bounded => ReadLevel::Bounded { staleness_ms_max: BOUND_MS },
            Level::Eventual => ReadLevel::Eventual,
        }
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

impl Shelf {
    fn spec(&self) -> BucketSpec {
        BucketSpec {
            name: self.name.clone(),
            policy: self.policy,
            regions: Vec::new(),
            primary: self.primary.clone(),
            labels: [("made-by".to_owned(), "demo".to_owned())].into(),
            auto: Default::default(),
        }
    }
}

fn shelves(primary: &RegionName) -> anyhow::Result<Vec<Shelf>> {
    Ok(vec![
        Shelf { name: BucketName::new("files-async")?, policy: Policy::ASYNC, primary: Some(primary.clone()) },
        Shelf {
            name: BucketName::new("files-sync")?,
            policy: Policy::sync(Acks::Majority),
            primary: Some(primary.clone()),
        },
        Shelf { name: BucketName::new("files-active-active")?, policy: Policy::ActiveActive, primary: None },
    ])
}
