//! The side that is made equal: what to ask next, and what to put into the own log.
//!
//! ```text
//! Begin ─applied─► Open ─► compare ─┬─► Hashes ─► lacks rows? ─► Rows ─applied─► … ─► next hashes ─┐
//!                    │        ▲     │                                     ▲                      │
//!                    ▼        │     │ nothing differs                     └──────────────────────┤
//!                  Advance … ─┘     └───────────────────► End ◄──────────────────────────────────┘
//!          what waits here already                         │ they don't add up: begin again
//!                                                          ▼
//!                                                       Unpark … opened
//! ```
//!
//! A crash anywhere ends it; a new one begins with a new view of the source, and what was moved already is equal.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::{BucketId, Lsn, Positions, RegionId, RepairGoal, RepairMode, RepairStep, Row, ShardId};

use super::message::{Ask, Hashes, Pinned, Told};
use super::source::{digests, is_set, meta_of};
use super::survey::Claim;
use super::{PARTITIONS_MAX, ROWS_BYTES, SURPLUS_MAX, rows};
use crate::error::ReadError;
use crate::keys;
use crate::result::ControlResult;
use crate::view::StateView;

/// What is repaired, and after whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The shard.
    pub shard: ShardId,
    /// The bucket.
    pub bucket: BucketId,
    /// The region that is right.
    pub source: RegionId,
    /// What makes it right.
    pub claim: Claim,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Nothing yet.
    Start,
    /// The step of [`Action::Propose`] was applied at that place of the own log.
    Applied(Lsn, ControlResult),
    /// The answer to [`Action::Ask`].
    Told(Told),
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the source; [`Input::Told`] answers.
    Ask(Ask),
    /// Put a step into the own log; [`Input::Applied`] answers.
    Propose(RepairStep),
    /// It is done: the bucket is open again.
    Done,
    /// Begin again, later, with a new [`Target`].
    Again {
        /// Why, for a person.
        reason: String,
    },
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Rows in the partitions that differ, about.
    pub rows_total: u64,
    /// Of these, compared.
    pub rows_compared: u64,
    /// Rows that were moved.
    pub rows_moved: u64,
}

/// One attempt to make a bucket in a shard equal to the source's.
#[derive(Debug)]
pub struct Target {
    terms: Terms,
    begun: Lsn,
    state: State,
    progress: Progress,
}

#[derive(Debug)]
enum State {
    Fresh,
    Begun,
    Opening,
    Advancing(Box<(u64, Pinned)>),
    Comparing(Box<Compared>),
    Ending,
    Opened,
}

/// A session with the source.
#[derive(Debug)]
struct Compared {
    session: u64,
    goal: RepairGoal,
    mode: RepairMode,
    partitions: u32,
    salt: u64,
    differing: Bytes,
    /// What this replica has; it doesn't change while the bucket is closed.
    own: Positions,
    /// Rows up to here are equal.
    done: Bytes,
    window: Window,
}

/// The rows at hand.
#[derive(Debug, Default)]
struct Window {
    /// Where it ends; with the last row without.
    up_to: Option<Bytes>,
    /// Hashes of rows to ask for.
    lacking: Vec<u64>,
    /// Keys of rows that go, unless the source has others under them.
    surplus: BTreeSet<Bytes>,
    /// Whether there were more of these than are handled at a time (RES-1): the same rows are looked at again.
    crowded: bool,
    /// Up to where the lacking rows have come.
    received: Bytes,
    /// Whether all of them have.
    complete: bool,
}

impl Target {
    /// An attempt that has not begun.
    pub fn new(terms: Terms) -> Target {
        Target { terms, begun: Lsn(0), state: State::Fresh, progress: Progress::default() }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The session it holds at the source.
    pub fn session(&self) -> Option<u64> {
        match &self.state {
            State::Comparing(compared) => Some(compared.session),
            State::Advancing(opened) => Some(opened.0),
            State::Fresh | State::Begun | State::Opening | State::Ending | State::Opened => None,
        }
    }

    /// Takes what happened and says what to do. Reads rows of `view`, the state of this replica.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn step(&mut self, view: &dyn StateView, input: Input) -> Result<Action, ReadError> {
        match (std::mem::replace(&mut self.state, State::Fresh), input) {
            (State::Fresh, Input::Start) => {
                self.state = State::Begun;
                Ok(Action::Propose(RepairStep::Begin { source: self.terms.source }))
            }
            (_, Input::Applied(_, ControlResult { refused: Some(refusal), .. })) => Ok(again(refusal.message)),
            (State::Begun, Input::Applied(lsn, _)) => {
                self.begun = lsn;
                self.state = State::Opening;
                Ok(Action::Ask(Ask::Open { shard: self.terms.shard, bucket: self.terms.bucket }))
            }
            (State::Opening, Input::Told(Told::Opened { session, pinned })) => self.opened(view, session, pinned),
            (State::Advancing(opened), Input::Applied(_, ControlResult { more: true, .. })) => Ok(self.advance(opened)),
            (State::Advancing(opened), Input::Applied(..)) => self.begin_comparing(view, opened.0, opened.1),
            (State::Comparing(compared), Input::Told(Told::Hashes { hashes, up_to })) => {
                self.compare(view, compared, &hashes, up_to)
            }
            (State::Comparing(compared), Input::Told(Told::Rows { rows, up_to })) => {
                Ok(self.received(compared, rows, up_to))
            }
            (State::Comparing(compared), Input::Applied(..)) => Ok(self.go_on(compared)),
            (State::Ending | State::Opened, Input::Applied(_, ControlResult { more, .. })) => {
                self.state = State::Opened;
                Ok(if more { Action::Propose(RepairStep::Unpark) } else { Action::Done })
            }
            _ => Ok(again("the source answered what it was not asked".to_owned())),
        }
    }

