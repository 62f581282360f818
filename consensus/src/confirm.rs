//! Proving that a node still leads its group, by the word of a quorum that was given after it was asked (CON-1, FEN-1).
//!
//! What is asked is an append of nothing, as a heartbeat is. The round is Meridian's own, because openraft counts a heartbeat as
//! lost that is not answered within the interval at which it sends them. Where answers come, but later than that, because the
//! processors are taken or a link is long, no leader proved anything any more, while its followers heard it well and elected
//! nobody: every lease ran out, for as long as that lasted.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use meridian_types::{Lsn, NodeId};
use openraft::RaftState;
use openraft::impls::Vote;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft_rt_tokio::TokioRuntime;

use crate::error::ReadError;
use crate::group::{Group, Inner};
use crate::raft::types::{RaftVote, TypeConfig};
use crate::transport::envelope::{Answer, Question};
use crate::transport::link::Urgency;

/// How long a voter is waited for: longer than whoever asks for a proof has time.
const PATIENCE: Duration = Duration::from_secs(2);

/// The last round of questions, which whoever asked before it began shares.
pub(crate) type LastRound = tokio::sync::Mutex<Option<Round>>;

pub(crate) struct Round {
    began: Instant,
    outcome: Result<Lsn, ReadError>,
}

/// What a voter says to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Follows(u64),
    KnowsALaterLeader,
    None,
}

impl Group {
    /// As [`Group::read_barrier`], but proven by a quorum that answered after this was called, never by a lease: what
    /// rights are granted on (design 4) must not rest on how fast this node's clock runs.
    ///
    /// # Errors
    /// [`ReadError`] when this node does not lead or no quorum says so.
    pub async fn confirm_leadership(&self) -> Result<Lsn, ReadError> {
        let asked = Instant::now();
        // One round at a time: those who come meanwhile wait for it to end, and share the next one.
        let mut last = self.inner.last_round.lock().await;
        if let Some(round) = last.as_ref().filter(|round| round.began > asked) {
            return round.outcome.clone();
        }
        let began = Instant::now();
        let outcome = self.inner.ask_a_quorum().await;
        *last = Some(Round { began, outcome: outcome.clone() });
        outcome
    }
}

impl Inner {
    async fn ask_a_quorum(&self) -> Result<Lsn, ReadError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(ReadError::Stopped);
        }
        let term = self.term_it_leads_in().await?;
        if self.handed_over_in.load(Ordering::Acquire) == term {
            // It takes no more writes in this term, and sends no more heartbeats. Were the voters asked all the same, they would wait for it
            // for ever where nobody takes over.
            return Err(ReadError::NotLeader { leader: None });
        }
        // A write is acknowledged once it is applied here, or was by an earlier leader, whose entries are applied before this one leads.
        let applied = *self.progress.applied.borrow();
        self.contact.lock().unwrap_or_else(PoisonError::into_inner).heard(term, Instant::now());
        let vote = Vote::new_committed(term, self.node.0);
        let look = |state: &RaftState<TypeConfig<TokioRuntime>>| {
            (*state.vote_ref(), state.membership_state.effective().get_joint_config().clone())
        };
        let (own, voters) = self.raft.with_raft_state(look).await.map_err(|_| ReadError::Stopped)?;
        if own != vote {
            return Err(ReadError::NotLeader { leader: None });
        }
        let mut follow = BTreeSet::from([self.node.0]);
        let others: BTreeSet<u64> = voters.iter().flatten().copied().filter(|voter| *voter != self.node.0).collect();
        let mut words: FuturesUnordered<_> = others.into_iter().map(|voter| self.word_of(voter, vote)).collect();
        while !is_quorum(&voters, &follow) {
            match words.next().await {
                Some(Word::Follows(voter)) => drop(follow.insert(voter)),
                Some(Word::KnowsALaterLeader) => return Err(ReadError::NotLeader { leader: None }),
                Some(Word::None) => {}
                None => return Err(ReadError::NoQuorum),
            }
        }
        Ok(applied)
    }

    /// Waits for the first entry of its own term, if it has just been elected.
    async fn term_it_leads_in(&self) -> Result<u64, ReadError> {
        let mut leadership = self.leadership.subscribe();
        let settled = leadership.wait_for(|now| now.leads || now.leader != Some(self.node)).await;
        match settled.as_deref() {
            Err(_) => Err(ReadError::Stopped),
            Ok(now) if now.leads => Ok(now.term),
            Ok(now) => Err(ReadError::NotLeader { leader: now.leader }),
        }
    }

    async fn word_of(&self, voter: u64, vote: RaftVote) -> Word {
        let nothing = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let link = (self.links)(NodeId(voter));
        let Ok(asked) = link.ask(self.id, Question::Append(nothing), Urgency::Now) else { return Word::None };
        match asked.wait(PATIENCE).await {
            Ok(Some(Answer::Append(AppendEntriesResponse::HigherVote(_)))) => Word::KnowsALaterLeader,
            Ok(Some(Answer::Append(_))) => Word::Follows(voter),
            Ok(_) | Err(_) => Word::None,
        }
    }
}

/// Whether those who follow are a majority of every configuration that has a say.
fn is_quorum(voters: &[BTreeSet<u64>], follow: &BTreeSet<u64>) -> bool {
    voters.iter().all(|voters| voters.intersection(follow).count() * 2 > voters.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_members_change_a_majority_of_both_sets_is_needed() {
        let set = |all: &[u64]| all.iter().copied().collect::<BTreeSet<u64>>();
        assert!(is_quorum(&[set(&[1])], &set(&[1])));
        assert!(!is_quorum(&[set(&[1, 2])], &set(&[1])));
        assert!(is_quorum(&[set(&[1, 2, 3])], &set(&[1, 3])));
        let both = [set(&[1, 2, 3]), set(&[3, 4, 5])];
        assert!(!is_quorum(&both, &set(&[1, 2, 3])));
        assert!(is_quorum(&both, &set(&[1, 3, 4])));
    }
}
