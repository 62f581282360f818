//! A runbook as it is played: its headings, and what is typed below them, with what one sees and how it ends.
//!
//! In a block that is marked `console` a line with a prompt is typed: `$ ` anywhere, `us-east-1$ ` on the machine of that node. What
//! follows is what one sees; `…` stands for what is left out, of a line or between lines. `(exit code 3)` is how it ends where that is
//! not 0. There are no other blocks, so that nobody can write a command into a runbook that nobody tries.

use anyhow::{Context, bail, ensure};

/// A runbook.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// In the order of the page.
    pub(crate) parts: Vec<Part>,
    /// Commands that its prose names.
    pub(crate) named: Vec<String>,
}

/// What the reader comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Heading(String),
    Typed(Typed),
}

/// A line that is typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// Its number in the file.
    pub(crate) at: usize,
    /// On the machine of this node; anywhere if `None`.
    pub(crate) machine: Option<String>,
    pub(crate) line: String,
    /// What one sees; nothing is said of that if it is empty.
    pub(crate) seen: Vec<String>,
    pub(crate) code: i32,
}

impl Page {
    /// Reads one.
    pub(crate) fn read(text: &str) -> anyhow::Result<Page> {
        let mut page = Page::default();
        let mut prose = String::new();
        let mut lines = text.lines().zip(1..);
        while let Some((line, at)) = lines.next() {
            if let Some(kind) = line.trim_start().strip_prefix("```") {
                ensure!(kind == "console", "line {at}: a block of `{kind}`: only `console` is played");
                page.note(&std::mem::take(&mut prose));
                let indent = line.len() - line.trim_start().len();
                let block: Vec<_> = lines.by_ref().take_while(|(line, _)| line.trim() != "```").collect();
                page.block(&block, indent)?;
            } else if let Some(heading) = line.strip_prefix('#') {
                page.note(&std::mem::take(&mut prose));
                page.parts.push(Part::Heading(heading.trim_start_matches('#').trim().to_owned()));
            } else {
                ensure!(prompt(line.trim_start()).is_none(), "line {at}: what is typed stands in a block");
                prose.push_str(line);
                prose.push(' ');
            }
        }
        page.note(&prose);
        Ok(page)
    }

    /// The headings.
    pub(crate) fn headings(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Heading(heading) => Some(heading.as_str()),
            Part::Typed(_) => None,
        })
    }

    /// What is typed.
    pub(crate) fn typed(&self) -> impl Iterator<Item = &Typed> {
        self.parts.iter().filter_map(|part| match part {
            Part::Heading(_) => None,
            Part::Typed(typed) => Some(typed),
        })
    }

    fn note(&mut self, prose: &str) {
        let code = prose.split('`').skip(1).step_by(2);
        let commands =
            code.filter(|it| ["meridian ", "systemctl ", "journalctl "].iter().any(|word| it.starts_with(word)));
        self.named.extend(commands.map(str::to_owned));
    }

    fn block(&mut self, lines: &[(&str, usize)], indent: usize) -> anyhow::Result<()> {
        for (line, at) in lines {
            let line = line.get(indent..).unwrap_or_default();
            if let Some((machine, typed)) = prompt(line) {
                let (machine, line) = (machine.map(str::to_owned), typed.to_owned());
                self.parts.push(Part::Typed(Typed { at: *at, machine, line, ..Typed::default() }));
                continue;
            }
            let Some(Part::Typed(typed)) = self.parts.last_mut() else {
                bail!("line {at}: a block begins with what is typed, behind a prompt");
            };
            match line.strip_prefix("(exit code ").and_then(|rest| rest.strip_suffix(')')) {
                Some(code) => typed.code = code.parse().with_context(|| format!("line {at}: {line}"))?,
                None => typed.seen.push(line.to_owned()),
            }
        }
        Ok(())
    }
}

/// The machine and what is typed there, if the line begins with a prompt.
fn prompt(line: &str) -> Option<(Option<&str>, &str)> {
    let (machine, typed) = line.split_once("$ ")?;
    match machine {
        "" => Some((None, typed)),
        name if name.chars().all(|it| it.is_ascii_alphanumeric() || it == '-') => Some((Some(name), typed)),
        _ => None,
    }
}

#[test]
fn a_page_is_headings_and_what_is_typed() {
    let text = "# One\nSee `meridian status`, `this` and `meridian\nlag`.\n\n   ```console\n   $ meridian status\n    a  b\n   …\n   (exit code 2)\n\n   us-east-1$ systemctl stop meridian\n   ```\n## Two\n";
    let page = Page::read(text).unwrap();
    assert_eq!(page.named, ["meridian status", "meridian lag"]);
    assert_eq!(page.headings().collect::<Vec<_>>(), ["One", "Two"]);
    let typed: Vec<_> = page.typed().collect();
    assert_eq!((typed[0].line.as_str(), typed[0].code, typed[0].at), ("meridian status", 2, 6));
    assert_eq!(typed[0].seen, [" a  b", "…", ""]);
    assert_eq!((typed[1].machine.as_deref(), typed[1].line.as_str()), (Some("us-east-1"), "systemctl stop meridian"));
}

#[test]
fn a_block_that_nobody_plays_is_refused() {
    let refused = |text: &str| Page::read(text).unwrap_err().to_string();
    assert!(refused("```text\n$ meridian status\n```\n").contains("only `console`"));
    assert!(refused("```\nanything\n```\n").contains("only `console`"));
    assert!(refused("    $ meridian status\n").contains("in a block"));
    assert!(refused("# One\n```console\n a\n```\n").contains("begins with what is typed"));
}
