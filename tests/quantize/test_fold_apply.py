"""The arithmetic of a fold, by hand, and what it refuses."""

import numpy as np
import pytest
import torch

from awqbench.errors import ParameterError
from awqbench.quantize.folds.apply import Site, fold_scales


def small_site(**changes):
    site = Site("o", ("o",), 4, "v", "linear", np.array([0, 1, 0, 1]))
    return site._replace(**changes)


def small_tensors(dtype=torch.float32):
    return {
        "v.weight": torch.arange(1, 7, dtype=dtype).reshape(2, 3),
        "v.bias": torch.tensor([4.0, 9.0], dtype=dtype),
        "o.weight": torch.ones(2, 4, dtype=dtype),
    }


def test_fold_by_hand():
    tensors = small_tensors()
    fold_scales(tensors, small_site(), np.array([2.0, 3.0, 2.0, 3.0]))
    assert tensors["o.weight"].tolist() == [[2, 3, 2, 3]] * 2
    np.testing.assert_allclose(tensors["v.weight"], [[0.5, 1, 1.5], [4 / 3, 5 / 3, 2]], rtol=1e-6)
    assert tensors["v.bias"].tolist() == [2, 3]


def test_fold_into_one_plus_weight_by_hand():
    tensors = {"v.weight": torch.tensor([0.0, 1.0]), "o.weight": torch.ones(1, 2)}
    site = Site("o", ("o",), 2, "v", "norm_plus_one", np.array([0, 1]))
    fold_scales(tensors, site, np.array([2.0, 4.0]))
    assert tensors["v.weight"].tolist() == [-0.5, -0.5]


def test_fold_computes_in_float32_and_changes_nothing_in_place():
    tensors = small_tensors(torch.bfloat16)
    original = dict(tensors)
    fold_scales(tensors, small_site(), np.array([1.1, 1.0, 1.1, 1.0]))
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert original["o.weight"].tolist() == [[1.0] * 4] * 2


@pytest.mark.parametrize(
    ("changes", "scales", "words"),
    [
        ({}, [2, 3, 2.1, 3], "channel 0 has scale 2 where 2.04.*share_scales"),
        ({"source": np.array([0, 1, -1, 1])}, [2, 3, 2, 3], "channel 2 has scale 2 where 1"),
        ({}, [2, 3, 2], "4 input channels"),
        ({}, [2, 0, 2, 0], "channel 1 is 0.0"),
        ({}, [2, np.nan, 2, np.nan], "channel 1 is nan"),
        ({"linears": ("o", "p")}, [2, 3, 2, 3], "no p.weight"),
        ({"source": np.array([0, 7, 0, 7])}, [2, 3, 2, 3], "2 rows; o is fed by row 7"),
        ({"prev_op": None, "reason": "because."}, [1, 1, 1, 1], "cannot be folded: because"),
    ],
)
def test_wrong_folds_are_refused_and_change_nothing(changes, scales, words):
    tensors = small_tensors()
    original = dict(tensors)
    with pytest.raises(ParameterError, match=words):
        fold_scales(tensors, small_site(**changes), np.array(scales, dtype=float))
    assert all(tensors[name] is original[name] for name in original)
