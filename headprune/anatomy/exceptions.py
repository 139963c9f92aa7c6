"""The few facts that can't be had by asking the model: names of integers, and why some models are refused."""

# Integers that modelling code derives from the number of heads in __init__ and reads in forward, by attribute name, with
# what they stand for. A name in this table whose value fits its meaning is updated; all others are left alone.
ATTRIBUTES: dict[str, str] = {
    "num_attention_heads": "heads",
    "num_heads": "heads",
    "n_heads": "heads",
    "n_head": "heads",
    "num_key_value_heads": "key_value_heads",
    "num_kv_heads": "key_value_heads",
    "num_key_value_groups": "group_size",
    "n_rep": "group_size",
    "all_head_size": "width",
    "inner_dim": "width",
    "split_size": "width",
}

# Reasons that say more than "masked and pruned outputs differ". The proof decides, not this table: it only explains.
REASONS: dict[str, str] = {
    "bitnet": "a norm over all heads together stands before its output projection",
    "bloom": "its ALiBi bias is built once for all layers, with all heads",
    "codegen": "its query, key and value rows are interleaved in blocks of several heads",
    "deberta": "its relative attention is computed outside the attention interface",
    "deberta-v2": "its relative attention is computed outside the attention interface",
    "diffllama": "its heads are pairs whose outputs are subtracted and normalised together",
    "esmc": "its query and key norms run over all heads together",
    "mpnet": "its position bias is computed once for all layers, with all heads",
    "mpt": "its ALiBi bias is built once for all layers, with all heads",
    "olmo2": "its query and key norms run over all heads together",
    "olmo3": "its query and key norms run over all heads together",
    "olmoe": "its query and key norms run over all heads together",
}
