"""Sends the ledger's events to the targets that the environment names; imports no Prefect.

`PTP_EVENTS` lists names of targets; `PTP_EVENT_<NAME>` holds the address of each, which may be a secret itself, and so
is never printed. An `https://` address gets signed JSON by the Standard Webhooks specification 1.0
(https://www.standardwebhooks.com), signed with `PTP_EVENT_<NAME>_SECRET`; `slack:https://...` gets `{"text": ...}`, as
Slack and Mattermost take it; `apprise:...` is one of the services that the library apprise knows.

Each event reaches each target at least once, with one id: an event is due until the target took it.
"""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import httpx

from flows.server.environment import EVENT
from ptpipeline.errors import PtpError, SettingsError
from ptpipeline.foreign import escape_controls
from ptpipeline.records.base import is_name
from ptpipeline.settings import Settings, is_loopback
from registry.ledger.database import Database
from registry.ledger.events import Event, record_delivered, take_due

SECONDS = 5.0  # for one event
APPRISE_SECONDS = 15.0  # for one by apprise, of which a process of its own takes some to begin
MEMORY = 2**29  # bytes that this process may have
TARGET_SECONDS = 30.0  # for one target, each time that something is sent
ABOUT_THE_TARGET = (401, 403, 404, 408, 410, 429)  # of 4xx: these answer any event, the others this one
SECRET_BYTES = range(24, 65)  # as the specification asks

log = logging.getLogger("ptpipeline.events")


@dataclass(frozen=True)
class Target:
    """Who is told: by which protocol, where, and with which secret."""

    name: str
    kind: Literal["webhook", "slack", "apprise"]
    address: str = field(repr=False)
    secret: bytes = field(default=b"", repr=False)


class Sent(NamedTuple):
    """How many events arrived, and for each target that did not take one, why."""

    delivered: int
    failures: dict[str, str]


class NotTaken(Exception):
    """The target did not take an event; the message holds no part of its address."""


class Refused(NotTaken):
    """The target answers, and will not take this event; it may take others."""


def variable_of(target: str) -> str:
    """Return the environment variable that holds the target's address."""
    return f"{EVENT}{target.upper().replace('-', '_')}"


def read_targets(settings: Settings) -> list[Target]:
    """Return the targets that the environment names; raise SettingsError, which shows no address, if one is wrong."""
    names = [name.strip() for name in settings.events.split(",") if name.strip()]
    for name in names:
        if not is_name(name) or names.count(name) > 1:
            raise SettingsError(
                f"PTP_EVENTS: {name!r}: expected different names of lower-case letters, digits and dashes, such as "
                "`ops,chat`"
            )
    return [_read_target(name) for name in names]


