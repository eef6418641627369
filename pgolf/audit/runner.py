"""Runs a scorer in a process of its own: `python runner.py FILE.py:NAME`, or MODULE:NAME.

Requests come on the standard input, answers go to the standard output; each is a JSON line and the arrays that it
announces. The same program serves a claim, a replay and a trial, and is not told which. It imports nothing but numpy.

    describe                                what the scorer is and says of itself
    score      tokens, probes, total, ranks its costs, and whole distributions at the probes
    begin                                   a new object that goes token by token
    step       token                        observe(token), then predict(): the next token's distribution
    ask        name, tokens                 one of the claims that is a function
"""

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

import numpy as np


def load(name: str):
    where, _, what = name.rpartition(":")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(os.path.basename(where)[:-3], where)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        sys.path.insert(0, os.path.dirname(where))
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    member = module
    for part in what.split("."):
        member = getattr(member, part)
    return member


class Runner:
    def __init__(self, scorer):
        whole = hasattr(scorer, "score")
        self.made = scorer() if isinstance(scorer, type) and whole else scorer
        self.whole = hasattr(self.made, "score")
        self.steps = callable(scorer) and hasattr(scorer, "predict") and hasattr(scorer, "observe")
        self.make = scorer
        self.stepper: Any = None

    def describe(self) -> tuple[dict, dict]:
        claims = getattr(self.made, "claims", None)
        plain = {name: value for name, value in vars(claims).items() if not callable(value)} if claims is not None else {}
        return {
            "vocab": getattr(self.made, "vocab", None),
            "whole": self.whole,
            "steps": self.steps,
            "ranks": hasattr(self.made, "on_ranks"),
            "claims": json.loads(json.dumps(plain, default=plain_value)),
            "functions": [name for name, value in vars(claims).items() if callable(value)] if claims is not None else [],
        }, {}

    def score(self, tokens, probes: list[int], total: int | None, ranks: int) -> tuple[dict, dict]:
        scorer = self.made.on_ranks(ranks) if ranks > 1 else self.made
        tokens.setflags(write=False)
        scored = scorer.score(tokens, tuple(probes), total)
        rows = {int(target): np.array(row, dtype=np.float64) for target, row in scored.distributions.items()}
        width = max((row.size for row in rows.values()), default=0)
        table = np.full((len(rows), width), np.nan)
        for row, values in zip(table, rows.values(), strict=True):
            row[: values.size] = values.reshape(-1)
        events = scored.events
        if events is not None:
            events = [[str(kind), int(start), int(stop)] for kind, start, stop, *_ in events]
        total_said = None if scored.total is None else float(scored.total)
        remarkable = {name: np.array(values, dtype=np.float64) for name, values in scored.remarkable.items()}
        answer = {"events": events, "total": total_said, "sizes": [row.size for row in rows.values()]}
        arrays = {"nats": np.array(scored.nats, dtype=np.float64).reshape(-1), "rows": table}
        arrays["targets"] = np.array(list(rows), dtype=np.int64)
        return answer, arrays | {f"remarkable {name}": values for name, values in remarkable.items()}

    def begin(self) -> tuple[dict, dict]:
        self.stepper = self.make()
        return {}, {}

    def step(self, token: int) -> tuple[dict, dict]:
        self.stepper.observe(token)
        return {}, {"row": np.array(self.stepper.predict(), dtype=np.float64).reshape(-1)}

    def ask(self, name: str, tokens) -> tuple[dict, dict]:
        """A claim that is a function: of tokens it gives counts or bytes, of nothing it gives hashes of documents."""
        function = getattr(self.made.claims, name)
        if name == "bytes_of":
            return {}, {"value": np.array(function(tokens), dtype=np.int64)}
        if name == "decode":
            return {}, {"value": np.frombuffer(function(tokens), dtype=np.uint8)}
        return {"value": [bytes(one).hex() for one in function()]}, {}


def plain_value(value):
    if hasattr(value, "__dict__"):
        return vars(value)
    return value.item() if isinstance(value, np.generic) else str(value)


def read_message(stream) -> tuple[dict, dict] | None:
    line = stream.readline()
    if not line:
        return None
    message = json.loads(line)
    arrays = {}
    for name, kind, shape in message.pop("arrays"):
        dtype = np.dtype(kind)
        data = stream.read(int(np.prod(shape)) * dtype.itemsize)
        arrays[name] = np.frombuffer(data, dtype=dtype).reshape(shape).copy()
    return message, arrays


def write_message(stream, message: dict, arrays: dict) -> None:
    described = [[name, values.dtype.str, list(values.shape)] for name, values in arrays.items()]
    stream.write(json.dumps({**message, "arrays": described}).encode() + b"\n")
    for values in arrays.values():
        stream.write(np.ascontiguousarray(values).tobytes())
    stream.flush()


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # what the scorer prints goes elsewhere
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        runner = Runner(load(sys.argv[1]))
    except BaseException as error:
        write_message(answers, {"error": f"{type(error).__name__}: {error}", "loading": True}, {})
        return
    while request := read_message(requests):
        message, arrays = request
        try:
            answer = getattr(runner, message.pop("do"))(**message, **arrays)
        except BaseException as error:
            write_message(answers, {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__}, {})
        else:
            write_message(answers, *answer)


if __name__ == "__main__":
    main()
