"""The files of deploy/ as Docker Compose and kustomize read them, as far as they use these programs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"
SCHEMAS = Path(__file__).with_name("schemas")
ROOMS = {
    "v1": "core.v1",
    "apps/v1": "apps.v1",
    "batch/v1": "batch.v1",
    "policy/v1": "policy.v1",
    "autoscaling/v2": "autoscaling.v2",
    "networking.k8s.io/v1": "networking.v1",
    "rbac.authorization.k8s.io/v1": "rbac.v1",
}


def read_compose() -> dict[str, Any]:
    """The compose file, with its anchors and merges resolved."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


def build(folder: Path) -> list[dict[str, Any]]:
    """All objects of a kustomization: its resources, generated ConfigMaps, labels, images and patches applied."""
    recipe = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects = [found for name in recipe["resources"] for found in _read(folder / name)]
    for one in recipe.get("configMapGenerator", []):
        data = dict(pair.split("=", 1) for pair in one.get("literals", []))
        data |= {name: (folder / name).read_text() for name in one.get("files", [])}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": one["name"]}, "data": data})
    for patch in recipe.get("patches", []):
        objects = [found for one in objects for found in _patched(one, patch)]
    for one in objects:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = recipe["namespace"]
        for label in recipe.get("labels", []):
            for place in [one, *([one["spec"]["template"]] if "template" in one.get("spec", {}) else [])]:
                place.setdefault("metadata", {}).setdefault("labels", {}).update(label["pairs"])
        for image in recipe.get("images", []):
            for container in containers(one):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        yield from build(path)
    else:  # anchors: kustomize resolves them as well
        yield from (copy.deepcopy(one) for one in yaml.safe_load_all(path.read_text()))


def _patched(one: dict[str, Any], patch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    target = patch["target"]
    if (one["kind"], one["metadata"]["name"]) != (target["kind"], target["name"]):
        yield one
        return
    change = yaml.safe_load(patch["patch"])
    if isinstance(change, dict):
        assert change["$patch"] == "delete", "another strategic merge than a deletion is not read here"
        return
    for step in change:
        assert step["op"] == "replace"
        *path, last = [int(part) if part.isdigit() else part for part in step["path"].strip("/").split("/")]
        place = one
        for part in path:
            place = place[part]
        place[last] = step["value"]
    yield one


def containers(one: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of an object that makes pods; none of another."""
    found: list[dict[str, Any]] = pod_of(one).get("containers", [])
    return found


def pod_of(one: dict[str, Any]) -> dict[str, Any]:
    """What an object says of its pods."""
    found: dict[str, Any] = template_of(one).get("spec", {})
    return found


def template_of(one: dict[str, Any]) -> dict[str, Any]:
    """The template of its pods, empty if it has none."""
    spec = one.get("spec", {})
    found: dict[str, Any] = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
    return found


def compose_errors(document: dict[str, Any]) -> list[str]:
    """What the schema of the compose specification says against it."""
    schema = json.loads((SCHEMAS / "compose.json").read_text())
    return [error.message for error in validator_for(schema)(schema).iter_errors(document)]


def kubernetes_errors(one: dict[str, Any]) -> list[str]:
    """What the schema of Kubernetes says against an object; unknown fields are against it."""
    definitions = json.loads((SCHEMAS / "kubernetes.json").read_text())["$defs"]
    name = f"io.k8s.api.{ROOMS[one['apiVersion']]}.{one['kind']}"
    schema = {"$ref": f"#/$defs/{name}", "$defs": definitions}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(one)]
