"""Detectors that ask at which tokens a head looks."""

import torch
from torch import Tensor

from headprune.analysis.call import AttentionCall
from headprune.analysis.positions import Columns


def sink(call: AttentionCall) -> Columns:
    """Return ``a(t, first)``, the first real position of the query's text, for every query.

    Source: Gu et al., "When Attention Sink Emerges in Language Models", ICLR 2025, section 3: alpha_1, a sink above 0.3.
    """
    return {"": call.attention_to(call.starts)}


def cls(call: AttentionCall) -> Columns:
    """Return the attention to [CLS].

    Source: Clark et al., "What Does BERT Look at?", BlackboxNLP 2019, section 3.2; threshold 0.6 in their code.
    """
    return _to_ids(call, [call.vocabulary.cls])


def sep(call: AttentionCall) -> Columns:
    """Return the attention to [SEP].

    Source: as :func:`cls`.
    """
    return _to_ids(call, [call.vocabulary.sep])


def punctuation(call: AttentionCall) -> Columns:
    """Return the attention to full stops and commas.

    Source: as :func:`cls`.
    """
    return _to_ids(call, list(call.vocabulary.punctuation))


def rare(call: AttentionCall) -> Columns:
    """Return whether the largest weight is on the word of the row that is rarest in all rows; ties are shared.

    Source: Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019, section 5.3. There, counts are the training data's
    and only sentences with a token outside the 500 most frequent count; here, they are those of the rows that are analyzed.
    """
    counts, ids = call.vocabulary.counts, call.key_ids
    if counts is None or ids is None:
        return {}
    counts = counts.to(ids.device)
    special = torch.tensor(call.vocabulary.special, dtype=torch.long, device=ids.device)
    words = call.is_key & ~torch.isin(ids, special)
    most = counts.max() + 1
    often = counts[ids.clamp_max(len(counts) - 1)].masked_fill(~words, most)
    seen = often[:, None].where(call.is_same_text, most)
    least = seen.amin(-1, keepdim=True)
    rarest = (seen == least) & (least < most)
    numbers = (call.largest() * rarest[:, None]).sum(-1)
    return {"": numbers.masked_fill(~rarest.any(-1)[:, None], torch.nan)}


def _to_ids(call: AttentionCall, ids: list[int | None]) -> Columns:
    known = [token for token in ids if token is not None]
    if call.key_ids is None or not known:
        return {}
    named: Tensor = torch.isin(call.key_ids, torch.tensor(known, device=call.key_ids.device))
    return {"": call.attention_to(named & call.is_key)}
