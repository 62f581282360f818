//! Putting the parts together and running their tasks.

use std::future::Future;
use std::sync::Arc;

use meridian_consensus::Consensus;
use meridian_metadata_core::ClusterState;
use meridian_proto::dial::Dial;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::ask::Asker;
use crate::copy::LocalCopy;
use crate::directory;
use crate::duties::Duties;
use crate::error::{Error, OpenError};
use crate::executor::Executor;
use crate::generation::Home;
use crate::handle::Handle;
use crate::join;
use crate::leader::Leader;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::register::{Registration, register};
use crate::renew;
use crate::tell::{self, Telling, WORDS_WAITING_MAX};

/// The metadata plane on one node, opened and ready to run.
pub struct Service {
    home: Home,
    /// The latest generation that was heard of.
    generation: watch::Receiver<u32>,
    options: Arc<Options>,
    duties: Duties,
    executor: Executor,
    told: mpsc::Receiver<Telling>,
    asker: Arc<Asker>,
    copy: Arc<LocalCopy>,
    metrics: Metrics,
    registration: watch::Sender<Registration>,
}

impl Service {
    /// Loads the stored state and joins the metadata group.
    ///
    /// # Errors
    /// [`OpenError`]; a damaged state is named and left as it is (DUR-3), and a node that has lost its disk is told what to do.
    pub async fn open(
        options: Options,
        consensus: &Consensus,
        dial: Arc<dyn Dial>,
    ) -> Result<(Service, Handle), OpenError> {
        options.validate()?;
        let mut home = Home::open(&options.dir)?;
        // Before anything is changed: what is set aside below had a state once.
        let has_state = home.generation() > 0 || home.file()?.load()?.is_some();
        let is_new = !has_state && consensus.is_blank() && !directory::is_marked(&options.dir)?;
        let elsewhere = join::ask_until_known(&options, &dial, is_new).await;
        if elsewhere.removed {
            return Err(OpenError::Removed { node: options.this.name.clone() });
        }
        directory::claim(&options, has_state, consensus, elsewhere)?;
        if elsewhere.generation > home.generation() {
            tracing::warn!(
                generation = elsewhere.generation,
                "the metadata plane was recovered without this node: its own copy is set aside"
            );
        }
        home.advance(elsewhere.generation).map_err(|source| OpenError::Io {
            action: "writing",
            path: options.dir.clone(),
            source,
        })?;
        home.abandoned().try_for_each(|group| consensus.abandon(group))?;
        let file = home.file()?;
        let (mark, state) = match file.load()? {
            Some((mark, state)) => (Some(mark), state),
            None => (None, ClusterState::default()),
        };
        // With empty hands a node votes only for a cluster that nobody knows of yet.
        let joins = mark.is_none() && (elsewhere.formed || home.generation() > 0);
        let copy = Arc::new(LocalCopy::new(state, options.drift(), home.generation()));
        let machine = Machine::new(Arc::clone(&copy), file, mark);
        let voters = if joins { Vec::new() } else { options.voters() };
        let group = consensus.start_group(home.group(), &voters, Box::new(machine)).await?;
        let leader = Arc::new(Leader::new(&options, group.clone(), Arc::clone(&copy)));
        let metrics = Metrics::new();
        let asker = Asker::new(&options, Arc::clone(&leader), Arc::clone(&copy), dial, metrics.clone());
        let (options, asker) = (Arc::new(options), Arc::new(asker));
        let registration = watch::Sender::new(Registration::Pending);
        let (words, told) = mpsc::channel(WORDS_WAITING_MAX);
        let handle = Handle {
            copy: Arc::clone(&copy),
            leader: Arc::clone(&leader),
            asker: Arc::clone(&asker),
            registration: registration.subscribe(),
            words,
        };
        let executor = Executor {
            options: Arc::clone(&options),
            group: group.clone(),
            leader: Arc::clone(&leader),
            asker: Arc::clone(&asker),
            copy: Arc::clone(&copy),
        };
        let duties = Duties {
            options: Arc::clone(&options),
            group,
            leader,
            asker: Arc::clone(&asker),
            copy: Arc::clone(&copy),
            metrics: metrics.clone(),
        };
        let generation = consensus.generation_seen();
        Ok((Service { home, generation, options, duties, executor, told, asker, copy, metrics, registration }, handle))
    }

    /// Runs until `shutdown` resolves.
    ///
    /// # Errors
    /// [`Error`] when a task panicked, or when the metadata plane was recovered without this node: the process must exit
    /// non-zero.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let Service { mut home, mut generation, options, duties, executor, told, asker, copy, metrics, registration } =
            self;
        let own = home.generation();
        let (every, give_up) = (options.renew_every(), options.renew_timeout());
        let mut tasks: JoinSet<&'static str> = JoinSet::new();
        tasks.spawn(named("leader duties", duties.run()));
        tasks.spawn(named("operations", executor.run()));
        let this = options.this.id();
        tasks.spawn(named("words", tell::carry(told, this, Arc::clone(&asker), Arc::clone(&copy))));
        let renewal = renew::renew(Arc::clone(&asker), Arc::clone(&copy), metrics.clone(), every, give_up);
        tasks.spawn(named("lease renewal", renewal));
        tasks.spawn(named("lease report", renew::report(Arc::clone(&copy), metrics)));
        tasks.spawn(named("registration", register(options, asker, copy, registration)));
        let ended = tokio::select! {
            () = shutdown => None,
            ended = tasks.join_next() => ended,
            Some(generation) = later(&mut generation, own) => {
                tasks.shutdown().await;
                home.advance(generation).map_err(Error::Generation)?;
                return Err(Error::Superseded { generation, own });
            }
        };
        tasks.shutdown().await;
        match ended {
            None => Ok(()),
            Some(Ok(task)) => Err(Error::Task { task, detail: "consensus has stopped".to_owned() }),
            Some(Err(error)) => Err(Error::Task { task: "metadata", detail: error.to_string() }),
        }
    }
}

/// Resolves when a generation after `own` is heard of; with nothing when nobody is left to hear of it.
async fn later(seen: &mut watch::Receiver<u32>, own: u32) -> Option<u32> {
    seen.wait_for(|seen| *seen > own).await.ok().map(|later| *later)
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}
