//! Heartbeats of a leader, at their own pace.
//!
//! openraft sends them at the interval for which it waits for their answers. Where answers come later than that, because the processors are
//! taken or a link is long, its own view of the quorum runs out, and it takes no more writes, while its followers hear it well and elect
//! nobody: for as long as that lasts. So answers have longer than there is between two heartbeats.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::group::Inner;

/// Sends them whenever this node leads, as long as the group is there.
pub(crate) async fn beat(group: Weak<Inner>, every: Duration) {
    let Some((node, mut leadership)) = group.upgrade().map(|group| (group.node, group.leadership.subscribe())) else {
        return;
    };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while leadership.wait_for(|now| now.leader == Some(node)).await.is_ok() {
        ticks.tick().await;
        let Some(group) = group.upgrade() else { return };
        // Alone there is nobody to hear it.
        if !group.solo.load(Ordering::Acquire) && group.raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}
