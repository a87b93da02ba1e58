"""Which transformers the model needs, and which is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import NamedTuple

from awqbench.inspect.doctor.findings import CARE, NOTE, Finding

# First release that knows an architecture, as its authors' model cards say.
FIRST_RELEASE = {
    "llama": "4.28.0",
    "mistral": "4.34.0",
    "mixtral": "4.36.0",
    "qwen2": "4.37.0",
    "gemma": "4.38.0",
    "phi3": "4.41.0",
    "gemma2": "4.42.0",
    "gemma3": "4.50.0",
    "gemma3_text": "4.50.0",
    "qwen3": "4.51.0",
    "qwen3_moe": "4.51.0",
}


class Versions(NamedTuple):
    """Versions of transformers: the one here, the least that is known to do, the writer's.

    Empty where nothing is known.
    """

    installed: str
    needed: str
    written_by: str

    def describe(self) -> str:
        """Return one phrase for the card."""
        parts = [f"{self.installed or 'none'} installed"]
        if self.needed:
            parts.append(f"the architecture needs {self.needed} or newer")
        if self.written_by:
            parts.append(f"the folder was written by {self.written_by}")
        return ", ".join(parts)


def transformers_versions(config: Mapping) -> Versions:
    """Read what config.json says, and what is installed."""
    try:
        installed = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        installed = ""
    model_type = config.get("model_type")
    needed = FIRST_RELEASE.get(model_type, "") if isinstance(model_type, str) else ""
    written_by = config.get("transformers_version")
    written_by = written_by[:40] if isinstance(written_by, str) else ""
    return Versions(installed, needed, written_by)


def is_older(version: str, than: str) -> bool:
    """Tell whether a version is older than another; False if either is no version.

    Examples
    --------
    >>> is_older("4.9.2", "4.51.0"), is_older("5.0.0", "4.51.0"), is_older("5.1.0", "main")
    (True, False, False)
    """
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version) < Version(than)
    except InvalidVersion:
        return False


def version_findings(versions: Versions) -> Iterator[Finding]:
    """Compare, and say what to install."""
    if versions.needed and is_older(versions.installed, versions.needed):
        yield Finding(
            CARE,
            "versions",
            f"transformers {versions.installed} is installed, and the architecture needs "
            f"{versions.needed} or newer",
            f"pip install 'transformers>={versions.needed}'",
        )
    elif versions.written_by and is_older(versions.installed, versions.written_by):
        yield Finding(
            NOTE,
            "versions",
            f"the folder was written by transformers {versions.written_by}, and "
            f"{versions.installed} is installed: keys of its config may be unknown here",
            f"if it does not load: pip install 'transformers>={versions.written_by}'",
        )
