"""The README's picture: parts of a finished run's report.html, as a browser shows them.

    python -m pgolf.run report RUN
    python docs/picture.py RUN [--out docs/report.png]

Needs chromium. The page is a copy with some sections left out, so that the picture is not too long; nothing is changed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib import image

WIDTH, LONGEST = 1200, 4000
# the head, the loss, the onion and the first of the two documents
LEFT_OUT = """<style>
nav, header, #budgets, #audit, #compression, #quantisation, #settings { display: none !important; }
#training .grid > :nth-child(n + 3), #training .switch > fieldset, #scoring > :not(h2, .dots:nth-of-type(1)) { display: none; }
#scoring > .grid, #scoring > figure:nth-of-type(n + 2), #words > figure:nth-of-type(n + 2), #damaged { display: none; }
main { padding-bottom: 0; }
</style>"""


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
        copy, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        copy.write_text(page.read_text(encoding="utf-8").replace("</head>", f"{LEFT_OUT}</head>", 1), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
        subprocess.run(
            [browser, *flags, f"--window-size={WIDTH},{LONGEST}", f"--screenshot={shot}", copy.as_uri()],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        pixels = image.imread(shot)
    # below the last thing on the page all rows are one colour
    used = np.flatnonzero((pixels != pixels[-1, 0]).any((1, 2)))
    image.imsave(options.out, pixels[: used[-1] + 24])
    print(f"picture {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
