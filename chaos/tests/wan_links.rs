//! The emulated WAN does to packets what it is told: distance, cuts, loss. Skipped with a printed reason where network
//! namespaces or TUN devices are missing.
#![cfg(target_os = "linux")]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chaos::wan::ground::{Ground, address};
use chaos::wan::namespaces;

const ECHO_PORT: u16 = 7;

/// How long what must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the forwarder may add to a round trip.
const ADDED_MAX: Duration = Duration::from_millis(2);

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

/// How long an echo took. One of an earlier packet, which came too late for whoever asked, is none of this one.
fn round_trip(socket: &UdpSocket) -> Option<Duration> {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let number = SENT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let (began, mut echo) = (Instant::now(), [0_u8; 64]);
    socket.send(&number).ok()?;
    loop {
        let bytes = socket.recv(&mut echo).ok()?;
        if echo[..bytes] == number {
            return Some(began.elapsed());
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        anyhow::ensure!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn a_round_trip_takes_as_long_as_asked_and_changes_live() -> anyhow::Result<()> {
    let Some(ground) = two_regions()? else { return Ok(()) };
    let socket = asker(&ground, Duration::from_secs(5))?;
    for asked in [30, 5].map(Duration::from_millis) {
        ground.set_round_trip(0, 1, asked);
        let mut seen: Vec<Option<Duration>> = Vec::new();
        // A busy machine may run any one late, or many; the fastest shows what the forwarder adds.
        until(&format!("a round trip of {asked:?} and no more than {ADDED_MAX:?}"), || {
            seen.extend((0..30).map(|_| round_trip(&socket)));
            seen.iter().flatten().any(|took| *took < asked + ADDED_MAX)
        })?;
        let answered = seen.iter().flatten().count();
        anyhow::ensure!(answered == seen.len(), "{answered} of {} answered", seen.len());
        let early = seen.iter().flatten().find(|took| **took < asked);
        anyhow::ensure!(early.is_none(), "asked {asked:?}, seen {early:?}: earlier than light");
    }
    Ok(())
}

#[test]
fn a_cut_in_one_direction_swallows_requests_or_answers_and_mends() -> anyhow::Result<()> {
    let Some(ground) = two_regions()? else { return Ok(()) };
    let socket = asker(&ground, Duration::from_millis(300))?;
    let links = ground.links();
    for (from, to) in [(0, 1), (1, 0)] {
        until("an answer over a whole link", || round_trip(&socket).is_some())?;
        let before = links.counters(from, to).cut;
        links.update(from, to, |conditions| conditions.cut = true);
        anyhow::ensure!(round_trip(&socket).is_none(), "no answer while {from} to {to} is cut");
        until("the cut swallows it", || links.counters(from, to).cut > before)?;
        links.update(from, to, |conditions| conditions.cut = false);
    }
    until("an answer after mending", || round_trip(&socket).is_some())
}

#[test]
fn loss_loses_about_what_is_asked() -> anyhow::Result<()> {
    const SENT: u64 = 400;
    let Some(ground) = two_regions()? else { return Ok(()) };
    let socket = asker(&ground, Duration::from_millis(200))?;
    ground.links().update(0, 1, |conditions| conditions.loss = 0.5);
    (0..SENT).try_for_each(|_| socket.send(b"x").map(|_| ()))?;
    let counters = || ground.links().counters(0, 1);
    until("every packet has met its fate", || counters().lost + counters().forwarded >= SENT)?;
    let lost = counters().lost;
    anyhow::ensure!((140..260).contains(&lost), "{lost} of {SENT} lost at a half");
    Ok(())
}
