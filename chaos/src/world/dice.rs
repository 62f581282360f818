//! Where every choice of a world comes from: one seed, one stream of numbers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The dice of a world. Cheap to clone; clones draw from one stream.
#[derive(Clone, Debug)]
pub struct Dice(Arc<Mutex<u64>>);

impl Dice {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Dice {
        let dice = Dice(Arc::new(Mutex::new(seed)));
        // Neighbouring seeds differ in few bits.
        dice.next();
        dice
    }

    /// The next 64 bits: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when that is 0.
    pub fn below(&self, end: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(end);
        u64::try_from(wide >> 64).unwrap_or_default()
    }

    /// A number of `from..=to`.
    pub fn between(&self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from).saturating_add(1))
    }

    /// A place in a list of that length.
    pub fn index(&self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }

    /// Whether something that happens with this probability happens.
    pub fn chance(&self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A number of 0..1.
    pub fn unit(&self) -> f64 {
        // 53 bits fill a double's mantissa.
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A duration of `from..=to`, to the microsecond.
    pub fn duration(&self, from: Duration, to: Duration) -> Duration {
        let us = |it: Duration| u64::try_from(it.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.between(us(from), us(to)))
    }

    /// An independent stream that begins here.
    #[must_use]
    pub fn fork(&self) -> Dice {
        Dice::new(self.next())
    }

    /// Puts a list into a random order.
    pub fn shuffle<T>(&self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_stream_and_its_neighbour_another() {
        let draw = |seed| {
            let dice = Dice::new(seed);
            (0..8).map(|_| dice.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_them() {
        let dice = Dice::new(1);
        let drawn: std::collections::BTreeSet<_> = (0..1000).map(|_| dice.between(3, 6)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_eq!(dice.below(0), 0);
        assert!((0..1000).all(|_| !dice.chance(0.0) && dice.chance(1.0)));
    }
}
