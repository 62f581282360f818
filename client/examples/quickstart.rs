//! A tour of the SDK against `meridian dev`.
//!
//! In one terminal: `meridian dev`. In another: `cargo run -p meridian-client --example quickstart`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use meridian_client::{
    Acks, BucketName, BucketSpec, Client, Policy, ReadLevel, RefusalKind, RegionName, Session, WriteAck,
};

#[derive(Parser)]
struct Arguments {
    /// Endpoints, the nearest first.
    #[arg(long, value_delimiter = ',', default_value = "https://127.0.0.1:7100")]
    endpoint: Vec<String>,
    /// The cluster's CA certificate.
    #[arg(long, default_value = ".meridian/dev/certs/ca.pem")]
    ca: PathBuf,
    /// The client's certificate.
    #[arg(long, default_value = ".meridian/dev/certs/operator.pem")]
    cert: PathBuf,
    /// Its key.
    #[arg(long, default_value = ".meridian/dev/certs/operator-key.pem")]
    key: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let client = Client::builder()
        .endpoints(arguments.endpoint)
        .tls_files(arguments.ca, arguments.cert, arguments.key)
        .connect()
        .await
        .context("is `meridian dev` running in this directory?")?;
    let regions: Vec<RegionName> = client.known_topology().regions.values().map(|region| region.name.clone()).collect();
    say(&format!("connected to a cluster of {} regions", regions.len()));

    create(&client, "quickstart-orders", Policy::sync(Acks::Majority)).await?;
    create(&client, "quickstart-likes", Policy::ActiveActive).await?;
    orders(&client).await?;
    likes(&client).await?;
    equal(&client).await
}

/// Creates the bucket, unless an earlier run has.
async fn create(client: &Client, name: &str, policy: Policy) -> Result<()> {
    let spec = BucketSpec {
        name: BucketName::new(name)?,
        policy,
        regions: Vec::new(), // all of them
        primary: None,       // the first of them
        labels: Default::default(),
        auto: Default::default(),
    };
    match client.admin().create_bucket(&spec, false).await {
        Ok(bucket) => say(&format!("created {name}: {policy}, epoch {}", bucket.epoch)),
        Err(error) if error.kind == RefusalKind::Exists => say(&format!("{name} is there already")),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// A synchronous bucket: a write is acknowledged when a majority of regions has it on disk.
async fn orders(client: &Client) -> Result<()> {
    let orders = client.bucket("quickstart-orders")?;
    let session = client.session();
    let written =
        orders.put("order/17", "paid").ttl(Duration::from_secs(3600)).ack(WriteAck::Majority).session(&session).await?;
    say(&format!(
        "order/17 written in {} (epoch {}), on disk in {} regions",
        written.meta.region,
        written.meta.epoch,
        written.meta.regions_durable()
    ));

    // The token is plain bytes: hand it to another process, in another region, and it reads what you wrote.
    let elsewhere = Session::from_token(&session.token())?;
    let got = orders.get("order/17").session(&elsewhere).await?;
    say(&format!("read back in {}: {:?}, staleness {:?}", got.meta.region, got.value(), got.meta.staleness));

    let swap = orders.compare_and_set("order/17", got.version(), "shipped").await?;
    ensure!(swap.held(), "somebody else changed order/17 in between");
    let strong = orders.get("order/17").strong().await?;
    say(&format!("order/17 is now {:?} (strong, from {})", strong.value(), strong.meta.region));

    for number in 1..=3 {
        orders.put(format!("order/{number}"), "open").await?;
    }
    let page = orders.scan("order/").next_page().await?.context("the orders just written")?;
    say(&format!("{} orders", page.items.len()));
    Ok(())
}

/// An active-active bucket: every region writes, counters add up.
async fn likes(client: &Client) -> Result<()> {
    let likes = client.bucket("quickstart-likes")?.reading(ReadLevel::Eventual);
    let count = likes.increment("post/9", 1).await?;
    say(&format!("post/9 has {} likes as {} sees it", count.value, count.meta.region));
    Ok(())
}

/// Equal positions with equal digests prove the regions equal.
async fn equal(client: &Client) -> Result<()> {
    let name = BucketName::new("quickstart-orders")?;
    for region in client.admin().digests(Some(&name)).await? {
        let rows = region.answer?;
        let keys: u64 = rows.iter().map(|row| row.digest.keys).sum();
        let mut hash = meridian_types::SetHash::default();
        rows.iter().for_each(|row| hash.merge(row.digest.hash));
        say(&format!("{:<10} {keys:>4} keys  digest {hash}", region.region));
    }
    Ok(())
}

#[allow(clippy::print_stdout)] // an example talks to whoever runs it
fn say(line: &str) {
    println!("{line}");
}
