//! The language model: an RQ-Transformer over text and audio tokens (Défossez et al. 2024,
//! section 3.4).
//!
//! Once per frame, the temporal transformer reads one token of every stream and predicts the next
//! text token (the inner monologue); the depth transformer then predicts the frame's own audio
//! tokens codebook by codebook. Streams are shifted against each other by the acoustic
//! [`delays`]. [`LanguageModel`] holds weights, [`LmState`] one stream's past.

mod conditioning;
pub mod delays;
mod depth;
mod embedding;
mod files;
mod load;
mod model;
mod precision;
mod sampling;
mod state;
mod step;
mod traffic;

pub use conditioning::{Condition, Conditions, VOICE_POSITIONS};
pub use delays::{UNGENERATED_TOKEN, ZERO_TOKEN};
pub use files::{LmFiles, LmMemory};
pub use model::{LanguageModel, LmOptions};
pub use precision::WeightType;
pub use sampling::{CounterRng, Sampling, sample};
pub use state::{Guidance, LmState, LmStreamOptions};
pub use step::{LmOutput, LmSlot, LmTrace, NoHooks, StepHooks};
pub use traffic::LmTraffic;
