//! `meridian bench`: load on a bucket, and what it came to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_client::{Client, ReadLevel};
use meridian_types::{BucketName, BucketSpec, Policy, RefusalKind, WriteAck};
use serde::Serialize;

use super::bucket::settings::policy_of;
use super::connect::{Connection, Target};
use super::exit::Failure;
use super::words::{Level, parse_ack, parse_duration, parse_level, parse_size};
use crate::bench::{CpuClock, Distribution, Figures, Latency, Load, Report, fdatasync, round_trip, run as run_load};
use crate::output::{Format, Progress, Show, Table, count, duration, note, show};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bucket [default: bench-<policy>, created where it is missing].
    #[arg(long)]
    bucket: Option<BucketName>,
    /// The policy of a bucket that is created: async, sync, active-active.
    #[arg(long, default_value = "async")]
    policy: String,
    /// For sync: one, majority, all, or a number.
    #[arg(long)]
    acks: Option<String>,
    /// Requests in flight: each client has one.
    #[arg(long, short = 'c', default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Connections that the clients share.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// How long to measure.
    #[arg(long, short = 'd', value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// How long to load before that.
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    warm_up: Duration,
    /// Bytes per value: 256, 4k, 1m.
    #[arg(long, short = 's', value_parser = parse_size, default_value = "256")]
    value_size: usize,
    /// How many keys.
    #[arg(long, short = 'k', default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Which of them: uniform, zipf, zipf:0.99.
    #[arg(long, default_value = "uniform")]
    distribution: Distribution,
    /// Share of reads, 0 to 1.
    #[arg(long, short = 'r', default_value_t = 0.0)]
    read_share: f64,
    /// How fresh reads are: strong, session, bounded:500ms, eventual.
    #[arg(long, value_parser = parse_level, default_value = "eventual")]
    read: Level,
    /// How durable writes are: policy, local, majority, all, or a number of regions.
    #[arg(long, value_parser = parse_ack, default_value = "policy")]
    ack: WriteAck,
    /// Open loop: this many requests per second, sent when due whatever was answered [default: closed loop].
    #[arg(long)]
    rate: Option<f64>,
    /// Give up on a request after this long.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    deadline: Duration,
    /// Seeds keys and values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A server's process on this machine, to measure its CPU (repeatable) [default: those of the profile].
    #[arg(long = "server-pid")]
    server_pids: Vec<u32>,
    /// Where one fdatasync is measured: on the servers' disk.
    #[arg(long)]
    sync_dir: Option<PathBuf>,
}

pub(super) async fn run(args: Args, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let policy = policy_of(&args.policy, args.acks.as_deref())?;
    let target = connection.target()?;
    let load = load(&args, &policy)?;
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(target.connect().await?);
    }
    ensure_bucket(&clients[0], &load.bucket, policy).await?;
    let beside = Beside::measure(&args, &target, &clients[0], &load).await?;
    let servers = Servers::watch(&args, &target);
    let own = CpuClock::start(std::process::id());
    let progress =
        Progress::of_steps(&format!("{} clients on {}", load.clients, load.bucket), load_steps(&load), "answers");
    let ticking = progress.clone();
    let report = run_load(&load, &clients, move || ticking.advance(1)).await?;
    progress.abandon();
    let own = own.and_then(|clock| clock.used());
    let result = Outcome::of(&load, &report, beside, own, servers.used());
    show(format, &result)?;
    if report.operations() == 0 {
        let why = report.first_error.unwrap_or_else(|| "nothing was answered in time".to_owned());
        return Err(Failure::failed(format!("not one request succeeded: {why}")).into());
    }
    Ok(())
}

/// How many answers there will be: known for an open loop, unknown for a closed one.
fn load_steps(load: &Load) -> u64 {
    load.rate.map_or(0, |rate| (rate * (load.warm_up + load.duration).as_secs_f64()) as u64)
}

