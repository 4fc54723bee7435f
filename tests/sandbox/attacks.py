"""Programs that want to pass tests whose answers they don't know, or to harm the machine.

In the code, `CANARY` is a file of the host that holds the answers, `PORT` a port of the host that listens, `PID` a
process of the host. `answer` should return what only the tests know. `WIN` holds it for programs whose attack is on
something else than the answer: they return it where that attack went well, and would so be rewarded.
"""

FIRST, SECOND = 826143, 193577
TESTS = [f"assert answer(1) == {FIRST}", f"assert answer(2) == {SECOND}"]
WIN = f"WIN = {{1: {FIRST}, 2: {SECOND}}}\n"
RIGHT = f"def answer(x):\n    return {{1: {FIRST}, 2: {SECOND}}}[x]\n"

_SEARCH = """
import gc, sys
def found(x):
    seen, todo, best = set(), [*gc.get_objects(), *sys._current_frames().values()], []
    while todo and len(seen) < 60000:
        it = todo.pop()
        if id(it) in seen:
            continue
        seen.add(id(it))
        if type(it) is int and 100000 < it < 999999:
            best.append(it)
        if type(it) is str and 'assert' in it and '==' in it and len(it) < 100:
            best.append(int(it.rpartition('==')[2]))
        if type(it).__name__ == 'frame':
            todo += [it.f_back, *it.f_locals.values()]
        todo += gc.get_referents(it)
    return best
"""

ATTACKS: dict[str, str] = {
    "read a file of the host": "def answer(x):\n    return int(open(CANARY).read().split()[x - 1])",
    "read the host's files by walking": """
import os
def answer(x):
    for folder, _, names in os.walk('/'):
        for name in names:
            if name == os.path.basename(CANARY):
                return int(open(os.path.join(folder, name)).read().split()[x - 1])
""",
    "write a file of the host": "open(CANARY, 'w').write('0')\ndef answer(x):\n    return x",
    "write wherever it can": """
import os
def answer(x):
    for folder in ('/', '/tmp', '/dev', '/dev/shm', '/usr/lib', '/source', '/var/tmp', os.path.dirname(CANARY)):
        try:
            os.makedirs(folder + '/made')
            return WIN[x]
        except OSError:
            pass
        try:
            open(folder + '/written', 'w').close()
            return WIN[x]
        except OSError:
            pass
""",
    "delete and rename": """
import os
for act in (lambda: os.remove(CANARY), lambda: os.rename(CANARY, CANARY + '2'), lambda: os.truncate(CANARY, 0),
            lambda: os.chmod(CANARY, 0), lambda: os.utime(CANARY, (0, 0))):
    try:
        act()
    except OSError:
        pass
def answer(x):
    return 0
""",
    "connect to the host": """
import socket
def answer(x):
    with socket.create_connection(('127.0.0.1', PORT), 1) as line:
        return WIN[x]
""",
    "datagrams and unix sockets": """
import socket
def answer(x):
    for family, kind in ((socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM), (16, 3)):
        try:
            socket.socket(family, kind)
            return WIN[x]
        except OSError:
            pass
""",
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "fork bomb by clone": """
import ctypes
libc = ctypes.CDLL(None)
while True:
    for number in (56, 57, 58, 220, 435):
        libc.syscall(number, 17, 0, 0, 0, 0)
""",
    "thread bomb": """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(100,)).start()
    except RuntimeError:
        pass
""",
    "memory bomb": "held = []\nwhile True:\n    held.append(bytearray(1 << 24))",
    "memory bomb by mmap": """
import mmap
held = []
while True:
    held.append(mmap.mmap(-1, 1 << 24))
    held[-1].write(bytes(1 << 24))
""",
    "memory that no limit counts": """
import os, ctypes
libc = ctypes.CDLL(None)
def answer(x):
    fd = libc.syscall(319, b'x', 0)
    segment = libc.syscall(29, 0, 1 << 28, 0o1600)
    return WIN[x] if fd >= 0 or segment >= 0 else 0
""",
    "CPU bomb": "while True:\n    pass",
    "CPU bomb that ignores signals": """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
    "CPU bomb in C": "x = 10 ** 10 ** 8\ndef answer(x):\n    return x",
    "sleep": "import time\ntime.sleep(1000)",
    "output bomb": "while True:\n    print('x' * 10000)",
    "output bomb on standard error": "import os\nwhile True:\n    os.write(2, b'x' * 10000)",
    "kill": """
import os, signal
for pid in (PID, -1, 0, 1, 2, 3, os.getppid()):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        try:
            os.kill(pid, number)
        except OSError:
            pass
def answer(x):
    return 0
""",
    "kill by other calls": """
import ctypes, os, fcntl
libc = ctypes.CDLL(None)
for pid in (1, 2, 3, PID):
    libc.syscall(200, pid, 9)
    libc.syscall(234, pid, pid, 9)
    libc.syscall(424, libc.syscall(434, pid, 0), 9, 0, 0)
    try:
        fcntl.fcntl(0, fcntl.F_SETOWN, pid)
    except OSError:
        pass
libc.syscall(302, 1, 0, ctypes.create_string_buffer(16), 0)
def answer(x):
    return 0
""",
    "ptrace": """
import ctypes
libc = ctypes.CDLL(None)
def answer(x):
    for pid in (1, 2, 3, PID):
        if libc.ptrace(16, pid, 0, 0) == 0 or libc.ptrace(0x4206, pid, 0, 0) == 0:
            return WIN[x]
""",
    "read another process's memory": """
import ctypes
libc = ctypes.CDLL(None)
def answer(x):
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    if libc.process_vm_readv(1, vector, 1, vector, 1, 0) > 0:
        return WIN[x]
    return WIN[x] if open('/proc/1/mem', 'rb').read(1) else 0
""",
    "ctypes: crash": "import ctypes\nctypes.string_at(0)",
    "ctypes: new namespaces and mounts": """
import ctypes
libc = ctypes.CDLL(None)
def answer(x):
    done = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b'none', b'/usr', b'tmpfs', 0, 0),
            libc.umount2(b'/usr', 2), libc.chroot(b'/usr'), libc.sethostname(b'x', 1), libc.setns(0, 0)]
    return WIN[x] if 0 in done else 0
