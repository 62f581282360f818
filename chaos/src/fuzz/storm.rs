//! Many mutated inputs for one decoder, from one seed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::mutate::{Random, mutate};
use super::{Target, hold};

/// What a storm came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storm {
    /// Inputs tried.
    pub inputs: u64,
    /// Of these, accepted: a storm that nothing survives never got past the first check.
    pub accepted: u64,
}

/// Runs what it is given for an input, and may look at what that took.
pub type Around<'a> = &'a mut dyn FnMut(&[u8], &mut dyn FnMut());

/// Mutates the seeds `rounds` times, and holds the decoder to its law. `around` is called around every input with what
/// runs it: that is where memory is measured.
///
/// # Errors
/// One line with the bytes that broke the decoder, and where to keep them.
pub fn storm(target: &Target, seeds: &[Vec<u8>], seed: u64, rounds: u64, around: Around<'_>) -> Result<Storm, String> {
    let mut random = Random::new(seed);
    let mut storm = Storm::default();
    for _ in 0..rounds {
        let (from, other) = (random.below(seeds.len()), random.below(seeds.len()));
        let (Some(from), Some(other)) = (seeds.get(from), seeds.get(other)) else { break };
        let input = mutate(&mut random, from, other);
        let mut accepted = false;
        let held = catch_unwind(AssertUnwindSafe(|| around(&input, &mut || accepted = hold(target, &input))));
        if held.is_err() {
            return Err(format!(
                "{} broke on {} bytes; keep them: echo {} | xxd -r -p > chaos/fuzz/corpus/{}/<a-name>",
                target.name,
                input.len(),
                hex(&input),
                target.name
            ));
        }
        storm.inputs += 1;
        storm.accepted += u64::from(accepted);
    }
    Ok(storm)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