fn load(args: &Args, policy: &Policy) -> anyhow::Result<Load> {
    if !(0.0..=1.0).contains(&args.read_share) {
        return Err(Failure::invalid(format!("--read-share {}: use 0 to 1", args.read_share)).into());
    }
    if args.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e7)) {
        return Err(Failure::invalid("--rate: use a number of requests per second above 0").into());
    }
    let default = || match policy {
        Policy::Async { .. } => BucketName::new("bench-async"),
        Policy::Sync { .. } => BucketName::new("bench-sync"),
        Policy::ActiveActive => BucketName::new("bench-active-active"),
    };
    Ok(Load {
        bucket: args.bucket.clone().map_or_else(default, Ok)?,
        clients: usize::try_from(args.clients)?,
        duration: args.duration,
        warm_up: args.warm_up,
        value_bytes: args.value_size,
        keys: args.keys,
        distribution: args.distribution,
        read_share: args.read_share,
        level: match args.read {
            Level::Strong => ReadLevel::Strong,
            Level::Session => ReadLevel::Session,
            Level::Bounded(bound) => ReadLevel::Bounded { staleness_ms_max: u64::try_from(bound.as_millis())? },
            Level::Eventual => ReadLevel::Eventual,
        },
        ack: args.ack,
        rate: args.rate,
        deadline: args.deadline,
        seed: args.seed,
    })
}

