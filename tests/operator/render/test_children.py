"""What is rendered for a service, against golden files and the rules that every pod must keep."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graft_operator.constants import TEMPLATE_NEWEST, TEMPLATE_OLDEST
from graft_operator.plan.accept import AcceptContext, SecretFacts, accept_adapters
from graft_operator.plan.desired import desired_shards
from graft_operator.render.common import NAME_MAX, child_name, label_value
from graft_operator.render.configmaps import config_hash, config_text
from graft_operator.render.deployment import deployment as render_deployment
from graft_operator.render.family import Ingredients, optional_children
from graft_operator.render.family import children as family
from graft_operator.render.scaling import autoscaler, disruption_budget
from graft_operator.render.secrets import read_token, token_secret
from graft_operator.resources.admission import parse
from graft_operator.resources.credentials import credential_key, parse_credential, with_plain_data
from graft_operator.resources.meta import Manifest
from graft_operator.resources.pin import TemplatePin, read_pin
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import parse_shard
from tests.support.kube_schema import problems
from tests.support.objects import make_pod, make_service
from tests.support.objects import service_manifest as service_document

DATA = Path(__file__).parents[2] / "data/render"
CASES = sorted(path.name for path in DATA.iterdir())
OF_OTHERS = {"PodMonitor", "InferencePool"}
REVISIONS = range(TEMPLATE_OLDEST, TEMPLATE_NEWEST + 1)


def pin(revision: int = TEMPLATE_NEWEST) -> TemplatePin:
    return TemplatePin(revision, "graft-runtime:test")


def children(documents: list[Manifest], revision: int = TEMPLATE_NEWEST) -> list[Manifest]:
    """Render what the documents ask for, as the reconcile does."""
    service = next(parse(InferenceService, d) for d in documents if d["kind"] == "InferenceService")
    adapters = [parse(LoraAdapter, d) for d in documents if d["kind"] == "LoraAdapter"]
    credentials = {
        (d["metadata"]["namespace"], d["metadata"]["name"]): parse_credential(with_plain_data(d))
        for d in documents
        if d["kind"] == "Secret"
    }
    facts = {name: SecretFacts(value.endpoint) for name, value in credentials.items()}
    verdicts = accept_adapters(service, adapters, AcceptContext(facts))
    assert all(verdict.is_accepted for verdict in verdicts.values())
    pods = [make_pod(name=f"pod-{index}") for index in range(service.spec.replicas)]
    keyed = {credential_key(*name): value for name, value in credentials.items()}
    ingredients = Ingredients(
        credentials=keyed,
        token="the-token",
        shards=desired_shards(adapters, verdicts, pods),
        pin=pin(revision),
        replicas=service.spec.replicas,
        operator_namespace="graft",
    )
    optional = optional_children(service).values()
    return [*family(service, ingredients), *(item for item in optional if item is not None)]


def deployment(service: InferenceService, given: TemplatePin) -> Manifest:
    return render_deployment(service, given, service.spec.replicas)


def deployed(manifests: list[Manifest]) -> Manifest:
    (found,) = [item for item in manifests if item["kind"] == "Deployment"]
    return found


def rendered(case: str, revision: int = TEMPLATE_NEWEST) -> list[Manifest]:
    documents = list(yaml.safe_load_all((DATA / case / "input.yaml").read_text()))
    return children(documents, revision)


@pytest.mark.parametrize("case", CASES)
def test_children_are_those_of_the_golden_file(case: str, update_golden: bool) -> None:
    path = DATA / case / "expected.yaml"
    if update_golden:
        path.write_text(yaml.safe_dump_all(rendered(case), sort_keys=False, width=100))
    assert rendered(case) == list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_revision_that_pods_may_have_is_still_rendered_as_it_was(
    case: str, revision: int, update_golden: bool
) -> None:
    """A difference here means that the next operator would replace every running pod."""
    path = DATA / case / f"template-{revision}.yaml"
    parts = [
        item
        for item in rendered(case, revision)
        if item["kind"] == "Deployment" or "runtime.yaml" in (item.get("data") or {})
    ]
    if update_golden:
        path.write_text(yaml.safe_dump_all(parts, sort_keys=False, width=100))
    assert parts == list(yaml.safe_load_all(path.read_text()))


def test_the_last_three_revisions_are_rendered_and_differ() -> None:
    assert len(REVISIONS) == 3
    templates = [
        deployed(rendered("minimal", revision))["spec"]["template"] for revision in REVISIONS
    ]
    assert all(one["spec"] != other["spec"] for one, other in pairwise(templates))
    with_config = [config_text(make_service(), revision) for revision in REVISIONS]
    assert with_config[0] != with_config[1]


def test_the_note_on_a_deployment_is_read_back() -> None:
    for revision in REVISIONS:
        assert read_pin(deployment(make_service(), pin(revision)), "other") == pin(revision)
    assert read_pin(None, "other") is None


def test_a_deployment_without_the_note_has_the_image_that_its_pods_have() -> None:
    """As operators before the note left them."""
    stored = deployment(make_service(), pin(1))
    del stored["metadata"]["annotations"]
    assert read_pin(stored, "other") == pin(1)


@pytest.mark.parametrize("case", CASES)
def test_everything_a_pod_mounts_is_rendered_before_the_deployment(case: str) -> None:
    manifests = rendered(case)
    number = manifests.index(deployed(manifests))
    made = {(item["kind"], item["metadata"]["name"]) for item in manifests[:number]}
    mounted: set[tuple[str, str]] = set()
    for volume in manifests[number]["spec"]["template"]["spec"]["volumes"]:
        for source in volume.get("projected", {"sources": [volume]})["sources"]:
            if "configMap" in source:
                mounted.add(("ConfigMap", source["configMap"]["name"]))
                assert "optional" not in source["configMap"]
            if "secret" in source:
                secret = source["secret"]
                mounted.add(("Secret", secret.get("name") or secret["secretName"]))
                assert "optional" not in secret
    assert mounted <= made
    assert len(mounted) == 1 + 16 + 8 + 1


@pytest.mark.parametrize("case", CASES)
def test_a_pod_keeps_to_the_restricted_pod_security_standard(case: str) -> None:
    pod = deployed(rendered(case))["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 10_000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container["ports"])
    for volume in pod["volumes"]:
        (kind,) = volume.keys() - {"name"}
        # Of those that the standard allows, the ones in use.
        assert kind in {"configMap", "projected", "secret", "emptyDir", "persistentVolumeClaim"}
        assert kind != "emptyDir" or "sizeLimit" in volume["emptyDir"]


@pytest.mark.parametrize("case", CASES)
def test_a_pod_has_left_its_service_when_it_is_told_to_stop(case: str) -> None:
    pod = deployed(rendered(case))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    # What the hook takes must not be missing when running requests are to end.
    (config,) = [
        item["data"]["runtime.yaml"]
        for item in rendered(case)
        if "runtime.yaml" in (item.get("data") or {})
    ]
    drain = RuntimeConfig.model_validate(yaml.safe_load(config)).server.drain_timeout_seconds
    assert drain + int(seconds) + 5 <= pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("case", CASES)
def test_children_belong_to_their_service_and_nowhere_carry_a_secret_in_the_open(case: str) -> None:
    for item in rendered(case):
        (owner,) = item["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["controller"]) == ("InferenceService", True)
        if item["kind"] != "Secret":
            assert "the-token" not in str(item)
            assert "secretAccessKey" not in str(item)


@pytest.mark.parametrize("case", CASES)
def test_the_runtime_can_read_what_it_is_told(case: str) -> None:
    for item in rendered(case):
        for name, text in (item.get("data") or {}).items():
            if name == "runtime.yaml":
                RuntimeConfig.model_validate(yaml.safe_load(text))
            if name.startswith("shard-"):
                parse_shard(text)


def test_an_adapter_never_changes_the_pod_template() -> None:
    documents = list(yaml.safe_load_all((DATA / "full/input.yaml").read_text()))
    bare = [item for item in documents if item["kind"] != "LoraAdapter"]
    assert deployed(children(bare)) == deployed(children(documents))


def test_a_changed_engine_setting_is_another_configuration() -> None:
    one, other = make_service(), make_service(engine={"threads": 2})
    assert config_hash(one, 1) != config_hash(other, 1)
    assert deployment(one, pin()) != deployment(other, pin())


def test_what_the_spec_leaves_out_the_runtime_decides() -> None:
    text = config_text(make_service(), TEMPLATE_NEWEST)
    assert "engine" not in yaml.safe_load(text) or not yaml.safe_load(text)["engine"]
    assert "blockSize" not in text


def test_more_replicas_are_no_other_configuration() -> None:
    assert config_hash(make_service(replicas=1), 1) == config_hash(make_service(replicas=5), 1)


def test_the_token_is_read_back() -> None:
    assert read_token(token_secret(make_service(), "abc")) == "abc"
    assert read_token({"kind": "Secret", "metadata": {}}) is None


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", fullmatch=True)


@given(st.lists(NAMES, unique=True, max_size=20))
def test_names_of_children_fit_and_do_not_collide(names: list[str]) -> None:
    values = [label_value(name) for name in names]
    assert len(set(values)) == len(names)
    for name in names:
        full = child_name(make_service(name), "runtime-0123456789")
        assert len(full) <= NAME_MAX
        assert full[0].isalpha()
        assert "." not in full


def test_a_limit_on_cpu_is_the_number_of_threads_unless_the_spec_says_otherwise() -> None:
    def threads(**spec: Any) -> Any:
        text = config_text(make_service(**spec), TEMPLATE_NEWEST)
        return (yaml.safe_load(text).get("engine") or {}).get("threads")

    assert threads() is None
    assert threads(resources={"limits": {"cpu": "3500m"}}) == 3
    assert threads(resources={"limits": {"cpu": "250m"}}) == 1
    assert threads(resources={"limits": {"cpu": 8}}, engine={"threads": 2}) == 2


def test_what_a_spec_does_not_ask_for_is_not_made() -> None:
    kinds = {item["kind"] for item in rendered("minimal")}
    assert kinds == {
        "ConfigMap",
        "Deployment",
        "PodDisruptionBudget",
        "Secret",
        "Service",
    }
    quiet = make_service(disruptionBudget={"enabled": False})
    assert disruption_budget(quiet) is None


def test_pods_are_taken_away_after_minutes_of_less_load_unless_the_spec_says_else() -> None:
    def behavior(**spec: int) -> Any:
        wanted = {"maxReplicas": 2, "targetRequests": 4, **spec}
        made = autoscaler(make_service(autoscaling=wanted))
        return None if made is None else made["spec"]["behavior"]

    assert behavior() == {"scaleDown": {"stabilizationWindowSeconds": 300}}
    assert behavior(scaleDownSeconds=0, scaleUpSeconds=60) == {
        "scaleDown": {"stabilizationWindowSeconds": 0},
        "scaleUp": {"stabilizationWindowSeconds": 60},
    }


def test_every_child_is_one_that_an_api_server_knows() -> None:
    known = [item for item in rendered("surroundings") if item["kind"] not in OF_OTHERS]
    assert [problem for item in known for problem in problems(item)] == []


def test_clients_of_other_namespaces_are_let_in_by_label_alone() -> None:
    (policy,) = [item for item in rendered("surroundings") if item["kind"] == "NetworkPolicy"]
    public, internal = policy["spec"]["ingress"]
    allowed = [item["namespaceSelector"]["matchLabels"] for item in public["from"]]
    assert allowed == [{"kubernetes.io/metadata.name": "team-a"}, {"gateway": "yes"}]
    (operator,) = internal["from"]
    assert operator["namespaceSelector"] == {
        "matchLabels": {"kubernetes.io/metadata.name": "graft"}
    }
    (anyone,) = [
        item
        for item in children([service_document(networkPolicy={"enabled": True})])
        if item["kind"] == "NetworkPolicy"
    ]
    assert "from" not in anyone["spec"]["ingress"][0]
