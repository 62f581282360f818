//! How large the world is, and which rule is left out.

use super::actions::Action;

/// A rule left out, each of which breaks a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// None: the protocol as it is.
    None,
    /// Clocks differ by more than the bound that leases allow for.
    DriftBeyondTheBound,
    /// A new metadata leader forgets that its predecessor granted leases.
    ElectionForgetsLeases,
    /// A lease counts for a node that has not applied the index it was granted at.
    LeaseWithoutItsIndex,
    /// A successor is promoted without waiting for the leases of the deposed.
    PromoteBeforeLeasesEnd,
    /// A successor is promoted though too few regions were fenced to prove that nothing is lost.
    PromoteWithTooFewFenced,
    /// A region reports its position and goes on taking the old epoch's entries.
    ReportWithoutFence,
    /// A successor takes over with what it has, without what other survivors have beyond that.
    PromoteWithoutPulling,
    /// A write is acknowledged when the primary has it, whatever was asked for.
    AcknowledgeWithoutCopies,
    /// A write is acknowledged, and shipped, before it is on disk.
    AcknowledgeBeforeSync,
    /// Entries are shipped before they are on disk.
    ShipBeforeSync,
    /// A replica confirms, and its gateway answers, before the entry is on disk there.
    ConfirmBeforeSync,
    /// A gateway answers for what its own region ordered, as if that were the second copy.
    AnswerEarlyForOwn,
    /// The lease is looked at when a write is ordered, and not again when it is acknowledged.
    LeaseOnlyWhenOrdered,
    /// A strong read doesn't wait until what it read is in enough regions.
    ReadBeforeCopies,
    /// It waits for what its own region ordered, not for what a successor inherited.
    ReadInheritedBeforeCopies,
    /// A strong read is answered without a lease.
    ReadWithoutLease,
    /// A deposed primary follows its successor without giving up its own tail.
    FollowWithoutRepair,
}

impl Mistake {
    /// All mistakes.
    pub const ALL: [Mistake; 17] = [
        Mistake::DriftBeyondTheBound,
        Mistake::ElectionForgetsLeases,
        Mistake::LeaseWithoutItsIndex,
        Mistake::PromoteBeforeLeasesEnd,
        Mistake::PromoteWithTooFewFenced,
        Mistake::ReportWithoutFence,
        Mistake::PromoteWithoutPulling,
        Mistake::AcknowledgeWithoutCopies,
        Mistake::AcknowledgeBeforeSync,
        Mistake::ShipBeforeSync,
        Mistake::ConfirmBeforeSync,
        Mistake::AnswerEarlyForOwn,
        Mistake::LeaseOnlyWhenOrdered,
        Mistake::ReadBeforeCopies,
        Mistake::ReadInheritedBeforeCopies,
        Mistake::ReadWithoutLease,
        Mistake::FollowWithoutRepair,
    ];

    /// The smallest world in which it shows.
    pub fn bounds(self) -> Bounds {
        let small = Bounds { writes: 1, crashes: 0, elections: 0, mistake: self, ..Bounds::SYNC };
        match self {
            Mistake::ElectionForgetsLeases => Bounds { elections: 1, ..small },
            Mistake::AcknowledgeBeforeSync | Mistake::ShipBeforeSync | Mistake::ConfirmBeforeSync => {
                Bounds { crashes: 1, ..small }
            }
            Mistake::FollowWithoutRepair => Bounds { writes: 3, ..small },
            Mistake::ReadInheritedBeforeCopies => Bounds { copies: 3, epochs: 3, start: Start::Inherited, ..small },
            _ => small,
        }
    }
}

/// Where a world begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// With empty logs and the first primary.
    Fresh,
    /// Behind a change of primary: the successor has a write that the third region lacks.
    Inherited,
}

impl Start {
    /// What happens before: possible in a fresh world with the same bounds.
    pub(super) fn prelude(self) -> &'static [Action] {
        match self {
            Start::Fresh => &[],
            Start::Inherited => &[
                Action::AskLease(0),
                Action::GrantLease(0),
                Action::TakeLease(0),
                Action::Order(0),
                Action::Receive(1, 0),
                Action::Tick,
                Action::Depose,
                Action::Fence(1),
                Action::Fence(2),
                Action::Promote(1),
                Action::Learn(1),
            ],
        }
    }
}

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Regions that must have a write before it is acknowledged: 1 is `async`, 2 of 3 `sync` with a majority.
    pub copies: u8,
    /// Writes that are ordered.
    pub writes: u8,
    /// The greatest epoch: one less than changes of primary.
    pub epochs: u8,
    /// Crashes of a region's node that lose what was not synced.
    pub crashes: u8,
    /// Elections of a metadata leader.
    pub elections: u8,
    /// How long a lease lasts, in ticks.
    pub ttl: u8,
    /// Where it begins.
    pub start: Start,
    /// What is left out.
    pub mistake: Mistake,
}

impl Bounds {
    /// A sync bucket: two of three regions must have a write.
    pub const SYNC: Bounds = Bounds {
        copies: 2,
        writes: 2,
        epochs: 2,
        crashes: 1,
        elections: 1,
        ttl: 1,
        start: Start::Fresh,
        mistake: Mistake::None,
    };

    /// The worlds in which every order is looked at, by name.
    pub const WORLDS: [(&str, Bounds); 6] = [
        ("sync, two of three regions", Bounds::SYNC),
        ("sync, longer leases", Bounds { writes: 1, ttl: 2, ..Bounds::SYNC }),
        ("sync, two changes of primary", Bounds { epochs: 3, writes: 1, elections: 0, ..Bounds::SYNC }),
        ("sync, all three regions", Bounds { copies: 3, elections: 0, ..Bounds::SYNC }),
        (
            "sync, all three regions, two changes",
            Bounds { copies: 3, epochs: 3, writes: 1, crashes: 0, ..Bounds::SYNC },
        ),
        ("async", Bounds { copies: 1, elections: 0, ..Bounds::SYNC }),
    ];

    /// Small enough for every run of the tests.
    pub const SMALL: [(&str, Bounds); 2] = [
        ("sync", Bounds { writes: 1, crashes: 0, ..Bounds::SYNC }),
        ("async", Bounds { copies: 1, writes: 1, crashes: 0, elections: 0, ..Bounds::SYNC }),
    ];

    /// How many fenced regions prove that nothing acknowledged is lost (design 7): N - K + 1, or one with consent.
    pub(super) fn survivors(&self) -> usize {
        let proof = super::state::REGIONS - usize::from(self.copies) + 1;
        match self.mistake {
            Mistake::PromoteWithTooFewFenced => 1,
            // An async bucket's primary alone had it all; whoever consents accepts that.
            _ if self.copies == 1 => 1,
            _ => proof,
        }
    }

    pub(super) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }
}
