"""What all values of one entry may take together.

A list may hold any number of values, each of which takes what a single value may take for free.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from .protocol import Decoder, Encoder


class Budget:
    """An amount of anything for each entry that is written or read.

    Args:
        amount: what an entry may take.
    """

    def __init__(self, amount: int) -> None:
        self._amount = amount
        self._left: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def takes(self, owner: Encoder | Decoder, amount: int) -> bool:
        """Take an amount for an entry, and return whether there was that much left."""
        left = self._left.get(owner, self._amount)
        if amount > left:
            return False
        self._left[owner] = left - amount
        return True
