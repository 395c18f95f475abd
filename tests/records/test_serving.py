"""An answer has the fields of its kind of task alone; a server's report shows bits that rotted."""

import pytest
from pydantic import ValidationError

from ptpipeline.records.serving import Answer, CanaryTally, Holding, ServerReport, Tally


def test_a_label_has_its_probabilities_and_no_text() -> None:
    answer = Answer(label="good", probabilities={"good": 1.0}, version="mood@1", digest="a" * 64)
    assert set(answer.to_json()) == {"label", "probabilities", "version", "digest"}


def test_a_text_has_no_label_though_it_is_empty() -> None:
    answer = Answer(label=None, probabilities={}, version="mood@1", digest="a" * 64, text="")
    assert answer.to_json() == {"version": "mood@1", "digest": "a" * 64, "text": ""}


def test_a_servers_report_states_the_digest_of_all_its_other_fields() -> None:
    report = ServerReport(server="host", at="2026-01-01T00:00:00+00:00", holds=[Holding("mood", "a" * 64)])
    stated = report.model_copy(update={"sha256": report.compute_sha256()})
    assert stated.compute_sha256() == stated.sha256
    others = ({"server": "other"}, {"at": "2026-01-02"}, {"holds": []})
    assert stated.sha256 not in {stated.model_copy(update=one).compute_sha256() for one in others}


@pytest.mark.parametrize(
    "tally",
    [
        {"trials": [Tally("mood", "production", 1, 1, 2, first=-1)]},
        {"canaries": [CanaryTally("mood", "production", 1, 1, 2, second=-1)]},
    ],
)
def test_a_servers_report_counts_no_less_than_nothing(tally: dict[str, list[Tally | CanaryTally]]) -> None:
    with pytest.raises(ValidationError, match=r"(trials|canaries)\.0\.(first|second)"):
        ServerReport.model_validate({"server": "host", "at": "2026-01-01T00:00:00+00:00", "holds": [], **tally})
