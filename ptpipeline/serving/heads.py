"""Tokens that stand at the head of all texts of a prompt: computed once, and kept in the cache behind that prompt.

Such heads are the words of a template before its text, a chat's opening, the examples of a hard prompt. Only a causal
model has them: the encoder of an encoder-decoder reads the head again with each text.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache, stack_caches

WORTH = 64  # tokens that one more pass over the weights has to save: fewer are computed in less time than it takes


def share_heads(
    base: FrozenBase, cache: PrefixCache | None, inputs: Sequence[Input]
) -> tuple[PrefixCache | None, list[Input]]:
    """Return a cache that holds shared heads behind their prompts, and the inputs with what is left of their texts.

    At least one token is left of each text, so that every input yields the same states as before.
    """
    causal = narrow(base, cache, inputs)
    if causal is None:
        return cache, list(inputs)
    texts: dict[int, list[Sequence[int]]] = defaultdict(list)
    for row in inputs:
        texts[_find_entry(cache, row)].append(row.text)
    heads = {entry: head for entry, own in texts.items() if (head := _find_head(own))}
    if not heads:
        return cache, list(inputs)
    shared = causal.extend(cache, [Input(head, (), entry) for entry, head in heads.items()]).cache
    kept = 0 if cache is None or len(heads) == len(texts) else len(cache.lengths)
    places = {entry: kept + place for place, entry in enumerate(heads)}
    moved = [
        row._replace(text=row.text[len(heads[entry]) :], prompt=places[entry])
        if (entry := _find_entry(cache, row)) in heads
        else row
        for row in inputs
    ]
    return (stack_caches([cache, shared]) if cache is not None and kept else shared), moved


def narrow(base: FrozenBase, cache: PrefixCache | None, inputs: Sequence[Input]) -> CausalBase | None:
    """Return the base if it may read these inputs in parts, each behind the cache of the part before; else None."""
    return base if isinstance(base, CausalBase) and inputs and base.reads_in_parts(cache, inputs) else None


def _find_entry(cache: PrefixCache | None, row: Input) -> int:
    """Return the row's prompt; 0 for all rows if there is no prompt."""
    return 0 if cache is None else row.prompt


def _find_head(texts: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all texts begin with, less than the whole of any; none if they do not save enough."""
    if len(texts) < 2:
        return []
    ends = [list(text[:-1]) for text in texts]
    lowest, highest = min(ends), max(ends)  # what these two begin with, all between them begin with
    head = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(lowest, highest, strict=False))]
    return head if len(head) * (len(texts) - 1) >= WORTH else []
