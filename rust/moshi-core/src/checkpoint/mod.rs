//! From files to checked, named weights.
//!
//! - [`TensorFile`]: a safetensors or GGUF file, mapped or in memory.
//! - [`Catalog`]: the tensors of a file under the one canonical spelling that models ask for,
//!   checked against the shapes that the config implies before anything is read.
//! - [`layout`]: those names and shapes.
//! - [`Repo`]: a model repository, wherever a [`FileSource`] has its files: a [`Folder`], the
//!   program itself ([`InMemory`]), a hub; [`CodecFiles`]: a codec alone.

mod catalog;
mod fingerprint;
mod gguf;
mod header;
pub mod layout;
mod lora;
mod names;
mod packed;
mod random;
mod repo;
mod safetensors;
mod source;
mod tensor_file;

pub use catalog::{Catalog, Expected};
pub use fingerprint::Fingerprint;
pub use lora::Lora;
pub use names::Layout;
pub(crate) use packed::PackedFile;
pub use random::RandomWidth;
pub use repo::{CodecFiles, Repo};
pub use source::{FileBytes, FileSource, Folder, InMemory, SourceFile, is_plain};
pub use tensor_file::{Container, Encoding, TensorFile, TensorInfo};
