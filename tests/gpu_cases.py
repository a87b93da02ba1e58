"""A made-up record of the GPU benchmark."""

import json


def gpu_rows(**changes):
    """Return made-up rows of the GPU benchmark: two shapes, three paths, two numbers of tokens."""
    rows = []
    for shape, base in (("128x16", 1e-5), ("256x32", 2e-5)):
        for tokens in (1, 16):
            for path, times in (("awqbench tiles float16", 2.0), ("cuBLAS float16", 1.0),
                                ("humming float16", 1.5)):  # fmt: skip
                rows.append(
                    {
                        "shape": shape, "tokens": tokens, "path": path,
                        "is_peer": "awqbench" not in path, "median_s": base / times,
                        "eager_s": base, "fraction_of_copy": 0.3 * times, "tflop_s": times,
                        "vs_cublas": times, "vs_best_peer": times / 1.5, "rel_error": 3e-4,
                        "is_wrong": False,
                    } | changes
                )  # fmt: skip
    return rows


def gpu_record(rows):
    ceilings = {"device": "made-up GPU", "copy_gb_s": 4000.0, "product_tflop_s": 700.0}
    machine = {"git_commit": "0123456789abcdef"}
    record = {"finished": "2030-01-02T03:04:05+00:00", "rows": rows, "ceilings": ceilings}
    return json.dumps(record | {"machine": machine}) + "\n"
