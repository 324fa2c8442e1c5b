//! Ogg pages (RFC 3533), read from any cutting of a byte stream and written one packet each.
//!
//! The reader never waits for bytes that a damaged header promises when a whole page lies behind
//! them, and never allocates from a declared length: its buffer holds at most two pages.

use std::collections::VecDeque;

/// Flag of a page whose first packet began on an earlier page.
const CONTINUED: u8 = 1;
/// Flag of a stream's first page.
const FIRST: u8 = 2;
/// Bytes of a header before the lacing values.
const HEADER: usize = 27;
/// The largest page: header, 255 lacing values, 255 times 255 bytes.
pub const MAX_PAGE_BYTES: usize = HEADER + 255 + 255 * 255;
/// The largest packet that is put together from several pages.
pub const MAX_PACKET_BYTES: usize = 61_440;
/// Missing pages beyond this are a new start, not a loss.
const MAX_LOST_PAGES: u32 = 64;
/// A checksum can cover a whole buffer: a bound on the work that one message can cause.
const MAX_FAILED_CHECKSUMS: u32 = 16;

/// What a stream of pages holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OggItem {
    /// A stream begins: its serial number.
    Begin(u32),
    /// A packet, perhaps empty.
    Packet(Vec<u8>),
    /// So many pages are missing before what follows.
    Lost(u32),
}

/// Reads pages.
#[derive(Debug, Default)]
pub struct PageReader {
    buffer: Vec<u8>,
    serial: Option<u32>,
    next_sequence: Option<u32>,
    partial: Option<Vec<u8>>,
    items: VecDeque<OggItem>,
    errors: u64,
    in_garbage: bool,
}

enum Parse {
    /// A page of this many bytes.
    Page(usize),
    /// Not a page here.
    Broken {
        /// All but the checksum was right.
        checksum: bool,
    },
    /// The start of a page, so far.
    Incomplete,
}

impl PageReader {
    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.in_garbage = false;
        for chunk in bytes.chunks(MAX_PAGE_BYTES) {
            let boundary = self.buffer.len();
            self.buffer.extend_from_slice(chunk);
            self.parse(boundary);
        }
    }

    /// The next item, if one is complete.
    pub fn next_item(&mut self) -> Option<OggItem> {
        self.items.pop_front()
    }

    /// Runs of bytes that were no page, and pages with a wrong checksum, so far; one run for all of
    /// what was pushed at once.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Parses what is there. `boundary` is where the newest bytes begin.
    fn parse(&mut self, boundary: usize) {
        let mut at = 0;
        let mut failures = 0;
        while at < self.buffer.len() {
            match parse_page(&self.buffer[at..]) {
                Parse::Page(len) => {
                    let page = self.buffer[at..at + len].to_vec();
                    self.page(&page);
                    self.in_garbage = false;
                    at += len;
                }
                Parse::Broken { checksum } => {
                    self.garbage();
                    failures += u32::from(checksum);
                    at += next_capture(&self.buffer[at..]);
                    if failures > MAX_FAILED_CHECKSUMS {
                        at = self.buffer.len();
                    }
                }
                Parse::Incomplete => {
                    // Senders put whole pages into a message: one that begins here ends the wait
                    // for what a damaged header promised.
                    let whole = at < boundary
                        && matches!(parse_page(&self.buffer[boundary..]), Parse::Page(_));
                    if !whole {
                        break;
                    }
                    self.garbage();
                    at = boundary;
                }
            }
        }
        self.buffer.drain(..at);
    }

    fn garbage(&mut self) {
        self.errors += u64::from(!self.in_garbage);
        self.in_garbage = true;
    }

    fn page(&mut self, page: &[u8]) {
        let flags = page[5];
        let word =
            |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (serial, sequence) = (word(14), word(18));
        if flags & FIRST != 0 {
            self.serial = Some(serial);
            self.partial = None;
            self.items.push_back(OggItem::Begin(serial));
        } else if *self.serial.get_or_insert(serial) != serial {
            // Another stream in the same bytes.
            return;
        } else if let Some(expected) = self.next_sequence {
            let lost = sequence.wrapping_sub(expected);
            if lost != 0 {
                self.partial = None;
            }
            if (1..=MAX_LOST_PAGES).contains(&lost) {
                self.items.push_back(OggItem::Lost(lost));
            }
        }
        self.next_sequence = Some(sequence.wrapping_add(1));

        let segments = usize::from(page[26]);
        let lacing = &page[HEADER..HEADER + segments];
        let mut body = &page[HEADER + segments..];
        let mut packet = match (flags & CONTINUED != 0, self.partial.take()) {
            (true, Some(partial)) => Some(partial),
            // The start of the first packet is missing.
            (true, None) => None,
            (false, _) => Some(Vec::new()),
        };
        let mut open = false;
        for &len in lacing {
            let (head, tail) = body.split_at(usize::from(len));
            body = tail;
            open = len == 255;
            if let Some(bytes) = &mut packet {
                bytes.extend_from_slice(head);
                if bytes.len() > MAX_PACKET_BYTES {
                    self.errors += 1;
                    packet = None;
                }
            }
            if !open {
                if let Some(bytes) = packet.replace(Vec::new()) {
                    self.items.push_back(OggItem::Packet(bytes));
                }
                packet = Some(Vec::new());
            }
        }
        if open {
            self.partial = packet;
        }
    }
}

