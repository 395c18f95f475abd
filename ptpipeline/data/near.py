"""Which texts count as the same: equal when normalised, or near duplicates by MinHash.

Texts are compared normalised and without punctuation, as sets of five-character shingles. Two texts that share a band
of their MinHash signatures are near duplicates if the signatures estimate a Jaccard similarity of at least .8
(Leskovec et al. 2020, sections 3.3 and 3.4). That depends on these two texts alone, so unrelated texts change nothing.

Of most texts only the bands are computed, and kept as 200 bytes; the whole signature, of those that share a band.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import regex

from ptpipeline.progress import count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_COMPARED = 50_000  # characters: of a longer text, so many of its beginning and end; each takes a kilobyte
SHINGLE = 5  # characters: three-word shingles miss texts of a dozen words that differ in one
JACCARD = 0.8
SIGNATURE = 250  # MinHash values: the standard error of a similarity of .8 is .025
BANDS, BAND = 25, 5  # over the first 125 values: at .8 no band is shared with probability (1 - .8 ** 5) ** 25 = .00005

# How many texts of a band are compared with all others there. Only thousands of texts of one template need more.
PASSES = 200

CHUNK = 4096  # couples that are compared at once
HASHED = 2**19  # characters whose shingles are held at once, 24 bytes each
_PADDING = "\n"  # no normalised text holds it

# Zero-width spaces and joiners, soft hyphens, marks of direction, fillers, variation selectors: nobody sees them.
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
# Also nothing that is seen, but part of what identifies a text: control characters, an empty pattern of Braille, what
# stands in the place of a picture.
_SEEN = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800\ufffc]")
_PUNCTUATION = regex.compile(r"\p{P}+")


def normalise(text: str) -> str:
    """Return `text` as texts are compared: NFKC without invisible characters, case folded, each run of white space one
    blank, none at the ends.
    """
    return drop_invisible(unicodedata.normalize("NFKC", text)).casefold()


def drop_invisible(text: str) -> str:
    """Return `text` without invisible characters, each run of white space one blank, none at the ends."""
    return " ".join(_INVISIBLE.sub("", text).split())


def is_blank(text: str) -> bool:
    """Whether nobody sees anything in the text."""
    return _SEEN.search(text) is None


def strip_punctuation(normal: str) -> str:
    """Return a normalised text without punctuation, or the text itself if it has nothing else."""
    return " ".join(_PUNCTUATION.sub(" ", normal).split()) or normal


def find_representatives(normals: Iterable[str]) -> dict[str, str]:
    """Return, for every normalised text with near duplicates, the text that represents its cluster.

    Clusters are the connected components of near duplicates, whatever the order of the texts and their repeats. The
    representative is the member with the smallest sha256, so neither labels nor unrelated texts change it.
    """
    texts, representatives = sorted(set(normals)), dict[str, str]()
    for cluster in _cluster(texts):
        members = [texts[index] for index in cluster]
        representatives |= dict.fromkeys(members, min(members, key=_sha256))
    return representatives


def join_clusters(representatives: Mapping[str, str], groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the representatives of clusters of which those with texts of one group are one cluster."""
    above = dict(representatives)

    def climb(text: str) -> str:
        while (parent := above.get(text, text)) != text:
            above[text] = above.get(parent, parent)  # halves the way of whoever comes next
            text = parent
        return text

    for group in groups:
        for text in group[1:]:
            above[climb(text)] = climb(group[0])
    clusters: dict[str, list[str]] = defaultdict(list)
    for text in {*above, *above.values()}:
        clusters[climb(text)].append(text)
    smallest = {top: min(members, key=_sha256) for top, members in clusters.items() if len(members) > 1}
    return {text: smallest[top] for top, members in clusters.items() if top in smallest for text in members}


