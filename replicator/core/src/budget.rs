//! The window of a link, shared by its lanes. Keeps RES-1: what all lanes of a link have in flight is at
//! most the window plus one frame per lane, since a lane with nothing in flight may always send one.

use std::collections::BTreeMap;

/// Bytes in flight per lane of one link.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    in_flight: BTreeMap<u64, usize>,
    in_flight_sum: usize,
}

impl Budget {
    /// A budget of `bytes_max`.
    pub fn new(bytes_max: usize) -> Budget {
        Budget { bytes_max, in_flight: BTreeMap::new(), in_flight_sum: 0 }
    }

    /// Notes what `lane` has in flight now; whether that freed something.
    pub fn set(&mut self, lane: u64, bytes: usize) -> bool {
        let before = if bytes == 0 { self.in_flight.remove(&lane) } else { self.in_flight.insert(lane, bytes) };
        let before = before.unwrap_or_default();
        self.in_flight_sum = self.in_flight_sum - before + bytes;
        bytes < before
    }

    /// How much `lane` may have in flight: its fair share, as far as there is room.
    pub fn window(&self, lane: u64) -> usize {
        let mine = self.in_flight.get(&lane).copied().unwrap_or_default();
        let active = self.in_flight.len() + usize::from(mine == 0);
        let room = self.bytes_max.saturating_sub(self.in_flight_sum);
        (self.bytes_max / active).min(mine + room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_lane_has_it_all_and_a_second_gets_half_as_the_first_drains() {
        let mut budget = Budget::new(100);
        assert_eq!(budget.window(1), 100);
        budget.set(1, 100);
        assert_eq!(budget.window(2), 0, "no room yet");
        assert_eq!(budget.window(1), 100);
        budget.set(2, 10);
        assert_eq!(budget.window(1), 50, "above its share it may not take more");
        assert!(budget.set(1, 60));
        assert_eq!(budget.window(2), 40);
        budget.set(1, 0);
        assert_eq!(budget.window(2), 100);
    }

    #[test]
    fn lanes_that_keep_to_their_windows_never_exceed_the_budget() {
        let mut budget = Budget::new(1000);
        for turn in 0..2000u64 {
            let lane = turn.wrapping_mul(2_654_435_761) % 7;
            let bytes = if turn % 5 == 0 { 0 } else { budget.window(lane) };
            budget.set(lane, bytes);
            assert!(budget.in_flight_sum <= 1000);
            assert_eq!(budget.in_flight_sum, budget.in_flight.values().sum::<usize>());
        }
    }
}
