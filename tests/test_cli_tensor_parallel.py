import json

import pytest
from typer.testing import CliRunner

import awqbench.cli.tensor_parallel  # noqa: F401  registers its commands
from awqbench.cli.app import FAILED, app
from awqbench.errors import AlignmentError


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("name", ["tensor-parallel", "tp"])
def test_a_plan_says_why_and_what_to_do(name):
    result = run(name, "tiny", "--tp", 1, "--tp", 2, "--group-size", 128)
    assert result.exit_code == 0
    assert "down_proj: in_features 896 / 2 = 448 is not a multiple of group_size" in result.output
    assert "fix: pad intermediate_size 896 to 1024" in result.output


def test_exit_status_is_1_if_nothing_fits():
    result = run("tp", "tiny", "--tp", 2, "--group-size", 128, "--engine", "all", "--json")
    assert result.exit_code == FAILED
    rows = json.loads(result.output)
    assert len(rows) == 5 and not any(row["fits"] for row in rows)
    assert rows[0]["number"] == 448


def test_a_padded_model_then_fits(tmp_path):
    result = run("pad", "tiny", tmp_path / "out", "--tp", 2)
    assert result.exit_code == 0, result.output
    assert "intermediate_size 896 -> 1024" in result.output
    assert run("tp", tmp_path / "out", "--tp", 2, "--group-size", 128).exit_code == 0


def test_what_cannot_be_padded_is_an_error(tmp_path):
    result = run("pad", "tiny", tmp_path / "out", "--tp", 8, "--json")
    assert isinstance(result.exception, AlignmentError)
