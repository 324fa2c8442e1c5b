//! What reaches the daemon from the network: Ogg pages, Opus packets, messages of `/api/chat`.

use std::path::Path;

use moshi_wire::chat::ChatMessage;
use moshi_wire::ogg::{MAX_PACKET_BYTES, OggItem, PageReader, PageWriter};
use moshi_wire::opus::{OpusReader, OpusWriter};

/// Samples per second that the readers are asked for.
const RATE_HZ: u32 = 24_000;
/// Samples of the longest packet.
const MAX_PACKET_SAMPLES: usize = RATE_HZ as usize * 120 / 1_000;

/// Cuts `bytes` after as many bytes as each of them says, the first byte of all included.
fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    while let Some(&first) = rest.first() {
        let (piece, tail) = rest.split_at((usize::from(first) + 1).min(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

/// Bytes as pages, in pieces and at once.
pub fn pages(bytes: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let mut reader = PageReader::default();
        let (mut packet_bytes, mut items) = (0, 0);
        for piece in pieces {
            reader.push(piece);
            while let Some(item) = reader.next_item() {
                items += 1;
                if let OggItem::Packet(packet) = item {
                    assert!(packet.len() <= MAX_PACKET_BYTES);
                    packet_bytes += packet.len();
                }
            }
        }
        assert!(packet_bytes <= bytes.len(), "more came out than went in");
        assert!(items <= 3 * (bytes.len() + 1), "{items} items of {} bytes", bytes.len());
        assert!(reader.errors() <= bytes.len() as u64 + 1);
    };
    read(&[bytes]);
    read(&pieces(bytes));
}

/// Packets on good pages, the page before each as often lost as their bits say.
pub fn packets(packets: &[(bool, Vec<u8>)]) {
    let mut reader = OpusReader::new(RATE_HZ).expect("a rate that Opus knows");
    let mut writer = PageWriter::new(7);
    let mut samples = Vec::new();
    let mut concealed = 0;
    for (lost, packet) in packets {
        let mut page = Vec::new();
        writer.write(&packet[..packet.len().min(60_000)], 0, &mut page);
        if *lost {
            continue;
        }
        samples.clear();
        reader.push(&page, &mut samples);
        let made_up = reader.concealed_samples() - concealed;
        concealed = reader.concealed_samples();
        let decoded = samples.len() - made_up as usize;
        assert!(decoded <= MAX_PACKET_SAMPLES, "{decoded} samples of one packet");
        // At most a second for lost pages, and one packet's time for a damaged one.
        assert!(made_up as usize <= RATE_HZ as usize + MAX_PACKET_SAMPLES, "{made_up} made up");
        assert!(samples.iter().all(|sample| sample.abs() <= 1.0));
    }
}

/// Bytes as a message: what is understood means the same after another turn.
pub fn message(bytes: &[u8]) {
    match ChatMessage::decode(bytes) {
        Ok(message) => assert_eq!(ChatMessage::decode(&message.encode()), Ok(message)),
        Err(error) => assert!(error.to_string().len() < 200),
    }
}

/// Writes the first inputs of the three targets.
pub fn write_seeds() {
    try_write_seeds().expect("the corpus can be written");
}

fn try_write_seeds() -> std::io::Result<()> {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };
    let mut stream = Vec::new();
    let mut writer = OpusWriter::new(RATE_HZ).expect("a rate that Opus knows");
    for frame in 0..3 {
        let tone: Vec<f32> =
            (0..1_920).map(|i| 0.3 * ((frame * 1_920 + i) as f32 * 0.05).sin()).collect();
        stream.extend(writer.push(&tone).expect("a frame"));
    }
    let mut samples = Vec::new();
    OpusReader::new(RATE_HZ).expect("a rate that Opus knows").push(&stream, &mut samples);
    // Without this, a change of the format could leave targets that refuse everything.
    assert_eq!(samples.len(), 3 * 1_920);
    write("ogg", "stream", &stream)?;
    write("ogg", "cut", &stream[100..])?;
    let mut reader = PageReader::default();
    reader.push(&stream);
    let mut packets = Vec::new();
    while let Some(item) = reader.next_item() {
        if let OggItem::Packet(packet) = item {
            packets.extend_from_slice(&packet);
        }
    }
    write("opus", "packets", &packets)?;
    for (name, message) in [
        ("handshake", ChatMessage::Handshake { protocol: 0, model: 0 }),
        ("audio", ChatMessage::Audio(&stream)),
        ("text", ChatMessage::Text(" w\u{f6}rter")),
        ("metadata", ChatMessage::Metadata("{}")),
        ("colour", ChatMessage::ColoredText(3, "red")),
        ("rating", ChatMessage::Rating(5)),
    ] {
        write("chat", name, &message.encode())?;
    }
    Ok(())
}
