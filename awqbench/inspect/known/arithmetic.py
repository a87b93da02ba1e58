"""Numbers that follow from those in an error text: remainders, whole sizes, what fits."""

from __future__ import annotations

from collections.abc import Mapping

# MLP widths that do not split well; the models are those users report.
MODELS_BY_WIDTH = {
    29568: "Qwen2-72B and Qwen2.5-72B",
    29696: "a padded Qwen2-72B",
    27392: "Qwen1.5-32B",
    13696: "Qwen-14B and Qwen1.5-14B",
    18944: "Qwen2-7B and Qwen2.5-7B",
    13824: "Llama-2-13B and Qwen2.5-14B",
    10944: "DeepSeek-V2-Lite",
}
_TP_SIZES = (1, 2, 4, 8, 16)
_TP_OF_PADDING = 8


def round_up(size: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `size`.

    Examples
    --------
    >>> round_up(29568, 4 * 128)
    29696
    """
    return -(-size // step) * step


def misfit(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Say by how much `size` misses a multiple of `step`, and what the whole dimension was.

    Examples
    --------
    >>> misfit({"size": "7392", "step": "128"})["remainder"]
    '96'
    """
    size, step = int(numbers["size"]), int(numbers["step"])
    if step < 1 or size % step == 0:
        return None
    return {"remainder": str(size % step), "fits": str(round_up(size, step))} | whole(size)


def whole(size: int) -> dict[str, str]:
    """Recognise one rank's share of a known MLP width: `origin`, a sentence or ``""``.

    Examples
    --------
    >>> whole(7392)["origin"]
    ' 7392 x 4 ranks = 29568, the intermediate_size of Qwen2-72B and Qwen2.5-72B; 29696 fits.'
    """
    for tp_size in _TP_SIZES:
        width = size * tp_size
        if width in MODELS_BY_WIDTH:
            return {
                "origin": (
                    f" {size} x {tp_size} rank{'s' if tp_size > 1 else ''} = {width}, the "
                    f"intermediate_size of {MODELS_BY_WIDTH[width]}; "
                    f"{round_up(width, 128 * max(tp_size, 4))} fits."
                ),
            }
    return {"origin": ""}


def heads(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """List the tensor parallel sizes up to 16 that divide `heads`."""
    count, tp_size = int(numbers["heads"]), int(numbers["tp"])
    if not tp_size or count % tp_size == 0:
        return None
    fitting = [str(size) for size in range(1, 17) if count % size == 0]
    return {"remainder": str(count % tp_size), "fitting": ", ".join(fitting)}


def padding_script(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Take a reshape to twice a known MLP width for the padding script's, and no other."""
    rows, count = int(numbers["rows"]), int(numbers["count"])
    if rows % 2 or rows // 2 not in MODELS_BY_WIDTH or count % rows == 0:
        return None
    return {"width": str(rows // 2), "remainder": str(count % rows)}


def changed_width(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Say how many channels a config that does not fit its weights drops or adds."""
    stored = int(numbers["stored_rows"]), int(numbers["stored_columns"])
    wanted = int(numbers["rows"]), int(numbers["columns"])
    changed = [pair for pair in zip(stored, wanted, strict=True) if pair[0] != pair[1]]
    if len(changed) != 1:
        return None
    have, asked = changed[0]
    verb = "drops" if asked < have else "asks for"
    kind = "of the model's" if asked < have else "more"
    text = f"intermediate_size {asked} {verb} {abs(have - asked)} {kind} channels"
    return {"have": str(have), "asked": str(asked), "change": text} | next_fit(have)


def cut_width(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Compare a known cut of Qwen2-72B's width with the width."""
    cut = int(numbers["cut"])
    text = f"intermediate_size {cut} drops {29568 - cut} of the model's channels"
    return {"have": "29568", "asked": str(cut), "change": text} | next_fit(29568)


def either_width(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Read a cut width from a size mismatch or from a config."""
    return cut_width(numbers) if "cut" in numbers else changed_width(numbers)


def next_fit(width: int) -> dict[str, str]:
    """Return `fits`: the next width for groups of 128 on up to 8 ranks."""
    return {"fits": str(round_up(width, 128 * _TP_OF_PADDING))}


def progress_hours(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Extrapolate a progress bar; not worth a word below three hours."""
    hours = float(numbers["seconds"]) * int(numbers["blocks"]) / 3600
    return {"hours": f"{hours:.1f}"} if hours > 3 else None


def written_hours(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Take the hours from a progress bar or from what the user wrote."""
    if numbers.get("seconds"):
        return progress_hours(numbers)
    return {"hours": numbers.get("hours", "many")}


def gibibytes(numbers: Mapping[str, str]) -> dict[str, str]:
    """Put the amount asked for into GiB, whatever unit the text has."""
    if numbers.get("bytes"):
        return {"gib": f"{int(numbers['bytes']) / 2**30:.1f} GiB"}
    if numbers.get("kib"):
        return {"gib": f"{int(numbers['kib']) / 2**20:.1f} GiB"}
    if numbers.get("amount"):
        return {"gib": f"{numbers['amount']} {numbers['unit']}"}
    return {"gib": "more memory than there is"}


def devices(numbers: Mapping[str, str]) -> dict[str, str]:
    """Tell two GPUs from a GPU and the CPU."""
    first, second = numbers["first"], numbers["second"]
    if "cpu" in (first, second):
        return {
            "why": "a module or an input stayed on the CPU while its neighbour is on the GPU: "
            "it was never moved, or a device_map put it there"
        }
    return {
        "why": "the model is spread over GPUs, and usually something passed between blocks "
        "(mask, position embeddings, a hook's kwargs) stayed on the first one"
    }


def range_of_scales(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Keep only spans of scales that are out of the ordinary."""
    return {} if float(numbers.get("span", "25")) > 10 else None


def accuracy_drop(numbers: Mapping[str, str]) -> dict[str, str] | None:
    """Keep only drops, and give their size."""
    before, after = float(numbers["before"]), float(numbers["after"])
    return {"drop": f"{before - after:.4g}"} if before > after else None
