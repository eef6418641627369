"""The README's picture: parts of a finished run's report.html, as a browser shows them.

    pgolf report RUN
    python docs/picture.py RUN [--out docs/report.png]

Needs chromium. The page is a copy with some sections left out, so that the picture is not too long; nothing is changed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH = 1200
# the head, the loss, the score breakdown and the first of the two documents
LEFT_OUT = """<style>
nav, header, #damaged, #budgets, #audit, #where, #weights, #compression, #quantisation, #settings, #glossary,
#training .grid > :nth-child(n + 3), #training .switch > fieldset, #scoring > :not(h2, .dots),
#text > figure:nth-of-type(n + 2) { display: none !important; }
main { padding-bottom: 24px; }
</style>"""
MEASURE = (
    "<script>document.title = `height ${Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)}`</script>"
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.png"))
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    page = options.run / "report.html"
    if browser is None or not page.exists():
        print("chromium is not installed" if browser is None else f"{page} does not exist", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        text = page.read_text(encoding="utf-8").replace("</head>", f"{LEFT_OUT}</head>", 1)
        copy.write_text(text.replace("</body>", f"{MEASURE}</body>", 1), encoding="utf-8")
        shown = run(browser, f"--window-size={WIDTH},800", "--dump-dom", copy.as_uri())
        height = re.search(r"<title>height (\d+)</title>", shown)
        if height is None:
            print("the browser did not lay the page out", file=sys.stderr)
            return 1
        run(browser, f"--window-size={WIDTH},{height[1]}", f"--screenshot={options.out.resolve()}", copy.as_uri())
    print(f"picture {options.out}")
    return 0


def run(browser: str, *arguments: str) -> str:
    return subprocess.run([browser, *FLAGS, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
