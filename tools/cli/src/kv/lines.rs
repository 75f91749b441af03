//! Keys and values as lines of text: what `export`, `scan` and `get` print, and what `load`, `batch` and arguments are.
//!
//! ```text
//! file   = *(line LF) [line]
//! line   = key TAB value
//! key    = value = *(plain / escape)
//! plain  = a character of UTF-8 text that is neither a control character nor a backslash
//! escape = "\\" / "\t" / "\n" / "\r" / "\x" two hexadecimal digits, for one byte
//! ```
//!
//! Every line has one meaning, and any bytes can be written. What is written has one form: text as it is, the four
//! named escapes, and `\x` with small letters for every other byte: control characters (the newer ones above 127 too,
//! which terminals obey) and whatever is not UTF-8. What is read may escape more than it must; anything raw that should
//! have been escaped is refused with its place, because a file that came through the wrong hands (Windows line ends,
//! another encoding, a table with three columns) is better met at line 1 than in the store.
//!
//! Pure but for the reader that is handed in; knows neither stores nor files. A line is read into a buffer that is used
//! again, and a field without escapes is copied once.

use std::fmt;
use std::io::{self, BufRead};

use bytes::Bytes;

/// What a line may have besides its fields: an operation, tabs, its end.
const BESIDES_BYTES: u64 = 16;

/// Longest line whose key and value have so many bytes together: each byte may be an escape.
pub(crate) fn line_bytes_max(bytes: u64) -> u64 {
    const ESCAPE_BYTES: u64 = 4;
    ESCAPE_BYTES * bytes + BESIDES_BYTES
}

/// What is wrong at one place of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NoTab,
    RawTab,
    RawReturn,
    RawControl(char),
    NotUtf8(u8),
    UnknownEscape(char),
    CutEscape,
    NotHex,
    NoOperation,
    TooManyFields,
    /// For whoever knows how long a key or a value may be.
    TooLarge {
        what: &'static str,
        bytes: usize,
        limit: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoTab => f.write_str("the line ends without a tab after the key: write KEY, one tab, VALUE"),
            Fault::RawTab => f.write_str("a tab inside a key or value: write it as \\t"),
            Fault::RawReturn => f.write_str("a carriage return: write it as \\r, or give lines that end in \\n alone"),
            Fault::RawControl(char) => {
                write!(f, "the control character U+{:04X}: write its bytes as \\xNN", *char as u32)
            }
            Fault::NotUtf8(byte) => {
                write!(f, "the byte 0x{byte:02x}, which is not UTF-8 text here: write it as \\x{byte:02x}")
            }
            Fault::UnknownEscape(char) => {
                write!(
                    f,
                    "the escape \\{} means nothing: there are \\\\, \\t, \\n, \\r and \\xNN",
                    char.escape_default()
                )
            }
            Fault::CutEscape => f.write_str("the escape is not complete: a backslash itself is written \\\\"),
            Fault::NotHex => f.write_str("\\x is followed by two hexadecimal digits, as in \\x0a"),
            Fault::NoOperation => f.write_str("no operation: a line is set TAB key TAB value, or delete TAB key"),
            Fault::TooManyFields => f.write_str("delete takes a key and nothing after it"),
            Fault::TooLarge { what, bytes, limit } => {
                write!(f, "the {what} has {bytes} bytes, and at most {limit} are allowed")
            }
        }
    }
}

/// Why a line or an argument was refused, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Misread {
    /// The first character that cannot stand there, counted from 1.
    pub(crate) column: u64,
    pub(crate) fault: Fault,
}

impl fmt::Display for Misread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: {}", self.column, self.fault)
    }
}

impl std::error::Error for Misread {}

impl Misread {
    /// A fault at a byte of `line`: people count characters.
    fn at(line: &[u8], byte: usize, fault: Fault) -> Misread {
        let before = line[..byte].utf8_chunks().map(|chunk| chunk.valid().chars().count() + chunk.invalid().len());
        Misread { column: before.sum::<usize>() as u64 + 1, fault }
    }
}

