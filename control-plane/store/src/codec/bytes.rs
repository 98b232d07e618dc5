//! Little-endian integers and length-prefixed strings: the alphabet of every encoding of ours.

use std::sync::Arc;

use super::CodecError;

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// How many bytes were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A count of things that follow.
    ///
    /// # Errors
    /// More than 2^32 - 1.
    pub fn count(&mut self, count: usize, what: &'static str) -> Result<(), CodecError> {
        self.u32(u32::try_from(count).map_err(|_| CodecError::TooLong(what))?);
        Ok(())
    }

    /// Bytes behind their length.
    ///
    /// # Errors
    /// More than 2^32 - 1 bytes.
    pub fn blob(&mut self, blob: &[u8], what: &'static str) -> Result<(), CodecError> {
        self.count(blob.len(), what)?;
        self.bytes.extend_from_slice(blob);
        Ok(())
    }

    /// Bytes as they are, without a length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A flag and, when it is set, what `write` adds.
    ///
    /// # Errors
    /// As `write`.
    pub fn option<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Self, T) -> Result<(), CodecError>,
    ) -> Result<(), CodecError> {
        self.u8(u8::from(value.is_some()));
        value.map_or(Ok(()), |value| write(self, value))
    }
}

/// Takes values off the front of a slice; never panics, never reserves more than there is.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// Exactly so many bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let short = CodecError::Short { what, needed: count, left: self.left.len() };
        let (taken, left) = self.left.split_at_checked(count).ok_or(short)?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    /// Two bytes.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Bytes behind their length.
    ///
    /// # Errors
    /// Too few bytes.
    pub fn blob(&mut self, what: &'static str) -> Result<&'a [u8], CodecError> {
        let length = self.u32(what)? as usize;
        self.take(length, what)
    }

    /// Text behind its length.
    ///
    /// # Errors
    /// Too few bytes, not UTF-8.
    pub fn text(&mut self, what: &'static str) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.blob(what)?).map_err(|_| CodecError::Utf8(what))
    }

    /// Text behind its length, shared.
    ///
    /// # Errors
    /// Too few bytes, not UTF-8.
    pub fn shared(&mut self, what: &'static str) -> Result<Arc<str>, CodecError> {
        self.text(what).map(Arc::from)
    }

    /// A flag.
    ///
    /// # Errors
    /// No byte, or one that is neither 0 nor 1.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(CodecError::Value { what, value }),
        }
    }

    /// A flag and, when it is set, what `read` gives.
    ///
    /// # Errors
    /// As `read`.
    pub fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.flag(what)? { read(self).map(Some) } else { Ok(None) }
    }

    /// A counted list; a count beyond the bytes fails at the first missing item.
    ///
    /// # Errors
    /// As `read`.
    pub fn list<T>(
        &mut self,
        what: &'static str,
        mut read: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.u32(what)? as usize;
        // An item takes at least one byte of the input, whatever the count claims.
        let mut items = Vec::with_capacity(count.min(self.left() / 8));
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// All bytes were read.
    ///
    /// # Errors
    /// Some are left.
    pub fn end(&self, what: &'static str) -> Result<(), CodecError> {
        if self.left.is_empty() { Ok(()) } else { Err(CodecError::Trailing { what, left: self.left.len() }) }
    }
}