fn parse_page(bytes: &[u8]) -> Parse {
    let capture = b"OggS";
    let seen = bytes.len().min(capture.len());
    if bytes[..seen] != capture[..seen] {
        return Parse::Broken { checksum: false };
    }
    if bytes.len() > 4 && bytes[4] != 0 {
        return Parse::Broken { checksum: false };
    }
    if bytes.len() < HEADER {
        return Parse::Incomplete;
    }
    let segments = usize::from(bytes[26]);
    let Some(lacing) = bytes.get(HEADER..HEADER + segments) else { return Parse::Incomplete };
    let len = HEADER + segments + lacing.iter().map(|&n| usize::from(n)).sum::<usize>();
    let Some(page) = bytes.get(..len) else { return Parse::Incomplete };
    let stored = u32::from_le_bytes([page[22], page[23], page[24], page[25]]);
    if checksum(page) == stored { Parse::Page(len) } else { Parse::Broken { checksum: true } }
}

/// Bytes to skip, at least 1, to the next place where a page may begin.
fn next_capture(bytes: &[u8]) -> usize {
    (1..bytes.len())
        .find(|&at| b"OggS".starts_with(&bytes[at..bytes.len().min(at + 4)]))
        .unwrap_or(bytes.len())
}

/// Writes pages of one stream, one packet each.
#[derive(Debug, Clone)]
pub struct PageWriter {
    serial: u32,
    sequence: u32,
}

impl PageWriter {
    /// A stream with this serial number.
    pub fn new(serial: u32) -> Self {
        Self { serial, sequence: 0 }
    }

