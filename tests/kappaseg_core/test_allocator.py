from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from kappaseg_core.allocator import keep_freed_memory

PAGES = """
import resource, sys
from kappaseg_core.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def use():
    for size in (40, 60, 50, 70, 45, 65):  # MiB, and more than glibc's limit ever becomes
        b"x" * (size * 2**20)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_wanted_anew(how: str) -> int:
    said = subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True)
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_blocks_that_were_freed_are_used_again() -> None:
    given_back = 330 * 2**20 // resource.getpagesize()
    assert pages_wanted_anew("plain") > 0.9 * given_back
    assert pages_wanted_anew("kept") < 0.05 * given_back


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