def send_events(settings: Settings, database: Database) -> Sent:
    """Tell every target what is due; a target that does not answer delays nobody else, and is tried again later.

    Raises SettingsError if a target is declared wrongly, ServiceUnavailable if the ledger does not answer.
    """
    for library in ("httpx", "httpcore", "apprise"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # their lines show addresses
    delivered, failures = 0, {}
    for target in read_targets(settings):
        ends = time.monotonic() + TARGET_SECONDS
        while time.monotonic() < ends and (event := take_due(database, target.name)):
            try:
                _send(target, event)
            except NotTaken as reason:
                failures[target.name] = str(reason)
                log.warning("target %s of events, %s: %s; it is tried again later", target.name, event.id, reason)
                if isinstance(reason, Refused):
                    continue
                break
            record_delivered(database, target.name, event)
            delivered += 1
    return Sent(delivered, failures)


def send_what_waits(settings: Settings, database: Database) -> None:
    """Send events behind other work, which stays done whatever happens here: the `alarm` deployment sends them too."""
    try:
        send_events(settings, database)
    except PtpError as error:
        log.warning("no event was sent: %s", error)


def sign(secret: bytes, id_: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header webhook-signature: HMAC-SHA256 over `id.timestamp.body`."""
    digest = hmac.new(secret, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def describe(event: Event) -> str:
    """Return the event in one line, which nobody's words end or turn around."""
    record = {
        name: escape_controls(" ".join(value.split())) if isinstance(value, str) else value
        for name, value in event.record.items()
    }
    place, who = f"{record.get('task')}@{record.get('alias')}", record.get("actor")
    moved = f"{place}: version {record.get('from') or 'none'} -> {record.get('to')}"
    candidate = f"{record.get('task')}@{record.get('to')}"
    beside = record.get("beside")
    if isinstance(beside, dict):
        what = f"at {beside.get('percent')}% of its requests" if beside.get("percent") else "as shadow"
        both = f"version {beside.get('version')} beside version {record.get('to')}"
        return f"{place}: {both}, {what}, by {who}: {record.get('reason')}"
    lines: dict[str, str] = {
        "promotion": f"{moved}, promoted by {who}: {record.get('reason')}",
        "rollback": f"{moved}, rolled back by {who}: {record.get('reason')}",
        "gate_failed": f"{candidate} failed its gate: {record.get('reason')}",
        "approval_wanted": f"{candidate} waits for approval until {record.get('expires')}: `ptp approve {candidate}`",
    }
    return lines.get(event.kind, f"{event.kind.replace('_', ' ')}: {record.get('reason')}")


# ---------------------------------------------------------------- protocols


def _send(target: Target, event: Event) -> None:
    """Send the event; raise NotTaken if the target does not take it, or not in time.

    A thread sends it, because the limits of HTTP libraries are for each read: a target that sends a byte now and then
    would hold everybody.
    """
    answers: queue.SimpleQueue[NotTaken | None] = queue.SimpleQueue()

    def send() -> None:
        try:
            _SEND[target.kind](target, event)
            answers.put(None)
        except NotTaken as reason:
            answers.put(reason)
        except Exception as error:  # noqa: BLE001  a hundred services, each with errors of its own, which show addresses
            answers.put(NotTaken(f"does not answer ({type(error).__name__})"))

    threading.Thread(target=send, name=f"send to {target.name}", daemon=True).start()
    seconds = SECONDS if target.kind != "apprise" else APPRISE_SECONDS + 1  # its process ends by itself
    try:
        reason = answers.get(timeout=seconds)
    except queue.Empty:
        raise NotTaken(f"does not answer within {seconds:.0f} s") from None
    if reason:
        raise reason


def _send_signed(target: Target, event: Event) -> None:
    content = {"type": event.kind, "timestamp": event.at, "data": event.record, "text": describe(event)}
    body, timestamp = json.dumps(content).encode(), int(event.taken)
    headers = {
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(target.secret, event.id, timestamp, body),
    }
    _post(target, body, headers)


def _send_to_slack(target: Target, event: Event) -> None:
    text = _mention_nobody(describe(event)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    _post(target, json.dumps({"text": text}).encode(), {"webhook-id": event.id})


def _mention_nobody(text: str) -> str:
    """Return the text with nothing in it that a chat takes for a person, a group or a link behind other words.

    `task@3` stays as it is: people copy it.
    """
    return re.sub(r"@(?!(?<=[a-z0-9]@)[0-9])", "@\u200b", text).replace("](", "]\u200b(")


def _post(target: Target, body: bytes, headers: dict[str, str]) -> None:
    """Post the body; raise NotTaken unless the target answers 2xx. Redirects are not followed, answers not read."""
    headers = {"content-type": "application/json", "user-agent": "ptpipeline", **headers}
    with (
        httpx.Client(timeout=SECONDS, trust_env=not is_loopback(target.address), follow_redirects=False) as client,
        client.stream("POST", target.address, content=body, headers=headers) as answer,
    ):
        status = answer.status_code
    if 400 <= status < 500 and status not in ABOUT_THE_TARGET:
        raise Refused(f"answered {status}")
    if not 200 <= status < 300:
        raise NotTaken(f"answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else ""))


def _send_by_apprise(target: Target, event: Event) -> None:
    """Let a process with bounds of memory and time send it: apprise reads whatever a service answers."""
    title, text = f"ptpipeline: {event.kind}", _mention_nobody(describe(event))
    command = [sys.executable, "-P", "-m", "flows.server.apprise_process", str(MEMORY)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([target.address, title, text]).encode(),  # who lists processes sees no address
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=APPRISE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotTaken(f"does not answer within {APPRISE_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise NotTaken("did not take the event, as apprise says")


_SEND: dict[str, Callable[[Target, Event], None]] = {
    "webhook": _send_signed,
    "slack": _send_to_slack,
    "apprise": _send_by_apprise,
}


# ---------------------------------------------------------------- what the environment says


def _read_target(name: str) -> Target:
    variable = variable_of(name)
    given = os.environ.get(variable, "")
    scheme, _, rest = given.partition(":")
    if scheme == "apprise":
        return Target(name, "apprise", _check_service(variable, rest))
    if scheme == "slack":
        return Target(name, "slack", _check_address(variable, rest))
    return Target(name, "webhook", _check_address(variable, given), _read_secret(f"{variable}_SECRET"))


def _check_address(variable: str, address: str) -> str:
    """Return the address if an event may be sent there; no message shows it."""
    try:
        parts = urlsplit(address)
        sound = bool(parts.hostname) and parts.username is None and parts.port != 0 and not parts.fragment
    except ValueError:
        parts, sound = urlsplit(""), False
    allowed = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(address))
    if not (sound and allowed and address.isascii() and address.isprintable()):
        raise SettingsError(
            f"{variable}: expected an address such as https://host/path, without a user name (http:// only on this "
            "machine), `slack:https://...` or `apprise:...`; what is there is not shown, because it may be a secret"
        )
    return address


def _check_service(variable: str, address: str) -> str:
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    if not apprise.Apprise().add(address):
        raise SettingsError(
            f"{variable}: apprise knows no such service; see https://github.com/caronc/apprise/wiki for the addresses; "
            "what is there is not shown, because it may be a secret"
        )
    return address


def _read_secret(variable: str) -> bytes:
    given: Any = os.environ.get(variable, "").removeprefix("whsec_")
    try:
        secret = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) not in SECRET_BYTES:
        raise SettingsError(
            f"{variable}: expected `whsec_` and 24 to 64 bytes in base64, which the receiver knows too; make one with "
            "`echo whsec_$(openssl rand -base64 32)`"
        )
    return secret
