//! An uploaded recording, cut at its pauses into pieces that an engine can take.

mod ogg_opus;

use std::ops::Range;

use speech::{
    SAMPLE_RATE,
    endpoint::{self, EndpointConfig, EndpointEvent, Endpointer, FRAME_SAMPLES},
    wav::{self, WavError},
};

pub(crate) use ogg_opus::OpusError;

/// The fault of an uploaded file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error(transparent)]
    Wav(#[from] WavError),
    #[error(transparent)]
    Opus(#[from] OpusError),
}

/// An uploaded file, decoded and cut.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) samples: Vec<f32>,
    pub(crate) pieces: Vec<Range<usize>>,
}

impl Recording {
    pub(crate) fn read(file: &[u8], seconds_max: f32) -> Result<Self, RecordingError> {
        let samples = if file.starts_with(ogg_opus::OGG) {
            ogg_opus::decode(file, seconds_max)?
        } else {
            wav::decode(file, seconds_max)?
        };
        let pieces = pieces(&samples);
        Ok(Self { samples, pieces })
    }
}

/// Longest audio that an engine recognises in one go. The models are trained on single utterances, and the memory for attention grows
/// with the square of the length.
const PIECE_SAMPLES_MAX: usize = 20 * SAMPLE_RATE as usize;
/// Without a pause, a piece ends at the quietest moment of this much audio before its longest end.
const CUT_SEARCH_SAMPLES: usize = 5 * SAMPLE_RATE as usize;
/// Both pieces contain this much audio around the cut, so that a word there is whole in one of them.
const CUT_OVERLAP_SAMPLES: usize = SAMPLE_RATE as usize / 10;

/// Decodes an Ogg file of a stranger, for the fuzzer: no more samples than allowed, all of them in range, or an error.
pub(crate) fn decode_ogg(file: &[u8]) {
    const SECONDS_MAX: f32 = 0.5;
    if let Ok(samples) = ogg_opus::decode(file, SECONDS_MAX) {
        // The delay of the encoder comes on top.
        let samples_max = (SECONDS_MAX * SAMPLE_RATE as f32) as usize + usize::from(u16::MAX);
        assert!((1..=samples_max).contains(&samples.len()), "{} samples", samples.len());
        assert!(
            samples.iter().all(|sample| sample.abs() <= 1.0),
            "samples are numbers in range"
        );
    }
}

/// Splits a recording at its pauses into pieces of bounded length.
fn pieces(samples: &[f32]) -> Vec<Range<usize>> {
    if samples.len() <= PIECE_SAMPLES_MAX {
        return std::iter::once(0..samples.len()).collect();
    }
    let per_ms = SAMPLE_RATE as usize / 1000;
    // The background is measured over the whole file beforehand and stays: no part of the file passes for a fan that started.
    let mut endpointer = Endpointer::with_floor(EndpointConfig::default(), endpoint::floor_of(samples));
    let mut speech = Vec::new();
    let mut start = None;
    let frames = samples.chunks(FRAME_SAMPLES).map(|frame| endpointer.feed(frame));
    for event in frames.flatten() {
        match (event, start) {
            (EndpointEvent::SpeechStarted { at_ms }, _) => start = Some(at_ms as usize * per_ms),
            (EndpointEvent::SpeechStopped { at_ms }, Some(from)) => {
                speech.push(from..(at_ms as usize * per_ms).min(samples.len()));
                start = None;
            }
            (EndpointEvent::SpeechStopped { .. }, None) => {}
        }
    }
    // At the end of the file the detector may not be sure of the last words yet.
    let earliest = || endpointer.earliest_ms() as usize * per_ms;
    let last = start.or_else(|| endpointer.is_unsure().then(earliest));
    speech.extend(
        last.filter(|from| *from < samples.len())
            .map(|from| from..samples.len()),
    );
    speech.into_iter().flat_map(|range| cut(samples, range)).collect()
}

