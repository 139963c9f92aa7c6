"""Variants of model types whose attention differs from what the defaults say."""

_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_CROSS = {"is_decoder": True, "add_cross_attention": True}
# name: (model type, what its configuration says besides)
VARIANTS = {
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-multi-head": ("falcon", {"multi_query": False, "num_kv_heads": 4}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True}),
    "deberta-relative": ("deberta", _RELATIVE),
    "deberta-talking": ("deberta", {**_RELATIVE, "talking_head": True}),
    "deberta-v2-relative": ("deberta-v2", _RELATIVE),
    "deberta-v2-buckets": (
        "deberta-v2",
        {**_RELATIVE, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "deberta-v2-conv": ("deberta-v2", {**_RELATIVE, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "beit-relative": ("beit", {"use_relative_position_bias": True}),
    "beit-shared-relative": ("beit", {"use_shared_relative_position_bias": True}),
    "bert-cross": ("bert", _CROSS),
    "bert-deep": ("bert", {"num_hidden_layers": 4}),
    "roberta-cross": ("roberta", _CROSS),
    "gpt2-cross": ("gpt2", {"add_cross_attention": True}),
    "gpt_bigcode-multi-head": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 0.5}),
    "gptj-full-rotary": ("gptj", {"rotary_dim": 8}),
    "phi-qk-norm": ("phi", {"qk_layernorm": True}),
    "cohere-qk-norm": ("cohere", {"use_qk_norm": True}),
    "stablelm-qk-norm": ("stablelm", {"qk_layernorm": True}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "persimmon-plain": ("persimmon", {"qk_layernorm": False}),
    "esm-rotary": ("esm", {"position_embedding_type": "rotary", "token_dropout": False}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4, "attention_bias": True}),
    "llama-multi-query": ("llama", {"num_key_value_heads": 1}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "olmo-clip": ("olmo", {"clip_qkv": 1.0}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "longt5-global": ("longt5", {"encoder_attention_type": "transient-global"}),
    "wav2vec2-stable": (
        "wav2vec2",
        {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    ),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "mpt-no-alibi": ("mpt", {"attn_config": {"alibi": False}}),
    "albert-groups": ("albert", {"num_hidden_groups": 2, "inner_group_num": 2}),
    "gemma3-soft": ("gemma3_text", {"attn_logit_softcapping": 5.0}),
}
