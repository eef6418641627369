"""The page in a browser: no errors, no requests, nothing too wide, and what keys and pointer do."""

import base64
import json
import shutil
import subprocess
import threading
import time
import urllib.request

import pytest

from pgolf.report.audit_page import page as audit_page
from pgolf.report.compare import page as compare_page
from pgolf.report.files import read_run
from pgolf.report.page import page
from pgolf.report.watch import server_of
from pgolf.study import driver as driver_module
from pgolf.study.driver import Driver
from pgolf.study.page import publish
from pgolf.study.plan import study_of
from tests.report.folders import audited, trained
from tests.study.fake_stage import Here
from tests.study.test_study import table

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


class Browser:
    """A window of chromium, led through chromedriver's HTTP interface."""

    def __init__(self, folder, width, height=900):
        self.process = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder
        )
        port = next(line.rsplit(" ", 1)[1].strip(" .\n") for line in self.process.stdout if "successfully on port" in line)
        self.base = f"http://127.0.0.1:{port}"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        metrics = {"width": width, "height": height, "pixelRatio": 1, "mobile": width < 500, "touch": False}
        options = {"args": arguments, "binary": CHROMIUM, "mobileEmulation": {"deviceMetrics": metrics}}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base += f"/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, method=method, data=content)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def keys(self, *names):
        codes = {"Tab": "\ue004", "Right": "\ue014", "Space": " "}
        actions = [{"type": kind, "value": codes[name]} for name in names for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def point(self, x, y):
        move = {"type": "pointerMove", "duration": 0, "x": int(x), "y": int(y), "origin": "viewport"}
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
        self.call("POST", "/actions", {"actions": [mouse]})

    def complaints(self):
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]

    def requests(self):
        sent = [json.loads(entry["message"])["message"] for entry in self.call("POST", "/se/log", {"type": "performance"})]
        return [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [read_run(audited(folder / name, rate=rate)) for name, rate in (("a" * 60, 0.04), ("b", 0.02))]
    (folder / "report.html").write_text(page(runs[0]))
    (folder / "compare.html").write_text(compare_page(runs))
    (folder / "audit.html").write_text(audit_page(runs[0].audit, "a" * 60))
    study = study_of(table(title="A title of " + "many words " * 12), "trial.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver_module, "PAUSE", 0.0)
        Driver(study, folder / "study", Here(), say=lambda line: None).run()
    publish(study, folder / "study")
    (folder / "study" / "study.html").rename(folder / "study.html")
    return folder


@pytest.fixture(scope="module", params=[1280, 390])
def browser(request, pages):
    opened = Browser(pages, request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["report.html", "compare.html", "audit.html", "study.html"])
def test_no_errors_no_requests_nothing_too_wide(browser, pages, name):
    url = f"file://{pages / name}"
    browser.call("POST", "/url", {"url": url})
    time.sleep(0.2)
    for theme in ("light", "dark"):
        browser.run(f"document.querySelector('input[name=theme][value={theme}]').click()")
        assert browser.run("return getComputedStyle(document.documentElement).colorScheme") == theme
        wide, inner = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner
    outside = browser.run(
        "return [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.wide, .unseen')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert browser.complaints() == [] and set(browser.requests()) == {url}
    assert base64.b64decode(browser.call("GET", "/screenshot")).startswith(b"\x89PNG")


def test_pointer_and_keys(browser, pages):
    browser.call("POST", "/url", {"url": f"file://{pages / 'report.html'}"})
    # hover over the loss
    x, y = browser.run(
        "const area = document.querySelector('#training .area'); area.scrollIntoView({block: 'center'});"
        "const box = area.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]"
    )
    browser.point(x, y)
    result = "return document.querySelector('#training .readout').textContent"
    value = "return document.querySelector('#training .legend output').textContent"
    middle = float(browser.run(value))
    assert 3 < middle < 7 and browser.run(result).startswith("trained on: 1")
    # keys read the next values, and the last
    browser.run("document.querySelector('#training figure').focus()")
    place = "return parseFloat(document.querySelector('#training .cursor').style.left)"
    before = browser.run(place)
    browser.keys("Right", "Right")
    assert browser.run(place) > before and browser.run(result).startswith("trained on: 1")
    # radio buttons by keyboard: seconds instead of tokens
    browser.run("document.querySelector('input[name=training-axis]').focus()")
    browser.keys("Right")
    shown = "return [...document.querySelectorAll('#training .panel')].map(e => e.getBoundingClientRect().height > 0)"
    assert browser.run(shown) == [False, True]
    # words: the token in the panel moves along
    token = "return document.querySelector('.panel-of-token h5').textContent"
    browser.run("document.querySelector('.text').focus()")
    before = browser.run(token)
    browser.keys("Right")
    assert browser.run(token) != before
    assert "n-gram back-off predicted" in browser.run("return document.querySelector('.panel-of-token').textContent")


def test_tab_reaches_every_control(browser, pages):
    browser.call("POST", "/url", {"url": f"file://{pages / 'report.html'}"})
    wanted = browser.run(
        "window.reached = new Set(); document.addEventListener('focusin', e => reached.add(e.target));"
        "document.querySelectorAll('details').forEach(e => e.open = true);"
        "window.wanted = [...document.querySelectorAll('a, summary, [tabindex], input:checked')].filter("
        "e => e.checkVisibility()); return wanted.length"
    )
    browser.keys(*["Tab"] * (wanted + 5))
    missed = browser.run("return wanted.filter(e => !reached.has(e)).map(e => e.outerHTML.slice(0, 100))")
    assert missed == [] and wanted > 25


def test_a_watched_page_refreshes_itself_and_keeps_its_place(browser, tmp_path):
    path = trained(tmp_path / "run", steps=10, ended=False)
    with server_of(path, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            browser.call("POST", "/url", {"url": f"http://127.0.0.1:{server.server_address[1]}/"})
            said = "return document.querySelector('#training .says').textContent"
            assert browser.run(said).startswith("10 steps")
            browser.run("scrollTo(0, 300)")
            # the page must have asked once before it can see a change
            time.sleep(3)
            trained(path, steps=14, ended=False)
            end = time.monotonic() + 60
            while not browser.run(said).startswith("14 steps"):
                assert time.monotonic() < end
                time.sleep(0.5)
            assert browser.run("return scrollY") > 100
            assert [line for line in browser.complaints() if "favicon" not in line] == []
        finally:
            server.shutdown()
            thread.join()
