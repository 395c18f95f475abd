"""The files of deploy/ by the schemas of who reads them, and what they promise of users, files, limits and secrets."""

import hashlib
import itertools
import json
import re
import shlex
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings.models.server.events import ServerEventsSettings
from prefect.utilities.templating import apply_values

from flows.server.automations import SILENT_SECONDS
from flows.server.bootstrap import read_template
from tests.deploy.manifests import (
    CHECKOUT,
    DEPLOY,
    build,
    compose_errors,
    containers,
    kubernetes_errors,
    pod_of,
    read_compose,
    template_of,
)

KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = ("base", "gpu", "jobs")
COMPOSE = read_compose()
DOCKERFILE = (DEPLOY / "images" / "Dockerfile").read_text()
SCRIPTS = ("make-secrets", "images/entrypoint", "images/s3", "kubernetes/base/databases.sh")


@pytest.fixture(scope="module")
def built() -> dict[str, list[dict[str, Any]]]:
    return {folder: build(KUBERNETES / folder) for folder in FOLDERS}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets as deploy/make-secrets makes them."""
    folder = tmp_path_factory.mktemp("secrets") / "made"
    subprocess.run([DEPLOY / "make-secrets", folder], check=True)
    return folder


def pods(built: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All objects that make pods, and the Job that a worker makes of a flow run."""
    return [one for folder in built.values() for one in folder if pod_of(one)] + [job_of_a_run()]


def job_of_a_run(**variables: Any) -> dict[str, Any]:
    """The Job of a flow run: the pool's template, filled in by Prefect's own function as a worker does."""
    template = read_template("kubernetes")
    defaults = {name: one["default"] for name, one in template["variables"]["properties"].items() if "default" in one}
    filled = apply_values(template["job_configuration"], {"env": {}, **defaults, **variables})
    manifest: dict[str, Any] = filled["job_manifest"]
    manifest["metadata"]["generateName"] = "run-"
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = ["prefect", "flow-run", "execute"]
    return manifest


# ---------------------------------------------------------------- schemas


def test_compose_is_what_the_specification_allows() -> None:
    assert compose_errors(COMPOSE) == []
    assert compose_errors({**COMPOSE, "services": {"s3": {"imagee": "x"}}}) != []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_what_kubernetes_allows(built: dict[str, list[dict[str, Any]]], folder: str) -> None:
    assert len(built[folder]) > 12
    assert {one["metadata"]["name"]: kubernetes_errors(one) for one in built[folder] if kubernetes_errors(one)} == {}


