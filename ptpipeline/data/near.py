"""Which texts count as the same: equal when normalised, or near duplicates by MinHash.

Texts are compared bare, which is normalised and without punctuation, as sets of five-character shingles. Texts that
share a band of their signatures are near duplicates where the signatures say a Jaccard similarity of .8 (Leskovec et
al. 2020, sections 3.3 and 3.4): that depends on these two texts alone, so unrelated ones change nothing.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.cluster.hierarchy import DisjointSet

SHINGLE = 5  # characters: three-word shingles miss texts of a dozen words that differ in one
JACCARD = 0.8
SIGNATURE = 250  # MinHash values: the standard error of a similarity of .8 is .025
BANDS, BAND = 25, 5  # over the first 125 values: at .8 no band is shared with probability (1 - .8 ** 5) ** 25 = .00005
PASSES = (
    200  # how many texts of a band are compared with all others there: enough but for thousands that share a template
)


def normalised(text: str) -> str:
    """`text` as it is compared: NFKC, case folded, runs of white space as one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def bare(normal: str) -> str:
    """A normalised text without punctuation; the text itself where it has nothing else."""
    spoken = "".join(" " if unicodedata.category(character).startswith("P") else character for character in normal)
    return " ".join(spoken.split()) or normal


def shingles(text: str) -> set[str]:
    """The runs of five characters in a bare text, or the text itself where it is shorter."""
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def representatives(normals: Iterable[str]) -> dict[str, str]:
    """For every normalised text with near duplicates, the text that speaks for all of its cluster.

    Clusters are what near duplicates connect, whatever their order and however often a text stands there. The one with
    the smallest sha256 speaks: neither labels nor unrelated texts change that.
    """
    same: dict[str, list[str]] = defaultdict(list)
    for normal in sorted(set(normals)):
        same[bare(normal)].append(normal)
    texts = list(same)
    found: dict[str, str] = {}
    for cluster in _clusters(texts):
        members = [normal for index in cluster for normal in same[texts[index]]]
        if len(members) > 1:
            found |= dict.fromkeys(members, min(members, key=_sha256))
    return found


def near_duplicates(rows: Sequence[str], of: Sequence[str]) -> list[int]:
    """The indexes of the texts in `rows` that are near duplicates of a text in `of`, or equal to one when
    normalised.
    """
    known = sorted({bare(normalised(text)) for text in of})
    asked = [bare(normalised(text)) for text in rows]
    found = set(known) & set(asked)
    others = sorted(set(asked) - found)
    signatures = _signatures([*known, *others])
    for band in _bands(signatures):
        there: dict[bytes, list[int]] = defaultdict(list)
        for index in range(len(known)):
            there[band[index]].append(index)
        for index, text in enumerate(others, len(known)):
            peers = there.get(band[index], [])[: 5 * PASSES]
            if peers and text not in found and _near(signatures[index], signatures[peers]).any():
                found.add(text)
    return [index for index, text in enumerate(asked) if text in found]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _clusters(texts: list[str]) -> Iterable[set[int]]:
    from scipy.cluster.hierarchy import DisjointSet

    joined, signatures = DisjointSet(range(len(texts))), _signatures(texts)
    for band in _bands(signatures):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for index, value in enumerate(band):
            buckets[value].append(index)
        for bucket in buckets.values():
            _join(bucket, joined, signatures)
    clusters: list[set[int]] = joined.subsets()
    return clusters


def _join(bucket: list[int], joined: "DisjointSet", signatures: "NDArray[np.uint32]") -> None:
    """Joins what is near within a bucket; what is reached is compared no more, so a bucket of copies costs one pass."""
    reached: list[int] = []
    for _ in range(PASSES):
        if not bucket or (len(bucket) == 1 and not reached):
            return
        index = reached.pop() if reached else bucket.pop(0)
        near = _near(signatures[index], signatures[bucket])
        for other, is_near in zip(bucket, near, strict=True):
            if is_near:
                joined.merge(index, other)
                reached.append(other)
        bucket = [other for other, is_near in zip(bucket, near, strict=True) if not is_near]


def _near(one: "NDArray[np.uint32]", many: "NDArray[np.uint32]") -> "NDArray[np.bool_]":
    """Which of many signatures [N, SIGNATURE] are near that one [SIGNATURE]: the share of equal values estimates
    Jaccard.
    """
    near: NDArray[np.bool_] = (many == one).mean(axis=1) >= JACCARD
    return near


def _bands(signatures: "NDArray[np.uint32]") -> Iterator[list[bytes]]:
    """Band after band, the part of every text's signature that has to be shared."""
    for start in range(0, BANDS * BAND, BAND):
        yield [row.tobytes() for row in signatures[:, start : start + BAND]]


def _signatures(texts: list[str]) -> "NDArray[np.uint32]":
    """MinHash values, [texts, SIGNATURE]; scheme and seed are named because clusters depend on them."""
    import numpy as np
    from datasketch import MinHash

    pieces = ([shingle.encode(errors="surrogatepass") for shingle in shingles(text)] for text in texts)
    sketches = MinHash.generator(pieces, num_perm=SIGNATURE, seed=1, scheme="affine32")
    return np.array([sketch.hashvalues for sketch in sketches], dtype=np.uint32).reshape(len(texts), SIGNATURE)
