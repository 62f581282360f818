//! Requests.

use bytes::Bytes;
use meridian_types::{
    BucketName, ClientId, Epoch, Key, Read, ReadLevel, Refusal, Request, RequestId, SessionToken, StalePolicy, Value,
    Write, WriteAck,
};

use super::{invalid, version_from_proto, version_to_proto};
use crate::v1;
use crate::v1::read_options::{Level, WhenStale};
use crate::v1::request::Op;
use crate::v1::write_options::Ack;

/// The client id of a batch or a forwarded request; empty means none (0).
///
/// # Errors
/// Invalid when it has neither 0 nor 16 bytes.
pub fn client_from_proto(bytes: &[u8]) -> Result<ClientId, Refusal> {
    match bytes.len() {
        0 => Ok(ClientId(0)),
        16 => Ok(ClientId(bytes.iter().fold(0, |id, byte| id << 8 | u128::from(*byte)))),
        length => Err(invalid(format!("a client id has 16 bytes, or none; this one has {length}: update the client"))),
    }
}

/// The client id as it travels; 0 is empty.
pub fn client_to_proto(client: ClientId) -> Bytes {
    if client.0 == 0 { Bytes::new() } else { Bytes::copy_from_slice(&client.0.to_be_bytes()) }
}

/// A request of the client that sent the batch.
///
/// # Errors
/// Invalid, naming what is wrong: a missing or unknown operation, a name, key or value out of bounds, a damaged token.
pub fn request_from_proto(request: v1::Request, client: ClientId) -> Result<Request, Refusal> {
    let bucket = BucketName::new(&request.bucket).map_err(|why| invalid(why.to_string()))?;
    let session = SessionToken::decode(&request.session)?;
    let op = request.op.ok_or_else(|| {
        invalid("the request has no operation this version knows: update the older of client and node")
    })?;
    let deadline_ms = request.deadline_ms;
    match operation(op)? {
        Operation::Read(read) => {
            let (level, stale) = read_options(request.read.unwrap_or_default())?;
            Ok(Request::Read { bucket, read, level, stale, session, deadline_ms })
        }
        Operation::Write(write) => {
            let options = request.write.unwrap_or_default();
            let (sequence, lowest_outstanding) = (options.sequence, options.lowest_outstanding);
            check_sequence(client, sequence, lowest_outstanding)?;
            let ack = ack_from_proto(&options)?;
            let id = RequestId { client, sequence };
            let begun = Epoch(options.begun);
            Ok(Request::Write { bucket, write, ack, id, lowest_outstanding, begun, session, deadline_ms })
        }
    }
}

/// A request that another node forwards for its client: it names the client itself.
///
/// # Errors
/// As [`request_from_proto`].
pub fn forwarded_from_proto(request: v1::Request) -> Result<Request, Refusal> {
    let client = match &request.write {
        Some(options) => client_from_proto(&options.client_id)?,
        None => ClientId(0),
    };
    request_from_proto(request, client)
}

/// A request as it travels in its own client's batch.
pub fn request_to_proto(tag: u64, request: &Request) -> v1::Request {
    match request {
        Request::Read { bucket, read, level, stale, session, deadline_ms } => v1::Request {
            tag,
            bucket: bucket.as_str().to_owned(),
            deadline_ms: *deadline_ms,
            session: session_to_proto(session),
            op: Some(read_to_proto(read)),
            read: Some(read_options_to_proto(level, *stale)),
            write: None,
        },
        Request::Write { bucket, write, ack, id, lowest_outstanding, begun, session, deadline_ms } => v1::Request {
            tag,
            bucket: bucket.as_str().to_owned(),
            deadline_ms: *deadline_ms,
            session: session_to_proto(session),
            op: Some(write_to_proto(write)),
            read: None,
            write: Some(write_options_to_proto(*ack, *id, *lowest_outstanding, *begun)),
        },
    }
}

/// A request as it travels from node to node: with the client it is for.
pub fn forwarded_to_proto(tag: u64, request: &Request) -> v1::Request {
    let mut message = request_to_proto(tag, request);
    if let (Some(options), Request::Write { id, .. }) = (&mut message.write, request) {
        options.client_id = client_to_proto(id.client);
    }
    message
}

