//! What a node tells about itself: logs, traces, metrics, health.
//!
//! [`init`] sets up `tracing` (text or JSON to stderr), a Prometheus registry fed by OpenTelemetry, and OTLP
//! export of traces and metrics when an endpoint is configured. [`Guard::admin_router`] is the admin port:
//! `/metrics`, `/healthz` (the process answers) and `/readyz` (it can serve; else the reasons, one per line).
//! What is measured is not decided here: each IO crate has its own `metrics.rs`.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::{Encoder, Registry, TextEncoder};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogFormat, Telemetry};

/// How long one export may take before it is given up.
const OTLP_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps exporters alive; dropping it flushes them.
#[derive(Debug)]
pub struct Guard {
    registry: Registry,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
}

/// Sets up logs, traces and metrics of this process, which is `node` of `region`. Call once, within a tokio runtime.
///
/// # Errors
/// When the filter or the endpoint is malformed, or it was called before.
pub fn init(telemetry: &Telemetry, region: &str, node: &str) -> anyhow::Result<Guard> {
    let resource = Resource::builder()
        .with_service_name("meridian")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_owned()),
            KeyValue::new("meridian.region", region.to_owned()),
        ])
        .build();
    let registry = Registry::new();
    let meters = meters(telemetry, &registry, resource.clone())?;
    opentelemetry::global::set_meter_provider(meters.clone());
    let tracers = tracers(telemetry, resource)?;
    subscribe(telemetry, tracers.as_ref())?;
    Ok(Guard { registry, meters, tracers })
}

fn meters(telemetry: &Telemetry, registry: &Registry, resource: Resource) -> anyhow::Result<SdkMeterProvider> {
    let prometheus = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build()?;
    let mut builder = SdkMeterProvider::builder().with_reader(prometheus).with_resource(resource);
    if !telemetry.otlp_endpoint.is_empty() {
        let exporter = opentelemetry_otlp::MetricExporter::builder()
            .with_tonic()
            .with_endpoint(&telemetry.otlp_endpoint)
            .with_timeout(OTLP_TIMEOUT)
            .build()
            .with_context(|| endpoint_help(telemetry))?;
        builder = builder.with_periodic_exporter(exporter);
    }
    Ok(builder.build())
}

fn tracers(telemetry: &Telemetry, resource: Resource) -> anyhow::Result<Option<SdkTracerProvider>> {
    if telemetry.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&telemetry.otlp_endpoint)
        .with_timeout(OTLP_TIMEOUT)
        .build()
        .with_context(|| endpoint_help(telemetry))?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    Ok(Some(provider))
}

fn endpoint_help(telemetry: &Telemetry) -> String {
    format!(
        "telemetry.otlp_endpoint = {:?} is not usable: write http://host:4317, or leave it empty",
        telemetry.otlp_endpoint
    )
}

fn subscribe(telemetry: &Telemetry, tracers: Option<&SdkTracerProvider>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&telemetry.log).with_context(|| {
        format!("telemetry.log = {:?} is not a filter: write info or info,crate=debug", telemetry.log)
    })?;
    let lines = match telemetry.log_format {
        LogFormat::Text => tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer().with_writer(std::io::stderr).json().boxed(),
    };
    let spans = tracers.map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("meridian")));
    tracing_subscriber::registry().with(lines).with(spans).with(filter).try_init().context("logging was set up before")
}

impl Guard {
    /// The admin port's routes. `readiness` says why the node can't serve yet: nothing when it can.
    pub fn admin_router<F>(&self, readiness: F) -> Router
    where
        F: Fn() -> Vec<String> + Clone + Send + Sync + 'static,
    {
        admin_router(self.registry.clone(), readiness)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A collector that is gone must not turn a clean exit into a failed one.
        let _ = self.meters.shutdown();
        let _ = self.tracers.as_ref().map(SdkTracerProvider::shutdown);
    }
}

/// The admin port's routes over any registry.
fn admin_router<F>(registry: Registry, readiness: F) -> Router
where
    F: Fn() -> Vec<String> + Clone + Send + Sync + 'static,
{
    Router::new()
        .route("/metrics", get(move || std::future::ready(metrics(&registry))))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(move || std::future::ready(ready(&readiness()))))
}

fn metrics(registry: &Registry) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be encoded: {error}\n")).into_response()
        }
    }
}

fn ready(reasons: &[String]) -> Response {
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_admin_port_tells_metrics_health_and_why_it_is_not_ready() {
        let registry = Registry::new();
        let meters = meters(&Telemetry::default(), &registry, Resource::builder().build()).unwrap();
        meters.meter("test").u64_counter("meridian.test.writes").build().add(3, &[]);
        let reasons = std::sync::Arc::new(std::sync::Mutex::new(vec!["no lease yet".to_owned()]));
        let told = reasons.clone();
        let router = admin_router(registry, move || told.lock().unwrap().clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });

        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics").await.contains("meridian_test_writes_total"));
        let not_ready = get(address, "/readyz").await;
        assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("no lease yet"), "{not_ready}");
        reasons.lock().unwrap().clear();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        server.abort();
    }
}
