"""Bad adapters beside twenty good ones: each says what is wrong, and nobody else has to wait."""

from __future__ import annotations

import json
from itertools import cycle, islice
from typing import Any

from e2e.buckets import EXAMPLES
from e2e.cluster.processes import wait_until
from e2e.stage import Stage, condition, edited
from e2e.voices import sounds_like

NUM_GOOD = 20
EXAMPLE_NAMES = ("shout", "poet", "cheerful", "numbered", "pirate-v2")
EXPECTED = {
    "missing": "SourceNotFound",
    "broken": "MalformedArtifact",
    "swapped": "ChecksumMismatch",
    "pickled": "UnsafeFormat",
    "dora": "UnsupportedAdapterType",
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def test_bad_adapters_say_what_is_wrong_and_twenty_good_ones_serve(stage: Stage) -> None:
    client = stage.serve()
    before = stage.starts()
    kubectl = stage.kubectl
    published = {name: stage.bucket.publish(name, name) for name in EXAMPLE_NAMES}
    named = enumerate(islice(cycle(published.values()), NUM_GOOD))
    good = {f"good-{number}": edited(text, f"good-{number}") for number, text in named}

    kubectl.apply("---\n".join([*_bad(stage, published["shout"]), *good.values()]))

    stage.wait_ready(*(f"loraadapter/{name}" for name in good))
    wait_until(lambda: _reasons(stage) == EXPECTED, "every bad one's reason", seconds=60)
    for name in good:
        assert client.ask(name, max_tokens=20).is_ok
    for name in EXPECTED:
        assert client.ask(name).status >= 400
    assert client.ask("base").is_ok
    assert condition(kubectl.get("gis/base"), "Ready")["status"] == "True"
    assert stage.starts() == before


def test_one_serves_as_soon_as_it_is_mended(stage: Stage) -> None:
    client = stage.serve()
    shout = stage.bucket.publish("shout", "shout")
    missing, _, swapped, *_ = _bad(stage, shout)
    stage.kubectl.apply(f"{missing}---\n{swapped}")
    wanted = {"missing": "SourceNotFound", "swapped": "ChecksumMismatch"}
    wait_until(lambda: _reasons(stage) == wanted, "both reasons", seconds=60)

    stage.bucket.upload(EXAMPLES / "adapters" / "shout", "adapters/missing")
    stage.kubectl.apply(edited(shout, "swapped"))

    stage.wait_ready("loraadapter/missing", "loraadapter/swapped")
    for name in wanted:
        assert sounds_like("shout", client.ask(name).text)


def _bad(stage: Stage, good: str) -> list[str]:
    """Put bad adapters into the bucket; return their manifests, in the order of `EXPECTED`."""
    folder = EXAMPLES / "adapters" / "shout"
    config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
    dora = json.dumps(json.loads(config) | {"use_dora": True}).encode()
    bucket = stage.bucket
    bucket.put("adapters/broken", {CONFIG: config, WEIGHTS: weights[: len(weights) // 2]})
    bucket.put("adapters/pickled", {CONFIG: config, "adapter_model.bin": b"\x80\x04."})
    bucket.put("adapters/dora", {CONFIG: dora, WEIGHTS: weights})
    sources: dict[str, dict[str, Any]] = {
        name: {"uri": bucket.uri(f"adapters/{name}"), "digest": None} for name in EXPECTED
    }
    # The digest of something else.
    sources["swapped"] = {"uri": bucket.uri("adapters/shout"), "digest": "sha256:" + "0" * 64}
    return [edited(good, name, **sources[name]) for name in EXPECTED]


def _reasons(stage: Stage) -> dict[str, str]:
    """Return why each adapter that is not Ready is not."""
    conditions = {
        item["metadata"]["name"]: condition(item, "Ready")
        for item in stage.kubectl.get("loraadapters")["items"]
    }
    return {
        name: found.get("reason", "")
        for name, found in conditions.items()
        if found.get("status") != "True"
    }