/// Appends `bytes` as a field.
pub(crate) fn write_field(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.iter().all(|&byte| is_plain_ascii(byte)) {
        return out.extend_from_slice(bytes);
    }
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|char| write_char(char, out));
        chunk.invalid().iter().for_each(|&byte| write_hex(byte, out));
    }
}

/// Appends one whole line.
pub(crate) fn write_line(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    write_field(key, out);
    out.push(b'\t');
    write_field(value, out);
    out.push(b'\n');
}

fn is_plain_ascii(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'\\'
}

fn write_char(char: char, out: &mut Vec<u8>) {
    match char {
        '\\' => out.extend_from_slice(b"\\\\"),
        '\t' => out.extend_from_slice(b"\\t"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        char => {
            let mut buffer = [0; 4];
            let bytes = char.encode_utf8(&mut buffer).as_bytes();
            match char.is_control() {
                true => bytes.iter().for_each(|&byte| write_hex(byte, out)),
                false => out.extend_from_slice(bytes),
            }
        }
    }
}

fn write_hex(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

/// The bytes of one field that stands alone: an argument.
pub(crate) fn read_field(field: &[u8]) -> Result<Bytes, Misread> {
    read_at(field, 0, field.len())
}

/// Key and value of a line without its end.
pub(crate) fn read_line(line: &[u8]) -> Result<(Bytes, Bytes), Misread> {
    let Some(tab) = line.iter().position(|&byte| byte == b'\t') else {
        // What else is wrong with it comes first: a line of another encoding seldom has a tab.
        read_field(line)?;
        return Err(Misread::at(line, line.len(), Fault::NoTab));
    };
    Ok((read_at(line, 0, tab)?, read_at(line, tab + 1, line.len())?))
}

/// As [`read_line`], where keys and values may be no longer than this.
pub(crate) fn read_line_up_to(
    line: &[u8],
    key_bytes_max: usize,
    value_bytes_max: usize,
) -> Result<(Bytes, Bytes), Misread> {
    let (key, value) = read_line(line)?;
    let value_at = line.iter().position(|&byte| byte == b'\t').map_or(0, |tab| tab + 1);
    let checks = [("key", &key, key_bytes_max, 0), ("value", &value, value_bytes_max, value_at)];
    for (what, field, limit, at) in checks {
        if field.len() > limit {
            return Err(Misread::at(line, at, Fault::TooLarge { what, bytes: field.len(), limit }));
        }
    }
    Ok((key, value))
}

/// One line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Set(Bytes, Bytes),
    Delete(Bytes),
}

/// The operation of a line without its end: `set TAB key TAB value` or `delete TAB key`.
pub(crate) fn read_operation(line: &[u8]) -> Result<Operation, Misread> {
    const SET: &[u8] = b"set\t";
    const DELETE: &[u8] = b"delete\t";
    let later = |before: usize| move |misread: Misread| Misread { column: misread.column + before as u64, ..misread };
    if let Some(rest) = line.strip_prefix(SET) {
        return read_line(rest).map(|(key, value)| Operation::Set(key, value)).map_err(later(SET.len()));
    }
    let Some(key) = line.strip_prefix(DELETE) else { return Err(Misread { column: 1, fault: Fault::NoOperation }) };
    match key.iter().position(|&byte| byte == b'\t') {
        Some(tab) => Err(Misread::at(line, DELETE.len() + tab, Fault::TooManyFields)),
        None => read_field(key).map(Operation::Delete).map_err(later(DELETE.len())),
    }
}

/// The bytes of the field `line[start..end]`; the line is only needed to say where something is.
fn read_at(line: &[u8], start: usize, end: usize) -> Result<Bytes, Misread> {
    let field = &line[start..end];
    if field.iter().all(|&byte| is_plain_ascii(byte)) {
        return Ok(Bytes::copy_from_slice(field));
    }
    unescape(field).map(Bytes::from).map_err(|(at, fault)| Misread::at(line, start + at, fault))
}

/// The bytes of a field, or the first byte that cannot stand there.
fn unescape(field: &[u8]) -> Result<Vec<u8>, (usize, Fault)> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    for chunk in field.utf8_chunks() {
        unescape_text(chunk.valid(), &mut bytes).map_err(|(within, fault)| (at + within, fault))?;
        at += chunk.valid().len();
        if let Some(&byte) = chunk.invalid().first() {
            return Err((at, Fault::NotUtf8(byte)));
        }
    }
    Ok(bytes)
}

