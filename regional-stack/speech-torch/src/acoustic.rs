//! The network of the synthesizer: phones to durations to a mel spectrum, with convolutions only.
//!
//! After FastSpeech (Ren and others, 2019), with blocks after ConvNeXt. The program that makes the recordings gives
//! exact durations, so nothing has to be aligned.

use serde::{Deserialize, Serialize};
use speech::features::{Mel, SYNTHESIS};
use tch::{Kind, Tensor, nn, nn::Module};

use crate::pronunciation::PHONES;

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcousticConfig {
    /// Mel bins of the output.
    pub bins: i64,
    /// Width of the residual stream.
    pub width: i64,
    /// Number of blocks over phones.
    pub phone_blocks: i64,
    /// Number of blocks over frames.
    pub frame_blocks: i64,
}

impl Default for AcousticConfig {
    fn default() -> Self {
        Self {
            bins: SYNTHESIS.bins as i64,
            width: 192,
            phone_blocks: 4,
            frame_blocks: 6,
        }
    }
}

/// The lowest log power that the network draws: 60 dB below loud speech, where nobody hears differences.
const QUIETEST: f32 = -7.0;
const CENTRE: f32 = 1.0;
const SPREAD: f32 = 4.0;

/// Converts log power to the range of the network.
pub fn to_network(log_power: f32) -> f32 {
    (log_power.max(QUIETEST) - CENTRE) / SPREAD
}

/// Converts the range of the network to log power. Values at the floor become silence.
pub fn from_network(value: f32) -> f32 {
    let log_power = value * SPREAD + CENTRE;
    if log_power < QUIETEST + 0.5 {
        log_power - 6.0
    } else {
        log_power
    }
}

/// The network. Its weights live in the variable store in which it was made.
#[derive(Debug)]
pub struct Acoustic {
    phones: nn::Embedding,
    phone_blocks: Vec<Block>,
    duration_norm: nn::LayerNorm,
    duration_hidden: nn::Linear,
    duration: nn::Linear,
    place: nn::Linear,
    frame_blocks: Vec<Block>,
    norm: nn::LayerNorm,
    output: nn::Linear,
}

#[derive(Debug)]
struct Block {
    depthwise: nn::Conv1D,
    norm: nn::LayerNorm,
    up: nn::Linear,
    down: nn::Linear,
}

impl Block {
    fn new(p: &nn::Path<'_>, width: i64, kernel: i64) -> Self {
        let config = nn::ConvConfig {
            padding: kernel / 2,
            groups: width,
            ..Default::default()
        };
        Self {
            depthwise: nn::conv1d(p / "depthwise", width, width, kernel, config),
            norm: nn::layer_norm(p / "norm", vec![width], Default::default()),
            up: nn::linear(p / "up", width, 3 * width, Default::default()),
            down: nn::linear(p / "down", 3 * width, width, Default::default()),
        }
    }

    /// `real` is one where a padded batch has data, and zero elsewhere.
    fn forward(&self, x: &Tensor, real: Option<&Tensor>, train: bool) -> Tensor {
        let y = self.depthwise.forward(&x.transpose(1, 2)).transpose(1, 2);
        let y = self
            .down
            .forward(&self.up.forward(&self.norm.forward(&y)).silu())
            .dropout(0.05, train);
        match real {
            Some(real) => (x + y) * real,
            None => x + y,
        }
    }
}

/// The position of each frame: its phone in the row, how far into the phone it lies, and how long the phone is.
#[derive(Debug, Default, Clone)]
pub struct Places {
    /// Index of each frame's phone.
    pub phone: Vec<i64>,
    /// Three numbers per frame: the share of the phone that is past, and the frames since its start and until its end,
    /// both on a logarithmic scale.
    pub within: Vec<f32>,
}

impl Places {
    /// The positions of one utterance, from the durations of its phones in frames.
    pub fn of(durations: &[u32]) -> Self {
        let mut places = Self::default();
        for (phone, &frames) in durations.iter().enumerate() {
            for at in 0..frames {
                places.phone.push(phone as i64);
                let (past, left) = (at as f32 + 0.5, (frames - at) as f32 - 0.5);
                places
                    .within
                    .extend([past / frames as f32, (1.0 + past).ln() / 3.0, (1.0 + left).ln() / 3.0]);
            }
        }
        places
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.phone.len()
    }

    /// Extends to `frames` frames with the first phone. The result is masked there.
    pub fn pad(&mut self, frames: usize) {
        self.phone.resize(frames, 0);
        self.within.resize(frames * 3, 0.0);
    }
}

