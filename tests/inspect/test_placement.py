"""Placements: nothing split, nothing twice, nothing over budget, and accepted by others."""

import importlib.util
import json
from itertools import combinations_with_replacement
from types import SimpleNamespace

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

import awqbench as ab
from awqbench.errors import BackendError, FormatError, ParameterError
from awqbench.inspect.placement import plan_placement
from awqbench.inspect.placement.assign import Load, assign
from awqbench.inspect.placement.budgets import Device, parse_budgets, parse_bytes
from awqbench.inspect.placement.compare import (
    accelerate_device_map,
    accelerate_rule,
    compare_maps,
    device_of,
)
from awqbench.inspect.placement.fill import fill_evenly, fill_in_order, overfill
from awqbench.inspect.placement.module_bytes import ModelBytes, predicted_model, stored_model
from awqbench.inspect.placement.packed_sizes import TensorSize
from awqbench.inspect.placement.parallel import parallel_table, rank_bytes
from awqbench.quantize.settings import Settings

GIB = 2**30
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)
# Qwen-72B-Chat, from its config.json; intermediate_size counts gate and up together.
QWEN_72B = {
    "model_type": "qwen",
    "hidden_size": 8192,
    "intermediate_size": 49152,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "kv_channels": 128,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
TWO_CARDS = {"cuda:0": "40GiB", "cuda:1": "40GiB"}


def qwen_int8():
    w8 = Settings(bits=8, group_size=128, zero_point=False, layout="gptq")
    return predicted_model(QWEN_72B, w8, name="Qwen-72B-Chat-Int8")


def made_up_model(sizes, *, tied=False):
    """A model whose embedding, layers, norm and head have these bytes."""
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.mlp.weight" for i in range(len(sizes) - 3)]
    names += ["model.norm.weight", "lm_head.weight"]
    tensors = {n: TensorSize((s,), "uint8") for n, s in zip(names, sizes, strict=True)}
    config = {"model_type": "llama", "tie_word_embeddings": tied}
    return ModelBytes("made up", config, tensors, "float16", "predicted")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40GiB", 40 * GIB),
        ("24GB", 24 * 10**9),
        ("0.5 gib", GIB // 2),
        ("512MiB", 512 * 2**20),
        ("1TB", 10**12),
        ("100 B", 100),
        ("100", 100),
        (0, 0),
    ],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "size", ["40G", "40 Gib/s", "", "GiB", "-1GiB", "1e9", -5, 1.5, True, None]
)
def test_other_sizes_are_refused_by_device(size):
    with pytest.raises(ParameterError, match="budget of cuda:1 is .* such as '40GiB'"):
        parse_budgets({"cuda:0": "1GiB", "cuda:1": size}, 0)


@pytest.mark.parametrize(
    ("budgets", "changes", "message"),
    [
        ({}, {}, "names no device"),
        (["40GiB"], {}, "names no device"),
        ({"cuda:0": 1}, {"reserve": {"cuda:1": 1}}, "reserve names cuda:1"),
        ({"cuda:0": 1}, {"strategy": "auto"}, "choose one of even, in_order"),
        ({"cuda:0": 1}, {"context": -1}, "context -1"),
        ({"cuda:0": 1}, {"batch": 0}, "batch 0"),
        ({"disk": "1GiB"}, {}, "add cuda:0 or cpu"),
    ],
)
def test_calls_that_make_no_sense_are_refused(budgets, changes, message):
    with pytest.raises(ParameterError, match=message):
        plan_placement("tiny", budgets, **changes)


loads_strategy = st.lists(st.integers(0, 60), min_size=1, max_size=9)
capacities_strategy = st.lists(st.integers(0, 120), min_size=1, max_size=4)


def used(loads, places, count):
    return [sum(x for x, p in zip(loads, places, strict=True) if p == i) for i in range(count)]


