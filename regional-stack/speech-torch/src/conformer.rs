//! The network of the recognizer: a small Conformer (Gulati and others, 2020) with a CTC head.
//!
//! It differs from the paper in two points, both for small batches and single streams: sinusoidal positions are added
//! once, and the convolution module normalises over channels, so that training and serving compute the same.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn, nn::Module};

use crate::alphabet;

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConformerConfig {
    /// Mel bins of the input.
    pub bins: i64,
    /// Width of the residual stream.
    pub width: i64,
    /// Number of Conformer blocks.
    pub blocks: i64,
    /// Number of attention heads, a divisor of `width`.
    pub heads: i64,
    /// Frames in the kernel of the depthwise convolution, odd.
    pub kernel: i64,
}

impl Default for ConformerConfig {
    fn default() -> Self {
        Self {
            bins: 80,
            width: 96,
            blocks: 4,
            heads: 4,
            kernel: 15,
        }
    }
}

/// Input frames per output frame.
pub const SUBSAMPLING: i64 = 4;

const DROPOUT: f64 = 0.1;
const SUBSAMPLING_CHANNELS: i64 = 32;

/// The network. Its weights live in the variable store in which it was made.
#[derive(Debug)]
pub struct Conformer {
    conv_in: nn::Conv2D,
    conv_depth: nn::Conv2D,
    conv_point: nn::Conv2D,
    input: nn::Linear,
    blocks: Vec<Block>,
    output: nn::Linear,
    width: i64,
}

#[derive(Debug)]
struct Block {
    feed_before: Feed,
    norm_attention: nn::LayerNorm,
    qkv: nn::Linear,
    attention_out: nn::Linear,
    heads: i64,
    norm_conv: nn::LayerNorm,
    gate: nn::Linear,
    depthwise: nn::Conv1D,
    norm_depthwise: nn::LayerNorm,
    conv_out: nn::Linear,
    feed_after: Feed,
    norm: nn::LayerNorm,
}

#[derive(Debug)]
struct Feed {
    norm: nn::LayerNorm,
    up: nn::Linear,
    down: nn::Linear,
}

impl Feed {
    fn new(p: &nn::Path<'_>, width: i64) -> Self {
        Self {
            norm: nn::layer_norm(p / "norm", vec![width], Default::default()),
            up: nn::linear(p / "up", width, 4 * width, Default::default()),
            down: nn::linear(p / "down", 4 * width, width, Default::default()),
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let hidden = self.up.forward(&self.norm.forward(x)).silu();
        self.down.forward(&hidden).dropout(DROPOUT, train)
    }
}

impl Block {
    fn new(p: &nn::Path<'_>, config: &ConformerConfig) -> Self {
        let d = config.width;
        let depthwise = nn::ConvConfig {
            padding: config.kernel / 2,
            groups: d,
            ..Default::default()
        };
        Self {
            feed_before: Feed::new(&(p / "feed_before"), d),
            norm_attention: nn::layer_norm(p / "norm_attention", vec![d], Default::default()),
            qkv: nn::linear(p / "qkv", d, 3 * d, Default::default()),
            attention_out: nn::linear(p / "attention_out", d, d, Default::default()),
            heads: config.heads,
            norm_conv: nn::layer_norm(p / "norm_conv", vec![d], Default::default()),
            gate: nn::linear(p / "gate", d, 2 * d, Default::default()),
            depthwise: nn::conv1d(p / "depthwise", d, d, config.kernel, depthwise),
            norm_depthwise: nn::layer_norm(p / "norm_depthwise", vec![d], Default::default()),
            conv_out: nn::linear(p / "conv_out", d, d, Default::default()),
            feed_after: Feed::new(&(p / "feed_after"), d),
            norm: nn::layer_norm(p / "norm", vec![d], Default::default()),
        }
    }

    fn forward(&self, x: &Tensor, present: Option<&Present>, train: bool) -> Tensor {
        let x = x + self.feed_before.forward(x, train) * 0.5;
        let x = &x
            + self
                .attend(&self.norm_attention.forward(&x), present)
                .dropout(DROPOUT, train);
        let mut y = self.gate.forward(&self.norm_conv.forward(&x)).glu(-1);
        if let Some(present) = present {
            // Padding must not leak into the neighbours of the last frame.
            y *= &present.frames;
        }
        let y = self.depthwise.forward(&y.transpose(1, 2)).transpose(1, 2);
        let y = self
            .conv_out
            .forward(&self.norm_depthwise.forward(&y).silu())
            .dropout(DROPOUT, train);
        let x = x + y;
        let x = &x + self.feed_after.forward(&x, train) * 0.5;
        self.norm.forward(&x)
    }

