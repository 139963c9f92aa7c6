"""What can't be had by asking a model: every fact about a model family, as tables. To add a fact is to add an entry here.

Everything else is found by running a small copy. This file imports nothing, so that any room may look things up.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headprune.anatomy.inputs import InputTensors


def _types(names: str) -> frozenset[str]:
    """Return model types, as ``config.json`` names them."""
    return frozenset(names.split())


# --- Numbers of heads -------------------------------------------------------------------------------------------------

HEAD_COUNTS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "n_head",
    "num_attn_heads",
    "nhead",
    "num_q_heads",
    "heads",
)
"""Names under which attention modules keep their number of heads, most telling first."""

ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(HEAD_COUNTS, "heads"),
    "num_key_value_heads": "key_value_heads",
    "num_kv_heads": "key_value_heads",
    "n_kv_heads": "key_value_heads",
    "num_key_value_groups": "group_size",
    "n_rep": "group_size",
    "all_head_size": "width",
    "inner_dim": "width",
    "split_size": "width",
    "attn_hidden_size": "width",
    "q_size": "width",
    "embed_dim": "width",
    "hidden_size": "width",
    "config.num_attention_heads": "heads",
    "config.num_key_value_heads": "key_value_heads",
}
"""Integers that modelling code derives from the number of heads in ``__init__`` and reads in ``forward``, by what they are.

A name in this table whose value fits its meaning is a candidate. Which are changed is found by trying: first plain integers,
then those that often stand for something else, then what is read from the config during the forward.
"""
OFTEN_SOMETHING_ELSE = frozenset({"embed_dim", "hidden_size"})

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Settings that name how many experts lie in one tensor."""

BIAS_SWITCHES = ("attention_bias", "use_bias", "bias", "qkv_bias")
"""Settings that give attentions a bias where they are on."""

# --- Names of classes and modules -------------------------------------------------------------------------------------

ATTENTION_CLASS = re.compile(r"Attention|Attn|AttLayer")
NORM_CLASS = re.compile(r"Norm")
CROSS_ATTENTION = re.compile(r"cross|encoder_attn|enc_dec|encdec|encoder_decoder", re.IGNORECASE)
"""What the path of an attention says where its keys come from another stack."""

# --- Small copies: which settings are what ----------------------------------------------------------------------------

WIDTH = re.compile(
    r"hidden_size|hidden_dim|_dim$|^dim$|_dims$|^dim_|d_model|d_ff|d_kv|n_embd|n_inner|n_embed|intermediate|ffn|embed|width"
    r"|_rank$|inner|head_size|d_embed|d_head|d_inner|proj_size|kv_channels|attention_size"
)
NO_WIDTH = re.compile(
    r"vocab|patch|image|kernel|window|chunk|num_|dropout|drop|prob|bias|position|layer|scal|factor|ratio|heads|act|type|max_"
)
HEAD_WIDTH = re.compile(
    r"^(v_|qk_|global_)?head_dim$|^d_kv$|^d_head$|attention_head_size|^kv_channels$|qk_\w+_dim$"
)
HEADS = re.compile(
    r"^(num_)?(encoder_|decoder_)?(attention_heads|num_attention_heads|heads)$|^n_heads?$"
)
HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
LAYERS = re.compile(
    r"^(num_|n_)?((hidden|encoder|decoder|block|text|vision)_)*(num_)?(hidden_)?(layers?|blocks)$|^depth$"
)
SMALLER_COUNTS = (
    (re.compile(r"^(num_|n_|moe_num_)(local_|routed_)?experts$"), 16),
    (re.compile(r"vocab_size$"), 64),
    (re.compile(r"^max_source_positions$"), 64),
)
"""Settings that are counted down in a small copy, and how far."""

SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    # Inputs are padded to a multiple of the window.
    "led": {"attention_window": 8},
    "longformer": {"attention_window": 8},
}
"""Settings that make a small copy of a config valid where shrinking by name doesn't."""

# --- Families that differ in what they compute ------------------------------------------------------------------------

REASONS: dict[str, str] = {
    "diffllama": "its heads are pairs whose outputs are subtracted and normalised together",
}
"""Reasons that say more than "masked and pruned outputs differ". The proof decides, not this table: it only explains."""

