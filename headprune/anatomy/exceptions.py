"""The few facts that can't be had by asking the model. One entry each; nothing else has to be edited to add one."""

from typing import Any

# Names under which attention modules keep their number of heads, most telling first.
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

# Integers that modelling code derives from the number of heads in __init__ and reads in forward, by attribute name, with
# what they stand for. A name in this table whose value fits its meaning is a candidate; which are changed is found by trying:
# first plain integers, then those that are often something else too, then what is read from the config during the forward.
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
OFTEN_SOMETHING_ELSE = frozenset({"embed_dim", "hidden_size"})

# Settings that make a small copy of a config valid where shrinking by name doesn't.
SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    # Inputs are padded to a multiple of the window.
    "led": {"attention_window": 8},
    "longformer": {"attention_window": 8},
}

# Reasons that say more than "masked and pruned outputs differ". The proof decides, not this table: it only explains.
REASONS: dict[str, str] = {
    "diffllama": "its heads are pairs whose outputs are subtracted and normalised together",
}
