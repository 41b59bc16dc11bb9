"""Adapters merged offline: the exact weighted sum, in a folder that peft and the loader read."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file

from graft_protocol.reasons import Reason
from graft_runtime.adapters.blends import MAX_PARTS
from graft_runtime.adapters.merge import merge_adapters
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.cli import main
from graft_runtime.errors import InvalidRequestError, ReasonedError
from graft_runtime.models.arch import DecoderArch
from tests.support.peft_adapters import make_adapter
from tests.support.spoiled_adapters import with_config
from tests.support.tiny_models import load_reference, make_llama

WEIGHTS = (0.75, -0.5)


@pytest.fixture(scope="module")
def parts(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters that share one module, of different ranks and scalings."""
    folder = tmp_path_factory.mktemp("parts")
    first = make_adapter(
        base_model, folder / "first", rank=4, target_modules=["q_proj", "down_proj"], seed=1
    )
    second = make_adapter(
        base_model,
        folder / "second",
        rank=6,
        alpha=9,
        target_modules=["q_proj", "up_proj"],
        rslora=True,
        seed=2,
    )
    return [first, second]


@pytest.fixture(scope="module")
def merged(parts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "sum"
    found = merge_adapters(parts, WEIGHTS, out)
    assert (found.num_modules, found.rank) == (6, 10)
    return out


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(1, 9)[None]).logits
    return found


def test_peft_computes_with_it_what_it_computes_with_its_own_sum(
    base_model: Path, parts: list[Path], merged: Path
) -> None:
    """`cat` is peft's name for the exact sum; its `linear` adds products of different parts."""
    model = PeftModel.from_pretrained(load_reference(base_model), parts[0], "first")
    model.load_adapter(parts[1], "second")
    model.add_weighted_adapter(["first", "second"], list(WEIGHTS), "sum", combination_type="cat")
    model.set_adapter("sum")
    expected = logits(model.eval())
    ours = PeftModel.from_pretrained(load_reference(base_model), merged).eval()
    torch.testing.assert_close(logits(ours), expected, atol=1e-4, rtol=1e-4)
    with ours.disable_adapter():
        assert (logits(ours) - expected).abs().max() > 0.1


def test_adapters_that_share_a_agree_with_pefts_linear_sum(
    base_model: Path, parts: list[Path], tmp_path: Path
) -> None:
    """One adapter beside itself: then peft's products of different parts are the sum's own."""
    model = PeftModel.from_pretrained(load_reference(base_model), parts[0], "first")
    model.load_adapter(parts[0], "again")
    model.add_weighted_adapter(["first", "again"], [0.5, 0.5], "sum", combination_type="linear")
    model.set_adapter("sum")
    merge_adapters([parts[0]], [2.0], tmp_path / "sum")
    ours = PeftModel.from_pretrained(load_reference(base_model), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(ours), logits(model.eval()), atol=1e-4, rtol=1e-4)


def test_the_loader_takes_it(merged: Path, arch: DecoderArch) -> None:
    found = validate_adapter(merged, arch, max_rank=10)
    ranks = {update.module.rpartition(".")[2]: update.rank for update in found.updates}
    assert ranks == {"q_proj": 10, "up_proj": 6, "down_proj": 4}
    assert {update.scaling for update in found.updates} == {1.0}
    with pytest.raises(ReasonedError) as caught:
        validate_adapter(merged, arch, max_rank=9)
    assert caught.value.reason is Reason.RANK_TOO_LARGE


def test_without_weights_all_count_equally(parts: list[Path], tmp_path: Path) -> None:
    merge_adapters(parts, [], tmp_path / "mean")
    merge_adapters(parts, [0.5, 0.5], tmp_path / "halves")
    mean, halves = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("mean", "halves")
    )
    assert mean.keys() == halves.keys()
    assert all(torch.equal(mean[name], halves[name]) for name in mean)


def test_the_dtype_of_all_parts_is_kept(base_model: Path, tmp_path: Path) -> None:
    half = make_adapter(
        base_model, tmp_path / "half", target_modules=["q_proj"], dtype=torch.bfloat16
    )
    whole = make_adapter(base_model, tmp_path / "whole", target_modules=["q_proj"])
    for name, folders, dtype in (
        ("same", [half, half], torch.bfloat16),
        ("mixed", [half, whole], torch.float32),
    ):
        merge_adapters(folders, [], tmp_path / name)
        tensors = load_file(tmp_path / name / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_a_part_that_pods_would_refuse_is_refused_by_name(
    parts: list[Path], tmp_path: Path
) -> None:
    bad = with_config(parts[0], tmp_path / "bad", use_dora=True)
    with pytest.raises(ReasonedError, match="use_dora") as caught:
        merge_adapters([parts[1], bad], [], tmp_path / "out")
    assert caught.value.reason is Reason.UNSUPPORTED_ADAPTER_TYPE
    assert str(bad) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_parts_of_different_models_are_refused(
    parts: list[Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:

    other = make_llama(tmp_path_factory.mktemp("other"), 0, hidden_size=48, num_hidden_layers=2)
    foreign = make_adapter(other, tmp_path / "foreign", target_modules=["q_proj"])
    with pytest.raises(ReasonedError) as caught:
        merge_adapters([parts[0], foreign], [], tmp_path / "out")
    assert caught.value.reason is Reason.SHAPE_MISMATCH


@pytest.mark.parametrize(
    ("weights", "reason"),
    [((0.0, 0.0), Reason.INVALID_CONFIG), ((1e38, 1e38), Reason.NON_FINITE_WEIGHTS)],
)
def test_a_sum_that_is_nothing_or_no_number_is_refused_and_leaves_nothing(
    weights: tuple[float, float], reason: Reason, parts: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ReasonedError) as caught:
        merge_adapters(parts, weights, tmp_path / "out")
    assert caught.value.reason is reason
    assert not list(tmp_path.iterdir())


def test_arguments_that_do_not_fit_are_refused(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folders, weights, said in (
        (parts, [1.0], "1 weights for 2 adapters"),
        (parts, [1.0, float("nan")], "not a finite number"),
        (parts * MAX_PARTS, [], f"1 to {MAX_PARTS}"),
    ):
        with pytest.raises(InvalidRequestError, match=said):
            merge_adapters(folders, weights, out)
    out.mkdir()
    with pytest.raises(InvalidRequestError, match="is there already"):
        merge_adapters(parts, [], out)


def test_the_command_says_the_rank_or_the_reason(parts: list[Path], tmp_path: Path) -> None:
    folders = [str(folder) for folder in parts]
    out = str(tmp_path / "out")
    words = ["merge-adapters", "-w", "1", "-w", "-0.5", out, *folders]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "6 modules, rank 10" in done.output
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 10
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert "is there already" in again.output
