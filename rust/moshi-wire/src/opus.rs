//! A live Opus stream in Ogg pages (RFC 7845): to mono samples at any rate that Opus knows, and
//! back.
//!
//! Reading takes what all known senders send: with headers or without, packets of any length, one
//! or several on a page, mono or stereo, granules that count wrongly. What is missing or damaged is
//! concealed by the codec, up to a second. Writing makes one packet of 40 ms on each page, the
//! headers before the first, as every known reader takes it.

use ropus::opus::decoder::opus_packet_get_nb_samples;
use ropus::{Application, Bitrate, Channels, DecodeMode, Decoder, Encoder};

use crate::WireError;
use crate::ogg::{MAX_PAGE_BYTES, OggItem, PageReader, PageWriter};

/// Opus counts time in samples at this rate, in Hz.
const CLOCK_HZ: u32 = 48_000;
/// The longest packet, in milliseconds.
const MAX_PACKET_MS: u32 = 120;
/// Longest gap that is concealed.
const MAX_CONCEALED_MS: u32 = 1_000;
/// The largest packet that our encoder makes, and more than any sender's 40 ms.
const MAX_PACKET_BYTES: usize = 1_275;
/// Packets that we write, in milliseconds.
const PACKET_MS: u32 = 40;
/// Our bit rate, in bits per second. With it the codec's music mode is nearer to 24 kHz speech than
/// its voice mode at 32,000, for a quarter of the time and 4 ms less delay.
const BITRATE_BPS: u32 = 48_000;
/// Our effort, of 10: from 5 on, encoding takes twice as long for half a decibel.
const COMPLEXITY: u8 = 4;
/// Serial number of our streams, that of the original's.
const SERIAL: u32 = 42;

/// Reads a stream.
pub struct OpusReader {
    pages: PageReader,
    decoder: Decoder,
    rate_hz: u32,
    pcm: Vec<i16>,
    /// Samples of the last packet, at our rate.
    last_samples: usize,
    bad_packets: u64,
    concealed_samples: u64,
    skipped_packets: u64,
    /// Nothing was decoded since the stream began.
    is_new: bool,
}

impl OpusReader {
    /// A reader that gives samples at `rate_hz`: 8, 12, 16, 24 or 48 kHz.
    ///
    /// # Errors
    /// [`WireError::Decoder`] for another rate.
    pub fn new(rate_hz: u32) -> Result<Self, WireError> {
        let decoder = Decoder::new(rate_hz, Channels::Mono)
            .map_err(|e| WireError::Decoder { rate_hz, reason: e.to_string() })?;
        Ok(Self {
            pages: PageReader::default(),
            decoder,
            rate_hz,
            pcm: vec![0; (rate_hz / 1000 * MAX_PACKET_MS) as usize],
            last_samples: (rate_hz / 1000 * 20) as usize,
            bad_packets: 0,
            concealed_samples: 0,
            skipped_packets: 0,
            is_new: true,
        })
    }

    /// Takes any part of the stream and appends the samples that it completes. A byte can hold
    /// 120 ms: bytes from strangers go through [`OpusReader::push_at_most`].
    pub fn push(&mut self, bytes: &[u8], samples: &mut Vec<f32>) {
        self.push_at_most(bytes, usize::MAX, samples);
    }

    /// As [`OpusReader::push`], but decodes nothing any more once `most` samples were appended:
    /// what follows in `bytes` is skipped. The last packet may pass the limit by its length, a gap
    /// by a second.
    pub fn push_at_most(&mut self, bytes: &[u8], most: usize, samples: &mut Vec<f32>) {
        let full = samples.len().saturating_add(most);
        for chunk in bytes.chunks(MAX_PAGE_BYTES) {
            self.pages.push(chunk);
            while let Some(item) = self.pages.next_item() {
                self.take(item, full, samples);
            }
        }
    }

    fn take(&mut self, item: OggItem, full: usize, samples: &mut Vec<f32>) {
        match item {
            // A decoder is large, and a page that begins a stream is small.
            OggItem::Begin(_) if self.is_new => {}
            OggItem::Begin(_) => {
                // Only settings that were accepted before come again.
                if let Ok(decoder) = Decoder::new(self.rate_hz, Channels::Mono) {
                    self.decoder = decoder;
                    self.is_new = true;
                }
            }
            OggItem::Packet(packet) if is_header(&packet) => {}
            _ if samples.len() >= full => self.skipped_packets += 1,
            OggItem::Packet(packet) if packet.is_empty() => self.conceal(1, samples),
            OggItem::Packet(packet) => self.decode(&packet, samples),
            OggItem::Lost(pages) => self.conceal(pages, samples),
        }
    }

