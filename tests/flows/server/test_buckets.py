"""Buckets and policies where something else is there: told by their cause, and compared as servers give them back."""

import os
from typing import Any

import pytest

from flows.server import buckets
from flows.server.buckets import Bucket, has_bucket, make_bucket
from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError
from ptpipeline.storage.s3 import RequestLimits, make_client
from ptpipeline.storage.s3_faults import Fault
from tests.http_server import Quiet, serve

LIMITS = RequestLimits(seconds=5.0, attempts=1)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")


class Store:
    """What a server answers to HEAD and to PUT of a bucket, and what was put."""

    def __init__(self, head: int, put: tuple[int, str] = (200, "")) -> None:
        self.head, self.put, self.bodies = head, put, list[bytes]()

    def serving(self) -> Any:
        store = self

        class Handler(Quiet):
            def do_HEAD(self) -> None:  # noqa: N802
                self.answer(store.head)

            def do_PUT(self) -> None:  # noqa: N802
                store.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                status, code = store.put
                self.answer(
                    status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode() if code else b""
                )

        return serve(Handler)


def of(address: str) -> tuple[Any, Bucket]:
    return make_client(address, LIMITS), Bucket("bucket", address)


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False)])
def test_a_bucket_is_there_or_missing(status: int, there: bool) -> None:
    with Store(status).serving() as address:
        assert has_bucket(*of(address)) == there


def test_a_bucket_that_this_identity_may_not_see_is_not_called_missing() -> None:
    with Store(403).serving() as address, pytest.raises(SettingsError, match="may not look at the bucket bucket"):
        has_bucket(*of(address))


@pytest.mark.parametrize(
    ("code", "head", "taken"), [("BucketAlreadyExists", 200, True), ("BucketAlreadyExists", 403, False)]
)
def test_a_bucket_that_exists_is_taken_if_it_is_ours(code: str, head: int, taken: bool) -> None:
    with Store(head, (409, code)).serving() as address:
        if taken:
            make_bucket(*of(address))
        else:
            with pytest.raises(SettingsError):
                make_bucket(*of(address))


def test_a_name_that_is_somebody_elses_is_told_so() -> None:
    store = Store(404, (409, "BucketAlreadyExists"))
    with (
        store.serving() as address,
        pytest.raises(SettingsError, match="somebody else's: choose another for PTP_STORE"),
    ):
        make_bucket(*of(address))


