//! What a shard gives to a backup is of one moment, whatever is written while it is read, and only who may answer a strong read says
//! that nothing is lacking.

use futures::StreamExt;
use meridian_region_core::Contents;
use meridian_types::*;

use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_of_the_moment_it_was_begun_whatever_is_written_while_it_is_read() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), Plane::new());
    let a = RegionUnderTest::start(dir.path(), A, &plane).await;
    for bucket in [ASYNC, ACTIVE] {
        let id = plane.bucket(bucket).id;
        for n in 0..40 {
            a.put(bucket, &format!("k{n}"), "then").await.unwrap();
        }
        a.write(bucket, Write::Delete { key: key("k0") }).await.unwrap();
        let then = digests(&a);
        let mut names = Vec::new();
        for shard in (0..SHARDS).map(ShardId) {
            let mut pieces = a.handle.back_up(id, shard).await.unwrap();
            let Some(Ok(BackupPiece::Cut(cut))) = pieces.next().await else { panic!("the cut comes first") };
            for n in 0..40 {
                a.put(bucket, &format!("k{n}"), &format!("after {shard}")).await.unwrap();
                a.put(bucket, &format!("new{n}"), "after").await.unwrap();
            }
            let (mut contents, mut rows) = (Contents::default(), 0);
            let said = loop {
                match pieces.next().await.unwrap().unwrap() {
                    BackupPiece::Rows(page) => {
                        rows += page.len() as u64;
                        for row in page {
                            let live = contents.add(&row.key, &row.record).unwrap();
                            names.extend(live.then(|| String::from_utf8(row.key.to_vec()).unwrap()));
                        }
                    }
                    BackupPiece::End { rows } => break rows,
                    BackupPiece::Cut(_) => panic!("there is one cut"),
                }
            };
            assert!(pieces.next().await.is_none());
            assert_eq!((said, contents), (rows, Contents { hash: cut.hash, keys: cut.keys, bytes: cut.bytes }));
            assert_eq!((cut.region, cut.shard, cut.epoch), (A, shard, Epoch(1)));
            // The first shard is read before anything was written again.
            if shard == ShardId(0) {
                assert_eq!(BackupCut::new(shard, A, Epoch(1), then[&(id, shard)].clone()).positions, cut.positions);
                assert!(names.iter().all(|name| name != "k0" && !name.starts_with("new")), "{names:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_primary_under_its_lease_says_that_nothing_is_lacking() {
    let (dirs, plane) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], Plane::new());
    let a = RegionUnderTest::start(dirs[0].path(), A, &plane).await;
    let b = RegionUnderTest::start(dirs[1].path(), B, &plane).await;
    let (id, shard) = (plane.bucket(ASYNC).id, ShardId(0));
    let staleness = async |region: &RegionUnderTest| match region.handle.back_up(id, shard).await?.next().await {
        Some(Ok(BackupPiece::Cut(cut))) => Ok::<_, Refusal>(cut.staleness_ms),
        other => panic!("{other:?}"),
    };
    assert_eq!(staleness(&a).await, Ok(Some(0)));
    assert_eq!(staleness(&b).await, Ok(None), "nothing has come from its primary yet");
    plane.set_lease(None);
    assert_eq!(staleness(&a).await.unwrap_err().kind, RefusalKind::Unavailable);
    plane.turn(ASYNC, |bucket| bucket.regions = vec![A]);
    assert_eq!(staleness(&b).await.unwrap_err().kind, RefusalKind::Invalid);
    let nowhere = a.handle.back_up(BucketId(99), shard).await.err().map(|why| why.kind);
    assert_eq!(nowhere, Some(RefusalKind::NotFound));
}
