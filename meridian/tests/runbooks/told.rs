//! Whether what a command said is what its runbook shows.
//!
//! Words must be the same, in the same order, whatever the space between them. Figures, units, moments and addresses differ from night to night
//! and stand for each other; `16/16` is no figure but a proof. Names that the cluster gives (operations, consents, bundles) differ, too, but
//! each is one thing throughout a page: what the page calls `op-16` is called something here, and a line that is typed later means that.

use std::collections::BTreeMap;

/// What is left out.
const GAP: &str = "…";

/// What the page calls something, and what it is called here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<String, String>);

impl Names {
    /// A line of the page, with the names of here.
    pub(crate) fn here(&self, line: &str) -> String {
        let mut here = String::new();
        for piece in line.split_inclusive([' ', '\'', '"']) {
            let word = piece.trim_end_matches([' ', '\'', '"']);
            let name = self.0.get(word).map_or(word, String::as_str);
            here.push_str(name);
            here.push_str(&piece[word.len()..]);
        }
        here
    }

    /// Whether a name of the page can mean that; from then on it does.
    fn means(&mut self, page: &str, here: &str) -> bool {
        self.0.entry(page.to_owned()).or_insert_with(|| here.to_owned()) == here
    }
}

/// With which names the page shows what was said, if it does.
pub(crate) fn agrees(seen: &[String], said: &str, names: &Names) -> Option<Names> {
    let seen: Vec<_> = seen.iter().map(|line| words(line)).filter(|line| !line.is_empty()).collect();
    let said: Vec<_> = said.lines().map(words).filter(|line| !line.is_empty()).collect();
    if seen.is_empty() { Some(names.clone()) } else { lines(&seen, &said, names) }
}

/// Without rules, and the sign before the shortest times.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().filter(|word| *word != "<" && word.chars().any(|it| it != '─')).collect()
}

fn lines(seen: &[Vec<&str>], said: &[Vec<&str>], names: &Names) -> Option<Names> {
    let Some((line, rest)) = seen.split_first() else { return said.is_empty().then(|| names.clone()) };
    if line.as_slice() == [GAP] {
        return (0..=said.len()).find_map(|skipped| lines(rest, &said[skipped..], names));
    }
    let (first, others) = said.split_first()?;
    lines(rest, others, &line_agrees(line, first, names)?)
}

fn line_agrees(seen: &[&str], said: &[&str], names: &Names) -> Option<Names> {
    let Some((word, rest)) = seen.split_first() else { return said.is_empty().then(|| names.clone()) };
    if *word == GAP {
        return (0..=said.len()).find_map(|skipped| line_agrees(rest, &said[skipped..], names));
    }
    let (first, others) = said.split_first()?;
    let mut names = names.clone();
    word_agrees(word, first, &mut names).then_some(())?;
    line_agrees(rest, others, &names)
}

fn word_agrees(seen: &str, said: &str, names: &mut Names) -> bool {
    let ((before, seen, behind), (before_here, said, behind_here)) = (bare(seen), bare(said));
    let same_kind = Kind::of(seen) == Kind::of(said);
    (before, behind) == (before_here, behind_here)
        && match Kind::of(seen) {
            Kind::Word => seen == said,
            Kind::Name(_) => same_kind && names.means(seen, said),
            Kind::Figure | Kind::Unit | Kind::Moment | Kind::Address => same_kind,
        }
}

/// A word without what stands around it.
fn bare(word: &str) -> (&str, &str, &str) {
    let around = |it: char| "()'`\",;:.!".contains(it);
    let from = word.len() - word.trim_start_matches(around).len();
    let to = word.trim_end_matches(around).len().max(from);
    (&word[..from], &word[from..to], &word[to..])
}

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Figure,
    Unit,
    Moment,
    Address,
    /// What the cluster calls something, by the kind of thing.
    Name(&'static str),
    Word,
}

