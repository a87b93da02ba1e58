"""Tokens a second that memory allows: the formula, and what a step reads."""

import pytest

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.decode_bound import (
    KNOWN_MODELS,
    bounds_by_setting,
    bytes_read,
    decode_bound,
)
from awqbench.inspect.placement.kv_cache import kv_cache_bytes
from awqbench.inspect.placement.module_bytes import predicted_model, stored_model
from awqbench.quantize.settings import Settings

TINY = open_checkpoint("tiny")


def test_bandwidth_over_bytes_of_a_step():
    model = stored_model(TINY)
    cache = sum(kv_cache_bytes(TINY.config, context=1000, batch=3))
    bound = decode_bound(model, 10.0, context=1000, batch=3)
    assert (bound.weight_bytes, bound.kv_bytes) == (TINY.nbytes, cache)  # the head is tied
    assert bound.tok_per_s == pytest.approx(3 * 10e9 / (TINY.nbytes + cache))


def test_an_embedding_of_its_own_is_not_read():
    config = KNOWN_MODELS["Qwen2-7B"]
    tied = predicted_model(config | {"tie_word_embeddings": True})
    untied = predicted_model(config | {"tie_word_embeddings": False})
    table = 2 * config["vocab_size"] * config["hidden_size"]
    assert untied.nbytes == tied.nbytes + table
    assert bytes_read(untied) == bytes_read(tied) == tied.nbytes


def test_of_experts_the_chosen_ones_are_read():
    config = KNOWN_MODELS["Mixtral-8x7B"]
    two, all_eight = (
        bytes_read(predicted_model(config | {"num_experts_per_tok": n})) for n in (2, 8)
    )
    experts = 32 * 8 * 3 * config["hidden_size"] * config["intermediate_size"] * 2
    assert all_eight - two == pytest.approx(experts * 6 / 8, rel=1e-9)


def test_fewer_bits_and_shorter_contexts_are_faster():
    cases = {"as it is": None} | {f"{b}": Settings(bits=b) for b in (8, 4)}
    table = bounds_by_setting(TINY, cases, 10.0, contexts=(0, 4096)).set_index(["case", "context"])
    speed = table["tok_per_s"]
    assert speed["as it is", 0] < speed["8", 0] < speed["4", 0]
    assert speed["4", 4096] < speed["4", 0]
    one = decode_bound(predicted_model(TINY, Settings(bits=4)), 10.0, context=4096)
    assert tuple(table.loc[("4", 4096)]) == pytest.approx(tuple(one))


def test_a_bandwidth_must_be_above_zero():
    with pytest.raises(ParameterError, match="above 0"):
        decode_bound(stored_model(TINY), 0.0)
