from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.adapters.convert import slot_bytes, write_slot_file
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.adapters.weights import ServingDtype
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import SlotHeader, layout_hash, pages_for
from graft_runtime.models.arch import DecoderArch
from tests.support import slot_files
from tests.support.peft_adapters import ALL_LINEAR, make_adapter
from tests.support.spoiled_adapters import cast, copy_adapter, first, with_config, with_weights

DIGEST = "sha256:" + "0" * 64
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Tensors = dict[str, Tensor]


def convert(folder: Path, arch: DecoderArch, path: Path, dtype: ServingDtype = "float32") -> Path:
    (folder / "README.md").unlink(missing_ok=True)
    adapter = validate_adapter(folder, arch, max_rank=64)
    pages = pages_for(adapter.rank)
    header = SlotHeader(DIGEST, adapter.rank, pages, dtype, layout_hash(arch))
    write_slot_file(adapter, header, path)
    assert path.stat().st_size <= slot_bytes(adapter, header)
    return path


def refusal(folder: Path, arch: DecoderArch, path: Path, dtype: ServingDtype) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        convert(folder, arch, path, dtype)
    return caught.value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "target_modules": ["q_proj"]},
        {"rank": 16, "alpha": 7, "target_modules": ALL_LINEAR},
        {"rank": 33, "target_modules": ["k_proj", "up_proj", "lm_head"], "rslora": True},
        {"rank": 8, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 24}},
        {"rank": 8, "target_modules": ["v_proj"], "alpha_pattern": {"v_proj": 3}},
    ],
    ids=["one module", "all modules", "rsLoRA over pages", "two ranks", "two alphas"],
)
def test_the_slot_file_is_the_plain_conversions(
    base_model: Path,
    arch: DecoderArch,
    tmp_path: Path,
    options: dict[str, object],
    dtype: ServingDtype,
) -> None:
    folder = make_adapter(base_model, tmp_path / "x", **options)  # type: ignore[arg-type] # a mix
    expected = slot_files.write_slot_file(folder, arch, tmp_path / "expected", TORCH[dtype])
    found = convert(folder, arch, tmp_path / "found", dtype)
    tensors, plain = load_file(found), load_file(expected)
    assert tensors.keys() == plain.keys()
    for name, tensor in tensors.items():
        # The scaling is rounded once here and twice there, so the last bit of B may differ.
        torch.testing.assert_close(tensor, plain[name], rtol=2**-7, atol=0)
        assert torch.equal(tensor, plain[name]) or name.endswith(".B")
    with safe_open(found, "pt") as file, safe_open(expected, "pt") as other:
        assert file.metadata() == other.metadata()


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_weights_of_lower_precision_are_read_exactly(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, source: torch.dtype
) -> None:
    stored = with_weights(peft_adapter, tmp_path / "low", cast(source))
    widened = with_weights(stored, tmp_path / "wide", cast(torch.float32))
    low = convert(stored, arch, tmp_path / "low.slot")
    assert low.read_bytes() == convert(widened, arch, tmp_path / "wide.slot").read_bytes()


def test_the_slot_pool_takes_the_file(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    path = convert(copy_adapter(peft_adapter, tmp_path / "x"), arch, tmp_path / "slot")
    pool = SlotPool(arch, num_pages=2, dtype=torch.float32, device=torch.device("cpu"))
    load = pool.begin_load(SlotSource.of(path))
    while not load.advance(1 << 20):
        pass
    assert load.slot >= 1
    pool.check_integrity()


def put(factor: str, value: float) -> object:
    def change(tensors: Tensors) -> Tensors:
        tensors[first(tensors, factor)][0, 0] = value
        return tensors

    return change


def scale(factor: str, by: float) -> object:
    return lambda tensors: {
        name: tensor * by if f"lora_{factor}" in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_no_numbers_are_refused(
    peft_adapter: Path,
    arch: DecoderArch,
    tmp_path: Path,
    factor: str,
    value: float,
    source: torch.dtype,
) -> None:
    spoiled = with_weights(peft_adapter, tmp_path / "a", put(factor, value))  # type: ignore[arg-type] # a change
    folder = with_weights(spoiled, tmp_path / "b", cast(source))
    error = refusal(folder, arch, tmp_path / "slot", "float32")
    assert error.reason is Reason.NON_FINITE_WEIGHTS
    assert f"lora_{factor}" in error.message


@pytest.mark.parametrize(
    ("factor", "value", "dtype"),
    [
        ("A", 3.4028234e38, "bfloat16"),
        ("B", 3e38, "float32"),  # finite until multiplied by alpha / rank = 4
        ("A", 1e5, "float16"),
        ("B", 3e4, "float16"),
    ],
)
def test_values_that_overflow_on_the_way_to_serving_are_refused(
    peft_adapter: Path,
    arch: DecoderArch,
    tmp_path: Path,
    factor: str,
    value: float,
    dtype: ServingDtype,
) -> None:
    folder = with_weights(peft_adapter, tmp_path / "a", put(factor, value))  # type: ignore[arg-type] # a change
    error = refusal(folder, arch, tmp_path / "slot", dtype)
    assert error.reason is Reason.NON_FINITE_WEIGHTS
    assert dtype in error.message


@pytest.mark.parametrize(("factor", "by"), [("B", 0.0), ("A", 0.0), ("B", -0.0), ("B", 1e-45)])
def test_an_adapter_that_changes_nothing_is_refused(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path, factor: str, by: float
) -> None:
    folder = with_weights(peft_adapter, tmp_path / "a", scale(factor, by))  # type: ignore[arg-type] # a change
    error = refusal(folder, arch, tmp_path / "slot", "bfloat16")
    assert error.reason is Reason.INVALID_CONFIG
    assert "changes nothing" in error.message


def test_one_module_that_does_something_is_enough(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    def only_one(tensors: Tensors) -> Tensors:
        kept = first(tensors, "B")
        return {
            name: tensor if name == kept or "lora_A" in name else tensor * 0
            for name, tensor in tensors.items()
        }

    folder = with_weights(peft_adapter, tmp_path / "a", only_one)
    convert(folder, arch, tmp_path / "slot")


def test_factors_that_never_meet_change_nothing(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    def cross(tensors: Tensors) -> Tensors:
        return {
            name: tensor * float(("layers.0" in name) == ("lora_A" in name))
            for name, tensor in tensors.items()
        }

    folder = with_weights(peft_adapter, tmp_path / "a", cross)
    assert refusal(folder, arch, tmp_path / "slot", "float32").reason is Reason.INVALID_CONFIG


def test_a_negative_alpha_is_folded_in(
    peft_adapter: Path, arch: DecoderArch, tmp_path: Path
) -> None:
    plain = convert(with_config(peft_adapter, tmp_path / "a"), arch, tmp_path / "plain")
    turned = convert(
        with_config(peft_adapter, tmp_path / "b", lora_alpha=-16), arch, tmp_path / "turned"
    )
    before, after = load_file(plain), load_file(turned)
    for name, tensor in after.items():
        sign = -1 if name.endswith(".B") else 1
        assert torch.equal(tensor, sign * before[name])
