"""Tensors in float16 and bfloat16, and ATen's int4 operator."""

import numpy as np
import pytest
import torch
from gemm_cases import CASES, relative_error, tokens_for

from awqbench.gemm import gemm, int4pack, layout, torch_


@pytest.mark.parametrize("m", [1, 17, 33, 70])
@pytest.mark.parametrize("dtype, accuracy", [("float16", 1e-3), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("case", ["float16 scales", "act-order", "tail", "8 bits", "group of 256"])
def test_half_precision_tensors(case, m, dtype, accuracy):
    packed = CASES[case]()
    x = torch.from_numpy(tokens_for(packed, m)).to(getattr(torch, dtype))
    y = gemm(x, packed)
    assert y.dtype == x.dtype
    exact = x.double().numpy() @ packed.dequantize().astype(np.float64).T
    assert relative_error(y.double().numpy(), exact) <= accuracy


def tiled(case):
    return torch_.to_tensors(layout.tile_weight(CASES[case]()))


def test_int4_operator_only_where_it_wins():
    weight = tiled("float16 scales")
    x = torch.ones(4, 256, dtype=torch.bfloat16)
    assert int4pack.is_worthwhile(x, weight)
    assert not int4pack.is_worthwhile(x.float(), weight)
    assert not int4pack.is_worthwhile(x.expand(8, 4, 256).reshape(-1, 256)[:0], weight)
    assert not int4pack.is_worthwhile(torch.ones(64, 256, dtype=torch.bfloat16), weight)
    for case in ("8 bits", "tail", "odd group", "uneven groups"):
        other = tiled(case)
        tokens = torch.ones(1, other.spec.in_features, dtype=torch.bfloat16)
        assert not int4pack.is_worthwhile(tokens, other), case


@pytest.mark.parametrize("case", ["several blocks and tiles", "several blocks, symmetric"])
def test_int4_order_is_reversible(case):
    weight = tiled(case)
    int4 = int4pack.from_tiles(weight)
    if int4 is None:
        pytest.skip("this torch packs int4 in another order on this CPU")
    assert torch.equal(int4pack.to_tiles(weight, int4).codes, weight.codes)
    x = torch.randn(70, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    # Both decode the same codes the same way for many tokens.
    assert torch.equal(int4pack.matmul(x, weight, int4), torch_.matmul(x, weight))


def test_bfloat16_nonfinite_rows():
    packed = CASES["float16 scales"]()
    packed.codes[:, 0] = packed.zeros[:, 0]  # inf * 0, which rounded zero points would hide
    x = torch.from_numpy(tokens_for(packed, 4)).bfloat16()
    x[1, 0], x[2, 3] = torch.inf, torch.nan
    y = gemm(x, packed).float().numpy()
    with np.errstate(invalid="ignore"):
        exact = x.double().numpy() @ packed.dequantize().astype(np.float64).T
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(exact))
