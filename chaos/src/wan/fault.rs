//! What can be done to a planet of real processes.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;

/// A fault with everything that was drawn for it. Nodes and regions are named by their index: a region has one node.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the sentence of a variant says what its fields are
pub enum Fault {
    /// SIGKILL; restarted when it ends.
    Kill { node: usize },
    /// SIGKILL to every node at once.
    KillAll,
    /// SIGSTOP, SIGCONT when it ends.
    Pause { node: usize },
    /// A region and the others hear nothing of each other.
    Isolate { region: usize },
    /// A region hears nothing, but is heard.
    Deafen { region: usize },
    /// A region is heard by nobody, but hears.
    Mute { region: usize },
    /// Two regions hear nothing of each other; a third hears both.
    Bridge { a: usize, b: usize },
    /// Every region hears only the one before it, or only the one behind it.
    Ring { forwards: bool },
    /// The link of a region comes and goes every [`FLAP_EVERY`].
    Flap { region: usize },
    /// Packets are lost on every link.
    Lose { share: f64 },
    /// Packets arrive twice on every link.
    Duplicate { share: f64 },
    /// Packets overtake each other on every link.
    Reorder { share: f64 },
    /// Bits flip on every link.
    Corrupt { share: f64 },
    /// The link between two regions has this bandwidth.
    Throttle { a: usize, b: usize, bits_per_second: u64 },
    /// The link between two regions is this long, and unsteady.
    Stretch { a: usize, b: usize, round_trip: Duration },
    /// Less disk is free than the reserve: writes are refused.
    DiskLow { node: usize },
    /// No disk is free at all. A node may stop then, and is restarted when there is room again.
    DiskFull { node: usize },
    /// Every write to the disk waits; the network goes on.
    DiskStall { node: usize },
    /// The disk does so few writes a second.
    DiskSlow { node: usize, writes_per_second: u32 },
    /// The wall clock is wrong by so much.
    ClockStep { node: usize, by_ms: i64 },
    /// SIGKILL; restarted with a monotonic clock that reads so much more, as after a move to another machine.
    ClockJump { node: usize, by_s: u32 },
}

/// How long a flapping link stays up or down.
pub const FLAP_EVERY: Duration = Duration::from_secs(5);

macro_rules! kinds {
    ($($kind:ident: $word:literal),* $(,)?) => {
        /// What a fault is, without what was drawn for it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)] // each is the fault of its name
        pub enum Kind { $($kind),* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];
        }

        impl Fault {
            /// What it is.
            pub fn kind(&self) -> Kind {
                match self { $(Fault::$kind { .. } => Kind::$kind),* }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Kind::$kind => $word),* })
            }
        }
    };
}

kinds! {
    Kill: "kill -9",
    KillAll: "kill -9 of all",
    Pause: "SIGSTOP",
    Isolate: "region cut off",
    Deafen: "region hears nothing",
    Mute: "region is not heard",
    Bridge: "two regions cut apart",
    Ring: "each hears one other",
    Flap: "flapping link",
    Lose: "loss",
    Duplicate: "duplicates",
    Reorder: "reordering",
    Corrupt: "flipped bits",
    Throttle: "slow link",
    Stretch: "other distance",
    DiskLow: "disk below reserve",
    DiskFull: "disk full",
    DiskStall: "disk stalls",
    DiskSlow: "disk slow",
    ClockStep: "wall clock wrong",
    ClockJump: "monotonic clock jumps",
}

impl Kind {
    /// Whether it is done to links, not to nodes. Two faults at a time never hit nodes both, so that each can be
    /// undone without the other in its way: a process that waits for a stalled disk can't even be killed.
    pub fn is_of_links(self) -> bool {
        match self {
            Kind::Isolate
            | Kind::Deafen
            | Kind::Mute
            | Kind::Bridge
            | Kind::Ring
            | Kind::Flap
            | Kind::Lose
            | Kind::Duplicate
            | Kind::Reorder
            | Kind::Corrupt
            | Kind::Throttle
            | Kind::Stretch => true,
            Kind::Kill
            | Kind::KillAll
            | Kind::Pause
            | Kind::DiskLow
            | Kind::DiskFull
            | Kind::DiskStall
            | Kind::DiskSlow
            | Kind::ClockStep
            | Kind::ClockJump => false,
        }
    }

