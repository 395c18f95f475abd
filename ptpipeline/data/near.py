"""Which texts count as the same: equal when normalised, or near duplicates by MinHash.

Texts are compared normalised and without punctuation, as sets of five-character shingles. Two texts that share a band
of their MinHash signatures are near duplicates if the signatures estimate a Jaccard similarity of at least .8
(Leskovec et al. 2020, sections 3.3 and 3.4). That depends on these two texts alone, so unrelated texts change nothing.
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

# How many texts of a band are compared with all others there. Only thousands of texts of one template need more.
PASSES = 200


def normalise(text: str) -> str:
    """Return `text` as texts are compared: NFKC, case folded, each run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def strip_punctuation(normal: str) -> str:
    """Return a normalised text without punctuation, or the text itself if it has nothing else."""
    words = "".join(" " if unicodedata.category(character).startswith("P") else character for character in normal)
    return " ".join(words.split()) or normal


def shingles(text: str) -> set[str]:
    """Return the runs of five characters in a text without punctuation, or the text itself if it is shorter."""
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def find_representatives(normals: Iterable[str]) -> dict[str, str]:
    """Return, for every normalised text with near duplicates, the text that represents its cluster.

    Clusters are the connected components of near duplicates, whatever the order of the texts and their repeats. The
    representative is the member with the smallest sha256, so neither labels nor unrelated texts change it.
    """
    spellings: dict[str, list[str]] = defaultdict(list)  # text without punctuation -> normalised texts
    for normal in sorted(set(normals)):
        spellings[strip_punctuation(normal)].append(normal)
    texts = list(spellings)
    representatives: dict[str, str] = {}
    for cluster in _clusters(texts):
        members = [normal for index in cluster for normal in spellings[texts[index]]]
        if len(members) > 1:
            representatives |= dict.fromkeys(members, min(members, key=_sha256))
    return representatives


def find_near_duplicates(rows: Sequence[str], of: Sequence[str]) -> list[int]:
    """Return the indexes in `rows` of texts that are near duplicates of one in `of`, or equal to one if normalised."""
    known = sorted({strip_punctuation(normalise(text)) for text in of})
    texts = [strip_punctuation(normalise(text)) for text in rows]
    duplicates = set(known) & set(texts)
    others = sorted(set(texts) - duplicates)
    signatures = _signatures([*known, *others])
    for band in _bands(signatures):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for index in range(len(known)):
            buckets[band[index]].append(index)
        for index, text in enumerate(others, len(known)):
            peers = buckets.get(band[index], [])[: 5 * PASSES]
            if peers and text not in duplicates and _are_near(signatures[index], signatures[peers]).any():
                duplicates.add(text)
    return [index for index, text in enumerate(texts) if text in duplicates]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _clusters(texts: list[str]) -> Iterable[set[int]]:
    from scipy.cluster.hierarchy import DisjointSet

    clusters, signatures = DisjointSet(range(len(texts))), _signatures(texts)
    for band in _bands(signatures):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for index, value in enumerate(band):
            buckets[value].append(index)
        for bucket in buckets.values():
            _merge_near(bucket, clusters, signatures)
    subsets: list[set[int]] = clusters.subsets()
    return subsets


def _merge_near(bucket: list[int], clusters: "DisjointSet", signatures: "NDArray[np.uint32]") -> None:
    """Merge the clusters of near texts of a bucket.

    A text that was reached from another is not compared again, so a bucket of copies costs one pass.
    """
    reached: list[int] = []
    for _ in range(PASSES):
        if not bucket or (len(bucket) == 1 and not reached):
            return
        index = reached.pop() if reached else bucket.pop(0)
        near = _are_near(signatures[index], signatures[bucket])
        for other, is_near in zip(bucket, near, strict=True):
            if is_near:
                clusters.merge(index, other)
                reached.append(other)
        bucket = [other for other, is_near in zip(bucket, near, strict=True) if not is_near]


def _are_near(one: "NDArray[np.uint32]", many: "NDArray[np.uint32]") -> "NDArray[np.bool_]":
    """Which of many signatures [N, SIGNATURE] are near one [SIGNATURE]; the share of equal values estimates Jaccard."""
    near: NDArray[np.bool_] = (many == one).mean(axis=1) >= JACCARD  # [N, SIGNATURE] -> [N]
    return near


def _bands(signatures: "NDArray[np.uint32]") -> Iterator[list[bytes]]:
    """For each band, that part of every text's signature: [texts, SIGNATURE] -> texts strings of BAND values."""
    for start in range(0, BANDS * BAND, BAND):
        yield [row.tobytes() for row in signatures[:, start : start + BAND]]


def _signatures(texts: list[str]) -> "NDArray[np.uint32]":
    """MinHash values [texts, SIGNATURE]; scheme and seed are named because clusters depend on them."""
    import numpy as np
    from datasketch import MinHash

    pieces = ([shingle.encode(errors="surrogatepass") for shingle in shingles(text)] for text in texts)
    sketches = MinHash.generator(pieces, num_perm=SIGNATURE, seed=1, scheme="affine32")
    return np.array([sketch.hashvalues for sketch in sketches], dtype=np.uint32).reshape(len(texts), SIGNATURE)
