#!/usr/bin/env python3
"""Holds what formatter and compiler cannot: lengths, names, banned constructs, include direction
between the folders of src/, the README's folder map, and the labels of the tests.

    tools/tidy.py [ROOT]        checks a source tree; exit code 1 when it finds something
    tools/tidy.py --self-test   breaks every rule once in a temporary tree and expects to see it
"""
import ast
import collections
import pathlib
import re
import sys
import tempfile

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100

CODE_FOLDERS = ("src", "include", "tests", "tools", "scripts", "bench", "fuzz", "examples", "docs",
                "python", ".ci")
CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh")
TEXT_SUFFIXES = CPP_SUFFIXES + (".py", ".cmake")
TEST_LABELS = {"tidy", "unit", "op", "model", "server", "fuzz", "slow", "timing", "cuda", "sim",
               "loop", "hostile"}

# Room -> rooms whose headers it may include, besides its own. "api" is the front door's header,
# "plain" are the headers of include/tendon/ that hold only data: every room may use those.
# tendon/client.h belongs to src/client/.
DIRECTION = {
    "tensor": set(),
    "client": {"tensor"},
    "checkpoint": {"tensor"},
    "ops": {"tensor"},
    "backends": {"ops", "tensor"},
    "model": {"ops", "checkpoint", "tensor"},
    "policy": {"model", "ops", "checkpoint", "tensor"},
    "demo": {"tensor"},
    "tendon": {"demo", "policy", "model", "ops", "checkpoint", "tensor", "backends", "api"},
    "serve": {"client", "tendon", "policy", "model", "ops", "checkpoint", "tensor", "api"},
    "validate": {"tendon", "policy", "model", "ops", "checkpoint", "tensor", "api"},
    # The command line uses nothing that the library does not have.
    "cli": {"serve", "client", "validate", "tendon", "demo", "tensor", "api"},
    "plain": set(),
    "api": set(),
}
PLAIN_HEADERS = {"tendon/error.h", "tendon/types.h"}
CLIENT_HEADER = "tendon/client.h"
BACKEND_BLIND = ("model", "policy")  # rooms that must work on every backend
BACKEND_NAMES = re.compile(r"(?i)cuda|ttnn|reference_backend|backends/")

BANNED_WORDS = {"manager", "managers", "helper", "helpers", "util", "utils", "context", "impl"}
BANNED_FIRST_WORDS = {"process", "handle"}  # process_frame(): say what is done, or with what
# Names that one thing had before, and the glossary's name for it (docs/glossary.md).
OLD_NAMES = {"Surroundings": "PolicySpec", "IsaKernels": "SimdKernels", "Held": "TensorRef",
             "Answerer": "RequestHandler", "Waiting": "QueuedRequest",
             "Leaving": "LingeringClose", "Bend": "TileActivation", "Finish": "TileEpilogue",
             "gemma_2b": "vlm", "gemma_300m": "expert",
             "mix_action": "action_time_mlp_in_actions", "mix_out": "action_time_mlp_out"}
FOREIGN_NAMESPACES = {"std", "sentencepiece", "nlohmann", "testing", "CLI", "boost", "benchmark",
                      "nanobind", "nb"}
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
BANNED_CODE = {
    "environment": re.compile(r"\b(secure_)?getenv\b"),
    "using_std": re.compile(r"\busing\s+namespace\s+std\b"),
    "catch_all": re.compile(r"\bcatch\s*\(\s*\.\.\.\s*\)"),
}

Finding = collections.namedtuple("Finding", "path line rule message")

