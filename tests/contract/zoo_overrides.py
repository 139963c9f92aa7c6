"""What single model types need in their configurations."""

_TWO_STAGES = {"depths": [1, 1], "num_heads": [2, 4]}
_SWIN = {**_TWO_STAGES, "embed_dim": 16, "window_size": 2, "patch_size": 2, "image_size": 16}
_FOUR_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
_RESNET = {**_FOUR_STAGES, "embedding_size": 8, "layer_type": "basic"}
_SWIN_BACKBONE = {
    "model_type": "swin",
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "embed_dim": 8,
    "window_size": 2,
    "patch_size": 4,
    "image_size": 32,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_RESNET_BACKBONE = {
    "backbone_config": {
        "model_type": "resnet",
        **_RESNET,
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "use_timm_backbone": False,
    "backbone": None,
}
_ONE_FEATURE = {
    "backbone_config": {**_RESNET_BACKBONE["backbone_config"], "out_features": ["stage4"]},
    "use_timm_backbone": False,
    "backbone": None,
}
_NECK = {
    "backbone_config": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "neck_hidden_sizes": [8, 8, 16, 16],
    "reassemble_factors": [4, 2, 1, 0.5],
    "reassemble_hidden_size": 32,
    "fusion_hidden_size": 16,
}
_LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING_THEN_FULL = {"layer_types": ["sliding_attention", "full_attention"]}
_CONV_THEN_FULL = {"layer_types": ["conv", "full_attention"]}
_ALL_HEADS = {"num_key_value_heads": 4}
_SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
}
_EFFICIENTNET = {"width_coefficient": 0.25, "depth_coefficient": 0.1}
_HIERA_STAGES = {
    "hidden_size": 8,
    "image_size": [64, 64],
    "num_query_pool_stages": 1,
    "blocks_per_stage": [1, 1, 1, 1],
    "embed_dim_per_stage": [8, 8, 16, 16],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "window_size_per_stage": [8, 4, 4, 4],
    "global_attention_blocks": [3],
    "patch_stride": [4, 4],
    "window_positional_embedding_background_size": [4, 4],
}
_DETECTOR = {
    "backbone_config": {"out_features": ["stage2", "stage3", "stage4"]},
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_feature_levels": 3,
}
_SAM = {
    "prompt_encoder_config": {"image_size": 64, "patch_size": 8, "mask_input_channels": 16},
    "vision_config": {
        "image_size": 64,
        "patch_size": 8,
        "num_pos_feats": 16,
        "output_channels": 32,
    },
}
_MAMBA = {"n_groups": 2, "mamba_num_heads": 4}

OVERRIDES = {
    "albert": {"embedding_size": 16},
    "align_vision_model": _EFFICIENTNET,
    "bit": {**_FOUR_STAGES, "embedding_size": 8, "num_groups": 2},
    "bridgetower": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "text_config": {"hidden_size": 64},
        "vision_config": {"hidden_size": 64},
    },
    "bros": {"hidden_size": 64},
    "chameleon": {"vocabulary_map": {"<image>": 7}},
    "clap_audio_model": {
        "depths": [1, 1],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "spec_size": 64,
        "window_size": 2,
    },
    "codegen": {"rotary_dim": 4},
    "cohere2_moe": {"prefix_dense_intermediate_size": 64, "intermediate_size": 64},
    "cohere_compass_text": {
        **_SLIDING_THEN_FULL,
        "rope_parameters": {
            layer: _SECTIONS["rope_parameters"] for layer in _SLIDING_THEN_FULL["layer_types"]
        },
    },
    "conditional_detr": _ONE_FEATURE,
    "convnext": {**_FOUR_STAGES, "image_size": 64},
    "convnextv2": {**_FOUR_STAGES, "image_size": 64},
    "cosmos3_edge": {"text_config": _SECTIONS},
    "cosmos3_edge_text": _SECTIONS,
    "dab-detr": _ONE_FEATURE,
    "deformable_detr": _RESNET_BACKBONE,
    "depth_anything": _NECK,
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "detr": _ONE_FEATURE,
    "dinov3_convnext": _FOUR_STAGES,
    "donut-swin": _SWIN,
    "efficientnet": _EFFICIENTNET,
    "electra": {"embedding_size": 16},
    "emu3": {"vocabulary_map": {"<image>": 7}},
    "eomt": {"num_blocks": 1, "hidden_size": 32},
    "eomt_dinov3": {"num_blocks": 1},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_n_groups": 1},
    "florence_vision": {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [16, 32],
        "num_heads": [2, 4],
        "num_groups": [2, 4],
        "window_size": 4,
    },
    "funnel": {"block_sizes": [1, 1]},
    "glm5_next_text": {"index_kpool": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "granite_speech5_encoder": {"context_size": 16, **_ALL_HEADS},
    "hiera": {
        **_TWO_STAGES,
        "embed_dim": 16,
        "image_size": [32, 32],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
        "query_stride": [2, 2],
    },
    "hunyuan_vl_text": _SECTIONS,
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "led": {"attention_window": 8},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 32],
        "num_attention_heads": [2, 4, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "lfm2": _CONV_THEN_FULL,
    "lfm2_moe": _CONV_THEN_FULL,
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": [8, 8]},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mask2former": {"backbone_config": _SWIN_BACKBONE},
    "maskformer": {"backbone_config": _SWIN_BACKBONE},
    "maskformer-swin": _SWIN,
    "mobilebert": {"intra_bottleneck_size": 32, "num_feedforward_networks": 1},
    "mobilevitv2": {"image_size": 256},
    "modernbert": {"local_attention": 8},
    "molmo2": {"image_size": [32, 32]},
    "nemotron_h": _MAMBA,
    "nemotron3_diarization_audio": _ALL_HEADS,
    "nemotron3_5_transcribe_asr_audio": _ALL_HEADS,
    "nemotron3_5_transcribe_audio": _ALL_HEADS,
    "nemotron3_5_transcribe_word_timestamp": _ALL_HEADS,
    "olmo_hybrid": _LINEAR_THEN_FULL,
    "omdet-turbo": _RESNET_BACKBONE,
    "oneformer": {"backbone_config": _SWIN_BACKBONE},
    "paddleocr_vl_text": _SECTIONS,
    "prompt_depth_anything": _NECK,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 6},
    "qwen3_5_moe_text": _LINEAR_THEN_FULL,
    "qwen3_5_text": _LINEAR_THEN_FULL,
    "qwen3_next": _LINEAR_THEN_FULL,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 6},
    "reformer": {
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "resnet": _RESNET,
    "rt_detr": _DETECTOR,
    "rt_detr_v2": {**_DETECTOR, "decoder_n_levels": 3},
    "rt_detr_resnet": _RESNET,
    "sam2_hiera_det_model": _HIERA_STAGES,
    "segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "num_attention_heads": [2, 4],
        "sr_ratios": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
        "image_size": 64,
    },
    "swin": _SWIN,
    "swin2sr": {**_SWIN, "num_heads": [4, 4], "patch_size": 1},
    "swinv2": _SWIN,
    "table-transformer": _ONE_FEATURE,
    "tipsv2_dpt": _NECK,
    "tvp": {**_ONE_FEATURE, "max_img_size": 64, "visual_prompt_size": 16},
    "unlimited_ocr_text": _ALL_HEADS,
    "vibevoice_acoustic_tokenizer_decoder": {"depths": [1] * 7},
    "vibevoice_acoustic_tokenizer_encoder": {"depths": [1] * 7},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layer_types": ["mamba", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
    "sam": _SAM,
    "sam2": {"vision_config": {"image_size": 64}},
    "sam2_vision_model": {"image_size": 64},
    "sam_hq": {**_SAM, "mask_decoder_config": {"vit_dim": 32}},
    "mimi": {"codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "hidden_size": 32},
    "encodec": {"codebook_dim": 32, "hidden_size": 32, "num_filters": 4},
    "qwen4_exp_text": {
        **_LINEAR_THEN_FULL,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "idefics": {"use_resampler": False},
    "kosmos-2": {"latent_query_num": 4},
    "clap": {"projection_dim": 32},
    "yolos": {"image_size": [32, 48], "num_detection_tokens": 4},
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            "max_num_tiles": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "supported_aspect_ratios": [[1, 1]],
        },
    },
    "qwen2_5_vl_vision": {"window_size": 32},
    "qwen2_5_omni_vision_encoder": {"window_size": 32},
    "voxtral": {"audio_config": {"intermediate_size": 128}},
    "zaya": {"num_experts_per_tok": 1},
    "zoedepth": {**_NECK, "bottleneck_features": 16},
}

# Types whose first auto class is not the one that runs.
CLASSES = {
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
