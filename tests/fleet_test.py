#!/usr/bin/env python3
"""fleet_test.py TENDON PROTOCOL FLEET_ROBOT VENVS: twelve robots, HAProxy, three servers.

examples/fleet/haproxy.cfg, with other ports, in front of three `tendon serve demo`. Robots with the
C++ client (fleet_robot.cc) and with openpi's from PyPI (fleet_stock.py) ask all the time while a
server is killed, all three are replaced by another model, one is slow, one accepts and hangs. Every
reply is compared with what its model says to that robot's observation. Exit code 77, "skipped:
reason", without HAProxy or openpi's client.
"""
import collections
import contextlib
import json
import pathlib
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from clients_test import clients_environment
from environment import Checks, free_ports, skip
from policy_server import Server, Socket

HERE = pathlib.Path(__file__).resolve()
CONFIG, NGINX = (HERE.parents[1] / "examples/fleet" / name
                 for name in ("haproxy.cfg", "nginx.conf"))
CPP, STOCK, HZ, EPISODE_S = 8, 4, 2.0, 2.5
NAMES = ("a", "b", "c")
ACT_AGAIN_S, HANG_S, PROXY_MS = 1.0, 3.0, 1.0


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def changed(config, *changes):
    """The example's text with the ports and paths of this test: each (pattern, text, times)."""
    text = config.read_text()
    for old, new, times in changes:
        text, done = re.subn(old, str(new), text)
        assert done == times, f"{old}: {done} times in {config}"
    return text


class HAProxy:
    """HAProxy with the example's configuration, at ports of this test."""

    def __init__(self, folder, ports):
        self.port, self.tls_port = free_ports(2)
        self.socket = folder / "admin.sock"
        pem = folder / "tendon.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-keyout", folder / "key", "-out", pem],
                       check=True, capture_output=True)
        pem.write_text(pem.read_text() + (folder / "key").read_text())
        (folder / "haproxy.cfg").write_text(changed(
            CONFIG, (r"    (user|group) haproxy\n", "", 2),
            ("/run/haproxy/admin.sock", self.socket, 1),
            ("bind :8000", f"bind 127.0.0.1:{self.port}", 1),
            ("# bind :8443", f"bind 127.0.0.1:{self.tls_port}", 1),
            ("/etc/haproxy/tendon.pem", pem, 1),
            *((rf"server {name} \S+ port \d+", f"server {name} 127.0.0.1:{port} port {admin}", 1)
              for name, (port, admin) in ports.items())))
        self.process = subprocess.Popen(["haproxy", "-db", "-q", "-f", folder / "haproxy.cfg"])

    def tell(self, command):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.socket))
            s.sendall((command + "\n").encode())
            return b"".join(iter(lambda: s.recv(65536), b"")).decode()

    def state(self, name):
        """(whether it is up, its connections)"""
        header, *rows = self.tell("show stat").lstrip("# ").splitlines()
        for row in rows:
            row = dict(zip(header.split(","), row.split(",")))
            if (row.get("pxname"), row.get("svname")) == ("tendon", name):
                return row["status"].startswith(("UP", "DRAIN")), int(row["scur"])
        raise AssertionError(rows)

    def wait_until(self, name, up):
        wait_for(lambda: self.state(name)[0] == up, f"{name} up: {up}")


