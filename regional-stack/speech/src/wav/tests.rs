use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::g711::{a_law, mu_law};

/// A file, field by field. Tests change fields of the header to wrong values.
#[derive(Clone)]
struct File {
    tag: u16,
    channels: u16,
    rate: u32,
    bits: u16,
    /// The sub-format, if the format is extensible.
    extension: Option<(u16, u16)>,
    /// Chunks between the format and the samples, as they are written.
    between: Vec<u8>,
    data: Vec<u8>,
    data_length: Option<u32>,
    riff_length: Option<u32>,
    behind: Vec<u8>,
}

const RATE: u32 = 16_000;

impl File {
    /// Half a second of a tone, in 16-bit PCM.
    fn tone() -> Self {
        Self {
            tag: 1,
            channels: 1,
            rate: RATE,
            bits: 16,
            extension: None,
            between: Vec::new(),
            data: pcm::to_s16le(&wave(RATE)),
            data_length: None,
            riff_length: None,
            behind: Vec::new(),
        }
    }

    fn of(tag: u16, bits: u16, rate: u32, sample: impl Fn(f32) -> Vec<u8>) -> Self {
        Self {
            tag,
            bits,
            rate,
            data: wave(rate).into_iter().flat_map(sample).collect(),
            ..Self::tone()
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let align = self.channels * self.bits.div_ceil(8);
        let mut fmt = Vec::new();
        fmt.extend(self.tag.to_le_bytes());
        fmt.extend(self.channels.to_le_bytes());
        fmt.extend(self.rate.to_le_bytes());
        fmt.extend((self.rate * u32::from(align)).to_le_bytes());
        fmt.extend(align.to_le_bytes());
        fmt.extend(self.bits.to_le_bytes());
        if let Some((valid_bits, kind)) = self.extension {
            fmt.extend(22u16.to_le_bytes());
            fmt.extend(valid_bits.to_le_bytes());
            fmt.extend(4u32.to_le_bytes());
            fmt.extend(kind.to_le_bytes());
            fmt.extend(EXTENSIBLE_TAIL);
        }
        let data_length = self.data_length.unwrap_or(self.data.len() as u32);
        let mut chunks = chunk(b"fmt ", fmt.len() as u32, &fmt);
        chunks.extend(&self.between);
        chunks.extend(chunk(b"data", data_length, &self.data));
        chunks.extend(&self.behind);
        let riff_length = self.riff_length.unwrap_or(4 + chunks.len() as u32);
        let mut file = chunk(b"RIFF", riff_length, b"WAVE");
        file.extend(chunks);
        file
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Vec<u8> {
        change(&mut self);
        self.bytes()
    }
}

fn chunk(id: &[u8; 4], length: u32, content: &[u8]) -> Vec<u8> {
    [&id[..], &length.to_le_bytes(), content].concat()
}

fn ds64(length: u64) -> Vec<u8> {
    let lengths = [(length.wrapping_add(72)).to_le_bytes(), length.to_le_bytes(), [0; 8]].concat();
    chunk(b"ds64", 28, &[lengths, vec![0; 4]].concat())
}

fn wave(rate: u32) -> Vec<f32> {
    (0..rate / 2)
        .map(|i| 0.5 * (i as f32 * 440.0 * std::f32::consts::TAU / rate as f32).sin())
        .collect()
}

/// Encodes by search, as a G.711 encoder does: takes the code with the nearest value.
fn g711(decode: fn(u8) -> i16) -> impl Fn(f32) -> Vec<u8> {
    move |s| {
        let wanted = (s * 32_768.0) as i32;
        vec![
            (0..=255u8)
                .min_by_key(|code| (i32::from(decode(*code)) - wanted).abs())
                .unwrap(),
        ]
    }
}

fn int(bytes: usize) -> impl Fn(f32) -> Vec<u8> {
    move |s| ((f64::from(s) * 2_147_483_647.0) as i32).to_le_bytes()[4 - bytes..].to_vec()
}

fn unsigned(s: f32) -> Vec<u8> {
    vec![(s * 127.0 + 128.0).round() as u8]
}

fn double(s: f32) -> Vec<u8> {
    f64::from(s).to_le_bytes().to_vec()
}

fn float(s: f32) -> Vec<u8> {
    s.to_le_bytes().to_vec()
}

/// Every file that is accepted, by name. Each must decode to the tone, half a second long.
fn read() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for rate in [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000] {
        for (name, file) in [
            ("8-bit", File::of(1, 8, rate, unsigned)),
            ("16-bit", File::of(1, 16, rate, int(2))),
            ("24-bit", File::of(1, 24, rate, int(3))),
            ("32-bit", File::of(1, 32, rate, int(4))),
            ("float", File::of(3, 32, rate, float)),
            ("double", File::of(3, 64, rate, double)),
            ("A-law", File::of(6, 8, rate, g711(a_law))),
            ("mu-law", File::of(7, 8, rate, g711(mu_law))),
        ] {
            let stereo = file.clone().with(|file| {
                file.channels = 2;
                let sample = usize::from(file.bits / 8);
                file.data = file.data.chunks(sample).flat_map(|s| [s, s].concat()).collect();
            });
            let extensible = file.clone().with(|file| {
                file.extension = Some((file.bits, file.tag));
                file.tag = EXTENSIBLE;
            });
            files.push((format!("{name} at {rate}"), file.bytes()));
            files.push((format!("{name} at {rate}, stereo"), stereo));
            files.push((format!("{name} at {rate}, extensible"), extensible));
        }
    }
    let tone = File::tone;
    let more = [
        (
            "20 of 24 bits",
            File::of(1, 24, RATE, int(3)).with(|file| file.extension = Some((20, 1))),
        ),
        ("12 bits", tone().with(|file| file.bits = 12)),
        (
            "an odd chunk with its pad byte",
            tone().with(|file| file.between = chunk(b"LIST", 5, b"hello\0")),
        ),
        (
            "a pad byte that is not zero",
            tone().with(|file| file.between = chunk(b"LIST", 5, b"hello!")),
        ),
        (
            "a chunk without samples before the samples",
            tone().with(|file| file.between = chunk(b"data", 0, b"")),
        ),
        (
            "a chunk without samples, and another chunk, before the samples",
            tone().with(|file| file.between = [chunk(b"data", 0, b""), chunk(b"LIST", 4, b"INFO")].concat()),
        ),
        (
            "a chunk without samples before samples of unknown length",
            tone().with(|file| {
                file.between = chunk(b"data", 0, b"");
                file.data_length = Some(u32::MAX);
            }),
        ),
        (
            "a chunk without samples before samples of no length",
            tone().with(|file| {
                file.between = chunk(b"data", 0, b"");
                file.data_length = Some(0);
            }),
        ),
        (
            "a pad byte that is a letter",
            tone().with(|file| file.between = chunk(b"LIST", 5, b"hellod")),
        ),
        (
            "a chunk before the samples",
            tone().with(|file| file.between = chunk(b"junk", 4, b"data")),
        ),
        (
            "chunks behind the samples",
            tone().with(|file| file.behind = chunk(b"LIST", 4, b"INFO")),
        ),
        (
            "rubbish behind the samples",
            tone().with(|file| file.behind = vec![7; 5]),
        ),
        (
            "no length",
            tone().with(|file| (file.data_length, file.riff_length) = (Some(0), Some(0))),
        ),
        (
            "2,000,000,000 bytes",
            tone().with(|file| file.data_length = Some(2_000_000_000)),
        ),
        (
            "0x7fffffff bytes",
            tone().with(|file| file.data_length = Some(0x7fff_ffff)),
        ),
        (
            "0x7ffff000 bytes, as sox",
            tone().with(|file| file.data_length = Some(0x7fff_f000)),
        ),
        (
            "0x80000000 bytes, as arecord",
            tone().with(|file| file.data_length = Some(0x8000_0000)),
        ),
        (
            "0xffffffff bytes, as ffmpeg",
            tone().with(|file| (file.data_length, file.riff_length) = (Some(u32::MAX), Some(u32::MAX))),
        ),
        ("a wrong length of all", tone().with(|file| file.riff_length = Some(3))),
        (
            "an open length that ends inside a sample",
            tone().with(|file| {
                file.data_length = Some(u32::MAX);
                file.data.push(1);
            }),
        ),
        ("half a sample at the end", tone().with(|file| file.data.push(1))),
        (
            "a byte more than there is",
            tone().with(|file| file.data_length = Some(file.data.len() as u32 + 1)),
        ),
        (
            "twice of what there is",
            tone().with(|file| file.data_length = Some(file.data.len() as u32 * 2)),
        ),
        (
            "an hour, stopped after half a second",
            tone().with(|file| file.data_length = Some(3_600 * 2 * RATE)),
        ),
        (
            "a gigabyte, from a pipe",
            tone().with(|file| file.data_length = Some(1 << 30)),
        ),
        (
            "an RF64 file that claims a sample more than it has",
            tone().with(|file| {
                file.data_length = Some(u32::MAX);
                file.between = ds64(file.data.len() as u64 + 2);
            }),
        ),
    ];
    files.extend(more.map(|(name, bytes)| (name.to_owned(), bytes)));
    let whole = tone().bytes().len() as u32;
    for (name, length) in [("the file", whole), ("the header of the file", whole - 8)] {
        let file = tone().with(|file| file.data_length = Some(length));
        files.push((format!("the length of {name}"), file));
    }
    for tag in [b"RF64", b"BW64"] {
        let samples = tone().data.len() as u64;
        // With lengths, with lengths that were never filled in, and without any.
        for lengths in [Some(samples), Some(0), Some(u64::MAX), None] {
            let mut file = tone();
            file.data_length = Some(u32::MAX);
            if let Some(length) = lengths {
                file.between = ds64(length);
            }
            if lengths == Some(samples) {
                file.behind = chunk(b"LIST", 4, &[0x7f; 4]).repeat(100);
            }
            let mut bytes = file.bytes();
            bytes[..4].copy_from_slice(tag);
            files.push((format!("{} of {lengths:?}", String::from_utf8_lossy(tag)), bytes));
        }
    }
    files
}

#[test]
fn every_common_file_is_read_as_it_was_meant() {
    let want = wave(RATE);
    for (name, bytes) in read() {
        let out = decode(&bytes, 60.0).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(out.len().abs_diff(want.len()) <= 1, "{name}: {} samples", out.len());
        let middle = 400..want.len() - 400;
        let off: f32 = out[middle.clone()]
            .iter()
            .zip(&want[middle])
            .map(|(a, b)| (a - b).powi(2))
            .sum();
        let off = (off / want.len() as f32).sqrt();
        // Eight bits are off by 0.003; rates without a small common ratio are off by a fraction of a sample.
        assert!(off < 0.03, "{name}: off by {off}");
    }
}

/// Every file that is refused, with a part of the error.
fn refused() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = File::tone().bytes();
    let tone = File::tone;
    let mut big_endian = good.clone();
    big_endian[3] = b'X';
    vec![
        ("nothing", Vec::new(), "empty"),
        (
            "another format",
            b"OggS and so on, at some length, to have room".to_vec(),
            "not a WAV",
        ),
        (
            "another kind of riff",
            [b"RIFF\x04\0\0\0AVI ".as_slice(), &[0; 40]].concat(),
            "another kind",
        ),
        ("big-endian", big_endian, "RIFX"),
        ("the first bytes", good[..10].to_vec(), "cut short"),
        ("half a format", good[..20].to_vec(), "cut short"),
        ("no samples chunk", good[..36].to_vec(), "no data chunk"),
        ("half a header of samples", good[..40].to_vec(), "cut short"),
        ("a header without a sample", good[..44].to_vec(), "no samples"),
        ("less than one sample", good[..45].to_vec(), "no samples"),
        (
            "half of its lengths",
            tone().with(|file| file.between = chunk(b"ds64", 12, &[0; 12])),
            "ds64",
        ),
        ("no samples", encode(&[], RATE), "no samples"),
        (
            "no samples and something behind",
            tone().with(|file| {
                file.data.clear();
                file.behind = chunk(b"LIST", 4, b"INFO");
            }),
            "no samples",
        ),
        (
            "an odd chunk without its pad byte",
            tone().with(|file| file.between = chunk(b"LIST", 5, b"hello")),
            "lacks its pad byte",
        ),
        (
            "an odd chunk without its pad byte before rubbish",
            tone().with(|file| file.between = [chunk(b"id3 ", 3, b"xxx"), chunk(b"JUNK", 4, b"0000")].concat()),
            "lacks its pad byte",
        ),
        (
            "an odd chunk without its pad byte before marks",
            tone().with(|file| file.between = [chunk(b"abcd", 3, b"xxx"), chunk(b"cue ", 4, &[0; 4])].concat()),
            "lacks its pad byte",
        ),
        (
            "an odd chunk without its pad byte before a chunk that nobody knows",
            tone().with(|file| file.between = [chunk(b"abcd", 3, b"xxx"), chunk(b"ab12", 4, &[0; 4])].concat()),
            "lacks its pad byte",
        ),
        (
            "a chunk longer than the file",
            tone().with(|file| file.between = chunk(b"LIST", 1 << 20, b"")),
            "cut short",
        ),
        (
            "two chunks of samples",
            tone().with(|file| file.behind = [chunk(b"LIST", 4, b"INFO"), chunk(b"data", 4, &[1; 4])].concat()),
            "more than one data chunk",
        ),
        (
            "samples in a list",
            [
                &good[..36],
                &chunk(b"LIST", 16, &[b"wavl".to_vec(), chunk(b"data", 4, &[1; 4])].concat()),
            ]
            .concat(),
            "wavl",
        ),
        ("4,000 Hz", tone().with(|file| file.rate = 4_000), "4000 Hz"),
        ("96,000 Hz", tone().with(|file| file.rate = 96_000), "96000 Hz"),
        ("six channels", tone().with(|file| file.channels = 6), "6 channels"),
        ("no channels", tone().with(|file| file.channels = 0), "zero channels"),
        ("no bits", tone().with(|file| file.bits = 0), "0 bits"),
        ("40 bits", tone().with(|file| file.bits = 40), "40 bits"),
        ("16-bit float", tone().with(|file| file.tag = 3), "16 bits"),
        ("16-bit mu-law", tone().with(|file| file.tag = 7), "16 bits"),
        ("MP3 inside", tone().with(|file| file.tag = 0x55), "0x0055"),
        (
            "ADPCM inside",
            tone().with(|file| (file.tag, file.bits) = (0x11, 4)),
            "0x0011",
        ),
        (
            "another extension",
            tone().with(|file| (file.tag, file.extension) = (EXTENSIBLE, Some((16, 0x55)))),
            "0x0055",
        ),
        (
            "an extension that is not there",
            tone().with(|file| file.tag = EXTENSIBLE),
            "too short",
        ),
    ]
}

