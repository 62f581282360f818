//! One client: one request at a time, recorded as it was sent and answered, retried as the SDK would.

use std::time::Duration;

use meridian_types::{
    ClientId, Effect, Epoch, Key, Outcome, Read, ReadLevel, Refusal, RefusalKind, RegionId, Request, RequestId,
    Response, SessionToken, StalePolicy, Value, Write, WriteAck,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};

use super::{Kind, Options, Plan, Workload, keys};
use crate::history::{History, Operation, Told};
use crate::target::Target;

/// The most attempts at one write.
const ATTEMPTS_MAX: u32 = 6;

/// The bounds that bounded reads ask for, in milliseconds.
const BOUNDS_MS: [u64; 4] = [50, 200, 1_000, 5_000];

pub(super) struct Client<T> {
    target: T,
    history: History,
    pub(super) rng: StdRng,
    pub(super) options: Options,
    workload: Workload,
    /// Keys of this workload's kind in its bucket, in the order of [`keys::of`].
    pub(super) keys: Vec<Key>,
    regions: Vec<RegionId>,
    number: u32,
    id: ClientId,
    /// Where it asks.
    pub(super) region: RegionId,
    sequence: u64,
    values: u64,
    /// The epoch of its bucket, as far as it knows.
    epoch: Epoch,
    /// Whether one region orders its writes under that epoch, as far as it knows.
    has_primary: bool,
    /// What it has seen, if it cares.
    pub(super) session: Option<SessionToken>,
    until_us: u64,
}

impl<T: Target> Client<T> {
    /// The `number`-th client of a plan. It is at home in one region; one that does not hold its bucket hands on what it asks.
    pub(super) fn new(plan: &Plan, workload: &Workload, target: T, history: History, number: u32) -> Client<T> {
        let mut rng = StdRng::seed_from_u64(plan.seed ^ (u64::from(number) << 32 | 0x636c_6965));
        let regions = plan.regions.clone();
        let region = regions[rng.random_range(0..regions.len())];
        // A session without a token promises nothing, so only those who keep one read at that level.
        let session = (workload.kind == Kind::Session || rng.random()).then(SessionToken::default);
        let until_us = target.now_us().saturating_add(micros(workload.options.duration));
        Client {
            // Never 0, which means "no identity".
            id: ClientId(u128::from(rng.random::<u64>()) << 32 | u128::from(number + 1)),
            keys: keys::of(workload.kind, &workload.bucket, plan.shards, &workload.options),
            target,
            history,
            rng,
            options: workload.options,
            has_primary: workload.bucket.primary.is_some(),
            workload: workload.clone(),
            regions,
            number,
            region,
            sequence: 0,
            values: 0,
            epoch: Epoch(0),
            session,
            until_us,
        }
    }

    /// Clients don't begin in step.
    pub(super) async fn begin(&mut self) {
        self.think().await;
    }

    /// A pause of random length.
    pub(super) async fn think(&mut self) {
        let mean_us = micros(self.options.think).max(1);
        let pause_us = self.rng.random_range(0..=2 * mean_us);
        sleep(Duration::from_micros(pause_us)).await;
    }

    pub(super) fn has_time(&self) -> bool {
        self.target.now_us() < self.until_us
    }

    /// Whether one region orders the writes of its bucket, as far as it has heard.
    pub(super) fn has_primary(&mut self) -> bool {
        self.known_epoch(self.region);
        self.has_primary
    }

    /// Whether something that happens this often of a hundred times happens.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// One of the keys.
    pub(super) fn any_key(&mut self) -> Key {
        let at = self.rng.random_range(0..self.keys.len());
        self.keys[at].clone()
    }

    /// Moves to another region, or stays.
    pub(super) fn roam(&mut self) {
        self.region = self.any_region();
    }

    fn any_region(&mut self) -> RegionId {
        self.regions[self.rng.random_range(0..self.regions.len())]
    }

