//! The emulated WAN does to packets what it is told: distance, cuts, loss. Skipped with a printed reason where network
//! namespaces or TUN devices are missing.
#![cfg(target_os = "linux")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use chaos::wan::ground::{Ground, address};
use chaos::wan::namespaces;

const ECHO_PORT: u16 = 7;

/// Two regions with an echo in the second; `None` where there can be none.
fn two_regions() -> anyhow::Result<Option<Ground>> {
    if let Some(reason) = namespaces::missing() {
        eprintln!("skipped: {reason}");
        return Ok(None);
    }
    let ground = Ground::create(&["us-east", "eu-west"], 7)?;
    let echo = ground.region(1).within(|| Ok(UdpSocket::bind((address(1), ECHO_PORT))?))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        // Ends with the test's process.
        while let Ok((bytes, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..bytes], from);
        }
    });
    Ok(Some(ground))
}

fn asker(ground: &Ground, patience: Duration) -> anyhow::Result<UdpSocket> {
    let socket = ground.region(0).within(|| Ok(UdpSocket::bind((address(0), 0))?))?;
    socket.connect((address(1), ECHO_PORT))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

fn round_trip(socket: &UdpSocket) -> Option<Duration> {
    let began = Instant::now();
    socket.send(b"are you there?").ok()?;
    socket.recv(&mut [0; 64]).ok()?;
    Some(began.elapsed())
}

#[test]
fn a_round_trip_takes_as_long_as_asked_and_changes_live() -> anyhow::Result<()> {
    let Some(ground) = two_regions()? else { return Ok(()) };
    let socket = asker(&ground, Duration::from_secs(5))?;
    for asked in [30, 5].map(Duration::from_millis) {
        ground.set_round_trip(0, 1, asked);
        let mut seen: Vec<Duration> = (0..30).filter_map(|_| round_trip(&socket)).collect();
        seen.sort();
        anyhow::ensure!(seen.len() == 30, "{} of 30 answered", seen.len());
        anyhow::ensure!(seen[0] >= asked, "asked {asked:?}, seen {:?}: earlier than light", seen[0]);
        // A busy machine may run any one late; the fastest shows what the forwarder adds.
        anyhow::ensure!(seen[0] < asked + Duration::from_millis(2), "asked {asked:?}, seen {:?} at best", seen[0]);
    }
    Ok(())
}

#[test]
fn a_cut_in_one_direction_swallows_requests_or_answers_and_mends() -> anyhow::Result<()> {
    let Some(ground) = two_regions()? else { return Ok(()) };
    let socket = asker(&ground, Duration::from_millis(300))?;
    let links = ground.links();
    anyhow::ensure!(round_trip(&socket).is_some(), "an answer over a whole link");
    for (from, to) in [(0, 1), (1, 0)] {
        links.update(from, to, |conditions| conditions.cut = true);
        anyhow::ensure!(round_trip(&socket).is_none(), "no answer while {from} to {to} is cut");
        anyhow::ensure!(links.counters(from, to).cut >= 1, "the cut swallowed it");
        links.update(from, to, |conditions| conditions.cut = false);
    }
    anyhow::ensure!(round_trip(&socket).is_some(), "an answer after mending");
    Ok(())
}

#[test]
fn loss_loses_about_what_is_asked() -> anyhow::Result<()> {
    let Some(ground) = two_regions()? else { return Ok(()) };
    let socket = asker(&ground, Duration::from_millis(200))?;
    ground.links().update(0, 1, |conditions| conditions.loss = 0.5);
    (0..400).try_for_each(|_| socket.send(b"x").map(|_| ()))?;
    std::thread::sleep(Duration::from_millis(200));
    let lost = ground.links().counters(0, 1).lost;
    anyhow::ensure!((140..260).contains(&lost), "{lost} of 400 lost at a half");
    Ok(())
}
