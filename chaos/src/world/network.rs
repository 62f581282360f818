//! What carries messages between nodes and clients: distance, jitter, loss, narrow and cut links.
//!
//! Everything of the product travels in connections that repeat what is lost, so a lost packet is a late message, and a cut
//! link is silence until it heals or the connection is given up. Two kinds:
//!
//! - [`Network::carry`]: one message on its own way, in no order with others: requests and answers.
//! - [`super::stream`]: messages in order, of which none is missing until the whole stream breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_types::RegionId;

use super::dice::Dice;
use super::executor::Spawner;
use super::record::Record;

/// Where a message begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A node, by its number.
    Node(usize),
    /// The clients of a region.
    Clients(RegionId),
}

/// A place on the planet, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Location {
    /// North of the equator.
    pub latitude: f64,
    /// East of Greenwich.
    pub longitude: f64,
}

impl Location {
    /// The one-way delay of light in fibre along the great circle, with the detours cables take.
    pub fn delay(self, other: Location) -> Duration {
        const EARTH_KM: f64 = 6371.0;
        // Two thirds of the speed of light.
        const FIBRE_KM_PER_S: f64 = 200_000.0;
        // Measured round trips between cloud regions are 1.2 to 2 times what the great circle allows.
        const DETOUR: f64 = 1.5;
        let (a, b) = (self.latitude.to_radians(), other.latitude.to_radians());
        let across = (other.longitude - self.longitude).to_radians();
        let half = ((b - a) / 2.0).sin().powi(2) + a.cos() * b.cos() * (across / 2.0).sin().powi(2);
        let km = 2.0 * EARTH_KM * half.sqrt().asin();
        Duration::from_secs_f64(km * DETOUR / FIBRE_KM_PER_S)
    }
}

/// How one direction of a link behaves beyond its distance.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Weather {
    /// Nothing passes.
    pub cut: bool,
    /// The share of packets that are lost.
    pub loss: f64,
    /// Added to the delay, on average.
    pub slower: Duration,
    /// Bytes per second; `None`: as much as anybody wants.
    pub bytes_per_second: Option<u64>,
}

#[derive(Default)]
struct Line {
    weather: Weather,
    /// When the line has sent all that it was given, in microseconds.
    busy_until_us: u64,
}

/// The network. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    spawner: Spawner,
    dice: Dice,
    record: Record,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    locations: Vec<Location>,
    regions: BTreeMap<RegionId, Location>,
    lines: BTreeMap<(Place, Place), Line>,
    carried: u64,
    /// Places that take nothing in: their processes are stopped.
    deaf: BTreeSet<Place>,
}

/// Within one place: a few hundred microseconds.
const NEAR: (Duration, Duration) = (Duration::from_micros(100), Duration::from_micros(800));

/// The first repetition of a lost packet comes after so long; each further one after twice as long.
const REPEAT: Duration = Duration::from_millis(200);

/// A message that met a cut link is tried again so often …
const AGAIN: Duration = Duration::from_millis(500);

/// … and for so long, until the connection under it is given up: the product's keep-alives, and a little.
const PATIENCE: Duration = Duration::from_secs(12);