/// Cuts speech that is too long where it is quietest.
fn cut(samples: &[f32], mut range: Range<usize>) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    while range.len() > PIECE_SAMPLES_MAX {
        let at = quietest_end(samples, range.start);
        pieces.push(range.start..at + CUT_OVERLAP_SAMPLES);
        range.start = at - CUT_OVERLAP_SAMPLES;
    }
    pieces.push(range);
    pieces
}

/// The moment at which a piece that starts here ends best.
fn quietest_end(samples: &[f32], start: usize) -> usize {
    let search_to = start + PIECE_SAMPLES_MAX - CUT_OVERLAP_SAMPLES;
    endpoint::quietest(samples, search_to - CUT_SEARCH_SAMPLES..search_to)
}

/// Takes the first piece out of a recording that is still coming, once the recording is longer than an engine recognises in one go.
pub(crate) fn take_piece(coming: &mut Vec<f32>) -> Option<Vec<f32>> {
    if coming.len() <= PIECE_SAMPLES_MAX {
        return None;
    }
    let at = quietest_end(coming, 0);
    let rest = coming.split_off(at - CUT_OVERLAP_SAMPLES);
    let mut piece = std::mem::replace(coming, rest);
    piece.extend_from_slice(&coming[..2 * CUT_OVERLAP_SAMPLES]);
    Some(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(seconds: f32) -> Vec<f32> {
        (0..(seconds * SAMPLE_RATE as f32) as usize)
            .map(|at| 0.2 * (at as f32 * 0.07).sin())
            .collect()
    }

    fn silence(seconds: f32) -> Vec<f32> {
        vec![0.0; (seconds * SAMPLE_RATE as f32) as usize]
    }

    #[test]
    fn a_long_recording_is_split_at_its_pauses_and_nowhere_else_if_it_can_be() {
        let recording = [silence(1.0), tone(5.0), silence(2.0), tone(12.0), silence(3.0)].concat();
        assert_eq!(pieces(&recording).len(), 2);
        assert_eq!(pieces(&tone(45.0)).len(), 3);
        assert_eq!(pieces(&tone(5.0)).len(), 1);
        assert!(pieces(&silence(40.0)).is_empty());
    }

    #[test]
    fn what_has_no_pause_is_split_between_words_and_nothing_is_lost() {
        // Words of 0.9 s with gaps of 0.1 s.
        let word = [tone(0.9), silence(0.1)].concat();
        let recording = word.repeat(50);
        let pieces = pieces(&recording);
        assert!(pieces.len() >= 3, "{pieces:?}");
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_SAMPLES_MAX));
        for (one, next) in pieces.iter().zip(&pieces[1..]) {
            assert!(next.start <= one.end, "{one:?} and {next:?} leave something out");
            let cut = (one.end + next.start) / 2;
            let in_second = cut % SAMPLE_RATE as usize;
            assert!(
                in_second > SAMPLE_RATE as usize * 9 / 10,
                "cut {} ms into a word",
                in_second / 16
            );
        }
        assert!(pieces[0].start == 0 && pieces.last().unwrap().end >= recording.len() - 3_200);
    }

    #[test]
    fn a_recording_that_comes_bit_by_bit_is_split_at_the_same_places() {
        let word = [tone(0.9), silence(0.1)].concat();
        let recording = word.repeat(50);
        let whole: Vec<Vec<f32>> = cut(&recording, 0..recording.len())
            .into_iter()
            .map(|piece| recording[piece].to_vec())
            .collect();
        let (mut coming, mut taken) = (Vec::new(), Vec::new());
        for bit in recording.chunks(1_600) {
            coming.extend_from_slice(bit);
            taken.extend(take_piece(&mut coming));
        }
        taken.push(coming);
        assert!(taken == whole, "{} and {} pieces", taken.len(), whole.len());
    }

    #[test]
    fn a_short_word_at_the_very_end_is_heard() {
        let recording = [silence(1.0), tone(5.0), silence(15.0), tone(0.2)].concat();
        let pieces = pieces(&recording);
        assert_eq!(pieces.last().unwrap().end, recording.len(), "{pieces:?}");
        assert_eq!(pieces.len(), 2);
    }
}
