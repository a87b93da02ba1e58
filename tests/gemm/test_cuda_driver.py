"""Whether a driver is there and new enough, on made-up machines."""

import ctypes

import pytest

from awqbench.gemm import cuda, cuda_driver


class Driver:
    """A driver's library."""

    def __init__(self, version):
        self.version = version

    def cuDriverGetVersion(self, to):  # noqa: N802
        ctypes.cast(to, ctypes.POINTER(ctypes.c_int))[0] = self.version


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that makes this a machine with a driver."""
    (tmp_path / "version").write_text("")

    def make(driver):
        def library():
            if driver is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return driver

        monkeypatch.setattr(cuda_driver, "_TRACES", (str(tmp_path / "version"),))
        monkeypatch.setattr(cuda_driver, "_library", library)
        monkeypatch.setattr(cuda, "find_spec", lambda name: name)
        monkeypatch.setattr(cuda.cuda_nvrtc, "why_absent", lambda: "")
        monkeypatch.setattr(cuda.cuda_nvrtc, "version", lambda: "13.5")
        cuda.why_absent.cache_clear()

    yield make
    cuda.why_absent.cache_clear()


@pytest.mark.parametrize("version", [13000, 13050, 14000])
def test_a_driver_of_the_same_major_version_loads_what_nvrtc_makes(machine, version):
    machine(Driver(version))
    assert cuda.why_absent() == ""


def test_an_older_driver_is_named_with_its_version(machine):
    machine(Driver(12080))
    assert "for CUDA 12.8, and NVRTC 13.5" in cuda.why_absent()
    assert "backend='torch'" in cuda.why_absent()


def test_a_container_without_the_gpu_sees_only_the_host_s_proc(machine):
    machine(None)
    reason = cuda.why_absent()
    assert reason.startswith("no driver: libcuda.so.1") and "--gpus" in reason


def test_what_else_is_missing_is_said(machine, monkeypatch):
    machine(Driver(13000))
    monkeypatch.setattr(cuda.cuda_nvrtc, "why_absent", lambda: "NVRTC is not found")
    assert cuda.why_absent() == "NVRTC is not found"
    cuda.why_absent.cache_clear()
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert cuda.why_absent().startswith("CuPy is not installed")
