"""Where each code of a small patch of a weight lies: in a checkpoint's words, and in tiles.

Found by asking the packers themselves, one code at a time, so that a picture made of it shows
what they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.formats.layouts.packing import pack_awq
from awqbench.gemm.cuda_layout import TILE_K, TILE_ROWS, TileSpec, pack_codes

if TYPE_CHECKING:
    import pandas as pd

# Input channels of one fragment.
STEP = 16


def fragment_places() -> pd.DataFrame:
    """Return where the 4-bit codes of one tensor-core fragment lie.

    Returns
    -------
    DataFrame
        A row for each of 16 output channels `n` times 16 input channels `k`: `awq_word` and
        `awq_nibble` of an AWQ checkpoint (word ``n // 8`` of row k, as K x 2 words in a row),
        `lane` and `nibble` of the tile, nibble 0 in the lowest bits, and the lane's `word`.
    """
    import pandas as pd

    spec = TileSpec(TILE_ROWS, TILE_K, 4, 0, "float16")
    rows = []
    for n in range(TILE_ROWS):
        for k in range(STEP):
            codes = np.zeros((TILE_ROWS, TILE_K), np.uint8)
            codes[n, k] = 15
            words = pack_codes(codes, spec)
            _, _, load, lane, word = (int(at[0]) for at in np.nonzero(words))
            nibble = _nibble(int(words[0, 0, load, lane, word]))
            checkpoint = pack_awq(np.ascontiguousarray(codes.T)).view(np.uint32)
            row, column = (int(at[0]) for at in np.nonzero(checkpoint))
            awq_nibble = _nibble(int(checkpoint[row, column]))
            rows.append((n, k, 2 * row + column, awq_nibble, lane, 4 * load + word, nibble))
    names = ["n", "k", "awq_word", "awq_nibble", "lane", "word", "nibble"]
    return pd.DataFrame(rows, columns=names)


def _nibble(word: int) -> int:
    """Return the number of the only nibble that is not zero."""
    return (word.bit_length() - 1) // 4