SAME_MATHEMATICS = {"llama": "mistral"}
"""Families whose configs refuse head counts that don't divide the hidden size, and the family that computes the same and doesn't.

Reloading proves that it is so.
"""

LLAMA_LIKE = ("llama", "mistral")
"""Families whose mathematics is that of llama in llama.cpp."""
UNLIKE_LLAMA = {
    "qwen2": "its query, key and value projections have biases",
    "qwen3": "it normalises queries and keys (q_norm, k_norm)",
    "gemma": "its norms add 1 to their weights and its embeddings are scaled",
    "mixtral": "its feed-forward blocks are mixtures of experts",
    "phi3": "its projections are fused",
}

SENTENCE_ENCODERS = ("t5", "mt5", "umt5")
"""Encoder-decoders of which sentence-transformers runs the encoder alone, as ``AutoModelForTextEncoding`` loads it."""

ENCODERS_WITHOUT_AUTO_MODEL = _types(
    "udop longt5 prophetnet switch_transformers blenderbot blenderbot-small m2m_100 pegasus pegasus_x moonshine whisper marian "
    "t5gemma t5gemma2 t5gemma2_text"
)
"""Encoder-decoders of which sentence-transformers runs the encoder alone, and no ``AutoModel...`` loads it."""


def longest_full_attention(settings: Callable[[str], Any]) -> int | None:
    """Return how many tokens a row may have until block-sparse attention begins; None where a model has none.

    ``settings`` returns a setting of the model's config by its name.

    BigBird gives full attention up for good at the first row that is longer: its outputs would depend on the rows before.
    """
    names = ("attention_type", "num_random_blocks", "block_size")
    kind, blocks, size = map(settings, names)
    if kind != "block_sparse" or type(blocks) is not int or type(size) is not int:
        return None
    return (5 + 2 * blocks) * size


def reads_in_blocks(settings: Callable[[str], Any]) -> str:
    """Return why a model with block-sparse attention takes no longer rows, and what helps; nothing where a model has none."""
    if longest_full_attention(settings) is None:
        return ""
    return (
        "it reads longer ones block by block, until a short one changes that for good; "
        'with "attention_type": "original_full" in config.json it takes longer ones'
    )


# --- Made-up inputs ---------------------------------------------------------------------------------------------------

BOXES_OF_FRACTIONS = _types("udop")
FILMS = _types("idefics instructblipvideo")
"""They read films, though nothing in their configs says so."""
PAIRS_OF_IMAGES = _types("superglue lightglue efficientloftr")
READS_IMAGES = _types("vilt kosmos-2 siglip2 idefics")
"""They read images beside their text, though their configs have no tower for them."""
WAVES_WITH_CHANNELS = _types(
    "dac encodec mimi mimi_encoder neucodec xcodec xcodec2 pe_audio pe_audio_encoder pocket_tts_audio_tokenizer "
    "pocket_tts_audio_tokenizer_encoder vibevoice_acoustic_tokenizer higgs_audio_v2_tokenizer"
)
"""They read sound as (rows, channels, samples) instead of (rows, samples)."""
FRAMES_BEFORE_MELS = _types(
    "speech_to_text wav2vec2-bert seamless_m4t seamless_m4t_v2 parakeet_encoder nemotron_asr_streaming "
    "nemotron_asr_streaming_encoder nemotron3_5_asr nemotron3_diarization nemotron3_diarization_audio "
    "nemotron3_5_transcribe_audio nemotron3_5_transcribe_asr_audio gemma4_audio fun_asr_nano_encoder lasr_encoder lasr_ctc "
    "parakeet_ctc parakeet_rnnt parakeet_tdt canary cohere_asr univnet"
)
"""They read features of sound as (rows, frames, features) instead of (rows, features, frames)."""
MEL_BINS = (
    *("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins"),
    *("input_feat_size", "input_dim", "input_size", "mel_dim"),
)
"""Settings that name how many features a frame of sound has."""

