# ruff: noqa: E501  the programs are data
"""Programs that do not want to be judged. Run only by `jailed.py`, inside an outer jail and as an unprivileged user.

FORGERIES want a verdict without the answer: the tests demand a secret that is in the tests alone (`SECRET_TESTS`).
BREAKOUTS want out: `f` returns "worked" when its attempt did not fail (`BREAKOUT_TESTS`).
BOMBS want to use up or outlast the machine; they are tested like forgeries.
HONEST programs must pass.
"""

SECRET_TESTS = ("assert f(7) == 'swordfish'", "assert f(8) == ['plover', 8]")
BREAKOUT_TESTS = ("assert f(7) == 'worked'",)

FORGERIES = {
    "exit 0 at import": "import sys\nsys.exit(0)\n",
    "exit 0 at once": "import os\nos._exit(0)\n",
    "exit 0 in the call": "import sys\ndef f(x):\n    sys.exit(0)\n",
    "kill itself kindly": "import os\ndef f(x):\n    os._exit(0)\n",
    "equal to everything": "class E:\n    def __eq__(self, o): return True\n    def __hash__(self): return 0\n"
    "def f(x):\n    return E()\n",
    "a str equal to everything": "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\n"
    "def f(x):\n    return S('x')\n",
    "a list equal to everything": "class L(list):\n    def __eq__(self, o): return True\ndef f(x):\n    return L()\n",
    "lies about its class": "class E:\n    __class__ = property(lambda s: str)\n    def __eq__(self, o): return True\n"
    "    def __str__(self): return 'swordfis'\ndef f(x):\n    return E()\n",
    "a metaclass that agrees": "class M(type):\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
    "class E(metaclass=M): pass\ndef f(x):\n    return E\n",
    "forged success on stdout": "import sys\nprint('PASSED')\nprint('{\"outcome\": \"passed\"}', file=sys.stderr)\n"
    "def f(x):\n    print('passed')\n",
    "forged reports on every descriptor": "import os, json, struct\n"
    "for form in ({'outcome': 'passed', 'reason': '', 'missing': {}}, ['passed', '', {}], ['passed', '']):\n"
    "    m = json.dumps(form).encode()\n"
    "    for fd in range(64):\n        for data in (m, struct.pack('<I', len(m)) + m):\n"
    "            try: os.write(fd, data)\n"
    "            except OSError: pass\ndef f(x):\n    return None\n",
    "answers ahead of the questions": "import os, json, struct\n"
    "m = json.dumps({'ok': True}).encode()\n"
    "for fd in range(3, 32):\n    for _ in range(9):\n        try: os.write(fd, struct.pack('<I', len(m)) + m)\n"
    "        except OSError: pass\ndef f(x):\n    return None\n",
    "patched builtins": "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\n"
    "builtins.isinstance = lambda *a: True\nbuiltins.len = lambda x: 0\nbuiltins.exec = lambda *a: None\n"
    "def f(x):\n    return None\n",
    "patched protocol": "import sys\nc = sys.modules['transformer2.sandbox.candidate']\n"
    "c.encode = lambda *a: {'h': 1, 'n': 'str'}\nc.send = lambda *a: None\ndef f(x):\n    return 1\n",
    "patched json": 'import json\njson.dumps = lambda o: \'{"ok": {"h": 1, "n": "str"}}\'\ndef f(x):\n    return 1\n',
    "search the memory for the tests": "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        try:\n            for s in (o.values() if isinstance(o, dict) else o):\n"
    "                if isinstance(s, str) and s.startswith('sword') and len(s) == 9: return s\n"
    "        except Exception: pass\n",
    "search the frames for the tests": "import sys\ndef f(x):\n    g = sys._getframe()\n    while g:\n"
    "        for v in {**g.f_locals, **g.f_globals}.values():\n"
    "            if isinstance(v, str) and 'sword' in v and len(v) == 9: return v\n        g = g.f_back\n",
    "search the raw memory": "import ctypes\ndef f(x):\n    try: maps = open('/proc/self/maps').read()\n"
    "    except OSError: return None\n    return maps\n",
    "read the judge's memory": "import os\ndef f(x):\n    for pid in (os.getppid(), 1, 2, 3):\n"
    "        try: return open(f'/proc/{pid}/mem', 'rb').read(10)\n        except OSError: pass\n",
    "read the data set": "import glob\ndef f(x):\n"
    "    return [open(p).read() for p in glob.glob('/**/*.jsonl*', recursive=True)][:1] or None\n",
    "ask the environment": "import os, sys\ndef f(x):\n    return str(os.environ) + str(sys.argv) + str(sys.orig_argv)\n",
    "AssertionError from below": "def f(x):\n    raise AssertionError\n",
    "KeyboardInterrupt from below": "def f(x):\n    raise KeyboardInterrupt\n",
    "a generator without end": "def f(x):\n    while True:\n        yield 'swordfish'\n",
    "NaN": "def f(x):\n    return float('nan')\n",
    "a list within itself": "def f(x):\n    a = []\n    a.append(a)\n    return a\n",
    "a very deep list": "def f(x):\n    a = []\n    for _ in range(100000):\n        a = [a]\n    return a\n",
    "raw deep JSON": "import os, struct\ndef f(x):\n    m = b'{\"ok\":' + b'{\"l\":[' * 60000 + b']}' * 60000 + b'}'\n"
    "    for fd in range(3, 32):\n        try: os.write(fd, struct.pack('<I', len(m)) + m)\n        except OSError: pass\n",
    "a gigantic frame": "import os, struct\ndef f(x):\n    for fd in range(3, 32):\n"
    "        try: os.write(fd, struct.pack('<I', 0xffffffff))\n        except OSError: pass\n",
    "half a frame": "import os, time\ndef f(x):\n    for fd in range(3, 32):\n"
    "        try: os.write(fd, b'\\x10\\0\\0\\0{')\n        except OSError: pass\n    time.sleep(60)\n",
    "a dict of colliding keys": "def f(x):\n    return {i * (2**61 - 1): i for i in range(30000)}\n",
    "an unhashable set": 'import os, struct\ndef f(x):\n    m = b\'{"ok": {"s": [{"l": []}]}}\'\n'
    "    for fd in range(3, 32):\n        try: os.write(fd, struct.pack('<I', len(m)) + m)\n        except OSError: pass\n",
    "a huge integer": "def f(x):\n    return 1 << (1 << 24)\n",
    "a handle that is nobody's": 'import os, struct\ndef f(x):\n    m = b\'{"ok": {"h": 1, "n": "str"}}\'\n'
    "    for fd in range(3, 32):\n        try: os.write(fd, struct.pack('<I', len(m)) + m)\n        except OSError: pass\n",
}