    /// Packets and gaps that were skipped, see [`OpusReader::push_at_most`].
    pub fn skipped_packets(&self) -> u64 {
        self.skipped_packets
    }

    /// Damaged runs of bytes and packets so far.
    pub fn errors(&self) -> u64 {
        self.pages.errors() + self.bad_packets
    }

    /// Samples that the codec made up for what was missing.
    pub fn concealed_samples(&self) -> u64 {
        self.concealed_samples
    }

    fn decode(&mut self, packet: &[u8], samples: &mut Vec<f32>) {
        self.is_new = false;
        match self.decoder.decode(packet, &mut self.pcm, DecodeMode::Normal) {
            Ok(count) => {
                self.last_samples = count.min(self.pcm.len());
                append(&self.pcm[..self.last_samples], samples);
            }
            Err(_) => {
                self.bad_packets += 1;
                self.conceal(1, samples);
            }
        }
    }

    /// Makes up for missing packets, of the last one's length each.
    fn conceal(&mut self, packets: u32, samples: &mut Vec<f32>) {
        self.is_new = false;
        let most = (self.rate_hz / 1000 * MAX_CONCEALED_MS) as usize;
        let wanted = (packets as usize * self.last_samples).min(most);
        let mut done = 0;
        while done < wanted {
            let len = self.last_samples.min(wanted - done).max(1);
            let made = match self.decoder.decode(&[], &mut self.pcm[..len], DecodeMode::Normal) {
                Ok(made) if made > 0 => made.min(len),
                _ => {
                    self.pcm[..len].fill(0);
                    len
                }
            };
            append(&self.pcm[..made], samples);
            done += made;
        }
        self.concealed_samples += done as u64;
    }
}

/// Counts the samples of a stream without decoding them; what is missing is not counted.
pub struct OpusCounter {
    pages: PageReader,
    rate_hz: u32,
}

impl OpusCounter {
    /// A counter of samples at `rate_hz`.
    pub fn new(rate_hz: u32) -> Self {
        Self { pages: PageReader::default(), rate_hz }
    }

    /// Takes any part of the stream; gives the samples of the packets that it completes.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.pages.push(bytes);
        let items = std::iter::from_fn(|| self.pages.next_item());
        items.map(|item| samples_of(&item, self.rate_hz)).sum()
    }
}

fn samples_of(item: &OggItem, rate_hz: u32) -> usize {
    match item {
        OggItem::Packet(packet) if !is_header(packet) => {
            let count = opus_packet_get_nb_samples(packet, rate_hz as i32);
            count.ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
        }
        _ => 0,
    }
}

fn append(pcm: &[i16], samples: &mut Vec<f32>) {
    samples.extend(pcm.iter().map(|&sample| f32::from(sample) / 32_768.0));
}

fn is_header(packet: &[u8]) -> bool {
    packet.starts_with(b"OpusHead") || packet.starts_with(b"OpusTags")
}

/// Writes a stream.
pub struct OpusWriter {
    encoder: Encoder,
    pages: PageWriter,
    rate_hz: u32,
    packet_samples: usize,
    pending: Vec<i16>,
    packets: u64,
}

impl OpusWriter {
    /// A writer for mono samples at `rate_hz`: 8, 12, 16, 24 or 48 kHz.
    ///
    /// # Errors
    /// [`WireError::Encoder`] for another rate.
    pub fn new(rate_hz: u32) -> Result<Self, WireError> {
        let encoder = Encoder::builder(rate_hz, Channels::Mono, Application::RestrictedLowDelay)
            .bitrate(Bitrate::Bits(BITRATE_BPS))
            .complexity(COMPLEXITY)
            .build()
            .map_err(|e| WireError::Encoder { reason: e.to_string() })?;
        let packet_samples = (rate_hz / 1000 * PACKET_MS) as usize;
        let pages = PageWriter::new(SERIAL);
        Ok(Self { encoder, pages, rate_hz, packet_samples, pending: Vec::new(), packets: 0 })
    }

