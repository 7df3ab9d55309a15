"""What is wrong with token shards, found before a run is paid for (findings.py).

Looks at documents as ids: at no more than so many of each side, for a corpus may be larger than any memory. Knows no
model and trains nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

from danlu.data.shards import TokenShards
from danlu.text.tokenizer import TextTokenizer
from danlu.train.findings import Finding, leaked, only, repeated, unknown_tokens

MOST_READ = 100_000
"""Documents looked at, the first of each folder; with more, copies further back are not found."""
_FEW = 1000


def audit_shards(
    train: Sequence[TokenShards], validation: TokenShards, tokenizer: TextTokenizer | None
) -> list[Finding]:
    """Shards that are trained on, and those that are watched."""
    documents = [key for shards in train for key in _keys(shards)]
    first = [one.tolist() for shards in train for one in itertools.islice(shards.documents(), _FEW)]
    return only(
        _never_ends(first, tokenizer),
        unknown_tokens(first, tokenizer),
        repeated(documents, "are documents that stand there more than once", "Deduplicate the texts."),
        leaked(documents, _keys(validation)),
    )


def _keys(shards: TokenShards) -> list[str]:
    """What tells documents from each other."""
    read = itertools.islice(shards.documents(), MOST_READ)
    return [hashlib.blake2b(one.tobytes(), digest_size=12).hexdigest() for one in read]


def _never_ends(documents: Sequence[Sequence[int]], tokenizer: TextTokenizer | None) -> Finding | None:
    """Documents without a special token behind them: the model would never learn to stop."""
    if tokenizer is None or not documents:
        return None
    special = set(tokenizer.special_ids.values())
    share = sum(not ids or ids[-1] not in special for ids in documents) / len(documents)
    if share <= 0.5:
        return None
    return Finding(
        code="never_ends",
        refuses=False,
        share=share,
        message=f"{share:.0%} of the documents do not end with a special token, so their end is never learnt.",
        hint="Make the shards with the tokenize stage, which puts a separator behind each.",
    )