def every_split(loads, count):
    """Yield the bytes per device of every split into consecutive runs."""
    for cuts in combinations_with_replacement(range(len(loads) + 1), count - 1):
        edges = [0, *cuts, len(loads)]
        yield [sum(loads[a:b]) for a, b in zip(edges, edges[1:], strict=False)]


@settings(deadline=None, max_examples=300)
@given(loads_strategy, capacities_strategy)
def test_a_split_is_found_exactly_where_there_is_one(loads, capacities):
    splits = list(every_split(loads, len(capacities)))
    fitting = [
        split for split in splits if all(a <= b for a, b in zip(split, capacities, strict=True))
    ]
    for fill in (fill_in_order, fill_evenly):
        places = fill(loads, capacities)
        assert (places is not None) == bool(fitting)
        if places is not None:
            assert places == sorted(places) and len(places) == len(loads)
            assert used(loads, places, len(capacities)) in fitting


@settings(deadline=None, max_examples=200)
@given(loads_strategy, st.lists(st.integers(1, 400), min_size=1, max_size=4))
def test_an_even_split_has_the_emptiest_fullest_device(loads, capacities):
    places = fill_evenly(loads, capacities)
    if places is None:
        return

    def fullest(split):
        return max(a / b for a, b in zip(split, capacities, strict=True))

    best = min(map(fullest, every_split(loads, len(capacities))))
    assert fullest(used(loads, places, len(capacities))) <= best + 1 / min(capacities) + 1e-6


@settings(deadline=None, max_examples=100)
@given(loads_strategy, capacities_strategy)
def test_what_does_not_fit_is_still_placed_once(loads, capacities):
    places = overfill(loads, capacities)
    assert len(places) == len(loads) and places == sorted(places)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(1, 50), min_size=4, max_size=10),
    st.dictionaries(
        st.sampled_from(["cuda:0", "cuda:1", "cuda:2", "cpu", "disk"]),
        st.integers(0, 200),
        min_size=1,
    ).filter(lambda budgets: list(budgets) != ["disk"]),
    st.integers(0, 20),
    st.sampled_from(["even", "in_order"]),
    st.booleans(),
)
def test_every_module_is_placed_once_and_none_is_split(sizes, budgets, reserve, strategy, tied):
    model = made_up_model(sizes, tied=tied)
    placement = plan_placement(model, budgets, context=0, reserve=reserve, strategy=strategy)
    blocks = {name.rsplit(".mlp", 1)[0].removesuffix(".weight") for name in model.tensors}
    assert set(placement.device_map) == blocks | {"model.rotary_emb"}
    assert set(placement.device_map.values()) <= set(budgets)
    kept = sum(sizes) - (sizes[-1] if tied else 0)
    assert placement.table["weight_bytes"].sum() == placement.modules["weight_bytes"].sum() == kept
    if tied:
        assert placement.device_map["lm_head"] == placement.device_map["model.embed_tokens"]
    if placement.fits:
        assert (placement.table["free_bytes"] >= 0).all()
    else:
        assert (placement.table["free_bytes"] < 0).any()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=8),
    st.lists(st.integers(0, 100), min_size=1, max_size=3),
    st.integers(0, 200),
)
def test_the_first_device_has_room_for_what_is_offloaded(pairs, capacities, store):
    loads = [Load(f"m{i}", weights, cache) for i, (weights, cache) in enumerate(pairs)]
    devices = [Device(f"cuda:{i}", size, 0) for i, size in enumerate(capacities)]
    found = assign(loads, [*devices, Device("cpu", store, 0, True)], "even")
    if fill_in_order([load.total for load in loads], capacities) is not None:
        assert found.fits and found.guest_bytes == 0
    if not found.fits or max(found.places) < len(devices):
        return
    away = [load for load, place in zip(loads, found.places, strict=True) if place == len(devices)]
    here = sum(x.total for x, place in zip(loads, found.places, strict=True) if place == 0)
    guests = max(x.weight_bytes for x in away) + sum(x.kv_bytes for x in away)
    assert here + guests <= capacities[0]
    assert sum(load.weight_bytes for load in away) <= store