async fn ensure_bucket(client: &Client, name: &BucketName, policy: Policy) -> anyhow::Result<()> {
    if client.admin().topology().await?.bucket_named(name.as_str()).is_some() {
        return Ok(());
    }
    let spec = BucketSpec {
        name: name.clone(),
        policy,
        regions: Vec::new(),
        primary: None,
        labels: Default::default(),
        auto: Default::default(),
    };
    match client.admin().create_bucket(&spec, false).await {
        Ok(bucket) => note(&format!("created the bucket {name}, {}", bucket.policy)),
        Err(error) if error.kind == RefusalKind::Exists => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// What the machine and the network charge anyway.
#[derive(Debug, Serialize)]
struct Beside {
    fdatasync: Option<Figures>,
    round_trip_to_endpoint: Figures,
    /// Where the bucket's primary is simulated to be, from the client's region.
    simulated_round_trip_to_primary_ms: Option<f64>,
}

impl Beside {
    async fn measure(args: &Args, target: &Target, client: &Client, load: &Load) -> anyhow::Result<Beside> {
        let near_data = target.tls.ca.parent().unwrap_or(Path::new("."));
        let dir = args.sync_dir.as_deref().unwrap_or(near_data).to_owned();
        // Blocking, and nothing else runs yet.
        let fdatasync =
            fdatasync(&dir).inspect_err(|error| note(&format!("no fdatasync measured in {}: {error}", dir.display())));
        let trips = round_trip(client, &load.bucket).await?;
        let topology = client.known_topology();
        let primary = topology.bucket_named(load.bucket.as_str()).and_then(|bucket| bucket.primary);
        let primary = primary.and_then(|id| topology.regions.get(&id));
        let simulated =
            target.region.as_ref().zip(primary).and_then(|(region, primary)| region.round_trip_ms.get(&primary.name));
        Ok(Beside {
            fdatasync: fdatasync.ok().map(|latency| figures(&latency)),
            round_trip_to_endpoint: figures(&trips),
            simulated_round_trip_to_primary_ms: simulated.copied(),
        })
    }
}

/// One at a time: as many per second as the median allows.
fn figures(latency: &Latency) -> Figures {
    latency.figures(latency.quantile(0.5).as_secs_f64() * latency.count() as f64)
}

/// CPU of the servers on this machine.
struct Servers(Vec<CpuClock>);

impl Servers {
    fn watch(args: &Args, target: &Target) -> Servers {
        let known = target.profile.iter().flat_map(|profile| profile.regions.iter().filter_map(|region| region.pid));
        let pids: Vec<u32> = if args.server_pids.is_empty() { known.collect() } else { args.server_pids.clone() };
        Servers(pids.into_iter().filter_map(CpuClock::start).collect())
    }

    fn used(&self) -> Option<Duration> {
        let used: Vec<Duration> = self.0.iter().filter_map(CpuClock::used).collect();
        (!used.is_empty()).then(|| used.iter().sum())
    }
}

#[derive(Debug, Serialize)]
struct Outcome {
    bucket: String,
    clients: usize,
    seconds: f64,
    value_bytes: usize,
    rate: Option<f64>,
    writes: Option<Figures>,
    reads: Option<Figures>,
    errors: u64,
    first_error: Option<String>,
    unsent: u64,
    client_cpu_us_per_operation: Option<f64>,
    servers_cpu_us_per_operation: Option<f64>,
    beside: Beside,
}

impl Outcome {
    fn of(load: &Load, report: &Report, beside: Beside, own: Option<Duration>, servers: Option<Duration>) -> Outcome {
        let seconds = report.measured.as_secs_f64();
        let figures = |latency: &Latency| (latency.count() > 0).then(|| latency.figures(seconds));
        // The CPU was used over the warm-up, too: spread it over all the operations of that time.
        let share = seconds / (seconds + load.warm_up.as_secs_f64());
        let per_operation = |used: Duration| used.as_secs_f64() * share * 1e6 / report.operations().max(1) as f64;
        Outcome {
            bucket: load.bucket.to_string(),
            clients: load.clients,
            seconds,
            value_bytes: load.value_bytes,
            rate: load.rate,
            writes: figures(&report.writes),
            reads: figures(&report.reads),
            errors: report.errors,
            first_error: report.first_error.clone(),
            unsent: report.unsent,
            client_cpu_us_per_operation: own.map(per_operation),
            servers_cpu_us_per_operation: servers.map(per_operation),
            beside,
        }
    }
}

impl Show for Outcome {
    fn text(&self) -> String {
        let mut table = Table::new(&["", ">per second", ">p50", ">p99", ">p99.9", ">max", ">answered"]);
        let ms = |ms: f64| duration(Duration::from_secs_f64(ms / 1e3));
        let mut row = |name: &str, figures: &Figures| {
            table.row([
                name.to_owned(),
                count(figures.per_second.round() as u64),
                ms(figures.p50_ms),
                ms(figures.p99_ms),
                ms(figures.p999_ms),
                ms(figures.max_ms),
                count(figures.operations),
            ]);
        };
        self.writes.iter().for_each(|figures| row("put", figures));
        self.reads.iter().for_each(|figures| row("get", figures));
        row("one round trip", &self.beside.round_trip_to_endpoint);
        self.beside.fdatasync.iter().for_each(|figures| row("one fdatasync", figures));
        let mut lines = vec![
            format!(
                "{}: {} clients, {} loop, {}-byte values, {:.0} s",
                self.bucket,
                count(self.clients as u64),
                if self.rate.is_some() { "open" } else { "closed" },
                self.value_bytes,
                self.seconds
            ),
            table.to_string(),
        ];
        if let Some(ms) = self.beside.simulated_round_trip_to_primary_ms {
            lines.push(format!("simulated round trip to the primary's region: {ms:.1} ms"));
        }
        let cpu = |micros: Option<f64>| micros.map_or_else(|| "not measured".to_owned(), |us| format!("{us:.1} µs"));
        lines.push(format!(
            "CPU per operation: client {}, servers {}",
            cpu(self.client_cpu_us_per_operation),
            cpu(self.servers_cpu_us_per_operation)
        ));
        if self.errors > 0 {
            lines.push(format!(
                "{} errors; the first: {}",
                count(self.errors),
                self.first_error.as_deref().unwrap_or("?")
            ));
        }
        if self.unsent > 0 {
            lines.push(format!(
                "{} requests were due and not sent: the rate is beyond this client or store",
                count(self.unsent)
            ));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_stands_beside_what_the_machine_charges_anyway() {
        let mut latency = Latency::default();
        (1..=100).for_each(|_| latency.record(Duration::from_micros(500)));
        let result = Outcome {
            bucket: "b".into(),
            clients: 64,
            seconds: 1.0,
            value_bytes: 256,
            rate: None,
            writes: Some(latency.figures(1.0)),
            reads: None,
            errors: 2,
            first_error: Some("timed out".into()),
            unsent: 0,
            client_cpu_us_per_operation: Some(10.0),
            servers_cpu_us_per_operation: None,
            beside: Beside {
                fdatasync: Some(figures(&latency)),
                round_trip_to_endpoint: figures(&latency),
                simulated_round_trip_to_primary_ms: Some(80.0),
            },
        };
        let text = result.text();
        for expected in [
            "closed loop",
            "put",
            "one fdatasync",
            "2,000",
            "80.0 ms",
            "2 errors; the first: timed out",
            "servers not measured",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