    /// A name that nobody else gives to anything in this run.
    pub(super) fn unique(&mut self) -> String {
        self.values += 1;
        format!("c{}.{}", self.number, self.values)
    }

    /// A value that nobody else writes; some are long.
    pub(super) fn unique_value(&mut self) -> Value {
        let mut text = self.unique();
        if self.chance(10) {
            let length = self.rng.random_range(0..=self.options.value_bytes_max);
            text.push('-');
            while text.len() < length {
                text.push('x');
            }
        }
        value(text)
    }

    /// A level from the mix, with what to do about staleness.
    pub(super) fn any_level(&mut self) -> (ReadLevel, StalePolicy) {
        let levels = self.options.levels;
        let strong = if self.has_primary() { levels.strong } else { 0 };
        let session = if self.session.is_some() { levels.session } else { 0 };
        let sum = strong + session + levels.bounded + levels.eventual;
        let drawn = self.rng.random_range(0..sum.max(1));
        let level = if drawn < strong {
            ReadLevel::Strong
        } else if drawn < strong + session {
            ReadLevel::Session
        } else if drawn < strong + session + levels.bounded {
            ReadLevel::Bounded { staleness_ms_max: BOUNDS_MS[self.rng.random_range(0..BOUNDS_MS.len())] }
        } else {
            ReadLevel::Eventual
        };
        let stale = [StalePolicy::Wait, StalePolicy::Redirect, StalePolicy::Fail][self.rng.random_range(0..3)];
        (level, stale)
    }

    /// Reads a key at a level from the mix.
    pub(super) async fn read_any(&mut self, key: Key) -> Told {
        let (level, stale) = self.any_level();
        self.read(Read::Get { key }, level, stale).await
    }

    /// Reads; a refusal is the answer.
    pub(super) async fn read(&mut self, read: Read, level: ReadLevel, stale: StalePolicy) -> Told {
        let request = Request::Read {
            bucket: self.workload.bucket.name.clone(),
            read,
            level,
            stale,
            session: self.session.clone().unwrap_or_default(),
            deadline_ms: self.options.deadline_ms,
        };
        let begun_us = self.target.now_us();
        let told = match self.attempt(self.region, &request).await {
            Attempt::Done(response) => Told::Done(response),
            Attempt::Refused(refusal) => Told::Refused(refusal),
            Attempt::Silence => Told::Nothing,
        };
        self.conclude(request, self.region, begun_us, told)
    }

    /// Writes, again and again under the same request id, or gives up.
    pub(super) async fn write(&mut self, write: Write) -> Told {
        self.sequence += 1;
        let mut request = Request::Write {
            bucket: self.workload.bucket.name.clone(),
            write,
            ack: self.any_ack(),
            id: RequestId { client: self.id, sequence: self.sequence },
            // Whatever came before was answered or given up: it is never sent again.
            lowest_outstanding: self.sequence,
            begun: self.known_epoch(self.region),
            session: self.session.clone().unwrap_or_default(),
            deadline_ms: self.options.deadline_ms,
        };
        let begun_us = self.target.now_us();
        let gives_up = self.chance(self.options.gives_up_percent);
        let mut region = self.region;
        let mut effect = Effect::None;
        let (mut attempts, mut anew, mut stays) = (0, false, false);
        let told = loop {
            attempts += 1;
            let known = self.known_epoch(region);
            let merges = !self.has_primary;
            if let Request::Write { begun, .. } = &mut request
                && anew
                && known > *begun
            {
                (*begun, anew) = (known, false);
            }
            let attempt = self.attempt(region, &request).await;
            let (told, again) = match attempt {
                Attempt::Done(response) => break Told::Done(response),
                Attempt::Refused(refusal) => {
                    if refusal.effect != Effect::None {
                        effect = refusal.effect;
                    }
                    // No attempt of the epoch it was begun under can take effect any more: it begins again, as by the SDK.
                    anew |= refusal.kind == RefusalKind::Fenced;
                    let again = is_passing(&refusal);
                    (Told::Refused(refusal.with_effect(effect)), again)
                }
                Attempt::Silence => {
                    effect = Effect::Unknown;
                    (Told::Nothing, true)
                }
            };
            if !again || attempts == ATTEMPTS_MAX || (gives_up && effect != Effect::None) || !self.has_time() {
                break told;
            }
            // Where every region writes only that one would recognise it (ONE-1).
            stays |= merges && effect != Effect::None;
            if !stays {
                region = self.any_region();
            }
            let pause_ms = self.rng.random_range(20..=400);
            sleep(Duration::from_millis(pause_ms)).await;
        };
        self.conclude(request, region, begun_us, told)
    }

