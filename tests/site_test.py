#!/usr/bin/env python3
"""Opens the pages of `mla explain all --html DIR` in headless Chromium: tests/site_test.py DIR [SCREENSHOTS].

No page may write an error to the console or be wider than the window, at desktop and phone width; each must have a picture;
sliders must change the bars below them, and no number in these may be missing. Needs Debian's chromium and chromium-driver;
speaks the WebDriver protocol (W3C) by itself. With SCREENSHOTS, writes PNG files there, light and dark.
"""
import base64
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

WIDTHS = {"desktop": (1100, 900), "phone": (390, 800)}
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]


class Browser:
    def __init__(self, scheme, home):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.address = f"http://127.0.0.1:{port}"
        dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        chrome = {"binary": "/usr/bin/chromium", "args": FLAGS + dark + [f"--user-data-dir={home}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        for attempt in range(100):
            try:
                answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                break
            except OSError:
                if attempt == 99:
                    raise
                time.sleep(0.1)
        self.session = "/session/" + answer["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def post(self, path, **body):
        return self.call("POST", self.session + path, body)

    def run(self, script):
        return self.post("/execute/sync", script=script, args=[])

    def errors(self):
        return [line["message"] for line in self.post("/se/log", type="browser") if line["level"] in ("SEVERE", "WARNING")]

    def close(self):
        self.call("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait()


# Moves each slider to both ends; the texts of its bars at each.
MOVE = """
return [...document.querySelectorAll('.slider')].map(slider => {
  const input = slider.querySelector('input');
  return [input.min, input.max].map(value => {
    input.value = value;
    input.dispatchEvent(new Event('input'));
    return [...slider.querySelectorAll('.bar-name')].map(bar => bar.textContent).join('; ') + ' | ' +
      [...slider.querySelectorAll('.bar-fill')].map(bar => bar.style.width).join(' ');
  });
});
"""
PICTURES = "return document.querySelectorAll('figure svg, figure .boxes').length"
TOO_WIDE = "return document.documentElement.scrollWidth - window.innerWidth"


def check_page(browser, page, problems):
    browser.post("/url", url=page.as_uri())
    name = page.name
    problems += [f"{name}: console: {error}" for error in browser.errors()]
    too_wide = browser.run(TOO_WIDE)
    if too_wide > 0:
        problems.append(f"{name}: {too_wide} pixels wider than the window")
    if name != "index.html" and browser.run(PICTURES) == 0:
        problems.append(f"{name}: no picture")
    sliders = browser.run(MOVE)
    for low, high in sliders:
        if low == high:
            problems.append(f"{name}: a slider changes nothing: {low}")
        if "NaN" in low + high or "undefined" in low + high:
            problems.append(f"{name}: a slider shows no number: {low}, {high}")
    return len(sliders)


def main():
    site, shots = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
    pages, problems, sliders = sorted(site.glob("*.html")), [], 0
    if not pages:
        sys.exit(f"{site}: no pages")
    for scheme in ("light", "dark") if shots else ("light",):
        with tempfile.TemporaryDirectory() as home:
            browser = Browser(scheme, home)
            for width, (x, y) in WIDTHS.items():
                browser.post("/window/rect", width=x, height=y)
                for page in pages:
                    sliders += check_page(browser, page, problems)
                    if shots:
                        height = browser.run("return document.documentElement.scrollHeight")
                        browser.post("/window/rect", width=x, height=min(height + 150, 6000))
                        shots.mkdir(parents=True, exist_ok=True)
                        png = browser.call("GET", browser.session + "/screenshot")
                        (shots / f"{page.stem}-{width}-{scheme}.png").write_bytes(base64.b64decode(png))
                        browser.post("/window/rect", width=x, height=y)
            browser.close()
    if sliders == 0:
        problems.append("no page has a slider")
    print("\n".join(problems) or f"{len(pages)} pages: nothing to object to")
    sys.exit(bool(problems))


main()