def find_near_duplicates(rows: Sequence[str], of: Sequence[str]) -> list[int]:
    """Return the indexes in `rows` of texts that are near duplicates of one in `of`, or equal to one if normalised."""
    import numpy as np

    known = sorted({normalise(text) for text in of})
    texts = [normalise(text) for text in rows]
    duplicates = set(known) & set(texts)
    others = sorted(set(texts) - duplicates)
    bands, other_bands = _compute_bands(known), _compute_bands(others)
    shared = np.isin(bands, other_bands).any(axis=1)  # in whichever band: more than needed does no harm
    known, bands = [known[index] for index in np.flatnonzero(shared)], bands[shared]
    shared = np.isin(other_bands, bands).any(axis=1)
    others, other_bands = [others[index] for index in np.flatnonzero(shared)], other_bands[shared]
    signatures, other_signatures = _compute_signatures(known), _compute_signatures(others)
    for band in range(BANDS):
        buckets: dict[int, list[int]] = defaultdict(list)
        for index, value in enumerate(bands[:, band].tolist()):
            buckets[value].append(index)
        for index, value in enumerate(other_bands[:, band].tolist()):
            peers = buckets.get(value, [])[: 5 * PASSES]
            if (
                peers
                and others[index] not in duplicates
                and _are_near(other_signatures[index], signatures[peers]).any()
            ):
                duplicates.add(others[index])
    return [index for index, text in enumerate(texts) if text in duplicates]


def _bound(normal: str) -> str:
    """What is compared of a normalised text."""
    text, half = strip_punctuation(normal), MAX_COMPARED // 2
    return text if len(text) <= MAX_COMPARED else text[:half] + text[-half:]


def _chunk(items: "NDArray[np.int64]") -> "Iterator[NDArray[np.int64]]":
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _cluster(texts: list[str]) -> Iterable[list[int]]:
    """Return the clusters of several texts, as indexes. Only texts that share a band with another are compared."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bands = _compute_bands(texts)
    shared = np.zeros(len(texts), bool)
    for band in bands.T:
        _, places, counts = np.unique(band, return_inverse=True, return_counts=True)
        shared |= counts[places] > 1
    peers = shared.nonzero()[0]  # [peers], indexes of texts
    bands = bands[shared]  # those of all texts take as much as the texts
    found = _find_pairs(bands, _compute_signatures([texts[index] for index in peers]))
    pairs = np.fromiter(found, np.dtype((np.int64, 2)))  # [pairs, 2], of peers
    edges = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(peers), len(peers)))
    _, numbers = connected_components(edges, directed=False)
    clusters: dict[int, list[int]] = defaultdict(list)
    for index, number in zip(peers.tolist(), numbers.tolist(), strict=True):
        clusters[number].append(index)
    return [cluster for cluster in clusters.values() if len(cluster) > 1]


def _find_pairs(bands: "NDArray[np.uint64]", signatures: "NDArray[np.uint16]") -> Iterator[tuple[int, int]]:
    """Yield pairs of near texts that connect every cluster. bands [texts, BANDS], signatures [texts, SIGNATURE]."""
    import numpy as np

    couples = [np.empty(0, np.int64)]  # alone in a bucket, mostly the same two in many bands: compared once, together
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=~band[order[:1]]) != 0)
        sizes = np.diff(starts, append=len(order))
        pair = starts[sizes == 2]
        couples.append(order[pair] * len(band) + order[pair + 1])
        for start, size in zip(starts[sizes > 2].tolist(), sizes[sizes > 2].tolist(), strict=True):
            yield from _pair_near(order[start : start + size].tolist(), signatures)
    for some in _chunk(np.unique(np.concatenate(couples))):
        ones, twos = np.divmod(some, len(bands))
        near = _are_near(signatures[ones], signatures[twos])
        yield from zip(ones[near].tolist(), twos[near].tolist(), strict=True)


def _pair_near(bucket: list[int], signatures: "NDArray[np.uint16]") -> Iterator[tuple[int, int]]:
    """Yield pairs that connect the near texts of a bucket.

    A text that was reached from another is not compared again, so a bucket of copies costs one pass.
    """
    reached: list[int] = []
    for _ in range(PASSES):
        if not bucket or (len(bucket) == 1 and not reached):
            return
        index = reached.pop() if reached else bucket.pop(0)
        near = _are_near(signatures[index], signatures[bucket])
        found = [other for other, is_near in zip(bucket, near, strict=True) if is_near]
        yield from ((index, other) for other in found)
        reached += found
        bucket = [other for other, is_near in zip(bucket, near, strict=True) if not is_near]


def _are_near(one: "NDArray[np.uint16]", many: "NDArray[np.uint16]") -> "NDArray[np.bool_]":
    """Which of many signatures [N, SIGNATURE] are near one [SIGNATURE], or each its own [N, SIGNATURE]; the share of
    equal values estimates Jaccard.
    """
    near: NDArray[np.bool_] = (many == one).mean(axis=1) >= JACCARD  # [N, SIGNATURE] -> [N]
    return near


# ---------------------------------------------------------------- MinHash


def _compute_bands(texts: Sequence[str]) -> "NDArray[np.uint64]":
    """Return a hash of each band of each text's signature: [texts, BANDS]."""
    import numpy as np

    factors = np.random.RandomState(1).randint(0, 2**63, BAND).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    bands = np.empty((len(texts), BANDS), np.uint64)
    for start, values in _minhash(texts, BANDS * BAND):
        parts = values.reshape(-1, BANDS, BAND).astype(np.uint64) * factors
        bands[start : start + len(values)] = parts.sum(axis=2, dtype=np.uint64)
    return bands


