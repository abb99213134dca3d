//! The network beside the reference implementation. `tools/moonshine-golden` says how its answers were made.

use speech::wav;
use tch::Device;

use super::*;

/// The fetched weights; `None`, with a line, on a machine that could not fetch them.
fn fetched() -> Option<Network> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/moonshine-tiny-en/model.safetensors");
    if !path.exists() {
        println!(
            "SKIPPED: {} is not here; `meridian models fetch` gets it",
            path.display()
        );
        return None;
    }
    Some(Network::load(&path, Device::Cpu).unwrap())
}

fn recording() -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../speech/testdata/calls/timer-ten-minutes.wav");
    let mut samples = wav::decode(&std::fs::read(path).unwrap(), 30.0).unwrap();
    samples.resize(samples.len() + 16_000, 0.0);
    samples
}

#[test]
fn every_step_has_the_logits_of_the_reference() {
    let Some(network) = fetched() else { return };
    crate::use_one_thread();
    let golden = include_str!("../../../testdata/moonshine-golden.tsv");
    let mut token = START;
    tch::no_grad(|| {
        let mut decoder = network.begin(&recording()).unwrap();
        for (number, line) in golden.lines().filter(|line| !line.starts_with('#')).enumerate() {
            let logits = Vec::<f32>::try_from(network.step(&mut decoder, token).unwrap()).unwrap();
            let mut columns = line.split('\t');
            token = columns.next().unwrap().parse().unwrap();
            let mean: f32 = columns.next().unwrap().parse().unwrap();
            let own_mean = logits.iter().sum::<f32>() / logits.len() as f32;
            assert!(
                (own_mean - mean).abs() < 0.002,
                "step {number}: mean {own_mean}, reference {mean}"
            );
            for pair in columns {
                let (at, logit) = pair.split_once(':').unwrap();
                let (own, logit) = (logits[at.parse::<usize>().unwrap()], logit.parse::<f32>().unwrap());
                assert!(
                    (own - logit).abs() < 0.01,
                    "step {number}, token {at}: {own}, reference {logit}"
                );
            }
        }
    });
    assert_eq!(token, END, "the reference comes to an end");
}

#[test]
fn threads_share_the_weights() {
    let Some(network) = fetched() else { return };
    let shared = network.share();
    assert_eq!(network.tokens.data_ptr(), shared.tokens.data_ptr());
    assert_eq!(
        network.encoder[5].mlp[1].weight.data_ptr(),
        shared.encoder[5].mlp[1].weight.data_ptr()
    );
}

#[test]
fn an_answer_ends_at_its_limit() {
    let Some(network) = fetched() else { return };
    let said = network.transcribe(&recording(), 3).unwrap();
    assert_eq!((said.tokens.len(), said.ended), (3, false));
}

#[test]
fn weights_of_another_network_are_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/asr/model.safetensors");
    let error = Network::load(&path, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("encoder.conv1.weight is missing"), "{error}");
}
