//! What is shipped arrives, in order and once, through restarts and broken links.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_replicator_quic::SinkError;
use meridian_types::{Lane, LaneState, Lsn, RegionId, ShardId};
use tokio::sync::watch;

use crate::wan::{Path, Wan};
use crate::world::{
    ASYNC, Authority, MemoryLog, MemorySink, PATIENCE, Place, Running, SYNC, entry, eventually, node_id, topology,
};

const SHARDS: u16 = 4;

fn places(regions: u16) -> (Vec<Place>, watch::Sender<Arc<meridian_types::Topology>>) {
    let authority = Authority::new();
    let (keep, topology) = watch::channel(Arc::new(topology(regions, SHARDS)));
    let addresses = Arc::default();
    let place = |region| {
        let name = crate::world::region_name(region);
        Place {
            region,
            tls: authority.node(name.as_str(), crate::world::node_name(region).as_str()),
            log: MemoryLog::new(SHARDS),
            sink: MemorySink::new(true),
            topology: topology.clone(),
            addresses: Arc::clone(&addresses),
        }
    };
    ((1..=regions).map(place).collect(), keep)
}

/// Appends `count` entries of both buckets to every shard of region 1.
fn write(place: &Place, count: u64) {
    for shard in 0..SHARDS {
        let bucket = |at| if at % 3 == 0 { SYNC } else { ASYNC };
        place.log.append(shard, (0..count).map(|at| entry(at, bucket(at), 200)));
    }
}

fn has_all(from: &Place, to: &Place) -> bool {
    (0..SHARDS).all(|shard| {
        [(SYNC, Lane::Sync), (ASYNC, Lane::Async)]
            .into_iter()
            .all(|(bucket, lane)| to.sink.entries(1, shard, lane).len() == from.log.of_bucket(shard, bucket).len())
    })
}

