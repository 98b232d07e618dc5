//! Times as Kubernetes writes them: RFC 3339, UTC.

/// Seconds: `2026-11-26T12:00:00Z`.
#[must_use]
pub fn rfc3339(ms: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(ms / 1000).unwrap_or(0))
        .map_or_else(|_| String::new(), |at| at.to_string())
}

/// Microseconds: `2026-11-26T12:00:00.000000Z`.
#[must_use]
pub fn rfc3339_micros(ms: u64) -> String {
    let seconds = rfc3339(ms);
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), (ms % 1000) * 1000)
}

/// Milliseconds since 1970 of an RFC 3339 text.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back() {
        assert_eq!(rfc3339(1_000_500), "1970-01-01T00:16:40Z");
        assert_eq!(rfc3339_micros(1_000_500), "1970-01-01T00:16:40.500000Z");
        assert_eq!(parse("1970-01-01T00:16:40Z"), Some(1_000_000));
        assert_eq!(parse("1970-01-01T01:16:40+01:00"), Some(1_000_000));
        assert_eq!(parse("yesterday"), None);
    }
}
