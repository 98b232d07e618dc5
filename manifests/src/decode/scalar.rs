//! Plain words of YAML to values, as Kubernetes' own YAML library resolves them (checked against kubectl).

use base64::Engine as _;
use granit_parser::ScalarStyle;
use serde_json::{Number, Value};

/// A scalar as Kubernetes' YAML library resolves it.
pub(super) fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Result<Value, String> {
    match tag {
        Some("str") => return Ok(Value::String(text.to_owned())),
        Some("binary") => {
            let clean: String = text.chars().filter(|char| !char.is_ascii_whitespace()).collect();
            let bytes = base64::engine::general_purpose::STANDARD.decode(clean).ok();
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            return text.map(Value::String).ok_or_else(|| "`!!binary` holds no base64 of text".to_owned());
        }
        None if !matches!(style, ScalarStyle::Plain) => return Ok(Value::String(text.to_owned())),
        _ => {}
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return Ok(Value::Bool(true));
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Ok(Value::Bool(false));
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" | ".nan" | ".NaN"
        | ".NAN" => {
            return Err(format!("`{text}` is not a number that can be stored"));
        }
        _ => {}
    }
    if let Some(number) = number(text) {
        return Ok(Value::Number(number));
    }
    match tag {
        Some("int" | "float" | "bool") => Err(format!("`{text}` is not a {}", tag.unwrap_or_default())),
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return None;
    }
    let plain: String = text.chars().filter(|char| *char != '_').collect();
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain.as_str()),
    };
    let radix = |digits: &str, radix| {
        if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let value = u64::from_str_radix(digits, radix).ok()?;
        if negative { i64::try_from(value).ok().map(|value| Number::from(-value)) } else { Some(Number::from(value)) }
    };
    for (prefix, base) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if digits.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix)) {
            return radix(&digits[2..], base);
        }
    }
    let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole
        && digits.len() > 1
        && digits.starts_with('0')
        && let Some(octal) = radix(&digits[1..], 8)
    {
        return Some(octal);
    }
    if whole
        && !digits.starts_with("00")
        && let Ok(value) = format!("{}{digits}", if negative { "-" } else { "" }).parse::<i64>()
    {
        return Some(Number::from(value));
    }
    if whole
        && !negative
        && let Ok(value) = digits.parse::<u64>()
    {
        return Some(Number::from(value));
    }
    let float = digits.starts_with(|char: char| char.is_ascii_digit() || char == '.')
        && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.bytes().any(|byte| byte.is_ascii_digit());
    let value = if float { plain.parse::<f64>().ok().filter(|value| value.is_finite())? } else { return None };
    // `1e3` and `5.` are whole numbers to who reads them (Go writes them so).
    #[allow(clippy::cast_possible_truncation)]
    if value.fract() == 0.0 && value.abs() < 1e15 { Some(Number::from(value as i64)) } else { Number::from_f64(value) }
}
