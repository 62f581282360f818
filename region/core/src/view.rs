//! The state as the core sees it: a sorted map of byte keys, read through [`StateView`], changed only
//! through [`Mutations`].
//!
//! The node puts its LSM store behind `StateView` and writes a batch of `Mutations` atomically with the
//! group's mark. Within a batch the core reads through an overlay, so entries see what earlier
//! entries of the same batch did. Not here: any IO.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

/// The store could not be read. Fatal for the group: the node reports it and stops serving.
#[derive(Debug, thiserror::Error)]
#[error("the state store could not be read")]
pub struct ViewError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Takes a state key and its value, and says whether to go on.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Consistent reads of a shard's stored state.
pub trait StateView {
    /// The value of a state key.
    ///
    /// # Errors
    /// [`ViewError`] when the store can't be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError>;

    /// Calls `each` with every pair in `from..to` (`to` exclusive) in rising key order until it breaks.
    ///
    /// # Errors
    /// [`ViewError`] when the store can't be read.
    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), ViewError>;
}

/// What a batch of entries changes: state keys to their new value, or to nothing. The last change of a key counts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mutations {
    changes: BTreeMap<Bytes, Option<Bytes>>,
}

impl Mutations {
    /// No changes yet.
    pub fn new() -> Mutations {
        Mutations::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.changes.insert(Bytes::from(key), Some(value.into()));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(Bytes::from(key), None);
    }

    /// How many keys change.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes in key order: the new value, or `None` for a removal.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        self.changes.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// What becomes of a key: its new value, `Some(None)` for a removal, `None` when it does not change.
    pub fn change(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.changes.get(key).map(Option::as_ref)
    }

    /// The changes of keys in `from..to`.
    #[must_use]
    pub fn within(&self, from: &[u8], to: &[u8]) -> Mutations {
        if from >= to {
            return Mutations::new();
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let changes = self.changes.range::<[u8], _>(bounds).map(|(key, change)| (key.clone(), change.clone()));
        Mutations { changes: changes.collect() }
    }

    /// Adds later changes.
    pub fn extend(&mut self, later: Mutations) {
        if self.changes.is_empty() {
            *self = later;
        } else {
            self.changes.extend(later.changes);
        }
    }

    /// Forgets every change, to be used for the next batch.
    pub fn clear(&mut self) {
        self.changes.clear();
    }

    /// `view` with these changes on top.
    pub fn over<'a>(&'a self, view: &'a dyn StateView) -> Overlay<'a> {
        Overlay { view, mutations: self }
    }
}

impl IntoIterator for Mutations {
    type Item = (Bytes, Option<Bytes>);
    type IntoIter = std::collections::btree_map::IntoIter<Bytes, Option<Bytes>>;

    fn into_iter(self) -> Self::IntoIter {
        self.changes.into_iter()
    }
}

/// A view with changes on top that are not stored yet: reads see the changes.
#[derive(Clone, Copy)]
pub struct Overlay<'a> {
    view: &'a dyn StateView,
    mutations: &'a Mutations,
}

impl StateView for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.mutations.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.view.get(key),
        }
    }

    /// Merges the stored pairs with the changes, both in key order.
    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), ViewError> {
        if from >= to {
            return Ok(());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut changes = self.mutations.changes.range::<[u8], _>(bounds).peekable();
        if changes.peek().is_none() {
            return self.view.scan(from, to, each);
        }
        let mut stopped = false;
        self.view.scan(from, to, &mut |key, value| {
            while let Some((changed, change)) = changes.next_if(|(changed, _)| changed.as_ref() < key) {
                if let Some(new) = change
                    && each(changed, new).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match changes.next_if(|(changed, _)| changed.as_ref() == key) {
                Some((_, Some(new))) => each(key, new),
                Some((_, None)) => ControlFlow::Continue(()),
                None => each(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        if stopped {
            return Ok(());
        }
        for (key, change) in changes {
            if let Some(new) = change
                && each(key, new).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

/// A state in memory: for tests, for the simulator, and wherever a shard is small enough.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MemoryState {
    pairs: BTreeMap<Vec<u8>, Bytes>,
}

impl MemoryState {
    /// Makes changes part of the state.
    pub fn commit(&mut self, mutations: Mutations) {
        for (key, change) in mutations {
            match change {
                Some(value) => self.pairs.insert(key.into(), value),
                None => self.pairs.remove(key.as_ref()),
            };
        }
    }

    /// All pairs in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.pairs.iter().map(|(key, value)| (key.as_slice(), value))
    }
}

impl StateView for MemoryState {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.pairs.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), ViewError> {
        if from >= to {
            return Ok(());
        }
        for (key, value) in self.pairs.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if each(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(view: &dyn StateView, from: &[u8], to: &[u8], limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pairs = Vec::new();
        view.scan(from, to, &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            if pairs.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        pairs
    }

    proptest! {
        #[test]
        fn reading_over_changes_is_reading_after_them(
            stored in prop::collection::btree_map(0u8..20, any::<u8>(), 0..15),
            changes in prop::collection::vec((0u8..20, any::<Option<u8>>()), 0..15),
            from in 0u8..21, to in 0u8..21, limit in 1usize..25,
        ) {
            let mut state = MemoryState::default();
            for (key, value) in stored {
                state.pairs.insert(vec![key], Bytes::from(vec![value]));
            }
            let mut mutations = Mutations::new();
            for (key, change) in changes {
                match change {
                    Some(value) => mutations.put(vec![key], vec![value]),
                    None => mutations.delete(vec![key]),
                }
            }
            let mut after = state.clone();
            after.commit(mutations.clone());
            let overlay = mutations.over(&state);
            prop_assert_eq!(collect(&overlay, &[from], &[to], limit), collect(&after, &[from], &[to], limit));
            prop_assert_eq!(overlay.get(&[from]).unwrap(), after.get(&[from]).unwrap());
        }
    }
}
