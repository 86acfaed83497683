"""What a child process of a test does to die in the middle of its writes, as text that it runs."""

DYING = """
import os, random, signal, sys
from pathlib import Path
from evomerge.calibration import files

def dying(left):
    # A step that kills the process when it is the last: where something was just put in place, or is half written.
    def step(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    replace, save = os.replace, files.save_file
    def replaced(*names):
        step()
        replace(*names)
        step()
    def torn(tensors, path, metadata):
        save(tensors, path, metadata=metadata)
        if left == 1:
            os.truncate(path, os.path.getsize(path) // 2)
        step()
    files.os.replace, files.save_file = replaced, torn
    return step

def child(work, *given):
    pid = os.fork()
    if pid == 0:
        try:
            work(*given)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed(work, *given, most, draw):
    # Kills it again and again, after as many steps as are drawn, until it comes to its end; how often.
    for kills in range(most):
        status = child(work, *given, draw())
        if status == 0:
            return kills
        assert status == -signal.SIGKILL, status
    return most
"""
