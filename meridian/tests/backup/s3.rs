//! As much of S3 as a backup asks for: objects in memory that are put, got and listed. Who asks is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

const MODIFIED: &str = "Sat, 28 Nov 2026 23:45:01 GMT";

/// Serves until the runtime ends.
pub(crate) async fn serve() -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(Objects::default());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

async fn answer(State(objects): State<Objects>, method: Method, uri: Uri, body: Bytes) -> Response {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    // Behind the name of the bucket.
    let key = uri.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
    match (method, objects.get(&key)) {
        (Method::PUT, _) => {
            objects.insert(key, body);
            [(header::ETAG, "\"1\"")].into_response()
        }
        (Method::GET, _) if key.is_empty() => list(&objects, uri.query().unwrap_or_default()).into_response(),
        (Method::GET, Some(bytes)) => {
            ([(header::ETAG, "\"1\""), (header::LAST_MODIFIED, MODIFIED)], bytes.clone()).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// What is below a prefix, up to the next slash.
fn list(objects: &BTreeMap<String, Bytes>, query: &str) -> String {
    let asked = query.split('&').find_map(|it| it.strip_prefix("prefix=")).unwrap_or_default();
    let prefix = asked.replace("%2F", "/");
    let below = objects.keys().filter_map(|key| key.strip_prefix(&prefix)?.split_once('/'));
    let dirs: BTreeSet<&str> = below.map(|(dir, _)| dir).collect();
    let mut xml = format!("<ListBucketResult><KeyCount>{}</KeyCount><IsTruncated>false</IsTruncated>", dirs.len());
    for dir in dirs {
        // Writing to a string can't fail.
        let _ = write!(xml, "<CommonPrefixes><Prefix>{prefix}{dir}/</Prefix></CommonPrefixes>");
    }
    xml + "</ListBucketResult>"
}
