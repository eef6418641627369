"""pgolf: train the best language model that fits in 16,000,000 bytes; score it by a code length one can decode."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the operators live beside this package, in kernels/ (setup.py maps them to pgolf.kernels);
# looking one level up lets a checkout run without being installed.
if not (Path(__file__).parent / "kernels").exists():
    __path__.append(str(Path(__file__).parent.parent))