    /// A fault of this kind in a planet of so many regions, and how long it lasts.
    pub fn draw(self, regions: usize, random: &mut impl Rng) -> (Fault, Duration) {
        let one = random.random_range(0..regions);
        // Another than `one`.
        let other = (one + random.random_range(1..regions.max(2))) % regions;
        let (fault, seconds) = match self {
            Kind::Kill => (Fault::Kill { node: one }, 0.1..6.0),
            Kind::KillAll => (Fault::KillAll, 0.1..2.0),
            Kind::Pause => (Fault::Pause { node: one }, 1.0..20.0),
            Kind::Isolate => (Fault::Isolate { region: one }, 3.0..20.0),
            Kind::Deafen => (Fault::Deafen { region: one }, 3.0..20.0),
            Kind::Mute => (Fault::Mute { region: one }, 3.0..20.0),
            Kind::Bridge => (Fault::Bridge { a: one, b: other }, 3.0..20.0),
            Kind::Ring => (Fault::Ring { forwards: random.random() }, 3.0..15.0),
            Kind::Flap => (Fault::Flap { region: one }, 20.0..30.0),
            Kind::Lose => (Fault::Lose { share: random.random_range(0.01..0.3) }, 5.0..15.0),
            Kind::Duplicate => (Fault::Duplicate { share: random.random_range(0.01..0.3) }, 5.0..15.0),
            Kind::Reorder => (Fault::Reorder { share: random.random_range(0.01..0.3) }, 5.0..15.0),
            Kind::Corrupt => (Fault::Corrupt { share: random.random_range(0.001..0.05) }, 5.0..15.0),
            Kind::Throttle => (Fault::Throttle { a: one, b: other, bits_per_second: 1_000_000 }, 5.0..15.0),
            Kind::Stretch => {
                let round_trip = Duration::from_millis(random.random_range(40..300));
                (Fault::Stretch { a: one, b: other, round_trip }, 5.0..15.0)
            }
            Kind::DiskLow => (Fault::DiskLow { node: one }, 5.0..12.0),
            Kind::DiskFull => (Fault::DiskFull { node: one }, 5.0..12.0),
            Kind::DiskStall => (Fault::DiskStall { node: one }, 1.0..15.0),
            Kind::DiskSlow => {
                (Fault::DiskSlow { node: one, writes_per_second: random.random_range(10..60) }, 5.0..15.0)
            }
            Kind::ClockStep => {
                let by_ms = [-3_600_000, -10_000, -50, 50, 10_000, 3_600_000].choose(random).copied().unwrap_or(50);
                (Fault::ClockStep { node: one, by_ms }, 5.0..15.0)
            }
            Kind::ClockJump => (Fault::ClockJump { node: one, by_s: random.random_range(1_000..10_000_000) }, 0.1..2.0),
        };
        (fault, Duration::from_secs_f64(random.random_range(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn every_kind_draws_faults_of_its_own_within_the_planet() {
        let mut random = StdRng::seed_from_u64(1);
        for kind in Kind::ALL {
            for _ in 0..50 {
                let (fault, lasts) = kind.draw(3, &mut random);
                assert_eq!(fault.kind(), *kind);
                assert!(lasts <= Duration::from_secs(30));
                if let Fault::Bridge { a, b } | Fault::Throttle { a, b, .. } | Fault::Stretch { a, b, .. } = fault {
                    assert!(a != b && a < 3 && b < 3, "{fault:?}");
                }
            }
        }
    }
}
