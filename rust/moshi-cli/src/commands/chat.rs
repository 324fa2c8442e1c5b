//! `moshi-rs chat`. Sound devices are the caller's: the Python package has them, the native binary
//! does not.

use std::path::PathBuf;
use std::sync::Arc;

use moshi_core::{Model, Session};

use crate::commands::run;
use crate::options::{ChatArgs, DeviceArgs, SpeechArgs};
use crate::output::{CliError, Loading, Result};

/// Holds a conversation and gives the exit code.
pub type Chat<'a> = &'a mut (dyn FnMut(ChatRequest) -> i32 + Send);

/// What `moshi-rs chat` asks of the program that has the sound devices.
#[derive(Debug)]
pub struct ChatRequest {
    /// Number or part of the name of the microphone; `None` is the system's default.
    pub input_device: Option<String>,
    /// Number or part of the name of the loudspeaker; `None` is the system's default.
    pub output_device: Option<String>,
    /// Where to write the conversation, as a stereo wav file.
    pub record: Option<PathBuf>,
    /// The model to talk with; `None` asks for a list of the devices instead.
    pub opener: Option<SessionOpener>,
}

/// Opens the session that the command line describes, once the devices are known to work: loading
/// a model can take minutes.
#[derive(Debug, Clone)]
pub struct SessionOpener(SpeechArgs);

impl SessionOpener {
    /// Loads the model and opens a session.
    ///
    /// # Errors
    ///
    /// Those of [`Model::load`] and [`Session::new`].
    pub fn open(&self) -> moshi_core::Result<(Arc<Model>, Session)> {
        run::open(&self.0, &Loading::new(false))
    }
}

pub(crate) fn chat(args: ChatArgs, chat: Option<Chat<'_>>) -> Result<i32> {
    let chat = chat.ok_or_else(|| {
        CliError::Usage(
            "chat needs the Python package, which has the sound devices: \
             pip install \"moshi-rs[audio]\" (in a working copy: pip install \".[audio]\"), then \
             python -m moshi_rs chat"
                .into(),
        )
    })?;
    let DeviceArgs { input_device, output_device, list_devices, record } = args.devices;
    let opener = (!list_devices).then_some(SessionOpener(args.speech));
    Ok(chat(ChatRequest { input_device, output_device, record, opener }))
}
