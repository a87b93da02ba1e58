"""The AMX level with its tile instructions as functions: any processor with AVX-512 runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gemm_cases import SHAPES, random_packed, relative_error, tokens_for

from awqbench.gemm import available_backends, native, native_build
from awqbench.gemm.native_layout import stream_weight

pytestmark = pytest.mark.skipif(
    bool(available_backends()["native"]), reason="there is no compiler here"
)
LIMITS = {"int16": 1e-4, "float32": 1e-6, "int8": 2e-2}
LEVEL, NEXT = "amx-int8", "avx512-vnni"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Make `native` use kernels whose tiles are emulated; return the library's path."""
    flags = [flag for flag in native_build.FLAGS if flag != "-O3"]
    flags += ["-O1", "-DAWQ_EMULATE_TILES", f"-I{Path(__file__).parent}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(native_build, "FLAGS", tuple(flags))
        native._load.cache_clear()
        found = native.library()
        if NEXT not in found.levels:
            pytest.skip("this processor has no AVX-512 VNNI")
        assert found.disabled == {} and list(found.levels)[:2] == [LEVEL, NEXT]
        yield native_build.build_library()
    native._load.cache_clear()


@pytest.mark.parametrize("activations", native.ACTIVATIONS)
@pytest.mark.parametrize("case", [*SHAPES, "groups of 72", "several panels"])
def test_is_bit_by_bit_the_next_level(emulated, case, activations):
    extra = {
        "groups of 72": lambda: random_packed(24, 144, 72),  # two tiles of 36 channels
        "several panels": lambda: random_packed(170, 1040, 128),
    }
    packed = (SHAPES | extra)[case]()
    weight = stream_weight(packed)
    for m in (0, 1, 7, 8, 9, 16, 17, 33, 129):
        x = tokens_for(packed, m)
        threads = 1 + m % 3
        y = native.matmul(x, weight, activations=activations, level=LEVEL, threads=threads)
        other = native.matmul(x, weight, activations=activations, level=NEXT)
        np.testing.assert_array_equal(y, other, err_msg=f"M = {m}")
        exact = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
        assert relative_error(y, exact) <= LIMITS[activations]


def test_largest_integers_do_not_overflow(emulated):
    for bits in (4, 8):
        packed = random_packed(48, 256, 128, bits=bits)
        packed.codes[:] = (1 << bits) - 1
        packed.zeros[:, ::2] = 0
        packed.zeros[:, 1::2] = (1 << bits) - 1
        packed.codes[::2, 128:] = 0
        weight = stream_weight(packed)
        x = np.ones((20, 256), np.float32)
        x[1::2] = -1
        exact = x.astype(np.float64) @ packed.dequantize().astype(np.float64).T
        for activations in ("int16", "int8"):
            y = native.matmul(x, weight, activations=activations, level=LEVEL)
            assert relative_error(y, exact) <= 1e-6


def test_nan_stays_in_its_row(emulated):
    packed = random_packed(70, 256, 64)
    x = tokens_for(packed, 21)
    x[13, 5] = np.nan
    weight = stream_weight(packed)
    y = native.matmul(x, weight, level=LEVEL)
    assert np.isnan(y[13]).all() and np.isfinite(np.delete(y, 13, axis=0)).all()


ILLEGAL_SCRIPT = """
import ctypes, faulthandler, signal, sys
received = []
signal.signal(signal.SIGILL, lambda *_: received.append(1))
kernels = ctypes.CDLL(sys.argv[1])
kernels.awq_level_name.restype = ctypes.c_char_p
print([kernels.awq_level_name(i).decode() for i in range(kernels.awq_level_count())])
signal.raise_signal(signal.SIGILL)
assert received == [1]
"""


@pytest.mark.parametrize("illegal", [False, True])
def test_tiles_that_are_not_allowed_leave_the_other_levels(emulated, illegal):
    done = subprocess.run(
        [sys.executable, "-c", ILLEGAL_SCRIPT, str(emulated)],
        env=os.environ | {"AWQ_EMULATED_SIGILL": "1"} if illegal else None,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (LEVEL in done.stdout) == (not illegal) and NEXT in done.stdout