class Nginx:
    """The same servers behind nginx with the example's configuration."""

    def __init__(self, folder, ports):
        self.port, = free_ports(1)
        (folder / "servers.conf").write_text(changed(
            NGINX, ("listen 8000", f"listen 127.0.0.1:{self.port}", 1),
            *((f"127.0.0.1:80{i + 1}0", f"127.0.0.1:{ports[name][0]}", 1)
              for i, name in enumerate(NAMES))))
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} "
            f"http {{ access_log off; include {folder}/servers.conf; }}")
        self.process = subprocess.Popen(["nginx", "-c", folder / "nginx.conf"])
        wait_for(lambda: (folder / "pid").exists(), "nginx's pid file")

    def wait_until(self, name, up):
        """It asks nobody: a server that is back is tried after two seconds."""
        time.sleep(2 if up else 0)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Fleet:
    def __init__(self, stack, check, folder, robot, python):
        self.stack, self.check, self.robot, self.python = stack, check, robot, python
        self.folder, self.expected, self.servers = folder, {}, {}
        ports = free_ports(6)
        self.ports = {name: ports[2 * i:2 * i + 2] for i, name in enumerate(NAMES)}
        for name in NAMES:
            self.start(name, "demo")
        self.proxy = HAProxy(folder, self.ports)
        stack.callback(self.proxy.process.kill)
        wait_for(self.proxy.socket.exists, "HAProxy's socket")
        for name in NAMES:
            self.proxy.wait_until(name, True)

    def start(self, name, model):
        port, admin = self.ports[name]
        self.servers[name] = self.stack.enter_context(
            Server("--quiet", model=(model,), port=port, admin=admin))
        lines = self.run_robots(port, CPP + STOCK, 0.99 / HZ, 60)
        prints = {line["fingerprint"] for line in lines}
        self.check(len(prints) == 1 and len(lines) == CPP + STOCK, f"{model}: {lines}")
        self.expected[prints.pop()] = {line["robot"]: line["actions"] for line in lines}

    def run_robots(self, port, count, seconds, timeout):
        """To their end, one request each where that is less than a period away."""
        done = subprocess.run(self.robot_command(port, count, seconds, timeout),
                              capture_output=True, text=True, timeout=120)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def robot_command(self, port, count, seconds, timeout, *rtc):
        return [self.robot, f"ws://127.0.0.1:{port}", *map(str, (count, seconds, HZ, EPISODE_S,
                                                                 timeout)), *rtc]

    @contextlib.contextmanager
    def robots(self, timeout=10, stock=STOCK, rtc=()):
        """What the robots say while the block runs; its list is filled at its end."""
        lines, port, readers = [], self.proxy.port, []
        commands = [self.robot_command(port, CPP, 1e6, timeout, *rtc)]
        if stock:
            commands.append([self.python, "-B", HERE.with_name("fleet_stock.py"), "robots",
                             "127.0.0.1", str(port), str(CPP), str(stock), str(HZ),
                             str(EPISODE_S)])
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                      text=True) for command in commands]

        def read(stream):
            for line in stream:
                lines.append(json.loads(line))

        try:
            readers = [threading.Thread(target=read, args=(p.stdout,)) for p in processes]
            for reader in readers:
                reader.start()
            wait_for(lambda: {line["robot"] for line in lines} >= set(range(CPP + stock)),
                     "each robot was answered once")
            yield lines
            time.sleep(2 / HZ)
        finally:
            for each in processes:
                each.kill()
            for reader in readers:
                reader.join()

    def check_replies(self, lines, what, models, guided=False):
        """Each request has one reply, by its model; the requests, [attempts] in order."""
        requests = collections.defaultdict(list)
        for line in lines:
            requests[line["robot"], line["id"]].append(line)
        last = {robot: id for robot, id in sorted(requests)}  # may have been cut by the end
        for (robot, id), attempts in requests.items():
            good = [line for line in attempts if line["ok"]]
            if id != last[robot] or good:
                self.check(len(good) == 1, f"{what}: {len(good)} replies to {robot}.{id}")
            for line in good:
                right = guided or line["actions"] == self.expected[line["fingerprint"]][robot]
                self.check(right and line["replied_to"] == f"{robot}.{id}"
                           and line["fingerprint"] in models, f"{what}: a wrong reply: {line}")
        return [attempts for attempts in requests.values() if attempts[-1]["ok"]]


