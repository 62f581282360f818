//! What a change of a bucket is asked under: its operation, and why. Run again with the same word, the first one is followed instead.

use meridian_client::Client;
use meridian_types::{BucketChange, BucketName, Change, OperationId};

use super::change::View;
use super::follow::follow_change;
use crate::cli::exit::Failure;
use crate::output::{Format, note, show};

pub(in crate::cli) struct OnRecord {
    operation: OperationId,
    /// Whether the operator named it: only then can it have been asked for before.
    named: bool,
    reason: String,
}

impl OnRecord {
    pub(in crate::cli) fn of(op_id: Option<&str>, reason: &str) -> OnRecord {
        let operation = op_id.map_or_else(|| OperationId(rand::random()), OperationId::of);
        OnRecord { operation, named: op_id.is_some(), reason: reason.to_owned() }
    }

    /// Of one of several buckets that are changed under one word.
    pub(in crate::cli) fn of_bucket(op_id: Option<&str>, reason: &str, bucket: &BucketName) -> OnRecord {
        OnRecord::of(op_id.map(|word| format!("{word}/{bucket}")).as_deref(), reason)
    }

    /// The change, to be asked for under it.
    pub(in crate::cli) fn stamp(&self, change: BucketChange) -> BucketChange {
        BucketChange { operation: Some(self.operation), reason: self.reason.clone(), ..change }
    }

    /// What was asked for under it before.
    pub(in crate::cli) async fn known(&self, client: &Client) -> anyhow::Result<Option<Change>> {
        if !self.named {
            return Ok(None);
        }
        self.find(client).await
    }

    async fn find(&self, client: &Client) -> anyhow::Result<Option<Change>> {
        Ok(client.admin().changes().await?.into_iter().find(|it| it.operation == self.operation))
    }

    /// Says where it is on record.
    pub(in crate::cli) async fn tell(&self, client: &Client) -> anyhow::Result<()> {
        match self.find(client).await? {
            Some(Change { id, end: Some(_), .. }) => {
                note(&format!("on record as {id}: `meridian operation show {id}`"))
            }
            Some(Change { id, .. }) => note(&format!(
                "on record as {id}: `meridian operation watch {id}` follows it, `meridian operation abort {id}` gives it up"
            )),
            // Somebody else asked for the same a moment before, or the node that answers has not heard of it.
            None => {}
        }
        Ok(())
    }
}

/// Follows what was asked for under the same id before, if it is what is asked for now.
pub(in crate::cli) async fn again(
    client: &Client,
    known: &Change,
    (same, dry_run): (bool, bool),
    format: Format,
) -> anyhow::Result<()> {
    let id = known.id;
    if !same {
        return Err(Failure::invalid(format!(
            "--op-id was used for {id} before, which asks for something else (`meridian operation show {id}`): use another word"
        ))
        .into());
    }
    if dry_run {
        note(&format!("{id} was started under this id before, and stands like this; nothing was changed:"));
        return show(format, &View::of(known, &client.known_topology()));
    }
    note(&format!("{id} was started under this id before: watching it"));
    follow_change(client, id, format).await
}
