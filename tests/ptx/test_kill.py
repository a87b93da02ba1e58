"""The record of planted bugs says what happened, not what was hoped for."""

from ptx import kill
from ptx.build import needs_nvrtc

pytestmark = needs_nvrtc


def test_a_bug_that_is_not_found_is_recorded_so(monkeypatch):
    run, pattern, replacement, kinds = kill.BUGS["sum: no bound"]
    harmless = {
        "sum: no bound": (run, pattern, replacement, kinds),
        "sum: harmless": (run, "#define DEVICE static", "#define DEVICE static", kinds),
    }
    monkeypatch.setattr(kill, "BUGS", harmless)
    table = kill.killed_table(list(harmless)).set_index("bug")
    assert table["killed"].to_dict() == {"no bound": True, "harmless": False}
    assert table.loc["harmless", "seen"] == "right result"
    assert set(table["kernel"]) == {"sum"}