    fn attend(&self, x: &Tensor, present: Option<&Present>) -> Tensor {
        let (batch, frames, width) = x.size3().expect("the residual stream has three dimensions");
        let qkv = self
            .qkv
            .forward(x)
            .view([batch, frames, 3, self.heads, width / self.heads])
            .permute([2, 0, 3, 1, 4]);
        let mask = present.map(|p| &p.keys);
        let y =
            Tensor::scaled_dot_product_attention(&qkv.get(0), &qkv.get(1), &qkv.get(2), mask, 0.0, false, None, false);
        self.attention_out
            .forward(&y.transpose(1, 2).reshape([batch, frames, width]))
    }
}

/// The real frames of a padded batch.
struct Present {
    /// `[batch, frames, 1]`: one for a real frame, zero for padding.
    frames: Tensor,
    /// `[batch, 1, 1, frames]`: true where attention may look.
    keys: Tensor,
}

impl Conformer {
    /// Creates the variables of the network under `p`.
    pub fn new(p: &nn::Path<'_>, config: &ConformerConfig) -> Self {
        let c = SUBSAMPLING_CHANNELS;
        let halving = nn::ConvConfig {
            stride: 2,
            padding: 1,
            ..Default::default()
        };
        let depthwise = nn::ConvConfig { groups: c, ..halving };
        Self {
            conv_in: nn::conv2d(p / "conv_in", 1, c, 3, halving),
            conv_depth: nn::conv2d(p / "conv_depth", c, c, 3, depthwise),
            conv_point: nn::conv2d(p / "conv_point", c, c, 1, Default::default()),
            input: nn::linear(
                p / "input",
                c * (config.bins / SUBSAMPLING),
                config.width,
                Default::default(),
            ),
            blocks: (0..config.blocks)
                .map(|i| Block::new(&(p / "blocks" / i), config))
                .collect(),
            output: nn::linear(p / "output", config.width, alphabet::TOKENS, Default::default()),
            width: config.width,
        }
    }

    /// Number of output frames for this many input frames.
    pub fn frames_out(frames: i64) -> i64 {
        (frames + SUBSAMPLING - 1) / SUBSAMPLING
    }

    /// Log-probabilities `[batch, frames_out, tokens]` for normalised features `[batch, frames, bins]`. `frames` gives
    /// the number of real frames in each row, if rows differ.
    pub fn forward(&self, features: &Tensor, frames: Option<&[i64]>, train: bool) -> Tensor {
        let x = self.conv_in.forward(&features.unsqueeze(1)).silu();
        let x = self.conv_point.forward(&self.conv_depth.forward(&x)).silu();
        let (batch, channels, out, bins) = x.size4().expect("a convolution gives four dimensions");
        let x = self
            .input
            .forward(&x.transpose(1, 2).reshape([batch, out, channels * bins]));
        let mut x = (x + positions(out, self.width, features)).dropout(DROPOUT, train);
        let present = frames.map(|frames| {
            let lens: Vec<i64> = frames.iter().map(|&f| Self::frames_out(f)).collect();
            let lens = Tensor::from_slice(&lens).to_device(features.device()).unsqueeze(1);
            let real = Tensor::arange(out, (Kind::Int64, features.device()))
                .unsqueeze(0)
                .lt_tensor(&lens);
            Present {
                frames: real.unsqueeze(2).to_kind(features.kind()),
                keys: real.unsqueeze(1).unsqueeze(1),
            }
        });
        for block in &self.blocks {
            x = block.forward(&x, present.as_ref(), train);
        }
        self.output.forward(&x).log_softmax(-1, Kind::Float)
    }
}

fn positions(frames: i64, width: i64, like: &Tensor) -> Tensor {
    let options = (Kind::Float, like.device());
    let half = width / 2;
    let rates = (Tensor::arange(half, options) * (-(10_000f64.ln()) / half as f64)).exp();
    let angles = Tensor::arange(frames, options).unsqueeze(1) * rates.unsqueeze(0);
    Tensor::cat(&[angles.sin(), angles.cos()], 1).unsqueeze(0)
}
