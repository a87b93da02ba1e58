"""What a launch did: instructions by class, bytes and sectors, bank conflicts."""

from collections import Counter

import numpy as np

_SECTOR, _BANKS = 32, 32
_CLASSES = {
    "mma": {"mma", "wgmma"},
    "logic": {"and", "or", "xor", "not", "lop3", "shl", "shr", "shf", "prmt", "bfe", "bfi"},
    "memory": {"ld", "ldu", "st", "atom", "red", "cp", "ldmatrix"},
    "float": {"fma", "cvt"},
    "control": {"bra", "ret", "bar", "barrier", "fence", "membar", "setp"},
}


def instruction_class(parts):
    """Return the class of an opcode: mma, logic, memory, float, control, or integer."""
    for name, opcodes in _CLASSES.items():
        if parts[0] in opcodes:
            return name
    return "float" if parts[-1].startswith(("f", "bf")) else "integer"


class Counters:
    """Counts of one launch; a warp's instruction counts once, however many lanes take part."""

    def __init__(self):
        self.instructions = Counter()  # by opcode
        self.classes = Counter()
        self.traffic = {}  # (array, kind): Counter of bytes, sectors, requests, ideal sectors
        self.shared = {}  # kind: Counter of requests, wavefronts, ideal wavefronts

    def executed(self, lanes, pc, mask):
        """Count an instruction."""
        warps = lanes.count // 32
        if mask is not None:
            warps = int(mask.reshape(-1, 32).any(1).sum())
        parts = lanes.program.instructions[pc].parts
        self.instructions[".".join(parts)] += warps
        self.classes[instruction_class(parts)] += warps

    def global_access(self, kind, lanes, active, addresses, size, memory):
        """Count an access: sectors of 32 bytes touched, and how few there could be."""
        if not len(addresses):
            return
        counts = self.traffic.setdefault((memory.name_at(addresses[0]), kind), Counter())
        warp = active // 32
        offsets = np.arange(0, size, _SECTOR, dtype=np.uint64)
        sectors = (addresses[:, None] + offsets) // np.uint64(_SECTOR)
        key = np.unique(np.stack([np.repeat(warp, len(offsets)), sectors.ravel()]), axis=1)
        places = np.unique(np.stack([warp.astype(np.uint64), addresses]), axis=1)
        per_warp = np.bincount(places[0].astype(np.int64)) * size
        counts["bytes"] += len(addresses) * size
        counts["unique_bytes"] += places.shape[1] * size
        counts["requests"] += len(np.unique(warp))
        counts["sectors"] += key.shape[1]
        counts["ideal_sectors"] += int((-(-per_warp // _SECTOR)).sum())

    def shared_access(self, kind, lanes, active, offsets, size, phase=None):
        """Count an access: wavefronts it takes because several words of a bank are wanted."""
        counts = self.shared.setdefault(phase or kind, Counter())
        lanes_at_once = 8 if phase == "matrix" else 32 // max(size // 4, 1)
        group = (
            np.arange(len(active)) // 8
            if phase == "matrix"
            else (active // 32 * 32 + active % 32 // lanes_at_once)
        )
        words = (offsets[:, None] + np.arange(0, size, 4)) // 4
        key = np.unique(np.stack([np.repeat(group, words.shape[1]), words.ravel()]), axis=1)
        busy = np.unique(np.stack([key[0], key[1] % _BANKS]), axis=1, return_counts=True)
        groups, inverse = np.unique(busy[0][0], return_inverse=True)
        worst = np.zeros(len(groups), np.int64)
        np.maximum.at(worst, inverse, busy[1])
        counts["requests"] += len(np.unique(active // 32))
        counts["wavefronts"] += int(worst.sum())
        counts["ideal_wavefronts"] += len(groups)
