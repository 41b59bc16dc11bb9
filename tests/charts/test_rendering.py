"""What an installation makes, rendered by Helm itself: valid, hardened, and no more than asked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.generate import values_of
from graft_operator.constants import MANAGED_BY
from graft_protocol.naming import LABEL_MANAGED_BY
from tests.support.helm import CHART, HelmError, needs_helm, of_kind, run_helm, template
from tests.support.kube_schema import problems

pytestmark = needs_helm
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def deployment(*settings: str) -> dict[str, Any]:
    [found] = of_kind(template(*settings), "Deployment")
    return found


def pod(*settings: str) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(*settings)["spec"]["template"]["spec"]
    return spec


def container(*settings: str) -> dict[str, Any]:
    [found] = pod(*settings)["containers"]
    return dict(found)


def flags(*settings: str) -> list[str]:
    return [str(item) for item in container(*settings)["command"] if item.startswith("--")]


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_every_example_of_values_makes_valid_objects(file: Path) -> None:
    manifests = template(files=[file])
    assert manifests
    known = [item for item in manifests if not item["apiVersion"].startswith("monitoring.")]
    assert [problem for manifest in known for problem in problems(manifest)] == []
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_helm_finds_nothing_to_complain_about(file: Path) -> None:
    assert "0 chart(s) failed" in run_helm("lint", "--strict", str(CHART), f"--values={file}")


def test_every_value_is_read_by_a_template() -> None:
    folder = CHART / "templates"
    texts = "".join(path.read_text() for path in folder.rglob("*.*") if path.parent.name != "crds")
    schema = json.loads((CHART / "values.schema.json").read_text())
    # `resources` is handed on as it is.
    paths = [value.path for value in values_of(schema) if not value.is_section]
    assert {path for path in paths if f".{path[-1]}" not in words(texts)} == {
        ("resources", "requests"),
        ("resources", "limits"),
    }


def words(text: str) -> set[str]:
    return set(re.findall(r"\.\w+", text))


def test_every_object_is_labelled_and_has_a_place() -> None:
    for manifest in template():
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "graft"
        # The operator takes what carries its own mark for its child.
        assert labels[LABEL_MANAGED_BY] != MANAGED_BY
        assert ("namespace" in manifest["metadata"]) != (manifest["kind"] in CLUSTER_WIDE)


def test_one_operator_at_a_time() -> None:
    spec = deployment()["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_labels_of_ones_own_do_not_displace_those_that_select_the_pod() -> None:
    spec = deployment("podLabels.team=platform", r"podLabels.app\.kubernetes\.io/name=other")[
        "spec"
    ]
    labels = spec["template"]["metadata"]["labels"]
    assert labels["team"] == "platform"
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_the_pod_fits_the_restricted_standard() -> None:
    spec, main = pod(), container()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] >= 10_000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])


def test_the_pod_has_bounds_and_is_probed() -> None:
    main = container()
    assert main["resources"]["requests"]["memory"] == main["resources"]["limits"]["memory"]
    probes = {name: main[name]["httpGet"]["path"] for name in main if name.endswith("Probe")}
    assert probes == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }


def test_the_metrics_service_selects_the_pod_and_names_its_port() -> None:
    [service] = of_kind(template(), "Service")
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {port["name"] for port in container()["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert of_kind(template("metrics.service.enabled=false"), "Service") == []


def test_a_digest_wins_over_a_tag_and_no_tag_is_the_charts_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    digest = "sha256:" + 64 * "0"
    assert container()["image"] == f"localhost/graft-operator:{version}"
    assert container("image.tag=dev")["image"] == "localhost/graft-operator:dev"
    both = container("image.tag=dev", f"image.digest={digest}")
    assert both["image"] == f"localhost/graft-operator@{digest}"
    assert f"--runtime-image=localhost/graft-runtime:{version}" in flags()
    assert "--runtime-image=localhost/graft-runtime:dev" in flags("runtime.image.tag=dev")


def test_the_account_is_made_or_named() -> None:
    [account] = of_kind(template(), "ServiceAccount")
    assert pod()["serviceAccountName"] == account["metadata"]["name"] == "graft"
    assert of_kind(template("serviceAccount.create=false"), "ServiceAccount") == []
    assert pod("serviceAccount.create=false")["serviceAccountName"] == "default"


def test_without_a_list_the_releases_own_namespace_is_served() -> None:
    assert "--namespace=graft-system" in flags()
    [role] = of_kind(template(), "Role")
    assert role["metadata"]["namespace"] == "graft-system"


def test_the_operator_may_do_the_same_in_every_namespace_it_serves_and_nothing_elsewhere() -> None:
    manifests = template("serviceNamespaces={a,b}")
    served = [flag for flag in flags("serviceNamespaces={a,b}") if flag.startswith("--namespace")]
    assert served == ["--namespace=a", "--namespace=b"]
    roles, bindings = of_kind(manifests, "Role"), of_kind(manifests, "RoleBinding")
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    assert roles[0]["rules"] == roles[1]["rules"]
    account = {"kind": "ServiceAccount", "name": "graft", "namespace": "graft-system"}
    assert [(b["metadata"]["namespace"], b["subjects"]) for b in bindings] == [
        ("a", [account]),
        ("b", [account]),
    ]


def test_the_only_right_in_the_whole_cluster_is_to_look_at_the_namespaces_by_name() -> None:
    manifests = template("serviceNamespaces={a,b}", "tenantNamespaces={a,t}")
    [role], [binding] = of_kind(manifests, "ClusterRole"), of_kind(manifests, "ClusterRoleBinding")
    right = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
    assert role["rules"] == [{**right, "resourceNames": ["a", "b", "t"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "graft-system.graft-namespaces"
    account = {"kind": "ServiceAccount", "name": "graft", "namespace": "graft-system"}
    assert binding["subjects"] == [account]


def test_a_tenants_namespace_is_opened_for_its_adapters_alone() -> None:
    settings = ("serviceNamespaces={a}", "tenantNamespaces={a,t}")
    assert [flag for flag in flags(*settings) if "namespace" in flag] == [
        "--operator-namespace=graft-system",
        "--namespace=a",
        "--tenant-namespace=t",
    ]
    roles = {role["metadata"]["namespace"]: role for role in of_kind(template(*settings), "Role")}
    assert set(roles) == {"a", "t"}
    rights = {
        (resource, *rule["verbs"]) for rule in roles["t"]["rules"] for resource in rule["resources"]
    }
    assert rights == {
        ("loraadapters", "list", "watch"),
        ("loraadapters/status", "patch"),
        ("events", "create"),
        # Of a Role this opens the namespace itself, and no other.
        ("namespaces", "get"),
    }


def test_the_whole_cluster_is_served_only_when_asked_for() -> None:
    manifests = template("clusterWide=true")
    assert [flag for flag in flags("clusterWide=true") if flag.startswith("--namespace")] == []
    assert len(of_kind(manifests, "ClusterRole")) == len(of_kind(manifests, "ClusterRoleBinding"))
    [role] = of_kind(manifests, "ClusterRole")
    assert role["rules"] == of_kind(template(), "Role")[0]["rules"]
    assert of_kind(manifests, "Role") == []


def test_roles_for_people_are_made_only_when_asked_for_and_never_touch_a_status() -> None:
    roles = {
        role["metadata"]["name"]: role
        for role in of_kind(template("userRoles.enabled=true", "clusterWide=true"), "ClusterRole")
        if role["metadata"]["name"] != "graft-operator"
    }
    assert set(roles) == {"graft-system.graft-edit", "graft-system.graft-view"}
    for rule in roles["graft-system.graft-edit"]["rules"]:
        assert not [resource for resource in rule["resources"] if "status" in resource]
    for rule in roles["graft-system.graft-view"]["rules"]:
        assert set(rule["verbs"]) <= {"get", "list", "watch"}


def test_releases_side_by_side_share_no_object_but_the_crds() -> None:
    def names(release: str, namespace: str) -> set[tuple[str, ...]]:
        settings = ("userRoles.enabled=true", "tenantNamespaces={t}")
        made = template(*settings, release=release, namespace=namespace)
        return {
            (m["kind"], m["metadata"].get("namespace", ""), m["metadata"]["name"])
            for m in made
            if m["kind"] != "CustomResourceDefinition"
        }

    assert names("graft", "one") & names("graft", "two") == set()


def test_crds_are_kept_when_a_release_goes_and_can_be_left_out() -> None:
    crds = of_kind(template(), "CustomResourceDefinition")
    assert len(crds) == 2
    for crd in crds:
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(template("crds.enabled=false"), "CustomResourceDefinition") == []


def test_long_names_of_releases_stay_within_what_a_label_takes() -> None:
    for release in ("x" * 53, "graft-" + "x" * 47):
        for manifest in template(release=release):
            if manifest["kind"] not in CLUSTER_WIDE:
                assert len(manifest["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("replicas=2", "replicas"),
        ("image.repo=x", "repo"),
        ("image.repository=a b", "repository"),
        ("image.repository=a:tag", "repository"),
        ("image.digest=abc", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("serviceNamespaces=a", "serviceNamespaces"),
        ("serviceNamespaces={a,a}", "serviceNamespaces"),
        ("serviceNamespaces={Not_A_Name}", "serviceNamespaces"),
        ("clusterWide=maybe", "clusterWide"),
        ("crds.keep=false", "keep"),
        ("resources.limits.memory=true", "memory"),
        ("metrics.port=1", "port"),
        ("env[0].value=x", "name"),
    ],
)
def test_a_value_that_is_unknown_or_of_another_type_is_refused_by_name(
    setting: str, problem: str
) -> None:
    with pytest.raises(HelmError, match=problem):
        template(setting)


@pytest.mark.parametrize("more", ["serviceNamespaces={a}", "tenantNamespaces={a}"])
def test_serving_everything_and_a_list_at_once_is_refused(more: str) -> None:
    with pytest.raises(HelmError, match="must be empty"):
        template("clusterWide=true", more)


def test_the_chart_can_be_part_of_another() -> None:
    assert template("global.imageRegistry=x")