def test_qwen_72b_int8_on_two_40_gib_cards():
    model = qwen_int8()
    # 80 layers of 12 x 8192^2 + 8192 x 24576 ... counted by hand: attention and MLP linears.
    linears = 80 * (4 * 8192**2 + 3 * 8192 * 24576)
    scales = linears // 128 * 3  # float16 scales and 8-bit zero points
    ends = 2 * 152064 * 8192 * 2
    assert 0 < model.nbytes - (linears + scales + ends) < 0.001 * model.nbytes
    short = plan_placement(model, TWO_CARDS, context=2048)
    assert short.fits and 2048 <= short.max_context < 8192
    assert short.table["kv_bytes"].sum() == 2048 * 80 * 2 * 8192 * 2
    for context in (8192, 32768):
        long = plan_placement(model, TWO_CARDS, context=context)
        assert not long.fits and long.max_context == short.max_context
        assert f"a context of {long.max_context:,} tokens fits" in long.verdict
    assert plan_placement(model, TWO_CARDS, context=short.max_context).fits
    assert not plan_placement(model, TWO_CARDS, context=short.max_context + 1).fits


def test_embedding_and_head_are_counted_as_they_are_stored():
    modules = plan_placement(qwen_int8(), TWO_CARDS).modules.set_index("module")
    assert modules.loc["transformer.wte", "weight_bytes"] == 152064 * 8192 * 2
    assert modules.loc["lm_head", "kind"] == "head"
    assert list(modules.index)[:2] == ["transformer.wte", "transformer.h.0"]
    assert list(modules.index)[-2:] == ["transformer.ln_f", "lm_head"]


def test_even_balances_and_in_order_fills_the_first():
    even, ordered = (
        plan_placement(qwen_int8(), TWO_CARDS, context=2048, strategy=strategy).table
        for strategy in ("even", "in_order")
    )
    block = 900_000_000
    assert abs(even["free_bytes"].diff().iloc[1]) < block
    assert 0 <= ordered["free_bytes"].iloc[0] < block < ordered["free_bytes"].iloc[1]


def test_what_does_not_fit_goes_to_the_cpu_and_leaves_its_cache_behind():
    budgets = TWO_CARDS | {"cpu": "64GiB"}
    placement = plan_placement(qwen_int8(), budgets, context=8192)
    assert placement.fits and "offloaded" in placement.verdict
    table = placement.table.set_index("device")
    assert table.loc["cpu", "kv_bytes"] == 0 < table.loc["cpu", "weight_bytes"]
    assert table["kv_bytes"].sum() == 8192 * 80 * 2 * 8192 * 2
    assert table.loc["cuda:0", "reserve_bytes"] == GIB + 152064 * 8192 * 2  # the head visits


def test_weights_that_do_not_fit_are_told_from_a_long_context():
    placement = plan_placement(qwen_int8(), {"cuda:0": "24GiB"}, context=2048)
    assert not placement.fits and placement.max_context == -1
    assert "the weights alone, 71.19 GiB, are too many" in placement.verdict


def test_an_unknown_architecture_is_placed_without_a_cache():
    model = made_up_model([5, 5, 5, 5, 5])
    with pytest.raises(FormatError, match="context=0 plans the weights without a KV cache"):
        plan_placement(model, {"cuda:0": 100}, reserve=0)
    assert plan_placement(model, {"cuda:0": 100}, reserve=0, context=0).fits


def test_a_head_in_the_file_is_not_counted_where_it_is_tied():
    placement = plan_placement(
        made_up_model([5, 5, 5, 5, 5], tied=True), {"cuda:0": 20}, reserve=0, context=0
    )
    assert placement.fits and placement.table["weight_bytes"].sum() == 20


