"""Activations are judged site by site: safe, would clamp, or bfloat16 only."""

import numpy as np
import pytest
import torch

from awqbench.inspect.health import VERDICTS, activation_health, layer_verdicts
from awqbench.inspect.health.activations import MARGIN
from awqbench.numerics import LIMITS
from awqbench.quantize.folds.find import Site
from awqbench.quantize.statistics.moments import Moments
from awqbench.quantize.statistics.stats import FORMAT, save_block, save_manifest

SAFE, CLAMP, BF16, TOO_LARGE = VERDICTS
K = 500


def stats_of(folder, *blocks):
    """Save statistics: of each block a dict of site name to its inputs."""
    folder.mkdir()
    for i, sites in enumerate(blocks):
        records = []
        for name, x in sites.items():
            moments = Moments(x.shape[1])
            moments.add(x)
            site = Site(
                name=name,
                linears=(name,),
                in_features=x.shape[1],
                prev_op=None,
                kind="none",
                source=None,
            )
            records.append((site, moments.tensors()))
        save_block(folder, i, records)
    return save_manifest(
        folder, {"format": FORMAT, "n_blocks": len(blocks), "prefix": "model.layers"}
    )


def inputs(channels=0, value=1.0):
    """Ones, and in some channels another value."""
    x = torch.ones(4, K)
    x[2, :channels] = value
    return x


LIMIT = LIMITS["float16"].largest / MARGIN


@pytest.mark.parametrize(
    ("channels", "value", "verdict"),
    [
        (0, 1.0, SAFE),
        (K, LIMIT * 0.999, SAFE),
        (1, LIMIT * 1.001, CLAMP),
        (5, -7e4, CLAMP),  # one channel in a hundred is few
        (6, -7e4, BF16),
        (K, 7e4, BF16),
        (1, 3e38, TOO_LARGE),
    ],
)
def test_a_site_has_a_verdict(tmp_path, channels, value, verdict):
    row = activation_health(stats_of(tmp_path / "s", {"q": inputs(channels, value)})).iloc[0]
    assert row["verdict"] == verdict
    assert row["tight_channels"] == (0 if verdict == SAFE else channels)
    assert row["absmax"] == pytest.approx(max(abs(value), 1.0))


@pytest.mark.parametrize(("channels", "verdict"), [(2, CLAMP), (K, BF16)])
def test_channels_that_were_not_finite_are_tight(tmp_path, channels, verdict):
    x = inputs(channels, torch.inf)
    row = activation_health(stats_of(tmp_path / "s", {"q": x})).iloc[0]
    assert (row["verdict"], row["tight_channels"]) == (verdict, channels)
    assert row["nonfinite_tokens"] == 1 and np.isfinite(row["absmax"])


def test_outlier_channels_stand_out_from_the_median(tmp_path):
    table = activation_health(
        stats_of(tmp_path / "s", {"a": inputs(3, 21.0), "b": inputs(3, 19.0), "c": inputs() * 0})
    )
    assert list(table["outlier_channels"]) == [3, 0, 0]


def test_a_layer_is_as_good_as_its_worst_site(tmp_path):
    stats = stats_of(
        tmp_path / "s",
        {"q": inputs(1, 100.0), "down": inputs(2, 1e5), "up": inputs()},
        {"q": inputs(), "down": inputs(1, 200.0)},
        {"q": inputs(1, 4e4), "down": inputs(K, 4e4)},
    )
    layers = layer_verdicts(activation_health(stats))
    assert list(layers["block"]) == [0, 1, 2]
    assert list(layers["verdict"]) == [CLAMP, SAFE, BF16]
    assert list(layers["site"]) == ["down", "down", "down"]