    /// The epoch of its bucket, as far as it has heard of it in any region; and with it who writes then.
    fn known_epoch(&mut self, region: RegionId) -> Epoch {
        let bucket = &self.workload.bucket.name;
        let epoch = self.target.epoch(region, bucket);
        if epoch >= self.epoch {
            self.epoch = epoch;
            self.has_primary = self.target.has_primary(region, bucket).unwrap_or(self.has_primary);
        }
        self.epoch
    }

    /// Mostly as the policy says; sometimes more.
    fn any_ack(&mut self) -> WriteAck {
        match self.rng.random_range(0..20) {
            0 => WriteAck::Majority,
            1 => WriteAck::Regions(2),
            2 => WriteAck::Local,
            3 => WriteAck::All,
            _ => WriteAck::Policy,
        }
    }

    /// One attempt. A node answers by the deadline; a client that hears nothing long after stops listening.
    async fn attempt(&self, region: RegionId, request: &Request) -> Attempt {
        let patience = Duration::from_millis(u64::from(request.deadline_ms()) * 2 + 1_000);
        match timeout(patience, self.target.ask(region, request.clone())).await {
            Ok(Ok(response)) => Attempt::Done(response),
            Ok(Err(refusal)) => Attempt::Refused(refusal),
            Err(_) => Attempt::Silence,
        }
    }

    fn conclude(&mut self, request: Request, region: RegionId, begun_us: u64, told: Told) -> Told {
        match (&mut self.session, &told) {
            (Some(session), Told::Done(response)) => session.merge(&response.session),
            // It has seen what a failover gave up: it is told to begin anew.
            (Some(session), Told::Refused(refusal)) if refusal.kind == RefusalKind::Invalid => {
                *session = SessionToken::default();
            }
            _ => {}
        }
        let ended_us = self.target.now_us();
        let (client, told_too) = (self.number, told.clone());
        self.history.record(Operation { client, region, request, begun_us, ended_us, told });
        told_too
    }
}

/// What one attempt came to.
enum Attempt {
    Done(Response),
    Refused(Refusal),
    Silence,
}

/// Whether trying again can help.
fn is_passing(refusal: &Refusal) -> bool {
    match refusal.kind {
        RefusalKind::Retry | RefusalKind::Redirect | RefusalKind::Fenced | RefusalKind::Unavailable => true,
        RefusalKind::Stale
        | RefusalKind::Conflict
        | RefusalKind::Invalid
        | RefusalKind::NotFound
        | RefusalKind::Exists
        | RefusalKind::Corrupt
        | RefusalKind::Denied
        | RefusalKind::Internal
        | RefusalKind::Consent => false,
    }
}

/// The value a read of one key found, if it was answered and there is one.
pub(super) fn value_found(told: &Told) -> Option<&meridian_types::request::Found> {
    match told {
        Told::Done(Response { outcome: Outcome::Value(Some(found)), .. }) => Some(found),
        _ => None,
    }
}

/// Text as a value; workloads write no values near the bound.
pub(super) fn value(text: impl Into<String>) -> Value {
    Value::new(text.into()).unwrap_or_default()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
