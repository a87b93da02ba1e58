"""Which kernel is fastest on this GPU: times every candidate and keeps what won.

Not run on a GPU so far.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from awqbench.errors import OutputError
from awqbench.gemm import cuda, cuda_choice

if TYPE_CHECKING:
    import torch


def tune(
    weights: list[cuda.CudaWeight],
    tokens: int,
    dtype: torch.dtype,
    timer: Callable[[dict[str, list[Callable]]], dict[str, float]],
) -> dict[str, float]:
    """Time every candidate for so many tokens, and keep the name of the fastest.

    Parameters
    ----------
    weights : list of CudaWeight
        Copies of one weight, together several times the GPU's cache.
    tokens : int
    dtype : torch.dtype
        float16 or bfloat16.
    timer : callable
        From names to calls, to names to seconds; what could not be timed is left out.

    Returns
    -------
    dict of str to float
        Seconds by program; "dense" is decoding and cuBLAS. Of none nothing is kept.

    Raises
    ------
    OutputError
        If the choice cannot be written.
    """
    import torch

    device, spec = weights[0].codes.device, weights[0].spec
    facts, is_bf16 = cuda.device_facts(device), dtype == torch.bfloat16
    x = cuda.align_tokens(torch.randn(tokens, spec.in_features, device=device).to(dtype))
    y = x.new_empty(tokens, spec.out_features)
    settings = {"arch": facts.arch, "n_sm": facts.n_sm, "is_bf16": is_bf16}
    calls: dict[str, list[Callable]] = {
        str(found.program): [
            lambda weight=weight, found=found: cuda.multiply(x, weight, found, y)
            for weight in weights
        ]
        for found in cuda_choice.candidates(tokens, spec, **settings)
    }
    calls[cuda_choice.DENSE] = [
        lambda weight=weight: torch.nn.functional.linear(x, cuda.dequantize(weight, dtype))
        for weight in weights
    ]
    times = timer(calls)
    if times:
        key = cuda_choice.key_of(facts.name, tokens, spec, is_bf16=is_bf16)
        keep({key: min(times, key=times.__getitem__)})
    return times


def keep(choices: dict[str, str]) -> None:
    """Add measured choices to the file that `cuda_choice.measured` reads.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    file = cuda_choice.measured_file()
    text = json.dumps(cuda_choice.measured() | choices, indent=1, sort_keys=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            temporary.write(text)
        os.replace(temporary.name, file)
    except OSError as error:
        raise OutputError(f"the measured choices cannot be kept in {file}: {error}.") from error
    cuda_choice.measured.cache_clear()
