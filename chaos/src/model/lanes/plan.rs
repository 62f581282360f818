//! What is to arrive: epochs, each of a primary and a lane, with its writes and the seal that ends it.

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Of what waits for no other region.
    Async,
    /// Of what does.
    Sync,
}

impl Lane {
    /// Both.
    pub const ALL: [Lane; 2] = [Lane::Async, Lane::Sync];

    fn other(self) -> Lane {
        match self {
            Lane::Async => Lane::Sync,
            Lane::Sync => Lane::Async,
        }
    }
}

/// The regions that are primary: A, and B.
pub(super) const SOURCES: usize = 2;

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) source: usize,
    pub(super) lane: Lane,
    writes: u8,
}

/// An entry of the bucket's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) epoch: u8,
    pub(super) source: usize,
    /// Where it is in the log of its source, from 0.
    pub(super) place: u8,
    /// It ends its epoch.
    pub(super) seal: bool,
}

/// A history, and its parts in the logs of those that ordered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    epochs: Vec<Epoch>,
    pub(super) history: Vec<Entry>,
    /// Places in the history, by source and place in its log.
    pub(super) logs: [Vec<u8>; SOURCES],
}

impl Plan {
    /// All that begin with A in the async lane (another beginning is the same with other names), and in which each epoch has at most
    /// so many writes: the next one is in the other lane, or of the other region, or of the same one in the same lane.
    pub(super) fn all(epochs: u8, writes: u8) -> Vec<Plan> {
        let first = |writes| vec![Epoch { source: 0, lane: Lane::Async, writes }];
        let mut all: Vec<Vec<Epoch>> = (0..=writes).map(first).collect();
        for _ in 1..epochs {
            all = all.iter().flat_map(|before| (0..=writes).flat_map(|writes| continued(before, writes))).collect();
        }
        all.into_iter().map(Plan::new).collect()
    }

    fn new(epochs: Vec<Epoch>) -> Plan {
        let (mut history, mut logs) = (Vec::new(), [const { Vec::new() }; SOURCES]);
        for (epoch, it) in (1..).zip(&epochs) {
            let is_last = usize::from(epoch) == epochs.len();
            for at in 0..it.writes + u8::from(!is_last) {
                let log: &mut Vec<u8> = &mut logs[it.source];
                let (place, seal) = (small(log.len()), at == it.writes);
                log.push(small(history.len()));
                history.push(Entry { epoch, source: it.source, place, seal });
            }
        }
        Plan { epochs, history, logs }
    }

    pub(super) fn epoch(&self, epoch: u8) -> Epoch {
        self.epochs[usize::from(epoch) - 1]
    }

    pub(super) fn last_epoch(&self) -> u8 {
        small(self.epochs.len())
    }

    /// Whether that epoch began in another lane than the one before it ended in.
    pub(super) fn is_turn(&self, epoch: u8) -> bool {
        epoch > 1 && self.epoch(epoch).lane != self.epoch(epoch - 1).lane
    }

    pub(super) fn length(&self) -> u8 {
        small(self.history.len())
    }
}

fn continued(before: &[Epoch], writes: u8) -> impl Iterator<Item = Vec<Epoch>> {
    let last = before[before.len() - 1];
    let next = [
        Epoch { lane: last.lane.other(), writes, ..last },
        Epoch { source: 1 - last.source, writes, ..last },
        Epoch { writes, ..last },
    ];
    next.into_iter().map(move |next| [before, &[next]].concat())
}

/// Lengths here are a few.
fn small(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