def seconds_of(attempts):
    return attempts[-1]["end"] - attempts[0]["begin"]


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def check_added_time(fleet, check):
    """Round trips of a request that is refused at once, in turns, with and without the proxy."""
    direct, proxied = Socket(fleet.ports["a"][0]), Socket(fleet.proxy.port)
    blocks = []  # what it adds to p50 and to p99, and p99 without it
    for _ in range(15):
        took = {direct: [], proxied: []}
        for _ in range(200):
            for each, times in took.items():
                begin = time.perf_counter()
                each.ask(b"\x80")
                times.append(1e3 * (time.perf_counter() - begin))
        with_, without = ([quantile(took[each], part) for part in (0.5, 0.99)]
                          for each in (proxied, direct))
        blocks.append((with_[0] - without[0], with_[1] - without[1], without[1]))
    # Where others take the processor, one more process waits for it: the quieter blocks count.
    p50, p99 = (quantile(column, 0.2) for column in list(zip(*blocks))[:2])
    check(p99 < PROXY_MS, f"the proxy adds {p99:.3f} ms at p99: {blocks}")
    print(f"the proxy adds {p50:.3f} ms at the median, {p99:.3f} ms at p99 (the third lowest of "
          f"{len(blocks)} blocks of 200; medians {statistics.median(b[0] for b in blocks):.3f} and "
          f"{statistics.median(b[1] for b in blocks):.3f} ms)")


def check_kill(fleet, check):
    models = set(fleet.expected)
    with fleet.robots() as lines:
        killed = time.time()
        fleet.servers["a"].process.kill()
        time.sleep(4 / HZ)
    requests = fleet.check_replies(lines, "kill", models)
    after = [r for r in requests if r[-1]["end"] >= killed]
    again = [a for a in after if len(a) > 1]
    robots = {attempts[0]["robot"] for attempts in after}
    worst = max(map(seconds_of, after))
    check(len(robots) == CPP + STOCK, f"kill: robots that act again: {robots}")
    check(again, "kill: nobody noticed")
    check(worst <= ACT_AGAIN_S, f"kill: a robot waited {worst:.2f} s: {max(after, key=seconds_of)}")
    print(f"kill -9 behind {type(fleet.proxy).__name__}: {len(again)} of {len(after)} requests "
          f"were asked again; the slowest request took {worst:.3f} s")
    fleet.proxy.wait_until("a", False)
    fleet.servers["a"].wait()
    fleet.start("a", "demo")
    fleet.proxy.wait_until("a", True)


def check_roll(fleet, check):
    """Drain, wait for the end of episodes, stop, start the other model, take it in."""
    old = set(fleet.expected)
    with fleet.robots() as lines:
        for name in NAMES:
            fleet.proxy.tell(f"set server tendon/{name} state drain")
            wait_for(lambda: fleet.proxy.state(name)[1] == 0, f"{name} is empty")
            check(fleet.servers[name].stop() == 0, f"roll: exit code of {name}")
            fleet.start(name, "demo:pi05")
            fleet.proxy.tell(f"set server tendon/{name} state ready")
            fleet.proxy.wait_until(name, True)
        swapped = time.time()
    requests = fleet.check_replies(lines, "roll", set(fleet.expected))
    failed = [line for line in lines if not line["ok"]]
    check(not failed, f"roll: {len(failed)} requests were dropped: {failed[:2]}")
    new = {r[-1]["fingerprint"] for r in requests if r[0]["begin"] > swapped}
    check(new and not new & old, f"roll: {new} answers at the end, {old} before")
    print(f"roll: {len(requests)} requests, {len(failed)} dropped, by {len(fleet.expected)} models")


def check_slow(fleet, check):
    """One server stands still for most of the time; the others' robots do not notice."""
    slow, stop = fleet.servers["b"].process, threading.Event()

    def stutter():
        while not stop.is_set():
            slow.send_signal(signal.SIGSTOP)
            time.sleep(0.35)
            slow.send_signal(signal.SIGCONT)
            time.sleep(0.1)

    thread = threading.Thread(target=stutter)
    with fleet.robots() as lines:
        thread.start()
        time.sleep(5)
        stop.set()
        thread.join()
    requests = fleet.check_replies(lines, "slow", set(fleet.expected))
    failed = [line for line in lines if not line["ok"]]
    check(not failed, f"slow: {len(failed)} failures: {failed[:2]}")
    took = [seconds_of(r) for r in requests]
    check(quantile(took, 0.4) < 0.3 < max(took),
          f"slow: p40 {quantile(took, 0.4):.2f} s, max {max(took):.2f} s")
    print(f"slow server: p50 {quantile(took, 0.5):.3f} s, p90 {quantile(took, 0.9):.3f} s of "
          f"{len(requests)} requests")


