"""How programs of other languages are judged: what they do not say is red, and whoever does not end is ended."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "interop"


@pytest.fixture
def interop(monkeypatch):
    """The modules of interop/, which is a folder of programs and no package."""
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("clients", "programs", "servers", "table")
    kept = {name: sys.modules.pop(name, None) for name in names}
    import clients
    import programs
    import servers
    import table

    class Modules:
        pass

    modules = Modules()
    modules.clients, modules.programs, modules.servers, modules.table = clients, programs, servers, table
    yield modules
    for name in names:
        del sys.modules[name]
        if kept[name] is not None:
            sys.modules[name] = kept[name]


def said(*lines, code=0):
    return subprocess.CompletedProcess([], code, "".join(f"{line}\n" for line in lines), "")


def report(case, ok=True):
    return json.dumps({"case": case, "ok": ok, "detail": "" if ok else "why"})


@pytest.fixture
def judge(interop):
    def judge(done, impossible=None):
        program = interop.programs.Program(ROOT, "x", "x", [], ["grpc"], ("one", "two"), impossible or {})
        return {cell.case: (cell.mark.name, cell.detail) for cell in interop.clients.judged(program, "grpc", done)}

    return judge


def test_only_what_is_reported_as_good_is_green(judge):
    assert judge(said(report("one"), report("two", ok=False))) == {"one": ("GREEN", ""), "two": ("RED", "why")}
    assert judge(said(report("one"), json.dumps({"case": "two", "ok": "yes", "detail": ""})))["two"][0] == "RED"


def test_a_case_that_is_not_reported_is_red(judge):
    told = judge(said(report("one")))
    assert told["one"][0] == "GREEN"
    assert told["two"] == ("RED", "not reported; the program ended with 0")


def test_a_case_beside_the_expected_ones_counts(judge):
    assert judge(said(report("one"), report("two"), report("three", ok=False)))["three"] == ("RED", "why")


@pytest.mark.parametrize("way", ["grpc", "*"])
def test_what_is_impossible_says_why_and_counts_where_it_is_reported_all_the_same(judge, way):
    impossible = {way: {"two": "no duplex"}}
    assert judge(said(report("one")), impossible)["two"] == ("IMPOSSIBLE", "no duplex")
    assert judge(said(report("one"), report("two", ok=False)), impossible)["two"] == ("RED", "why")


@pytest.mark.parametrize("line", ["hello", "[]", "{}", '{"case": "one"}', "3"])
def test_output_that_is_no_report_is_red(judge, line):
    told = judge(said(report("one"), report("two"), line))
    assert told["(output)"] == ("RED", f"no report: {line!r}")


def test_a_program_that_fails_is_red_whatever_it_reported(judge):
    assert judge(said(report("one"), report("two"), code=3))["(exit)"] == ("RED", "the program ended with 3")


def test_a_program_past_its_time_is_ended_with_all_that_it_started(interop, tmp_path):
    child = tmp_path / "child"
    script = f"sleep 60 & echo $! > {child}; echo begun; wait"
    began = time.monotonic()
    done = interop.programs.run(["sh", "-c", script], tmp_path, 0.5)
    assert time.monotonic() - began < 30
    assert (done.returncode, done.stdout) == (124, "begun\n")
    assert "not done after 0.5 s" in done.stderr
    state = Path(f"/proc/{child.read_text().strip()}/stat")
    deadline = time.monotonic() + 30
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_readme_describes_the_cases_that_programs_are_asked_for(interop):
    text = (ROOT / "README.md").read_text("utf-8")
    described = re.findall(
        r"^\| `(\w+)` \| ", text.partition("## The cases")[2].partition("## The reverse")[0], re.MULTILINE
    )
    languages = interop.programs.languages()
    asked = {case for language in languages for program in language.programs for case in program.cases}
    assert tuple(described[:9]) == interop.programs.COMMON_CASES
    assert asked == set(described)
    for language in languages:
        for one in (*language.programs, *language.servers):
            assert set(one.ways) <= set(interop.servers.WAYS)


def test_the_table_shows_every_cell_and_counts(interop):
    mark, cell = interop.table.Mark, interop.table.Cell
    text = interop.table.show(
        [
            cell("go", "a", "grpc", "one", mark.GREEN),
            cell("go", "a", "grpc", "two", mark.RED, "why"),
            cell("node", "b", "connect", "two", mark.IMPOSSIBLE, "no duplex"),
        ]
    )
    assert text.splitlines() == [
        "language  program  way      one  two",
        "go        a        grpc     ok   RED",
        "node      b        connect       -",
        "",
        "Red:",
        "  go a grpc: why (two)",
        "",
        "Impossible (-):",
        "  two: no duplex",
        "",
        "1 green, 1 red",
    ]