pub(super) fn session_to_proto(session: &SessionToken) -> Bytes {
    if session.is_empty() { Bytes::new() } else { session.encode().into() }
}

enum Operation {
    Read(Read),
    Write(Write),
}

fn operation(op: Op) -> Result<Operation, Refusal> {
    let read = |read: Read| read.validate().map(|()| Operation::Read(read));
    let write = |write: Write| write.validate().map(|()| Operation::Write(write));
    match op {
        Op::Get(get) => read(Read::Get { key: Key::new(get.key)? }),
        Op::MultiGet(many) => {
            check_items("a multi-get", many.keys.len())?;
            read(Read::MultiGet { keys: many.keys.into_iter().map(Key::new).collect::<Result<_, _>>()? })
        }
        Op::Scan(scan) => {
            read(Read::Scan { prefix: scan.prefix, after: scan.after, limit: scan.limit, values: !scan.keys_only })
        }
        Op::Put(put) => {
            write(Write::Put { key: Key::new(put.key)?, value: Value::new(put.value)?, ttl_ms: put.ttl_ms })
        }
        Op::Delete(delete) => write(Write::Delete { key: Key::new(delete.key)? }),
        Op::Append(append) => write(Write::Append { key: Key::new(append.key)?, suffix: Value::new(append.suffix)? }),
        Op::Increment(increment) => write(Write::Increment { key: Key::new(increment.key)?, by: increment.by }),
        Op::CompareAndSet(cas) => write(Write::CompareAndSet {
            key: Key::new(cas.key)?,
            expected: cas.expected.map(version_from_proto).transpose()?,
            value: Value::new(cas.value)?,
            ttl_ms: cas.ttl_ms,
        }),
        Op::PutIfAbsent(put) => {
            write(Write::PutIfAbsent { key: Key::new(put.key)?, value: Value::new(put.value)?, ttl_ms: put.ttl_ms })
        }
        Op::MultiPut(many) => {
            check_items("a multi-put", many.items.len())?;
            let item = |item: v1::Item| Ok((Key::new(item.key)?, Value::new(item.value)?));
            write(Write::MultiPut { items: many.items.into_iter().map(item).collect::<Result<_, Refusal>>()? })
        }
    }
}

/// Before anything is allocated for them; `validate` looks again, for requests that never were messages.
fn check_items(what: &str, count: usize) -> Result<(), Refusal> {
    let most = meridian_types::key::MULTI_ITEMS_MAX;
    if count > most {
        return Err(invalid(format!("{what} may name at most {most} keys: split it")));
    }
    Ok(())
}

fn check_sequence(client: ClientId, sequence: u64, lowest_outstanding: u64) -> Result<(), Refusal> {
    if client.0 != 0 && sequence == 0 {
        return Err(invalid("a write of a client with an id needs a sequence number from 1: update the client"));
    }
    if client.0 != 0 && lowest_outstanding > sequence {
        return Err(invalid(format!(
            "the lowest outstanding sequence {lowest_outstanding} is above the request's own {sequence}: update the client"
        )));
    }
    Ok(())
}

fn read_to_proto(read: &Read) -> Op {
    match read {
        Read::Get { key } => Op::Get(v1::Get { key: key.as_bytes().clone() }),
        Read::MultiGet { keys } => {
            Op::MultiGet(v1::MultiGet { keys: keys.iter().map(|key| key.as_bytes().clone()).collect() })
        }
        Read::Scan { prefix, after, limit, values } => {
            Op::Scan(v1::Scan { prefix: prefix.clone(), after: after.clone(), limit: *limit, keys_only: !values })
        }
    }
}

