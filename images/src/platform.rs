//! Which of an index's manifests fits this machine (containerd `platforms/compare.go`).

use std::fmt;

/// Operating system, architecture and variant, in Go's spelling: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, `v8`; empty where there is none.
    pub variant: String,
}

impl Platform {
    /// What this program was built for.
    #[must_use]
    pub fn current() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `offered` runs here: 0 is best, `None` is not at all. Newer variants of the same architecture
    /// are not run; older ones are, the newest of them first.
    #[must_use]
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os {
            return None;
        }
        let level = |platform: &Self| -> Option<u32> {
            let default = match platform.architecture.as_str() {
                "arm64" => "v8",
                "arm" => "v7",
                "amd64" => "v1",
                _ => "",
            };
            let variant = if platform.variant.is_empty() { default } else { &platform.variant };
            if variant.is_empty() {
                return Some(0);
            }
            // `v9.2` counts as 9002, `v8` as 8000.
            let (major, minor) =
                variant.strip_prefix('v')?.split_once('.').unwrap_or((variant.strip_prefix('v')?, "0"));
            major.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(minor.parse::<u32>().ok()?)
        };
        let (mine, theirs) = (level(self)?, level(offered)?);
        if self.architecture == offered.architecture {
            return mine.checked_sub(theirs);
        }
        match (self.architecture.as_str(), offered.architecture.as_str()) {
            ("amd64", "386") => Some(100_000),
            ("arm64", "arm") => 8000u32.checked_sub(theirs).map(|distance| 100_000 + distance),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(out, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    /// Which of `offered` would be taken on `here`.
    fn best<'a>(here: &str, offered: &[&'a str]) -> Option<&'a str> {
        let here = platform(here);
        offered
            .iter()
            .copied()
            .filter_map(|text| here.rank(&platform(text)).map(|rank| (rank, text)))
            .min()
            .map(|(_, text)| text)
    }

    #[test]
    fn the_nearest_older_variant_wins() {
        assert_eq!(best("linux/amd64", &["linux/arm64", "linux/386", "linux/amd64"]), Some("linux/amd64"));
        assert_eq!(best("linux/amd64", &["linux/arm64", "linux/386"]), Some("linux/386"));
        assert_eq!(
            best("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"]),
            Some("linux/amd64/v2")
        );
        assert_eq!(best("linux/amd64", &["linux/amd64/v2"]), None);
        assert_eq!(best("linux/arm64/v8", &["linux/arm/v7", "linux/arm64"]), Some("linux/arm64"));
        assert_eq!(best("linux/arm64/v8", &["linux/arm/v6", "linux/arm/v7"]), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm64/v9.2", &["linux/arm64/v9", "linux/arm64/v8.5"]), Some("linux/arm64/v9"));
        assert_eq!(best("linux/arm/v6", &["linux/arm/v7"]), None);
        assert_eq!(best("linux/amd64", &["windows/amd64", "unknown/unknown"]), None);
        assert_eq!(best("linux/riscv64", &["linux/riscv64"]), Some("linux/riscv64"));
        assert_eq!(best("linux/amd64", &["linux/amd64/vx", "linux/amd64/v999999999999.9"]), None);
    }
}
