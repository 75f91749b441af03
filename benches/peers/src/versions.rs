//! The versions of the engines, as they are in the lock file that this program was built with.

/// The version of a package; "unknown" if it is not in the lock file.
pub(crate) fn of(package: &str) -> String {
    find(include_str!("../Cargo.lock"), package).unwrap_or("unknown").to_owned()
}

fn find<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_by_the_whole_name() {
        let lock =
            "[[package]]\nname = \"log-x\"\nversion = \"2.0.0\"\n\n[[package]]\nname = \"log\"\nversion = \"1.2.3\"";
        assert_eq!(find(lock, "log"), Some("1.2.3"));
        assert_eq!(find(lock, "lo"), None);
        assert_ne!(of("ringwal"), "unknown");
    }
}