    /// Takes samples in -1..1 and gives the pages that they complete, whole, with the headers
    /// before the first.
    ///
    /// # Errors
    /// [`WireError::Encoder`] if the codec fails, which no samples make it do.
    pub fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, WireError> {
        let quantise = |&sample: &f32| (sample * 32_768.0).round() as i16;
        self.pending.extend(samples.iter().map(quantise));
        let mut out = Vec::new();
        let whole = self.pending.len() / self.packet_samples * self.packet_samples;
        let mut packet = [0; MAX_PACKET_BYTES];
        for pcm in self.pending[..whole].chunks_exact(self.packet_samples) {
            if self.packets == 0 {
                let pre_skip = self.encoder.lookahead() * (CLOCK_HZ / self.rate_hz);
                self.pages.write(&head(pre_skip as u16), 0, &mut out);
                self.pages.write(&tags(), 0, &mut out);
            }
            let len = self
                .encoder
                .encode(pcm, &mut packet)
                .map_err(|e| WireError::Encoder { reason: e.to_string() })?;
            self.packets += 1;
            let granule = self.packets * u64::from(CLOCK_HZ / 1000 * PACKET_MS);
            self.pages.write(&packet[..len], granule, &mut out);
        }
        self.pending.drain(..whole);
        Ok(out)
    }
}

/// The identification header of a mono stream from 24 kHz and up or down, all declared as 48 kHz.
fn head(pre_skip: u16) -> Vec<u8> {
    let mut head = b"OpusHead\x01\x01".to_vec();
    head.extend(pre_skip.to_le_bytes());
    head.extend(CLOCK_HZ.to_le_bytes());
    head.extend([0; 3]);
    head
}