    /// What waits here and is part of what the source has need not be moved.
    fn opened(&mut self, view: &dyn StateView, session: u64, pinned: Pinned) -> Result<Action, ReadError> {
        let (from, to) = keys::parked_of_bucket(self.terms.shard, self.terms.bucket);
        let mut waits = false;
        view.scan(&from, &to, &mut |_, _| {
            waits = true;
            ControlFlow::Break(())
        })?;
        if waits && self.terms.claim == Claim::Primary {
            return Ok(self.advance(Box::new((session, pinned))));
        }
        self.begin_comparing(view, session, pinned)
    }

    fn advance(&mut self, opened: Box<(u64, Pinned)>) -> Action {
        let up_to = opened.1.goal.digest.positions.clone();
        self.state = State::Advancing(opened);
        Action::Propose(RepairStep::Advance { begun: self.begun, up_to })
    }

    fn begin_comparing(&mut self, view: &dyn StateView, session: u64, pinned: Pinned) -> Result<Action, ReadError> {
        let Terms { shard, bucket, claim, .. } = self.terms;
        let meta = meta_of(view, shard, bucket)?;
        let epoch = meta.epoch();
        let own = meta.digest.positions;
        let mode = match claim {
            _ if pinned.goal.digest.positions.covers(&own) => RepairMode::Replace,
            Claim::Primary => RepairMode::Replace,
            Claim::Replica if pinned.goal.epoch > epoch => RepairMode::Replace,
            Claim::ActiveActive => RepairMode::Join,
            Claim::Replica => return Ok(again("the source lacks something that this replica has".to_owned())),
        };
        let partitions = u32::try_from(pinned.digests.count()).unwrap_or(u32::MAX);
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Ok(again("the source's digests are out of bounds".to_owned()));
        }
        let (ours, _) = digests(view, (shard, bucket), partitions)?;
        let mut differing = vec![0; (partitions as usize).div_ceil(8)];
        let mut count: u64 = 0;
        for (at, _) in pinned.digests.iter().zip(ours).enumerate().filter(|(_, (theirs, ours))| theirs != ours) {
            differing[at / 8] |= 1 << (at % 8);
            count += 1;
        }
        self.progress.rows_total = pinned.rows * count / u64::from(partitions);
        let (goal, salt, differing) = (pinned.goal, pinned.salt, Bytes::from(differing));
        let (done, window) = (Bytes::new(), Window::default());
        let compared = Compared { session, goal, mode, partitions, salt, differing, own, done, window };
        Ok(if count == 0 { self.end(compared) } else { self.ask_hashes(Box::new(compared)) })
    }

    fn ask_hashes(&mut self, compared: Box<Compared>) -> Action {
        let Compared { session, done, differing, .. } = &*compared;
        let ask = Ask::Hashes { session: *session, after: done.clone(), differing: differing.clone() };
        self.state = State::Comparing(compared);
        Action::Ask(ask)
    }

    fn ask_rows(&mut self, compared: Box<Compared>) -> Action {
        let Window { up_to, lacking, received, .. } = &compared.window;
        let hashes = Hashes::from_iter(lacking.iter().copied());
        let ask = Ask::Rows { session: compared.session, after: received.clone(), up_to: up_to.clone(), hashes };
        self.state = State::Comparing(compared);
        Action::Ask(ask)
    }

    /// Compares the source's hashes with the rows here between the same two keys.
    fn compare(
        &mut self,
        view: &dyn StateView,
        mut compared: Box<Compared>,
        hashes: &Hashes,
        up_to: Option<Bytes>,
    ) -> Result<Action, ReadError> {
        if up_to.as_ref().is_some_and(|up_to| *up_to <= compared.done) {
            return Ok(again("the source does not move on".to_owned()));
        }
        let mut theirs: BTreeMap<u64, bool> = hashes.iter().map(|hash| (hash, false)).collect();
        let (mut surplus, mut bytes, mut crowded) = (BTreeSet::new(), 0, false);
        let place = (self.terms.shard, self.terms.bucket);
        rows::scan(view, place, &compared.done, up_to.as_deref(), &mut |key, value| {
            if is_set(&compared.differing, rows::partition(key, compared.partitions)) {
                match theirs.get_mut(&rows::hash(key, value, compared.salt)) {
                    Some(here) => *here = true,
                    None if !compared.goes(key) => {}
                    None if surplus.len() == SURPLUS_MAX || bytes > ROWS_BYTES => crowded = true,
                    None => {
                        bytes += key.len();
                        surplus.insert(Bytes::copy_from_slice(key));
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        self.progress.rows_compared += hashes.count() as u64;
        let lacking: Vec<u64> = theirs.into_iter().filter(|(_, here)| !here).map(|(hash, _)| hash).collect();
        let complete = lacking.is_empty();
        compared.window = Window { up_to, lacking, surplus, crowded, received: compared.done.clone(), complete };
        Ok(self.go_on(compared))
    }

    fn received(&mut self, mut compared: Box<Compared>, rows: Vec<Row>, up_to: Option<Bytes>) -> Action {
        let window = &mut compared.window;
        if up_to.as_ref().is_some_and(|up_to| *up_to <= window.received) {
            return again("the source does not move on".to_owned());
        }
        match up_to {
            Some(up_to) => window.received = up_to,
            None => window.complete = true,
        }
        let mut found = BTreeSet::new();
        for row in &rows {
            window.surplus.remove(&row.key);
            found.insert(rows::hash(&row.key, &row.value, compared.salt));
        }
        window.lacking.retain(|hash| !found.contains(hash));
        let puts: Vec<Row> = rows.into_iter().filter(|row| compared.counts(&row.key)).collect();
        if puts.is_empty() {
            return self.go_on(compared);
        }
        self.progress.rows_moved += puts.len() as u64;
        self.propose(compared, puts, Vec::new())
    }

    /// The rows at hand are there: what only the target has goes, then the next ones are looked at.
    fn go_on(&mut self, mut compared: Box<Compared>) -> Action {
        if !compared.window.complete {
            return self.ask_rows(compared);
        }
        let surplus = std::mem::take(&mut compared.window.surplus);
        let deletes: Vec<Bytes> = surplus.into_iter().collect();
        if !deletes.is_empty() {
            self.progress.rows_moved += deletes.len() as u64;
            return self.propose(compared, Vec::new(), deletes);
        }
        let Window { up_to, crowded, .. } = std::mem::take(&mut compared.window);
        match up_to {
            _ if crowded => self.ask_hashes(compared),
            Some(up_to) => {
                compared.done = up_to;
                self.ask_hashes(compared)
            }
            None => self.end(*compared),
        }
    }

    fn propose(&mut self, compared: Box<Compared>, puts: Vec<Row>, deletes: Vec<Bytes>) -> Action {
        let step = RepairStep::Rows { begun: self.begun, mode: compared.mode, puts, deletes };
        self.state = State::Comparing(compared);
        Action::Propose(step)
    }

    fn end(&mut self, compared: Compared) -> Action {
        self.state = State::Ending;
        Action::Propose(RepairStep::End { begun: self.begun, mode: compared.mode, goal: compared.goal })
    }
}

impl Compared {
    /// Whether a row of the source counts here. A record always does; kept results are those of their origin's history,
    /// so the replica that has more of it has the right ones.
    fn counts(&self, key: &[u8]) -> bool {
        self.mode == RepairMode::Replace || origin(key).is_none_or(|origin| self.is_ahead(origin))
    }

    /// Whether a row goes that the source does not have.
    fn goes(&self, key: &[u8]) -> bool {
        self.mode == RepairMode::Replace || origin(key).is_some_and(|origin| self.is_ahead(origin))
    }

    fn is_ahead(&self, origin: RegionId) -> bool {
        self.goal.digest.positions.of(origin) > self.own.of(origin)
    }
}

/// The origin of a kept result; `None` for a record.
fn origin(row_key: &[u8]) -> Option<RegionId> {
    match row_key {
        [keys::RESULT, high, low, ..] => Some(RegionId(u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

fn again(reason: String) -> Action {
    Action::Again { reason }
}
