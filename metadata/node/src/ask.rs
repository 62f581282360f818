//! Finding the leader and being served by it, from any node: here if this node leads, else over the wire.
//!
//! A command is retried under one operation id until its deadline, so it takes effect at most once (ONE-1).
//! An answer is given only after this node's own copy has reached it: whoever creates a bucket here can use
//! it here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_metadata_core::{Command, Grant, Reply, reply};
use meridian_proto::convert::refusal_of_status;
use meridian_proto::dial::Dial;
use meridian_proto::v1;
use meridian_proto::v1::metadata_peer_client::MetadataPeerClient;
use meridian_types::{Effect, NodeId, NodeName, Refusal, RefusalKind};
use tokio::time::{sleep, timeout, timeout_at};
use tonic::Status;
use tonic::transport::Channel;

use crate::attempt::{Attempt, Backoff, leader_from_proto, refused_from_proto};
use crate::copy::LocalCopy;
use crate::ears::Ears;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::options::Options;

/// The longest pause between two attempts: an election is noticed within it.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How a node gets served by the metadata leader.
pub(crate) struct Asker {
    this: NodeId,
    /// Random per process: two processes with one name must not share its lease.
    incarnation: u64,
    voters: Vec<(NodeId, NodeName)>,
    leader: Arc<Leader>,
    copy: Arc<LocalCopy>,
    dial: Arc<dyn Dial>,
    metrics: Metrics,
    pub(crate) ears: Ears,
    attempt_timeout: Duration,
    renew_timeout: Duration,
    command_deadline: Duration,
}

/// Whom to ask, kept between attempts.
#[derive(Debug, Default)]
pub(crate) struct Search {
    hint: Option<NodeId>,
    tried: usize,
}

impl Search {
    /// Learns from an attempt where to go next.
    pub(crate) fn note<T>(&mut self, attempt: &Attempt<T>) {
        self.hint = match attempt {
            Attempt::Done(_) => return,
            Attempt::Elsewhere(leader) => *leader,
            // The one that was asked may be gone or cut off: look around.
            Attempt::Refused(_) | Attempt::Lost(_) => None,
        };
        self.tried += 1;
    }
}

enum Target {
    Here,
    There(MetadataPeerClient<Channel>),
    Nobody(String),
}

impl Asker {
    /// The node it asks for.
    pub(crate) fn this(&self) -> NodeId {
        self.this
    }

    pub(crate) fn new(
        options: &Options,
        leader: Arc<Leader>,
        copy: Arc<LocalCopy>,
        dial: Arc<dyn Dial>,
        metrics: Metrics,
    ) -> Asker {
        Asker {
            this: options.this.id(),
            incarnation: rand::random(),
            voters: options.members.iter().filter(|m| m.voter).map(|m| (m.id(), m.name.clone())).collect(),
            leader,
            copy,
            dial,
            metrics,
            ears: Ears::default(),
            attempt_timeout: options.attempt_timeout(),
            renew_timeout: options.renew_timeout(),
            command_deadline: options.command_deadline(),
        }
    }

