//! Who serves a region, and which release, as operators change it.

use meridian_proto::convert::{member_change_from_proto, members_change_to_proto};
use meridian_proto::v1;
use meridian_types::{MemberChange, MembersChange, NodeName, RegionId, RegionName};

use crate::admin::{Admin, change};
use crate::error::Error;

impl Admin {
    /// Changes who serves a region's shards while it serves; with `dry_run` only says what the change would be. What is returned goes on
    /// by itself: it is over once the topology has it no more.
    ///
    /// # Errors
    /// Conflict while another change is under way in the region; Invalid, Exists or NotFound, naming what can't be; Unavailable
    /// without a majority of the metadata plane.
    pub async fn change_members(
        &self,
        region: &RegionName,
        asked: &MembersChange,
        dry_run: bool,
    ) -> Result<(RegionId, MemberChange), Error> {
        let request = members_change_to_proto(region, asked, dry_run);
        let begun = change(self.reach().await?, async |mut stub| stub.change_members(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.is_outdated();
        }
        Ok(member_change_from_proto(begun)?)
    }

    /// Removes a node that holds nothing, for good: its name is not used again; with `dry_run` only checks that it could.
    ///
    /// # Errors
    /// Conflict while it holds shards; Unavailable while it may hold a lease or votes in the metadata plane, or without a majority of
    /// that; NotFound.
    pub async fn remove_node(&self, name: &NodeName, dry_run: bool) -> Result<(), Error> {
        let request = v1::RemoveNodeRequest { name: name.to_string(), dry_run };
        change(self.reach().await?, async |mut stub| stub.remove_node(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.is_outdated();
        }
        Ok(())
    }

    /// Ends an upgrade: from then on what only the new release can say may be on record, and no node goes back to the one before; with
    /// `dry_run` only checks that it could. The newest format of the metadata that is on record then.
    ///
    /// # Errors
    /// Conflict, naming a node that runs an older release or never said what; Unavailable without a majority of the metadata plane.
    pub async fn finalize_upgrade(&self, dry_run: bool) -> Result<u8, Error> {
        let request = v1::FinalizeUpgradeRequest { dry_run };
        let told = change(self.reach().await?, async |mut stub| stub.finalize_upgrade(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.is_outdated();
        }
        // What is no format this client knows is none it could say more of.
        Ok(u8::try_from(told.format).unwrap_or(u8::MAX))
    }
}
