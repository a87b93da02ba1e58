"""What `explain` tells a user to run is a call that exists, with options that it takes."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import awqbench as ab
from awqbench.cli import app
from awqbench.inspect.explain import explain

SAMPLES = Path(__file__).parent / "data" / "explain" / "known.jsonl"
FOUND = [explain(json.loads(line)["text"]) for line in SAMPLES.read_text().splitlines()]
CHECKS = sorted({found.check for found in FOUND})
COMMAND = typer.main.get_command(app)
IN_A_FIX = re.compile(r"awqbench [a-z][^().;,]*")


def parse(line):
    words = shlex.split(line.replace("--tp TP", "--tp 2"))  # a number that the text lacks
    assert words[0] == "awqbench"
    command = COMMAND.commands[words[1]]
    command.make_context(words[1], words[2:])


@pytest.mark.parametrize("check", [c for c in CHECKS if c.startswith("awqbench ")])
def test_commands(check):
    parse(check)


@pytest.mark.parametrize("check", [c for c in CHECKS if not c.startswith("awqbench ")])
def test_python(check):
    tree = ast.parse(check)
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "ab"
    }
    assert names and names <= set(ab.__all__)


def test_commands_in_fixes_parse():
    found = {line.strip("` ") for e in FOUND for line in IN_A_FIX.findall(e.fix)}
    lines = {line for line in found if line.split()[1] in COMMAND.commands and "--" in line}
    assert any(line.startswith("awqbench pad ") for line in lines)
    for line in lines:
        parse(line)
