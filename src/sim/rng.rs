//! The one source of chance of the simulator: a 64-bit state, a seed, the same numbers on every machine.
//!
//! SplitMix64: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, with the
//! constants of S. Vigna's public-domain `splitmix64.c`. Good enough to scatter crashes, fast, and seedable by anything;
//! it is no source of secrets.

/// A seeded generator of pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator that yields the same numbers for the same seed, for ever.
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }

    /// The generator of one part of something that as a whole has this seed. What other parts draw, and whether they
    /// draw at all, makes no difference to it.
    pub fn of_part(seed: u64, part: &[u64]) -> Rng {
        part.iter().fold(Rng::new(seed), |mut rng, number| Rng::new(rng.next_u64() ^ Rng::new(*number).next_u64()))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, a very little biased towards small ones where `bound` is no power of two.
    ///
    /// # Panics
    ///
    /// Where `bound` is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "there is no number below zero");
        (self.next_u64() % bound as u64) as usize
    }

    /// True once in `times` on average.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_seed_draw_different_numbers_and_always_the_same() {
        let parts: [&[u64]; 6] = [&[], &[0], &[1], &[0, 1], &[1, 0], &[1, 1]];
        let drawn = |seed| parts.map(|part| Rng::of_part(seed, part).next_u64());
        let all: std::collections::BTreeSet<u64> = drawn(7).into_iter().chain(drawn(8)).collect();
        assert_eq!((all.len(), drawn(7)), (12, drawn(7)));
    }

    #[test]
    fn it_yields_the_published_sequence() {
        // First outputs of Vigna's splitmix64.c for the seed 1234567, a widely used test vector.
        let mut rng = Rng::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64()], expected);
    }
}
