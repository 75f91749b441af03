//! CRC-32C, quick also for the short strings that most checksums of a log are over.
//!
//! Long strings go to the `crc32c` crate, which works on three parts at once. What it does before it starts, and its
//! byte-wise treatment of ends, costs more than the checksum itself where there are a few dozen bytes: a header of 36
//! bytes and a payload of 128 take it 16 ns, and 5 ns here. Where the processor has no instruction for it, everything
//! goes to the crate.

/// From here on the crate is quicker.
#[cfg(target_arch = "x86_64")]
const LONG_BYTES: usize = 768;

/// The checksum `crc` continued over `bytes`.
#[inline]
pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < LONG_BYTES && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the function is safe but for the instructions it uses, which this processor has: asked just now.
        return unsafe { append_short(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn append_short(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let (halves, rest) = rest.as_chunks::<4>();
    let crc = words.iter().fold(u64::from(!crc), |crc, word| _mm_crc32_u64(crc, u64::from_le_bytes(*word)));
    // The instruction leaves the upper half zero.
    let crc = halves.iter().fold(crc as u32, |crc, half| _mm_crc32_u32(crc, u32::from_le_bytes(*half)));
    !rest.iter().fold(crc, |crc, byte| _mm_crc32_u8(crc, *byte))
}

#[cfg(test)]
mod tests {
    use super::append;

    #[test]
    fn the_published_check_value_comes_out() {
        assert_eq!(append(0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn every_length_and_alignment_gives_what_the_crate_gives() {
        let bytes: Vec<u8> = (0..3000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        // An interpreter takes its time: a few lengths around the places where another loop takes over.
        let (starts, step) = if cfg!(miri) { (2, 127) } else { (9, 1) };
        for start in 0..starts {
            for end in (start..start + 900).step_by(step).chain([2000, 3000]) {
                let part = &bytes[start..end];
                assert_eq!(append(7, part), crc32c::crc32c_append(7, part), "{start}..{end}");
                let (head, tail) = part.split_at(part.len() / 3);
                assert_eq!(append(append(7, head), tail), append(7, part), "{start}..{end} in two");
            }
        }
    }
}
