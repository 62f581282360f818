//! Carrying what this node's shards have to say about operations to the metadata leader, several words at a time.

use std::sync::Arc;

use meridian_failpoint::failpoint;
use meridian_metadata_core::{Action, Command};
use meridian_types::{NodeId, OperationId, Refusal, RefusalKind, Word};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::ask::Asker;
use crate::clock::wall_ms;
use crate::copy::LocalCopy;

/// How many words may wait to be carried (RES-1). One per bucket on the move; beyond it whoever has something to say waits.
pub(crate) const WORDS_WAITING_MAX: usize = 1024;

/// How many commands carry words at once. A word that finds one on its way need not wait for it; many buckets that come
/// at the same time still share few commits.
const COMMANDS_MAX: usize = 4;

/// The most facts in one command: some 50 bytes each, well below the bound of a command.
const FACTS_MAX: usize = 4096;

/// A word, and who waits until it is heard.
pub(crate) struct Telling {
    pub(crate) word: Word,
    pub(crate) heard: oneshot::Sender<Result<(), Refusal>>,
}

/// Carries words until nobody is left to say any.
pub(crate) async fn carry(mut told: mpsc::Receiver<Telling>, this: NodeId, asker: Arc<Asker>, copy: Arc<LocalCopy>) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = under_way.join_next() => if let Err(failed) = ended && failed.is_panic() {
                std::panic::resume_unwind(failed.into_panic());
            },
            first = told.recv(), if under_way.len() < COMMANDS_MAX => {
                let Some(first) = first else { return };
                let batch = batch(first, &mut told);
                under_way.spawn(say(batch, this, Arc::clone(&asker), Arc::clone(&copy)));
            }
        }
    }
}

/// What is waiting already goes along.
fn batch(first: Telling, told: &mut mpsc::Receiver<Telling>) -> Vec<Telling> {
    let mut facts = first.word.facts.len();
    let mut batch = vec![first];
    while facts < FACTS_MAX
        && let Ok(next) = told.try_recv()
    {
        facts += next.word.facts.len();
        batch.push(next);
    }
    batch
}

async fn say(batch: Vec<Telling>, this: NodeId, asker: Arc<Asker>, copy: Arc<LocalCopy>) {
    let (words, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|telling| (telling.word, telling.heard)).unzip();
    let answer = report(words, this, &asker, &copy).await;
    for heard in waiting {
        // Whoever no longer waits will say it again.
        let _ = heard.send(answer.clone());
    }
}

async fn report(words: Vec<Word>, this: NodeId, asker: &Asker, copy: &LocalCopy) -> Result<(), Refusal> {
    let topology = copy.topology();
    let node = topology.nodes.get(&this).ok_or_else(|| {
        Refusal::new(RefusalKind::Retry, "this node is not registered yet: nobody would believe its words")
    })?;
    let action = Action::Report { region: node.region, words };
    let command =
        Command { operation: OperationId(rand::random()), who: node.name.to_string(), at_ms: wall_ms(), action };
    failpoint("words.carry.before");
    let carried = asker.propose(&command).await.map(|_| ());
    failpoint("words.carry.after");
    carried
}
