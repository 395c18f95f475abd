"""What `ptp gate explain` says in words, sentence by sentence."""

import pytest

from flows.on_demand.explanation import Champion, Explanation, Judges, Power, describe
from ptpipeline.records.verdicts import Look

CHAMPION = Champion(version=3, figure=0.8, split="test", rows=100, looks=2)
JUDGES = Judges(snapshot="a" * 64, split="test", rows=100, comparable=90, served=2, limit=5, reserve=None)
POWER = Power(effect=0.02, rows_needed=1487, smallest_gain=0.05, discordant=0.1, measured=False)
KNOWN = Explanation(
    task="mood",
    metric="accuracy",
    rule="non_inferiority",
    promote="auto",
    champion=CHAMPION,
    anchor=None,
    margin=0.02,
    judges=JUDGES,
    look=Look(test_set=1, number=3, alpha=0.01, spent=0.03, budget=0.05),
    power=POWER,
    requirements=[],
    unknown=[],
)


def told(**changes: object) -> str:
    return "\n".join(describe(KNOWN.model_copy(update=changes)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "champion: version 3, accuracy 0.8000 on 100 test rows, which were looked at 2 times; if it was chosen by",
        ),
        ({"champion": None}, "champion: none; the first candidate that passes the other checks becomes it"),
        ({"champion": CHAMPION.model_copy(update={"figure": None, "looks": 1})}, "version 3, not measured, which were"),
        ({"champion": CHAMPION.model_copy(update={"looks": 1})}, "which were looked at once;"),
        (
            {"champion": CHAMPION.model_copy(update={"incomparable": "it is gone"})},
            "nothing can be compared with it (it is gone): a candidate that passes waits for a person",
        ),
        ({}, "rows: accuracy is judged on 100 test rows of snapshot aaaaaaaaaaaa; 10 of them do not compare"),
        ({}, "look: number 3 at test set 1; each test passes if p is at most 0.01."),
        ({}, "err with a chance of 0.05: 0.0200 of it is spent, 0.0300 after this look"),
        ({}, "power: 1487 rows show equal quality within 0.02 four times in five at this look, today's 90 show a gain"),
        ({"margin": 0.01}, "power: 1487 rows show a gain of 0.02 four times"),
        ({"power": POWER.model_copy(update={"smallest_gain": None})}, "today's 90 are too few to show any gain"),
        ({}, "(if prompts differ on 10.0% of the rows, which is common; no candidate was compared with this champion"),
        (
            {"power": POWER.model_copy(update={"measured": True})},
            "of the rows, as the last candidate did from the champion)",
        ),
        ({}, "reserve: none (data.split.reserve); after 5 looks, of which 2 were taken, the same rows go on judging"),
        (
            {"judges": JUDGES.model_copy(update={"reserve": 40})},
            "reserve: 40 rows take over when the test rows have served 5",
        ),
        (
            {"judges": JUDGES.model_copy(update={"split": "reserve", "rows": 40, "comparable": 40, "served": 5})},
            "reserve: its 40 rows judge, because the test rows have served 5 looks of 5",
        ),
        ({}, "non-inferiority: the margin is 0.0200; no other version has to be compared"),
        ({"anchor": 1}, "non-inferiority: the margin is 0.0200; version 1, the anchor, is compared too"),
        ({"margin": None}, "the margin is decided by the number of rows"),
        ({}, "when it passes: mood@production moves to it at once"),
        ({"promote": "manual"}, "when it passes: it waits for people: `ptp approve mood@N`"),
    ],
)
def test_each_thing_that_is_known_is_a_sentence(changes: dict[str, object], sentence: str) -> None:
    assert sentence in told(**changes)


def test_what_is_not_known_comes_first_and_is_not_made_up() -> None:
    lines = describe(KNOWN.model_copy(update={"unknown": ["its rows"], "judges": None, "look": None, "power": None}))
    assert [line.partition(":")[0] for line in lines] == ["not known", "champion", "non-inferiority", "when it passes"]
    assert "non-inferiority" not in told(rule="superiority")
    assert "do not compare" not in told(judges=JUDGES.model_copy(update={"comparable": 100}))
