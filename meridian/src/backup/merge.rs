//! Rows of a shard from several links of a chain, in the order of their keys: the newest record of a key counts, and none that is
//! empty, which says that the key is gone.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use meridian_types::BackupRow;

use super::BackupId;
use super::verify::Fault;

/// What is read of one link.
pub struct Input<'a> {
    of: (BackupId, u16),
    pages: BoxStream<'a, Result<Vec<BackupRow>, Fault>>,
    front: VecDeque<BackupRow>,
    last: Option<Bytes>,
    /// Rows that have come.
    rows: u64,
}

impl<'a> Input<'a> {
    /// Of a backup and shard, in pages.
    pub fn new(of: (BackupId, u16), pages: BoxStream<'a, Result<Vec<BackupRow>, Fault>>) -> Input<'a> {
        Input { of, pages, front: VecDeque::new(), last: None, rows: 0 }
    }

    /// Sees to it that its next row is there, unless there is none any more.
    async fn fill(&mut self) -> Result<(), Fault> {
        while self.front.is_empty() {
            let Some(page) = self.pages.next().await else { return Ok(()) };
            let page = page?;
            let before = self.last.iter().chain(page.iter().map(|row| &row.key));
            if !before.zip(page.iter().map(|row| &row.key).skip(usize::from(self.last.is_none()))).all(|(a, b)| a < b) {
                let (backup, shard) = self.of.clone();
                let what = "its rows are not in the order of their keys".to_owned();
                return Err(Fault { backup, shard, part: None, what });
            }
            self.last = page.last().map(|row| row.key.clone()).or(self.last.take());
            self.rows += page.len() as u64;
            self.front = page.into();
        }
        Ok(())
    }
}

/// Several of them, oldest first.
pub struct Merge<'a> {
    inputs: Vec<Input<'a>>,
}

impl<'a> Merge<'a> {
    /// Oldest first.
    pub fn new(inputs: Vec<Input<'a>>) -> Merge<'a> {
        Merge { inputs }
    }

    /// The next key and what each input has of it; `None` at the end. After a fault it goes on behind what is damaged.
    ///
    /// # Errors
    /// [`Fault`] when a part is not what it was.
    pub async fn next_of_each(&mut self) -> Result<Option<(Bytes, Vec<Option<Bytes>>)>, Fault> {
        for input in &mut self.inputs {
            input.fill().await?;
        }
        let fronts = self.inputs.iter().filter_map(|input| input.front.front());
        let Some(key) = fronts.map(|row| &row.key).min().cloned() else { return Ok(None) };
        let take = |input: &mut Input<'_>| input.front.pop_front_if(|row| row.key == key).map(|row| row.record);
        let records = self.inputs.iter_mut().map(take).collect();
        Ok(Some((key, records)))
    }

    /// The next row that there is; `None` at the end.
    ///
    /// # Errors
    /// As [`Merge::next_of_each`].
    pub async fn next(&mut self) -> Result<Option<BackupRow>, Fault> {
        while let Some((key, records)) = self.next_of_each().await? {
            let record = records.into_iter().rev().flatten().next().unwrap_or_default();
            if !record.is_empty() {
                return Ok(Some(BackupRow { key, record }));
            }
        }
        Ok(None)
    }

    /// How many rows have come of each.
    pub fn rows(&self) -> Vec<u64> {
        self.inputs.iter().map(|input| input.rows).collect()
    }
}

/// Rows that turn what was into what is: a row that is new or another one, and an empty record for each that is gone.
pub struct Difference<'a> {
    before: Merge<'a>,
    front: Option<BackupRow>,
    begun: bool,
}

impl<'a> Difference<'a> {
    /// From what was.
    pub fn new(before: Merge<'a>) -> Difference<'a> {
        Difference { before, front: None, begun: false }
    }

    /// Takes the next row that is, in the order of their keys; `None`: there is no more. Gives what differs up to there.
    ///
    /// # Errors
    /// [`Fault`] when what was can't be read.
    pub async fn next(&mut self, row: Option<&BackupRow>) -> Result<Vec<BackupRow>, Fault> {
        if !self.begun {
            self.front = self.before.next().await?;
            self.begun = true;
        }
        let mut changed = Vec::new();
        while let Some(before) = self.front.take() {
            if row.is_some_and(|row| before.key > row.key) {
                self.front = Some(before);
                break;
            }
            let same = row.filter(|row| row.key == before.key);
            let next = self.before.next().await?;
            match same {
                Some(row) if row.record == before.record => {
                    self.front = next;
                    return Ok(changed);
                }
                Some(_) => {
                    self.front = next;
                    break;
                }
                None => changed.push(BackupRow { key: before.key, record: Bytes::new() }),
            }
            self.front = next;
        }
        changed.extend(row.cloned());
        Ok(changed)
    }
}
