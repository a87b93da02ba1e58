import json
import sys

import pytest

from awqbench import cli
from awqbench.errors import FormatError, OutputError, ParameterError
from awqbench.report.compare import compare_reports, write_comparison
from awqbench.report.differences import ABSENT, compare_values, difference
from awqbench.report.html import external_requests, images_without_alt
from awqbench.report.record import RunRecord, write_record
from awqbench.report.results import RESULTS_SCHEMA

ORIGIN = {"cpu": "CPU & Co", "cores_usable": 2, "ram_bytes": 2**34, "git_commit": "b" * 40}


@pytest.fixture
def write_run(tmp_path):
    """Write the folder of one run, as a report leaves it."""

    def write(folder, name="grid", *, bits=4, values=None, answer="It is 3 %.", **origin):
        run = tmp_path / folder / name
        (run / "figures").mkdir(parents=True)
        (run / "figures" / "headline.png").write_bytes(b"\x89PNG" + folder.encode())
        (run / "report.html").write_text("page")
        record = RunRecord(
            name,
            "0" * 64,
            "ok",
            title="How many <bits>?",
            parameters={"model": origin.pop("model", "tiny"), "bits": bits},
            started="2030-01-02T03:04:01+00:00",
            elapsed_s=4.0,
            provenance={**ORIGIN, **origin},
        )
        write_record(run, record)
        results = {
            "schema": RESULTS_SCHEMA,
            "answer": answer,
            "values": values or {},
            "figures": [{"name": "headline", "alt": f"A line in {folder}."}],
        }
        (run / "results.json").write_text(json.dumps(results))
        return tmp_path / folder

    return write


@pytest.fixture
def two(write_run):
    first = write_run("one", bits=4, values={"ppl": 8.0, "same": 1}, answer="Four lose 3 %.")
    second = write_run("two", bits=3, values={"ppl": 9.0, "same": 1}, answer="Three lose 9 %.")
    return first, second


def by_name(rows):
    return {row.name: row[1:] for row in rows}


def test_a_pair_has_what_differs_and_what_is_equal(two):
    (pair,) = compare_reports(*two).pairs
    assert by_name(pair.parameters) == {
        "model": ("tiny", "tiny", "="),
        "bits": ("4", "3", "differs"),
    }
    assert by_name(pair.values) == {"ppl": ("8", "9", "+1 (+12.5 %)"), "same": ("1", "1", "=")}
    assert (pair.first.answer, pair.second.answer) == ("Four lose 3 %.", "Three lose 9 %.")
    assert all(row.is_equal for row in pair.facts)


def test_two_models_of_one_name_do_not_look_equal(write_run):
    first = write_run("one", model="/data/v1/model")
    second = write_run("two", model="/data/v2/model")
    (pair,) = compare_reports(first, second).pairs
    assert by_name(pair.parameters)["model"] == ("/data/v1/model", "/data/v2/model", "differs")


def test_notebooks_without_a_partner_are_named(two, write_run):
    write_run("one", "tour")
    write_run("two", "speed")
    found = compare_reports(*two)
    assert (found.only_first, found.only_second) == (["tour"], ["speed"])
    assert [pair.notebook for pair in found.pairs] == ["grid"]


def test_names_choose_notebooks(two, write_run):
    write_run("one", "tour")
    write_run("two", "tour")
    assert [pair.notebook for pair in compare_reports(*two, ["tour"]).pairs] == ["tour"]
    with pytest.raises(ParameterError, match="'maps' is not in both folders; in both: grid, tour"):
        compare_reports(*two, ["maps"])


def test_two_machines_are_said(two, write_run):
    write_run("one", "speed")
    write_run("two", "speed", cpu="Another")
    assert compare_reports(*two).other_machine == ["speed"]
    page = write_comparison(*two, two[0].parent / "out").read_text()
    assert "Times and speeds of speed are not comparable" in page


def test_folders_of_one_name_are_told_apart(write_run, tmp_path):
    first, second = write_run("monday/reports"), write_run("friday/reports")
    found = compare_reports(first, second)
    assert (found.first, found.second) == ("monday/reports", "friday/reports")
    assert str(tmp_path) not in write_comparison(first, second, tmp_path / "out").read_text()


def test_page_is_self_contained_and_links_to_both(two, tmp_path):
    page = write_comparison(*two, tmp_path / "deep" / "out").read_text()
    assert external_requests(page) == []
    assert images_without_alt(page) == 0
    assert "<script" not in page
    assert "How many &lt;bits&gt;?" in page
    assert 'alt="A line in one."' in page and 'alt="A line in two."' in page
    for folder in ("one", "two"):
        assert f'href="../../{folder}/grid/report.html"' in page
        assert (tmp_path / "deep" / "out" / f"../../{folder}/grid/report.html").is_file()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (2.0, 2, "="),
        (-4.0, -3.0, "+1 (+25 %)"),
        (0, -2, "-2"),
        (20000.0, 21000.0, "+1,000 (+5 %)"),
        (True, False, "differs"),
        ("NaN", 3.0, "differs"),
        (None, None, "="),
    ],
)
def test_difference_is_second_minus_first(first, second, expected):
    assert difference(first, second) == expected


def test_values_of_one_run_only_keep_their_place():
    rows = compare_values({"a": {"x": 1}, "b": 2}, {"b": 2, "c": [5]})
    assert [tuple(row) for row in rows] == [
        ("a.x", "1", ABSENT, "only in one"),
        ("b", "2", "2", "="),
        ("c.0", ABSENT, "5", "only in one"),
    ]


def test_mistakes_are_named(two, write_run, tmp_path):
    first, second = two
    with pytest.raises(ParameterError, match="are the same folder"):
        compare_reports(first, first / "." / "")
    with pytest.raises(FormatError, match="is not a folder"):
        compare_reports(first, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"holds no report .*`awqbench report --out .*empty`"):
        compare_reports(first, tmp_path / "empty")
    with pytest.raises(FormatError, match="no notebook in common: grid against tour"):
        compare_reports(first, write_run("other", "tour"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder with --out"):
        write_comparison(first, second, tmp_path / "file" / "out")


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: status, stdout, stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["awqbench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_report_compare_writes_the_page_and_runs_nothing(run, two, tmp_path):
    out = tmp_path / "out"
    status, text, _ = run("report", "--compare", *two, "--out", out)
    assert (status, text.strip()) == (0, f"open {out / 'compare.html'}")
    assert [path.name for path in out.iterdir()] == ["compare.html"]


@pytest.mark.parametrize("words", [["-p", "bits=3"], ["--force"], ["--model", "tiny"]])
def test_compare_takes_no_settings(run, two, tmp_path, words):
    status, _, error = run("report", "--compare", *two, "--out", tmp_path / "out", *words)
    assert status == 2
    assert "--compare runs nothing" in error
