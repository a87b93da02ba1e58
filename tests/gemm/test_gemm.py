"""Every backend against the NumPy definition and float64, on inputs chosen to hurt."""

import gc
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from gemm_cases import (
    BACKENDS,
    CASES,
    accuracy,
    act_order,
    random_packed,
    relative_error,
    run,
    tokens_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from awqbench.errors import AlignmentError, BackendError, ParameterError
from awqbench.gemm import available_backends, gemm, layout, torch_

TOKENS = (0, 1, 3, 17, 129)


@pytest.fixture(params=CASES, ids=lambda name: name)
def packed(request):
    return CASES[request.param]()


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_definition_and_float64(packed, backend):
    weight = packed.dequantize()
    for m in TOKENS:
        for kind in ("normal", "far from zero", "outliers"):
            x = tokens_for(packed, m, kind=kind)
            y = run(x, packed, backend)
            assert y.shape == (m, packed.out_features) and y.dtype == np.float32
            exact = x.astype(np.float64) @ weight.astype(np.float64).T
            limit = accuracy(backend)
            assert relative_error(y, exact) <= limit, (m, kind)
            # The definition in float32 has a rounding error of its own.
            by_definition = (x @ weight.T).astype(np.float64)
            assert relative_error(y, by_definition) <= limit + 1e-6, (m, kind)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [5, 70])
def test_nonfinite_rows_are_right_and_alone(packed, backend, m):
    x = tokens_for(packed, m)
    clean = x.copy()
    bad = [0, 2, 3, 4]
    x[0, 0], x[2, -1], x[3], x[4, 0] = np.nan, np.inf, -np.inf, 3.4e38
    clean[bad] = 0
    y = run(x, packed, backend)
    with np.errstate(all="ignore"):
        exact = (x.astype(np.float64) @ packed.dequantize().astype(np.float64).T).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y[bad]), np.isnan(exact[bad]))
    infinite = np.isinf(exact[bad])
    np.testing.assert_array_equal(y[bad][infinite], exact[bad][infinite])
    others = [i for i in range(m) if i not in bad]
    np.testing.assert_array_equal(y[others], run(clean, packed, backend)[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_dimensions(backend):
    packed = CASES["tail"]()
    x = tokens_for(packed, 12)
    expected = run(x, packed, backend)
    wide = np.zeros((12, 320), np.float32)
    wide[:, ::2] = x
    for view in (wide[:, ::2], np.asfortranarray(x)):
        np.testing.assert_array_equal(run(view, packed, backend), expected)
    reversed_rows = gemm(x[::-1], packed, backend.split()[0])
    expected_rows = expected[::-1].astype(np.float64)
    assert relative_error(reversed_rows, expected_rows) <= accuracy(backend.split()[0])
    assert run(x.reshape(3, 4, -1), packed, backend).shape == (3, 4, 40)
    assert run(x[0], packed, backend).shape == (40,)
    assert run(x.reshape(3, 4, -1)[:0], packed, backend).shape == (0, 4, 40)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_keeps_kind_and_dtype(backend, dtype):
    packed = CASES["plain"]()
    x = tokens_for(packed, 3).astype(dtype)
    backend, _, activations = backend.partition(" ")
    settings = {"activations": activations} if activations else {}
    assert gemm(x, packed, backend, **settings).dtype == x.dtype
    y = gemm(torch.from_numpy(x), packed, backend, **settings)
    assert isinstance(y, torch.Tensor) and y.dtype == torch.from_numpy(x).dtype


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_shape(data):
    k = data.draw(st.integers(1, 300), "k")
    n = data.draw(st.integers(1, 70), "n")
    group_size = data.draw(st.integers(1, k), "group_size")
    bits = data.draw(st.integers(2, 8), "bits")
    m = data.draw(st.integers(0, 70), "m")
    g_idx = act_order(k, group_size) if data.draw(st.booleans(), "act-order") else None
    packed = random_packed(n, k, group_size, bits=bits, g_idx=g_idx)
    x = tokens_for(packed, m)
    exact = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
    # Few random terms can cancel, or lie near zero in a wide range: measure against the range.
    reach = ((1 << bits) - 1) * packed.scales[:, packed.group_index()]
    size = np.linalg.norm(np.abs(x).astype(np.float64) @ reach.T)
    for backend in BACKENDS:
        error = np.linalg.norm(run(x, packed, backend) - exact)
        assert error <= accuracy(backend) * max(size, 1e-30), backend


def test_layout_round_trip(packed):
    back = layout.untile_weight(torch_.to_arrays(torch_.to_tensors(layout.tile_weight(packed))))
    for field in ("codes", "scales", "zeros", "g_idx"):
        np.testing.assert_array_equal(getattr(back, field), getattr(packed, field))
    for field in ("bits", "group_size", "zero_point", "scale_dtype", "name"):
        assert getattr(back, field) == getattr(packed, field)


def test_gradient_reaches_x():
    packed = CASES["tail"]()
    x = torch.from_numpy(tokens_for(packed, 3)).requires_grad_()
    gemm(x, packed).sum().backward()
    expected = torch.from_numpy(packed.dequantize().sum(axis=0)).expand(3, -1)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_changed(backend):
    packed = CASES["act-order"]()
    before = packed.codes.copy(), packed.scales.copy(), packed.zeros.copy()
    x = tokens_for(packed, 3)
    kept = x.copy()
    run(x, packed, backend)
    np.testing.assert_array_equal(x, kept)
    for array, copy in zip((packed.codes, packed.scales, packed.zeros), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_forms_live_as_long_as_the_weight():
    packed = CASES["plain"]()
    gemm(tokens_for(packed, 1), packed)
    key = id(packed)
    assert key in layout._FORMS
    del packed
    gc.collect()
    assert key not in layout._FORMS


@pytest.mark.parametrize("m", [1, 16, 128])
def test_numpy_memory_stays_far_below_dense(m):
    packed = random_packed(2048, 2048, 128)
    x = tokens_for(packed, m)
    gemm(x, packed, "numpy")  # lays the codes out
    tracemalloc.start()
    gemm(x, packed, "numpy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dense_bytes = 4 * 2048 * 2048
    assert peak < dense_bytes / 2


def test_wrong_in_features_gives_the_numbers():
    with pytest.raises(AlignmentError, match=r"\(3, 100\), and layers.0.up .*256 last, not 100"):
        gemm(np.ones((3, 100), np.float32), CASES["plain"]())


@pytest.mark.parametrize("x", [np.ones((2, 256), np.int64), torch.ones(2, 256).bool()])
def test_not_floating_point(x):
    with pytest.raises(ParameterError, match="floating point"):
        gemm(x, CASES["plain"]())


def test_no_dimension():
    with pytest.raises(ParameterError, match="no dimension"):
        gemm(np.float32(1), CASES["plain"]())


def test_backends_say_why_they_are_absent():
    reasons = available_backends()
    assert list(reasons) == ["numpy", "numexpr", "torch", "native", "cuda"]
    assert reasons["numpy"] == "" and reasons["cuda"]
    assert "cupy" not in sys.modules
    x = np.ones((1, 256), np.float32)
    with pytest.raises(BackendError, match="'cuda' is not available.*Available: numpy"):
        gemm(x, CASES["plain"](), "cuda")
    with pytest.raises(ParameterError, match="no backend 'fast'"):
        gemm(x, CASES["plain"](), "fast")
