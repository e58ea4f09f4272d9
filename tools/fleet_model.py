#!/usr/bin/env python3
"""Robots that ask policy servers: what to expect, checked against what was measured.

    fleet_model.py measure TENDON FLEET_ROBOT   loads servers of the demo in this machine; JSON
    fleet_model.py table MEASURED.json          the simulation beside the measured points
    fleet_model.py draw MEASURED.json FOLDER    the two pictures of docs/scaling.md
    fleet_model.py plan SERVICE_S PERIOD_S      robots per server for a service time of one's own

A robot asks every period at a phase of its own; while a reply is under way its next request waits
for it. A server answers one request at a time, whoever came first. Service times are drawn from
those that the server measured meanwhile; what is around them, network and waking up, from the
round trips of a robot alone: where robots and servers share the cores, it delays the next request,
too.
Of each point the quietest of several rounds counts. FLEET_ROBOT is build/release/tests/fleet_robot.
"""
import contextlib
import heapq
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time

LAYOUTS = ((1, 1), (1, 2), (2, 1), (3, 1))  # processes, threads of each
ROBOTS = (1, 2, 4, 6, 8, 10, 12)            # of one server
LOAD_OF_EIGHT = 0.7  # the measured robots' period: eight of them use so much of a server
SECONDS, ROUNDS = 4, 5


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def simulate(phases, service_s, period_s, around_s=(0.0,), periods=200, seed=1):
    """Round trips in seconds to one server, without those of the first tenth; a robot per phase."""
    rng, trips = random.Random(seed), []
    free = 0.0  # when all that it was asked so far is answered
    due = [phase * period_s for phase in phases]
    heapq.heapify(due)
    while due[0] < periods * period_s:
        asked = heapq.heappop(due)
        free = max(free, asked) + rng.choice(service_s) + rng.choice(around_s)
        if asked > periods * period_s / 10:
            trips.append(free - asked)
        heapq.heappush(due, max(asked + period_s, free))
    return trips


def evenly(robots):
    return [robot / robots for robot in range(robots)]


def robots_per_server(service_s, period_s, slowest_s):
    """The most whose p99 is at most `slowest_s`, over many draws of their phases."""
    robots, rng = 1, random.Random(1)
    while robots < 2 * period_s / statistics.mean(service_s):
        trips = [trip for seed in range(100)
                 for trip in simulate([rng.random() for _ in range(robots)], service_s, period_s,
                                      periods=20, seed=seed)]
        if quantile(trips, 0.99) > slowest_s:
            break
        robots += 1
    return robots - 1


# ---- measuring ----


@contextlib.contextmanager
def server(tendon, threads):
    served = subprocess.Popen([tendon, "serve", "demo", "--port", "0", "--admin-port", "0",
                               "--threads", str(threads), "--quiet"], stderr=subprocess.PIPE,
                              text=True)
    try:
        for line in served.stderr:
            if found := re.search(r"policy ws://[^:]+:(\d+)", line):
                break
        yield int(found[1]), served.pid
    finally:
        served.kill()
        served.wait()


def processor_seconds(pid):
    """User and system time so far."""
    times = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def load(robot, servers, robots, hz):
    """Of `robots` per server: round trips and service times in seconds, replies per second and
    per second of the servers' processor time."""
    commands = [[robot, f"ws://127.0.0.1:{port}", *map(str, (robots, SECONDS, hz, 1e6, 60))]
                for port, _ in servers]
    used = -sum(processor_seconds(pid) for _, pid in servers)
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    lines = [json.loads(line) for p in processes for line in p.communicate()[0].splitlines()]
    assert all(line["ok"] for line in lines), lines
    trips = [line["end"] - line["begin"] for line in lines if line["id"] > 0]
    service = [line["service_ms"] / 1e3 for line in lines if line["id"] > 0]
    span = max(line["end"] for line in lines) - min(line["begin"] for line in lines)
    used += sum(processor_seconds(pid) for _, pid in servers)
    return trips, service, len(lines) / span, len(lines) / used


def measure(tendon, robot):
    rates = {layout: [] for layout in LAYOUTS}
    points = {robots: [] for robots in ROBOTS}  # of each round: round trips, service times
    with contextlib.ExitStack() as stack:
        servers = {layout: [stack.enter_context(server(tendon, layout[1]))
                            for _ in range(layout[0])] for layout in LAYOUTS}
        one = servers[1, 1]
        period = 8 * statistics.mean(load(robot, one, 1, 1000)[1]) / LOAD_OF_EIGHT
        for _ in range(ROUNDS):  # in turns: the machine is shared
            for layout in LAYOUTS:
                rates[layout].append(load(robot, servers[layout], 2, 1000)[2:])
            for robots in ROBOTS:
                points[robots].append(load(robot, one, robots, 1 / period)[:2])
    # The round in which others took least: where they stop a server, all its robots wait.
    points = {robots: min(rounds, key=lambda round_: quantile(round_[0], 0.9))
              for robots, rounds in points.items()}
    parts = [i / 40 + 0.0125 for i in range(40)]
    around = [trip - service for trip, service in zip(*points[1])]
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), "model": "demo", "period_s": period,
            "around_s": [round(quantile(around, part), 6) for part in parts],
            "throughput": [dict(zip(("per_s", "per_processor_s"), map(statistics.median, zip(*r))),
                                processes=p, threads=t) for (p, t), r in rates.items()],
            "latency": [{"robots": n, "p50": quantile(trips, 0.5), "p90": quantile(trips, 0.9),
                         "service_s": [round(quantile(service, part), 6) for part in parts]}
                        for n, (trips, service) in points.items()]}


