//! The options of a training, the same for both models.

use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Training {
    /// Folder of the corpus
    #[arg(long)]
    pub(crate) corpus: PathBuf,
    /// Folder of recordings with refs.tsv that are transcribed at each checkpoint
    #[arg(long, default_value = "regional-stack/speech/testdata/held-out")]
    pub(crate) held_out: PathBuf,
    /// Folder the model is written to, at each checkpoint and at the end
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Folder of a model whose weights the training starts from
    #[arg(long)]
    pub(crate) start_from: Option<PathBuf>,
    /// Wall-clock length of the training at most; the learning rate follows what comes first, this or the steps
    #[arg(long, required_unless_present = "steps")]
    pub(crate) minutes: Option<f64>,
    /// Number of steps; alone, it makes a run repeatable
    #[arg(long)]
    pub(crate) steps: Option<u64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 20)]
    pub(crate) seed: u64,
    /// Recordings used at most, for a quick trial
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    /// Version written into the sidecar
    #[arg(long, default_value = "1")]
    pub(crate) model_version: String,
}
