"""The counted script: what a run reaches of the package, merged into one module, under short names, compressed.

    settings -> Fold (branches) -> Merger (functions) -> Emitter (names) -> squeezed -> context_mixing -> a stub

The script is a stub in Latin-1, with the compressed module as its last line, a comment. The stub carries the decoder; it
unpacks the module into a private folder, because Triton reads kernels from files, and removes it when it ends. The folder's
name is one that `pgolf.files.sweep` knows, should the process be killed.
"""

import io
import keyword
import re
import tokenize
import zlib
from dataclasses import replace
from functools import cache
from typing import Any

from pgolf.artifact.constants import constant_attributes
from pgolf.artifact.context_mixing import compressed
from pgolf.artifact.emit import Emitter
from pgolf.artifact.fold import Fold
from pgolf.artifact.merge import Merger
from pgolf.artifact.script_parts import replacements
from pgolf.config import Settings

ENTRY = ("pgolf.cli.driver", "main")
DECODER = ("pgolf.artifact.context_mixing", "transcode")
STUB = r"""# coding: latin-1
import atexit,os,platform,re,shutil,signal,sys,tempfile,zlib
b=open(__file__,"rb").read().rpartition(b"\n#")[2]
if zlib.crc32(b)!={checksum}:sys.exit(__file__+" is damaged or cut off: copy it again")
exec(zlib.decompress("{decoder}".encode("latin-1")))
b=b.translate(bytes(max(0,x-(x>0)-(x>10)-(x>13))for x in range(256)))
d=tempfile.mkdtemp(".partial",".pgolf-script.%s-%d."%(re.sub(r"\W","_",platform.node()),os.getpid()));atexit.register(shutil.rmtree,d,1);signal.signal(15,lambda*_:sys.exit(143))
open(d+"/train_gpt_module.py","wb").write({name}({array}(bytearray({size}),"B"),{array}(bytearray(b),"B"),0)[0])
os.environ.setdefault("GOMP_SPINCOUNT","2000");os.environ["PGOLF_SCRIPT"]=os.path.abspath(__file__)
sys.path.insert(0,d)
from train_gpt_module import main
sys.exit(main(sys.argv[1:]))
#"""


def compact_script(settings: Settings, device: str) -> bytes:
    """One file that trains, packs and scores with these settings on that kind of device ("cuda" or "cpu")."""
    return packed(merged_module(settings, device).encode())


def packed(module: bytes) -> bytes:
    """A script that unpacks the module and calls its main function."""
    payload = compressed(module)
    values = {"checksum": str(zlib.crc32(payload)), "size": str(len(module)), **decoder()}
    stub = re.sub(r"{(\w+)}", lambda match: values[match[1]], STUB)
    return stub.encode("latin-1") + payload


@cache
def decoder() -> dict[str, str]:
    """The decoder's source for the stub, and what the stub calls it."""
    merger = Merger(Fold(Settings(), "cpu", {"argument encoding": False}), "cpu")
    merger.reach(DECODER[0], [DECODER[1]])
    emitter = Emitter(merger)
    source = squeezed(emitter.text()).replace("(cache=True)", "")
    array = emitter.globals["import numpy", ""] + ".frombuffer"
    return {"decoder": as_literal(zlib.compress(source.encode(), 9)), "name": emitter.globals[DECODER], "array": array}


def as_literal(data: bytes) -> str:
    """What stands between double quotes in a source in Latin-1 for these bytes."""
    escapes = {0: "\\0", 10: "\\n", 13: "\\r", 34: '\\"', 92: "\\\\"}
    pairs = zip(data, data[1:] + b"x", strict=True)
    return "".join("\\x00" if not one and 48 <= next < 56 else escapes.get(one, chr(one)) for one, next in pairs)


def merged_module(settings: Settings, device: str) -> str:
    """The module that a script unpacks."""
    emitter = Emitter(merged(settings, device))
    return squeezed(emitter.text()) + f"main={emitter.globals[ENTRY]}\n"


def merged(settings: Settings, device: str) -> Merger:
    """What of the package a run with these settings reaches; merged again while that shows attributes to be constants."""
    learnt: dict[str, Any] = {}
    while True:
        merger = Merger(Fold(quiet(settings), device, learnt), device, replacements(settings))
        merger.reach(ENTRY[0], [ENTRY[1]])
        constants = constant_attributes(merger)
        if constants.items() <= learnt.items():
            return merger
        learnt |= constants


def quiet(settings: Settings) -> Settings:
    """Without what is for comparison or for a page."""
    evaluation = replace(settings.evaluation, published_tail=False, top_predictions=0)
    training = replace(settings.training, validate_every=0)
    return replace(settings, evaluation=evaluation, training=training)


def squeezed(text: str) -> str:
    """The same program with one space of indentation, and no other space and no more parentheses than it needs."""
    lines: list[str] = []
    tokens: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        if token.type != tokenize.NEWLINE:
            tokens.append(token)
            continue
        needless = needless_parentheses([one.string for one in tokens])
        line, last = " " * (tokens[0].start[1] // 4), (0, 0)
        for place, one in enumerate(tokens):
            if place in needless:
                continue
            if re.match(r"\w", line[-1:]) and re.match(r"[\w'\"]", one.string) and one.start != last:
                line += " "
            line, last = line + one.string, one.end
        lines.append(line)
        tokens = []
    return "\n".join(lines) + "\n"


def needless_parentheses(tokens: list[str]) -> set[int]:
    """Places of those around all that is assigned or returned, if it is several values, and around a call's only argument."""
    needless: set[int] = set()
    opened: list[int] = []
    inside: list[set[str]] = []
    for place, token in enumerate(tokens):
        if token in ("(", "[", "{"):
            opened.append(place)
            inside.append(set())
        elif token in (")", "]", "}"):
            start, held = opened.pop(), inside.pop()
            before = tokens[start - 1] if start else ""
            several = "," in held and not held & {"for", "lambda", "yield", ":="}
            whole = place == len(tokens) - 1 and before in ("=", "return") and not opened and several
            alone = before == "(" and opened and opened[-1] == start - 1 and tokens[place + 1] == ")" and "for" in held
            called = start > 1 and (tokens[start - 2].isidentifier() or tokens[start - 2] in (")", "]"))
            if token == ")" and (whole or (alone and called and not keyword.iskeyword(tokens[start - 2]))):
                needless |= {start, place}
        elif inside:
            inside[-1].add(token)
    return needless
