"""What the zoo's configurations say: values by field name, then what single model types need."""

HIDDEN, HEADS, LAYERS, INNER, VOCAB, POSITIONS = 32, 4, 2, 64, 128, 64
HEAD_DIM = HIDDEN // HEADS

# value: the fields that get it, in any configuration that has them
_NAMES = {
    HIDDEN: """hidden_size d_model n_embd dim embed_dim emb_dim n_embed word_embed_proj_dim
        encoder_hidden_size embedding_size hidden_dim dim_model projection_dim text_embed_dim
        decoder_hidden_size out_hidden_size text_hidden_size projector_hidden_size text_dim
        input_embedding_size output_embedding_size adapter_out_dim image_text_hidden_size
        projection_hidden_size project_dim out_dim mm_embed_dim vision_output_dim
        projector_input_dim projector_output_dim audio_embed_dim output_proj_dims
        d_latents output_channels fpn_hidden_size mask_feature_size encoder_hidden_dim
        embed_dim_per_layer language_dim cross_hidden_size conv_dim projection_hidden_dim
        memory_attention_hidden_size memory_encoder_hidden_size memory_fuser_embed_dim
        mask_downsampler_embed_dim decoder_hidden_dim hidden_size_global vision_hidden_size
        backbone_hidden_size pairwise_hidden_size fusion_hidden_size neck_hidden_size
        multi_modal_projector_hidden_size proj_dim resampler_hidden_size
        hidden_size_per_layer_input alignment_intermediate_size classifier_proj_size
        upsample_initial_channel upsample_groups unit_embed_dim lang_embed_dim spkr_embed_dim
        mit_hidden_size pred_hidden_size attention_hidden_size feature_size convnext_hidden text_encoder_width
        embedding_dim descriptor_dim entity_emb_size visual_feat_dim mask_dim fpn_feature_size
        text_embedding_dim speaker_embedding_dim audio_hidden_size adapter_input_size""",
    HEADS: """num_attention_heads n_head n_heads num_heads encoder_attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        decoder_num_attention_heads encoder_num_attention_heads swa_num_attention_heads
        encoder_num_key_value_heads decoder_num_key_value_heads attention_heads decoder_num_heads
        cross_num_attention_heads cross_num_key_value_heads num_self_attention_heads
        num_cross_attention_heads conf_num_attention_heads decoder_self_attention_heads
        decoder_cross_attention_heads self_attn_heads resampler_heads resampler_n_heads
        speech_encoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads
        mamba_n_heads mamba_num_heads linear_num_value_heads index_n_heads num_experts
        num_local_experts n_routed_experts moe_num_experts n_mamba_heads linear_num_heads
        num_global_tokens pred_num_attention_heads prompt_num_attention_heads""",
    2: """num_key_value_heads num_kv_heads n_kv_heads multi_query_group_num
        num_global_key_value_heads swa_num_key_value_heads linear_num_key_heads
        num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
        num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers num_encoder_layers
        n_encoder_layers depth layers num_experts_per_tok moe_k moe_topk moe_top_k
        conf_num_hidden_layers decoder_depth decoder_num_layers resampler_depth
        speech_encoder_layers t2u_encoder_layers t2u_decoder_layers type_vocab_size l_layers
        x_layers r_layers text_encoder_num_layers speech_decoder_postnet_layers
        memory_attention_num_layers num_global_layers num_attention_layers
        num_self_attends_per_block n_mels_groups full_attention_interval
        full_attn_every_n_layers global_attn_every_n_layers attn_layer_period layer_group_size
        sliding_window_pattern _sliding_window_pattern expert_layer_period
        folding_trunk_num_hidden_layers num_spatial_layers num_temporal_layers
        num_auxiliary_layers num_sparse_encoder_layers num_sparse_decoder_layers
        cross_attention_frequency num_nextn_predict_layers duration_predictor_layers
        energy_predictor_layers pitch_predictor_layers num_timestamp_prediction_layers
        pred_num_hidden_layers num_pooler_layers text_encoder_proj_layers query_dec_layers
        mamba_n_groups n_groups""",
    1: """num_hidden_groups n_group topk_group n_shared_experts num_shared_experts
        first_k_dense_replace num_dense_layers attn_layer_offset expert_layer_offset
        moe_num_shared_experts moe_layer_start_index num_attention_blocks
        num_conv_pos_embedding_groups""",
    HEAD_DIM: """head_dim d_kv attention_head_size d_head global_head_dim attention_key_size
        attention_value_size kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim dim_head
        linear_value_head_dim linear_key_head_dim swa_head_dim cross_head_dim index_head_dim
        resampler_head_dim resampler_dim_head linear_head_dim mamba_d_state state_size
        ssm_state_size mamba_n_groups_state index_topk resampler_n_latents
        resampler_num_latents num_query_tokens codebook_dim coordinate_size_half""",
    16: """q_lora_rank kv_lora_rank qk_head_dim moe_intermediate_size o_lora_rank
        shared_expert_intermediate_size expert_ffn_size expert_ffn_hidden_size num_mel_bins
        moe_shared_expert_intermediate_size mamba_d_head mamba_head_dim entity_vocab_size
        num_queries shared_experts_intermediate_size embedding_rank d_rel mamba_chunk_size
        mel_dim n_mel_bins input_feat_size num_position_embeddings""",
    INNER: """intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner
        ffn_hidden_size d_inner feed_forward_hidden_size dim_ff dense_intermediate_size mlp_dim
        hidden_dim_ff intermediate_size_mlp feed_forward_size decoder_intermediate_size
        speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim
        encoder_feedforward_dim dim_feedforward encoder_dim_feedforward
        decoder_dim_feedforward projection_intermediate_size shared_intermediate_size
        decoder_mlp_hidden_size memory_attention_feed_forward_hidden_size
        memory_attention_mlp_hidden_size memory_fuser_intermediate_dim dff encoder_linear_units
        decoder_linear_units pair_transition_intermediate_size projection_intermediate_dim
        moe_hidden_size share_expert_dim prompt_mid_dim""",
    POSITIONS: """max_position_embeddings n_positions n_ctx max_source_positions
        max_target_positions max_seq_len max_sequence_length original_max_position_embeddings
        max_seq_length max_2d_position_embeddings max_encoder_position_embeddings
        max_decoder_position_embeddings rel_extent max_speech_positions max_text_positions
        t2u_max_position_embeddings position_embedding_size mm_posemb_size
        downsample_hidden_size pronunciation_embed_dim shape_embed_dim char_vocab_size""",
    VOCAB: """vocab_size num_embeddings text_vocab_size decoder_vocab_size src_vocab_size
        tgt_vocab_size t2u_vocab_size audio_vocab_size vocab_size_per_layer_input
        text_encoder_vocab_size codebook_vocab_size codebook_size unpadded_vocab_size
        num_embeds shape_vocab_size pronunciation_vocab_size encoder_hash_byte_group_vocab
        unit_hifi_gan_vocab_size num_bpe_labels num_wordpiece_labels
        ngram_vocab_size_base num_hash_buckets num_codevectors_per_group""",
}
BY_NAME = {name: value for value, names in _NAMES.items() for name in names.split()}
BY_NAME |= {
    "image_size": 32,
    "patch_size": 8,
    "num_kv_shared_layers": 0,
    "num_filters": 4,
    "base_channels": 32,
    "prediction_length": 4,
    "num_frames": 2,
    "mm_tokens_per_image": 4,
    "num_detection_tokens": 4,
    "top_k_experts": 2,
    "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_chunk_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "sep_token_id": 3,
    "cls_token_id": 4,
    "mask_token_id": 5,
    "unk_token_id": 6,
}

