//! Commands and options. One flag is one documented field.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use moshi_core::exec::KeyStorage;
use moshi_core::lm::WeightType;
use moshi_core::mimi::MimiMode;
use moshi_core::{CpuExecutor, Device, LoadOptions};

use crate::serve_options::{ClientArgs, LoadtestArgs, ServeArgs};

/// Real-time speech models of the Moshi family: run, encode, decode and check them.
#[derive(Debug, Parser)]
#[command(name = "moshi-rs", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
A small model is in the box: it is inside the program, needs no download, and is taken where no
model is named.

Examples:
  moshi-rs run question.wav -o answer.wav
  moshi-rs run question.wav -o answer.wav --model ./moshiko-pytorch-bf16
  moshi-rs encode speech.flac -o speech.tokens.safetensors --model kyutai/mimi
  moshi-rs serve
  moshi-rs client ws://127.0.0.1:8998 --in question.wav --out answer.wav
  moshi-rs info
  moshi-rs info kyutai/moshiko-pytorch-bf16

Exit codes: 0 fine, 1 a check fell short, 2 usage or config, 3 checkpoint, 4 device, 5 input,
130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Log more: -v for what is loaded and where it runs, -vv for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stream an audio file through a model, as if it were spoken to it.
    Run(RunArgs),
    /// Talk with a model through microphone and loudspeaker. Ctrl-C ends the conversation.
    Chat(ChatArgs),
    /// Serve a model to many callers at the same time, in real time.
    Serve(ServeArgs),
    /// Talk with a server, through microphone and loudspeaker or with a recording.
    Client(ClientArgs),
    /// Measure a server with many conversations at the same time.
    Loadtest(LoadtestArgs),
    /// Turn audio into Mimi tokens.
    Encode(EncodeArgs),
    /// Turn Mimi tokens into audio.
    Decode(DecodeArgs),
    /// Describe a model, its licence and its origin without loading its weights.
    Info(InfoArgs),
    /// Recompute reference cases and compare.
    Verify(VerifyArgs),
    /// Measure how long steps take, stage by stage, against what memory allows.
    Bench(BenchArgs),
    /// Compare a model's predictions in bf16, q8 and q4 with those in f32.
    CompareFormats(CompareFormatsArgs),
    /// Measure this machine and predict which models run on it in real time.
    Doctor(DoctorArgs),
}

/// Where and how to compute.
#[derive(Debug, Clone, Args)]
pub(crate) struct ComputeArgs {
    /// Device to run on.
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Implementation on the CPU.
    #[arg(long, value_enum, default_value_t = ExecutorArg::Cpu)]
    pub(crate) executor: ExecutorArg,
    /// Threads that compute: a number, at least 1, or auto, which measures at load how many help
    /// and gives way to other programs. Results do not depend on it. The scalar executor uses one.
    #[arg(long, default_value = "auto", value_parser = parse_threads)]
    pub(crate) threads: ThreadsArg,
}

/// How many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadsArg {
    Auto,
    Exactly(u16),
}