OPTIONAL_INPUTS: dict[str, Callable[["InputTensors"], Any]] = {
    "input_ids": lambda t: t.tokens(),
    "decoder_input_ids": lambda t: t.decoder_tokens(),
    "attention_mask": lambda t: t.attention_mask() if "input_ids" in t.accepted else None,
    "global_attention_mask": lambda t: t.positions(0, 1),
    "encoder_hidden_states": lambda t: (
        t.normal(t.rows, 8, t.config.hidden_size)
        if getattr(t.config, "add_cross_attention", False)
        else None
    ),
    "use_cache": lambda t: False,
    # Images and what goes with them.
    "pixel_values": lambda t: t.pixel_values(),
    "aspect_ratio_ids": lambda t: t.full(1, t.rows, 1),
    "aspect_ratio_mask": lambda t: t.full(1, t.rows, 1, 1),
    "cross_attention_mask": lambda t: (
        t.full(1, t.rows, t.length, 1, 1) if "aspect_ratio_ids" in t.accepted else None
    ),
    "image_attention_mask": lambda t: t.full(1, t.rows, t.length, t.frames),
    "pixel_attention_mask": lambda t: t.full(1, t.rows, 16) if t.reads_patches else None,
    "spatial_shapes": lambda t: t.full(4, t.rows, 2) if t.reads_patches else None,
    "bbox": lambda t: t.boxes(),
    "visual_feats": lambda t: t.normal(t.rows, 8, t.config.visual_feat_dim),
    "visual_pos": lambda t: t.uniform(t.rows, 8, 4),
    "noise": lambda t: t.uniform(t.rows, (t.image_size // t.patch_size) ** 2),
    # Kosmos-2.5 runs on text alone.
    "flattened_patches": lambda t: (
        None if "image_embeds_position_mask" in t.accepted else t.numbered_patches()
    ),
    "image_embeds_position_mask": lambda t: (
        None
        if "flattened_patches" in t.accepted
        else t.positions(1, 1 + t.config.latent_query_num).bool()
    ),
    # Decision transformers, Perceiver.
    "states": lambda t: t.normal(t.rows, t.length, t.config.state_dim),
    "actions": lambda t: t.normal(t.rows, t.length, t.config.act_dim),
    "rewards": lambda t: t.normal(t.rows, t.length, 1),
    "returns_to_go": lambda t: t.normal(t.rows, t.length, 1),
    "timesteps": lambda t: t.integers(t.length, t.rows, t.length),
    "inputs": lambda t: (
        t.normal(t.rows, t.length, t.config.d_model) if t.config.model_type == "perceiver" else None
    ),
}
"""By the name of a forward's argument, what is given wherever it is accepted (nothing where that is None)."""

REQUIRED_INPUTS: dict[str, Callable[["InputTensors"], Any]] = {
    "inputs_embeds": lambda t: t.normal(t.rows, t.length, t.config.hidden_size),
    "query_embeds": lambda t: t.normal(t.rows, 8, t.config.hidden_size),
    "qformer_input_ids": lambda t: t.tokens(),
    "action_embeds": lambda t: t.normal(t.rows, 4, 32),
    "task_inputs": lambda t: t.integers(77, t.rows, 77),
    "merge_sizes": lambda t: t.full(1, t.rows),
    "freq": lambda t: t.full(0, t.rows, 1),
    # Images and films.
    "prompt_pixel_values": lambda t: t.images(),
    "prompt_masks": lambda t: t.images(),
    "pixel_values_videos": lambda t: t.films(),
    "pixel_position_ids": lambda t: t.patch_positions(),
    "hidden_states": lambda t: t.patches() if "grid_thw" in t.accepted else None,
    "grid_thw": lambda t: t.grid(),
    "image_grid_thw": lambda t: t.grid(),
    # Sound.
    "input_values": lambda t: t.wave(),
    "input_features": lambda t: t.spectrogram(t.config),
    "input_features_mask": lambda t: t.full(1, *t.spectrogram(t.config).shape[:2]),
    "audio_mel": lambda t: t.normal(t.rows, 64, t.config.input_feat_size),
    "audio_mel_mask": lambda t: t.full(0, t.rows, 64).bool(),
    # Time series.
    "past_values": lambda t: t.past_values(),
    "past_values_padding": lambda t: t.full(0, *t.past_values().shape).float(),
    "past_observed_mask": lambda t: t.full(1, *t.past_values().shape).float(),
    "past_time_features": lambda t: t.normal(
        *t.past_values().shape[:2], t.config.num_time_features or 0
    ),
}
"""What is given only where an argument has no default, or is the model's main input."""