# ---- tables and pictures ----


def table(measured):
    period = measured["period_s"]
    print(f"a request of each robot every {1e3 * period:.0f} ms\n")
    print("| robots | service | load | p50, simulated | measured | p90, simulated | measured |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for point in measured["latency"]:
        trips = simulate(evenly(point["robots"]), point["service_s"], period, measured["around_s"])
        mean = statistics.mean(point["service_s"]) + statistics.mean(measured["around_s"])
        cells = [f"{1e3 * seconds:.1f} ms"
                 for part, key in ((0.5, "p50"), (0.9, "p90"))
                 for seconds in (quantile(trips, part), point[key])]
        used = point["robots"] * mean / period
        print(f"| {point['robots']} | {1e3 * mean:.1f} ms | {used:.0%} | " + " | ".join(cells)
              + " |")


def picture(title, axes, curves, dots, labels):
    """An SVG of lines and dots over two linear axes that begin at 0."""
    width, height, left, bottom = 560, 300, 60, 40
    points = [point for series in (*curves.values(), *dots.values()) for point in series]
    across = max(x for x, _ in labels) * 1.05
    up = 40 * math.ceil(max(y for _, y in points) / 32)  # four steps of tens, below the names

    def place(x, y):
        return (left + x / across * (width - left - 20),
                height - bottom - y / up * (height - bottom - 40))

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{left}" y="20" font-size="14">{title}</text>']
    for i in range(5):
        (x, y), (right, _) = place(0, up * i / 4), place(across, 0)
        out.append(f'<path d="M{x:.1f} {y:.1f}H{right:.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
                   f'{up * i / 4:.3g}</text>')
    for x, text in labels:
        out.append(f'<text x="{place(x, 0)[0]:.1f}" y="{height - bottom + 16}" '
                   f'text-anchor="middle">{text}</text>')
    out.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">{axes[0]}</text>'
               f'<text x="14" y="{height / 2}" text-anchor="middle" '
               f'transform="rotate(-90 14 {height / 2})">{axes[1]}</text>')
    colours = ("#0b6", "#06c", "#c60")
    for colour, series in zip(colours, curves.values()):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in series))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for colour, series in zip(colours, dots.values()):
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
                for x, y in (place(*p) for p in series)]
    for i, (colour, name) in enumerate(zip(colours, [*curves] or [*dots])):
        out.append(f'<rect x="{left + 10}" y="{34 + 16 * i}" width="10" height="10" '
                   f'fill="{colour}"/><text x="{left + 26}" y="{43 + 16 * i}">{name}</text>')
    return "\n".join([*out, "</svg>\n"])


def draw(measured, folder):
    period = measured["period_s"]
    trips = {point["robots"]: simulate(evenly(point["robots"]), point["service_s"], period,
                                       measured["around_s"]) for point in measured["latency"]}
    parts = {"p50": 0.5, "p90": 0.9}
    latency = picture(
        "latency over robots per server (lines: simulated, dots: measured)",
        (f"robots, each asking every {1e3 * period:.0f} ms", "ms until the reply"),
        {name: [(n, 1e3 * quantile(t, part)) for n, t in trips.items()]
         for name, part in parts.items()},
        {name: [(p["robots"], 1e3 * p[name]) for p in measured["latency"]] for name in parts},
        [(n, str(n)) for n in ROBOTS])
    rows = list(enumerate(measured["throughput"], 1))
    throughput = picture(
        "throughput over processes (demo, two cores that others used, too)", ("", "replies"), {},
        {name: [(i, row[key]) for i, row in rows]
         for name, key in (("per second", "per_s"), ("per processor second", "per_processor_s"))},
        [(i, f"{row['processes']} x {row['threads']} thread" + "s" * (row["threads"] > 1))
         for i, row in rows])
    (folder / "scaling_latency.svg").write_text(latency)
    (folder / "scaling_throughput.svg").write_text(throughput)


def plan(service_s, period_s):
    service = [service_s]
    most = [robots_per_server(service, period_s, times * service_s) for times in (2, 3)]
    print(f"{period_s / service_s:.1f} robots use a server fully; {most[0]} have a p99 of at most "
          f"2 service times, {most[1]} of at most 3")


def main(what, *more):
    if what == "measure":
        print(json.dumps(measure(*more), indent=1))
    elif what == "plan":
        plan(float(more[0]), float(more[1]))
    else:
        measured = json.loads(pathlib.Path(more[0]).read_text())
        draw(measured, pathlib.Path(more[1])) if what == "draw" else table(measured)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("measure", "table", "draw", "plan"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