_HEAD = "import ctypes, os, sys, socket, signal, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def _attempt(body: str) -> str:
    """A program that says "worked" when no line of `body` raised."""
    lines = "".join(f"        {line}\n" for line in body.split("\n"))
    return (
        f"{_HEAD}def f(x):\n    try:\n{lines}        return 'worked'\n    except Exception:\n        return 'refused'\n"
    )


def _call(number: int, *arguments: object) -> str:
    """A program that makes one system call (x86-64 numbers) and says "worked" when it did not fail."""
    words = ", ".join(map(repr, arguments))
    return _attempt(
        f"r = libc.syscall({number}, {words})\nif r < 0: raise OSError(ctypes.get_errno())".replace(", )", ")")
    )


_STDLIB = "os.path.realpath(os.__file__)"
BREAKOUTS = {
    "write into /tmp": _attempt("open('/tmp/left-behind', 'w').write('x')"),
    "write into /var/tmp or /dev/shm": _attempt(
        "done = 0\nfor d in ('/var/tmp', '/dev/shm', '/run', '.', '/'):\n"
        "    try: open(d + '/left-behind', 'w'); done = 1\n    except OSError: pass\nif not done: raise OSError"
    ),
    "overwrite the standard library": _attempt(f"open({_STDLIB}, 'r+')"),
    "append to the standard library": _attempt(f"open({_STDLIB}, 'a')"),
    "remove a library file": _attempt(f"os.remove({_STDLIB})"),
    "rename a library file": _attempt(f"os.rename({_STDLIB}, '/tmp/os.py')"),
    "truncate a library file": _attempt(f"os.truncate({_STDLIB}, 0)"),
    "chmod": _attempt(f"os.chmod({_STDLIB}, 0o777)"),
    "chmod /tmp": _attempt("os.chmod('/tmp', 0o777)"),
    "touch": _attempt(f"os.utime({_STDLIB})"),
    "make a folder": _attempt("os.mkdir('/tmp/left-behind-folder')"),
    "make a link": _attempt("os.symlink('/etc/passwd', '/tmp/left-behind-link')"),
    "make a pipe file": _attempt("os.mkfifo('/tmp/left-behind-pipe')"),
    "make a file without a name": _attempt("os.open('/tmp', os.O_TMPFILE | os.O_RDWR, 0o600)"),
    "read /etc/passwd": _attempt("open('/etc/passwd').read()"),
    "list the processes": _attempt("os.listdir('/proc')"),
    "list the home folders": _attempt("os.listdir('/root') + os.listdir('/home')"),
    "read its own command line": _attempt("open('/proc/self/cmdline').read()"),
    "write its own memory": _attempt("open('/proc/self/mem', 'r+b')"),
    "fork": _attempt("pid = os.fork()\nif pid == 0: time.sleep(300)"),
    "fork bomb": _attempt("for _ in range(10000): os.fork()"),
    "forkpty": _attempt("os.forkpty()"),
    "daemon": _attempt("if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(300)"),
    "os.system": _attempt("if os.system('true') != 0: raise OSError"),
    "subprocess": _attempt("import subprocess\nsubprocess.Popen(['sleep', '300'])"),
    "posix_spawn": _attempt("os.posix_spawn('/bin/sleep', ['sleep', '300'], {})"),
    "exec": _attempt("os.execv('/bin/true', ['true'])"),
    "multiprocessing": _attempt(
        "import multiprocessing\nmultiprocessing.Process(target=time.sleep, args=(300,)).start()"
    ),
    "raw fork": _call(57),
    "raw vfork": _call(58),
    "raw clone": _call(56, 17, 0, 0, 0, 0),
    "raw clone3": _attempt(
        "a = (ctypes.c_uint64 * 11)()\na[4] = 17\n"
        "r = libc.syscall(435, ctypes.byref(a), 88)\nif r < 0: raise OSError\nif r == 0: time.sleep(300)"
    ),
    "x32 fork": _call(0x40000000 + 57),
    "32-bit system calls": _attempt(
        "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes([0xb8, 2, 0, 0, 0, 0xcd, 0x80, 0xc3]))\n"  # mov eax, fork; int 0x80; ret
        "r = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
        "if r < 0: raise OSError\nif r == 0: time.sleep(300)"
    ),
    "listen on TCP": _attempt("s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()"),
    "UDP": _attempt("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"),
    "unix socket": _attempt("s = socket.socket(socket.AF_UNIX)\ns.bind('/tmp/left-behind-socket')"),
    "abstract socket": _attempt("s = socket.socket(socket.AF_UNIX)\ns.bind('\\0left-behind')"),
    "connect": _attempt("socket.create_connection(('127.0.0.1', 22), timeout=1)"),
    "netlink": _attempt("socket.socket(16, socket.SOCK_RAW, 0)"),
    "send a descriptor away": _attempt("a, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])"),
    "receive a descriptor": _attempt("a, b = socket.socketpair()\nb.settimeout(1)\nsocket.recv_fds(b, 1, 1)"),
    "send a descriptor by the checker's channel": _attempt(
        "done = 0\nfor fd in range(3, 32):\n    try:\n        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)\n"
        "        socket.send_fds(s, [b'x'], [0]); done = 1\n    except OSError: pass\nif not done: raise OSError"
    ),
    "raw sendmsg": _attempt(
        "a, b = socket.socketpair()\nif libc.syscall(46, a.fileno(), ctypes.create_string_buffer(56), 0) < 0: raise OSError"
    ),
    "raw sendmmsg": _attempt(
        "a, b = socket.socketpair()\n"
        "if libc.syscall(307, a.fileno(), ctypes.create_string_buffer(64), 1, 0) < 0: raise OSError"
    ),
    "pair of internet sockets": _attempt("socket.socketpair(socket.AF_INET)"),
    "pair of datagram sockets": _attempt("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"),
    "pair of sequenced sockets": _attempt("socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)"),
    "pair of TIPC sockets": _call(53, 30, 1, 0, 0),
    "pair of another protocol": _attempt("socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 1)"),
    "a pair that sends to an address": _attempt("a, b = socket.socketpair()\na.sendto(b'x', '\\0left-behind')"),
    "a pair that sends urgent data": _attempt("a, b = socket.socketpair()\na.send(b'x', socket.MSG_OOB)"),
    "a pair that receives urgent data": _attempt(
        "a, b = socket.socketpair()\nb.setblocking(False)\nb.recv(1, socket.MSG_OOB)"
    ),
    "a pair that connects": _attempt("a, b = socket.socketpair()\na.connect('\\0left-behind')"),
    "a pair that binds": _attempt("a, b = socket.socketpair()\na.bind('/tmp/left-behind-pair')"),
    "a pair that listens": _attempt("a, b = socket.socketpair()\na.listen()"),
    "a pair that accepts": _attempt("a, b = socket.socketpair()\na.setblocking(False)\na.accept()"),
    "options of a pair": _attempt("a, b = socket.socketpair()\na.setsockopt(1, 8, 1 << 24)"),
    "credentials of the checker": _attempt(
        "done = 0\nfor fd in range(3, 32):\n    try:\n        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)\n"
        "        s.getsockopt(1, 17, 12); done = 1\n    except OSError: pass\nif not done: raise OSError"
    ),
    "the checker's socket by its name": _attempt(
        "names = []\nfor fd in range(3, 32):\n    try: names.append(socket.socket(1, 1, 0, fd).getsockname())\n"
        "    except OSError: pass\nif not any(names): raise OSError"  # a pair has no name that could be connected to
    ),
    "epoll on what is not open": _attempt(
        "import select\ne, done = select.epoll(), 0\nfor fd in range(64):\n    try: e.register(fd); done += fd > 3\n"
        "    except OSError: pass\nif not done: raise OSError"
    ),
    "epoll on a file": _attempt(f"import select\nselect.epoll().register(open({_STDLIB}))"),
    "epoll on the parent": _attempt("import select\nselect.epoll().register(os.pidfd_open(os.getppid() or 1))"),
    "asyncio: connect": _attempt(
        "import asyncio\nasyncio.run(asyncio.wait_for(asyncio.open_connection('127.0.0.1', 22), 1))"
    ),
    "asyncio: unix connect": _attempt(
        "import asyncio\nasyncio.run(asyncio.wait_for(asyncio.open_unix_connection('\\0left-behind'), 1))"
    ),
    "asyncio: listen": _attempt(  # start_server passes over sockets that it cannot make
        "import asyncio\nasync def g():\n    s = await asyncio.start_server(lambda r, w: None, '127.0.0.1', 0)\n"
        "    if not s.sockets: raise OSError\nasyncio.run(g())"
    ),
    "asyncio: unix listen": _attempt(
        "import asyncio\nasync def g(): return await asyncio.start_unix_server(lambda r, w: None, '/tmp/left-behind-aio')\n"
        "asyncio.run(g())"
    ),
    "asyncio: datagrams": _attempt(
        "import asyncio\nasync def g():\n    l = asyncio.get_running_loop()\n"
        "    return await l.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=('127.0.0.1', 9))\nasyncio.run(g())"
    ),
    "asyncio: subprocess": _attempt(
        "import asyncio\nasync def g(): return await asyncio.create_subprocess_exec('sleep', '300')\nasyncio.run(g())"
    ),
    "asyncio: shell": _attempt(
        "import asyncio\nasync def g(): return await asyncio.create_subprocess_shell('sleep 300')\nasyncio.run(g())"
    ),
    "asyncio: process pool": _attempt(
        "import asyncio, concurrent.futures\nasync def g():\n    with concurrent.futures.ProcessPoolExecutor(1) as p:\n"
        "        return await asyncio.get_running_loop().run_in_executor(p, abs, 1)\nasyncio.run(asyncio.wait_for(g(), 1))"
    ),
    "event descriptor": _attempt("os.eventfd(0)"),
    "signal descriptor": _attempt("if libc.syscall(289, -1, ctypes.create_string_buffer(8), 8, 0) < 0: raise OSError"),
    "timer descriptor": _attempt("if libc.syscall(283, 1, 0) < 0: raise OSError"),
    "process descriptor": _attempt("os.pidfd_open(os.getppid() or 1)"),
    "signals from a pair": _attempt("import fcntl\na, b = socket.socketpair()\nfcntl.fcntl(a, 8, os.getppid() or 1)"),
    "signals from a pair by ioctl": _attempt(
        "import fcntl\na, b = socket.socketpair()\nfcntl.ioctl(a, 0x8901, b'1234')"
    ),
    "interfaces by a pair's ioctl": _attempt(
        "import fcntl\na, b = socket.socketpair()\nfcntl.ioctl(a, 0x8912, b'x' * 16)"
    ),
    "kill everybody": _attempt("os.kill(-1, signal.SIGKILL)"),
    "kill the parent": _attempt("os.kill(os.getppid() or 1, signal.SIGKILL)"),
    "kill by thread": _call(200, 1, 9),
    "signal by file": _attempt("import fcntl\nfcntl.fcntl(3, 8, os.getppid() or 1)\nfcntl.fcntl(3, 10, 9)"),
    "lower the parent's limits": _attempt(
        "import resource\nresource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (0, 0))"
    ),
    "raise its own limits": _attempt("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))"),
    "bind the parent to no processor": _attempt("os.sched_setaffinity(os.getppid() or 1, {0})"),
    "ptrace": _call(101, 0, 0, 0, 0),
    "read another process": _call(310, 1, 0, 0, 0, 0, 0),
    "memfd": _attempt("os.memfd_create('x')"),
    "exec from memory": _attempt("fd = os.memfd_create('x')\nos.execve(fd, ['x'], {})"),
    "mount": _attempt("if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None): raise OSError"),
    "unmount": _attempt("if libc.umount2(b'/', 2): raise OSError"),
    "user namespace": _attempt("if libc.unshare(0x10000000): raise OSError"),
    "enter a namespace": _attempt("if libc.setns(3, 0): raise OSError"),
    "chroot": _attempt("os.chroot('/')"),
    "become root": _attempt("os.setuid(0)"),
    "leave the session": _attempt("os.setsid()"),
    "shared memory": _call(29, 0, 4096, 0o1600),
    "message queue": _call(68, 0, 0o1600),
    "semaphore": _call(64, 0, 1, 0o1600),
    "POSIX message queue": _attempt("if libc.syscall(240, b'left', 66, 0o600, 0) < 0: raise OSError"),
    "io_uring": _attempt("if libc.syscall(425, 8, ctypes.create_string_buffer(120)) < 0: raise OSError"),
    "bpf": _call(321, 0, 0, 0),
    "perf events": _call(298, 0, 0, -1, -1, 0),
    "userfaultfd": _call(323, 0),
    "key ring": _call(250, 0, -3, 1),
    "inotify": _call(294, 0),
    "timer that signals": _attempt(
        "t = ctypes.c_int()\nif libc.syscall(222, 0, 0, ctypes.byref(t)) < 0: raise OSError"
    ),
    "personality": _call(135, 0x0040000),
    "its own seccomp": _attempt("if libc.prctl(22, 1, 0, 0, 0): raise OSError"),
    "be dumpable": _attempt("if libc.prctl(4, 1, 0, 0, 0): raise OSError"),
    "device control": _attempt("import fcntl\nfcntl.ioctl(0, 0x5412, b'x')"),
    "leave by an open folder": _attempt("os.listdir(3)"),
}