def check_hang(fleet, check):
    """One server's kernel accepts connections, the server says nothing."""
    hung = fleet.servers["c"].process
    with fleet.robots(timeout=0.5, stock=0) as lines:
        hung.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        new = [Socket(fleet.proxy.port) for _ in range(4)]  # patient; one or more begin at it
        waited = time.monotonic() - begin
        check(all(b"fingerprint" in s.greeting for s in new), "hang: a new robot has no server")
        fleet.proxy.wait_until("c", False)
        time.sleep(3 / HZ)
        hung.send_signal(signal.SIGCONT)
        fleet.proxy.wait_until("c", True)
    requests = fleet.check_replies(lines, "hang", set(fleet.expected))
    again, worst = [r for r in requests if len(r) > 1], max(map(seconds_of, requests))
    check(again and worst <= HANG_S, f"hang: {len(again)} asked again, worst {worst:.2f} s")
    print(f"hang: {len(again)} of {len(requests)} requests were asked again; the slowest took "
          f"{worst:.3f} s; four new robots had a server after {waited:.2f} s")


def check_guidance(fleet, check):
    """The previous chunk travels with the request: any server continues what another began."""
    with fleet.robots(stock=0, rtc=("rtc",)) as lines:
        time.sleep(4 / HZ)
    fleet.check_replies(lines, "guidance", set(fleet.expected), guided=True)
    guided = [line for line in lines if line["ok"] and line["previous"]][:40]
    check(len(guided) > CPP, f"guidance: {len(guided)} guided requests")
    for name in NAMES:
        done = subprocess.run([fleet.python, "-B", HERE.with_name("fleet_stock.py"), "again",
                               "127.0.0.1", str(fleet.ports[name][0])], capture_output=True,
                              text=True, input="".join(json.dumps(g) + "\n" for g in guided))
        answers = [json.loads(line)["actions"] for line in done.stdout.splitlines()]
        check(answers == [line["actions"] for line in guided],
              f"guidance: {name} answers otherwise; {done.stderr[-300:]}")
    plain = fleet.expected[guided[0]["fingerprint"]][guided[0]["robot"]]
    check(guided[0]["actions"] != plain, "guidance: guided is not what is answered without")
    print(f"guidance: {len(guided)} guided replies are those of each of {len(NAMES)} servers")


def check_edge(fleet, check):
    """TLS at the edge, and a limit per address."""
    trust = ssl.create_default_context(cafile=str(fleet.folder / "tendon.pem"))
    check(b"fingerprint" in Socket(fleet.proxy.tls_port, tls=trust).greeting, "TLS: no greeting")
    codes = collections.Counter()
    for _ in range(120):
        with socket.create_connection(("127.0.0.1", fleet.proxy.port),
                                      source_address=("127.0.0.2", 0)) as s:
            s.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            codes[s.recv(200).split()[1]] += 1
    check(codes[b"429"] >= 10 and codes[b"200"] >= 90, f"rate limit: {codes}")


def main(_, __, robot, venvs):
    for program in ("haproxy", "nginx", "openssl"):
        if not shutil.which(program):
            skip(f"{program} is not installed: scripts/setup haproxy nginx-light openssl")
    python = clients_environment(venvs, "newest")
    check, begin = Checks(), time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        fleet = Fleet(stack, check, folder, robot, python)
        for part in (check_added_time, check_edge, check_kill, check_guidance, check_roll,
                     check_slow, check_hang):
            part(fleet, check)
        fleet.proxy = Nginx(folder, fleet.ports)
        stack.callback(fleet.proxy.stop)
        check_kill(fleet, check)
        for name in NAMES:
            check(fleet.servers[name].stop() == 0, f"exit code of {name}")
    print(f"{time.monotonic() - begin:.1f} s")
    return check.end()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
