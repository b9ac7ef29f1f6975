"""A tensor in chunks is on its way in pieces: neither side holds it twice."""

import json
import subprocess
import sys

import pytest

from support.processes import serving

SIZE_MIB = 256

CLIENT = """
import json, os, sys
from pathlib import Path
import numpy as np
import quill

url, server, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) * 2**20
sent = np.random.default_rng(0).integers(0, 256, size, np.uint8)
out = np.ones_like(sent)

def told(pid, key):
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024

with quill.QuillClient(url) as client:
    client.tensors.infer("identity", {"x": sent[:2**25]}, out={"x": out[:2**25]}, lane="chunks")
    sides, grown = {"client": os.getpid(), "server": server}, {}
    for pid in sides.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = {side: told(pid, "VmRSS") for side, pid in sides.items()}
    client.tensors.infer("identity", {"x": sent}, out={"x": out}, lane="chunks")
    print(json.dumps({side: told(pid, "VmHWM") - before[side] for side, pid in sides.items()}))
    assert (out == sent).all()
"""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_neither_side_holds_a_tensor_twice(protocol):
    with serving() as (process, ready):
        url = ready["http"] if protocol == "http" else "grpc://" + ready["grpc"]
        command = [sys.executable, "-c", CLIENT, url, str(process.pid), str(SIZE_MIB)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    grown_mib = json.loads(ended.stdout)
    # Over gRPC C-core's window follows the line and the load: that is what half of the tensor leaves room for.
    assert grown_mib["client"] < SIZE_MIB / 2
    assert grown_mib["server"] < SIZE_MIB + SIZE_MIB / 2  # the tensor itself, and what is on its way
