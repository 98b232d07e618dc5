//! What agent and podmon say to each other over a SOCK_SEQPACKET socket: one message a packet, descriptors beside it.
//!
//! Append-only: a code or a field is never reused, so that a podmon of an older release serves a newer agent. An unknown
//! request is answered with `ENOSYS`.

/// The largest packet either side sends.
pub const MAX_PACKET: usize = 32 << 10;
/// The most descriptors that go with a request (the kernel's SCM_MAX_FD is 253).
pub const MAX_FDS: usize = 200;

/// Requests.
pub mod request {
    /// `name, attempt, log_path, log_max_bytes, log_files`; descriptors: plan, OOM counter file or none (see `flags`), then the plan's.
    pub const START: u32 = 1;
    /// `name, signal`.
    pub const KILL: u32 = 2;
    /// Nothing; answered with one `STATE` packet a container, then `OK`.
    pub const LIST: u32 = 3;
    /// `name of the container, exec id`; descriptors: plan, stdin, stdout, stderr, then the plan's.
    pub const EXEC: u32 = 4;
    /// Nothing: kill what runs and end.
    pub const END: u32 = 5;
    /// `name`: forget a container that has ended.
    pub const FORGET: u32 = 6;
    /// `deadline (CLOCK_BOOTTIME, milliseconds, 64 bits), flags`; descriptors: with flag `LEASE_KILL` the pod's `cgroup.kill`, open
    /// for writing, then with `LEASE_LINE` a SOCK_SEQPACKET end on which deadlines come from then on (`lease`).
    ///
    /// The first one fences the pod for good: all of it is killed when the deadline passes, and nothing is started until a later
    /// one comes. A deadline never moves backwards. Answered with `OK` while it has not passed, else with `EKEYEXPIRED`.
    pub const LEASE: u32 = 7;
    /// A flag of `LEASE`.
    pub const LEASE_KILL: u32 = 1;
    /// A flag of `LEASE`.
    pub const LEASE_LINE: u32 = 2;
}

/// Answers and events.
pub mod answer {
    /// Done; `value` is the pid for START and EXEC.
    pub const OK: u32 = 101;
    /// `errno, op index + 1 (0 = not in the plan)`.
    pub const ERROR: u32 = 102;
    /// A container's state, in answer to LIST: `Record`.
    pub const STATE: u32 = 103;
    /// A container has ended: `Record`.
    pub const EXIT: u32 = 104;
    /// An exec has ended: `exec id, wait status`.
    pub const EXEC_EXIT: u32 = 105;
}

/// What goes over the line that `request::LEASE` hands over, so that a podmon that is busy with a launch or waits for a disk
/// hears of a new deadline all the same. To podmon: the deadline. From podmon: the deadline it keeps, and whether that is to come.
pub mod lease {
    /// A deadline, as it is sent.
    #[must_use]
    pub fn ask(until_ms: u64) -> [u8; 8] {
        until_ms.to_le_bytes()
    }

    /// The deadline that was sent; a later release may send more behind it.
    #[must_use]
    pub fn asked(bytes: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(*bytes.first_chunk()?))
    }

    /// An answer, as it is sent.
    #[must_use]
    pub fn answer(until_ms: u64, in_force: bool) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&until_ms.to_le_bytes());
        bytes[8] = u8::from(in_force);
        bytes
    }

    /// The answer that was sent.
    #[must_use]
    pub fn answered(bytes: &[u8]) -> Option<(u64, bool)> {
        Some((asked(bytes)?, *bytes.get(8)? != 0))
    }
}

/// A container as podmon knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The container's name.
    pub name: String,
    /// Which start of it.
    pub attempt: u32,
    /// Process id on the host.
    pub pid: u32,
    /// Whether it has ended.
    pub ended: bool,
    /// wait(2) status, when it has ended.
    pub status: i32,
    /// Whether the kernel killed something in it for want of memory.
    pub oom: bool,
    /// Start, milliseconds since 1970.
    pub started_ms: u64,
    /// End, milliseconds since 1970.
    pub ended_ms: u64,
    /// Log lines that could not be written.
    pub dropped_lines: u64,
    /// Whether it was killed because the pod's lease ran out. Old podmons do not say so.
    pub fenced: bool,
}

/// One packet: code, sequence number of the request it belongs to (0 for events), fields.
#[derive(Debug, Default)]
pub struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    /// A packet with its head.
    #[must_use]
    pub fn new(code: u32, sequence: u32) -> Self {
        let mut packet = Self::default();
        packet.u32(code);
        packet.u32(sequence);
        packet
    }

    /// Appends a number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends a record.
    pub fn record(&mut self, record: &Record) -> &mut Self {
        self.text(&record.name).u32(record.attempt).u32(record.pid).u32(u32::from(record.ended));
        self.u32(record.status.cast_unsigned()).u32(u32::from(record.oom));
        self.u64(record.started_ms).u64(record.ended_ms).u64(record.dropped_lines).u32(u32::from(record.fenced))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a packet's fields in order; `None` where the packet is too short.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Over a packet.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.rest.get(..length)?;
        self.rest = &self.rest[length..];
        Some(bytes)
    }

    /// A number.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A number.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// Text.
    pub fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        std::str::from_utf8(self.take(length)?).ok()
    }

    /// A record; it is the last of its packet, and what an older release does not send is off.
    pub fn record(&mut self) -> Option<Record> {
        Some(Record {
            name: self.text()?.to_owned(),
            attempt: self.u32()?,
            pid: self.u32()?,
            ended: self.u32()? != 0,
            status: self.u32()?.cast_signed(),
            oom: self.u32()? != 0,
            started_ms: self.u64()?,
            ended_ms: self.u64()?,
            dropped_lines: self.u64()?,
            fenced: self.u32().is_some_and(|flag| flag != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_older_release_is_read_as_well() {
        let record = Record { name: "c".to_owned(), attempt: 3, ended: true, fenced: true, ..Record::default() };
        let mut packet = Packet::new(answer::EXIT, 0);
        packet.record(&record);
        let read = |bytes: &[u8]| Fields::new(&bytes[8..]).record();
        assert_eq!(read(packet.bytes()), Some(record.clone()));
        let older = &packet.bytes()[..packet.bytes().len() - 4];
        assert_eq!(read(older), Some(Record { fenced: false, ..record }));
        assert_eq!(read(&older[..older.len() - 1]), None);
    }

    #[test]
    fn deadlines_and_their_answers() {
        assert_eq!(lease::asked(&lease::ask(u64::MAX - 1)), Some(u64::MAX - 1));
        assert_eq!(lease::asked(&[0; 7]), None);
        for in_force in [false, true] {
            assert_eq!(lease::answered(&lease::answer(7, in_force)), Some((7, in_force)));
        }
        assert_eq!(lease::answered(&[0; 8]), None);
    }
}
