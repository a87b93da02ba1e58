"""Every committed notebook keeps the house rules; nbval compares its outputs elsewhere."""

import configparser
import re
from pathlib import Path

import pytest

from awqbench.report.check import check_notebook

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_house_rules(path):
    problems = check_notebook(path)
    assert not problems, "\n".join(map(str, problems))


@pytest.fixture
def sanitize():
    """Apply nbval_sanitize.cfg as nbval does: one substitution after the other."""
    rules = configparser.RawConfigParser()
    rules.read(Path(__file__).with_name("nbval_sanitize.cfg"), encoding="utf-8")

    def apply(text):
        for name in rules.sections():
            text = re.sub(rules.get(name, "regex"), rules.get(name, "replace"), text)
        return text

    return apply


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at 2030-01-02T03:04:05.678+00:00", "at DATE-TIME"),
        ("<A object at 0x7f00aa11bb22>", "<A object at ADDRESS>"),
        ("in /x/ipykernel_12/3456.py:7", "in KERNEL-FILE"),
        ("took 3.25 s, 12 ms, 7.1 µs", "took DURATION, DURATION, DURATION"),
        ("4/4 [00:01<00:00, 3.1it/s]", "4/4 [RATE]"),
        ("commit " + "ab" * 20, "commit COMMIT"),
    ],
)
def test_sanitizer_hides_what_may_differ(sanitize, text, expected):
    assert sanitize(text) == expected


@pytest.mark.parametrize(
    "text", ["group 128 s", "limit 65504", "0xff", "rmse 0.0312", "3 bits, 4.25 bits", "1.5 size"]
)
def test_sanitizer_leaves_results_alone(sanitize, text):
    assert sanitize(text) == text
