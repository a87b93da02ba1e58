"""A model run block by block gives the logits of the whole model."""

import json

import pytest
import torch
from tiny_models import CONFIGS, VOCABULARY, save_tiny_model

from awqbench.errors import AlreadyQuantizedError, FormatError, ParameterError, TraceError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.model import BlockRunner
from awqbench.model_build import takes_tuples
from awqbench.model_weights import WeightReader


def tokens(n=3, seq=20):
    return torch.randint(0, VOCABULARY, (n, seq), generator=torch.Generator().manual_seed(1))


def run_all(runner, ids, *, leave_out=()):
    inputs = runner.embed(ids)
    for i in range(runner.n_blocks):
        if i not in leave_out:
            inputs = runner.run_block(runner.load_block(i), i, inputs)
    return runner.head(inputs.hidden)


def whole_model(folder, ids, **kwargs):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model("llama", tmp_path_factory.mktemp("llama"))


def edit_tensors(folder, change):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", CONFIGS)
def test_blocks_and_head_give_the_models_logits(architecture, tmp_path):
    folder = save_tiny_model(architecture, tmp_path)
    runner = BlockRunner(open_checkpoint(folder))
    expected = whole_model(folder, tokens())
    size = expected.abs().max()
    assert (run_all(runner, tokens()) - expected).abs().max() <= 1e-6 * size
    # Without a block they are others, or the comparison would show nothing.
    assert (run_all(runner, tokens(), leave_out=[1]) - expected).abs().max() > 1e-2 * size


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt_neox"])
def test_bfloat16_is_computed_in_bfloat16(architecture, tmp_path):
    folder = save_tiny_model(architecture, tmp_path, dtype="bfloat16")
    runner = BlockRunner(open_checkpoint(folder))
    assert runner.dtype == torch.bfloat16
    logits = run_all(runner, tokens())
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, whole_model(folder, tokens(), dtype=torch.bfloat16))
    wide = runner.in_dtype(torch.float32)
    assert run_all(wide, tokens()).dtype == torch.float32
    assert runner.in_dtype(torch.bfloat16) is runner


def test_only_the_loaded_block_takes_memory(llama):
    runner = BlockRunner(open_checkpoint(llama))
    block = runner.load_block(1)
    assert runner.block_name(1) == "model.layers.1"
    assert not any(p.is_meta or p.requires_grad for p in block.parameters())
    skeleton = runner._model.get_submodule(runner.prefix)
    assert all(p.is_meta for p in skeleton.parameters())
    assert runner._model.lm_head.weight.is_meta  # read only by head()


def test_tied_head_is_one_parameter(tmp_path):
    folder = save_tiny_model("qwen3", tmp_path)
    assert "lm_head.weight" not in open_checkpoint(folder).tensors
    runner = BlockRunner(open_checkpoint(folder))
    run_all(runner, tokens())
    assert runner._model.lm_head.weight is runner._model.model.embed_tokens.weight


def test_sliding_and_full_blocks_get_their_own_masks(tmp_path):
    runner = BlockRunner(open_checkpoint(save_tiny_model("gemma3", tmp_path)))
    masks = [call.kwargs["attention_mask"] for call in runner.embed(tokens()).calls]
    assert masks[0] is not None  # window 8 of 20 tokens
    assert masks[1] is None or not torch.equal(masks[0], masks[1])


def test_body_saved_without_its_prefix(tmp_path):
    folder = save_tiny_model("qwen3", tmp_path)
    expected = whole_model(folder, tokens())

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(folder, strip)
    runner = BlockRunner(open_checkpoint(folder))
    assert torch.equal(run_all(runner, tokens()), expected)
    assert runner.stored_name("model.norm.weight") == "norm.weight"


def test_names_changed_by_transformers_are_found(tmp_path):
    """GPT-NeoX files name the head embed_out, whatever transformers calls it."""
    ckpt = open_checkpoint(save_tiny_model("gpt_neox", tmp_path))
    runner = BlockRunner(ckpt)
    head = next(n for n, m in runner._model.named_modules() if m is runner._model.lm_head)
    assert runner.stored_name(f"{head}.weight") in ckpt.tensors


def test_missing_tensor_is_named(tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    runner = BlockRunner(open_checkpoint(folder))
    runner.load_block(0)
    with pytest.raises(FormatError, match=name):
        runner.load_block(1)


def test_wrong_shape_is_named(tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:90].clone()}))
    with pytest.raises(FormatError, match=rf"{name}.*\[90, 64\].*\[96, 64\]"):
        BlockRunner(open_checkpoint(folder)).load_block(0)


def test_tokens_are_checked(llama):
    runner = BlockRunner(open_checkpoint(llama))
    with pytest.raises(ParameterError, match="128.*another tokenizer"):
        runner.embed(torch.tensor([[0, VOCABULARY]]))
    with pytest.raises(ParameterError, match="int64"):
        runner.embed(torch.zeros(2, 3))
    with pytest.raises(ParameterError, match="no block 2"):
        runner.load_block(2)


def test_unknown_architecture_runs_no_code(tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "new_one", "auto_map": {"AutoConfig": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TraceError, match="new_one"):
        BlockRunner(open_checkpoint(folder))
    assert not (tmp_path / "ran").exists()


def test_quantized_folder_is_refused(tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AlreadyQuantizedError):
        BlockRunner(open_checkpoint(folder))


def test_buffers_come_from_the_file_or_from_the_model(tmp_path):
    from safetensors.torch import save_file

    save_file({"block.stored": torch.full((2,), 5.0)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    block = torch.nn.Module()
    block.register_buffer("stored", torch.zeros(2))
    block.register_buffer("computed", torch.ones(2), persistent=False)
    reader = WeightReader(
        open_checkpoint(tmp_path), block, dtype=torch.float32, device=torch.device("cpu")
    )
    reader.fill_buffers(block, "block")
    assert block.stored.tolist() == [5, 5] and block.computed.tolist() == [1, 1]
    block.register_buffer("lost", torch.zeros(2, device="meta"))
    with pytest.raises(TraceError, match="block.lost"):
        reader.fill_buffers(block, "block")


class Block(torch.nn.Module):
    def forward(self, hidden_states, extra=None):
        return hidden_states


class Chain(torch.nn.Module):
    """A model of two blocks, which calls them in the way `call` says."""

    def __init__(self, call):
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.call = call

    def forward(self, inputs_embeds, use_cache=None):
        return (self.call(*self.layers, inputs_embeds),)


@pytest.mark.parametrize(
    ("call", "as_tuple"),
    [
        (lambda a, b, x: b(a(x)), False),
        (lambda a, b, x: b(a(x, extra=x.sum()), extra=x.mean()), False),
        (lambda a, b, x: b(a(x)[0])[0], True),
    ],
)
def test_form_of_a_blocks_output(call, as_tuple):
    model = Chain(call)
    assert takes_tuples(model, list(model.layers), torch.ones(4)) is as_tuple


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda a, b, x: b(a(x) + x), "does not get the output of block 0"),
        (lambda a, b, x: a(b(x)), "block 1 is called where block 0"),
        (lambda a, b, x: a(x), "only 1 of 2"),
        (lambda a, b, x: (lambda y: b(y, extra=y + 1))(a(x)), "more from the blocks before it"),
    ],
)
def test_no_chain_of_blocks(call, problem):
    model = Chain(call)
    with pytest.raises(TraceError, match=problem):
        takes_tuples(model, list(model.layers), torch.ones(4))
