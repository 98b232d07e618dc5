//! The 512-byte block that stands before each file of a tar (POSIX.1-2001 ustar, and what GNU and star made of it).

/// The size of everything in a tar.
pub const BLOCK: usize = 512;

/// One header block, checksum verified.
pub struct Header<'a>(&'a [u8; BLOCK]);

/// Why a block is not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// The sum of its bytes is not the sum it names.
    Checksum,
    /// A number that is none, or too large.
    Number(&'static str),
}

impl<'a> Header<'a> {
    pub fn new(block: &'a [u8; BLOCK]) -> Result<Self, Bad> {
        let stated = number(&block[148..156]).ok_or(Bad::Checksum)?;
        // Old tars summed signed bytes; both are accepted, as everywhere.
        let mut unsigned = 0i64;
        let mut signed = 0i64;
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stated != unsigned && stated != signed {
            return Err(Bad::Checksum);
        }
        Ok(Self(block))
    }

    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name with ustar's prefix; GNU's magic uses the prefix's bytes for something else.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.0[0..100]);
        let prefix = if &self.0[257..263] == b"ustar\0" { text(&self.0[345..500]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub fn mode(&self) -> Result<i64, Bad> {
        number(&self.0[100..108]).ok_or(Bad::Number("mode"))
    }

    pub fn uid(&self) -> Result<i64, Bad> {
        number(&self.0[108..116]).ok_or(Bad::Number("uid"))
    }

    pub fn gid(&self) -> Result<i64, Bad> {
        number(&self.0[116..124]).ok_or(Bad::Number("gid"))
    }

    pub fn size(&self) -> Result<i64, Bad> {
        number(&self.0[124..136]).ok_or(Bad::Number("size"))
    }

    pub fn mtime(&self) -> Result<i64, Bad> {
        number(&self.0[136..148]).ok_or(Bad::Number("mtime"))
    }

    /// Device numbers; absent (zero) in headers older than ustar.
    pub fn device(&self) -> Result<(i64, i64), Bad> {
        if &self.0[257..262] != b"ustar" {
            return Ok((0, 0));
        }
        let major = number(&self.0[329..337]).ok_or(Bad::Number("device"))?;
        let minor = number(&self.0[337..345]).ok_or(Bad::Number("device"))?;
        Ok((major, minor))
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or GNU's big-endian two's complement with the top bit set. An empty field is zero.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // The sign is bit 6 of the first byte; the value must fit in 64 bits.
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 { byte & 0x3f | if negative { 0xc0 } else { 0 } } else { *byte };
            value = (value << 8) | i128::from(byte);
            // Nothing longer than twelve bytes comes in, so the shift cannot lose the sign.
        }
        return i64::try_from(value).ok();
    }
    let digits = field.iter().copied().skip_while(|byte| matches!(byte, b' ' | 0));
    let mut value: i64 = 0;
    let mut ended = false;
    for byte in digits {
        match byte {
            b'0'..=b'7' if !ended => value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            b' ' | 0 => ended = true,
            _ => return None,
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_octal_and_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b" 644 \0\0\0"), Some(0o644));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o77_777_777_777));
        assert_eq!(number(b"12a4567\0"), None);
        assert_eq!(number(b"12 4567\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None, "more than 63 bits");
    }
}
