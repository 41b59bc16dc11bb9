"""In which dtype a model is served. The engine and the loader must come to the same answer."""

from __future__ import annotations

from typing import Literal, cast

from graft_runtime.models.base import Dtype, ModelArch
from graft_runtime.models.hf_config import ConfigReader

_DTYPES = ("float32", "bfloat16", "float16")


def serving_dtype(
    wanted: Literal["auto", "float32", "bfloat16"], arch: ModelArch
) -> Literal["float32", "bfloat16"]:
    """Return the dtype of weights, cache and adapters.

    ``auto`` is the checkpoint's own, but for float16: half precision overflows where training in
    another dtype did not, and bfloat16 has the range.
    """
    if wanted != "auto":
        return wanted
    return "float32" if arch.dtype == "float32" else "bfloat16"


def read_dtype(config: ConfigReader) -> Dtype:
    """Return the dtype a config says its checkpoint is in."""
    legacy = config.take("torch_dtype")
    name = config.one_of("dtype", _DTYPES, legacy if isinstance(legacy, str) else "float32")
    return cast("Dtype", name)
