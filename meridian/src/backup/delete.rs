//! Removing a backup, unless others would be nothing without it.
//!
//! One that rests on it may be made meanwhile. Whoever makes one writes its manifest and then looks whether its base is there
//! ([`super::create::finish`]); whoever removes one takes its manifest away and then looks whether anything rests on it: one of the two
//! sees the other.

use super::BackupId;
use super::chain::resting_on;
use super::manifest::Damage;
use super::place::{Place, State};

/// Why a backup stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// There is none.
    #[error("there is no such backup")]
    Missing,
    /// Others rest on it.
    #[error("{} rest on it and can't be restored without it: delete them first", listed(.0))]
    Needed(Vec<BackupId>),
    /// What another one rests on is not known.
    #[error("{0} may rest on it, and was made by a newer program: use that one")]
    Newer(BackupId),
}

/// Why a backup can't be removed, if it can't.
///
/// # Errors
/// When the place can't be read.
pub async fn obstacle(place: &Place, id: &BackupId) -> anyhow::Result<Option<Obstacle>> {
    if !place.ids().await?.contains(id) {
        return Ok(Some(Obstacle::Missing));
    }
    need(place, id).await
}

/// Removes a backup, or says why it stays.
///
/// # Errors
/// When the place can't be read or written: what is left of it then can be removed again.
pub async fn remove(place: &Place, id: &BackupId) -> anyhow::Result<Option<Obstacle>> {
    if let Some(obstacle) = obstacle(place, id).await? {
        return Ok(Some(obstacle));
    }
    if let State::Whole(manifest) = place.state(id).await? {
        place.unfinish(id).await?;
        let need = need(place, id).await;
        if !matches!(need, Ok(None)) {
            place.finish(&manifest).await?;
            return need;
        }
    }
    place.remove(id).await?;
    Ok(None)
}

/// Who needs a backup.
async fn need(place: &Place, id: &BackupId) -> anyhow::Result<Option<Obstacle>> {
    let (mut all, mut newer) = (Vec::new(), None);
    for other in place.ids().await? {
        match place.state(&other).await? {
            State::Whole(manifest) => all.push(*manifest),
            State::Damaged(Damage::Newer(_)) if other != *id => newer = Some(other),
            // What can't be restored needs nothing.
            State::Damaged(_) | State::Unfinished => {}
        }
    }
    let needed: Vec<BackupId> = resting_on(&all, id).into_iter().cloned().collect();
    if needed.is_empty() { Ok(newer.map(Obstacle::Newer)) } else { Ok(Some(Obstacle::Needed(needed))) }
}

fn listed(ids: &[BackupId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
