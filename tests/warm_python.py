"""A Python whose fresh processes are there at once: forked from one that has imported torch and transformers, nothing of ours.

Most of what a prune takes in tests is one process that imports these libraries to load what was saved. What such a process runs,
and that it knows nothing of headprune, is the same here; it starts in a hundredth of the time. Whatever else is run with this
Python is run by the real one.
"""

import signal
import stat
import subprocess
import sys
from pathlib import Path

REAL = str(Path(sys.prefix) / "bin" / "python")

_CLIENT = """#!{real} -SE
import json, os, signal, socket, sys, time
words = sys.argv[1:]
if not (len(words) == 3 and words[0] == "-P" and words[1].endswith("fresh_process.py")):
    os.execv({real!r}, [{real!r}, *words])
there = socket.socket(socket.AF_UNIX)
for attempt in range(3000):  # until the libraries are imported
    try:
        there.connect({address!r})
        break
    except OSError:
        time.sleep(0.05)
order = json.dumps([words[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(there, [len(order).to_bytes(8, "big")], [0, 1, 2])
there.sendall(order)
status = int.from_bytes(there.recv(4), "big", signed=True)
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
"""

_SERVER = """
import json, os, runpy, socket, sys, traceback
import torch, transformers, transformers.dynamic_module_utils
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama
assert "headprune" not in sys.modules
waiting = socket.socket(socket.AF_UNIX)
waiting.bind({address!r})
waiting.listen()
while True:
    there, _ = waiting.accept()
    size, files, _, _ = socket.recv_fds(there, 8, 3)
    if len(size) < 8:
        continue
    order = b""
    while len(order) < int.from_bytes(size, "big"):
        order += there.recv(1 << 16)
    words, folder, environment = json.loads(order)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number, file in enumerate(files):
                os.dup2(file, number)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            transformers.dynamic_module_utils.HF_MODULES_CACHE = environment["HF_MODULES_CACHE"]
            transformers.utils.logging.set_verbosity_error()
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    there.sendall(status.to_bytes(4, "big", signed=True))
    there.close()
    for file in files:
        os.close(file)
"""


class WarmPython:
    """An executable, and the process behind it, which ends with :meth:`stop`."""

    def __init__(self, folder):
        self.address = str(folder / "socket")
        self.executable = folder / "python"
        self.executable.write_text(_CLIENT.format(real=REAL, address=self.address))
        self.executable.chmod(self.executable.stat().st_mode | stat.S_IXUSR)
        script = _SERVER.format(address=self.address)
        self.server = subprocess.Popen([REAL, "-c", script], stdin=subprocess.DEVNULL)

    def stop(self):
        """End the process."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