BOMBS = {
    "endless loop": "def f(x):\n    while True: pass\n",
    "endless loop at import": "while True: pass\n",
    "endless sleep": "import time\ndef f(x):\n    time.sleep(10**6)\n",
    "ignores every signal": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ndef f(x):\n    while True: pass\n",
    "blocks every signal": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ndef f(x):\n"
    "    while True: pass\n",
    "catches everything": "def f(x):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass\n",
    "memory": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 20))\n",
    "memory mapping": "import mmap\ndef f(x):\n    a = []\n    while True: a.append(mmap.mmap(-1, 1 << 28))\n",
    "threads": "import threading, time\ndef f(x):\n    while True: threading.Thread(target=time.sleep, args=(300,)).start()\n",
    "threads that compute": "import threading\ndef g():\n    while True: pass\n"
    "for _ in range(8): threading.Thread(target=g, daemon=True).start()\ndef f(x):\n    return 1\n",
    "output": "def f(x):\n    return 'x' * (1 << 28)\n",
    "output to nowhere": "import os\ndef f(x):\n    while True: os.write(1, b'x' * (1 << 20))\n",
    "many small answers": "import os, struct\ndef f(x):\n    while True: os.write(3, b'\\2\\0\\0\\0{}')\n",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x + 1)\n",
    "recursion in C": "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(s): return repr([s])\n"
    "def f(x):\n    return repr(A())\n",
    "a slow regular expression": "import re\ndef f(x):\n    return re.match('(a+)+$', 'a' * 64 + 'b')\n",
    "a tower of powers": "def f(x):\n    return 9 ** 9 ** 9 ** 9\n",
    "segmentation fault": "import ctypes\ndef f(x):\n    return ctypes.string_at(0)\n",
    "abort": "import os\ndef f(x):\n    os.abort()\n",
    "descriptors": "import os\ndef f(x):\n    while True: os.dup(3)\n",
    "pairs of sockets": "import socket\na = []\ndef f(x):\n    while True: a.append(socket.socketpair())\n",
    "full pairs of sockets": "import socket\na = []\ntry:\n    while True: a.append(socket.socketpair())\n"
    "except OSError: pass\nfor p in a:\n    for s in p:\n        s.setblocking(False)\n        try:\n"
    "            while True: s.send(b'x' * (1 << 16))\n        except OSError: pass\ndef f(x):\n    while True: pass\n",
    "epoll sets in each other": "import select\na = [select.epoll() for _ in range(20)]\nfor e in a:\n    for g in a:\n"
    "        try: e.register(g)\n        except (OSError, ValueError): pass\ndef f(x):\n    while True: a[0].poll()\n",
    "an event loop without end": "import asyncio\nasync def g():\n    while True: await asyncio.sleep(0)\n"
    "def f(x):\n    return asyncio.run(g())\n",
    "an event loop that sleeps": "import asyncio\ndef f(x):\n    return asyncio.run(asyncio.sleep(10 ** 6))\n",
    "a large literal": "def f(x):\n    return 0\nx = "
    + "(" * 90
    + "1"
    + ")" * 90
    + "\n"
    + "y = ["
    + "1," * 100000
    + "]\n",
    "a parser bomb": "x = " + "(" * 5000 + ")" * 5000 + "\n",
    "lowers its CPU limit to be killed early": "import resource\n"
    "try: resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nexcept Exception: pass\nwhile True: pass\n",
    "alarm": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\ndef f(x):\n    while True: pass\n",
}

