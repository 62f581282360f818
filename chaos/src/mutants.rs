//! Planted bugs: does anybody notice? Each file in `chaos/mutants` is a small change of the product that breaks one promise,
//! of a kind that others shipped. It is applied in a copy of the tree, built, and played; the seeds must find it.
//!
//! A mutant is text, so that it stands beside the code it changes and says what it means:
//!
//! ```text
//! row: 10
//! breaks: CON-5: a delete leaves nothing behind that an older write could lose to
//! --- file region/core/src/shard/merge.rs
//! --- search
//! (lines as they are)
//! --- replace
//! (lines as they shall be)
//! ```
//!
//! `row` is the kind of bug, as numbered in `docs/testing.md`. More files or places may follow. A text that is to be
//! replaced occurs exactly once; a mutant whose place has moved fails before anything is built. `worlds: calm` is for what
//! must be noticed where nothing breaks: only those worlds are played. `test:` names a test command instead (arguments of `cargo
//! test`), for what no simulated planet runs; the unchanged tree must pass it.

mod cli;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

pub use self::cli::Arguments;

/// A planted bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Its name: that of its file.
    pub name: String,
    /// Which row of the table of bugs it stands for.
    pub row: u32,
    /// The promise it breaks, and how.
    pub breaks: String,
    /// Whether only worlds in which nothing breaks are played.
    pub calm: bool,
    /// What must notice: the seeds, or a test command (arguments of `cargo test`).
    pub test: Option<String>,
    /// What it changes.
    pub edits: Vec<Edit>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The file, from the root of the tree.
    pub file: PathBuf,
    /// Occurs in it exactly once.
    pub search: String,
    /// What stands there afterwards.
    pub replace: String,
}

/// Every mutant, by name.
///
/// # Errors
/// A file that can't be read or is no mutant.
pub fn all(root: &Path) -> anyhow::Result<Vec<Mutant>> {
    let dir = root.join("chaos/mutants");
    let mut mutants = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("{} can't be read", dir.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        mutants.push(Mutant::parse(&name, &text).with_context(|| format!("{} is no mutant", path.display()))?);
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

impl Mutant {
    fn parse(name: &str, text: &str) -> anyhow::Result<Mutant> {
        let (head, body) = text.split_once("--- ").context("it changes nothing")?;
        let mut mutant =
            Mutant { name: name.to_owned(), row: 0, breaks: String::new(), calm: false, test: None, edits: Vec::new() };
        for line in head.lines() {
            let (key, value) = line.split_once(": ").with_context(|| format!("`{line}` says nothing"))?;
            match key {
                "row" => mutant.row = value.parse().context("its row is no number")?,
                "breaks" => mutant.breaks = value.to_owned(),
                "worlds" if value == "calm" => mutant.calm = true,
                "test" => mutant.test = Some(value.to_owned()),
                other => bail!("`{other}` means nothing"),
            }
        }
        ensure!(mutant.row > 0 && !mutant.breaks.is_empty(), "it must say its row and what it breaks");
        let mut parts = body.split("\n--- ").map(|part| part.split_once('\n').unwrap_or((part, "")));
        while let Some((file, _)) = parts.next() {
            let file = file.strip_prefix("file ").with_context(|| format!("a file was expected, not `{file}`"))?;
            let mut next = |wanted: &str| match parts.next() {
                Some((found, text)) if found == wanted => Ok(text.strip_suffix('\n').unwrap_or(text).to_owned()),
                _ => bail!("`--- {wanted}` was expected"),
            };
            let (search, replace) = (next("search")?, next("replace")?);
            ensure!(!search.is_empty() && search != replace, "a change of {file} changes nothing");
            mutant.edits.push(Edit { file: PathBuf::from(file), search, replace });
        }
        Ok(mutant)
    }

    /// The files it changes, as they shall be.
    ///
    /// # Errors
    /// When a text it looks for does not occur exactly once.
    pub fn applied(&self, root: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let mut files: Vec<(PathBuf, String)> = Vec::new();
        for edit in &self.edits {
            let at = match files.iter().position(|(file, _)| *file == edit.file) {
                Some(at) => at,
                None => {
                    let path = root.join(&edit.file);
                    let text =
                        fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
                    files.push((edit.file.clone(), text));
                    files.len() - 1
                }
            };
            let text = &mut files[at].1;
            let times = text.matches(&edit.search).count();
            let file = edit.file.display();
            ensure!(times == 1, "mutant `{}`: its text occurs {times} times in {file}: bring it up to date", self.name);
            *text = text.replacen(&edit.search, &edit.replace, 1);
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    #[test]
    fn every_mutant_finds_its_place_exactly_once() {
        let mutants = all(&root()).unwrap();
        assert!(mutants.len() >= 25, "{}", mutants.len());
        for mutant in &mutants {
            let files = mutant.applied(&root()).unwrap();
            assert!(!files.is_empty(), "{}", mutant.name);
        }
        let rows: BTreeSet<u32> = mutants.iter().map(|mutant| mutant.row).collect();
        // A kind of which nobody has planted one is a kind that nobody knows to be noticed.
        assert!((1..=26).all(|row| rows.contains(&row)), "kinds of bugs: {rows:?}");
    }

    #[test]
    fn a_mutant_says_what_it_changes_or_what_is_wrong_with_it() {
        let text = "row: 3\nbreaks: FEN-1: so\n--- file a\n--- search\nx\ny\n--- replace\nz\n--- file b\n--- search\np\n--- replace\n";
        let mutant = Mutant::parse("m", text).unwrap();
        let edit = |file: &str, search: &str, replace: &str| Edit {
            file: file.into(),
            search: search.to_owned(),
            replace: replace.to_owned(),
        };
        assert_eq!(mutant.edits, [edit("a", "x\ny", "z"), edit("b", "p", "")]);
        assert!(!mutant.calm && Mutant::parse("m", &format!("worlds: calm\n{text}")).unwrap().calm);
        for wrong in
            ["", "row: 1\n--- file a\n", "row: 1\nbreaks: b\n--- file a\n--- search\nx\n", "what: 1\n--- file a"]
        {
            assert!(Mutant::parse("m", wrong).is_err(), "{wrong}");
        }
    }
}
