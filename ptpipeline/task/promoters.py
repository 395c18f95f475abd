"""The people whose signature a task's promotions need: their public keys, and for what."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from ptpipeline.task.document import Section

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def _check_key(line: str) -> str:
    from ptpipeline.signing import parse_public_key

    parse_public_key(line)
    return line


class Promoters(Section):
    """Whose signature counts, and what needs it: an override of the gate, or every promotion of `production`.

    keys: per promoter the line between BEGIN and END of the PEM file with the public key. The whole keys, not their
    ids: so a task file says by itself whom it trusts, and no second key can be made for an id of 16 digits.
    """

    keys: Annotated[list[Annotated[str, AfterValidator(_check_key)]], Field(min_length=1, max_length=100)]
    required_for: Literal["override", "promotion"] = "override"

    def are_needed(self, override: bool) -> bool:
        """Return whether a promotion needs the signature of one of them; `override` says that the gate refused it."""
        return override or self.required_for == "promotion"

    def public_keys(self) -> "dict[str, Ed25519PublicKey]":
        """Return their keys by id."""
        from ptpipeline.signing import compute_key_id, parse_public_key

        keys = map(parse_public_key, self.keys)
        return {compute_key_id(key): key for key in keys}
