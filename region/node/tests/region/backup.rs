//! What a shard gives to a backup is of one moment, whatever is written while it is read, and only who may answer a strong read says
//! that nothing is lacking.

use futures::StreamExt;
use meridian_region_core::Contents;
use meridian_region_core::backup::replay::Replay;
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
            let mut pieces = a.handle.back_up(id, shard, BackupAsk::default()).await.unwrap();
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
                    BackupPiece::Log(_) | BackupPiece::Context(_) => panic!("nobody asked for it"),
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
    let staleness = async |region: &RegionUnderTest| match region
        .handle
        .back_up(id, shard, BackupAsk::default())
        .await?
        .next()
        .await
    {
        Some(Ok(BackupPiece::Cut(cut))) => Ok::<_, Refusal>(cut.staleness_ms),
        other => panic!("{other:?}"),
    };
    assert_eq!(staleness(&a).await, Ok(Some(0)));
    assert_eq!(staleness(&b).await, Ok(None), "nothing has come from its primary yet");
    plane.set_lease(None);
    assert_eq!(staleness(&a).await.unwrap_err().kind, RefusalKind::Unavailable);
    plane.turn(ASYNC, |bucket| bucket.regions = vec![A]);
    assert_eq!(staleness(&b).await.unwrap_err().kind, RefusalKind::Invalid);
    let nowhere = a.handle.back_up(BucketId(99), shard, BackupAsk::default()).await.err().map(|why| why.kind);
    assert_eq!(nowhere, Some(RefusalKind::NotFound));
}

/// What came of a shard: its cut, log, rows and context.
async fn pieces(region: &RegionUnderTest, id: BucketId, shard: ShardId, since: Option<&BackupCut>) -> Told {
    let since = since.map(|cut| BackupSince {
        bucket: cut.bucket,
        region: cut.region,
        epoch: cut.epoch,
        applied: cut.applied,
        evidence: cut.evidence,
        positions: cut.positions.clone(),
        hash: cut.hash,
        keys: cut.keys,
        bytes: cut.bytes,
    });
    let mut pieces = region.handle.back_up(id, shard, BackupAsk { context: true, since }).await.unwrap();
    let Some(Ok(BackupPiece::Cut(cut))) = pieces.next().await else { panic!("the cut comes first") };
    let mut told = Told { cut, log: Vec::new(), rows: Vec::new(), context: Vec::new() };
    loop {
        match pieces.next().await.unwrap().unwrap() {
            BackupPiece::Log(log) => told.log.extend(log),
            BackupPiece::Rows(rows) => told.rows.extend(rows),
            BackupPiece::Context(context) => told.context.extend(context),
            BackupPiece::End { rows } => {
                assert_eq!(rows as usize, told.log.len() + told.rows.len() + told.context.len());
                return told;
            }
            BackupPiece::Cut(_) => panic!("there is one cut"),
        }
    }
}

struct Told {
    cut: BackupCut,
    log: Vec<BackupRow>,
    rows: Vec<BackupRow>,
    context: Vec<BackupRow>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_what_changed_since_a_backup_or_the_cut_says_why_not() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), Plane::new());
    let a = RegionUnderTest::start(dir.path(), A, &plane).await;
    let id = plane.bucket(ASYNC).id;
    for n in 0..40 {
        a.put(ASYNC, &format!("k{n}"), "then").await.unwrap();
    }
    let shard = shard_of(&plane, ASYNC, "k1");
    let first = pieces(&a, id, shard, None).await;
    assert_eq!((&first.cut.span, first.log.len()), (&BackupSpan::Whole(String::new()), 0));
    assert!(!first.context.is_empty() && first.cut.evidence.is_some() && first.cut.at_ms > 0);

    let same = pieces(&a, id, shard, Some(&first.cut)).await;
    assert_eq!((same.cut.span, same.log.len(), same.rows.len()), (BackupSpan::Since, 0, 0));

    a.put(ASYNC, "k1", "now").await.unwrap();
    a.put(ACTIVE, "k1", "of another bucket").await.unwrap();
    a.write(ASYNC, Write::Delete { key: key("k1") }).await.unwrap();
    let second = pieces(&a, id, shard, Some(&first.cut)).await;
    assert_eq!((&second.cut.span, second.log.len()), (&BackupSpan::Since, 2));
    assert_eq!(second.rows, [BackupRow { key: "k1".into(), record: Default::default() }], "it is gone");
    let mut replay = Replay::new((A, shard, Some(SHARDS)), id, &first.context, &first.rows).unwrap();
    for row in &second.log {
        replay.apply(Lsn(u64::from_be_bytes(row.key.as_ref().try_into().unwrap())), &row.record).unwrap();
    }
    let BackupCut { hash, keys, bytes, .. } = second.cut;
    assert_eq!(replay.contents(), Contents { hash, keys, bytes });

    let why = async |change: &dyn Fn(&mut BackupCut)| {
        let mut since = first.cut.clone();
        change(&mut since);
        let told = pieces(&a, id, shard, Some(&since)).await;
        assert!(told.log.is_empty() && told.rows.len() as u64 >= told.cut.keys, "every row is given instead");
        match told.cut.span {
            BackupSpan::Whole(why) => why,
            BackupSpan::Since => panic!("it can't be told"),
        }
    };
    assert!(why(&|cut| cut.epoch = Epoch(2)).await.contains("epoch"));
    assert!(why(&|cut| cut.region = B).await.contains("another region"));
    assert!(why(&|cut| cut.bucket = BucketId(99)).await.contains("deleted"));
    assert!(why(&|cut| cut.evidence = Some(SetHash(1))).await.contains("another one"));
    assert!(why(&|cut| cut.evidence = None).await.contains("does not reach back"));
}
