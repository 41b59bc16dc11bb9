"""In which dtype a model is served. The engine and the loader must come to the same answer."""

from __future__ import annotations

from typing import Literal

from graft_runtime.models.arch import DecoderArch


def serving_dtype(
    wanted: Literal["auto", "float32", "bfloat16"], arch: DecoderArch
) -> Literal["float32", "bfloat16"]:
    """Return the dtype of weights, cache and adapters.

    ``auto`` is the checkpoint's own, but for float16: half precision overflows where training in
    another dtype did not, and bfloat16 has the range.
    """
    if wanted != "auto":
        return wanted
    return "float32" if arch.dtype == "float32" else "bfloat16"