    /// Appends a page with `packet` as its whole content. The first page of a stream is marked as
    /// such. `granule` counts samples at 48 kHz up to the end of the page.
    ///
    /// # Panics
    /// For a packet that does not fit on one page, of more than 65,024 bytes.
    pub fn write(&mut self, packet: &[u8], granule: u64, out: &mut Vec<u8>) {
        let segments = packet.len() / 255 + 1;
        assert!(segments <= 255, "a packet of {} bytes on one page", packet.len());
        let start = out.len();
        out.extend_from_slice(b"OggS\0");
        out.push(if self.sequence == 0 { FIRST } else { 0 });
        out.extend_from_slice(&granule.to_le_bytes());
        out.extend_from_slice(&self.serial.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.push(segments as u8);
        out.resize(out.len() + segments - 1, 255);
        out.push((packet.len() % 255) as u8);
        out.extend_from_slice(packet);
        let sum = checksum(&out[start..]);
        out[start + 22..start + 26].copy_from_slice(&sum.to_le_bytes());
        self.sequence = self.sequence.wrapping_add(1);
    }
}

/// CRC-32 with polynomial 0x04C11DB7, most significant bit first, the checksum's own field as zero.
fn checksum(page: &[u8]) -> u32 {
    page.iter().enumerate().fold(0, |sum: u32, (at, &byte)| {
        let byte = if (22..26).contains(&at) { 0 } else { byte };
        (sum << 8) ^ CRC_TABLE[usize::from((sum >> 24) as u8 ^ byte)]
    })
}

static CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut sum = (i as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            sum = (sum << 1) ^ if sum & 0x8000_0000 == 0 { 0 } else { 0x04c1_1db7 };
            bit += 1;
        }
        table[i] = sum;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut writer = PageWriter::new(7);
        let page = |packet: &Vec<u8>| {
            let mut out = Vec::new();
            writer.write(packet, 0, &mut out);
            out
        };
        packets.iter().map(page).collect()
    }

    fn read(reader: &mut PageReader) -> Vec<OggItem> {
        std::iter::from_fn(|| reader.next_item()).collect()
    }

    fn packets_of(items: Vec<OggItem>) -> Vec<Vec<u8>> {
        let packet = |item| match item {
            OggItem::Packet(bytes) => Some(bytes),
            _ => None,
        };
        items.into_iter().filter_map(packet).collect()
    }

    /// A page of any lacing, for what the writer does not make.
    fn page(flags: u8, sequence: u32, lacing: &[u8], body: &[u8]) -> Vec<u8> {
        let mut out = b"OggS\0".to_vec();
        out.push(flags);
        out.extend([0; 8]);
        out.extend(7u32.to_le_bytes());
        out.extend(sequence.to_le_bytes());
        out.extend([0; 4]);
        out.push(lacing.len() as u8);
        out.extend(lacing);
        out.extend(body);
        let sum = checksum(&out);
        out[22..26].copy_from_slice(&sum.to_le_bytes());
        out
    }

    #[test]
    fn a_known_header_page_has_the_known_bytes() {
        let mut head = b"OpusHead\x01\x01".to_vec();
        head.extend(3840u16.to_le_bytes());
        head.extend(48_000u32.to_le_bytes());
        head.extend([0; 3]);
        let mut out = Vec::new();
        PageWriter::new(42).write(&head, 0, &mut out);
        let known = "4f676753000200000000000000002a00000000000000aefef3f101134f70757348656164\
                     0101000f80bb0000000000";
        let bytes = (0..known.len()).step_by(2);
        let byte = |at: usize| u8::from_str_radix(&known[at..at + 2], 16).unwrap();
        assert_eq!(out, bytes.map(byte).collect::<Vec<u8>>());
    }

    proptest! {
        #[test]
        fn packets_come_back_however_the_bytes_are_cut(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 1..8),
            cuts in prop::collection::vec(1usize..900, 0..30),
        ) {
            let bytes = pages(&packets).concat();
            let mut reader = PageReader::default();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                reader.push(head);
                rest = tail;
            }
            reader.push(rest);
            let items = read(&mut reader);
            prop_assert_eq!(&items[0], &OggItem::Begin(7));
            prop_assert_eq!(packets_of(items), packets);
            prop_assert_eq!(reader.errors(), 0);
        }

        #[test]
        fn a_damaged_page_costs_itself_alone(
            at in 0usize..10_000, value: u8, which in 1usize..5,
        ) {
            let packets: Vec<Vec<u8>> = (0..6u8).map(|i| vec![i; 90]).collect();
            let mut pages = pages(&packets);
            let at = at % pages[which].len();
            prop_assume!(pages[which][at] != value);
            pages[which][at] = value;
            let mut reader = PageReader::default();
            for page in &pages {
                reader.push(page);
            }
            let mut expected = packets;
            expected.remove(which);
            let items = read(&mut reader);
            prop_assert!(items.contains(&OggItem::Lost(1)), "{:?}", items);
            prop_assert_eq!(packets_of(items), expected);
            prop_assert!(reader.errors() >= 1);
        }

        #[test]
        fn garbage_is_survived_within_bounds(
            garbage in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'O'), Just(b'g'), Just(b'S')], 0..3000),
        ) {
            let mut reader = PageReader::default();
            reader.push(&garbage);
            prop_assert!(reader.buffer.len() <= MAX_PAGE_BYTES);
            let packets = [vec![1; 40], vec![2; 40]];
            reader.push(&pages(&packets).concat());
            let found = packets_of(read(&mut reader));
            prop_assert!(found.ends_with(&packets), "{:?}", found);
        }
    }

    #[test]
    fn packets_continue_over_pages_and_pages_hold_several() {
        let mut reader = PageReader::default();
        reader.push(&page(FIRST, 0, &[2, 0, 3], &[1, 1, 2, 2, 2]));
        reader.push(&page(0, 1, &[1, 255], &[[3].as_slice(), &[4; 255]].concat()));
        reader.push(&page(CONTINUED, 2, &[255, 1], &[5; 256]));
        let packets = packets_of(read(&mut reader));
        let long = [vec![4; 255], vec![5; 256]].concat();
        assert_eq!(packets, [vec![1, 1], vec![], vec![2; 3], vec![3], long]);
    }

    #[test]
    fn a_packet_with_a_missing_start_or_middle_is_dropped() {
        let mut reader = PageReader::default();
        reader.push(&page(CONTINUED, 5, &[2, 1], &[9, 9, 1]));
        assert_eq!(packets_of(read(&mut reader)), [[1]]);
        reader.push(&page(0, 6, &[255], &[1; 255]));
        reader.push(&page(CONTINUED, 8, &[1, 1], &[2, 3]));
        assert_eq!(read(&mut reader), [OggItem::Lost(1), OggItem::Packet(vec![3])]);
    }

    #[test]
    fn other_streams_are_passed_over_and_a_new_one_is_taken() {
        let mut reader = PageReader::default();
        reader.push(&pages(&[vec![1]]).concat());
        let mut other = PageWriter::new(8);
        let mut bytes = Vec::new();
        other.sequence = 1;
        other.write(&[2], 0, &mut bytes);
        reader.push(&bytes);
        assert_eq!(read(&mut reader), [OggItem::Begin(7), OggItem::Packet(vec![1])]);
        let mut bytes = Vec::new();
        PageWriter::new(8).write(&[3], 0, &mut bytes);
        reader.push(&bytes);
        assert_eq!(read(&mut reader), [OggItem::Begin(8), OggItem::Packet(vec![3])]);
        assert_eq!(reader.errors(), 0);
    }

    #[test]
    fn a_packet_without_end_is_dropped_at_the_limit() {
        let mut reader = PageReader::default();
        reader.push(&page(FIRST, 0, &[255], &[0; 255]));
        reader.push(&page(CONTINUED, 1, &[255; 255], &vec![0; 255 * 255]));
        reader.push(&page(CONTINUED, 2, &[1, 1], &[1, 2]));
        assert_eq!(packets_of(read(&mut reader)), [[2]]);
        assert_eq!(reader.errors(), 1);
    }
}
