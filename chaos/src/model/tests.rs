use super::*;

/// Larger worlds take minutes: `cargo run --release -p chaos -- model` (docs/testing.md has what it found).
#[test]
fn the_protocol_keeps_every_promise_in_every_order() {
    for (name, bounds) in Bounds::SMALL {
        let outcome = explore(bounds, 2);
        eprintln!("{name}: {} states, depth {}, {:?}", outcome.states, outcome.depth, outcome.took);
        assert!(outcome.broken.is_empty(), "{name}: {:#?}", outcome.broken);
        assert!(outcome.never.is_empty(), "{name}: never: {:?}", outcome.never);
    }
}

#[test]
fn each_rule_is_needed() {
    for mistake in Mistake::ALL {
        let outcome = explore(mistake.bounds(), 2);
        let first = outcome.broken.first().map(|(promise, actions)| (promise, actions.len()));
        eprintln!("{mistake:?}: {first:?}, {} states, {:?}", outcome.states, outcome.took);
        assert!(first.is_some(), "{mistake:?} breaks nothing");
    }
}
