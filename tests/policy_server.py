"""`tendon serve` in a process of its own, the least of a client, and what a client of the demo
sends; for tests whose first argument is the command."""
import base64
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

TENDON = sys.argv[1]
ALOHA = ("synthetic:pi0-small", "--robot", "aloha")


def with_keys(request, keys):
    """The request with more keys, whose values are msgpack already."""
    added = b"".join(bytes([0xa0 + len(key)]) + key.encode() + value for key, value in keys.items())
    return bytes([request[0] + len(keys)]) + request[1:] + added


def array(dtype, shape, data):
    """A small NumPy array as openpi's client packs it."""
    return (b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc5" + struct.pack(">H", len(data)) + data +
            b"\xc4\x05dtype\xc4\x03" + dtype +
            b"\xc4\x05shape" + bytes([0x90 + len(shape), *shape]))


GREY = array(b"|u1", [63, 63, 3], b"\x80" * (63 * 63 * 3))
STATE = array(b"<f8", [3], struct.pack("<3d", 0.5, 0.5, 1))
WITHOUT_PROMPT = with_keys(b"\x80", {
    "observation.images.top": GREY, "observation.images.gripper": GREY,
    "observation.state": STATE})
REQUEST = with_keys(WITHOUT_PROMPT, {"prompt": b"\xb2reach the red disc"})


class Socket:
    """The least of a websocket client: one binary message out, one message in."""

    def __init__(self, port, headers="", tls=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                             f"Sec-WebSocket-Version: 13\r\n{headers}\r\n").encode())
        self.reader, head = self.socket.makefile("rb"), b""
        while (line := self.reader.readline()) not in (b"\r\n", b""):
            head += line
        if b" 101 " not in head:
            raise ConnectionError(head.decode())
        self.greeting = self.receive()[1]

    def send(self, message):
        size = (bytes([0x80 | len(message)]) if len(message) < 126 else
                b"\xfe" + struct.pack(">H", len(message)) if len(message) < 65536 else
                b"\xff" + struct.pack(">Q", len(message)))
        self.socket.sendall(b"\x82" + size + bytes(4) + message)  # a mask of zeros

    def exactly(self, count):
        data = self.reader.read(count)
        if len(data) < count:
            raise ConnectionError("closed")
        return data

    def receive(self):
        first, second = self.exactly(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(self.exactly(2 if size == 126 else 8), "big")
        return first & 15, self.exactly(size)

    def ask(self, message=REQUEST):
        self.send(message)
        return self.receive()


class Server:
    """A running `tendon serve`; what it prints is read all the time, so that it never waits."""

    def __init__(self, *options, model=("demo",), before=(), port=0, admin=0, wait=True):
        threads = () if "--threads" in options else ("--threads", "1")
        self.process = subprocess.Popen(
            [*before, TENDON, "serve", *map(str, model), "--port", str(port), "--admin-port",
             str(admin), *threads, *map(str, options)], stderr=subprocess.PIPE, text=True)
        self.log, self.port, self.admin = [], None, None
        self.told = threading.Event()  # that it serves, or all that it ever said
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if wait:
            self.wait_until_ready()

    def read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"policy ws://[^:]+:(\d+) · page http://[^:]+:(\d+)/", line)
            if found:
                self.port, self.admin = int(found[1]), int(found[2])
                self.told.set()
        self.told.set()

    def wait_until_ready(self):
        self.told.wait(120)
        if not self.port:
            raise AssertionError(f"exit code {self.process.wait(10)}: {self.log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.wait()

    def wait(self):
        """The exit code; then the log is complete."""
        code = self.process.wait(timeout=10)
        self.reader.join()
        return code

    def stop(self, *signals):
        for each in signals or (signal.SIGTERM,):
            self.process.send_signal(each)
            time.sleep(0.05)
        return self.wait()

    def get(self, path, port=None):
        url = f"http://127.0.0.1:{port or self.admin}{path}"
        return urllib.request.urlopen(url, timeout=10).read().decode()


def with_library(folder, name, source):
    """What stands before a command that is to run with this C code instead of the C library's."""
    file = pathlib.Path(folder, f"{name}.c")
    file.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", file.with_suffix(".so"), file], check=True)
    return "env", f"LD_PRELOAD={file.with_suffix('.so')}"
