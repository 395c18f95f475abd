"""How much one request, and one client, may take of a server."""

from typing import NamedTuple

SMALL = 2**16  # bytes of a body for which there is always room


class Limits(NamedTuple):
    """body_bytes: of a request. large_bytes: of all requests under way together, each without its first SMALL: a client
    that stalls within its body holds what it sent. body_seconds: until the whole body has come. texts: of a request.
    max_tokens: that a text may ask to be generated. patience: seconds until a request without an answer ends.
    """

    body_bytes: int = 2**20
    large_bytes: int = 64 * 2**20
    body_seconds: float = 20.0
    texts: int = 256
    max_tokens: int = 1024
    patience: float = 60.0
