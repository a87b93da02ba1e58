import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awqbench.errors import AlignmentError, ParameterError
from awqbench.gemm import gemm
from awqbench.inspect.parallel.split import (
    column_parallel,
    parallel_mlp,
    row_parallel,
    split_columns,
    split_rows,
)
from awqbench.packed import quantize_weight


def random_packed(n, k, group_size, *, seed=0, name="weight"):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((n, k), dtype=np.float32)
    return quantize_weight(weight, 4, group_size, name=name)


@settings(deadline=None, max_examples=25)
@given(tp_size=st.sampled_from([1, 2, 4]), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_shards_give_the_whole(tp_size, groups, seed):
    packed = random_packed(8 * tp_size, 32 * groups * tp_size, 32, seed=seed)
    x = np.random.default_rng(seed).standard_normal((3, packed.in_features), dtype=np.float32)
    whole = x.astype(np.float64) @ packed.dequantize().T.astype(np.float64)
    np.testing.assert_allclose(row_parallel(x, packed, tp_size), whole, atol=2e-4)
    np.testing.assert_allclose(column_parallel(x, packed, tp_size), whole, atol=2e-4)


def test_a_shard_holds_the_slice_and_nothing_else():
    packed = random_packed(16, 128, 32)
    dense = packed.dequantize()
    for rank, shard in enumerate(split_rows(packed, 2)):
        np.testing.assert_array_equal(shard.dequantize(), dense[:, 64 * rank : 64 * (rank + 1)])
    for rank, shard in enumerate(split_columns(packed, 2)):
        np.testing.assert_array_equal(shard.dequantize(), dense[8 * rank : 8 * (rank + 1)])


def test_a_cut_group_fails_as_in_vllm():
    packed = random_packed(8, 896, 128, name="mlp.down_proj")
    with pytest.raises(AlignmentError) as caught:
        row_parallel(np.zeros((1, 896), np.float32), packed, 2)
    assert str(caught.value) == (
        "The input size is not aligned with the quantized weight shape. This can be caused by "
        "too large tensor parallel size. mlp.down_proj: in_features 896 / 2 ranks = 448, which "
        "is 3.5 groups of 128; quantize with group_size 64, or pad the model before it is "
        "quantized, to in_features 1024."
    )


def test_a_cut_word_fails_as_in_vllm():
    with pytest.raises(AlignmentError, match="output size.*out_features 24 / 2 ranks = 12, not"):
        split_columns(random_packed(24, 64, 32), 2)


def test_ranks_that_do_not_divide():
    with pytest.raises(AlignmentError, match="896 / 3 ranks = 298.667"):
        split_rows(random_packed(8, 896, 64), 3)
    with pytest.raises(ParameterError, match="tp_size is 0"):
        split_rows(random_packed(8, 64, 32), 0)


def test_act_order_keeps_every_scale_on_each_rank():
    from dataclasses import replace

    packed = random_packed(8, 128, 32)
    order = np.random.default_rng(1).permutation(128)
    packed = replace(packed, g_idx=(order // 32).astype(np.int32))
    x = np.random.default_rng(2).standard_normal((2, 128), dtype=np.float32)
    np.testing.assert_allclose(row_parallel(x, packed, 8), gemm(x, packed), atol=1e-4)
    assert split_rows(packed, 8)[3].n_groups == packed.n_groups


@pytest.mark.parametrize("tp_size", [2, 4])
def test_an_mlp_needs_one_sum(tp_size):
    gate, up = (random_packed(128, 64, 32, seed=seed) for seed in (1, 2))
    down = random_packed(64, 128, 32, seed=3)
    x = np.random.default_rng(4).standard_normal((5, 64), dtype=np.float32)
    whole = parallel_mlp(x, gate, up, down, tp_size=1)
    split = parallel_mlp(x, gate, up, down, tp_size=tp_size)
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
