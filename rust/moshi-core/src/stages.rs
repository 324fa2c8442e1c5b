//! The stages of a step, for those who measure them.

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The user's audio to codes.
    Encode,
    /// The temporal transformer, its heads and the drawing of the text token.
    Temporal,
    /// The depth transformer and the drawing of its tokens.
    Depth,
    /// Codes to audio.
    Decode,
}

impl Stage {
    /// All stages in the order of a step.
    pub const ALL: [Self; 4] = [Self::Encode, Self::Temporal, Self::Depth, Self::Decode];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Temporal => "temporal",
            Self::Depth => "depth",
            Self::Decode => "decode",
        }
    }
}

/// Hears when a stage ends. The next one begins at once.
pub trait StageListener {
    /// `stage` has ended.
    fn ended(&mut self, stage: Stage);
}

/// Nobody listens.
impl StageListener for () {
    fn ended(&mut self, _stage: Stage) {}
}

/// What a stage reads and computes in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of weights, read once for all streams of a step.
    pub weight_bytes: u64,
    /// Bytes of the past of every stream, its windows full: keys and values, rows of tables.
    pub stream_bytes: u64,
    /// Multiplications of weights and activations for every stream.
    pub multiplications: u64,
}

impl Traffic {
    /// Bytes that a step of `streams` streams reads.
    pub fn bytes(&self, streams: u64) -> u64 {
        self.weight_bytes + streams * self.stream_bytes
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.weight_bytes += other.weight_bytes;
        self.stream_bytes += other.stream_bytes;
        self.multiplications += other.multiplications;
    }
}

/// Cheap noise for measurements: the same for the same seed.
#[derive(Clone, Copy, Debug)]
pub struct Noise(u64);

impl Noise {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number (SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `count` numbers in -1..1.
    pub fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}
