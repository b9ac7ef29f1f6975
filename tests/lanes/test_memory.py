"""Whether malloc keeps what messages take: by the page faults of a process that takes and frees the same again."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, resource
from quill.lanes.memory import keep_warm

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def take_and_free():
    held = [bytearray(2**20) for _ in range(4)]
    before = faults()
    for _ in range(100):
        held = None
        held = [bytearray(2**20) for _ in range(4)]
    return (faults() - before) / 100

cold = take_and_free()
keep_warm()
take_and_free()
print(json.dumps([cold, take_and_free()]))
"""
PAGES = 4 * 2**20 // 4096


def told(**env):
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **env}, capture_output=True, check=True)
    return json.loads(ended.stdout)


def test_what_was_freed_is_taken_again_without_a_page_fault():
    cold, warm = told(GLIBC_TUNABLES="")
    assert cold > PAGES / 2  # else there would be nothing to keep
    assert warm < PAGES / 20


def test_who_has_set_the_thresholds_keeps_them():
    cold, warm = told(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072")
    assert min(cold, warm) > PAGES / 2
