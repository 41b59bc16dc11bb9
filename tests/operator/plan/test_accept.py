"""Which adapters a service takes, and under which names."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_operator.plan.accept import (
    AcceptContext,
    NamespaceFacts,
    SecretFacts,
    Verdict,
    accept_adapters,
    accept_model,
)
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.reasons import Reason
from tests.support.objects import make_adapter, make_service

NOTHING = AcceptContext()


def verdict(adapter: LoraAdapter, context: AcceptContext = NOTHING, **spec: Any) -> Verdict:
    return accept_adapters(make_service(**spec), [adapter], context)[adapter.key]


BY_LABEL = {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}}}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (NamespaceFacts({"llm": "yes", "team": "a"}), "served as"),
        (NamespaceFacts({"llm": "no"}), "spec.adapters.allowedNamespaces)"),
        (NamespaceFacts(problem="may not be read"), "its labels are not known: may not be read"),
    ],
)
def test_a_namespace_is_let_in_by_its_labels_as_far_as_they_are_known(
    facts: NamespaceFacts, told: str
) -> None:
    context = AcceptContext(namespaces={"tenant": facts})
    found = verdict(make_adapter("shout", "tenant"), context, adapters=BY_LABEL)
    assert found.is_accepted == (told == "served as")
    assert told in found.message


@pytest.mark.parametrize(
    ("facts", "is_accepted"),
    [
        (NamespaceFacts({}), True),
        (NamespaceFacts({"closed": "no"}), False),
        (NamespaceFacts(problem="may not be read"), False),
        (NamespaceFacts(), False),
    ],
)
def test_a_label_that_is_not_known_is_not_one_that_is_absent(
    facts: NamespaceFacts, is_accepted: bool
) -> None:
    absent = {"matchExpressions": [{"key": "closed", "operator": "DoesNotExist"}]}
    adapters = {"allowedNamespaces": {"from": "Selector", "selector": absent}}
    context = AcceptContext(namespaces={"tenant": facts})
    found = verdict(make_adapter("shout", "tenant"), context, adapters=adapters)
    assert found.is_accepted == is_accepted


def test_the_services_own_namespace_needs_no_label() -> None:
    assert verdict(make_adapter("shout"), adapters=BY_LABEL).is_accepted


def test_an_adapter_is_served_under_its_name_and_its_full_name() -> None:
    names = verdict(make_adapter("shout", aliases=["loud", "shout"])).names
    assert names is not None
    assert names.served == "shout"
    assert names.aliases == ("default/shout", "loud")


def test_a_name_that_no_entry_can_hold_is_refused_and_another_may_be_given() -> None:
    long = make_adapter("n" * 129)
    assert verdict(long).reason is Reason.INVALID_SPEC
    assert verdict(make_adapter("n" * 129, servedName="short")).is_accepted
    everywhere = {"allowedNamespaces": {"from": "All"}}
    foreign = make_adapter("n" * 124, "team-a")
    assert verdict(foreign, adapters=everywhere).reason is Reason.INVALID_SPEC
    assert verdict(make_adapter("n" * 121, "team-a"), adapters=everywhere).is_accepted


def test_an_adapter_of_another_namespace_needs_consent() -> None:
    foreign = make_adapter("shout", "tenant")
    assert verdict(foreign).reason is Reason.REF_NOT_PERMITTED
    taken = verdict(foreign, adapters={"allowedNamespaces": {"from": "All"}})
    assert taken.names is not None
    assert taken.names.every == ("tenant/shout",)


def test_listed_namespaces_and_the_services_own_are_let_in() -> None:
    listed = {"allowedNamespaces": {"from": "Listed", "names": ["tenant"]}}
    assert verdict(make_adapter("shout", "tenant"), adapters=listed).is_accepted
    assert verdict(make_adapter("shout"), adapters=listed).is_accepted
    refused = verdict(make_adapter("shout", "other"), adapters=listed)
    assert refused.reason is Reason.REF_NOT_PERMITTED
    assert "from namespace other" in refused.message


def test_an_adapter_of_another_namespace_chooses_no_other_name() -> None:
    foreign = make_adapter("shout", "tenant", servedName="loud")
    refused = verdict(foreign, adapters={"allowedNamespaces": {"from": "All"}})
    assert refused.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize("name", ["tiny", "tgi", "dummy"])
def test_a_name_of_the_base_model_is_reserved(name: str) -> None:
    refused = verdict(make_adapter("a", servedName=name))
    assert refused.reason is Reason.NAME_CONFLICT
    assert name in refused.message


def test_the_base_models_served_name_is_reserved_and_its_object_name_is_not() -> None:
    model = {"uri": "s3://m/x", "servedName": "meta/llama"}
    assert verdict(make_adapter("tiny"), model=model).is_accepted
    assert not verdict(
        make_adapter("a", servedName="llama"), model=model | {"servedName": "llama"}
    ).is_accepted


def test_of_two_claims_the_older_wins_and_the_other_is_told_who_holds_the_name() -> None:
    old = make_adapter("b", created="2026-01-01T00:00:00Z", servedName="story")
    new = make_adapter("a", created="2026-01-02T00:00:00Z", servedName="story")
    verdicts = accept_adapters(make_service(), [new, old], NOTHING)
    assert verdicts[old.key].is_accepted
    assert verdicts[new.key].reason is Reason.NAME_CONFLICT
    assert "default/b" in verdicts[new.key].message


def test_the_other_takes_over_when_the_name_is_free() -> None:
    new = make_adapter("a", created="2026-01-02T00:00:00Z", servedName="story")
    assert accept_adapters(make_service(), [new], NOTHING)[new.key].is_accepted


def test_who_holds_a_name_keeps_it_against_an_older_claim() -> None:
    holder = make_adapter("b", created="2026-01-02T00:00:00Z", servedName="story")
    older = make_adapter("a", created="2026-01-01T00:00:00Z", servedName="story")
    context = AcceptContext(holders={"story": "default/b"})
    verdicts = accept_adapters(make_service(), [older, holder], context)
    assert verdicts[holder.key].is_accepted
    assert verdicts[older.key].reason is Reason.NAME_CONFLICT


def test_an_alias_can_conflict_as_well() -> None:
    first = make_adapter("a", aliases=["story"])
    second = make_adapter("story", created="2026-02-01T00:00:00Z")
    verdicts = accept_adapters(make_service(), [second, first], NOTHING)
    assert verdicts[second.key].reason is Reason.NAME_CONFLICT


def test_a_missing_secret_refuses_the_adapter_that_names_it_and_no_other() -> None:
    without, named = make_adapter("a"), make_adapter("b", secret="keys")
    verdicts = accept_adapters(make_service(), [without, named], NOTHING)
    assert verdicts[without.key].is_accepted
    assert verdicts[named.key].reason is Reason.SECRET_NOT_FOUND
    assert "default/keys" in verdicts[named.key].message


def test_an_endpoint_must_be_among_those_the_service_allows() -> None:
    context = AcceptContext({("default", "keys"): SecretFacts("http://127.0.0.1:9000/")})
    adapter = make_adapter(secret="keys")
    assert verdict(adapter, context).reason is Reason.SOURCE_FORBIDDEN
    allowed = {"allowedEndpoints": ["http://127.0.0.1:9000"]}
    assert verdict(adapter, context, adapters=allowed).is_accepted


@pytest.mark.parametrize(
    ("allowed", "accepted"),
    [
        ([], True),
        (["s3://b/"], True),
        (["gs://x", "s3://b/a"], True),
        (["s3://"], True),
        (["s3://b/a/below"], False),
        (["s3://b/aa", "s3://b2", "s3://bb"], False),
    ],
)
def test_an_adapter_must_lie_where_the_service_allows(allowed: list[str], accepted: bool) -> None:
    adapter = make_adapter(uri="s3://b/a")
    found = verdict(adapter, NOTHING, adapters={"allowedUris": allowed})
    assert found.is_accepted is accepted
    assert found.is_accepted or found.reason is Reason.SOURCE_FORBIDDEN


def test_a_claim_must_be_one_that_the_pods_mount() -> None:
    adapter = make_adapter(uri="pvc://claim/a")
    found = verdict(adapter, NOTHING)
    assert found.reason is Reason.SOURCE_FORBIDDEN
    assert "spec.adapters.claims" in found.message
    assert verdict(adapter, NOTHING, adapters={"claims": ["claim"]}).is_accepted
    assert verdict(adapter, NOTHING, model={"uri": "pvc://claim/base"}).is_accepted


def test_a_web_host_must_be_among_the_endpoints_for_adapters_and_for_the_model() -> None:
    allowed = {"allowedEndpoints": ["https://files.example.test:8443"]}
    uri = "https://files.example.test:8443/a/manifest"
    assert verdict(make_adapter(uri=uri), NOTHING, adapters=allowed).is_accepted
    assert verdict(make_adapter(uri=uri), NOTHING).reason is Reason.SOURCE_FORBIDDEN
    assert accept_model(make_service(model={"uri": uri}, adapters=allowed), NOTHING).is_accepted
    refused = accept_model(make_service(model={"uri": uri}), NOTHING)
    assert refused.reason is Reason.SOURCE_FORBIDDEN


def test_the_models_own_secret_follows_the_same_rules() -> None:
    model = {"uri": "s3://m/x", "credentialsSecretRef": {"name": "keys"}}
    service = make_service(model=model)
    assert accept_model(service, NOTHING).reason is Reason.SECRET_NOT_FOUND
    facts = {("default", "keys"): SecretFacts("http://127.0.0.1:9000")}
    assert accept_model(service, AcceptContext(facts)).reason is Reason.SOURCE_FORBIDDEN
    plain = {("default", "keys"): SecretFacts()}
    assert accept_model(service, AcceptContext(plain)).is_accepted


def adapters() -> st.SearchStrategy[list[LoraAdapter]]:
    names = st.sampled_from(["a", "b", "c", "d"])
    one = st.builds(
        make_adapter,
        names,
        st.sampled_from(["default", "tenant"]),
        created=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
        aliases=st.lists(names, max_size=2),
    )
    return st.lists(one, unique_by=lambda item: item.key, max_size=6)


SERVICES = st.sampled_from(
    [make_service(), make_service(adapters={"allowedNamespaces": {"from": "All"}})]
)


@given(SERVICES, adapters(), st.randoms())
def test_no_name_has_two_holders_whatever_the_order(
    service: InferenceService, items: list[LoraAdapter], random: Any
) -> None:
    verdicts = accept_adapters(service, items, NOTHING)
    held = [name for item in verdicts.values() if item.names for name in item.names.every]
    assert len(held) == len(set(held))
    assert service.served_name not in held
    shuffled = list(items)
    random.shuffle(shuffled)
    assert accept_adapters(service, shuffled, NOTHING) == verdicts
