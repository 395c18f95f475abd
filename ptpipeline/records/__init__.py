"""Frozen values that travel between the stages; each turns into JSON and names what it was made from.

    Snapshot -> TunedPrompt -> Report -> Verdict -> PromptVersion -> Promotion -> Pointer

Digests are lower-case hex sha256 over canonical JSON (RFC 8785).
"""
