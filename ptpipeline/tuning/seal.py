"""The seal of a checkpoint: a code that only who holds the ledger's secret can compute over its bytes and its place.

Whoever may write to the object store can replace a checkpoint, and the trainer signs what it resumes from. So a
checkpoint begins with an HMAC-SHA256 (RFC 2104) over its key and all that follows, and nothing of it is parsed before
that is verified. An earlier checkpoint of the same gang keeps its seal: it leads to the same bits, later. Imports no
torch.
"""

import hashlib
import hmac

from ptpipeline.errors import ArtifactError

DOMAIN = b"ptpipeline checkpoint v1"  # a code that was made for something else is no seal
_BYTES = hashlib.sha256().digest_size


def seal(secret: bytes, key: str, body: bytes) -> bytes:
    """Return the object to store at `key`: its seal, then `body`."""
    return _compute_code(secret, key, body) + body


def unseal(secret: bytes, key: str, stored: bytes) -> bytes:
    """Return what was sealed for `key`; ArtifactError unless that secret sealed exactly these bytes for that key."""
    code, body = stored[:_BYTES], stored[_BYTES:]
    if not hmac.compare_digest(code, _compute_code(secret, key, body)):
        raise ArtifactError("it has no valid seal: it was altered, or another ledger's trainer wrote it")
    return body


def _compute_code(secret: bytes, key: str, body: bytes) -> bytes:
    code = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (DOMAIN, b"\0", key.encode(), b"\0", body):  # no key of a store holds a zero byte
        code.update(part)
    return code.digest()
