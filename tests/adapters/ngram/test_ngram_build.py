import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]
DATA = ROOT / "quill" / "adapters" / "ngram" / "data"


def build(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "build_ngram.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_shipped_model_is_what_the_tool_writes_byte_for_byte(tmp_path):
    assert build("--out", tmp_path / "model.npz").returncode == 0
    assert (tmp_path / "model.npz").read_bytes() == (DATA / "model.npz").read_bytes()


def test_checking_finds_a_model_that_is_not_the_tools(tmp_path):
    stale = tmp_path / "model.npz"
    stale.write_bytes((DATA / "model.npz").read_bytes()[:-1])
    outcome = build("--check", "--out", stale)
    assert outcome.returncode == 1
    assert "build_ngram.py" in outcome.stderr
    assert stale.stat().st_size == (DATA / "model.npz").stat().st_size - 1


def test_the_data_is_small_and_holds_no_pickle():
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 5_000_000
    with np.load(DATA / "model.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind == "u" for name in arrays.files)


def test_the_archive_carries_no_time():
    with zipfile.ZipFile(DATA / "model.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_text_says_where_it_comes_from():
    notice = (DATA / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(words in notice for words in ("Lewis Carroll", "1865", "1898", "public domain"))
    assert "Down the Rabbit-Hole" in (DATA / "alice.txt").read_text(encoding="utf-8")
