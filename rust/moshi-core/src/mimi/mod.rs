//! Mimi, the streaming audio codec (Défossez et al. 2024, section 3.3): 24 kHz audio to residual
//! vector-quantised tokens at 12.5 Hz and back, causal in both directions.
//!
//! [`Mimi`] holds weights, [`EncoderState`] and [`DecoderState`] one stream's past. Samples and
//! activations are time-major. Offline calls are streaming calls over a fresh state, so there is
//! one code path; which keys attention sees is decided by absolute position ([`Window`]).

mod decoder;
mod encoder;
mod load;
mod memory;
mod model;
mod quantizer;
mod state;
mod step;
mod traffic;
mod window;

pub use memory::MimiMemory;
pub use model::{Mimi, MimiMode, MimiOptions, MimiParts};
pub use state::{DecoderState, EncoderState};
pub use traffic::MimiTraffic;
pub use window::Window;