fn parse_threads(text: &str) -> Result<ThreadsArg, String> {
    match text.parse() {
        Ok(0) | Err(_) if text != "auto" => {
            Err(format!("a number from 1 to {}, or auto", u16::MAX))
        }
        Ok(count) => Ok(ThreadsArg::Exactly(count)),
        Err(_) => Ok(ThreadsArg::Auto),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// The best device of this build; warns and takes the processor when this machine lacks it.
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
    /// The GPU of an Apple computer.
    Metal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExecutorArg {
    /// Packed weights, the processor's widest instructions, several threads: the fastest.
    Cpu,
    /// Plain loops, the reference: the same bits on every processor.
    Scalar,
    /// Candle tensors.
    Candle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// As the checkpoint stores them.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 8 bits and a scale for every 32 weights.
    Q8,
    /// 4 bits, with a scale and an offset for every 32 weights of the temporal transformer.
    Q4,
}

impl DtypeArg {
    /// `None` follows the checkpoint.
    pub(crate) fn weight_type(self) -> Option<WeightType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(WeightType::F32),
            Self::Bf16 => Some(WeightType::Bf16),
            Self::Q8 => Some(WeightType::Q8),
            Self::Q4 => Some(WeightType::Q4),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// 32-bit floats: codes are those of the original.
    Exact,
    /// 16-bit brain floats.
    Fast,
}

impl ModeArg {
    pub(crate) fn mode(self) -> MimiMode {
        match self {
            Self::Exact => MimiMode::Exact,
            Self::Fast => MimiMode::Fast,
        }
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fast => "fast",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvDtypeArg {
    /// bf16, and f32 beside weights in f32; the executors scalar and candle keep f32.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 8 bits, and a scale for every position and head.
    Q8,
}

impl KvDtypeArg {
    /// `None` leaves the choice to the executor.
    pub(crate) fn key_storage(self) -> Option<KeyStorage> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(KeyStorage::F32),
            Self::Bf16 => Some(KeyStorage::Bf16),
            Self::Q8 => Some(KeyStorage::Q8),
        }
    }
}

impl ComputeArgs {
    pub(crate) fn device(&self) -> Device {
        match self.device {
            DeviceArg::Auto => Device::Auto,
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Cuda => Device::Cuda,
            DeviceArg::Metal => Device::Metal,
        }
    }

    pub(crate) fn cpu_executor(&self) -> CpuExecutor {
        match self.executor {
            ExecutorArg::Scalar => CpuExecutor::Scalar,
            ExecutorArg::Candle => CpuExecutor::Candle,
            ExecutorArg::Cpu => CpuExecutor::Cpu {
                threads: match self.threads {
                    ThreadsArg::Auto => None,
                    ThreadsArg::Exactly(count) => Some(count.into()),
                },
            },
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Audio file: wav, flac, mp3, ogg (Vorbis or Opus), m4a, webm, aiff; any rate, any number of channels.
    pub(crate) input: PathBuf,
    /// Write the model's audio to this wav file.
    #[arg(short, long)]
    pub(crate) output: Option<PathBuf>,
    /// Write the user on the left and the model on the right channel.
    #[arg(long, requires = "output")]
    pub(crate) stereo: bool,
    /// Silence to add after the input, in seconds, so that the model can finish.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    pub(crate) pad: f64,
    /// Print one JSON object instead of text and timings.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) speech: SpeechArgs,
}

/// Which model speaks, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpeechArgs {
    /// Model: a folder with config.json and the files that it names, a file in one, or OWNER/NAME
    /// of a repository on the hub, which is downloaded once. Without it, the model in the box.
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// Seed of the draws: the same seed, input and model give the same output.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Temperature of audio tokens; 0 always takes the most probable.
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Temperature of text tokens.
    #[arg(long)]
    pub(crate) text_temperature: Option<f64>,
    /// Draw audio tokens from this many most probable ones; 0 is all.
    #[arg(long)]
    pub(crate) top_k: Option<usize>,
    /// As --top-k, for text.
    #[arg(long)]
    pub(crate) top_k_text: Option<usize>,
    /// Type of the language model's weights in memory.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,
    /// Type of the language model's keys and values, what a session remembers.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::Auto)]
    pub(crate) kv_dtype: KvDtypeArg,
    /// LoRA adapter to fuse into the language model, in place of the one that the config names.
    #[arg(long, value_name = "FILE")]
    pub(crate) lora: Option<PathBuf>,
    /// Weights of the codec: exact keeps f32, fast bf16, of which a frame reads half as much; few
    /// codes differ.
    #[arg(long, value_enum, default_value_t = ModeArg::Exact)]
    pub(crate) codec: ModeArg,
    /// Keep packed weights in this folder, as large as the model in memory, so that the next start
    /// is faster.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) packed_cache: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

impl SpeechArgs {
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            device: self.compute.device(),
            cpu_executor: self.compute.cpu_executor(),
            dtype: self.dtype.weight_type(),
            kv_dtype: self.kv_dtype.key_storage(),
            lora: self.lora.clone(),
            codec: self.codec.mode(),
            packed_cache: self.packed_cache.clone(),
        }
    }
}

/// Sound devices, of the Python package.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sound devices (Python package)")]
pub(crate) struct DeviceArgs {
    /// Microphone: its number in --list-devices, or a part of its name.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) input_device: Option<String>,
    /// Loudspeaker: its number in --list-devices, or a part of its name.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) output_device: Option<String>,
    /// List the sound devices and stop.
    #[arg(long, exclusive = true)]
    pub(crate) list_devices: bool,
    /// Write the conversation to this wav file: the user on the left, the model on the right.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) speech: SpeechArgs,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
}

/// Which codec to use.
#[derive(Debug, Args)]
pub(crate) struct CodecArgs {
    /// Model folder, a codec's safetensors file (with its mimi_config.json beside it, if it is
    /// not the public Mimi), or OWNER/NAME of a repository on the hub. Without it, the codec of
    /// the model in the box.
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    /// Audio file.
    pub(crate) input: PathBuf,
    /// Token file to write: safetensors with the tensor `codes` [codebook, frame].
    #[arg(short, long)]
    pub(crate) output: PathBuf,
    /// Codebooks to use.
    #[arg(long, default_value_t = 8)]
    pub(crate) codebooks: usize,
    #[command(flatten)]
    pub(crate) codec: CodecArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// Token file as `encode` writes it.
    pub(crate) input: PathBuf,
    /// Wav file to write.
    #[arg(short, long)]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) codec: CodecArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Model folder, a file in one, or OWNER/NAME of a repository on the hub, whose weights stay
    /// there. Without it, the model in the box.
    pub(crate) model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the model card instead: for the model in the box, all that it can be asked.
    #[arg(long, conflicts_with = "json")]
    pub(crate) card: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Case folders: case.json, configs, weights and expected*.safetensors.
    #[arg(required = true)]
    pub(crate) cases: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model: a shape, measured with random weights (moshi-7b, hibiki-zero-3b, hibiki-2b,
    /// hibiki-1b, stt-2.6b, stt-1b, tts-1.6b, tts-0.75b), or a folder, a file in one, or OWNER/NAME
    /// of a repository on the hub. Without it, the model in the box.
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// Type of the language model's weights in memory.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,
    /// Type of the language model's keys and values, what a session remembers.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::Auto)]
    pub(crate) kv_dtype: KvDtypeArg,
    /// Weights of the codec: exact keeps f32, fast bf16.
    #[arg(long, value_enum, default_value_t = ModeArg::Exact)]
    pub(crate) codec: ModeArg,
    /// Sessions stepped as one batch.
    #[arg(long, default_value_t = 1, value_parser = sessions)]
    pub(crate) sessions: usize,
    /// Steps to measure, after ten that warm up: 750 are a minute.
    #[arg(long, default_value_t = 750, value_parser = frames)]
    pub(crate) frames: usize,
    /// Take a step every 80 ms, as a conversation does, not one after the other.
    #[arg(long)]
    pub(crate) paced: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompareFormatsArgs {
    /// Audio file that the model hears. In every format it hears the same codes and is given the
    /// tokens that it draws in f32.
    pub(crate) input: PathBuf,
    /// Model: a folder, a file in one, or OWNER/NAME of a repository on the hub. Without it, the
    /// model in the box. In f32 it takes 4 bytes of memory for every weight.
    #[arg(short, long)]
    pub(crate) model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub.
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// Frames of the recording to take, at most; without it, all.
    #[arg(long, value_parser = frames)]
    pub(crate) frames: Option<usize>,
    /// Seed of the draws in f32.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Type of keys and values beside the compared weights; f32 weights keep them in f32.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::Auto)]
    pub(crate) kv_dtype: KvDtypeArg,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Type of keys and values to predict with.
    #[arg(long, value_enum, default_value_t = KvDtypeArg::Auto)]
    pub(crate) kv_dtype: KvDtypeArg,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

fn sessions(text: &str) -> Result<usize, String> {
    count(text, 256)
}

fn frames(text: &str) -> Result<usize, String> {
    count(text, 1_000_000)
}

/// A number from 1 to `most`.
fn count(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("must be a whole number from 1 to {most}")),
    }
}
