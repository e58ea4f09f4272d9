"""Starts the worker below itself and ends everything there when tendon or the worker ends.

It must be a process of its own: a simulator makes itself a session, so that no process group
reaches it, and outlives the worker that started it. Started by worker_process.cc with the
descriptors below, from a folder that goes when it ends; it needs no library.
"""
import ctypes
import os
import select
import shutil
import signal
import sys

SOCKET, SHARED, LIFE = 3, 4, 5  # LIFE: a pipe that tendon holds open
SEARCH_MS = 100


def prctl(option, value):
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def children(parent):
    """(process, session) of every child."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            yield int(name), int(fields[3])


def end_everything(worker):
    """Kills and reaps all that is left below this process; the exit code of the worker."""
    code = 0
    while True:
        for child, _ in children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        try:
            child, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if child == worker:
            code = os.waitstatus_to_exitcode(status)


def run_worker(keeper, folder):
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: this process ends with its keeper
    if os.getppid() != keeper:
        return
    os.close(LIFE)
    for descriptor in (SOCKET, SHARED):  # compilers and simulators must not hold them open
        os.set_inheritable(descriptor, False)
    os.chdir(folder)  # the library writes its logs below the current folder, its compilers there
    os.putenv("TMPDIR", folder)
    import worker
    sys.path.pop(0)  # this folder: what the library leaves here is no module
    worker.main()


def wait_for_an_end(worker, simulated):
    """Returns when tendon or the worker has ended, or the simulator: without it the library would
    wait for ever."""
    poll, names = select.poll(), {LIFE: "tendon", os.pidfd_open(worker): "worker"}
    for descriptor in names:
        poll.register(descriptor, select.POLLIN)
    searching = simulated
    while not (ready := poll.poll(SEARCH_MS if searching else None)):
        for child, session in children(worker):
            if child == session:  # compilers stay in the session of the worker
                descriptor = os.pidfd_open(child)
                names[descriptor] = f"simulator (process {child})"
                poll.register(descriptor, select.POLLIN)
                searching = False
    if (ended := names[ready[0][0]]).startswith("simulator"):
        print(f"the {ended} has ended", file=sys.stderr, flush=True)


def main():
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what is orphaned below comes to this process
    keeper, folder = os.getpid(), os.path.dirname(os.path.abspath(__file__))
    worker = os.fork()
    if worker == 0:
        return run_worker(keeper, folder)
    os.close(SOCKET)
    os.close(SHARED)
    wait_for_an_end(worker, sys.argv[1] == "simulated")
    code = end_everything(worker)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code if code >= 0 else 128 - code)


main()