fn tags() -> Vec<u8> {
    let vendor = b"moshi-rs";
    let mut tags = b"OpusTags".to_vec();
    tags.extend((vendor.len() as u32).to_le_bytes());
    tags.extend(vendor);
    tags.extend([0; 4]);
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE_HZ: u32 = 24_000;

    fn tone(samples: usize) -> Vec<f32> {
        (0..samples).map(|i| 0.4 * (i as f32 * 0.06).sin()).collect()
    }

    fn energy(samples: &[f32]) -> f32 {
        samples.iter().map(|s| s * s).sum::<f32>() / samples.len().max(1) as f32
    }

    fn pages(seconds: usize) -> Vec<Vec<u8>> {
        let mut writer = OpusWriter::new(RATE_HZ).unwrap();
        tone(seconds * 24_000).chunks(960).map(|chunk| writer.push(chunk).unwrap()).collect()
    }

    #[test]
    fn a_stream_comes_back_with_its_length_and_its_energy() {
        let mut writer = OpusWriter::new(RATE_HZ).unwrap();
        let first = writer.push(&tone(1920)).unwrap();
        assert_eq!(first.windows(4).filter(|w| w == b"OggS").count(), 4);
        assert_eq!(writer.push(&[0.0; 959]).unwrap(), []);
        assert_eq!(writer.push(&[0.0; 1]).unwrap().windows(4).filter(|w| w == b"OggS").count(), 1);

        let mut reader = OpusReader::new(RATE_HZ).unwrap();
        let mut samples = Vec::new();
        for page in pages(2) {
            reader.push(&page, &mut samples);
        }
        assert_eq!(samples.len(), 48_000);
        let mut counter = OpusCounter::new(RATE_HZ);
        assert_eq!(pages(2).iter().map(|page| counter.push(page)).sum::<usize>(), 48_000);
        assert_eq!(counter.push(b"no page"), 0);
        assert_eq!((reader.errors(), reader.concealed_samples()), (0, 0));
        let ratio = energy(&samples[4_800..]) / energy(&tone(48_000)[4_800..]);
        assert!((0.8..1.2).contains(&ratio), "{ratio}");
    }

    #[test]
    fn packets_are_of_the_music_mode_at_the_bit_rate() {
        let mut reader = PageReader::default();
        let mut bytes = 0;
        for page in pages(2) {
            reader.push(&page);
        }
        let mut packets = 0;
        while let Some(item) = reader.next_item() {
            match item {
                OggItem::Packet(packet) if packet.starts_with(b"OpusHead") => {
                    let skip = u16::from_le_bytes([packet[10], packet[11]]);
                    assert_eq!(skip, 120, "2.5 ms of 48,000 Hz");
                }
                OggItem::Packet(packet) if !is_header(&packet) => {
                    assert!(packet[0] >> 3 >= 16, "configuration {}", packet[0] >> 3);
                    bytes += packet.len();
                    packets += 1;
                }
                _ => {}
            }
        }
        assert_eq!(packets, 50);
        let rate_bps = bytes * 8 / 2;
        assert!((40_000..56_000).contains(&rate_bps), "{rate_bps}");
    }

    #[test]
    fn a_reader_may_join_late_and_conceals_what_is_lost() {
        let pages = pages(1);
        let mut reader = OpusReader::new(RATE_HZ).unwrap();
        let mut samples = Vec::new();
        for page in pages[5..10].iter().chain(&pages[13..]) {
            reader.push(page, &mut samples);
        }
        assert_eq!(samples.len(), (pages.len() - 5) * 960);
        assert_eq!(reader.concealed_samples(), 3 * 960);
    }

    #[test]
    fn an_empty_packet_is_concealed_and_a_wrong_rate_refused() {
        let mut reader = OpusReader::new(RATE_HZ).unwrap();
        let mut samples = Vec::new();
        let mut bytes = Vec::new();
        PageWriter::new(1).write(&[], 0, &mut bytes);
        reader.push(&bytes, &mut samples);
        assert_eq!(samples.len(), 480);
        assert!(matches!(OpusReader::new(44_100), Err(WireError::Decoder { rate_hz: 44_100, .. })));
        assert!(matches!(OpusWriter::new(44_100), Err(WireError::Encoder { .. })));
    }

    #[test]
    fn a_message_decodes_no_more_than_it_may() {
        let bytes = pages(3).concat();
        let mut reader = OpusReader::new(RATE_HZ).unwrap();
        let mut samples = vec![0.5; 7];
        reader.push_at_most(&bytes, 24_000, &mut samples);
        assert_eq!(samples.len(), 7 + 24_000);
        assert_eq!(reader.skipped_packets(), 50);
        reader.push_at_most(&pages(1)[0], 0, &mut samples);
        assert_eq!((samples.len(), reader.skipped_packets()), (7 + 24_000, 51));
        reader.push(&pages(1).concat(), &mut samples);
        assert_eq!(samples.len(), 7 + 48_000);
    }

    #[test]
    fn a_megabyte_of_the_shortest_packets_is_a_second_if_it_may_be_no_more() {
        // A byte of configuration 3 is 60 ms without sound.
        let mut bytes = Vec::new();
        let mut writer = PageWriter::new(1);
        while bytes.len() < 1 << 20 {
            writer.write(&[3 << 3], 0, &mut bytes);
        }
        let mut reader = OpusReader::new(RATE_HZ).unwrap();
        let mut samples = Vec::new();
        reader.push_at_most(&bytes, 24_000, &mut samples);
        assert!((24_000..=24_000 + 2_880).contains(&samples.len()), "{}", samples.len());
        assert!(reader.skipped_packets() > 36_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_packet_is_survived(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..12),
        ) {
            let mut writer = PageWriter::new(3);
            let mut reader = OpusReader::new(RATE_HZ).unwrap();
            let mut samples = Vec::new();
            for packet in &packets {
                let mut bytes = Vec::new();
                writer.write(packet, 0, &mut bytes);
                reader.push(&bytes, &mut samples);
            }
            prop_assert!(samples.len() <= packets.len() * 2880 * 2, "{}", samples.len());
            prop_assert!(samples.iter().all(|s| s.is_finite()));
            let before = samples.len();
            for page in pages(1) {
                reader.push(&page, &mut samples);
            }
            prop_assert_eq!(samples.len() - before, 24_000);
        }

        #[test]
        fn damaged_streams_keep_their_length_roughly(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut pages = pages(1);
            for (at, value) in &damage {
                let page = at.index(pages.len());
                let byte = at.index(pages[page].len());
                pages[page][byte] = *value;
            }
            let mut reader = OpusReader::new(RATE_HZ).unwrap();
            let mut samples = Vec::new();
            for page in &pages {
                reader.push(page, &mut samples);
            }
            prop_assert!(samples.len() >= 24_000 - damage.len() * 960, "{}", samples.len());
            prop_assert!(samples.len() <= 24_000, "{}", samples.len());
        }
    }
}