def test_results_can_be_read_by_people_and_machines():
    placement = plan_placement(
        "tiny", {"cuda:0": "6MiB", "cuda:1": "12MiB"}, context=64, reserve={"cuda:1": "1MiB"}
    )
    assert "Fits: cuda:" in str(placement) and "<table" in placement._repr_html_()
    assert placement.table["reserve_bytes"].tolist() == [0, 2**20]
    record = json.loads(json.dumps(placement.as_dict()))
    assert record["device_map"]["lm_head"] == "cuda:0" and record["fits"] is True


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_ranks_hold_the_model_between_them(tp_size):
    model = qwen_int8()
    rank = rank_bytes(model, tp_size, context=100)
    assert tp_size * rank.kv_bytes == 100 * 80 * 2 * 8192 * 2
    # Norms and g_idx of column-parallel linears are on every rank.
    assert 0 <= tp_size * rank.weight_bytes - model.nbytes < 0.001 * model.nbytes * tp_size


def test_ranks_beyond_the_key_value_heads_copy_them():
    config = ab.open_checkpoint("tiny").config  # 2 key-value heads
    model = predicted_model(config, Settings(group_size=32))
    one, two, four = (rank_bytes(model, n, context=100).kv_bytes for n in (1, 2, 4))
    assert one == 2 * two and two == four


