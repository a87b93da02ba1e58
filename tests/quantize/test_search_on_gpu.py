"""The search on a GPU, shown on a stand-in: everything heavy runs there, and the bytes agree."""

import json

import numpy as np
import pytest
import tiny_experts
import torch
from pretended_gpu import PretendedGpu
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import MemoryLimitError
from awqbench.model_experts import name_in_model
from awqbench.quantize.choices import scales, site
from awqbench.quantize.choices.block import quantize_block
from awqbench.quantize.folds.find import Site
from awqbench.quantize.run.device_memory import largest_need
from awqbench.quantize.search import block_weights, make_settings, search_block
from awqbench.quantize.statistics.chunk import Sketching
from awqbench.quantize.statistics.moments import SiteMoments
from awqbench.quantize.statistics.stats import SiteRecord

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))
OF_THE_RUN = ("finished", "times", "resumed_blocks", "damaged_blocks", "memory", "computed_with")
RULES = (r"layers\.0\.mlp\.(gate|up)_proj=bits:8", r"down_proj=bits:8,group_size:16", "o_proj=skip")
# What only GPTQ calls.
GPTQ = {"linalg_cholesky_ex", "cholesky_inverse", "addr_"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Give a model's folder and its statistics, made once."""
    known = {}

    def of(architecture, sketch=None):
        if (architecture, sketch) not in known:
            folder = tmp_path_factory.mktemp(architecture)
            if architecture in tiny_experts.CONFIGS:
                tiny_experts.save_model(architecture, folder, unreached=2, outliers=True)
            else:
                save_tiny_model(architecture, folder, dtype="bfloat16")
            how = {} if sketch is None else {"sketch": sketch}
            known[architecture, sketch] = (
                folder,
                ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"), **how),
            )
        return known[architecture, sketch]

    return of


@pytest.fixture
def gpu(monkeypatch):
    """Let torch tell of a GPU; its tensors are there inside the context that this gives."""
    facts = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "Stand-in",
        "mem_get_info": lambda device=None: (3 * 2**30, 8 * 2**30),
    }
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    # The same dtype of H on every CPU that runs this.
    monkeypatch.setattr(scales, "multiplies_bfloat16", lambda device: True)
    return PretendedGpu()


def contents(out):
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    record = json.loads(found["awqbench_run.json"])
    found["awqbench_run.json"] = {k: v for k, v in record.items() if k not in OF_THE_RUN}
    return found, record["computed_with"]


