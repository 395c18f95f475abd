"""Prefix caches of many versions in memory: those that somebody waits for or that were used last, up to a bound in
bytes.

A version whose cache was dropped is not lost: its prompt stays, and the cache is computed from it again.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch

from ptpipeline.models.inputs import PrefixCache

CACHE_BYTES = 512 * 2**20  # at P=16 on a base of 135M parameters, the caches of 728 versions in float32


class PrefixCaches:
    """The prefix caches that were used last, by the digest of their version.

    `is_wanted` tells whether a text of a version waits: its cache is dropped behind all others, since it is needed at
    once.
    """

    def __init__(self, bound: int = CACHE_BYTES) -> None:
        self.bound = bound
        self.is_wanted: Callable[[str], bool] = lambda digest: False
        self.size = 0  # bytes
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, PrefixCache] = OrderedDict()  # the one that was used last is the last

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    @property
    def ahead(self) -> int:
        """How many caches may be computed before they are needed: as many as a quarter of the bound holds."""
        return self.bound * len(self._kept) // (4 * self.size) if self._kept else 0

    def find(self, digest: str) -> PrefixCache | None:
        """Return the version's cache, which counts as used now, or None if it is not in memory."""
        cache = self._kept.get(digest)
        if cache is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(digest)
        return cache

    def keep(self, digest: str, cache: PrefixCache) -> None:
        """Keep a cache; if all are more than the bound, drop those that nobody waits for and that were not used for the
        longest time, then the others in that order.

        A cache that is larger than the bound by itself is not kept either.
        """
        self.drop(digest)
        self._kept[digest] = cache
        self.size += count_bytes(cache)
        while self.size > self.bound:
            oldest = next(iter(self._kept))
            self.drop(next((one for one in self._kept if not self.is_wanted(one)), oldest))

    def drop(self, digest: str) -> None:
        """Drop a version's cache; one that is not in memory is none."""
        cache = self._kept.pop(digest, None)
        if cache is not None:
            self.size -= count_bytes(cache)


def count_bytes(cache: PrefixCache) -> int:
    """Return the bytes of a cache's tensors."""
    return sum(tensor.nbytes for tensor in cache.tensors)


def copy_entries(cache: PrefixCache, first: int, count: int) -> PrefixCache:
    """Return `count` prompts of a cache from its `first` one, padded to the longest of them, in memory of their own."""
    lengths = cache.lengths[first : first + count]
    start = cache.width - int(lengths.max())
    # A view would keep the whole pass in memory which computed it.
    tensors = (
        tensor[first : first + count, ..., start:, :].clone(memory_format=torch.contiguous_format)
        for tensor in cache.tensors
    )
    return PrefixCache(tuple(tensors), lengths.clone())
