//! Choices drawn from an input. Once the input is used up every choice is the first one, so everything ends.

use arbitrary::Unstructured;

/// See the module.
pub(super) struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    pub(super) fn new(input: &'a [u8]) -> Choices<'a> {
        Choices(Unstructured::new(input))
    }

    /// Whether the input is used up.
    pub(super) fn are_spent(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `bound`, which is at least 1: one byte of the input for a bound up to 256.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0.int_in_range(0..=bound - 1).unwrap_or(0)
    }

    /// One of these.
    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// True once in `times`, if all bytes are alike; false once the input is used up.
    pub(super) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    pub(super) fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(super) fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A small number, one at an edge of what a field can hold, or any.
    pub(super) fn number(&mut self) -> u64 {
        match self.below(8) {
            0..4 => self.byte().into(),
            4 => u64::MAX - self.byte() as u64,
            5 => u32::MAX as u64 - 2 + self.byte() as u64 % 8,
            6 => (1 << self.below(64)) - (self.byte() as u64 & 1),
            _ => self.u64(),
        }
    }

    /// Up to `most` bytes of the input, fewer near its end.
    pub(super) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let wanted = self.below(most + 1).min(self.0.len());
        self.0.bytes(wanted).unwrap_or_default()
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        self.0.bytes(self.0.len()).unwrap_or_default()
    }
}
