#!/usr/bin/env python3
"""page_test.py --chromium PATH --page PAGE.HTML --out DIR: looks at the status page in a browser.

A small server plays the states of tendon, from loading to gone and back, and what a hostile client
could put into names. Screenshots land in DIR. Exit code 77, "skipped: reason", without the browser.
"""
import argparse
import base64
import copy
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from environment import Checks, skip

DATA = pathlib.Path(__file__).resolve().parent / "data/serve"
READY = json.loads((DATA / "status_ready.json").read_text())
LOADING = json.loads((DATA / "status_loading.json").read_text())
WAIT_S = 15
POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
          "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'")
HOSTILE = "<img src=x onerror=window.pwned=1>\"'&lt;<script>window.pwned=1</script>\u202e"
check = Checks()


class Server:
    """The page at / and `self.answer` (HTTP status, body) at /status; can go away and return."""

    def __init__(self, page):
        self.answer = (200, json.dumps(LOADING))
        self.page, self.port, self.polls, self.unknown = page, 0, 0, []
        self.start()

    def start(self):
        play = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/":
                    self.reply(200, "text/html; charset=utf-8", play.page)
                elif self.path == "/status":
                    play.polls += 1
                    code, body = play.answer
                    self.reply(code, "application/json", body.encode())
                else:
                    play.unknown.append(self.path)
                    self.reply(404, "text/plain", b"not found\n")

            def reply(self, code, kind, body):
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", POLICY)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        http.server.ThreadingHTTPServer.allow_reuse_address = True
        self.listener = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.listener.server_port
        threading.Thread(target=self.listener.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.listener.shutdown()
        self.listener.server_close()

    def show(self, status):
        self.answer = (200, status if isinstance(status, str) else json.dumps(status))


class Browser:
    """Chromium, told what to do by the DevTools protocol through a pipe."""

    def __init__(self, chromium, folder):
        # The browser reads descriptor 3 and writes descriptor 4.
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", chromium,
             "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--remote-debugging-pipe", "--hide-scrollbars", f"--user-data-dir={folder}",
             "--disable-background-networking", "about:blank"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(domain + ".enable")

    def receive(self):
        while b"\0" not in self.buffer:
            piece = self.process.stdout.read1(1 << 20)
            if not piece:
                raise RuntimeError("the browser ended")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def text(self, identifier):
        return self.js(f"document.getElementById('{identifier}').innerText")

    def wait(self, expression, what):
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if self.js(expression):
                return
            time.sleep(0.05)
        check(False, f"{what}: not within {WAIT_S} s; the state is {self.text('word')!r}, "
                     f"{self.text('reason')!r}")

    def look(self, width, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.js("new Promise(done => setTimeout(done, 150))")
        time.sleep(0.3)

    def screenshot(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                            clip={"x": 0, "y": 0, "width": size["width"],
                                  "height": size["height"], "scale": 1})
        path.write_bytes(base64.b64decode(picture["data"]))

    def complaints(self):
        """Errors and violations of the content policy, without the refused connections."""
        self.js("0")
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"])[:400])
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(str(params["args"])[:400])
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                entry = params["entry"]
                if not entry.get("url", "").endswith("/status"):
                    found.append(entry["text"] + " " + entry.get("url", ""))
        self.events = []
        return found

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


# Contrast of every visible text with the background behind it, as WCAG 2 defines it.
CONTRAST = """(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number)
    .map((v, i) => (c.startsWith('color(') && i < 3 ? v * 255 : v));
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((a, v, i) => a + v * [.2126, .7152, .0722][i], 0);
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !node.checkVisibility() || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
    let behind = node;
    while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1)
      behind = behind.parentElement;
    const style = getComputedStyle(node);
    const a = light(parse(node.closest('svg') ? style.fill : style.color));
    const b = light(parse(getComputedStyle(behind || document.body).backgroundColor));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push(`${node.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


def hostile(value):
    """`value` with every text replaced by one that wants to be HTML."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return {k: hostile(v) for k, v in value.items()} if isinstance(value, dict) else value


def wrong_types(value):
    """`value` with every number a text, every list a number and nothing where texts were."""
    if isinstance(value, dict):
        return {k: v if k == "state" else wrong_types(v) for k, v in value.items()}
    return str(value) if isinstance(value, (int, float)) else 3 if isinstance(value, list) else None


def is_titled(word):
    return f"document.title.startsWith('{word}')"


def loading_then_ready(browser, server, out):
    browser.wait(is_titled("Loading"), "the page polls by itself")
    check(browser.text("word") == "Loading", "loading is said in words")
    check(browser.text("percent") == "45 %", f"loading shows {browser.text('percent')!r}")
    check(browser.js("bar.getAttribute('aria-valuenow')") == "45", "the progress bar says 45")
    check(browser.text("left") == "about 3.1 s left", f"time left: {browser.text('left')!r}")
    check(browser.js("document.querySelectorAll('figure').length") == 0, "no plots before a chunk")
    check(browser.js("demo.hidden"), "the demo badge waits for the model")
    browser.screenshot(out / "loading.png")
    server.show(READY)
    browser.wait(is_titled("Ready"), "the page follows without being loaded again")
    check(browser.js("progress.hidden"), "the progress bar goes when the server is ready")


def ready(browser):
    numbers = browser.text("percentiles").split()
    wanted = "p50 114.2 ms p90 146.8 ms p99 161.3 ms max 912.4 ms".split()
    check(numbers == wanted, f"percentiles read {numbers}")
    check(browser.js("!demo.hidden && demo.checkVisibility()"), "demo weights have a badge")
    check("avx512bf16" in browser.text("facts"), "the model card names the method")
    check("75,310" in browser.text("answered"), "the requests are counted")
    plots = browser.js("[...document.querySelectorAll('figure')].map(f => f.innerText)")
    check(len(plots) == 14, f"{len(plots)} plots of 14 joints")
    chunk = READY["chunk"]
    outside = [sum(not low <= row[d] <= high for row in chunk["values"])
               for d, (low, high) in enumerate(zip(chunk["low"], chunk["high"]))]
    dots = browser.js("[...document.querySelectorAll('.dots')]"
                      ".map(p => p.getAttribute('d').split('M').length - 1)")
    check(dots == outside and sum(dots) > 2, f"{dots} points are marked, {outside} are outside")
    check("12 out" in plots[9], f"the plot of right_elbow says {plots[9]!r}")
    check(browser.js("[...document.querySelectorAll('.area')].every(p => p.getAttribute('d'))"),
          "each plot has its band")
    columns = browser.js("[...document.querySelectorAll('.stage')]"
                         ".map(p => p.getAttribute('d').split('M').length - 1)")
    check(columns == [len(READY["history"])] * 8, f"bars of the eight stages: {columns}")
    labels = browser.js("chart.textContent")
    for label in ("ms", "100", "\u22125 min", "now"):
        check(label in labels, f"the axes say {label!r}: {labels!r}")
    clients = browser.js("[...clients.tBodies[0].rows]"
                         ".map(r => [...r.cells].map(c => c.innerText))")
    wanted = ["4", "192.168.7.21", "4.7 Hz", "1", "5,702", "118", "4", "0.2 s ago", "20 min 13 s"]
    check(len(clients) == 3 and clients[1] == wanted, f"clients read {clients}")
    ranges = browser.js("[...ranges.children].map(r => r.innerText.split(/\\s+/).join(' '))")
    check(ranges == ["state 2 312 outside 0.41 %", "state 9 11 outside 0.01 %"], f"{ranges}")
    check(browser.js("warnings.children.length") == 2, "both warnings are listed")
    check(browser.text("to_warnings") == "2 warnings", "the top says how many warnings there are")


def keyboard(browser):
    browser.js("chart.focus()")
    for _ in range(3):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft",
                         windowsVirtualKeyCode=37)
    bucket = READY["history"][-3]
    legend = browser.text("moment")
    check(legend.endswith(f"ago, {bucket['count']} requests"), f"arrow keys chose {legend!r}")
    shown = browser.js("legend.tBodies[0].rows[5].innerText").split()
    wanted = ["denoise", f"{bucket['stages']['denoise']:.1f}"]
    check(shown == wanted, f"the chosen moment shows {shown}, not {wanted}")
    browser.js("chart.blur()")
    check(browser.text("moment").startswith("mean"), "the mean returns")


def looks(browser, out):
    for name, width, dark in (("light", 1200, False), ("dark", 1200, True), ("narrow", 390, False)):
        browser.look(width, dark)
        wide = browser.js("document.documentElement.scrollWidth")
        check(wide <= width, f"{name}: {wide} pixels of content in {width}")
        faint = browser.js(CONTRAST)
        check(faint == [], f"{name}: contrast below 4.5: {faint[:5]}")
        browser.screenshot(out / f"{name}.png")
    browser.look(1200)


def hostile_answers(browser, server, out):
    status = {**hostile(copy.deepcopy(READY)), "state": "ready"}
    server.show(status)
    browser.wait("warnings.innerText.includes('<img')", "hostile texts are shown as texts")
    check(browser.js("typeof window.pwned") == "undefined", "a script of a client ran")
    check(browser.js("document.querySelectorAll('img, script').length") == 1, "no element is made")
    for part in ("model_name", "reason", "plots", "clients", "notes"):
        check("<img src=x onerror" in browser.text(part), f"{part} shows the text as it came")
    check("\u202e" not in browser.js("document.body.innerText"), "a text turns what follows it")
    check(browser.js("document.documentElement.scrollWidth") <= 1200, "long texts are broken")
    browser.screenshot(out / "hostile.png")
    server.show(wrong_types(READY))
    browser.wait("document.querySelectorAll('figure').length === 0", "wrong types are survived")
    check(browser.text("broken") == "", f"wrong types: {browser.text('broken')}")
    server.show({"state": "warming"})
    browser.wait(is_titled("Warming up"), "a status may lack everything else")
    check(browser.text("broken") == "", f"missing fields: {browser.text('broken')}")
    chunk = {**READY["chunk"], "low": [], "high": [], "names": []}
    chunk["values"] = [[None] + row[1:] for row in chunk["values"]]
    server.show({**READY, "chunk": chunk, "state_ranges": READY["state_ranges"][:2]})
    browser.wait("plots.innerText.includes('50 not finite')", "values that are no numbers are told")
    check("action 3" in browser.text("plots"), "joints without names are numbered")
    check(browser.text("ranges_note").startswith("All inside: 2"), "all inside is said")
    check(browser.js("[...document.querySelectorAll('.dots')].every(p => !p.getAttribute('d'))"),
          "nothing is outside of an unknown band")


def ends_and_returns(browser, server, out):
    server.show({**READY, "state": "draining", "reason": "SIGTERM"})
    browser.wait(is_titled("Draining"), "draining")
    browser.screenshot(out / "draining.png")
    server.show({**READY, "state": "failed", "reason": "3 inferences in a row failed"})
    browser.wait(is_titled("Failed"), "failed")
    for answer, reason in (((500, "{}"), "HTTP 500"), ((200, "<html>"), "not JSON"),
                           ((200, "[1]"), "not a status")):
        server.answer = answer
        browser.wait(f"reason.innerText.includes('{reason}')", f"the answer {answer}")
        check(browser.text("word") == "Server unreachable", f"{answer} is no state of the server")
    server.show(READY)
    browser.wait(is_titled("Ready"), "after bad answers")
    server.stop()
    browser.wait("reason.innerText.includes('no connection')", "a server that is gone")
    check(browser.text("word") == "Server unreachable", "the page says that the server is gone")
    check("as of" in browser.text("reason"), "old numbers are said to be old")
    check("114.2" in browser.text("percentiles"), "the last numbers stay")
    browser.screenshot(out / "unreachable.png")
    server.start()
    browser.wait(is_titled("Ready"), "the page goes on when the server returns")
    check(not browser.js("main.classList.contains('stale')"), "nothing is marked as old any more")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--page", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    if not shutil.which(options.chromium):
        skip(f"there is no browser at {options.chromium} (Debian's package is chromium)")
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.page.read_bytes()
    check(b"innerHTML" not in page and b"document.write" not in page, "the page makes no HTML")
    server = Server(page)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(options.chromium, folder)
        try:
            browser.look(1200)
            browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
            loading_then_ready(browser, server, options.out)
            ready(browser)
            keyboard(browser)
            looks(browser, options.out)
            hostile_answers(browser, server, options.out)
            ends_and_returns(browser, server, options.out)
            check(server.unknown == [], f"the page asked for {server.unknown}")
            complaints = browser.complaints()
            check(complaints == [], f"the console says {complaints}")
        finally:
            browser.end()
            server.stop()
    sys.exit(check.end())


if __name__ == "__main__":
    main()
