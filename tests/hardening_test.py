"""Reads off a built program what limits the harm of a fault in it: hardening_test.py PROGRAM."""
import re
import subprocess
import sys

# What, the option of readelf that shows it, how it looks, and whether it must be there.
TABLE = (
    ("position independent", "-hW", r"Type:\s+DYN", True),
    ("relocations are read-only", "-lW", r"GNU_RELRO", True),
    ("symbols are bound at the start", "-dW", r"\bNOW\b", True),
    ("the stack can be executed", "-lW", r"GNU_STACK.*\bRWE\b", False),
    ("stack protector", "--dyn-syms", r"\b__stack_chk_fail\b", True),
    ("fortified C library calls", "--dyn-syms", r"\b__(memcpy|read|snprintf)_chk\b", True),
    ("checked indices", "--dyn-syms", r"glibcxx_assert_fail", True),
)


def main(program):
    wrong = 0
    for what, option, pattern, expected in TABLE:
        shown = subprocess.run(["readelf", "-W", option, program], capture_output=True, text=True,
                               check=True).stdout
        there = re.search(pattern, shown) is not None
        wrong += there != expected
        print(f"{'ok' if there == expected else 'WRONG':6}{what}: {'yes' if there else 'no'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
