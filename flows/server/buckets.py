"""Buckets of the object store, and the policies of the roles that use it, made where they are missing.

`ptp up` makes the buckets of the local stack by it, `ptp bootstrap` those of any S3 server. The policies are documents
of AWS's IAM, which other servers implement too; a server that keeps them elsewhere says so.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ptpipeline.errors import ServiceUnavailable, SettingsError
from ptpipeline.foreign import shorten
from ptpipeline.storage.s3 import KEYS, RequestLimits, make_client, region
from ptpipeline.storage.s3_faults import (
    MALFORMED,
    Fault,
    Strange,
    explain_failure,
    explain_fault,
    is_ours,
    read_fault,
    reading_fields,
)

ROLES = ("trainer", "promoter", "nightly", "server", "mlflow")
_POLICIES = Path(__file__).with_name("policies")
_LIMITS = RequestLimits(seconds=20.0, attempts=3)
_MAX_PAGES = 100  # of a list of policies, which has 100 a page


class NotKept(SettingsError):
    """The S3 server keeps no policies by the calls of IAM, or lets nobody change them so."""


class Bucket(NamedTuple):
    """A bucket of an S3 server, None for AWS's own; `prefix` is the part of it that the store has, if not all."""

    name: str
    endpoint: str | None
    prefix: str = ""

    @property
    def objects(self) -> str:
        """What the policies call OBJECTS: the bucket, or bucket and prefix."""
        return f"{self.name}/{self.prefix}" if self.prefix else self.name

    @property
    def where(self) -> str:
        """The server's address, as people see it."""
        return self.endpoint or f"AWS S3 in {region()}"


def has_bucket(client: Any, bucket: Bucket) -> bool:
    """Whether the bucket exists; raises SettingsError if this identity may not know, or it is somebody else's."""
    from botocore.exceptions import ClientError

    with _translated(bucket, "look at"):
        try:
            client.head_bucket(Bucket=bucket.name)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return False
        return True


def make_bucket(client: Any, bucket: Bucket) -> None:
    """Create the bucket unless this identity has it already."""
    where = region()
    elsewhere = {} if where == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": where}}
    with _translated(bucket, "create"):
        try:
            client.create_bucket(Bucket=bucket.name, **elsewhere)
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except client.exceptions.BucketAlreadyExists:
            if not has_bucket(client, bucket):
                raise


def connect(bucket: Bucket) -> Any:
    """Return the client of the bucket's server, with the credentials that the environment holds."""
    return make_client(bucket.endpoint, _LIMITS)


# ---------------------------------------------------------------- policies


class Policy(NamedTuple):
    """The policy of a role over one bucket: its name in IAM, and its document."""

    name: str
    document: dict[str, Any]


def read_policy(role: str, bucket: Bucket) -> Policy:
    """Return the policy of a role (one of ROLES) over that bucket."""
    text = (_POLICIES / f"{role}.json").read_text(encoding="utf-8")
    document = json.loads(Template(text).substitute(BUCKET=bucket.name, OBJECTS=bucket.objects))
    return Policy(f"{bucket.objects.replace('/', '-')}-ptp-{role}", document)


def find_policy(bucket: Bucket, policy: Policy) -> bool | None:
    """Return whether IAM holds the policy as it should be; None if it holds none of that name.

    Raises NotKept if the server does not answer such calls.
    """
    iam = make_client(bucket.endpoint, _LIMITS, service="iam")
    with _translated_policies(bucket):
        known = _find_known(iam, policy)
        if known is None:
            return None
        with reading_fields():
            place = {"PolicyArn": known["Arn"], "VersionId": known["DefaultVersionId"]}
        version = iam.get_policy_version(**place)
        with reading_fields():
            return bool(_plain(version["PolicyVersion"]["Document"]) == _plain(policy.document))


def make_policy(bucket: Bucket, policy: Policy) -> None:
    """Create the policy, or make its document the one in force; raises NotKept if the server does not let us."""
    iam, document = make_client(bucket.endpoint, _LIMITS, service="iam"), json.dumps(policy.document)
    with _translated_policies(bucket):
        known = _find_known(iam, policy)
        if known is None:
            iam.create_policy(PolicyName=policy.name, PolicyDocument=document)
        else:
            iam.create_policy_version(PolicyArn=known["Arn"], PolicyDocument=document, SetAsDefault=True)


def _find_known(iam: Any, policy: Policy) -> dict[str, Any] | None:
    pages = iam.get_paginator("list_policies").paginate(Scope="Local")
    for number, page in enumerate(pages):
        with reading_fields():
            known: list[dict[str, Any]] = [one for one in page["Policies"] if one["PolicyName"] == policy.name]
        if known:
            return known[0]
        if number == _MAX_PAGES:
            raise Strange("a list that does not end")
    return None


def _plain(document: Any) -> Any:
    """Return the document as servers give it back: a list of one is that one, and the order of a list says nothing."""
    if isinstance(document, dict):
        return {name: _plain(value) for name, value in document.items()}
    if isinstance(document, list):
        parts = sorted((_plain(part) for part in document), key=lambda part: json.dumps(part, sort_keys=True))
        return parts[0] if len(parts) == 1 else parts
    return document


# ---------------------------------------------------------------- errors


@contextmanager
def _translated(bucket: Bucket, doing: str) -> Iterator[None]:
    """Raise boto's errors as one sentence: what is refused is Terminal, a server that does not answer Transient."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _translate(bucket, doing, read_fault(error)) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise SettingsError(f"{bucket.where} needs an identity: set {KEYS} ({error})") from error
    except boto.ParamValidationError as error:
        raise SettingsError(f"PTP_STORE: {bucket.name!r} is no name of a bucket; rename it") from error
    except (boto.BotoCoreError, *MALFORMED) as error:
        raise explain_failure(error, bucket.where, "PTP_S3_ENDPOINT", "is it up?") from error


def _translate(bucket: Bucket, doing: str, fault: Fault) -> ServiceUnavailable | SettingsError:
    common = explain_fault(fault, bucket.where, f"{doing} the bucket {bucket.name}", KEYS)
    if common is not None:
        return common
    hint = (
        "the name is somebody else's: choose another for PTP_STORE"
        if fault.meaning == "changed"
        else "give it the right s3:ListBucket on it, and s3:CreateBucket if it has to be made, or name another "
        f"identity by {KEYS}"
    )
    return SettingsError(
        f"{bucket.where}: this identity may not {doing} the bucket {bucket.name} ({fault.status} {fault.code}); {hint}"
    )


@contextmanager
def _translated_policies(bucket: Bucket) -> Iterator[None]:
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    try:
        yield
    except boto.ClientError as error:
        told = error.response.get("Error", {})  # which IAM's parser leaves out of an answer of S3's form
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        reason = shorten(" ".join(str(told.get("Message") or told.get("Code") or status).split()), 200)[1:-1]
        raise NotKept(
            f"{bucket.where} takes no policy by IAM ({reason}); give the roles theirs as deploy/s3/README.md says"
        ) from error
    except (ResponseParserError, *MALFORMED) as error:
        if is_ours(error):
            raise
        raise NotKept(
            f"{bucket.where} does not answer IAM's calls; give the roles their policies as deploy/s3/README.md says"
        ) from error
    except boto.BotoCoreError as error:
        raise ServiceUnavailable(f"IAM of {bucket.where} does not answer ({type(error).__name__})") from error