fn assert_equal(from: &Place, to: &Place) {
    for shard in 0..SHARDS {
        assert_eq!(to.sink.entries(1, shard, Lane::Sync), from.log.of_bucket(shard, SYNC));
        assert_eq!(to.sink.entries(1, shard, Lane::Async), from.log.of_bucket(shard, ASYNC));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_entries_arrive_in_both_lanes_in_order_once_ord_1() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let receiving = west.start(|_| ());
    let sending = east.start(|_| ());
    for _ in 0..10 {
        write(east, 250);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eventually("everything has arrived", || has_all(east, west)).await;
    assert_equal(east, west);
    eventually("everything is acknowledged and the lag is nothing", || {
        let lags = sending.handle.lags();
        lags.len() == 2 && lags.iter().all(|lag| lag.unapplied_operations + lag.unshipped_operations == 0)
    })
    .await;
    eventually("both lanes are known to be complete", || {
        (0..SHARDS).all(|shard| Lane::ALL.into_iter().all(|lane| west.sink.complete(1, shard, lane).is_some()))
    })
    .await;
    eventually("all is well", || {
        let streams = sending.handle.lanes().iter().all(|lane| lane.state == LaneState::Streaming);
        streams && sending.handle.problems().is_empty()
    })
    .await;
    sending.stop().await;
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shipping_goes_on_where_it_was_after_either_end_restarts() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let mut receiving = west.start(|_| ());
    let mut sending = east.start(|_| ());
    for round in 0..6 {
        write(east, 300);
        tokio::time::sleep(Duration::from_millis(30)).await;
        match round {
            1 | 4 => {
                sending.stop().await;
                sending = east.start(|_| ());
            }
            2 | 3 => {
                receiving.stop().await;
                write(east, 100);
                receiving = west.start(|_| ());
            }
            _ => {}
        }
    }
    eventually("everything has arrived", || has_all(east, west)).await;
    assert_equal(east, west);
    sending.stop().await;
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_write_over_an_idle_link_costs_one_round_trip() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let receiving = west.start(|_| ());
    let path = Path { one_way: Duration::from_millis(20), rate: 1e9, queue: 1e9, loss: 0.0 };
    let wan = Wan::to(receiving.handle.local_address(), path);
    east.addresses.lock().unwrap().insert(node_id(2), wan.address);
    let sending = east.start(|_| ());
    eventually("the lanes stream", || {
        let lanes = sending.handle.lanes();
        !lanes.is_empty() && lanes.iter().all(|lane| lane.state == LaneState::Streaming)
    })
    .await;
    let (began, mut fastest) = (Instant::now(), Duration::MAX);
    for at in 0u64.. {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let started = Instant::now();
        east.log.append(0, [entry(at, SYNC, 200)]);
        while east.log.acked.lock().unwrap().get(&(ShardId(0), Lane::Sync, RegionId(2))) != Some(&Lsn(at + 1)) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        fastest = fastest.min(started.elapsed());
        // The sink takes 1 ms and a little for the timer; anything that waited would show each time.
        if fastest < Duration::from_millis(48) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{fastest:?} for a round trip of 40 ms");
    }
    sending.stop().await;
    receiving.stop().await;
}

/// For how long five rounds of writes are on their way, one after the other.
async fn five_rounds(from: &Place, to: &Place) -> Duration {
    let started = Instant::now();
    for _ in 0..5 {
        write(from, 200);
        eventually("the living region has it", || has_all(from, to)).await;
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blackholed_region_delays_no_other_iso_1() {
    let (places, _keep) = places(3);
    let (east, west, south) = (&places[0], &places[1], &places[2]);
    let to_west = west.start(|_| ());
    let to_south = south.start(|_| ());
    let path = Path { one_way: Duration::from_millis(1), rate: 1e9, queue: 1e9, loss: 0.0 };
    let hole = Wan::to(to_south.handle.local_address(), path);
    east.addresses.lock().unwrap().insert(node_id(3), hole.address);
    let sending = east.start(|options| options.transport.window_bytes = 1 << 20);
    write(east, 100);
    eventually("both have it", || has_all(east, west) && has_all(east, south)).await;

    let undisturbed = five_rounds(east, west).await;
    eventually("the other has it too", || has_all(east, south)).await;
    hole.severed.store(true, std::sync::atomic::Ordering::Relaxed);
    let took = five_rounds(east, west).await;
    assert!(took < Duration::from_secs(3) + 4 * undisturbed, "took {took:?}, undisturbed {undisturbed:?}");
    eventually("the dead one is named", || {
        let lanes = sending.handle.lanes();
        lanes.iter().any(|lane| lane.target == RegionId(3) && matches!(lane.state, LaneState::Connecting { .. }))
    })
    .await;
    let lag = sending.handle.lags().into_iter().find(|lag| lag.target == RegionId(3) && lag.bucket == ASYNC).unwrap();
    assert!(lag.unshipped_operations + lag.unapplied_operations > 0 && lag.lag_ms > 0, "{lag:?}");

    hole.severed.store(false, std::sync::atomic::Ordering::Relaxed);
    eventually("it catches up once it is back", || has_all(east, south)).await;
    assert_equal(east, south);
    for running in [sending, to_west, to_south] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lossy_path_loses_nothing() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let receiving = west.start(|_| ());
    let path = Path { one_way: Duration::from_millis(10), rate: 50e6, queue: 1e6, loss: 0.03 };
    let wan = Wan::to(receiving.handle.local_address(), path);
    east.addresses.lock().unwrap().insert(node_id(2), wan.address);
    let sending = east.start(|_| ());
    for _ in 0..5 {
        write(east, 300);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("everything has arrived", || has_all(east, west)).await;
    assert_equal(east, west);
    let count = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    assert!(count(&wan.dropped) > 0 && count(&wan.forwarded) > 0, "the path was really lossy");
    sending.stop().await;
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_replica_stops_its_lane_and_is_reported() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let receiving = west.start(|_| ());
    let sending = east.start(|_| ());
    *west.sink.failure.lock().unwrap() = Some(SinkError::Diverged { detail: "bucket lazy".to_owned() });
    write(east, 10);
    eventually("the lanes are stopped", || {
        let lanes = sending.handle.lanes();
        !lanes.is_empty() && lanes.iter().all(|lane| matches!(lane.state, LaneState::Diverged { .. }))
    })
    .await;
    assert!(sending.handle.problems().iter().any(|problem| problem.contains("bucket lazy")));
    sending.stop().await;
    receiving.stop().await;
}

/// A leader that was deposed and does not know has less of the log than its followers shipped since: it concludes that the target follows
/// another log. When it leads anew that was wrong, even where nobody saw that it did not lead in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_deposed_leader_concluded_ends_with_its_leadership_live() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let receiving = west.start(|_| ());
    let sending = east.start(|_| ());
    write(east, 10);
    eventually("the entries arrive", || has_all(east, west)).await;
    east.log.lead_anew(Lsn(3));
    eventually("the lanes are stopped", || {
        let lanes = sending.handle.lanes();
        !lanes.is_empty() && lanes.iter().all(|lane| matches!(lane.state, LaneState::Diverged { .. }))
    })
    .await;
    east.log.lead_anew(Lsn(10));
    write(east, 10);
    eventually("the entries arrive", || has_all(east, west)).await;
    assert_equal(east, west);
    sending.stop().await;
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_was_kept_out_goes_on_when_a_repair_ends_and_not_only_after_its_rest() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let receiving = west.start(|_| ());
    let sending = east.start(|_| ());
    let began = Instant::now();
    loop {
        let took = mended_after(east, west, &sending).await;
        if took < Duration::from_secs(3) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it took {took:?}");
    }
    sending.stop().await;
    receiving.stop().await;
}

/// How long the entries take that were kept out, once a repair has ended.
async fn mended_after(east: &Place, west: &Place, sending: &Running) -> Duration {
    *west.sink.failure.lock().unwrap() = Some(SinkError::Fenced);
    write(east, 10);
    eventually("the lanes are stopped", || {
        let lanes = sending.handle.lanes();
        !lanes.is_empty() && lanes.iter().all(|lane| lane.state == LaneState::Fenced)
    })
    .await;
    // Whatever pause the stream's end brought is over, and the rest is not.
    tokio::time::sleep(Duration::from_millis(500)).await;
    *west.sink.failure.lock().unwrap() = None;
    east.log.mended.send_modify(|count| *count += 1);
    let began = Instant::now();
    eventually("the entries arrive", || has_all(east, west)).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_clock_runs_ahead_is_stopped_until_the_clocks_agree() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    *west.sink.clock_behind_ms.lock().unwrap() = 60_000;
    let receiving = west.start(|_| ());
    let sending = east.start(|_| ());
    write(east, 10);
    eventually("the lanes are stopped", || {
        let lanes = sending.handle.lanes();
        let skewed = |state: &LaneState| matches!(state, LaneState::ClockSkew { ahead_ms } if *ahead_ms > 50_000);
        !lanes.is_empty() && lanes.iter().all(|lane| skewed(&lane.state))
    })
    .await;
    assert!(west.sink.entries(1, 0, Lane::Async).is_empty(), "nothing of it was applied");

    *west.sink.clock_behind_ms.lock().unwrap() = 0;
    eventually("the entries arrive", || has_all(east, west)).await;
    sending.stop().await;
    receiving.stop().await;
}

/// What carries nothing is heard of all the same, and what is not heard of says for how long.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_lane_tells_how_long_ago_its_target_was_heard() {
    let (places, _keep) = places(2);
    let (east, west) = (&places[0], &places[1]);
    let to_east = east.start(|options| options.transport.idle_timeout_ms = 10_000);
    let path = Path { one_way: Duration::from_millis(1), rate: 1e9, queue: 1e9, loss: 0.0 };
    let wan = Wan::to(to_east.handle.local_address(), path);
    west.addresses.lock().unwrap().insert(node_id(1), wan.address);
    // Nothing is written in the west: nobody probes its lanes, and nothing travels in them.
    let sending = west.start(|options| options.transport.idle_timeout_ms = 10_000);
    let heard = || sending.handle.lanes().into_iter().map(|lane| lane.heard_ms).collect::<Vec<_>>();
    let all = |within: &dyn Fn(u64) -> bool| {
        let heard = heard();
        heard.len() == usize::from(SHARDS) * 2 && heard.iter().all(|ms| ms.is_some_and(within))
    };
    let since = Instant::now();
    eventually("every lane has been idle for a while, and was heard since", || {
        since.elapsed() > Duration::from_secs(6) && all(&|ms| ms < 5000)
    })
    .await;
    wan.severed.store(true, std::sync::atomic::Ordering::Relaxed);
    eventually("no lane hears anything any more", || all(&|ms| ms > 5000)).await;
    eventually("a lane without a connection tells nothing", || {
        let heard = heard();
        !heard.is_empty() && heard.iter().all(Option::is_none)
    })
    .await;
    sending.stop().await;
    to_east.stop().await;
}
