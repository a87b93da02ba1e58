"""Which device a run searches its blocks on, and which of a host's GPUs a process takes.

Last bits differ from a CPU to a GPU, and from one kind of GPU to another: the device is decided
once and kept with the run. All GPUs of one kind are taken to give the same bytes, and all that
the processes of a run see to be of one kind; so it does not matter which GPU a process takes,
and each takes the one that the fewest others have. Tested on stand-ins for GPUs, not on real
ones.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import socket
import tempfile
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from awqbench.errors import DeviceError, ParameterError, ResumeError

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.run.work import WorkFolder

AUTO = "auto"
# Locks that say which GPU this process has taken; the system drops them when it ends.
_held: list[IO] = []


class SearchDevice(NamedTuple):
    """Where a run searches.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cuda"`` (each process takes one) or ``"cuda:1"``, for `own_device`.
    fact : str
        What last bits depend on, as the run record has it, such as ``"cuda (NVIDIA H200)"``.
    """

    name: str = "cpu"
    fact: str = "cpu"

    @property
    def kind(self) -> str:
        """Return "cpu" or "cuda"."""
        return self.name.partition(":")[0]


def chosen_device(asked: str = AUTO, *, elsewhere: bool = False) -> str:
    """Return the device that is asked for, by name.

    Parameters
    ----------
    asked : str
        ``"auto"`` (a GPU where torch finds one), ``"cpu"``, ``"cuda"``, or one such as
        ``"cuda:1"``.
    elsewhere : bool
        Whether other hosts search: what this one has is then not asked.

    Returns
    -------
    str
        As asked, "auto" decided.

    Raises
    ------
    ParameterError
        If it is none of these.
    DeviceError
        If it is not on this host; gives the reason.
    """
    import torch

    asked = str(asked)
    if asked == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
        raise ParameterError(
            f"device is {asked!r}; give 'auto', 'cpu', 'cuda', or one GPU such as 'cuda:1'."
        )
    if asked != "cpu" and not elsewhere:
        _require(asked)
    return asked


def settled_device(asked: str, work: WorkFolder, *, elsewhere: bool = False) -> SearchDevice:
    """Return the device of a run: that of its finished blocks, if it has any.

    Parameters
    ----------
    asked : str
        As for `chosen_device`; "auto" goes on with what the run began with.
    work : WorkFolder
    elsewhere : bool

    Returns
    -------
    SearchDevice

    Raises
    ------
    ResumeError
        If blocks were finished on another device than the one asked for.
    ParameterError, DeviceError
        As `chosen_device`; also if blocks were finished on a GPU, and there is none.
    """
    device = described(chosen_device(asked, elsewhere=elsewhere), elsewhere=elsewhere)
    if not work.facts:
        return device
    if not work.resumed_blocks:
        work.amend({"device": device.fact})
        return device
    before = work.facts.get("device", "cpu")  # runs of before this fact are of the CPU
    kind = before.partition(" ")[0]
    if asked == AUTO:
        if kind == "cuda" and not elsewhere:
            _require("cuda", because="the unfinished run was begun there")
        device = described(kind, elsewhere=elsewhere)
    # A run on other hosts does not know the names of their GPUs.
    if device.fact != before and not (device.kind == kind and kind in (device.fact, before)):
        raise ResumeError(
            f"the unfinished run has blocks ({work.resumed_blocks}) that were searched on "
            f"{before}, and now {device.fact} is asked for, which gives other last bits. Go on "
            f"on {before}, or start anew with resume=False (--no-resume)."
        )
    return device


def described(name: str, *, elsewhere: bool = False) -> SearchDevice:
    """Return a device with what the run record says of it."""
    import torch

    if name == "cpu" or elsewhere:
        return SearchDevice(name, name.partition(":")[0])
    index = int(name.partition(":")[2] or 0)
    return SearchDevice(name, f"cuda ({torch.cuda.get_device_name(index)})")


def own_device(name: str) -> torch.device:
    """Return the device that this process searches on, able to compute.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. Of several GPUs that it may use
        (``CUDA_VISIBLE_DEVICES``), a process takes the one that the fewest others of this user
        have taken, and keeps it.

    Raises
    ------
    DeviceError
        If there is none, or it cannot compute; names the host.
    """
    import torch

    if name == "cpu":
        return torch.device("cpu")
    _require(name, also="start workers on hosts with a GPU only")
    index = int(name.partition(":")[2]) if ":" in name else _taken_gpu()
    device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        raise DeviceError(
            f"{device} of host {socket.gethostname()} cannot compute: {_first_line(error)} Free "
            "it, choose another one, or search on the CPU: device='cpu' (--device cpu)."
        ) from error
    return device


def _require(name: str, *, because: str = "", also: str = "") -> None:
    """Raise unless this process sees a GPU of that name."""
    import torch

    reason, fix = _why_no_cuda()
    if not reason:
        count, index = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
        if index < count:
            return
        reason = f"it has {count} GPU{'s' * (count > 1)}, the last of them cuda:{count - 1}"
        fix = "name one of these"
    fixes = "; ".join(part for part in (fix, also) if part)
    raise DeviceError(
        f"the search is to run on {name!r}{f' ({because})' * bool(because)}, and not on host "
        f"{socket.gethostname()}: {reason}. Search on the CPU, device='cpu' (--device cpu); or "
        f"{fixes}."
    )


def _why_no_cuda() -> tuple[str, str]:
    """Return why torch has no GPU here and what would give it one; two "" if it has."""
    import torch

    if torch.cuda.is_available():
        return "", ""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} is built for the CPU only",
            "install a build of torch for CUDA (https://pytorch.org/get-started/locally)",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not torch.cuda.device_count():
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r} and torch sees no GPU",
            "unset CUDA_VISIBLE_DEVICES or let it name one",
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return _first_line(error).rstrip("."), "install or update the driver of the GPU"
    return "torch sees no GPU", "install or update the driver of the GPU"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@cache
def _taken_gpu() -> int:
    """Take one of the GPUs that this process sees, by a lock that other processes see.

    Who starts the processes, and on which of the GPUs, need not be known: workers of one
    scheduler, of several, and runs side by side spread alike, and a worker that replaces a
    dead one finds its place free. Without a folder for locks it is the first GPU.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 1:
        return 0
    # An index is of this process (CUDA_VISIBLE_DEVICES); the identifier is the card's own.
    cards = [torch.cuda.get_device_properties(i).uuid for i in range(count)]
    folder = Path(tempfile.gettempdir()) / f"awqbench-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for place in itertools.count():
            for index, card in enumerate(cards):
                if _lock(folder / f"{card}-{place}"):
                    return index
    except OSError:
        return 0


def _lock(path: Path) -> bool:
    """Take a lock for as long as this process lives, unless another holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _held.append(file)
    return True