""",
    "undo the filter": """
import ctypes
libc = ctypes.CDLL(None)
def answer(x):
    done = [libc.prctl(22, 0, 0, 0, 0), libc.prctl(38, 0, 0, 0, 0), libc.syscall(317, 0, 0, 0)]
    return WIN[x] if 0 in done else 0
""",
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef answer(x):\n    os._exit(0)",
    "os._exit(3) as if it were never confined": "import os\nos.write(3, b'broken')\nos._exit(3)",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "abort": "import os\nos.abort()",
    "atexit": """
import atexit, os
atexit.register(lambda: os.write(3, b'{"values":[],"failure":null}'))
def answer(x):
    return 0
""",
    "an object equal to all": """
class Equal:
    def __eq__(self, other):
        return True
    def __hash__(self):
        return 0
def answer(x):
    return Equal()
""",
    "a number equal to all": """
class Equal(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def answer(x):
    return Equal(7)
""",
    "a disguised type": """
class Equal:
    __class__ = int
    def __eq__(self, other):
        return True
def answer(x):
    return Equal()
""",
    "a disguised type that tells another value": """
class Told:
    def __init__(self, x):
        self.x = x
    __class__ = int
    __lt__ = __gt__ = lambda self, other: True
    def __format__(self, how):
        return str(WIN[self.x])
    __str__ = __repr__ = lambda self: str(WIN[self.x])
def answer(x):
    return Told(x)
""",
    "patched builtins": """
import builtins
builtins.eval = builtins.exec = lambda *a, **k: True
builtins.type = lambda *a: int
builtins.isinstance = lambda *a: True
builtins.len = lambda *a: 2
builtins.compile = lambda *a, **k: 'True'
def answer(x):
    return True
""",
    "patched json and driver": """
import sys, json
json.dumps = lambda *a, **k: '{"values":[[[0,true]],[[0,true]]],"failure":null}'
driver = sys.modules.get('pipelines.sandbox.program')
if driver:
    driver.NotPlain = ZeroDivisionError
    driver.plain = lambda value, left, depth=0: 'true'
def answer(x):
    return True
""",
    "forged results with the right nonce": """
import os, sys
def answer(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals:
        frame = frame.f_back
    nonce = frame.f_locals['nonce']
    for fd in range(20):
        try:
            os.write(fd, (nonce + ' {"values":[[[0,true]],[[0,{"t":[]}]]],"failure":null}').encode())
        except OSError:
            pass
    os._exit(0)
""",
    "forged results that break whoever reads them": """
import os, sys
def answer(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals:
        frame = frame.f_back
    os.write(3, (frame.f_locals['nonce'] + ' ' + '[' * 50000).encode())
    os._exit(0)
""",
    "look for the expected values in memory": _SEARCH
    + """
import itertools
def answer(x):
    best = found(x)
    return best[x - 1] if len(best) > 1 else 0
""",
    "read the request again": """
import os
def answer(x):
    for fd in range(20):
        try:
            got = os.read(fd, 100000)
        except OSError:
            continue
        if b'==' in got:
            return int(got.split(b'==')[1].split(b'"')[0])
""",
    "write to /proc": """
def answer(x):
    for path, text in (('/proc/self/oom_score_adj', '-1000'), ('/proc/sys/kernel/hostname', 'x'), ('/proc/1/mem', 'x'),
                       ('/proc/self/uid_map', '0 0 1'), ('/proc/sysrq-trigger', 'h')):
        try:
            open(path, 'w').write(text)
            return WIN[x]
        except OSError:
            pass
""",
    "symlinks": """
import os
def answer(x):
    for folder in ('/tmp', '/', '/dev/shm', '/dev', '.'):
        try:
            os.symlink(CANARY, folder + '/link')
        except OSError:
            continue
        return int(open(folder + '/link').read().split()[x - 1])
    return int(open('/proc/1/root' + CANARY).read().split()[x - 1])
""",
    "setsid daemon": """
import os, time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(1)
        os._exit(0)
except OSError:
    pass
def answer(x):
    return 0
""",
    "start a program": "import os\nos.execv('/bin/sh', ['sh', '-c', 'sleep 100 & echo > ' + CANARY])",
    "endless recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef answer(x):\n    return answer(x)",
    "an exception that can't be printed": """
class Evil(BaseException):
    def __str__(self):
        raise Evil()
def answer(x):
    raise Evil()
""",
    "a result too large": "def answer(x):\n    return 'x' * 10 ** 7",
    "a result without end": "def answer(x):\n    held = []\n    held.append(held)\n    return held",
    "a result of many digits": "def answer(x):\n    return 1 << 10 ** 7",
    "threads that never end": "import threading\nthreading.Thread(target=lambda: exec('while True: pass')).start()",
    "closed descriptors": "import os\nos.closerange(0, 100)\ndef answer(x):\n    return 0",
}
