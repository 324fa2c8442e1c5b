//! The first inputs of the targets, written into `corpus/` when one starts: the tiny models in
//! both containers, and every config of the reference cases.

use std::path::Path;

use crate::build::{self, Tensors};

/// Writes them all.
pub fn write() {
    try_write().expect("the corpus can be written");
}

fn try_write() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = here.join("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };
    let models: [(&str, Tensors); 6] = [
        ("lm", build::language_model(&crate::LM)),
        ("scaled", build::scaled()),
        ("grouped_4", build::grouped(4)),
        ("grouped_8", build::grouped(8)),
        ("mimi", build::codec()),
        ("lora", build::adapter()),
    ];
    for (name, tensors) in &models {
        let (gguf, safetensors) = (tensors.gguf(), tensors.safetensors());
        // Without this, a change of the models could leave targets that refuse everything.
        let load = if *name == "lora" { crate::adapter } else { crate::weights };
        assert!(load(&safetensors), "{name} loads");
        write("gguf", name, &gguf[4..])?;
        write("safetensors", name, &[&safetensors[..2], &safetensors[8..]].concat())?;
        write("lora", &format!("{name}.gguf"), &gguf)?;
        write("lora", &format!("{name}.safetensors"), &safetensors)?;
    }
    write("config", "lm.json", crate::LM_CONFIG.as_bytes())?;
    write("config", "mimi.json", crate::MIMI_CONFIG.as_bytes())?;
    write("config", "hugging_face.json", HUGGING_FACE.as_bytes())?;
    write("config", "lm.toml", LM_TOML.as_bytes())?;
    for folder in [here.join("../golden"), here.join("../../rust/moshi-core/src/config")] {
        for case in std::fs::read_dir(folder)? {
            let case = case?;
            if !case.path().is_dir() {
                continue;
            }
            for file in std::fs::read_dir(case.path())? {
                let path = file?.path();
                let is_config = ["json", "toml"]
                    .map(Some)
                    .contains(&path.extension().and_then(|extension| extension.to_str()));
                if is_config {
                    let name = format!("{}-{}", stem(&case.path()), stem(&path));
                    write("config", &name, &std::fs::read(path)?)?;
                }
            }
        }
    }
    Ok(())
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

const HUGGING_FACE: &str = r#"{"model_type": "mimi", "sampling_rate": 24000, "frame_rate": 12.5,
    "hidden_size": 512, "num_filters": 64, "upsampling_ratios": [8, 6, 5, 4],
    "num_quantizers": 32, "codebook_size": 2048, "codebook_dim": 256, "num_hidden_layers": 8,
    "num_attention_heads": 8, "sliding_window": 250, "rope_parameters": {"rope_theta": 10000}}"#;

const LM_TOML: &str = r#"mimi_name = "mimi.safetensors"
moshi_name = "model.safetensors"
[gen]
acoustic_delay = 1
[modules.asr.model]
text_in_vocab_size = 5
text_out_vocab_size = 4
audio_vocab_size = 4
audio_codebooks = 3
extra_heads = { num_heads = 4, dim = 6 }
[modules.asr.model.transformer]
d_model = 4
num_heads = 1
num_layers = 1
dim_feedforward = 4
context = 2
max_period = 100000
gating = "silu"
norm = "RmsNorm"
positional_embedding = "Rope"
[modules.asr.model.depformer]
num_slices = 2
[modules.asr.model.depformer.transformer]
d_model = 2
num_heads = 1
num_layers = 1
dim_feedforward = 3
gating = "silu"
norm = "RmsNorm"
positional_embedding = "None"
[modules.asr.model.conditioners.description]
type = "Lut"
n_bins = 3
dim = 2
possible_values = ["bad", "good"]
[modules.asr.model.conditioners.delay]
type = "ContinuousAttribute"
dim = 64
scale_factor = 10.0
max_period = 10000.0
"#;
