"""The manifests: valid by Kubernetes' own schemas, and in step with the programs that they start."""

from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
import tyro
import yaml

from actor_client.config import ActorConfig
from learner_server.__main__ import parse
from learner_server.prometheus import GAUGES

MANIFESTS = Path(__file__).resolve().parent.parent / "deploy" / "kubernetes"
# The oldest version with everything in them, gRPC probes above all, and the newest that the validator knows.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]
Manifest = dict[str, Any]


def load(path: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def base() -> list[Manifest]:
    """Returns the manifests that the base's kustomization lists."""
    [kustomization] = load(MANIFESTS / "base" / "kustomization.yaml")
    return [manifest for name in kustomization["resources"] for manifest in load(MANIFESTS / "base" / name)]


def overlay(name: str) -> list[Manifest]:
    """Returns the base with an overlay's patches, which are RFC 6902's, as `kubectl kustomize` makes it."""
    [kustomization] = load(MANIFESTS / "overlays" / name / "kustomization.yaml")
    assert kustomization["resources"] == ["../../base"]
    manifests = base()
    for patch in kustomization["patches"]:
        operations = yaml.safe_load((MANIFESTS / "overlays" / name / patch["path"]).read_text())
        target = (patch["target"]["kind"], patch["target"]["name"])
        [index] = [number for number, manifest in enumerate(manifests) if key(manifest) == target]
        manifests[index] = jsonpatch.apply_patch(manifests[index], operations)
    return manifests


def key(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


FLAVOURS = {"base": base, "gpu": lambda: overlay("gpu")}


@pytest.fixture(params=FLAVOURS)
def manifests(request: pytest.FixtureRequest) -> dict[tuple[str, str], Manifest]:
    return {key(manifest): manifest for manifest in FLAVOURS[request.param]()}


def pod(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]["template"]["spec"]
    return spec


WORKLOADS = [("StatefulSet", "learner"), ("Deployment", "actor")]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(manifests: dict[tuple[str, str], Manifest], version: str) -> None:
    assert set(WORKLOADS) < manifests.keys()
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_lists_every_file() -> None:
    [kustomization] = load(MANIFESTS / "base" / "kustomization.yaml")
    files = {path.name for path in (MANIFESTS / "base").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files


def test_the_learner_takes_its_arguments(manifests: dict[tuple[str, str], Manifest]) -> None:
    [learner] = pod(manifests["StatefulSet", "learner"])["containers"]
    config = parse(learner["args"])
    assert config.listen == "0.0.0.0:50051"
    assert (config.device == "cuda") == ("nvidia.com/gpu" in learner["resources"]["limits"])


def test_an_actor_takes_its_arguments_and_calls_the_learners_service(manifests: dict[tuple[str, str], Manifest]) -> None:
    [actor] = pod(manifests["Deployment", "actor"])["containers"]
    config = tyro.cli(ActorConfig, args=actor["args"])
    host, _, port = config.learner.partition(":")
    [service_port] = manifests["Service", host]["spec"]["ports"]
    assert service_port["port"] == int(port)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_what_a_command_line_names_is_mounted(manifests: dict[tuple[str, str], Manifest], workload: tuple[str, str]) -> None:
    spec = pod(manifests[workload])
    [container] = spec["containers"]
    claimed = {claim["metadata"]["name"] for claim in manifests[workload]["spec"].get("volumeClaimTemplates", [])}
    volumes = {volume["name"] for volume in spec["volumes"]} | claimed
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == volumes
    paths = [argument.partition("=")[2] for argument in container["args"] if "=/" in argument]
    assert paths
    assert all(str(Path(path).parent) in mounts for path in paths)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_selectors_find_their_pods(manifests: dict[tuple[str, str], Manifest], workload: tuple[str, str]) -> None:
    labels = manifests[workload]["spec"]["template"]["metadata"]["labels"]
    assert manifests[workload]["spec"]["selector"]["matchLabels"] == labels
    for kind, field in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        assert manifests[kind, workload[1]]["spec"][field]["matchLabels"] == labels


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_pod_has_more_rights_than_it_needs(manifests: dict[tuple[str, str], Manifest], workload: tuple[str, str]) -> None:
    spec = pod(manifests[workload])
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_autoscaler_goes_by_a_metric_that_the_learner_has(manifests: dict[tuple[str, str], Manifest]) -> None:
    spec = manifests["HorizontalPodAutoscaler", "actor"]["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "actor"}
    [metric] = [metric["object"] for metric in spec["metrics"]]
    assert metric["metric"]["name"] in {f"impala_{name}" for name in GAUGES}
    assert metric["describedObject"]["name"] == manifests["StatefulSet", "learner"]["metadata"]["name"] + "-0"
    # Who scales says how many: a number in the manifest would come back with every `kubectl apply`.
    assert "replicas" not in manifests["Deployment", "actor"]["spec"]


def test_metrics_are_scraped_where_the_learner_serves_them(manifests: dict[tuple[str, str], Manifest]) -> None:
    template = manifests["StatefulSet", "learner"]["spec"]["template"]
    port = template["metadata"]["annotations"]["prometheus.io/port"]
    [learner] = template["spec"]["containers"]
    assert parse(learner["args"]).metrics == f"0.0.0.0:{port}"
    ingress = manifests["NetworkPolicy", "learner"]["spec"]["ingress"]
    assert int(port) in {each["port"] for rule in ingress for each in rule["ports"]}


def test_an_actors_metrics_are_scraped_where_it_serves_them(manifests: dict[tuple[str, str], Manifest]) -> None:
    template = manifests["Deployment", "actor"]["spec"]["template"]
    port = template["metadata"]["annotations"]["prometheus.io/port"]
    [actor] = template["spec"]["containers"]
    assert tyro.cli(ActorConfig, args=actor["args"]).metrics == f"0.0.0.0:{port}"
    [rule] = manifests["NetworkPolicy", "actor"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": int(port)}]


def test_probes_ask_the_port_that_the_images_serve_health_on(manifests: dict[tuple[str, str], Manifest]) -> None:
    for workload, image in zip(WORKLOADS, ("learner", "actor"), strict=True):
        dockerfile = (MANIFESTS.parent.parent / "docker" / f"{image}.Dockerfile").read_text()
        [container] = pod(manifests[workload])["containers"]
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        assert probes
        assert all(f'"--health", "0.0.0.0:{probe["grpc"]["port"]}"]' in dockerfile for probe in probes)