fn unescape_text(text: &str, bytes: &mut Vec<u8>) -> Result<(), (usize, Fault)> {
    let mut rest = text.char_indices();
    while let Some((at, char)) = rest.next() {
        let byte = match char {
            '\\' => escaped(&mut rest).map_err(|fault| (at, fault))?,
            '\t' => return Err((at, Fault::RawTab)),
            '\r' => return Err((at, Fault::RawReturn)),
            char if char.is_control() => return Err((at, Fault::RawControl(char))),
            char => {
                bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        bytes.push(byte);
    }
    Ok(())
}

/// The byte that an escape stands for, after its backslash.
fn escaped(rest: &mut std::str::CharIndices<'_>) -> Result<u8, Fault> {
    match rest.next().ok_or(Fault::CutEscape)?.1 {
        '\\' => Ok(b'\\'),
        't' => Ok(b'\t'),
        'n' => Ok(b'\n'),
        'r' => Ok(b'\r'),
        'x' => {
            let mut digit = || rest.next().and_then(|(_, char)| char.to_digit(16)).ok_or(Fault::NotHex);
            Ok((digit()? << 4 | digit()?) as u8)
        }
        char => Err(Fault::UnknownEscape(char)),
    }
}

/// Why a file of lines could not be read on.
#[derive(Debug)]
pub(crate) enum LineError {
    /// What is there is no line of this kind.
    Misread { line: u64, misread: Misread },
    /// Longer than any line may be.
    TooLong { line: u64, limit: u64 },
    /// It cannot be read at all.
    Io { line: u64, source: io::Error },
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineError::Misread { line, misread } => write!(f, "line {line}, {misread}"),
            LineError::TooLong { line, limit } => {
                write!(
                    f,
                    "line {line} is longer than {limit} bytes, and so than any that fits --segment-size: is this a file of lines?"
                )
            }
            LineError::Io { line, source } => write!(f, "line {line} cannot be read: {source}"),
        }
    }
}

impl std::error::Error for LineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LineError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The lines of a reader, one at a time.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    /// Number of the line that was read last, from 1.
    number: u64,
    /// Bytes read so far.
    bytes: u64,
    line_bytes_max: u64,
}

impl<R: BufRead> Lines<R> {
    /// Lines of at most `line_bytes_max` bytes: a file that is no text at all does not end up in memory as one line.
    pub(crate) fn new(reader: R, line_bytes_max: u64) -> Lines<R> {
        Lines { reader, line: Vec::new(), number: 0, bytes: 0, line_bytes_max }
    }