impl Network {
    /// A network of nodes at these locations.
    pub(crate) fn new(
        spawner: Spawner,
        dice: Dice,
        record: Record,
        locations: Vec<Location>,
        regions: BTreeMap<RegionId, Location>,
    ) -> Network {
        let inner = Inner { locations, regions, lines: BTreeMap::new(), carried: 0, deaf: BTreeSet::new() };
        Network { spawner, dice, record, inner: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one direction between two places.
    pub(crate) fn set_weather(&self, from: Place, to: Place, change: impl FnOnce(&mut Weather)) {
        change(&mut self.inner().lines.entry((from, to)).or_default().weather);
    }

    /// Every line is as good as its distance allows.
    pub(crate) fn heal(&self) {
        for line in self.inner().lines.values_mut() {
            line.weather = Weather::default();
        }
    }

    /// Whether a place takes nothing in, because its process is stopped.
    pub(crate) fn set_deaf(&self, place: Place, deaf: bool) {
        let mut inner = self.inner();
        if deaf {
            inner.deaf.insert(place)
        } else {
            inner.deaf.remove(&place)
        };
    }

    /// Whether nothing passes from `from` to `to`.
    pub(crate) fn is_cut(&self, from: Place, to: Place) -> bool {
        let inner = self.inner();
        inner.deaf.contains(&to) || inner.lines.get(&(from, to)).is_some_and(|line| line.weather.cut)
    }

    /// Messages carried so far.
    pub(crate) fn carried(&self) -> u64 {
        self.inner().carried
    }

    /// The delay of light between two places.
    pub(crate) fn distance(&self, from: Place, to: Place) -> Duration {
        let inner = self.inner();
        let location = |place| match place {
            Place::Node(node) => inner.locations.get(node).copied(),
            Place::Clients(region) => inner.regions.get(&region).copied(),
        };
        location(from).zip(location(to)).map_or(Duration::ZERO, |(from, to)| from.delay(to))
    }

    /// How long a message takes from here, if the link is not cut.
    pub(crate) fn delay(&self, from: Place, to: Place, bytes: usize) -> Duration {
        let delay = self.draw(from, to, bytes);
        self.record.absorb(&(from, to, bytes, delay));
        delay
    }

    fn draw(&self, from: Place, to: Place, bytes: usize) -> Duration {
        let near = self.dice.duration(NEAR.0, NEAR.1);
        let base = self.distance(from, to);
        // A few per cent of jitter on the way.
        let base = near + base.mul_f64(1.0 + 0.05 * self.dice.unit());
        let now_us = self.spawner.now_us();
        let mut inner = self.inner();
        inner.carried += 1;
        let Some(line) = inner.lines.get_mut(&(from, to)) else { return base };
        let weather = line.weather;
        let mut delay = base + weather.slower.mul_f64(2.0 * self.dice.unit());
        let mut repeat = REPEAT;
        while weather.loss > 0.0 && self.dice.chance(weather.loss) && repeat < PATIENCE {
            delay += repeat;
            repeat *= 2;
        }
        if let Some(rate) = weather.bytes_per_second {
            // 100 bytes of headers on each.
            let sending_us = (bytes as u64 + 100) * 1_000_000 / rate.max(1);
            line.busy_until_us = line.busy_until_us.max(now_us) + sending_us;
            delay += Duration::from_micros(line.busy_until_us - now_us);
        }
        delay
    }

    /// Carries one message. Over a cut link it is late, or lost for good: then `arrive` is dropped without being called.
    pub(crate) fn carry(&self, from: Place, to: Place, bytes: usize, arrive: impl FnOnce() + Send + 'static) {
        if self.is_cut(from, to) {
            return self.wait_out(from, to, bytes, PATIENCE, Box::new(arrive));
        }
        let delay = self.delay(from, to, bytes);
        self.spawner.after(delay, arrive);
    }

    /// Nobody repeats what is lost: for protocols that do that themselves. May arrive twice.
    pub(crate) fn throw(&self, from: Place, to: Place, bytes: usize, arrive: impl Fn() + Send + Sync + 'static) {
        let weather = self.inner().lines.get(&(from, to)).map(|line| line.weather).unwrap_or_default();
        if self.is_cut(from, to) || self.dice.chance(weather.loss) {
            return;
        }
        let delay = self.delay(from, to, bytes);
        if weather.loss > 0.0 && self.dice.chance(0.1) {
            let arrive = Arc::new(arrive);
            let again = Arc::clone(&arrive);
            self.spawner.after(delay, move || arrive());
            let later = delay + self.dice.duration(Duration::ZERO, REPEAT);
            return self.spawner.after(later, move || again());
        }
        self.spawner.after(delay, arrive);
    }

    fn wait_out(&self, from: Place, to: Place, bytes: usize, left: Duration, arrive: Box<dyn FnOnce() + Send>) {
        // The connection may have been given up by either side meanwhile.
        let Some(left) = left.checked_sub(AGAIN) else { return };
        if self.dice.chance(0.05) {
            return;
        }
        let network = self.clone();
        self.spawner.after(AGAIN, move || {
            if network.is_cut(from, to) {
                return network.wait_out(from, to, bytes, left, arrive);
            }
            let delay = network.delay(from, to, bytes);
            network.spawner.after(delay, arrive);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_planet() {
        let virginia = Location { latitude: 38.9, longitude: -77.4 };
        let ireland = Location { latitude: 53.3, longitude: -6.3 };
        let round_trip = virginia.delay(ireland) * 2;
        assert!((Duration::from_millis(60)..Duration::from_millis(95)).contains(&round_trip), "{round_trip:?}");
        assert_eq!(virginia.delay(virginia), Duration::ZERO);
    }
}
