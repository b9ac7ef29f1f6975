import subprocess
import sys

# A raw thread stands for one of a foreign library: `threading` does not know it, so nothing else waits for it. What
# it does after it got the GIL back is only seen if the interpreter was not finalized meanwhile.
PROGRAM = """
import _thread, os, time
from quill.client.exiting import let_threads_leave_python

if {waits}:
    let_threads_leave_python()
    let_threads_leave_python()

def work():
    time.sleep({busy_s})
    os.write(1, b"left")

_thread.start_new_thread(work, ())
time.sleep(0.05)
"""


def run(*, waits, busy_s):
    code = PROGRAM.format(waits=waits, busy_s=busy_s)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_foreign_thread_leaves_python_before_the_end():
    assert run(waits=True, busy_s=0.3) == (0, "left", "")
    assert run(waits=False, busy_s=0.3) == (0, "", "")


def test_a_foreign_thread_that_stays_does_not_hold_the_process():
    assert run(waits=True, busy_s=25) == (0, "", "")
