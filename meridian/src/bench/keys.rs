//! Which key is next.

use std::str::FromStr;

use rand::Rng;
use rand::rngs::SmallRng;

/// How requests spread over the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Each key alike.
    Uniform,
    /// Few keys often: the k-th most popular in proportion to `1 / k^exponent`.
    Zipf {
        /// 0.99 is YCSB's; greater is more skewed. Above 0, not 1.
        exponent: f64,
    },
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        let bad = || "use uniform, zipf, or zipf:0.99 (an exponent above 0 and other than 1)".to_owned();
        match text {
            "uniform" => Ok(Distribution::Uniform),
            "zipf" => Ok(Distribution::Zipf { exponent: 0.99 }),
            other => {
                let exponent: f64 = other.strip_prefix("zipf:").and_then(|text| text.parse().ok()).ok_or_else(bad)?;
                let valid = exponent > 0.0 && exponent < 10.0 && (exponent - 1.0).abs() > 1e-6;
                valid.then_some(Distribution::Zipf { exponent }).ok_or_else(bad)
            }
        }
    }
}

impl Distribution {
    /// The number of the next key, in `0..keys`.
    ///
    /// Zipf by inverting the integral of the density (the continuous approximation of Gray et al., "Quickly
    /// Generating Billion-Record Synthetic Databases", 1994): no table, constant time.
    pub fn draw(self, keys: u64, random: &mut SmallRng) -> u64 {
        match self {
            Distribution::Uniform => random.random_range(0..keys.max(1)),
            Distribution::Zipf { exponent } => {
                let power = 1.0 - exponent;
                let reach = ((keys.max(1) as f64) + 1.0).powf(power) - 1.0;
                let rank = (1.0 + random.random::<f64>() * reach).powf(1.0 / power);
                (rank as u64).clamp(1, keys.max(1)) - 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn counts(distribution: Distribution) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(7);
        let mut counts = vec![0; 100];
        for _ in 0..100_000 {
            counts[distribution.draw(100, &mut random) as usize] += 1;
        }
        counts
    }

    #[test]
    fn uniform_is_even_and_zipf_prefers_the_first() {
        let uniform = counts(Distribution::Uniform);
        assert!(uniform.iter().all(|count| (800..1200).contains(count)), "{uniform:?}");
        let zipf = counts("zipf".parse().unwrap());
        assert!(zipf[0] > 5 * zipf[10] && zipf[10] > 2 * zipf[90] && zipf[99] > 0, "{zipf:?}");
    }

    #[test]
    fn a_distribution_reads_as_people_write_it() {
        assert_eq!("zipf:0.7".parse(), Ok(Distribution::Zipf { exponent: 0.7 }));
        for bad in ["zipf:1", "zipf:-1", "zipf:x", "normal", ""] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad}");
        }
    }
}