# Ids of the tokens that stand for images and the like lie below the text's ids.
SPECIAL_TOKENS = {"image": 7, "video": 8, "audio": 9}
OTHER_SPECIAL_TOKEN = 10

_CONVOLUTIONS = {
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
# If a configuration has all the fields of the first column, it also gets the second.
TOGETHER = [(("conv_dim", "conv_kernel", "conv_stride"), _CONVOLUTIONS)]

# Model types that most people use: all of them build and run.
COMMON = tuple(
    """bert roberta distilbert albert electra deberta deberta-v2 mpnet xlm-roberta modernbert eurobert
    longformer camembert ernie rembert esm layoutlm nomic_bert gpt2 gpt_neo gpt_neox gptj codegen opt
    bloom mpt falcon gpt_bigcode biogpt phi phi3 llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe
    qwen3_next gemma gemma2 gemma3_text olmo olmo2 olmo3 olmoe starcoder2 smollm3 cohere cohere2
    granite granitemoe glm glm4 gpt_oss stablelm nemotron persimmon deepseek_v2 deepseek_v3 t5 mt5
    bart mbart marian pegasus blenderbot m2m_100 whisper wav2vec2 hubert wavlm vit deit dinov2
    dinov3_vit vit_msn clip siglip blip beit swin swinv2 segformer""".split()
)
