"""The public names resolve when they are used, and cost nothing before."""

import subprocess
import sys

import pytest

import awqbench as ab

HEAVY = ("torch", "transformers", "pandas", "matplotlib", "papermill", "ipywidgets", "cupy")


def run_python(code):
    """Run code in a new interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ab.__all__)
def test_every_public_name_resolves(name):
    value = getattr(ab, name)
    assert callable(value)
    assert value.__doc__
    assert name in dir(ab)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'awqbench' has no attribute 'quantise'"):
        _ = ab.quantise


def test_import_brings_nothing_heavy():
    code = f"import sys, awqbench; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_listing_names_brings_nothing_heavy():
    code = f"import sys, awqbench as ab; dir(ab); print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


@pytest.mark.parametrize("name", ["fake_quantize", "quantize_weight", "cast_figures"])
def test_the_maths_needs_numpy_alone(name):
    code = f"import sys, awqbench; awqbench.{name}; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


# Importing a submodule binds the package's name over a function of the same name.
@pytest.mark.parametrize(
    "first",
    [
        "pass",
        "ab.gemm; ab.quantize",
        "import awqbench.gemm.layout, awqbench.quantize.settings",
        "from awqbench.gemm.numpy_ import matmul; from awqbench.quantize.choices import table",
        "ab.available_backends; ab.Settings; ab.search; ab.QuantLinear",
    ],
)
def test_rooms_stay_callable(first):
    code = f"""
import numpy as np, awqbench as ab
{first}
packed = ab.quantize_weight(np.eye(8), group_size=8)
assert abs(ab.gemm(np.ones((1, 8), np.float32), packed) - 1).max() < 1e-6
try:
    ab.quantize()
except TypeError as error:
    print(error)
"""
    assert run_python(code).startswith("quantize() missing")