CASES = {
    "scales and clip": ("qwen3", None, {}),
    "GPTQ, whole rows": ("qwen3", None, {"rounding": "gptq", "group_size": -1, "clip": False}),
    "GPTQ, symmetric": ("llama", None, {"rounding": "gptq", "zero_point": False, "layout": "gptq"}),
    "sketches": ("qwen3", Sketching(above=64, rows=48), {"rounding": "gptq"}),
    "rules": ("qwen3", None, {"rounding": "gptq", "rules": RULES, "layout": "compressed-tensors"}),
    "experts": ("qwen3_moe", None, {}),
    "experts, GPTQ": ("mixtral", None, {"rounding": "gptq"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_block_searched_there_has_the_bytes_of_one_searched_here(made, gpu, case):
    architecture, sketch, changes = CASES[case]
    folder, stats = made(architecture, sketch)
    records, name, tensors = stats.block(0), stats.block_name(0), block_tensors(folder)
    settings = make_settings(None, **{"group_size": 32, "n_grid": 6} | changes)
    expected = quantize_block(tensors, records, settings, name=name)
    with gpu:
        found = quantize_block(tensors, records, settings, name=name, device="cuda")
    # By their texts: alpha of no scaling is NaN, which is not itself.
    assert repr((found.rows, found.curves)) == repr((expected.rows, expected.curves))
    assert found.tensors.keys() == expected.tensors.keys()
    for path, tensor in expected.tensors.items():
        assert type(found.tensors[path]) is torch.Tensor and torch.equal(
            found.tensors[path], tensor
        )
    heavy = {"amax", "matmul", "round_"}
    heavy |= {"bmm"} if settings.clip else set()
    heavy |= GPTQ if settings.rounding == "gptq" else set()
    assert heavy <= gpu.used
    assert gpu.bytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_a_real_gpu_loses_no_more_than_the_cpu(made, case):
    architecture, sketch, changes = CASES[case]
    folder, stats = made(architecture, sketch)
    records, name, tensors = stats.block(0), stats.block_name(0), block_tensors(folder)
    settings = make_settings(None, **{"group_size": 32} | changes)
    here = quantize_block(tensors, records, settings, name=name)
    there = quantize_block(tensors, records, settings, name=name, device="cuda")
    assert there.tensors.keys() == here.tensors.keys()
    for found, expected in zip(there.rows, here.rows, strict=True):
        assert found["linear"] == expected["linear"]
        assert found["output_error"] == pytest.approx(expected["output_error"], rel=0.1)


def block_tensors(folder):
    """Return a model's tensors of block 0, by path in the block."""
    ckpt, head = ab.open_checkpoint(folder), "model.layers.0."
    names = {name_in_model(stored): stored for stored in ckpt.tensors}
    return {n.removeprefix(head): ckpt.read(names[n]) for n in names if n.startswith(head)}


def test_a_run_on_a_gpu_leaves_the_files_of_one_on_the_cpu(made, gpu, tmp_path):
    folder, stats = made("qwen3")
    ab.quantize(folder, tmp_path / "cpu", stats=stats, group_size=32, device="cpu")
    with gpu:
        ab.quantize(folder, tmp_path / "cuda", stats=stats, group_size=32)
    (expected, on_cpu), (found, on_gpu) = (contents(tmp_path / name) for name in ("cpu", "cuda"))
    assert found == expected
    assert (on_cpu["device"], on_gpu["device"]) == ("cpu", "cuda (Stand-in)")
    assert "bmm" in gpu.used


@pytest.mark.parametrize("objective", ["statistics", "block"])
def test_a_search_without_writing_chooses_the_same(made, gpu, objective):
    folder, stats = made("qwen3")
    how = {"objective": objective, "tokens": TOKENS, "group_size": 32, "n_grid": 6}
    expected = ab.search(folder, stats, device="cpu", **how)
    with gpu:
        found = ab.search(folder, stats, **how)
    assert found.table.equals(expected.table) and found.curves.equals(expected.curves)
    assert "bmm" in gpu.used
    for key, choice in expected.choices.items():
        assert torch.equal(found.choices[key].channel_scales, choice.channel_scales)
        for path, clip in choice.clips.items():
            assert torch.equal(found.choices[key].clips[path].shrink, clip.shrink)


@pytest.mark.parametrize("on_nonfinite", ["mask", "round"])
def test_bad_channels_are_masked_there_as_here(made, gpu, on_nonfinite):
    folder, stats = made("qwen3")
    records = stats.block(0)
    for _, moments in records:
        moments.tensors["nonfinite"][3] = 1
    weights = block_weights(ab.open_checkpoint(folder), records, stats.block_name(0))
    settings = make_settings(None, group_size=32, on_nonfinite=on_nonfinite)
    expected = search_block(records, weights, settings, name="b")
    with gpu:
        found = search_block(records, weights, settings, name="b", device="cuda")
    assert found.rows == expected.rows
    assert "matmul" in gpu.used
    assert all(torch.equal(found.effective[p], w) for p, w in expected.effective.items())


def test_h_without_any_activation_is_rounded_there_too(gpu):
    with gpu:
        factor = site.inverse_factor(torch.zeros(8, 8, device="cuda"))
        assert factor.device.type == "cuda" and torch.equal(factor.cpu(), torch.eye(8))


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def library_out_of_memory(*_, **__):
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("lack", [out_of_memory, library_out_of_memory])
def test_a_gpu_too_small_is_named_with_what_the_block_needs(made, gpu, tmp_path, monkeypatch, lack):
    folder, stats = made("qwen3")
    monkeypatch.setattr(site, "search_clip", lack)
    words = r"model\.layers\.0: .* about 0\.00 GiB on cuda:0 \(at mlp\.gate_proj, 64 input"
    with gpu, pytest.raises(MemoryLimitError, match=words) as caught:
        ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32)
    assert "which has 8.00 GiB, 3.00 of them free. Search on the CPU" in str(caught.value)
    with gpu, pytest.raises(MemoryLimitError, match=words):
        ab.search(folder, stats, group_size=32)
    monkeypatch.undo()
    # No block is finished: the fix that the text names is not refused.
    ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32, device="cpu")


def test_another_error_of_the_search_stays_what_it_is(made, gpu, tmp_path, monkeypatch):
    folder, stats = made("qwen3")

    def broken(*_, **__):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(site, "search_clip", broken)
    with gpu, pytest.raises(RuntimeError, match="illegal memory access"):
        ab.search(folder, stats, group_size=32)


@pytest.mark.parametrize(
    ("rounding", "group_size"), [("nearest", 64), ("gptq", 64), ("nearest", -1)]
)
@pytest.mark.parametrize(("rows", "k"), [(512, 128), (96, 256), (2048, 64)])
def test_the_bytes_that_are_told_are_those_that_are_taken(gpu, rounding, group_size, rows, k):
    torch.manual_seed(0)
    x = torch.randn(2 * k, k)
    vectors = {"absmax": x.abs().amax(0), "sum_abs": x.abs().sum(0).double()}
    counts = {"nonfinite": torch.zeros(k, dtype=torch.int64), "counts": torch.tensor([2 * k, 0])}
    moments = SiteMoments({"gram": x.T @ x} | vectors | counts)
    linears = ("up_proj", "gate_proj")
    record = SiteRecord(Site("up_proj", linears, k, "norm", "norm", np.arange(k)), moments)
    tensors = {f"{path}.weight": torch.randn(rows, k) for path in linears}
    tensors["norm.weight"] = torch.ones(k)
    settings = make_settings(None, n_grid=2, group_size=group_size, rounding=rounding)
    need = largest_need([record], dict.fromkeys(linears, rows), settings)
    with gpu:
        quantize_block(tensors, [record], settings, name="b", device="cuda")
    assert gpu.peak_bytes <= need.bytes <= 1.5 * gpu.peak_bytes