@pytest.mark.parametrize(("region", "told"), [("us-east-1", b""), ("eu-central-1", b"eu-central-1")])
def test_a_bucket_is_made_in_the_region_of_the_identity(
    monkeypatch: pytest.MonkeyPatch, region: str, told: bytes
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    store = Store(404)
    with store.serving() as address:
        make_bucket(*of(address))
    assert (told in store.bodies[0], bool(store.bodies[0])) == (True, bool(told))


def test_a_name_that_no_bucket_can_have_is_told() -> None:
    with pytest.raises(SettingsError, match="PTP_STORE: 'a/b' is no name of a bucket; rename it"):
        has_bucket(make_client("http://127.0.0.1:9", LIMITS), Bucket("a/b", "http://127.0.0.1:9"))


def test_a_server_that_is_away_is_a_matter_of_time() -> None:
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        has_bucket(*of("http://127.0.0.1:9"))


def test_without_an_identity_it_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(SettingsError, match="needs an identity: set AWS_ACCESS_KEY_ID"):
        has_bucket(*of("http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault("other", 503, "SlowDown"), ServiceUnavailable, "answered 503 SlowDown to create the bucket bucket"),
        (Fault("lacks", 501, "NotImplemented"), SettingsError, "which other S3 servers can"),
        (Fault("login", 403, "InvalidAccessKeyId"), SettingsError, "refuses the credentials"),
        (Fault("clock", 403, "RequestTimeTooSkewed"), SettingsError, "correct the clock"),
        (Fault("region", 301, "PermanentRedirect"), SettingsError, "set AWS_DEFAULT_REGION"),
        (Fault("changed", 409, "BucketAlreadyExists"), SettingsError, "the name is somebody else's"),
        (Fault("other", 403, "AccessDenied"), SettingsError, "give it the right s3:ListBucket"),
    ],
)
def test_each_cause_is_told_with_what_to_do(fault: Fault, kind: type[PtpError], words: str) -> None:
    error = buckets._translate(Bucket("bucket", "http://s3"), "create", fault)
    assert type(error) is kind
    assert words in str(error)


def test_a_policy_is_the_same_however_a_server_writes_its_lists() -> None:
    ours = {
        "Statement": [{"Action": ["s3:Get", "s3:Put"], "Resource": ["a"]}, {"Action": "s3:List", "Resource": ["b"]}]
    }
    theirs = {
        "Statement": [{"Action": ["s3:List"], "Resource": "b"}, {"Resource": "a", "Action": ["s3:Put", "s3:Get"]}]
    }
    assert buckets._plain(ours) == buckets._plain(theirs)
    looser = {"Statement": [*theirs["Statement"], {"Action": "s3:*", "Resource": "*"}]}
    assert buckets._plain(ours) != buckets._plain(looser)


LISTED = "<ListPoliciesResponse><ListPoliciesResult>{}</ListPoliciesResult></ListPoliciesResponse>"
MEMBER = "<Policies><member><PolicyName>{}</PolicyName></member></Policies>"
POLICY = buckets.Policy("ours", {})


@pytest.mark.parametrize(
    "body",
    [
        LISTED.format("<Policies><member><Path>/</Path></member></Policies>"),
        LISTED.format(MEMBER.format("ours")),  # without Arn
        "<html>hello</html>",
        LISTED.format(MEMBER.format("x" * 2**23)),
    ],
    ids=["no name", "no arn", "no list", "8 MiB"],
)
def test_an_odd_answer_of_iam_is_told_as_a_server_that_keeps_no_policies_so(body: str) -> None:
    class Iam(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.answer(200, body.encode(), "text/xml")

    with serve(Iam) as address, pytest.raises(buckets.NotKept, match="does not answer IAM's calls"):
        buckets.find_policy(Bucket("bucket", address), POLICY)


def test_a_list_of_policies_that_does_not_end_is_left() -> None:
    asked = list[int]()

    class Iam(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            asked.append(1)
            more = f"<IsTruncated>true</IsTruncated><Marker>{len(asked)}</Marker>"
            self.answer(200, LISTED.format(MEMBER.format("other") + more).encode(), "text/xml")

    with serve(Iam) as address, pytest.raises(buckets.NotKept, match="does not answer IAM's calls"):
        buckets.find_policy(Bucket("bucket", address), POLICY)
    assert len(asked) < 200


def test_iam_on_this_machine_is_asked_directly_and_with_the_credentials_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = list[str]()

    class Iam(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            identities.append(self.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
            self.answer(200, LISTED.format("<Policies/>").encode(), "text/xml")

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where nothing listens
    with serve(Iam) as address:
        for name in ("first", "second"):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
            assert buckets.find_policy(Bucket("bucket", address), POLICY) is None
    assert identities == ["first", "second"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<Error><Code>AccessDenied</Code></Error>", "403"),  # which is the form of S3
        ("<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>", "AccessDenied"),
        (f"<ErrorResponse><Error><Message>{'no ' * 1000}</Message></Error></ErrorResponse>", "no no"),
    ],
    ids=["of S3", "code alone", "long"],
)
def test_a_refusal_of_iam_is_told_by_what_it_says(body: str, reason: str) -> None:
    class Iam(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.answer(403, body.encode(), "text/xml")

    with serve(Iam) as address, pytest.raises(buckets.NotKept, match=f"takes no policy by IAM .{reason}") as told:
        buckets.find_policy(Bucket("bucket", address), POLICY)
    assert len(str(told.value)) < 400
