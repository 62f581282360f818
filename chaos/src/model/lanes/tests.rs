use super::*;

/// Larger worlds take longer: `cargo run --release -p chaos -- model --only lanes` (docs/testing.md has what it found).
#[test]
fn the_lanes_keep_every_promise_in_every_order() {
    let outcome = Lanes::SMALL.explore(2);
    eprintln!("{} plans, {} states, depth {}, {:?}", outcome.plans, outcome.states, outcome.depth, outcome.took);
    assert!(outcome.broken.is_empty(), "{:#?}", outcome.broken);
    assert!(outcome.never.is_empty(), "never: {:?}", outcome.never);
}

#[test]
fn each_rule_of_the_lanes_is_needed() {
    for mistake in Mistake::ALL {
        let outcome = Lanes { mistake, ..Lanes::SMALL }.explore(2);
        let promises: Vec<_> = outcome.broken.iter().map(|(promise, _)| promise).collect();
        eprintln!("{mistake:?}: {promises:?}, {} states, {:?}", outcome.states, outcome.took);
        assert!(!promises.is_empty(), "{mistake:?} breaks nothing");
    }
}
