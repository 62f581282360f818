//! A third region beside the two that hold the buckets: it may join them.

use std::sync::Arc;

use meridian_types::{Region, RegionId, RegionName, ShardId};

use crate::world::*;

pub const C: RegionId = RegionId(3);

pub struct Three {
    _dir: tempfile::TempDir,
    pub plane: Arc<Plane>,
    pub regions: Vec<RegionUnderTest>,
}

impl Three {
    /// A and B hold the buckets; C is a region of the cluster.
    pub async fn start() -> Three {
        let dir = tempfile::tempdir().unwrap();
        let plane = Plane::new();
        plane.change(|topology| {
            topology.regions.insert(C, Region { id: C, name: RegionName::new("ap-south").unwrap() });
            for shard in 0..SHARDS {
                topology.groups.insert((C, ShardId(shard)), vec![node_of(C)]);
            }
        });
        let mut regions = Vec::new();
        for id in [A, B, C] {
            regions.push(RegionUnderTest::start(&dir.path().join(id.0.to_string()), id, &plane).await);
        }
        for (one, other) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            regions[one].listen(&regions[other]).await;
        }
        Three { _dir: dir, plane, regions }
    }

    pub async fn carry(&self) {
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            carry_all(&self.regions[from], &self.regions[to]).await;
        }
        self.regions.iter().for_each(|it| it.clock.advance(100));
    }
}