impl Kind {
    fn of(word: &str) -> Kind {
        let is_number = |text: &str| !text.is_empty() && text.chars().all(|it| it.is_ascii_digit());
        let numbers = |by: char| word.split(by).filter(|part| is_number(part)).count();
        let behind = |begin: &str| word.strip_prefix(begin);
        let marks = word.chars().filter(|it| "-:".contains(*it)).count();
        if behind("op-").is_some_and(is_number) {
            Kind::Name("operation")
        } else if behind("lose-changes-after-").is_some_and(is_number) {
            Kind::Name("words to confirm with")
        } else if behind("accept-loss/").is_some() {
            Kind::Name("consent")
        } else if numbers('-') == 5 && word.split('-').count() == 5 {
            Kind::Name("bundle")
        } else if marks >= 2 && word.chars().all(|it| it.is_ascii_digit() || "-:Z".contains(it)) {
            Kind::Moment
        } else if word
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.len() >= 4 && is_number(port))
        {
            Kind::Address
        } else if ["ns", "µs", "ms", "s", "min", "h", "B", "KiB", "MiB", "GiB", "TiB"].contains(&word) {
            Kind::Unit
        } else if word.starts_with(|it: char| it.is_ascii_digit())
            && word.chars().all(|it| it.is_ascii_digit() || ".,".contains(it))
        {
            Kind::Figure
        } else {
            Kind::Word
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(seen: &str, said: &str) -> bool {
        let seen: Vec<_> = seen.lines().map(str::to_owned).collect();
        agrees(&seen, said, &Names::default()).is_some()
    }

    #[test]
    fn figures_differ_and_words_do_not() {
        assert!(agree(" a   4.2 s   (1,024 MiB) at 10:20:30Z", "a  317 ms (5 KiB)   at 23:59:01Z"));
        assert!(agree("pause < 1 ms", "pause 12 ms"));
        assert!(agree("────\nx h:7100", "x 127.0.0.1:40001\n\n"));
        assert!(!agree("a 5 s", "b 5 s"), "another word");
        assert!(!agree("a 5 s", "a s"), "no figure");
        assert!(!agree("equal 16/16", "equal 15/16"), "a proof");
        assert!(!agree("us-east-1 ok", "us-east-2 ok"), "another node");
        assert!(!agree("a (5", "a 5"), "without what stands around it");
    }

    #[test]
    fn only_what_is_marked_is_left_out() {
        assert!(agree("a\n…\nd", "a\nb\nc\nd") && agree("a\n…\nd", "a\nd"));
        assert!(agree("a … d", "a b c d") && agree("…\nb …", "a\nb\n"));
        assert!(!agree("a\nd", "a\nb\nd") && !agree("a d", "a b d"));
        assert!(!agree("a", "a\nb") && !agree("a\nb", "a"));
        assert!(agree("", "anything"), "nothing is said of it");
    }

    #[test]
    fn a_name_is_one_thing_throughout() {
        let seen = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let text = "op-16: begun\nrun --accept-loss 'accept-loss/1;a@1=0/0+;sum=b3eb5729'";
        let said = "op-9: begun\nrun --accept-loss 'accept-loss/1;a@7=3/9+;sum=00000000'";
        let names = agrees(&seen(text), said, &Names::default()).unwrap();
        let typed = "x op-16 --accept-loss 'accept-loss/1;a@1=0/0+;sum=b3eb5729' op-1";
        assert_eq!(names.here(typed), "x op-9 --accept-loss 'accept-loss/1;a@7=3/9+;sum=00000000' op-1");
        assert!(agrees(&seen("op-16 ended"), "op-9 ended", &names).is_some());
        assert!(agrees(&seen("op-16 ended"), "op-10 ended", &names).is_none());
        assert!(agrees(&seen("3-7-2-1041-1100"), "lose-changes-after-7", &names).is_none(), "another kind of thing");
    }
}