def test_one_table_has_both_ways():
    table = parallel_table(qwen_int8(), TWO_CARDS, contexts=(2048, 8192))
    assert table["way"].tolist()[:3] == [
        "model parallel, even",
        "model parallel, in order",
        "tensor parallel 2",
    ]
    assert table["fits"].tolist() == [True] * 3 + [False] * 3
    qwen2 = {"hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64}
    qwen2 |= {"num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 152064}
    split = parallel_table(predicted_model(qwen2, Settings()), TWO_CARDS)
    last = split.iloc[-1]
    assert last["free_bytes"] > 0 and not last["fits"] and "14784" in last["why_not"]
    with pytest.raises(ParameterError, match="leave cpu and disk out"):
        parallel_table(qwen_int8(), {"cuda:0": "1GiB", "cpu": "1GiB"})


def test_filling_in_order_without_the_cache_overfills_the_first_card():
    model = qwen_int8()
    placement = plan_placement(model, TWO_CARDS, context=2048)
    maps = {"sequential": accelerate_rule(model, TWO_CARDS, balanced=False)}
    table = compare_maps(placement, model, maps).set_index(["map", "device"])
    assert table.loc["awqbench, even", "fits"].all()
    assert not table.loc[("sequential", "cuda:0"), "fits"]
    assert table.loc["sequential", "weight_bytes"].sum() == model.nbytes


RULE_BUDGETS = [
    {"cuda:0": "40GiB", "cuda:1": "40GiB"},
    {"cuda:0": "80GiB", "cuda:1": "24GiB", "cuda:2": "24GiB"},
    {"cuda:0": "24GiB", "cuda:1": "24GiB", "cpu": "200GiB"},
    {"cuda:0": "24GiB", "cpu": "24GiB"},
]


@needs_accelerate
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("budgets", RULE_BUDGETS, ids=lambda budgets: "-".join(budgets.values()))
def test_the_rule_gives_what_accelerate_gives(budgets, balanced):
    model = qwen_int8()
    theirs = accelerate_device_map(model, budgets, balanced=balanced)
    ours = accelerate_rule(model, budgets, balanced=balanced)
    assert {module: device_of(module, theirs) for module in ours} == ours


def test_without_accelerate_its_map_is_not_made_up(monkeypatch):
    from awqbench.inspect.placement import compare

    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install accelerate"):
        accelerate_device_map(qwen_int8(), TWO_CARDS)


def test_a_parent_stands_for_its_children():
    assert device_of("model.layers.3", {"model.layers": 1, "lm_head": 0}) == 1
    assert device_of("lm_head", {"": "cpu"}) == "cpu"
    with pytest.raises(KeyError):
        device_of("lm_head", {"model": 0})


@pytest.mark.parametrize("architecture", list(tiny_models.CONFIGS))
def test_every_parameter_and_buffer_has_a_device(architecture, tmp_path):
    """What accelerate's check_device_map asks for, on the real module tree."""
    import torch

    from awqbench.model_build import build_skeleton

    ckpt = ab.open_checkpoint(tiny_models.save_tiny_model(architecture, tmp_path / "m"))
    half = stored_model(ckpt).nbytes * 2 // 3
    budgets = {"cuda:0": half, "cuda:1": half}
    placement = plan_placement(ckpt, budgets, reserve=0, context=1)
    model = build_skeleton(ckpt, dtype=torch.float32)
    tensors = [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()]
    missing = [name for name in tensors if not _is_covered(name, placement.device_map)]
    assert not missing
    assert len(set(placement.device_map.values())) == 2


def _is_covered(name, device_map):
    return any(name == key or name.startswith(f"{key}.") for key in device_map)


@needs_accelerate
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "phi3", "gpt_neox"])
def test_transformers_loads_by_the_map_and_generates(architecture, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_models.save_tiny_model(architecture, tmp_path / "m")
    size = stored_model(ab.open_checkpoint(folder)).nbytes
    placement = plan_placement(
        folder, {"cpu": size * 3 // 5, "disk": size * 2}, reserve=0, context=1
    )
    assert placement.fits and set(placement.device_map.values()) == {"cpu", "disk"}
    split = AutoModelForCausalLM.from_pretrained(
        folder, device_map=placement.device_map, offload_folder=tmp_path / "offload"
    )
    assert {str(d) for d in split.hf_device_map.values()} == {"cpu", "disk"}
    whole = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        assert torch.equal(split(tokens).logits, whole(tokens).logits)


def run_plan(*arguments):
    from typer.testing import CliRunner

    from awqbench.cli import plan  # noqa: F401  (registers the command)
    from awqbench.cli.app import app

    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return SimpleNamespace(code=result.exit_code, text=result.output, error=result.exception)


def test_the_command_prints_writes_and_fails(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN_72B))
    cards = ["--budget", "cuda:0=40GiB", "--budget", "cuda:1=40GiB"]
    int8 = ["--bits", 8, "--layout", "gptq", "--symmetric"]
    file = tmp_path / "map.json"
    done = run_plan(config, *cards, *int8, "--context", 2048, "--device-map", file)
    assert done.code == 0, done.text
    assert "Fits: cuda:" in done.text and "tensor parallel 2" in done.text
    assert json.loads(file.read_text())["lm_head"] == "cuda:1"
    long = run_plan(config, *cards, *int8, "--context", 8192, "--json")
    assert long.code == 1
    assert json.loads(long.text)["fits"] is False
    dense = run_plan(config, *cards)
    assert dense.code == 1 and "the weights alone, 13" in dense.text


@pytest.mark.parametrize("budget", ["40GiB", "=40GiB", "cuda:0=40GiB"])
def test_budgets_are_written_device_equals_size(budget):
    done = run_plan("tiny", "--budget", budget, "--budget", "cuda:0=1GiB")
    assert isinstance(done.error, ParameterError), done.text
    expected = "twice" if budget.startswith("cuda") else "DEVICE=SIZE"
    assert expected in str(done.error)


def test_the_command_without_a_budget_plans_for_this_machine(monkeypatch, capsys):
    from awqbench import cli
    from awqbench.inspect.placement.budgets import local_budgets

    assert all(size > 0 for size in local_budgets().values())
    monkeypatch.setattr("sys.argv", ["awqbench", "plan", "tiny", "--json", "--context", "16"])
    with pytest.raises(SystemExit):
        cli.main()
    devices = {row["device"] for row in json.loads(capsys.readouterr().out)["devices"]}
    assert devices == set(map(str, local_budgets()))
