import json
import shutil
from dataclasses import replace

import pytest

from awqbench.report.gallery import is_stale, read_cards, shared_facts, write_gallery
from awqbench.report.html import external_requests, images_without_alt
from awqbench.report.keys import run_key
from awqbench.report.notebooks import read_notebook
from awqbench.report.record import RunRecord, read_record, write_record
from awqbench.report.results import RESULTS_SCHEMA

ORIGIN = {"cpu": "CPU & Co", "cores_usable": 2, "ram_bytes": 2**34, "git_commit": "b" * 40}


@pytest.fixture
def out(tmp_path, write_notebook):
    """Three runs: one up to date, one failed, one whose notebook changed since."""
    root = tmp_path / "out"
    for name, state in (("fine", "ok"), ("broken", "failed"), ("old", "ok")):
        path = write_notebook(tmp_path / f"{name}.ipynb", f"print('{name}')")
        folder = root / name
        (folder / "figures").mkdir(parents=True)
        (folder / "report.html").write_text("page")
        parameters = {"model": "tiny", "bits": 3}
        record = RunRecord(
            name,
            run_key(read_notebook(path), parameters) if name != "old" else "0" * 64,
            state,
            title=f"Is {name} <fine>?",
            parameters=parameters,
            cell=2 if state == "failed" else None,
            ename="ValueError" if state == "failed" else "",
            evalue="no & no" if state == "failed" else "",
            finished="2030-01-02T03:04:05+00:00",
            started="2030-01-02T03:04:01+00:00",
            provenance=ORIGIN,
        )
        write_record(folder, record)
    (root / "fine" / "figures" / "headline.png").write_bytes(b"\x89PNG")
    (root / "fine" / "tables").mkdir()
    (root / "fine" / "tables" / "rows.csv").write_text("a\n1\n")
    results = {
        "schema": RESULTS_SCHEMA,
        "answer": "Error < 3 %. At 4.25 bits it is less.",
        "figures": [{"name": "headline", "alt": "A line that falls."}],
        "tables": [{"name": "rows", "rows": 1, "columns": ["a"]}, {"name": "lost"}],
    }
    (root / "fine" / "results.json").write_text(json.dumps(results))
    (root / "not_ours").mkdir()
    return root


@pytest.fixture
def notebooks(tmp_path, out):
    return {name: tmp_path / f"{name}.ipynb" for name in ("fine", "broken", "old")}


def test_cards_tell_the_state_in_words(out, notebooks):
    words = {card.record.notebook: card.status.word for card in read_cards(out, notebooks)}
    assert words == {"fine": "ok", "broken": "failed", "old": "out of date"}


def test_a_run_goes_stale_with_its_notebook(out, notebooks, write_notebook):
    card = next(card for card in read_cards(out, notebooks) if card.record.notebook == "fine")
    assert not is_stale(card.record, notebooks["fine"])
    write_notebook(notebooks["fine"], "print('changed')")
    assert is_stale(card.record, notebooks["fine"])


def test_page_shows_answers_failures_and_where_they_come_from(out, notebooks):
    page = write_gallery(out, notebooks).read_text()
    assert "Error &lt; 3 %." in page
    assert "Is fine &lt;fine&gt;?" in page
    assert 'alt="A line that falls."' in page
    assert 'href="broken/report.html#failed-cell"' in page
    assert "no &amp; no" in page
    assert "bits <b>3</b>" in page
    assert "CPU &amp; Co, 2 cores, 16 GiB" in page
    assert "bbbbbbbb" in page
    assert "1 ok" in page and "1 failed" in page and "1 out of date" in page


def test_a_card_leads_with_one_sentence_and_links_what_there_is(out, notebooks):
    card = next(card for card in read_cards(out, notebooks) if card.record.notebook == "fine")
    assert (card.answer, card.more) == ("Error < 3 %.", "At 4.25 bits it is less.")
    files = [("numbers", "fine/results.json"), ("rows.csv", "fine/tables/rows.csv")]
    assert card.files == files
    assert 'href="fine/tables/rows.csv"' in write_gallery(out, notebooks).read_text()


def test_addresses_are_quoted(out):
    (out / "fine").rename(out / "50 % #1")
    page = write_gallery(out).read_text()
    assert 'href="50%20%25%20%231/report.html"' in page


def test_what_all_runs_share_is_said_once(out):
    page = write_gallery(out).read_text()
    assert page.count("CPU &amp; Co, 2 cores, 16 GiB") == 1
    record = read_record(out / "old")
    write_record(out / "old", replace(record, provenance={**ORIGIN, "cpu": "Other"}))
    page = write_gallery(out).read_text()
    assert page.count("CPU &amp; Co, 2 cores, 16 GiB") == 2
    assert page.count("Other, 2 cores, 16 GiB") == 1


def test_a_single_run_shows_its_own_origin(out):
    for name in ("broken", "old"):
        shutil.rmtree(out / name)
    assert shared_facts(read_cards(out)) == []
    assert "CPU &amp; Co, 2 cores, 16 GiB" in write_gallery(out).read_text()


def test_page_is_self_contained_and_needs_no_script(out, notebooks):
    page = write_gallery(out, notebooks).read_text()
    assert external_requests(page) == []
    assert images_without_alt(page) == 0
    assert "<script" not in page


def test_an_empty_folder_has_a_page_too(tmp_path):
    assert "No runs here yet" in write_gallery(tmp_path).read_text()
