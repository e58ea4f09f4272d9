#!/usr/bin/env python3
"""Writes docs/reliability.md: what each failure test ran, when, on which commit, with which result.

    tools/reliability.py OUT RESULTS...

RESULTS are the JUnit files of ctest runs and, ending in .log, what scripts/fuzz printed. A test
that prints "row 7: 200 kills" says what it ran; where none does, the table below says it. Exit code
1 when a row failed or was not run.
"""
import collections
import datetime
import pathlib
import re
import sys

import reports
import test_table

Row = collections.namedtuple("Row", "title tests numbers")

# Row -> what fails, which tests hold it (names of ctest, as patterns), and what those run that do
# not say it themselves.
ROWS = {
    1: Row("Fuzzed parsers", r"fuzz\.", ""),
    2: Row("Mutated frames and messages",
           r"Frames\.|fuzz\.msgpack|serve\.autobahn",
           "mutated frames, the corpus of mutated messages, 301 Autobahn cases"),
    3: Row("Truncated checkpoint", r"HostileCheckpoint\.cut|command_line$", ""),
    4: Row("Bit flips", r"HostileCheckpoint\.with_a_flipped|ConvertedFile\.with_any|"
           r"Recording\.a_flipped", ""),
    5: Row("A file shrinks while it is mapped", r"hostile_test$", ""),
    6: Row("Hostile shapes", r"Safetensors\.hostile_headers|hostile_test$", ""),
    7: Row("kill -9", r"hostile_test$|Recording\.a_killed_writer|serve\.command", ""),
    8: Row("Disk full, read-only, EIO", r"hostile_test$|Recording\.a_(full_)?disk", ""),
    9: Row("Memory budget", r"hostile_process_test$", ""),
    10: Row("Failing allocations", r"Memory\.|Msgpack\.decoding_that_runs_out", ""),
    11: Row("Slow heads and bodies", r"SlowLoris\.",
            "200 heads and 50 bodies, one byte per 0.1 s, limits of 1 s"),
    12: Row("Floods of connections", r"Flood\.",
            "1,000 connects, 10,000 cycles (2,000 sanitized), 64 open, every descriptor taken"),
    13: Row("Oversize", r"Oversize\.|Fragments\.|Msgpack\.bombs",
            "2^63, the limit and one byte more, by parts, 10,000 fragments, 1 GiB claimed"),
    14: Row("Depth and count bombs", r"Msgpack\.bombs|Msgpack\.long_keys", "12 bombs, 10 ms each"),
    15: Row("Pings", r"Pings\.|Silence\.|serve\.clients",
            "1,000 pings in one segment, a peer without pongs, a stock client's pings while the "
            "policy computes"),
    16: Row("Frozen client", r"FrozenClient\.", "unread replies; limits of tenths of seconds"),
    17: Row("Bad observations", r"Request\.|serve\.command|serve\.clients",
            "each key of each robot missing, misnamed, of every other type and rank"),
    18: Row("NaN and infinity in observations", r"Request\.with_a_number|serve\.command",
            "every position, five values"),
    19: Row("NaN, infinity and huge weights", r"HostileCheckpoint\.with_one_bad|command_line$", ""),
    20: Row("Output guard", r"Server\.never_sends_bad",
            "not finite, beyond a factor, three in a row"),
    21: Row("Unicode prompts", r"HostilePrompt\.|hostile_process_test$|Tokenizer\.|"
            r"Request\.of_a_hostile_peer", ""),
    22: Row("Stale observations", r"Server\.refuses_stale",
            "age and deadline, both sides of the limit"),
    23: Row("Watchdog", r"ServerDeathTest\.a_hanging|serve\.command", "a hanging policy: exit 70"),
    24: Row("Graceful stop", r"Server\.that_is_stopped|ServerDeathTest\.a_s",
            "8 clients and a running inference; a second signal; a signal while loading"),
    25: Row("Soak", r"Soak\.",
            "10,000 requests, 100 connections"),
    26: Row("Concurrency", r"serve\.race",
            "16 clients that leave at random under ThreadSanitizer"),
    27: Row("Determinism", r"Engine\.gives_the_same_bytes|serve\.command", ""),
    28: Row("Ports and addresses", r"hostile_process_test$|Ports\.|Client\.says_why", ""),
    29: Row("Clock jumps", r"serve\.command", "an hour forth and back while serving"),
    30: Row("API key", r"ApiKey\.|serve\.command", "wrong, missing, a prefix, 1 MB"),
    31: Row("Browser attack", r"Origin\.|serve\.command", "an Origin that is not allowed"),
    32: Row("Hostile configuration and environment", r"hostile_process_test$|command_line", ""),
}
SAYS = re.compile(r"\brow (\d+): (.*)$", re.M)
EXPLORED = re.compile(r"^(\d+ targets, .* executions, \d+ finds)", re.M)


Test = collections.namedtuple("Test", "name build status says")  # says: (row, what it ran)


def said_in(output):
    return SAYS.findall(output) + [("1", what) for what in EXPLORED.findall(output)]


def read(path):
    build = path.parent.name
    if path.suffix == ".log":
        text = path.read_text()
        sound = re.search(r", 0 finds$", text, re.M)
        return [Test("fuzz.explore", build, "passed" if sound else "failed", said_in(text))]
    return [Test(test.name, build, test.status, said_in(test.output))
            for test in test_table.read(path)]


def row_cells(number, row, tests):
    held = [t for t in tests if re.match(row.tests, t.name)]
    ran = [t for t in held if t.status != "skipped"]
    said = dict.fromkeys(what for t in ran for n, what in t.says if int(n) == number)
    names = dict.fromkeys(t.name for t in ran)
    failed = sorted({t.name for t in ran if t.status == "failed"})
    builds = " and ".join(sorted({t.build for t in ran}))
    if failed:
        result = "**FAILED**: " + ", ".join(failed)
    elif ran:
        result = f"{len(names)} test{'s' * (len(names) != 1)} passed ({builds})"
    else:
        result = "**not run**"
    skipped = {t.name for t in held} - set(names)
    if skipped:
        result += "; skipped: " + ", ".join(sorted(skipped))
    numbers = "; ".join(said) or row.numbers
    return (number, row.title, numbers, result), bool(ran) and not failed


def main(out, paths):
    # What scripts/fuzz printed counts instead of the short run in the tests.
    tests = {(test.build, test.name): test for path in paths for test in read(path)}.values()
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    lines = [
        "# Reliability", "",
        "What a policy server and its loaders must survive, and what was run to see that they do. "
        "Anyone can write this page again: `scripts/test --sanitize` runs every row in its short "
        "form, `scripts/release-gate` in its long one, and both write here.", "",
        f"Written on {date}, commit {reports.commit()}, on {reports.machine()}. "
        "`dev` is the build with AddressSanitizer and UBSan, `release` the optimised one.", "",
        "| # | what fails | run | result |", "| --- | --- | --- | --- |"]
    sound = True
    for number, row in ROWS.items():
        cells, passed = row_cells(number, row, tests)
        sound &= passed
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    unfixed = pathlib.Path(__file__).with_name("reliability_unfixed.md").read_text()
    pathlib.Path(out).write_text("\n".join(lines) + "\n\n" + unfixed)
    print(f"{out}: {len(ROWS)} rows, {'all passed' if sound else 'NOT all passed'}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [pathlib.Path(path) for path in sys.argv[2:]]))
