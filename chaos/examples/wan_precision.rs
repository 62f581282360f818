//! What the forwarder of the emulated WAN adds, and how much goes through it:
//! `cargo run --release -p chaos --example wan_precision` (Linux, root).
//!
//! Figures in docs/testing.md come from here. "Beyond" is the round trip seen less the one asked for, of UDP packets
//! between two namespaces, so it holds everything: the sockets, the kernel, four device crossings, the forwarder.
#![allow(clippy::print_stdout)]

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::run()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: the emulated WAN needs Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use chaos::wan::ground::{Ground, address};
    use chaos::wan::namespaces;

    const PINGS: usize = 200;
    const TRANSFER: Duration = Duration::from_secs(5);

    pub(crate) fn run() -> anyhow::Result<()> {
        if let Some(reason) = namespaces::missing() {
            println!("skipped: {reason}");
            return Ok(());
        }
        let ground = Ground::create(&["us-east", "eu-west"], 7)?;
        for asked in [0, 1, 30, 80, 120].map(Duration::from_millis) {
            ground.set_round_trip(0, 1, asked);
            let mut beyond = pings(&ground, asked)?;
            beyond.sort();
            let at = |share: f64| beyond[((beyond.len() - 1) as f64 * share) as usize];
            println!(
                "round trip asked {:>3} ms: beyond it p50 {:>4} µs, p90 {:>4} µs, p99 {:>5} µs",
                asked.as_millis(),
                at(0.5).as_micros(),
                at(0.9).as_micros(),
                at(0.99).as_micros()
            );
        }
        for (round_trip, limit) in [(0, None), (30, None), (30, Some(400_000_000)), (30, Some(1_000_000))] {
            ground.set_round_trip(0, 1, Duration::from_millis(round_trip));
            ground.links().update_both(0, 1, |conditions| conditions.bits_per_second = limit);
            let limit = limit.map_or("no limit".to_owned(), |bits| format!("{} Mbit/s", bits / 1_000_000));
            println!("one TCP connection, {round_trip} ms, {limit}: {:.0} Mbit/s received", transfer(&ground)?);
        }
        Ok(())
    }

    fn pings(ground: &Ground, asked: Duration) -> anyhow::Result<Vec<Duration>> {
        let echo = ground.region(1).within(|| Ok(UdpSocket::bind((address(1), 0))?))?;
        let at = echo.local_addr()?;
        let socket = ground.region(0).within(|| Ok(UdpSocket::bind((address(0), 0))?))?;
        socket.connect(at)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 2048];
                for _ in 0..PINGS {
                    let Ok((bytes, from)) = echo.recv_from(&mut buffer) else { return };
                    let _ = echo.send_to(&buffer[..bytes], from);
                }
            });
            (0..PINGS)
                .map(|_| {
                    let began = Instant::now();
                    socket.send(b"ping")?;
                    socket.recv(&mut [0; 64])?;
                    Ok(began.elapsed().saturating_sub(asked))
                })
                .collect()
        })
    }

    /// Megabits per second that arrive in the second half of the transfer, when the connection has its speed.
    fn transfer(ground: &Ground) -> anyhow::Result<f64> {
        let listener = ground.region(1).within(|| Ok(TcpListener::bind((address(1), 0))?))?;
        let at = listener.local_addr()?;
        let mut sender = ground.region(0).within(|| Ok(TcpStream::connect(at)?))?;
        let (mut receiver, _) = listener.accept()?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let block = vec![0; 64 << 10];
                // Ends when the receiver hangs up.
                while sender.write_all(&block).is_ok() {}
            });
            let mut buffer = vec![0; 256 << 10];
            let (began, mut bytes) = (Instant::now(), 0);
            while began.elapsed() < TRANSFER {
                let read = receiver.read(&mut buffer)?;
                if began.elapsed() > TRANSFER / 2 {
                    bytes += read;
                }
            }
            drop(receiver);
            Ok(bytes as f64 * 8.0 / (TRANSFER / 2).as_secs_f64() / 1e6)
        })
    }
}
