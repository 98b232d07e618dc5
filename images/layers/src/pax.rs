//! Extended headers of POSIX.1-2001: `length key=value\n` records that overrule the block that follows.

use crate::entry::Time;
use crate::walk::{Limits, Rule};

/// What extended headers said about the next file.
#[derive(Debug, Default, Clone)]
pub struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extended {
    /// Reads all records of one header.
    pub fn parse(&mut self, mut data: &[u8], limits: &Limits) -> Result<(), Rule> {
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or(Rule::Extended)?;
            data = rest;
            self.take(key, value, limits)?;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), Rule> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.xattr(name, value, limits);
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or(Rule::Extended)?),
            b"uid" => self.uid = Some(decimal(value).ok_or(Rule::Extended)?),
            b"gid" => self.gid = Some(decimal(value).ok_or(Rule::Extended)?),
            b"mtime" => self.mtime = Some(time(value).ok_or(Rule::Extended)?),
            key if key.starts_with(b"GNU.sparse.") => return Err(Rule::Sparse),
            // Names of users, access times, comments: nothing a layer is made of.
            _ => {}
        }
        Ok(())
    }

    /// Keeps what a container may need and an image may decide. `trusted.overlay.*` would forge redirects and metadata copies,
    /// `security.selinux` and `security.ima` belong to the host.
    fn xattr(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), Rule> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(Rule::Extended);
        }
        if value.len() > limits.xattr_bytes {
            return Err(Rule::XattrSize(limits.xattr_bytes));
        }
        let wanted =
            name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        if !wanted {
            return Ok(());
        }
        if self.xattrs.len() >= limits.xattrs {
            return Err(Rule::Xattrs(limits.xattrs));
        }
        self.xattrs.retain(|(old, _)| old != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// The first record: key, value, what follows.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(12).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    // The length counts itself, the space and the newline.
    if length <= space + 2 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `1234567890.25`, possibly negative.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Time { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Result<Extended, Rule> {
        let mut extended = Extended::default();
        extended.parse(data, &Limits::default()).map(|()| extended)
    }

    /// Records whose length is right.
    fn records(records: &[(&str, &str)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = format!(" {key}={value}\n");
            let length = (1..).find(|length| length - length.to_string().len() == body.len()).unwrap();
            data.extend_from_slice(format!("{length}{body}").as_bytes());
        }
        data
    }

    #[test]
    fn records_are_read_to_the_letter() {
        let given = [("path", "a/b"), ("uid", "12"), ("mtime", "-1.2500000000"), ("SCHILY.xattr.user.a", "x\0y=\nz")];
        let extended = parse(&records(&given)).unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extended.uid, Some(12));
        assert_eq!(extended.mtime, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(extended.xattrs, vec![(b"user.a".to_vec(), b"x\0y=\nz".to_vec())]);
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            &b"12 path=a/b"[..],
            b"13 path=a/b\n",
            b"10 path=a/b\n",
            b"0 \n",
            b"3 \n\n",
            b"-5 a=b\n",
            b"99999999999999999999 a=b\n",
            b"path=a\n",
            b"9 uid=-1\n",
            b"8 uid=x\n",
            b"11 mtime=1x\n",
            b"6 abc\n",
        ] {
            assert_eq!(parse(bad).err(), Some(Rule::Extended), "{}", bad.escape_ascii());
        }
        assert_eq!(parse(&records(&[("GNU.sparse.major", "1")])).err(), Some(Rule::Sparse));
    }

    #[test]
    fn attributes_that_would_fool_the_host_are_dropped() {
        let forged = ["trusted.overlay.opaque", "user.overlay.metacopy", "security.selinux", "trusted.x"];
        let forged: Vec<(String, &str)> = forged.iter().map(|name| (format!("SCHILY.xattr.{name}"), "y")).collect();
        let forged: Vec<(&str, &str)> = forged.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        let extended = parse(&records(&forged)).unwrap();
        assert!(extended.xattrs.is_empty());
    }
}