#[test]
fn each_refusal_says_what_is_wrong() {
    for (name, bytes, says) in refused() {
        let message = match decode(&bytes, 60.0) {
            Ok(samples) => panic!("{name} gives {} samples", samples.len()),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(says), "{name}: {message}");
    }
    let error = decode(&File::tone().bytes(), 0.4).unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
}

/// All that is there of a file is heard, wherever it ends, and nothing else.
#[test]
fn a_file_is_read_up_to_the_byte_at_which_it_ends() {
    let samples: Vec<f32> = (0..200).map(|i| (i as f32 * 0.1).sin() * 0.7).collect();
    let whole = encode(&samples, SAMPLE_RATE);
    for end in 46..whole.len() {
        let read = decode(&whole[..end], 60.0).unwrap_or_else(|error| panic!("{end} bytes: {error}"));
        let want = &samples[..(end - 44) / 2];
        assert_eq!(read.len(), want.len(), "{end} bytes");
        assert!(read.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{end} bytes");
    }
}

/// A long one is refused by what there is, and not by what its header claims.
#[test]
fn the_limit_is_that_of_the_samples_there_are() {
    let hour = File::tone().with(|file| file.data_length = Some(3_600 * 2 * RATE));
    assert!(decode(&hour, 0.6).is_ok());
    assert!(matches!(decode(&hour, 0.4), Err(WavError::TooLong { .. })));
}

#[test]
fn g711_has_the_values_of_the_standard() {
    for (code, a, mu) in [
        (0x00, -5_504, -32_124),
        (0x2a, -32_256, -5_372),
        (0x55, -8, -716),
        (0x7f, -848, 0),
        (0x80, 5_504, 32_124),
        (0xaa, 32_256, 5_372),
        (0xd5, 8, 716),
        (0xff, 848, 0),
    ] {
        assert_eq!((a_law(code), mu_law(code)), (a, mu), "{code:#04x}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let samples: Vec<f32> = (0..1_000).map(|i| (i as f32 * 0.1).sin() * 0.7).collect();
    let file = encode(&samples, SAMPLE_RATE);
    let back = decode(&file, 60.0).unwrap();
    assert_eq!(back.len(), samples.len());
    assert!(back.iter().zip(&samples).all(|(a, b)| (a - b).abs() < 1e-4));
    let by_another: Vec<i16> = hound::WavReader::new(Cursor::new(file))
        .unwrap()
        .into_samples()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(
        by_another
            .iter()
            .zip(&samples)
            .all(|(a, b)| (f32::from(*a) / 32_767.0 - b).abs() < 1e-4)
    );
}

#[test]
fn samples_that_are_no_numbers_are_silence() {
    let mut file = File::of(3, 32, RATE, float);
    file.data = [f32::NAN, f32::INFINITY, 9.0, -9.0]
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    assert_eq!(decode(&file.bytes(), 60.0).unwrap(), [0.0, 0.0, 1.0, -1.0]);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..44, value: u8, keep: bool) {
        if keep {
            let mut good = File::tone().bytes();
            good.truncate(144);
            good[at] = value;
            good.extend(&bytes);
            bytes = good;
        }
        let _ = decode(&bytes, 60.0);
    }
}
