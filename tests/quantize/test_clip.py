"""The clip search: never worse than the full range, judged by H, one grid for all."""

import pytest
import torch

from awqbench.grid import fake_quantize
from awqbench.quantize.choices.clip import SHRINKS, search_clip
from awqbench.quantize.settings import Settings


def case(seed=0, n=24, k=64, group=32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator)
    x = torch.randn(200, k, generator=generator)
    gram = x.T @ x
    blocks = torch.stack([gram[g : g + group, g : g + group] for g in range(0, k, group)])
    return weight, blocks


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("zero_point", [True, False])
def test_each_group_takes_the_candidate_with_the_least_error(bits, zero_point):
    weight, blocks = case()
    settings = Settings(bits=bits, group_size=32, zero_point=zero_point, scale_dtype="float32")
    choice = search_clip(weight, blocks, settings, group_size=32)
    assert choice.loss_after <= choice.loss_before
    row, group = 3, 1
    part = weight[row : row + 1, 32:64]
    losses = []
    for shrink in SHRINKS:
        low, high = part.min().clamp(max=0) * shrink, part.max().clamp(min=0) * shrink
        if zero_point:  # quantize the clipped group: its range is the shrunk one
            decoded = fake_quantize(part.clamp(low, high).numpy(), bits, 32)
            error = torch.from_numpy(decoded) - part
            losses.append(float((error @ blocks[group] @ error.T).item()))
    if zero_point:
        best = SHRINKS[min(range(len(losses)), key=losses.__getitem__)]
        assert float(choice.shrink[row, group]) == pytest.approx(best)


def test_an_outlier_that_no_token_uses_is_clipped_away():
    weight, blocks = case()
    weight[0, 5] = 12.0
    blocks[0, 5, :] = blocks[0, :, 5] = 0.0
    choice = search_clip(weight, blocks, Settings(bits=3, group_size=32), group_size=32)
    assert float(choice.shrink[0, 0]) <= 0.7


def test_without_any_activation_the_full_range_is_kept():
    weight, blocks = case()
    choice = search_clip(weight, torch.zeros_like(blocks), Settings(group_size=32), group_size=32)
    assert (choice.shrink == 1).all()
