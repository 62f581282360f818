//! What one attempt to be served by the metadata leader came to, and what to do next.

use std::time::Duration;

use meridian_proto::convert::{refusal_from_proto, refusal_to_proto};
use meridian_proto::v1;
use meridian_types::{NodeId, Refusal};

/// One attempt, local or over the wire.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Attempt<T> {
    /// Served.
    Done(T),
    /// Not by this node; maybe by that one. It did nothing.
    Elsewhere(Option<NodeId>),
    /// A typed no. [`meridian_types::RefusalKind::Retry`] means later, others are final.
    Refused(Refusal),
    /// No answer: it may have taken effect, or may yet.
    Lost(String),
}

impl<T> Attempt<T> {
    /// A word for metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Attempt::Done(_) => "done",
            Attempt::Elsewhere(_) => "elsewhere",
            Attempt::Refused(_) => "refused",
            Attempt::Lost(_) => "lost",
        }
    }
}

/// `leader` on the wire: 0 for nobody.
pub(crate) fn leader_to_proto(leader: Option<NodeId>) -> u64 {
    leader.map_or(0, |node| node.0)
}

pub(crate) fn leader_from_proto(leader: u64) -> Option<NodeId> {
    (leader != 0).then_some(NodeId(leader))
}

/// What a lost attempt looks like to the node that asked.
pub(crate) fn lost_to_proto(why: String) -> v1::Refusal {
    let refusal = Refusal::new(meridian_types::RefusalKind::Retry, why);
    refusal_to_proto(refusal.with_effect(meridian_types::Effect::Unknown))
}

/// The counterpart of [`lost_to_proto`]: a refusal whose effect is unknown is a lost attempt.
pub(crate) fn refused_from_proto<T>(refusal: v1::Refusal) -> Attempt<T> {
    let refusal = refusal_from_proto(refusal);
    match refusal.effect {
        meridian_types::Effect::Unknown => Attempt::Lost(refusal.message),
        meridian_types::Effect::None | meridian_types::Effect::Applied => Attempt::Refused(refusal),
    }
}

/// Growing pauses between attempts, spread so that nodes that failed together don't return together.
#[derive(Debug)]
pub(crate) struct Backoff {
    pause: Duration,
    pause_max: Duration,
}

impl Backoff {
    /// The first pause: shorter than any round trip between regions.
    const PAUSE_MIN: Duration = Duration::from_millis(20);

    pub(crate) fn new(pause_max: Duration) -> Backoff {
        Backoff { pause: Self::PAUSE_MIN, pause_max }
    }

    pub(crate) fn reset(&mut self) {
        self.pause = Self::PAUSE_MIN;
    }

    /// The next pause: between half and all of a doubling span.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.pause.min(self.pause_max);
        self.pause = (pause * 2).min(self.pause_max);
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_start_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(100));
        let pauses: Vec<_> = (0..20).map(|_| backoff.next_pause()).collect();
        assert!(pauses.iter().all(|p| (Duration::from_millis(10)..=Duration::from_millis(100)).contains(p)));
        assert!(pauses.iter().skip(4).all(|p| *p >= Duration::from_millis(50)));
        backoff.reset();
        assert!(backoff.next_pause() <= Backoff::PAUSE_MIN);
    }

    #[test]
    fn an_attempt_that_was_lost_stays_lost_over_the_wire() {
        let lost = lost_to_proto("no majority".to_owned());
        assert_eq!(refused_from_proto::<()>(lost), Attempt::Lost("no majority".to_owned()));
        assert_eq!(leader_from_proto(leader_to_proto(Some(NodeId(5)))), Some(NodeId(5)));
        assert_eq!(leader_from_proto(leader_to_proto(None)), None);
    }
}
