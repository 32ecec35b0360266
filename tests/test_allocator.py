"""The setting is per process, so it is looked at from outside."""

import subprocess
import sys

PROBE = """
import resource, sys
import numpy as np
from odn.allocator import reuse_freed_memory
made = sys.argv[1] == "reuse" and reuse_freed_memory()
def step():
    for _ in range(8):
        np.empty(16 * 1024**2, np.uint8).fill(1)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    keep = [np.empty(12 * 1024**2, np.uint8) for _ in range(4)]
    for block in keep:
        block.fill(1)
    del keep, block
print(int(made), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def probe(mode: str) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    made, faults = done.stdout.split()
    return made == "1", int(faults)


def test_freed_memory_is_reused_where_the_c_library_can():
    made, faults = probe("reuse")
    if not made:
        return  # not glibc: nothing is promised
    assert faults < probe("default")[1] / 2


def test_other_c_libraries_are_left_alone(monkeypatch):
    from odn import allocator

    monkeypatch.setattr(allocator.os, "confstr", lambda _: None)
    assert not allocator.reuse_freed_memory()

    def unknown(_):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(allocator.os, "confstr", unknown)
    assert not allocator.reuse_freed_memory()