fn write_to_proto(write: &Write) -> Op {
    let bytes = |key: &Key| key.as_bytes().clone();
    match write {
        Write::Put { key, value, ttl_ms } => {
            Op::Put(v1::Put { key: bytes(key), value: value.as_bytes().clone(), ttl_ms: *ttl_ms })
        }
        Write::Delete { key } => Op::Delete(v1::Delete { key: bytes(key) }),
        Write::Append { key, suffix } => Op::Append(v1::Append { key: bytes(key), suffix: suffix.as_bytes().clone() }),
        Write::Increment { key, by } => Op::Increment(v1::Increment { key: bytes(key), by: *by }),
        Write::CompareAndSet { key, expected, value, ttl_ms } => Op::CompareAndSet(v1::CompareAndSet {
            key: bytes(key),
            expected: expected.map(version_to_proto),
            value: value.as_bytes().clone(),
            ttl_ms: *ttl_ms,
        }),
        Write::PutIfAbsent { key, value, ttl_ms } => {
            Op::PutIfAbsent(v1::PutIfAbsent { key: bytes(key), value: value.as_bytes().clone(), ttl_ms: *ttl_ms })
        }
        Write::MultiPut { items } => {
            let item = |(key, value): &(Key, Value)| v1::Item { key: bytes(key), value: value.as_bytes().clone() };
            Op::MultiPut(v1::MultiPut { items: items.iter().map(item).collect() })
        }
    }
}

fn read_options(options: v1::ReadOptions) -> Result<(ReadLevel, StalePolicy), Refusal> {
    let level = match Level::try_from(options.level) {
        Ok(Level::Strong) => ReadLevel::Strong,
        Ok(Level::Session) => ReadLevel::Session,
        Ok(Level::Bounded) => ReadLevel::Bounded { staleness_ms_max: options.staleness_ms_max },
        Ok(Level::Eventual) => ReadLevel::Eventual,
        Err(_) => {
            return Err(invalid(format!(
                "this node does not know the read level {}: use strong, session, bounded or eventual, or update the node",
                options.level
            )));
        }
    };
    let stale = match WhenStale::try_from(options.when_stale) {
        Ok(WhenStale::Wait) => StalePolicy::Wait,
        Ok(WhenStale::Redirect) => StalePolicy::Redirect,
        Ok(WhenStale::Fail) => StalePolicy::Fail,
        Err(_) => {
            return Err(invalid(format!(
                "this node does not know what to do when stale ({}): use wait, redirect or fail, or update the node",
                options.when_stale
            )));
        }
    };
    Ok((level, stale))
}

fn read_options_to_proto(level: &ReadLevel, stale: StalePolicy) -> v1::ReadOptions {
    let (level, staleness_ms_max) = match level {
        ReadLevel::Strong => (Level::Strong, 0),
        ReadLevel::Session => (Level::Session, 0),
        ReadLevel::Bounded { staleness_ms_max } => (Level::Bounded, *staleness_ms_max),
        ReadLevel::Eventual => (Level::Eventual, 0),
    };
    let when_stale = match stale {
        StalePolicy::Wait => WhenStale::Wait,
        StalePolicy::Redirect => WhenStale::Redirect,
        StalePolicy::Fail => WhenStale::Fail,
    };
    v1::ReadOptions { level: level.into(), staleness_ms_max, when_stale: when_stale.into() }
}

fn ack_from_proto(options: &v1::WriteOptions) -> Result<WriteAck, Refusal> {
    match Ack::try_from(options.ack) {
        Ok(Ack::Policy) => Ok(WriteAck::Policy),
        Ok(Ack::Local) => Ok(WriteAck::Local),
        Ok(Ack::Majority) => Ok(WriteAck::Majority),
        Ok(Ack::All) => Ok(WriteAck::All),
        Ok(Ack::Regions) => match u8::try_from(options.regions) {
            Ok(count @ 1..) => Ok(WriteAck::Regions(count)),
            _ => Err(invalid(format!("`ack = regions({})` is not valid: ask for 1 to 255 regions", options.regions))),
        },
        Err(_) => Err(invalid(format!(
            "this node does not know the acknowledgement {}: use policy, local, regions, majority or all, or update the node",
            options.ack
        ))),
    }
}

fn write_options_to_proto(ack: WriteAck, id: RequestId, lowest_outstanding: u64, begun: Epoch) -> v1::WriteOptions {
    let (ack, regions) = match ack {
        WriteAck::Policy => (Ack::Policy, 0),
        WriteAck::Local => (Ack::Local, 0),
        WriteAck::Regions(count) => (Ack::Regions, u32::from(count)),
        WriteAck::Majority => (Ack::Majority, 0),
        WriteAck::All => (Ack::All, 0),
    };
    v1::WriteOptions {
        ack: ack.into(),
        regions,
        sequence: id.sequence,
        lowest_outstanding,
        client_id: Bytes::new(),
        begun: begun.0,
    }
}