def _compute_signatures(texts: Sequence[str]) -> "NDArray[np.uint16]":
    """Return the signatures [texts, SIGNATURE], 16 bits of each value: two that differ have them in common once in
    65,536 times.
    """
    import numpy as np

    signatures = np.empty((len(texts), SIGNATURE), np.uint16)
    for start, values in _minhash(texts, SIGNATURE):
        signatures[start : start + len(values)] = values.astype(np.uint16)
    return signatures


def _minhash(texts: Sequence[str], length: int) -> "Iterator[tuple[int, NDArray[np.uint32]]]":
    """Yield the first `length` MinHash values of some texts at a time, [some, length], and the index of the first.

    The values are those of datasketch's scheme affine32, which hashes each shingle of each text by a call of its own.
    """
    import numpy as np
    from datasketch import MinHash

    permutations = MinHash(num_perm=SIGNATURE, seed=1, scheme="affine32").permutations  # clusters depend on them
    factors, offsets = permutations[:, :length]
    start = 0
    for some in count(_group(texts), len(texts), "texts"):
        hashes, ends = _hash_shingles(some)
        values = np.empty((len(some), length), np.uint32)
        for index, own in enumerate(np.split(hashes, ends[:-1])):
            products = own[:, None] * factors  # [shingles, length], modulo 2**32
            products += offsets
            products.min(axis=0, out=values[index])
        yield start, values
        start += len(some)


def _group(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield what is compared of the texts, so many at a time that their shingles are held at once."""
    some, size = list[str](), 0
    for text in texts:
        some.append(_bound(text))
        size += len(some[-1])
        if size > HASHED:
            yield some
            some, size = [], 0
    if some:
        yield some


def _hash_shingles(texts: Sequence[str]) -> "tuple[NDArray[np.uint32], NDArray[np.int64]]":
    """Return the hash of each shingle of each text, one text behind the other, and where each text ends there.

    A shingle that stands in several places is hashed once.
    """
    import numpy as np
    import pyarrow as pa

    padded = [text.ljust(SHINGLE, _PADDING) for text in texts]  # a shorter text is one shingle
    lengths = np.array([len(text) for text in padded])
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    begins = np.ones(len(points), bool)  # whether a shingle begins here: none reaches into the next text
    begins[(lengths.cumsum()[:, None] - np.arange(1, SHINGLE)).ravel()] = False
    windows = np.lib.stride_tricks.sliding_window_view(points, SHINGLE)[begins[: 1 - SHINGLE]]  # [shingles, SHINGLE]
    buffer = pa.py_buffer(np.ascontiguousarray(windows))
    found = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * SHINGLE), len(windows), [None, buffer])
    found = found.dictionary_encode()
    different = found.dictionary.buffers()[1].to_pybytes().decode("utf-32-le", "surrogatepass")
    pieces = (different[start : start + SHINGLE].rstrip(_PADDING) for start in range(0, len(different), SHINGLE))
    digests = [
        hashlib.sha1(piece.encode(errors="surrogatepass"), usedforsecurity=False).digest()[:4] for piece in pieces
    ]
    hashes = np.frombuffer(b"".join(digests), "<u4")
    return _mix(hashes)[found.indices.to_numpy()], (lengths - SHINGLE + 1).cumsum()


def _mix(hashes: "NDArray[np.uint32]") -> "NDArray[np.uint32]":
    """MurmurHash3's finalizer (Appleby 2011), before which near numbers have near products."""
    import numpy as np

    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))
