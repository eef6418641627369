"""Attributes of a merged module's objects that are None, True or False wherever they are set: no object has another value."""

import ast
from collections.abc import Iterator
from typing import Any

import torch

from pgolf.artifact.emit import execution_order, kept_statements
from pgolf.artifact.fold import UNKNOWN
from pgolf.artifact.merge import Merger
from pgolf.artifact.syntax import walk

# what torch sets or reads itself
FOREIGN = {*dir(torch.nn.Module()), *dir(torch.zeros(0))}


def constant_attributes(merger: Merger) -> dict[str, Any]:
    """ "attribute" and a name, as `Fold` knows it, to the one value."""
    values: dict[str, Any] = {}
    others = FOREIGN | merger.strings
    seen: set[int] = set()
    for source in execution_order(merger):
        for statement in kept_statements(merger, source):
            for node in walk(statement):
                if isinstance(node, ast.ClassDef):
                    others |= set(members(node))
                elif isinstance(node, ast.Assign):
                    for target, value in assigned(node):
                        seen.add(id(target))
                        # to hand on an object's value to another of its kind adds none
                        if not (isinstance(value, ast.Attribute) and value.attr == target.attr):
                            known = value.value if isinstance(value, ast.Constant) else UNKNOWN
                            values[target.attr] = known if values.get(target.attr, known) is known else UNKNOWN
                elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and id(node) not in seen:
                    others.add(node.attr)
    return {
        f"attribute {name}": value
        for name, value in values.items()
        if name not in others and (value is None or isinstance(value, bool))
    }


def assigned(node: ast.Assign) -> Iterator[tuple[ast.Attribute, ast.expr]]:
    """The attributes that an assignment sets, and to what."""
    for target in node.targets:
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=False))
        yield from ((one, value) for one, value in pairs if isinstance(one, ast.Attribute))


def members(node: ast.ClassDef) -> Iterator[str]:
    """What a class binds: methods, and fields, which its constructor sets."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            yield part.name
        elif isinstance(part, (ast.Assign, ast.AnnAssign)):
            for target in part.targets if isinstance(part, ast.Assign) else [part.target]:
                yield from (name.id for name in walk(target) if isinstance(name, ast.Name))
