//! Quantities: `500m`, `2`, `128Mi`, `1e3` (upstream: apimachinery `pkg/api/resource`).

use std::fmt;

/// An amount in thousandths, rounded up where it was finer.
///
/// Two quantities are equal when their amounts are: how they were written does not matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    milli: i128,
    binary: bool,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a quantity: expected a number with one of m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, such as `500m` or `128Mi`"
)]
pub struct QuantityError(String);

impl Quantity {
    /// Reads a quantity.
    ///
    /// # Errors
    /// Not a number with a known suffix, or out of range (2^63).
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text).ok_or_else(|| QuantityError(text.chars().take(40).collect()))
    }

    /// In thousandths.
    #[must_use]
    pub fn milli(self) -> i128 {
        self.milli
    }

    /// In whole units, rounded up.
    #[must_use]
    pub fn value(self) -> i128 {
        self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) != 0)
    }

    /// A quantity of whole units.
    #[must_use]
    pub fn of(value: i128) -> Self {
        Self { milli: value * 1000, binary: false }
    }

    /// Of a JSON value, text or number; zero for anything else.
    #[must_use]
    pub fn of_json(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::String(text) => Self::parse(text).unwrap_or_default(),
            serde_json::Value::Number(number) => Self::parse(&number.to_string()).unwrap_or_default(),
            _ => Self::default(),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.milli.cmp(&other.milli)
    }
}

impl std::hash::Hash for Quantity {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.milli.hash(state);
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { milli: self.milli + other.milli, binary: self.binary || other.binary }
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let end = text
        .find(|char: char| !(char.is_ascii_digit() || char == '.' || char == '-' || char == '+'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0
        || whole.len() > 30
        || fraction.len() > 30
        || !(whole.to_owned() + fraction).bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    // The multiplier in thousandths, as numerator and power of ten below it.
    let (factor, below): (i128, u32) = match suffix {
        "" => (1000, 0),
        "n" => (1, 6),
        "u" => (1, 3),
        "m" => (1, 0),
        "k" => (1_000_000, 0),
        "M" => (10_i128.pow(9), 0),
        "G" => (10_i128.pow(12), 0),
        "T" => (10_i128.pow(15), 0),
        "P" => (10_i128.pow(18), 0),
        "E" => (10_i128.pow(21), 0),
        "Ki" => (1000 << 10, 0),
        "Mi" => (1000 << 20, 0),
        "Gi" => (1000 << 30, 0),
        "Ti" => (1000 << 40, 0),
        "Pi" => (1000 << 50, 0),
        "Ei" => (1000 << 60, 0),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            if power >= 0 {
                (1000_i128.checked_mul(10_i128.checked_pow(u32::try_from(power).ok()?)?)?, 0)
            } else {
                (1000, power.unsigned_abs())
            }
        }
    };
    let below = u32::try_from(fraction.len()).ok()?.checked_add(below)?;
    let digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(factor)?;
    let unit = 10_i128.checked_pow(below.min(38))?;
    let milli = scaled / unit + i128::from(scaled % unit != 0);
    // Upstream caps at 2^63 - 1 units.
    if milli / 1000 > i128::from(i64::MAX) {
        return None;
    }
    Some(Quantity { milli: if negative { -milli } else { milli }, binary: suffix.ends_with('i') })
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli % 1000 != 0 {
            return write!(out, "{}m", self.milli);
        }
        let value = self.milli / 1000;
        let (step, suffixes): (i128, &[&str]) = if self.binary {
            (1024, &["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
        } else {
            (1000, &["k", "M", "G", "T", "P", "E"])
        };
        let (mut rest, mut suffix) = (value, "");
        for name in suffixes {
            if rest == 0 || rest % step != 0 {
                break;
            }
            rest /= step;
            suffix = name;
        }
        write!(out, "{rest}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts() {
        for (text, milli, shown) in [
            ("500m", 500, "500m"),
            ("2", 2000, "2"),
            ("0.5", 500, "500m"),
            ("128Mi", 134_217_728_000, "128Mi"),
            ("1e3", 1_000_000, "1k"),
            ("1.5Gi", 1_610_612_736_000, "1536Mi"),
            ("0", 0, "0"),
            ("1n", 1, "1m"),
            ("-1", -1000, "-1"),
            (".5", 500, "500m"),
            ("1000m", 1000, "1"),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!((quantity.milli(), quantity.to_string().as_str()), (milli, shown), "{text}");
        }
        let same = |one: &str, two: &str| Quantity::parse(one).unwrap() == Quantity::parse(two).unwrap();
        assert!(same("1Gi", "1073741824") && same("1000m", "1") && same("1024Ki", "1Mi") && same("1e3", "1k"));
        assert!(Quantity::parse("1Gi").unwrap() <= Quantity::parse("1073741824").unwrap());
        for bad in
            ["", " 1", "1 ", "1K", "Mi", "1Qi", "1 Mi", "abc", "1e", "1e99", "--1", "1.2.3", "999999999999999999999999"]
        {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(value in 0_i64..1 << 40, suffix in prop::sample::select(vec!["", "m", "k", "M", "Ki", "Mi"])) {
            let quantity = Quantity::parse(&format!("{value}{suffix}")).unwrap();
            prop_assert_eq!(Quantity::parse(&quantity.to_string()).unwrap().milli(), quantity.milli());
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Quantity::parse(&text);
        }
    }
}
