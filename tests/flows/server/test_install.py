"""The automations on a small server that keeps what it is sent: written if they are missing, or say something else."""

import copy
from typing import Any

import pytest

from flows.server.automations import install_automations
from ptpipeline.errors import NotFound
from tests.flows.server.test_prefect import Answer, Prefect, listening

NOTICE, RESUME = "ptp: a run without a heartbeat has crashed", "ptp: a crashed night goes on"


class Automations(Prefect):
    """Holds automations; fields of its own come with each, and sets of strings in its own order."""

    def __init__(self) -> None:
        super().__init__({})
        self.held: dict[str, dict[str, Any]] = {}
        self.written: list[str] = []

    def answer(self, what: str, body: Any) -> Answer:
        if what == "POST /automations/filter":
            return 200, list(self.held.values())
        self.written.append(what)
        known = self.held.get(body["name"], {"id": f"id{len(self.held)}"})
        stored = copy.deepcopy(body) | {"id": known["id"], "created": "today"}
        stored["trigger"]["match_related"]["prefect.resource.role"] = "deployment"
        named = stored["trigger"]["match_related"]["prefect.resource.id"]
        if isinstance(named, list):
            named.reverse()
        self.held[body["name"]] = stored
        return 200, stored


DEPLOYED = {"nightly": {"id": "n"}, "tune": {"id": "t"}}


@pytest.fixture
def server() -> Automations:
    return Automations()


def install(server: Automations, dry: bool = False) -> list[str]:
    with listening(server) as prefect:
        return install_automations(prefect.url, DEPLOYED, dry)


def test_what_is_missing_is_made_and_what_is_there_is_left_alone(server: Automations) -> None:
    assert install(server) == [NOTICE, RESUME]
    assert install(server) == []
    assert server.written == ["POST /automations/"] * 2
    notice, resume = (server.held[name]["trigger"]["match_related"]["prefect.resource.id"] for name in (NOTICE, RESUME))
    assert sorted(notice) == ["prefect.deployment.n", "prefect.deployment.t"]
    assert resume == "prefect.deployment.n"


def test_a_dry_run_names_what_it_would_write_and_writes_nothing(server: Automations) -> None:
    assert install(server, dry=True) == [NOTICE, RESUME]
    assert server.written == []
    install(server)
    server.held[NOTICE]["trigger"]["within"] = 1.0
    server.written.clear()
    assert (install(server, dry=True), server.written) == ([NOTICE], [])


@pytest.mark.parametrize("change", ["within", "actions", "another", "missing"])
def test_what_says_something_else_is_brought_back(server: Automations, change: str) -> None:
    install(server)
    held = server.held[NOTICE]
    if change == "within":
        held["trigger"]["within"] = 1.0
    elif change == "actions":
        held["actions"].append(held["actions"][0])
    elif change == "another":
        held["trigger"]["match_related"]["prefect.resource.id"] = ["prefect.deployment.other"]
    else:
        del held["trigger"]["for_each"]
    assert install(server) == [NOTICE]
    assert server.written[-1] == "PUT /automations/id0"
    assert install(server) == []


def test_what_a_person_paused_stays_paused(server: Automations) -> None:
    install(server)
    server.held[NOTICE]["enabled"] = False
    assert install(server) == []
    server.held[NOTICE]["trigger"]["within"] = 1.0
    assert install(server) == [NOTICE]
    assert server.held[NOTICE]["enabled"] is False
    assert server.held[RESUME]["enabled"] is True


def test_without_the_nightly_flow_they_have_nothing_to_name(server: Automations) -> None:
    with listening(server) as prefect, pytest.raises(NotFound, match="deploy the flows first, by `ptp up`"):
        install_automations(prefect.url, {"tune": DEPLOYED["tune"]})
    assert server.written == []
