//! Transcriptions as subtitles: SubRip (srt) and WebVTT.

use std::fmt::Write as _;

use crate::transcribing::Segment;

/// The kinds of subtitles differ in their head, their numbers and the point of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Srt,
    Vtt,
}

impl Kind {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Srt => "application/x-subrip; charset=utf-8",
            Self::Vtt => "text/vtt; charset=utf-8",
        }
    }

    /// The subtitles of a recording: one for each segment in which words were heard.
    pub(super) fn write(self, segments: &[Segment]) -> String {
        let mut text = match self {
            Self::Srt => String::new(),
            Self::Vtt => "WEBVTT\n\n".to_owned(),
        };
        let heard = segments.iter().filter(|segment| !segment.text.is_empty());
        for (number, segment) in (1..).zip(heard) {
            if self == Self::Srt {
                let _ = writeln!(text, "{number}");
            }
            let (start, end) = (self.time(segment.start_s), self.time(segment.end_s));
            let _ = write!(text, "{start} --> {end}\n{}\n\n", segment.text);
        }
        text
    }

    fn time(self, seconds: f32) -> String {
        let ms = (f64::from(seconds) * 1000.0).round() as u64;
        let (s, ms) = (ms / 1000, ms % 1000);
        let point = match self {
            Self::Srt => ',',
            Self::Vtt => '.',
        };
        format!("{:02}:{:02}:{:02}{point}{ms:03}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_segment_with_words_is_a_subtitle_with_its_time() {
        let segment = |start_s, end_s, text: &str| Segment {
            start_s,
            end_s,
            text: text.to_owned(),
            confidence: 1.0,
        };
        let segments = [
            segment(0.25, 3.5, "good morning"),
            segment(4.0, 5.0, ""),
            segment(3_599.999, 3_725.5, "good night"),
        ];
        assert_eq!(
            Kind::Srt.write(&segments),
            "1\n00:00:00,250 --> 00:00:03,500\ngood morning\n\n2\n00:59:59,999 --> 01:02:05,500\ngood night\n\n"
        );
        assert_eq!(
            Kind::Vtt.write(&segments[..2]),
            "WEBVTT\n\n00:00:00.250 --> 00:00:03.500\ngood morning\n\n"
        );
        assert_eq!(
            Kind::Vtt.write(&[]),
            "WEBVTT\n\n",
            "a file without words is still a file"
        );
    }
}