    /// Bytes read so far, for a bar.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line, understood by `read`; nothing at the end.
    pub(crate) fn next<T>(&mut self, read: impl Fn(&[u8]) -> Result<T, Misread>) -> Result<Option<T>, LineError> {
        if !self.advance()? {
            return Ok(None);
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        read(line).map(Some).map_err(|misread| LineError::Misread { line: self.number, misread })
    }

    /// Passes over lines without understanding them. Fewer, where there are fewer; says how many.
    pub(crate) fn skip(&mut self, lines: u64) -> Result<u64, LineError> {
        for skipped in 0..lines {
            if !self.advance()? {
                return Ok(skipped);
            }
        }
        Ok(lines)
    }

    /// Reads one line into the buffer; false at the end.
    fn advance(&mut self) -> Result<bool, LineError> {
        let line = self.number + 1;
        self.line.clear();
        let limit = self.line_bytes_max;
        let mut limited = io::Read::take(&mut self.reader, limit);
        let read = limited.read_until(b'\n', &mut self.line).map_err(|source| LineError::Io { line, source })?;
        if read as u64 == limit && self.line.last() != Some(&b'\n') {
            return Err(LineError::TooLong { line, limit });
        }
        self.bytes += read as u64;
        self.number += u64::from(read > 0);
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn line(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_line(key, value, &mut out);
        out
    }

    fn misread(line: &[u8]) -> (u64, Fault) {
        let misread = read_line(line).unwrap_err();
        (misread.column, misread.fault)
    }

    /// Bytes that are often something special, at a boundary or part of a longer character.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let special = prop::sample::select(b"\\\t\n\rxnt0a\x00\x1b\x7f\x80\x9b\xc2\xc3\xa9\xe2\xff \"".as_slice());
        vec(prop_oneof![3 => special, 1 => any::<u8>()], 0..40)
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(key in hostile(), value in hostile()) {
            let text = line(&key, &value);
            prop_assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 1);
            prop_assert_eq!(text.iter().filter(|&&byte| byte == b'\t').count(), 1);
            let shown = std::str::from_utf8(&text).unwrap();
            prop_assert!(shown.chars().all(|char| !char.is_control() || char == '\t' || char == '\n'));
            let (read_key, read_value) = read_line(&text[..text.len() - 1]).unwrap();
            prop_assert_eq!((&read_key[..], &read_value[..]), (&key[..], &value[..]));
        }

        #[test]
        fn whatever_is_read_is_written_in_one_form_and_read_the_same(text in hostile()) {
            match read_line(&text) {
                Ok((key, value)) => {
                    let written = line(&key, &value);
                    prop_assert_eq!(read_line(&written[..written.len() - 1]).unwrap(), (key, value));
                }
                Err(misread) => prop_assert!((1..=text.len() as u64 + 1).contains(&misread.column)),
            }
        }

        #[test]
        fn operations_mean_what_their_fields_mean(key in hostile(), value in hostile()) {
            let mut set = b"set\t".to_vec();
            write_line(&key, &value, &mut set);
            let mut delete = b"delete\t".to_vec();
            write_field(&key, &mut delete);
            let key = Bytes::from(key);
            prop_assert_eq!(read_operation(&set[..set.len() - 1]), Ok(Operation::Set(key.clone(), value.into())));
            prop_assert_eq!(read_operation(&delete), Ok(Operation::Delete(key)));
        }
    }

    #[test]
    fn text_stays_text_and_the_rest_is_escaped() {
        assert_eq!(line("naïve 🙂 \"x\"".as_bytes(), b""), "naïve 🙂 \"x\"\t\n".as_bytes());
        assert_eq!(line(b"a\\\t\n\r", b"\0\x1b\x7f\xff"), b"a\\\\\\t\\n\\r\t\\x00\\x1b\\x7f\\xff\n");
        // A control character of two bytes, which a terminal would obey, and half of a longer character.
        assert_eq!(line(b"\xc2\x9b", b"\xe2\x82"), b"\\xc2\\x9b\t\\xe2\\x82\n");
    }

    #[test]
    fn what_need_not_be_escaped_may_be() {
        assert_eq!(read_line(b"\\x41\\xFf\t\\xc3\\xa9"), Ok((b"A\xff"[..].into(), "é".into())));
        assert_eq!(read_line(b"\t"), Ok((Bytes::new(), Bytes::new())));
    }

