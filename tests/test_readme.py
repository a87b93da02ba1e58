"""The README's commands are the ones CI runs, its code runs, and its tables are the records'."""

import doctest
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


TESTS = "pytest -n 2 --dist loadfile"


def shell_lines(text=README):
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def one_line_setups():
    return [line for line in shell_lines() if line.startswith("python3 -m venv")]


def test_two_commands_do_all_the_setup():
    ends = [line.rsplit("&& ", 1)[-1] for line in one_line_setups()]
    assert ends == ["awqbench report", TESTS]


def test_ci_reads_its_commands_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -E \"(.*?)\\\\\$1|grep -E \"([^\"]*)\"", script).group(0)
    assert "README.md" in script and "python3 -m venv" in pattern
    for last in (TESTS, "awqbench report"):
        assert f"readme_command {last}" in script or f"readme_command '{last}'" in script
        assert sum(line.endswith(f"&& {last}") for line in one_line_setups()) == 1
    for line in script.splitlines():  # no install that the README does not have
        assert "pip install" not in line, line


def test_commands_name_extras_and_programs_that_exist():
    extras = PROJECT["project"]["optional-dependencies"]
    for line in one_line_setups():
        words = shlex.split(line)
        wanted = re.findall(r"\.\[(.*)\]", " ".join(words))
        assert all(name in extras for part in wanted for name in part.split(","))
    assert PROJECT["project"]["scripts"] == {"awqbench": "awqbench.cli:main"}


def test_awqbench_commands_exist():
    import typer

    from awqbench.cli import app

    known = set(typer.main.get_command(app).commands)
    used = [shlex.split(line, comments=True) for line in shell_lines()]
    named = {words[1] for words in used if words[0] == "awqbench"}
    assert named and named <= known


def test_environment_is_python_pip_and_this_project():
    text = (ROOT / "environment.yml").read_text()
    items = re.findall(r"^\s*- (.*)$", text, flags=re.MULTILINE)
    assert items[0] == "conda-forge"
    python, pip, pip_list, editable = items[1:]
    assert (pip, pip_list) == ("pip", "pip:")
    minor = int(re.fullmatch(r"python=3\.(\d+)", python).group(1))
    least = int(re.fullmatch(r">=3\.(\d+)", PROJECT["project"]["requires-python"]).group(1))
    assert minor >= least
    extras = re.fullmatch(r"-e \.\[(.*)\]", editable).group(1).split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_code_runs_as_a_doctest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    test = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", 0)
    assert len(test.examples) <= 7
    failures = doctest.DocTestRunner().run(test).failed
    assert failures == 0


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\(([^)#]+)\)", README + CHINESE + CONTRIBUTING)))
)
def test_links_point_at_files(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w./-]+/[\w./-]*)`", CONTRIBUTING))))
def test_contributing_names_what_there_is(path):
    assert (ROOT / path).exists()


def test_chinese_has_the_same_parts_and_commands():
    for part in (r"^(#+) ", r"<!-- .* -->", r"```\w*", r"!\[.*\]\((.*)\)"):
        english, chinese = (re.findall(part, text, re.MULTILINE) for text in (README, CHINESE))
        assert english == chinese, part
    commands = ([shlex.split(x, comments=True) for x in shell_lines(t)] for t in (README, CHINESE))
    assert next(commands) == next(commands)
    blocks = (re.search(r"```python\n(.*?)```", t, re.DOTALL)[1] for t in (README, CHINESE))
    english, chinese = (re.sub(r" +#.*", "", block) for block in blocks)
    assert english == chinese


@pytest.mark.parametrize(("language", "text"), [("en", README), ("zh", CHINESE)])
def test_tables_are_the_records(language, text):
    path = ROOT / "benchmarks" / "update_readme.py"
    spec = importlib.util.spec_from_file_location("update_readme", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.filled(text, language) == text


def test_every_notebook_has_its_line():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{notebook.name})" in README
