"""Settings of pytest for the whole repository."""


def pytest_collectstart(collector):
    """Leave warnings out of nbval's comparison: their text holds paths and versions."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