HONEST_TESTS = ("assert f(7) == 49", "assert f(-2) == 4")
HONEST = {
    "plain": "def f(x):\n    return x * x\n",
    "imports late": "def f(x):\n    import fractions, statistics, colorsys, zipfile\n    return int(fractions.Fraction(x) ** 2)\n",
    "prints and logs": "import logging, sys\ndef f(x):\n    print(x)\n    sys.stderr.write('x')\n    logging.warning('w')\n"
    "    return x ** 2\n",
    "classes and dataclasses": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "    def sq(self): return self.x ** 2\ndef f(x):\n    return P(x).sq()\n",
    "threads": "from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n"
    "    with ThreadPoolExecutor(8) as p: return sum(p.map(lambda i: abs(x), range(abs(x))))\n",
    "memory": "def f(x):\n    a = bytearray(200 << 20)\n    return x * x + a[0]\n",
    "recursion": "import sys\nsys.setrecursionlimit(20000)\ndef g(n):\n    return 0 if n == 0 else 1 + g(n - 1)\n"
    "def f(x):\n    return g(5000) - 5000 + x * x\n",
    "a second of work": "def f(x):\n    n = 0\n    for _ in range(3_000_000): n += 1\n    return x * x\n",
    "regular expressions, decimals, sorting": "import re, decimal, heapq, bisect, collections, itertools, functools\n"
    "def f(x):\n    return int(decimal.Decimal(re.sub('a', '', f'a{x}')) ** 2)\n",
    "reads the library's source": "import inspect, textwrap\ndef f(x):\n"
    "    return x * x if 'def dedent' in inspect.getsource(textwrap) else None\n",
    "uses /dev/null and time": "import os, time, contextlib\ndef f(x):\n    time.sleep(0.01)\n"
    "    with open(os.devnull, 'w') as n, contextlib.redirect_stdout(n): print('x')\n    return x * x\n",
    "asyncio": "import asyncio\nasync def g(x):\n    await asyncio.sleep(0.001)\n    return await asyncio.to_thread(abs, x)\n"
    "async def h(x):\n    q = asyncio.Queue()\n    async with asyncio.Lock():\n"
    "        for y in await asyncio.gather(g(x), asyncio.wait_for(g(x), 1)): await q.put(y)\n"
    "    return await q.get() * await q.get()\ndef f(x):\n    return asyncio.run(h(x))\n",
    "selectors": "import selectors, socket\ndef f(x):\n    a, b = socket.socketpair()\n"
    "    with selectors.DefaultSelector() as s:\n        s.register(b, selectors.EVENT_READ)\n        a.send(str(x * x).encode())\n"
    "        assert s.select(1)\n        return int(b.recv(9))\n",
}