CPP_TOKEN = re.compile(
    r"""(?P<comment>//(?:\\\n|[^\n])*|/\*.*?\*/)
      | (?P<raw>R"(?P<mark>[^()\\\s]{0,16})\(.*?\)(?P=mark)")
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | (?P<char>(?<![0-9A-Za-z_])'(?:\\.|[^'\\\n])+')""", re.S | re.X)
CPP_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.M)
CPP_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*([\"<])([^\">]+)[\">]", re.M)
TEMPLATE_HEAD = re.compile(r"^\s*template\s*<")
ACCESS = re.compile(r"^(\s*(public|private|protected)\s*:)+")
CONTAINER = re.compile(
    r"^\s*(\[\[[^\]]*\]\]\s*)*(inline\s+|typedef\s+)?(namespace|class|struct|union|enum|extern)\b")


def blank(text):
    return re.sub(r"[^\n]", " ", text)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def without_text(source):
    """C++ with comments and the insides of literals blanked; every line keeps its number."""
    return CPP_TOKEN.sub(
        lambda m: blank(m.group()) if m.group("comment") else '"' + blank(m.group())[2:] + '"',
        source)


def without_template_head(head):
    while TEMPLATE_HEAD.match(head):
        depth = 0
        for m in re.finditer(r"[<>]", head):
            depth += 1 if m.group() == "<" else -1
            if depth == 0:
                break
        head = head[m.end():]
    return head


def is_container(head):
    head = without_template_head(head)
    return bool(CONTAINER.match(head)) and ("extern" not in head or "(" not in head)


def is_function(head):
    head = without_template_head(head)
    if re.search(r"=\s*\[[^\]]*\]", head):  # a lambda with a name
        return True
    before_arguments = re.sub(r"\boperator\s*[^\s\w(]+", "operator", head).split("(")[0]
    return "(" in head and "=" not in before_arguments


class Functions:
    """Finds functions: blocks that stand in a namespace or a class and have an argument list."""

    def __init__(self, source):
        self.code = CPP_DIRECTIVE.sub(lambda m: blank(m.group()), without_text(source))
        self.found = []  # (first line, lines, name)
        self.head = 0  # where the declaration that a brace may end begins
        self.depth = 0  # braces inside the block that is being measured
        self.measured = False
        self.parentheses = 0
        for m in re.finditer(r"[{}();]", self.code):
            self.inside(m) if self.depth else self.outside(m)

    def inside(self, m):
        self.depth += {"{": 1, "}": -1}.get(m.group(), 0)
        if self.depth or self.parentheses:
            return
        if self.measured:
            head = ACCESS.sub(lambda a: blank(a.group()), self.code[self.head:m.start()])
            start = self.head + len(head) - len(head.lstrip())
            first = line_of(self.code, start)
            name = re.split(r"\{", " ".join(head.split()))[0].strip()[:70]
            self.found.append((first, line_of(self.code, m.start()) - first + 1, name))
        # In "Name() : a_{1}, b_{2} {" the first two blocks belong to the head of the third.
        if self.code[m.end():m.end() + 500].lstrip()[:1] not in (",", "{"):
            self.head = m.end()

    def outside(self, m):
        if m.group() in "()":
            self.parentheses += 1 if m.group() == "(" else -1
        elif m.group() == "{":
            head = ACCESS.sub("", self.code[self.head:m.start()])
            if not self.parentheses and is_container(head):
                self.head = m.end()
            else:
                self.depth = 1
                self.measured = not self.parentheses and is_function(head)
        elif not self.parentheses:  # the end of a declaration or of a container
            self.head = m.end()


def words_of(identifier):
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def banned_word(identifier):
    words = words_of(identifier)
    bad = [w for w in words if w in BANNED_WORDS]
    bad += [w for w in words[:1] if w in BANNED_FIRST_WORDS]
    return bad[0] if bad else None


def check_cpp(path, source):
    code = without_text(source)
    for first, lines, name in Functions(source).found:
        if lines > FUNCTION_LINES_MAX:
            yield Finding(path, first, "function_length",
                          f"{lines} lines in '{name}'; at most {FUNCTION_LINES_MAX}")
    for rule, pattern in BANNED_CODE.items():
        for m in pattern.finditer(code):
            yield Finding(path, line_of(code, m.start()), rule, f"'{m.group()}' is banned")
    no_includes = CPP_INCLUDE.sub(lambda m: blank(m.group()), code)
    for m in re.finditer(r"[A-Za-z_]\w*(?:\s*::\s*[A-Za-z_]\w*)*", no_includes):
        parts = re.split(r"\s*::\s*", m.group())
        if parts[0] in FOREIGN_NAMESPACES:
            continue
        for part in parts:
            if banned_word(part):
                yield Finding(path, line_of(code, m.start()), "banned_word",
                              f"'{banned_word(part)}' in '{part}': name the thing, not its role")
            if part in OLD_NAMES:
                yield Finding(path, line_of(code, m.start()), "old_name",
                              f"'{part}' is called '{OLD_NAMES[part]}' now")


def check_python(path, source):
    for node in ast.walk(ast.parse(source, path)):
        names = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [node.name]
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield Finding(path, node.lineno, "function_length",
                              f"{lines} lines in '{node.name}'; at most {FUNCTION_LINES_MAX}")
        elif isinstance(node, ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        for name in names:
            if banned_word(name):
                yield Finding(path, node.lineno, "banned_word",
                              f"'{banned_word(name)}' in '{name}': name the thing, not its role")
        used = getattr(node, "attr", getattr(node, "id", ""))
        if used in ("getenv", "environ"):
            yield Finding(path, node.lineno, "environment", f"'{used}' is banned")


def check_text(path, source):
    lines = source.split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) > FILE_LINES_MAX:
        yield Finding(path, len(lines), "file_length",
                      f"{len(lines)} lines; at most {FILE_LINES_MAX}")
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            yield Finding(path, number, "line_length",
                          f"{len(line)} columns; at most {COLUMNS_MAX}")
        for m in UNFINISHED.finditer(line):
            yield Finding(path, number, "unfinished", f"'{m.group()}': finish it or open an issue")
    stem = pathlib.PurePath(path).name.split(".")[0]
    if banned_word(stem):
        yield Finding(path, 1, "banned_word", f"'{banned_word(stem)}' in the file's name")


def room_of(path):
    parts = pathlib.PurePath(path).parts
    if parts[0] == "src":
        return parts[1] if len(parts) > 2 else None
    if parts[:2] == ("include", "tendon"):
        return room_of_public("/".join(parts[1:]))
    return None


def room_of_public(header):
    return "plain" if header in PLAIN_HEADERS else "client" if header == CLIENT_HEADER else "api"


def check_includes(path, source):
    room = room_of(path)
    if room is None:
        return
    if room not in DIRECTION:
        yield Finding(path, 1, "include_direction",
                      f"src/{room}/ has no place in the direction of tools/tidy.py")
        return
    for m in CPP_INCLUDE.finditer(source):
        included = m.group(2)
        first = included.split("/")[0]
        if first == "tendon" and path.startswith("src/tendon/"):
            continue  # src/tendon/ implements include/tendon/
        target = first if first in DIRECTION else None
        if first == "tendon":
            embedded = included in ("tendon/embedded.h",)  # a header of src/tendon/
            target = "tendon" if embedded else room_of_public(included)
        line = line_of(source, m.start())
        if first == "backends" and room == "backends":
            same = pathlib.PurePath(included).parts[:2] == pathlib.PurePath(path).parts[1:3]
            if not same:
                yield Finding(path, line, "include_direction",
                              f"a backend must not know another one: '{included}'")
        elif target not in {None, room, "plain"} | DIRECTION[room]:
            yield Finding(path, line, "include_direction", f"{room} must not include '{included}'")
        elif target is None and m.group(1) == '"':
            yield Finding(path, line, "include_direction",
                          f"'{included}' does not begin with a folder of src/ or with tendon/")


def check_backend_blind(path, source):
    if room_of(path) in BACKEND_BLIND:
        for m in BACKEND_NAMES.finditer(source):
            yield Finding(path, line_of(source, m.start()), "backend_name",
                          f"'{m.group()}': {room_of(path)} must not name a backend")


def check_labels(path, source):
    if not re.fullmatch(r"tests/[^/]+_test\.cc", path):
        return
    # tests/CMakeLists.txt reads the first three lines, so a line further down has no effect.
    m = re.search(r"^// labels: (\S+)$", "\n".join(source.split("\n")[:3]), re.M)
    if not m:
        yield Finding(path, 1, "labels", "no '// labels: ...' in the first three lines")
    elif unknown := set(m.group(1).split(";")) - TEST_LABELS:
        yield Finding(path, 1, "labels", f"unknown {sorted(unknown)}; known: {sorted(TEST_LABELS)}")


def check_readme_map(root):
    folders = {f.parent.relative_to(root).as_posix() + "/" for f in (root / "src").rglob("*")
               if f.suffix in CPP_SUFFIXES}
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    listed = re.findall(r"^\| `(src/[\w/]+/)` \|", text, re.M)
    for folder in sorted(folders - set(listed)):
        yield Finding("README.md", 1, "readme_map", f"the folder map lacks `{folder}`")
    for folder in sorted(set(listed) - folders):
        yield Finding("README.md", 1, "readme_map", f"`{folder}` holds no source file")
    for folder in sorted({f for f in listed if listed.count(f) > 1}):
        yield Finding("README.md", 1, "readme_map", f"`{folder}` stands there twice")


def sources(root):
    """Path -> text of everything that is ours and not data."""
    found = {}
    for folder in CODE_FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            path = file.relative_to(root).as_posix()
            script = folder in ("scripts", ".ci") and not file.suffix
            if file.is_file() and (script or file.suffix in TEXT_SUFFIXES) \
                    and not path.startswith("tests/data/") and "__pycache__" not in path:
                found[path] = file.read_text(encoding="utf-8")
    return found


def check(root):
    findings = list(check_readme_map(root))
    for path, source in sources(root).items():
        findings += check_text(path, source)
        if path.endswith(".py"):
            findings += check_python(path, source)
        if path.endswith(CPP_SUFFIXES):
            for rule in (check_cpp, check_includes, check_backend_blind, check_labels):
                findings += rule(path, source)
    return findings


def report(root):
    """Comment lines per 100 lines of code, and the longest function, per folder: to read only."""
    totals = collections.defaultdict(lambda: [0, 0, 0, (0, "")])
    for path, source in sources(root).items():
        if not path.endswith(CPP_SUFFIXES):
            continue
        total = totals[pathlib.PurePath(path).parent.as_posix()]
        comments = "".join(m.group() if m.group("comment") else blank(m.group())
                           for m in CPP_TOKEN.finditer(source))
        total[0] += 1
        total[1] += sum(1 for line in without_text(source).split("\n") if line.strip())
        total[2] += sum(len(m.group().split("\n")) for m in CPP_TOKEN.finditer(source)
                        if m.group("comment")) if comments.strip() else 0
        for _, lines, name in Functions(source).found:
            total[3] = max(total[3], (lines, name))
    print(f"{'folder':24} files   code  comments/100  longest function")
    for folder, (files, code, comments, (lines, name)) in sorted(totals.items()):
        density = 100 * comments / max(code, 1)
        print(f"{folder:24} {files:5} {code:6} {density:13.1f}  {lines} {name}")


# A tree without a fault that holds everything the rules could misread.
CLEAN = {
    "README.md": "| `src/tensor/` | data |\n| `src/model/` | the network |\n",
    "include/tendon/error.h": "#pragma once\n",
    "include/tendon/tendon.h": '#pragma once\n#include "tendon/error.h"\n',
    "src/tensor/tensor.h": '#include <vector>\n#include "tendon/error.h"\n',
    "src/model/pi0.cc": """#include "model/pi0.h"
#include "checkpoint/weights.h"
// The context of catch (...) and getenv is a comment: "no string begins here.
struct Size final {
  Size() : a_{1'000}, b_{'{'} {
    preprocess();
  }
 private:
  int a_{}, b_ = 0;
};
template <class T = int, int N = 3>
void f(const char* x = R"x(}} " getenv)x", Size size = {}) { g("}", '"', [] { return 1; }); }
constexpr int kTable[] = {
""" + "  1,\n" * 80 + "};\n" + "void long_enough() {\n" + "  x();\n" * 68 + "}\n// "
                        + "é" * 97 + "\n",
    "tests/a_test.cc": "// labels: unit;slow\nsentencepiece::util::Status status;\n",
    "tests/data/any.cc": "getenv\n",
    "tools/a.py": "import subprocess\ndef f(n):\n    return subprocess.run(n)\n",
    "scripts/test": "#!/usr/bin/env bash\n",
}

# Rule, file, what is appended to it; each must be found, and nothing else.
FAULTS = [
    ("file_length", "src/tensor/tensor.h", "\n" * 499),
    ("line_length", "src/tensor/tensor.h", "// " + "x" * 98),
    ("line_length", "scripts/test", "# " + "x" * 99),
    ("line_length", "tests/a.cmake", "# " + "x" * 99),
    ("function_length", "src/model/pi0.cc", "void f() {\n" + "  x();\n" * 69 + "}\n"),
    ("function_length", "src/model/pi0.cc",
     "class A {\n public:\n  A() : a_{1}, b_(2) {\n" + "    x();\n" * 69 + "  }\n};\n"),
    ("function_length", "src/model/pi0.cc",
     "namespace a { namespace {\nTEST(A, b) {\n if (c) {" + "\n" * 69 + " }\n}\n}}\n"),
    ("function_length", "src/model/pi0.cc", "auto f = [](int x) {" + "\n" * 70 + "};\n"),
    ("function_length", "src/model/pi0.cc",
     "template <int N = 3>\nbool operator==(A a, B b) {" + "\n" * 70 + "}\n"),
    ("function_length", "tools/a.py", "def g():\n" + "    f(1)\n" * 70),
    *[("banned_word", "src/tensor/tensor.h", f"int {name};\n") for name in
      ("WeightManager", "image_helper", "StringUtils", "kContext", "PolicyImpl", "handle",
       "process_frame")],
    ("banned_word", "src/tensor/utils.h", "\n"),
    ("old_name", "src/tensor/tensor.h", "struct Surroundings {};\n"),
    ("banned_word", "tools/a.py", "class FileManager:\n    pass\n"),
    ("environment", "src/tensor/tensor.h", 'auto x = std::getenv("X");\n'),
    ("environment", "tools/a.py", "import os\nx = os.environ\n"),
    ("unfinished", "src/tensor/tensor.h", "// " + "TO" + "DO: later\n"),
    ("unfinished", "scripts/test", "# FIX" + "ME\n"),
    ("unfinished", "tools/a.py", "# " + "X" * 3 + "\n"),
    ("using_std", "src/tensor/tensor.h", "using namespace std;\n"),
    ("catch_all", "src/tensor/tensor.h", "void f() { try { g(); } catch (...) { } }\n"),
    *[("include_direction", path, f"#include {included}\n") for path, included in (
        ("src/tensor/tensor.h", '"ops/ops.h"'), ("src/tensor/tensor.h", '"tendon/tendon.h"'),
        ("src/tensor/tensor.h", "<model/pi0.h>"), ("src/tensor/tensor.h", '"tensor.h"'),
        ("src/model/pi0.cc", '"policy/policy.h"'), ("include/tendon/error.h", '"tensor/tensor.h"'),
        ("include/tendon/tendon.h", '"policy/policy.h"'))],
    ("backend_name", "src/model/pi0.cc", "bool use_cuda = false;\n"),
    ("backend_name", "src/model/pi0.cc", 'const char* x = "TTNN";\n'),
    ("readme_map", "src/ops/ops.h", '#include "tensor/tensor.h"\n'),
    ("readme_map", "README.md", "| `src/cli/` | absent |\n"),
    ("readme_map", "README.md", "| `src/model/` | twice |\n"),
    ("labels", "tests/b_test.cc", "int a;\n"),
    ("labels", "tests/b_test.cc", "// labels: quick\n"),
    ("labels", "tests/b_test.cc", "\n\n\n// labels: unit\n"),
]

# Includes between rooms that a clean tree may or may not have.
DIRECTION_CASES = [
    (True, "src/cli/run.cc", "tendon/tendon.h"), (True, "src/cli/run.cc", "tensor/check.h"),
    (False, "src/cli/run.cc", "policy/policy.h"), (False, "src/cli/run.cc", "backends/cpu/cpu.h"),
    (True, "src/tendon/tendon.cc", "backends/cpu/cpu.h"),
    (True, "src/tendon/tendon.cc", "tendon/embedded.h"),
    (True, "src/backends/cpu/cpu.cc", "backends/cpu/cpu.h"),
    (True, "src/backends/cpu/cpu.cc", "ops/kernels.h"),
    (False, "src/backends/cpu/cpu.cc", "backends/reference/reference.h"),
    (False, "src/backends/cpu/cpu.cc", "checkpoint/weights.h"),
    (True, "src/policy/policy.cc", "model/pi0.h"), (True, "src/policy/policy.cc", "tendon/types.h"),
    (False, "src/policy/policy.cc", "backends/cpu/cpu.h"),
    (False, "src/policy/policy.cc", "tendon/embedded.h"),
    (True, "src/client/client.cc", "tendon/client.h"), (True, "src/serve/a.cc", "client/bytes.h"),
    (False, "src/client/client.cc", "tendon/tendon.h"),
    (False, "src/client/client.cc", "serve/network.h"),
    (False, "src/client/client.cc", "policy/policy.h"),
    (False, "src/checkpoint/a.cc", "model/config.h"), (False, "src/unknown/a.cc", "tensor/check.h"),
]


def rules_broken(path=None, addition=""):
    files = dict(CLEAN)
    if path:
        files[path] = files.get(path, "") + addition
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        return {f.rule for f in check(root)}


def self_test():
    failures = [f"the clean tree breaks {rules_broken()}"] if rules_broken() else []
    for rule, path, addition in FAULTS:
        if (seen := rules_broken(path, addition)) != {rule}:
            failures.append(f"{path} + {addition[:50]!r}: expected {rule}, saw {seen or 'nothing'}")
    for allowed, path, included in DIRECTION_CASES:
        found = list(check_includes(path, f'#include "{included}"\n'))
        if bool(found) == allowed:
            failures.append(f"{path} may include {included}: expected {allowed}, saw {not allowed}")
    covered = {rule for rule, _, _ in FAULTS}
    print(*failures, sep="\n", end="\n" if failures else "")
    print(f"{len(FAULTS) + len(DIRECTION_CASES)} faults of {len(covered)} rules tried, "
          f"{len(failures)} misjudged")
    return 1 if failures else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent.parent)
    findings = check(root)
    report(root)
    for f in findings:
        print(f"{f.path}:{f.line}: [{f.rule}] {f.message}")
    print(f"{len(sources(root))} files read, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