    #[test]
    fn each_mistake_is_met_at_its_place() {
        for (text, column, fault) in [
            (&b"key"[..], 4, Fault::NoTab),
            (b"", 1, Fault::NoTab),
            (b"k\tv\tw", 4, Fault::RawTab),
            (b"k\tv\r", 4, Fault::RawReturn),
            (b"k\t\x1b[2J", 3, Fault::RawControl('\x1b')),
            ("é\tü\u{9b}".as_bytes(), 4, Fault::RawControl('\u{9b}')),
            (b"k\tv\n", 4, Fault::RawControl('\n')),
            ("ü\tk\u{fc}".as_bytes().split_last().unwrap().1, 4, Fault::NotUtf8(0xc3)),
            (b"\xffk", 1, Fault::NotUtf8(0xff)),
            (b"k\t\\q", 3, Fault::UnknownEscape('q')),
            (b"k\tab\\", 5, Fault::CutEscape),
            (b"k\\\tv", 2, Fault::CutEscape),
            (b"\\x4\tv", 1, Fault::NotHex),
            (b"\\xg0\tv", 1, Fault::NotHex),
        ] {
            assert_eq!(misread(text), (column, fault), "{}", text.escape_ascii());
        }
        for (text, column, fault) in [
            (&b"put\tk\tv"[..], 1, Fault::NoOperation),
            (b"delete", 1, Fault::NoOperation),
            (b"set\tk", 6, Fault::NoTab),
            (b"set\tk\t\\", 7, Fault::CutEscape),
            (b"delete\tk\tv", 9, Fault::TooManyFields),
            (b"delete\tk\\y", 9, Fault::UnknownEscape('y')),
        ] {
            assert_eq!(read_operation(text), Err(Misread { column, fault }), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn what_is_too_long_is_told_with_its_length_and_not_with_that_of_its_escapes() {
        assert!(read_line_up_to(b"\\x00\\x01\t\\n", 2, 1).is_ok());
        let too_large = |what, bytes, limit| Fault::TooLarge { what, bytes, limit };
        let misread = |column, fault| Err(Misread { column, fault });
        assert_eq!(read_line_up_to(b"abc\t", 2, 1), misread(1, too_large("key", 3, 2)));
        assert_eq!(read_line_up_to("\u{e9}\tab".as_bytes(), 2, 1), misread(3, too_large("value", 2, 1)));
    }

    #[test]
    fn lines_are_counted_skipped_and_need_no_end_at_the_end() {
        let mut lines = Lines::new(&b"a\t1\nb\nc\t3"[..], line_bytes_max(9));
        assert_eq!(lines.skip(1).unwrap(), 1);
        let error = lines.next(read_line).unwrap_err().to_string();
        assert!(error.starts_with("line 2, column 2:"), "{error}");
        assert_eq!(lines.next(read_line).unwrap(), Some(("c".into(), "3".into())));
        assert_eq!(lines.next(read_line).unwrap(), None);
        assert_eq!(lines.bytes(), 9);
        assert_eq!(Lines::new(&b"a\n"[..], line_bytes_max(1)).skip(5).unwrap(), 1);
    }

    #[test]
    fn the_largest_key_and_value_can_be_read_though_every_byte_of_them_is_an_escape() {
        for largest in [1000, 100_000] {
            let (key, value) = (vec![0; 100], vec![0xff; largest - 100]);
            let text = [b"set\t", &line(&key, &value)[..]].concat();
            let read = Lines::new(&text[..], line_bytes_max(largest as u64)).next(read_operation).unwrap();
            assert_eq!(read, Some(Operation::Set(key.into(), value.into())));
            let error = Lines::new(&text[..], line_bytes_max(largest as u64 - 5)).next(read_operation).unwrap_err();
            assert!(matches!(error, LineError::TooLong { line: 1, .. }), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_one_endless_line_is_refused_and_not_kept_in_memory() {
        let mut lines = Lines::new(io::BufReader::new(io::repeat(b'x')), 1 << 20);
        let error = lines.next(read_line).unwrap_err();
        assert!(matches!(error, LineError::TooLong { line: 1, limit: 0x10_0000 }), "{error}");
        assert!(lines.line.capacity() <= 2 << 20);
    }
}