    /// Has a command committed.
    ///
    /// # Errors
    /// The refusal it came to, or [`RefusalKind::Unavailable`] when no leader with a quorum served it in time.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Reply, Refusal> {
        let bytes = command.encode().map_err(|why| Refusal::new(RefusalKind::Invalid, why.to_string()))?;
        let answer = self.propose_until_answered(command, bytes.into()).await;
        self.metrics
            .command(command.action.verb(), answer.as_ref().map_or_else(|r| r.kind.to_string(), |_| "done".to_owned()));
        answer
    }

    async fn propose_until_answered(&self, command: &Command, bytes: Bytes) -> Result<Reply, Refusal> {
        let deadline = Instant::now() + self.command_deadline;
        let (mut search, mut backoff) = (Search::default(), Backoff::new(PAUSE_MAX));
        let mut effect = Effect::None;
        loop {
            let attempt = self.propose_once(&search, command, bytes.clone()).await;
            search.note(&attempt);
            let why = match attempt {
                Attempt::Done(answer) => return self.settle(&answer, deadline).await,
                Attempt::Refused(refusal) if refusal.kind != RefusalKind::Retry => return Err(refusal),
                Attempt::Refused(refusal) => refusal.message,
                Attempt::Elsewhere(leader) => elsewhere(leader),
                Attempt::Lost(why) => {
                    effect = Effect::Unknown;
                    why
                }
            };
            let pause = backoff.next_pause();
            if Instant::now() + pause >= deadline {
                return Err(self.no_quorum(effect, &why));
            }
            tracing::debug!(operation = %command.operation, %why, "metadata command not committed yet");
            sleep(pause).await;
        }
    }

    /// Waits until this node's copy has reached the answer. A copy that is slow does not undo the command.
    async fn settle(&self, answer: &[u8], deadline: Instant) -> Result<Reply, Refusal> {
        let (index, answer) = reply::decode(answer)
            .map_err(|why| Refusal::new(RefusalKind::Internal, why.to_string()).with_effect(Effect::Unknown))?;
        if timeout_at(deadline.into(), self.copy.reach(index)).await.is_err() {
            tracing::warn!(index, "a metadata command was committed, but this node has not received it yet");
        }
        answer
    }

    fn no_quorum(&self, effect: Effect, why: &str) -> Refusal {
        let names: Vec<_> = self.voters.iter().map(|(_, name)| name.as_str()).collect();
        let consequence = match effect {
            Effect::None => "nothing was changed",
            Effect::Unknown | Effect::Applied => "whether the change was made, or will be, is unknown",
        };
        let message = format!(
            "no metadata quorum could be reached within {} ms ({why}); {consequence}: make sure that {} of the voters {} are up and reach each other",
            self.command_deadline.as_millis(),
            self.voters.len() / 2 + 1,
            names.join(", ")
        );
        Refusal::new(RefusalKind::Unavailable, message).with_effect(effect)
    }

    async fn propose_once(&self, search: &Search, decoded: &Command, command: Bytes) -> Attempt<Bytes> {
        let mut client = match self.target(search) {
            Target::Here => return self.leader.propose(decoded, command).await,
            Target::Nobody(why) => return unreachable(why),
            Target::There(client) => client,
        };
        // The other side gives up earlier and can say why.
        let call = timeout(self.attempt_timeout.mul_f32(1.5), client.propose(v1::ProposeRequest { command })).await;
        match answered(call) {
            Err(attempt) => attempt,
            Ok(response) => match response.result {
                Some(v1::propose_response::Result::Applied(bytes)) => Attempt::Done(bytes),
                Some(v1::propose_response::Result::Leader(leader)) => Attempt::Elsewhere(leader_from_proto(leader)),
                Some(v1::propose_response::Result::Refusal(refusal)) => refused_from_proto(refusal),
                None => Attempt::Lost("the metadata leader sent an empty answer".to_owned()),
            },
        }
    }

    /// Asks once for a lease.
    pub(crate) async fn renew_once(&self, search: &Search) -> Attempt<Grant> {
        let mut client = match self.target(search) {
            Target::Here => {
                let contact = self.leader.contact();
                return self.leader.renew(self.this, self.incarnation, self.ears.silent(), contact).await;
            }
            Target::Nobody(why) => return unreachable(why),
            Target::There(client) => client,
        };
        let (silent, contact) = (self.ears.silent(), self.leader.contact());
        let request = v1::RenewLeaseRequest {
            node: self.this.0,
            incarnation: self.incarnation,
            listens: silent.is_some(),
            silent: silent.into_iter().flatten().map(|region| u32::from(region.0)).collect(),
            term: contact.map_or(0, |contact| contact.term),
            // Rounded down: sooner is the safe side.
            contact_age_us: contact.map(|contact| u64::try_from(contact.age.as_micros()).unwrap_or_default()),
        };
        match answered(timeout(self.renew_timeout, client.renew_lease(request)).await) {
            Err(attempt) => attempt,
            Ok(response) => match response.result {
                Some(v1::renew_lease_response::Result::Grant(v1::LeaseGrant { ttl_ms, index, term })) => {
                    Attempt::Done(Grant { ttl: Duration::from_millis(ttl_ms), index, term })
                }
                Some(v1::renew_lease_response::Result::Leader(leader)) => Attempt::Elsewhere(leader_from_proto(leader)),
                Some(v1::renew_lease_response::Result::Refusal(refusal)) => refused_from_proto(refusal),
                None => Attempt::Lost("the metadata leader sent an empty answer".to_owned()),
            },
        }
    }

    /// Whom to ask: this node if it leads, else whom the last attempt or the group named, else one voter after the other.
    fn target(&self, search: &Search) -> Target {
        let leadership = self.leader.leadership();
        if leadership.leads {
            return Target::Here;
        }
        let somebody = |node: &NodeId| *node != self.this;
        let turn = || {
            let others: Vec<_> = self.voters.iter().map(|(id, _)| *id).filter(somebody).collect();
            others.get(search.tried % others.len().max(1)).copied()
        };
        // A leader that did not answer is not asked twice in a row while there are others who may know better.
        let known = leadership.leader.filter(|_| search.tried % 3 != 2);
        let Some(node) = search.hint.filter(somebody).or(known.filter(somebody)).or_else(turn) else {
            return Target::Nobody("this node is the only voter and does not lead yet".to_owned());
        };
        self.dial.channel(node).map_or_else(
            || Target::Nobody(format!("no address is known for node {node}")),
            |channel| Target::There(MetadataPeerClient::new(channel)),
        )
    }
}

fn elsewhere(leader: Option<NodeId>) -> String {
    leader.map_or_else(|| "no leader is known".to_owned(), |node| format!("node {node} is said to lead"))
}

fn unreachable<T>(why: String) -> Attempt<T> {
    Attempt::Refused(Refusal::new(RefusalKind::Retry, why))
}

/// An answer, or what its absence means.
fn answered<R, T>(
    call: Result<Result<tonic::Response<R>, Status>, tokio::time::error::Elapsed>,
) -> Result<R, Attempt<T>> {
    match call {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            let refusal = refusal_of_status(&status);
            Err(match (refusal.kind, refusal.effect) {
                // The peer said so itself, with a refusal in the status.
                (_, Effect::None) => Attempt::Refused(refusal),
                (_, Effect::Unknown | Effect::Applied) => Attempt::Lost(refusal.message),
            })
        }
        Err(_) => Err(Attempt::Lost("the metadata leader did not answer in time".to_owned())),
    }
}
