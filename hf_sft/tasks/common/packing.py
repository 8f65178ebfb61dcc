"""Pieces of documents to blocks, all nearly full, and what simple models of the same tokens say of them."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix


def pack(lengths: np.ndarray, room: int) -> list[list[int]]:
    """The places of pieces, block by block: none is torn, and each block's pieces are at most `room` long together.

    The longest first, each into the fullest block that still has room (Ding and others, Fewer Truncations Improve Language
    Modeling, 2024). In a block pieces stand in the order in which they came.
    """
    blocks: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect_left(rooms, length)
        if place < len(rooms):
            left = rooms[place]
            block = with_room[left].pop()
            if not with_room[left]:
                del with_room[left], rooms[place]
        else:
            left, block = room, len(blocks)
            blocks.append([])
        blocks[block].append(piece)
        left -= length
        if left > 0:
            if left not in with_room:
                insort(rooms, left)
            with_room.setdefault(left, []).append(block)
    return sorted(sorted(block) for block in blocks)


class Grams:
    """A unigram or a bigram model of tokens."""

    def __init__(self, documents: Sequence[Sequence[int]], size: int, weight: float | None = None):
        """Counts tokens of a vocabulary of `size`. With a `weight` a bigram model: its counts are mixed with as many
        occurrences as that of what the unigram model says (Dirichlet smoothing)."""
        self.weight = weight
        counts = np.bincount(np.concatenate([np.asarray(each[1:], dtype=np.int64) for each in documents]), minlength=size)
        self.single = (counts + 1.0) / (counts.sum() + size)
        if weight is not None:
            first = np.concatenate([np.asarray(each[:-1], dtype=np.int64) for each in documents])
            second = np.concatenate([np.asarray(each[1:], dtype=np.int64) for each in documents])
            self.pairs = csr_matrix((np.ones(len(first)), (first, second)), shape=(size, size))
            self.before = np.bincount(first, minlength=size)

    def nats(self, document: Sequence[int], mask: Sequence[int]) -> float:
        """The negative log-likelihood of those of a document's tokens, after the first, where the mask is 1."""
        tokens = np.asarray(document, dtype=np.int64)
        first, second = tokens[:-1], tokens[1:]
        chances = self.single[second]
        if self.weight is not None and len(first):
            seen = np.asarray(self.pairs[first, second]).ravel()
            chances = (seen + self.weight * chances) / (self.before[first] + self.weight)
        return float(-np.log(chances) @ np.asarray(mask[1:], dtype=np.float64))