def test_the_schema_of_kubernetes_can_refuse(built: dict[str, list[dict[str, Any]]]) -> None:
    wrong = json.loads(json.dumps(next(one for one in built["base"] if one["kind"] == "Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFileSystem"] = True
    assert kubernetes_errors(wrong) != []


def test_the_job_of_a_run_is_what_kubernetes_allows_with_and_without_gpus() -> None:
    plain, big = job_of_a_run(), job_of_a_run(gpus=2, queue="ptp", node_selector={"zone": "a"}, priority_class="night")
    assert (kubernetes_errors(plain), kubernetes_errors(big)) == ([], [])
    assert containers(plain)[0]["name"] == "prefect-job"  # prefect-kubernetes takes no other
    assert "kueue.x-k8s.io/queue-name" not in json.dumps(plain)
    assert big["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ptp"
    assert containers(big)[0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert (pod_of(big)["nodeSelector"], pod_of(big)["priorityClassName"]) == ({"zone": "a"}, "night")


def test_nothing_is_named_that_is_not_there(built: dict[str, list[dict[str, Any]]], secrets: Path) -> None:
    """Secrets, ConfigMaps, accounts, volumes and the ports of probes are names, which no schema follows."""
    keys = {"ptp": {path.name for path in secrets.iterdir()}, "ptp-worker": set()}
    for folder, objects in built.items():
        known = {(one["kind"], one["metadata"]["name"]) for one in objects} | {("ConfigMap", "ptp-tasks")}
        for one in [*(one for one in objects if pod_of(one)), *([job_of_a_run()] if folder == "jobs" else [])]:
            text = json.dumps(one)
            for name, key in re.findall(r'"secretKeyRef": {"name": "([^"]+)", "key": "([^"]+)"}', text):
                assert key in keys[name], (folder, key)
            assert set(re.findall(r'"secretRef": {"name": "([^"]+)"', text)) <= set(keys)
            assert {
                ("ConfigMap", name) for name in re.findall(r'"configMap(?:Ref)?": {"name": "([^"]+)"', text)
            } <= known
            account = pod_of(one).get("serviceAccountName")
            assert account is None or ("ServiceAccount", account) in known
            for container in containers(one):
                ports = {port["name"] for port in container.get("ports", [])}
                probes = [value["httpGet"]["port"] for name, value in container.items() if "httpGet" in str(value)]
                assert set(probes) <= ports
                mounts, volumes = container["volumeMounts"], pod_of(one).get("volumes", [])
                claims = one["spec"].get("volumeClaimTemplates", [])
                there = {volume["name"] for volume in volumes} | {claim["metadata"]["name"] for claim in claims}
                assert {mount["name"] for mount in mounts} <= there


# ---------------------------------------------------------------- who may do what


def test_every_pod_is_unprivileged_and_bounded(built: dict[str, list[dict[str, Any]]]) -> None:
    assert len(pods(built)) > 12
    for one in pods(built):
        pod, name = pod_of(one), one["metadata"].get("name")
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), name
        assert context["runAsUser"] >= 999
        assert pod.get("automountServiceAccountToken") is False or pod["serviceAccountName"] == "ptp-job-maker"
        for container in containers(one):
            own = container["securityContext"]
            assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False), name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert container["image"] in ("ptpipeline:0.1.0", "ptpipeline:0.1.0-cuda", "postgres:17.6-bookworm")


def test_every_server_and_worker_is_probed(built: dict[str, list[dict[str, Any]]]) -> None:
    for one in itertools.chain(*built.values()):
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert {"startupProbe", "livenessProbe"} <= set(containers(one)[0]), one["metadata"]["name"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_may_talk_to_what_it_needs_and_nothing_else(
    built: dict[str, list[dict[str, Any]]], folder: str
) -> None:
    policies = [one["spec"] for one in built[folder] if one["kind"] == "NetworkPolicy"]
    runs = [job_of_a_run()] if folder == "jobs" else []
    pods = [template_of(one)["metadata"]["labels"] for one in [*built[folder], *runs] if pod_of(one)]
    reached = {
        (name_pod(sender), name_pod(receiver))
        for sender in pods
        for receiver in pods
        if allows(policies, "Egress", sender, receiver) and allows(policies, "Ingress", receiver, sender)
    }
    servers = {"postgres", "s3", "prefect", "mlflow"}
    assert reached == {
        *itertools.product(("worker", "bootstrap"), servers),
        ("prefect", "postgres"),
        ("mlflow", "postgres"),
        ("mlflow", "s3"),
        ("server", "s3"),
        ("alarm", "postgres"),
        *([("job-maker", "prefect")] if folder == "jobs" else []),
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_reached_at_every_address(built: dict[str, list[dict[str, Any]]], folder: str) -> None:
    """A rule without a receiver allows its ports everywhere: also another's name server, and a cloud's metadata."""
    for policy in (one for one in built[folder] if one["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule.get("to"), policy["metadata"]["name"]
            for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
                assert block["cidr"] != "0.0.0.0/0" or block["except"] == ["169.254.0.0/16"], policy["metadata"]["name"]


def name_pod(labels: dict[str, str]) -> str:
    return "job-maker" if labels.get("ptpipeline/kind") == "job-maker" else labels["ptpipeline/role"]


def allows(policies: list[dict[str, Any]], way: str, pod: dict[str, str], other: dict[str, str]) -> bool:
    """Whether the policies let a pod send to (Egress), or take from (Ingress), another; both by their labels."""
    rules, peers = (way.lower(), "to" if way == "Egress" else "from")
    return any(
        "podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], other)
        for policy in policies
        if way in policy["policyTypes"] and selects(policy["podSelector"], pod)
        for rule in policy.get(rules, [])
        for peer in rule.get(peers, [])
    )


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    return all(
        (labels.get(one["key"]) in one["values"]) == (one["operator"] == "In")
        for one in selector.get("matchExpressions", [])
    )


def test_the_server_of_prompts_meets_the_object_store_alone_in_compose_too() -> None:
    """It is the one that everybody may ask."""
    networks = {name: set(service["networks"]) for name, service in COMPOSE["services"].items()}
    met = {name for name, others in networks.items() if name != "server" and others & networks["server"]}
    assert met == {"s3"}
    assert all(COMPOSE["networks"][name] == {"internal": True} for name in networks["s3"] | networks["postgres"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_password_is_an_argument_of_a_command(name: str) -> None:
    """Every user of the machine reads the arguments of a running process."""
    assert not re.search(r"-\S*\s*password=", (DEPLOY / name).read_text())


def test_every_service_of_compose_is_unprivileged_and_bounded() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["user"] in ("10001:10001", "999:999"), name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"memory"}, name  # a machine may have one processor
        assert (service.get("cpu_shares", 1024) < 1024) == name.startswith("trainer"), name
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "healthcheck" in service or name.startswith(("worker", "trainer", "bootstrap", "alarm"))


def test_no_two_workers_share_a_home(built: dict[str, list[dict[str, Any]]]) -> None:
    """All that they share are object store and databases; each may be started several times."""
    named = {name: set(service.get("volumes", [])) for name, service in COMPOSE["services"].items()}
    for name in ("worker", "trainer", "trainer-gpu"):
        assert named[name] == {"../tasks:/project/tasks:ro", "/var/lib/ptp"}, name  # the second of each container
    kept = [volume.partition(":")[0] for volumes in named.values() for volume in volumes if ":" in volume]
    assert {volume for volume in kept if kept.count(volume) > 1} == {"../tasks"}
    homes = [volume for one in pods(built) for volume in pod_of(one).get("volumes", []) if volume["name"] == "home"]
    assert len([home for home in homes if "emptyDir" in home]) > 8
    assert {home["persistentVolumeClaim"]["claimName"] for home in homes if "emptyDir" not in home} == {"prefect"}


def test_the_page_tells_how_often_prefect_asks_by_default_and_how_often_it_has_to() -> None:
    page = (CHECKOUT / "docs" / "deploy.md").read_text()
    default = ServerEventsSettings.model_fields["proactive_granularity"].default
    set_ = COMPOSE["services"]["prefect"]["environment"]["PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY"]
    assert f"It asks every {default.seconds} s whether a worker has been silent for {SILENT_SECONDS} s" in page
    assert f"PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY={set_}`" in page
    assert SILENT_SECONDS + int(set_.strip("PTS")) < 120  # seconds, in which a dead worker is noticed


# ---------------------------------------------------------------- secrets


def test_secrets_are_made_once_and_only_their_owner_enters(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    subprocess.run([DEPLOY / "make-secrets", secrets], check=True)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    values = [body for name, body in before.items() if name.startswith(("database", "s3", "mlflow"))]
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 40


def test_every_secret_that_a_file_names_is_made(secrets: Path) -> None:
    made = {path.name for path in secrets.iterdir()}
    assert set(COMPOSE["secrets"]) == made - {"worker.env", "serve_token"}
    for name, service in COMPOSE["services"].items():
        told = [*service.get("environment", {}).values(), *service.get("command", [])]
        used = {value.rpartition("/")[2] for value in told if "/run/secrets/" in value}
        given = set(service.get("secrets", []))
        assert used <= given, name
        assert given - used <= {"database_prefect", "database_mlflow", "database_ledger"}, name


def test_the_token_that_is_made_opens_the_server(secrets: Path) -> None:
    token = (secrets / "serve_token").read_text()
    (hashed,) = json.loads((secrets / "serve_tokens").read_text())["tokens"]
    assert hashed == {"name": "first", "sha256": hashlib.sha256(token.encode()).hexdigest()}


def test_a_server_that_ends_has_time_for_its_answers(built: dict[str, list[dict[str, Any]]]) -> None:
    """`ptp serve` takes requests for `--drain` seconds after SIGTERM, and gives its answers 60 s more."""
    server = next(one for one in built["base"] if (one["kind"], one["metadata"]["name"]) == ("Deployment", "server"))
    command = containers(server)[0]["args"]
    assert pod_of(server)["terminationGracePeriodSeconds"] > int(command[command.index("--drain") + 1]) + 60
    assert int(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s")) > 5 + 60


def test_the_server_is_scaled_by_what_waits_and_kept_while_nodes_are_drained(
    built: dict[str, list[dict[str, Any]]],
) -> None:
    found = {one["kind"]: one["spec"] for one in built["base"] if one["metadata"]["name"] == "server"}
    assert "replicas" not in found["Deployment"]  # to apply the manifests again would undo what the autoscaler did
    scaler = found["HorizontalPodAutoscaler"]
    assert (scaler["scaleTargetRef"]["name"], scaler["minReplicas"] >= 2) == ("server", True)
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == "ptp_serve_waiting"
    assert found["PodDisruptionBudget"]["maxUnavailable"] < scaler["minReplicas"]
    assert found["Deployment"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert found["Service"]["selector"] == found["Deployment"]["selector"]["matchLabels"]


def test_no_secret_stands_in_a_file(built: dict[str, list[dict[str, Any]]]) -> None:
    word = re.compile(r"password|secret|auth_string|credential", re.IGNORECASE)
    for one in pods(built):
        for container in containers(one):
            for variable in container.get("env", []):
                value = variable.get("value", "")
                named = word.search(variable["name"]) and not variable["name"].endswith(
                    ("_FILE", "_NAME", "_KEY", "USERNAME")
                )
                assert not (named and value), variable["name"]
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not word.search(name) or value.startswith("/run/secrets/") or name.endswith("USERNAME"), name


def test_the_worker_gets_the_same_in_compose_and_in_kubernetes(secrets: Path) -> None:
    compose = COMPOSE["services"]["worker"]["environment"]
    environment = dict(line.split("=", 1) for line in (secrets / "worker.env").read_text().splitlines())
    addresses = next(one["data"] for one in build(KUBERNETES / "base") if one["metadata"]["name"] == "ptp-addresses")
    expected = {
        name.removesuffix("_FILE"): (secrets / value.rpartition("/")[2]).read_text()
        if name.endswith("_FILE")
        else value
        for name, value in compose.items()
        if not name.startswith("PREFECT_WORKER")
    }
    assert environment | addresses == expected


# ---------------------------------------------------------------- images


def test_the_image_is_pinned_and_has_no_build_tools() -> None:
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:3.11.14-slim-bookworm"}
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert not re.search(r"apt-get|pip .*install|gcc|build-essential", last)
    installs = re.findall(r"pip --python \S+ install (.*)", DOCKERFILE)
    assert [line for line in installs if "--require-hashes --no-deps" not in line] == ["--no-build-isolation . \\"]


def test_every_image_is_built_with_the_index_that_the_builder_names() -> None:
    """Compose gives a build no variable that it is not told to."""
    builds = {name: service["build"] for name, service in COMPOSE["services"].items() if "build" in service}
    assert {name: "PIP_EXTRA_INDEX_URL" in build["args"] for name, build in builds.items()} == dict.fromkeys(
        builds, True
    )
    assert re.search(r"^ARG PIP_EXTRA_INDEX_URL=$", DOCKERFILE, re.MULTILINE)


def test_the_image_leaves_out_what_only_tests_need() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    removed = set(shlex.split(DOCKERFILE.partition("uninstall --yes")[2].partition("\n\n")[0].replace("\\\n", " ")))
    assert removed == {*project["dev"]} - {*project["servers"], *project["large"]}


def test_all_that_is_copied_into_the_image_is_there() -> None:
    kept = (DEPLOY / "images" / "Dockerfile.dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _target = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert list(CHECKOUT.glob(source)), source
            assert any(source.startswith(one.removeprefix("!").split("*")[0]) for one in kept.split() if one[0] == "!")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_plain_shell_that_can_be_run(name: str) -> None:
    path = DEPLOY / name
    assert path.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0


def test_the_entrypoint_takes_secrets_from_files_and_nothing_else(tmp_path: Path) -> None:
    """Variables of other programs that name files stay what they are."""
    other = {"SSL_CERT_FILE": "/etc/ssl/cert.pem", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [DEPLOY / "images" / "entrypoint", "env"], env=other, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shown = dict(line.split("=", 1) for line in ran.stdout.splitlines())
    assert (shown["SSL_CERT_FILE"], shown["PWD"], "SSL_CERT" in shown) == ("/etc/ssl/cert.pem", str(tmp_path), False)
    gone = {**other, "TOKEN_FILE": "/run/secrets/none-of-that-name"}
    assert subprocess.run(
        [DEPLOY / "images" / "entrypoint", "env"], env=gone, capture_output=True, check=False
    ).returncode


def test_kueues_example_names_what_the_manifests_have() -> None:
    flavor, cluster, local = yaml.safe_load_all((KUBERNETES / "jobs" / "kueue.yaml").read_text())
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    assert cluster["spec"]["resourceGroups"][0]["flavors"][0]["name"] == flavor["metadata"]["name"]
    assert local["metadata"]["namespace"] == "ptpipeline"
