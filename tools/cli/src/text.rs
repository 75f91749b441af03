//! Numbers and lines for people: pure formatting, and one way to print that survives a closed pipe.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use bytesize::ByteSize;

/// Prints to standard output. A reader that went away (`| head`) is not an error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints whatever `write` writes to standard output, however long it is. A reader that goes away (`| head`) ends that
/// without an error.
pub(crate) fn printed(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the output"),
    }
}

/// The text on one line, with single spaces.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A whole number with thousands set apart: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A measured value with about three significant digits, whole above a hundred.
pub(crate) fn value(number: f64) -> String {
    match number.abs() {
        _ if !number.is_finite() => "-".into(),
        size if size >= 100.0 => count(number.round() as u64),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{number:.2}"),
        size if size >= 0.1 => format!("{number:.3}"),
        _ => format!("{number:.5}"),
    }
}

/// Bytes in binary units.
pub(crate) fn bytes(number: u64) -> String {
    ByteSize(number).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn values_keep_about_three_digits() {
        let shown = [0.0, 0.00263, 0.1234, 9.876, 12.34, 12345.6, f64::NAN].map(value);
        assert_eq!(shown, ["0.00", "0.00263", "0.123", "9.88", "12.3", "12,346", "-"]);
    }

    #[test]
    fn an_error_of_many_lines_becomes_one() {
        assert_eq!(one_line("a\n  b\t c\n"), "a b c");
    }
}
