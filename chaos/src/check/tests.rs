//! Every checker passes an honest story and finds the lie in others: one for each row of the table of bugs that others
//! shipped which a history or a trace can tell.

mod crossed;
mod damped;
mod facts;
mod lasting;
mod regions;
mod replaced;
mod story;
mod told;
mod turned;
mod whole;

use super::{ALL, Evidence, Violation};

/// What the checker of that name says of a run.
fn found_by(name: &str, evidence: &Evidence) -> Option<Violation> {
    let checker = ALL.iter().find(|checker| checker.name == name).expect("a checker of that name");
    (checker.check)(evidence).err()
}

/// Asserts that the checker finds a violation, in a sentence that says so.
fn catches(name: &str, evidence: &Evidence, words: &str) {
    let violation = found_by(name, evidence).unwrap_or_else(|| panic!("{name} must find something"));
    let text = violation.to_string();
    assert!(text.contains(words), "`{words}` is not in: {text}");
}

/// Asserts that no checker finds anything.
fn is_clean(evidence: &Evidence) {
    let verdict = super::all(evidence);
    assert!(verdict.is_clean(), "{verdict}");
}
