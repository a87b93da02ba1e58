"""The grid of a sweep: values of parameters, and a run with a folder at each point."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from awqbench.errors import ParameterError
from awqbench.report.runner import Job, plan

_LONGEST_NAME = 120
MOST_RUNS = 1000


class Point(NamedTuple):
    """One run of a sweep: its place in the grid, as text, and the job."""

    values: dict[str, str]
    job: Job


def split_values(text: str) -> list[str]:
    """Part a setting at commas that are outside brackets and quotes.

    Parameters
    ----------
    text : str

    Returns
    -------
    list of str

    Raises
    ------
    ParameterError
        If a value is empty, or a bracket or quote is not closed.

    Examples
    --------
    >>> split_values("2, 3"), split_values("[32,64],[128]"), split_values("tiny")
    (['2', '3'], ['[32,64]', '[128]'], ['tiny'])
    """
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote or character in "'\"":
            quote = character if not quote else "" if character == quote else quote
        else:
            depth += (character in "[{(") - (character in ")}]")
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    values = [value.strip() for value in values]
    if depth or quote or not all(values):
        raise ParameterError(f"{text!r} is not a list of values; write for instance bits=2,3,4.")
    return values


def plan_sweep(name: str | Path, settings: Mapping[str, str], out: Path) -> list[Point]:
    """Resolve a grid to runs, without writing or starting anything.

    Parameters
    ----------
    name : str or Path
        Of the notebook, or its file.
    settings : mapping of str to str
        Values of each parameter, separated by commas.
    out : Path
        Gets a folder of the notebook's name, and in it one for each run.

    Returns
    -------
    list of Point
        The last parameter changes fastest.

    Raises
    ------
    NotebookError, ParameterError
        As `awqbench.report.runner.plan`, for any point of the grid; if a value comes twice,
        or there are more than `MOST_RUNS` runs.
    """
    grid = {key: split_values(text) for key, text in settings.items()}
    varied = [key for key, values in grid.items() if len(values) > 1]
    if not varied:
        raise ParameterError(
            "a sweep needs a parameter with several values, such as -p bits=2,3,4; "
            "`awqbench report` runs a notebook once."
        )
    count = 1
    for key in varied:
        count *= len(grid[key])
        if len(set(grid[key])) < len(grid[key]):
            raise ParameterError(f"parameter {key!r} has a value twice: {', '.join(grid[key])}.")
    if count > MOST_RUNS:
        raise ParameterError(f"the grid has {count:,} points; {MOST_RUNS} are the most.")
    points = []
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        job = plan([name], chosen, out)[0]
        here = {key: chosen[key] for key in varied}
        points.append(Point(here, replace(job, folder=job.folder / folder_name(here))))
    return points


def folder_name(values: Mapping[str, str]) -> str:
    """Name a run's folder by its values, plain where a file may have that name.

    Examples
    --------
    >>> folder_name({"bits": "3", "group_size": "64"})
    'bits=3,group_size=64'
    """
    plain = ",".join(f"{key}={value}" for key, value in values.items())
    name = re.sub(r"[^\w.,=+-]", "_", plain)[:_LONGEST_NAME]
    if name == plain:
        return name
    # Two values may look alike once they are a file's name.
    return f"{name}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
