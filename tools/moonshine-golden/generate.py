#!/usr/bin/env python3
"""Writes what the reference implementation of Moonshine says about one recording: the golden logits of our network's test.

    python3 -m venv VENV && VENV/bin/pip install -r tools/moonshine-golden/requirements.txt
    VENV/bin/python tools/moonshine-golden/generate.py regional-stack/models/moonshine-tiny-en \
        regional-stack/speech/testdata/calls/timer-ten-minutes.wav >regional-stack/speech-torch/testdata/moonshine-golden.tsv

The reference is transformers' MoonshineForConditionalGeneration (32-bit floats, CPU) with the weights of the fetched model. The
recording gets one second of silence behind it, as in our recognizer. Each line of the result is one step of the greedy decoder:
the chosen token, the mean of all logits, and the eight largest logits with their tokens.
"""
import array
import pathlib
import sys
import wave

import torch
from safetensors.torch import load_file
from transformers import MoonshineConfig, MoonshineForConditionalGeneration

START, END = 1, 2


def main(folder, recording):
    weights = load_file(pathlib.Path(folder) / "model.safetensors")
    config = MoonshineConfig(
        vocab_size=32768, hidden_size=288, intermediate_size=1152, encoder_num_hidden_layers=6, decoder_num_hidden_layers=6,
        encoder_num_attention_heads=8, decoder_num_attention_heads=8, partial_rotary_factor=0.9, tie_word_embeddings=True)
    model = MoonshineForConditionalGeneration(config)
    state = {"model." + name: value for name, value in weights.items()}
    state["proj_out.weight"] = weights["decoder.embed_tokens.weight"]
    missing, unknown = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if "rotary" not in name]
    if missing or unknown:
        sys.exit(f"the weights do not fit the reference: missing {missing}, unknown {unknown}")
    model.eval()
    with wave.open(recording) as file:
        assert file.getframerate() == 16000 and file.getnchannels() == 1 and file.getsampwidth() == 2
        samples = array.array("h", file.readframes(file.getnframes()))
    sound = torch.tensor(samples, dtype=torch.float32) / 32768
    sound = torch.cat([sound, torch.zeros(16000)])[None]
    print(f"# {pathlib.Path(recording).name}: token, mean of the logits, then token:logit of the eight largest")
    with torch.inference_mode():
        encoded = model.model.encoder(sound)
        tokens = [START]
        while tokens[-1] != END and len(tokens) < 64:
            out = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens]), use_cache=False)
            logits = out.logits[0, -1]
            best = logits.topk(8)
            tokens.append(best.indices[0].item())
            largest = "\t".join(f"{at}:{value:.5f}" for at, value in zip(best.indices.tolist(), best.values.tolist()))
            print(f"{tokens[-1]}\t{logits.mean():.5f}\t{largest}")


main(*sys.argv[1:])
