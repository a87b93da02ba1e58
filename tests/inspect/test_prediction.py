"""Wall time told beforehand: the counts are checked, the speed of a machine cannot be."""

import pytest
from tiny_models import save_tiny_model

from awqbench.errors import AlreadyQuantizedError
from awqbench.inspect.doctor import prediction
from awqbench.inspect.doctor.prediction import Rates, predict_seconds
from awqbench.quantize.search import make_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


def counted(folder, monkeypatch, rate, n_tokens=100, **changes):
    """Return the prediction where one kind of work takes a second a unit, all else nothing."""
    rates = Rates(**(dict.fromkeys(Rates._fields, 0.0) | {rate: 1.0}))
    monkeypatch.setattr(prediction, "_rates", lambda *_: (rates,) * 3)
    return predict_seconds(folder, n_tokens, make_settings(None, group_size=32, **changes)).seconds


def test_work_is_counted_as_it_is_done(folder, monkeypatch):
    linears = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    weights = sum(n * k for n, k in linears)
    assert counted(folder, monkeypatch, "forward") == 2 * 2 * 100 * weights
    sums = 3 * 64**2 + 96**2
    assert counted(folder, monkeypatch, "statistics") == 2 * 1.25 * 100 * sums
    assert counted(folder, monkeypatch, "clip") == 2 * weights
    assert counted(folder, monkeypatch, "clip", clip=False) == 0
    assert counted(folder, monkeypatch, "candidate") == 2 * 21 * weights
    assert counted(folder, monkeypatch, "candidate", max_rows=32) == 2 * 21 * 32 * (3 * 64 + 96)
    assert counted(folder, monkeypatch, "candidate", scales="none") == 0
    assert counted(folder, monkeypatch, "factor") == 0
    assert counted(folder, monkeypatch, "factor", rounding="gptq") == 2 * (3 * 64**3 + 96**3)


def test_a_prediction_has_an_interval_and_grows_with_the_text(folder):
    short, long = (predict_seconds(folder, n) for n in (1000, 100_000))
    assert 0 < short.low_s < short.seconds < short.high_s
    assert long.seconds > short.seconds
    assert all(value >= 0 for value in short.parts.values())
    assert "of it" in short.describe()


def test_a_quantized_folder_has_no_prediction(folder, tmp_path):
    import numpy as np

    import awqbench as ab

    ab.quantize(folder, tmp_path / "q", tokens=np.zeros((1, 8), int), group_size=32)
    with pytest.raises(AlreadyQuantizedError):
        predict_seconds(tmp_path / "q", 10)
