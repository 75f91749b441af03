//! Keys out of paths and queries: any bytes, percent-encoded. A `+` is a plus.

use axum::http::Uri;
use percent_encoding::percent_decode_str;

use crate::failing::Failure;
use crate::types::KEY_BYTES_MAX;

/// The parameters of a query.
#[derive(Debug, Default)]
pub(super) struct Parameters(Vec<(String, Vec<u8>)>);

impl Parameters {
    /// Those of this request, all of which must be among these.
    pub(super) fn of(uri: &Uri, known: &[&str]) -> Result<Parameters, Failure> {
        let mut parameters = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) || parameters.iter().any(|(there, _)| there == name) {
                return Err(Failure::bad(format!("{name:?} is unknown here or given twice; known: {known:?}")));
            }
            parameters.push((name.to_owned(), percent_decode_str(value).collect()));
        }
        Ok(Parameters(parameters))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        let place = self.0.iter().position(|(there, _)| there == name)?;
        Some(self.0.swap_remove(place).1)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        let text = self.take(name).map(String::from_utf8).transpose();
        text.map_err(|_| Failure::bad(format!("{name:?} is not UTF-8")))
    }
}

/// The key of a request: what follows the prefix in its path, or else the parameter `key`.
pub(super) fn key(uri: &Uri, prefix: &str, parameters: &mut Parameters) -> Result<Vec<u8>, Failure> {
    let path = uri.path().strip_prefix(prefix).map_or("", |rest| rest.strip_prefix('/').unwrap_or(rest));
    let key = match (path, parameters.take("key")) {
        ("", Some(key)) => key,
        ("", None) => return Err(Failure::bad("a key is needed: in the path, or as ?key=")),
        (path, None) => percent_decode_str(path).collect(),
        (_, Some(_)) => return Err(Failure::bad("the key is given twice: in the path and as ?key=")),
    };
    match key.len() {
        bytes if bytes > KEY_BYTES_MAX => Err(Failure::too_large("key", bytes, KEY_BYTES_MAX)),
        _ => Ok(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(uri: &str) -> Result<Vec<u8>, Failure> {
        let uri: Uri = uri.parse().unwrap();
        key(&uri, "/v1/kv", &mut Parameters::of(&uri, &["key", "consistency"])?)
    }

    #[test]
    fn keys_are_any_bytes() {
        assert_eq!(key_of("/v1/kv/plain").unwrap(), b"plain");
        assert_eq!(key_of("/v1/kv/a%2Fb/c+%FF%00").unwrap(), b"a/b/c+\xff\0");
        assert_eq!(key_of("/v1/kv//").unwrap(), b"/");
        assert_eq!(key_of("/v1/kv?key=").unwrap(), b"");
        assert_eq!(key_of("/v1/kv?consistency=local&key=%2E%2E").unwrap(), b"..");
    }

    #[test]
    fn a_key_is_given_once_and_is_not_too_long() {
        let long = format!("/v1/kv/{}", "k".repeat(KEY_BYTES_MAX + 1));
        for wrong in ["/v1/kv", "/v1/kv/", "/v1/kv/a?key=b", "/v1/kv/a?kye=b", "/v1/kv?key=a&key=b", &long] {
            assert!(key_of(wrong).is_err(), "{wrong}");
        }
        assert!(key_of(&long[..long.len() - 1]).is_ok());
    }
}