impl Acoustic {
    /// Creates the variables of the network under `p`.
    pub fn new(p: &nn::Path<'_>, config: &AcousticConfig) -> Self {
        let d = config.width;
        let small = nn::EmbeddingConfig {
            ws_init: nn::Init::Randn { mean: 0.0, stdev: 0.3 },
            ..Default::default()
        };
        Self {
            phones: nn::embedding(p / "phones", PHONES.len() as i64, d, small),
            phone_blocks: (0..config.phone_blocks)
                .map(|i| Block::new(&(p / "phone_blocks" / i), d, 7))
                .collect(),
            duration_norm: nn::layer_norm(p / "duration_norm", vec![d], Default::default()),
            duration_hidden: nn::linear(p / "duration_hidden", d, d, Default::default()),
            duration: nn::linear(p / "duration", d, 1, Default::default()),
            place: nn::linear(p / "place", 3, d, Default::default()),
            frame_blocks: (0..config.frame_blocks)
                .map(|i| Block::new(&(p / "frame_blocks" / i), d, 9))
                .collect(),
            norm: nn::layer_norm(p / "norm", vec![d], Default::default()),
            output: nn::linear(p / "output", d, config.bins, Default::default()),
        }
    }

    /// Encodes phones `[batch, phones]` with their context: `[batch, phones, width]`.
    pub fn read(&self, phones: &Tensor, real: Option<&Tensor>, train: bool) -> Tensor {
        let mut x = self.phones.forward(phones);
        if let Some(real) = real {
            x *= real;
        }
        for block in &self.phone_blocks {
            x = block.forward(&x, real, train);
        }
        x
    }

    /// Predicts `ln(1 + frames)` for each phone: `[batch, phones]`.
    pub fn durations(&self, read: &Tensor) -> Tensor {
        self.duration
            .forward(&self.duration_hidden.forward(&self.duration_norm.forward(read)).silu())
            .squeeze_dim(-1)
    }

    /// The spectrum in the range of the network, `[batch, frames, bins]`, for the phone index `[batch, frames]` and the
    /// position within the phone `[batch, frames, 3]` of each frame.
    pub fn draw(&self, read: &Tensor, phone: &Tensor, within: &Tensor, real: Option<&Tensor>, train: bool) -> Tensor {
        let (_, _, width) = read.size3().expect("what was read has three dimensions");
        let index = phone.unsqueeze(-1).expand([-1, -1, width], false);
        let mut x = read.gather(1, &index, false) + self.place.forward(within);
        if let Some(real) = real {
            x *= real;
        }
        for block in &self.frame_blocks {
            x = block.forward(&x, real, train);
        }
        self.output.forward(&self.norm.forward(&x))
    }

    /// The spectrum of one breath, with each phone at `1 / speed` of its natural length.
    pub fn speak(&self, phones: &[u8], speed: f32, device: tch::Device) -> Result<Mel, tch::TchError> {
        tch::no_grad(|| {
            let numbers: Vec<i64> = phones.iter().map(|p| i64::from(*p)).collect();
            let input = Tensor::from_slice(&numbers).f_unsqueeze(0)?.f_to_device(device)?;
            let read = self.read(&input, None, false);
            let durations = self
                .durations(&read)
                .f_squeeze_dim(0)?
                .f_expm1()?
                .f_to_kind(Kind::Float)?;
            let durations: Vec<f32> = Vec::try_from(durations.f_to_device(tch::Device::Cpu)?)?;
            let frames = whole_frames(&durations, speed);
            let places = Places::of(&frames);
            let count = places.frames() as i64;
            let phone = Tensor::from_slice(&places.phone)
                .f_view([1, count])?
                .f_to_device(device)?;
            let within = Tensor::from_slice(&places.within)
                .f_view([1, count, 3])?
                .f_to_device(device)?;
            let drawn = self
                .draw(&read, &phone, &within, None, false)
                .f_to_device(tch::Device::Cpu)?;
            let values: Vec<f32> = Vec::try_from(drawn.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?)?;
            Ok(Mel {
                values: values.into_iter().map(from_network).collect(),
                bins: SYNTHESIS.bins,
            })
        })
    }
}

/// Longest phone in frames: a second at natural speed. With unseen neighbours the network must not hold a sound for
/// minutes.
const PHONE_MAX_FRAMES: f32 = 80.0;

/// Rounds durations so that their sum stays close to the exact sum.
fn whole_frames(durations: &[f32], speed: f32) -> Vec<u32> {
    let (mut exact, mut given) = (0.0f32, 0u32);
    durations
        .iter()
        .map(|d| {
            let d = if d.is_finite() {
                d.clamp(1.0, PHONE_MAX_FRAMES)
            } else {
                1.0
            };
            exact += d / speed;
            let frames = ((exact.round() as u32).saturating_sub(given)).max(1);
            given += frames;
            frames
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_the_length() {
        let durations = [3.4; 50];
        assert_eq!(whole_frames(&durations, 1.0).iter().sum::<u32>(), 170);
        assert_eq!(whole_frames(&durations, 2.0).iter().sum::<u32>(), 85);
        assert!(
            whole_frames(&[f32::NAN, -5.0, 1e9], 4.0)
                .iter()
                .all(|f| (1..=20).contains(f))
        );
    }

    #[test]
    fn every_frame_knows_its_phone() {
        let places = Places::of(&[2, 1, 3]);
        assert_eq!(places.phone, [0, 0, 1, 2, 2, 2]);
        assert_eq!(places.within.len(), 18);
    }
}
