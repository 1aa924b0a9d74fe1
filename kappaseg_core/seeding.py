"""Random numbers as a function of where they are used, not of what ran before.

Every draw belongs to a place: (seed, "sample", 1234), (seed, "step", 17, worker). Seeding by place makes a run
independent of the number of loader workers and of interruptions: nothing random has to be saved to resume exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*place: int | str) -> int:
    """A 63-bit seed for a place, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, leave the outer random state untouched (CPU generator).

    `torch.manual_seed` would seed the GPUs too, and while these are not in use note the call stack for each of them.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
