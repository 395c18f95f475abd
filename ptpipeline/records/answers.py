"""What serves: a server's holdings, and answers."""

from typing import Any, Literal, NamedTuple

from ptpipeline.records.base import Record


class Holding(NamedTuple):
    """A prompt that a server has loaded."""

    task: str
    digest: str


class ServerReport(Record):
    """The prompts that a server has loaded, at `servers/<server>.json`; after a restart it may need their bytes
    again.
    """

    schema_version: Literal[1] = 1
    server: str
    at: str
    holds: list[Holding]


class Answer(Record):
    """One prediction and the version that made it: a label with all probabilities, or the text of a generation task."""

    label: str | None
    probabilities: dict[str, float]
    version: str
    digest: str
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values without the fields of the other kind of task."""
        absent = ("label", "probabilities") if self.text is not None else ("text",)
        return {key: value for key, value in super().to_json().items() if key not in absent}
