"""Records of whole models: tokens one by one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from awqbench.bench.record.check import Record, derive
from awqbench.bench.record.statistics import summarise


def decode_record(
    like: Record,
    samples_s: Sequence[float],
    *,
    model: str,
    quant: str,
    backend: str,
    threads: int,
    prompt_tokens: int,
    new_tokens: int,
    bytes_per_token: int,
    note: str = "",
) -> Record:
    """Make the record of a model that was timed here, beside a record of the machine.

    Parameters
    ----------
    like : dict
        A record of this run: machine, versions, bandwidth and clock are taken from it.
    samples_s : sequence of float
        Seconds a token, one for each generation.
    model, quant, backend, threads, prompt_tokens, new_tokens
        The case.
    bytes_per_token : int
        Of `token_bytes`.
    note : str

    Returns
    -------
    dict
        Not yet sealed.
    """
    kept = ("schema", "provenance", "utc", "tool", "machine", "isa", "software", "bandwidth",
            "freq")  # fmt: skip
    record = {name: like[name] for name in kept} | {
        "id": str(uuid.uuid4()),
        "case": {
            "kernel": "decode",
            "backend": backend,
            "model": model,
            "quant": quant,
            "n_prompt": prompt_tokens,
            "n_gen": new_tokens,
            "n_depth": 0,
            "threads": threads,
        },
        "bytes_per_call": bytes_per_token,
        "samples_s": list(samples_s),
        "block_size": 1,
        "stat": summarise(samples_s, 1),
        "digest": {"input": None, "output": None},
        "rel_error": None,
        "note": note,
    }
    return record | {"derived": derive(record)}
