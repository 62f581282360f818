//! Putting the parts together and running their tasks.

use std::future::Future;
use std::sync::Arc;

use meridian_consensus::Consensus;
use meridian_metadata_core::ClusterState;
use meridian_proto::dial::Dial;
use meridian_types::GroupId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::ask::Asker;
use crate::copy::LocalCopy;
use crate::duties::Duties;
use crate::error::{Error, OpenError};
use crate::executor::Executor;
use crate::file::StateFile;
use crate::handle::Handle;
use crate::leader::Leader;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::register::{Registration, register};
use crate::renew;
use crate::tell::{self, Telling, WORDS_WAITING_MAX};

/// The metadata plane on one node, opened and ready to run.
pub struct Service {
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
    /// [`OpenError`]; a damaged state is named and left as it is (DUR-3).
    pub async fn open(
        options: Options,
        consensus: &Consensus,
        dial: Arc<dyn Dial>,
    ) -> Result<(Service, Handle), OpenError> {
        options.validate()?;
        let file = StateFile::open(&options.dir)?;
        let (mark, state) = match file.load()? {
            Some((mark, state)) => (Some(mark), state),
            None => (None, ClusterState::default()),
        };
        let copy = Arc::new(LocalCopy::new(state, options.drift()));
        let machine = Machine::new(Arc::clone(&copy), file, mark);
        let group = consensus.start_group(GroupId::METADATA, &options.voters(), Box::new(machine)).await?;
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
        Ok((Service { options, duties, executor, told, asker, copy, metrics, registration }, handle))
    }

    /// Runs until `shutdown` resolves.
    ///
    /// # Errors
    /// [`Error::Task`] when a task panicked: the process must exit non-zero.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let Service { options, duties, executor, told, asker, copy, metrics, registration } = self;
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
        };
        tasks.shutdown().await;
        match ended {
            None => Ok(()),
            Some(Ok(task)) => Err(Error::Task { task, detail: "consensus has stopped".to_owned() }),
            Some(Err(error)) => Err(Error::Task { task: "metadata", detail: error.to_string() }),
        }
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}
