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

/// Age as upstream words it (`duration.HumanDuration`).
#[must_use]
pub fn age(since: &str, now_ms: u64) -> String {
    let Some(then) = parse(since) else { return "<unknown>".to_owned() };
    let seconds = now_ms.saturating_sub(then) / 1000;
    let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => pair(days / 365, "y", days % 365, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_worded_as_upstream_does() {
        let aged = |seconds: u64| age("1970-01-01T00:00:00Z", seconds * 1000);
        let expected = [
            (119, "119s"),
            (185, "3m5s"),
            (180, "3m"),
            (3600, "60m"),
            (11_000, "3h3m"),
            (172_799, "47h"),
            (180_000, "2d2h"),
        ];
        for (seconds, words) in expected {
            assert_eq!(aged(seconds), words);
        }
        assert_eq!(age("yesterday", 0), "<unknown>");
    }

    #[test]
    fn times_read_back() {
        assert_eq!(rfc3339(1_000_500), "1970-01-01T00:16:40Z");
        assert_eq!(rfc3339_micros(1_000_500), "1970-01-01T00:16:40.500000Z");
        assert_eq!(parse("1970-01-01T00:16:40Z"), Some(1_000_000));
        assert_eq!(parse("1970-01-01T01:16:40+01:00"), Some(1_000_000));
        assert_eq!(parse("yesterday"), None);
    }
}
