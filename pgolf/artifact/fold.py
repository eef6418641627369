"""Branches that a run's settings and its device decide, taken out of a module's syntax tree.

An expression is known if it is a constant, a setting of DECIDED read from something that holds settings, a question for
the device's type, or made of such: comparisons, `not`, `and`, `or`, a subscript of a literal table, a local name that is
assigned once. `if`, conditional expressions, `and`, `or` and `assert` follow from that.
"""

import ast
from typing import Any

from pgolf.artifact.rounding import FORMS
from pgolf.artifact.syntax import walk
from pgolf.config import Settings

# settings whose value no run of a script changes, and that nothing computes with other values of
DECIDED = (
    "data.loader",
    "model.smear", "model.bigram_buckets", "model.value_embedding_layers", "model.value_residual", "model.gated_attention",
    "model.hyper_layers", "model.dtg", "model.mtp_heads", "model.matrix_start", "model.scan_layers", "model.tied",
    "model.unet_skips", "model.resid_mix", "model.layer_scale", "model.scan_input_dt",
    "model.gate_inputs", "model.smear_inputs", "model.skip_gates", "model.lanes_from",
    "training.muon_projections", "training.parallel_muon", "training.distillation_share", "training.burst_epochs",
    "training.complement_alpha", "training.export", "training.export_tables", "training.crown_q", "training.crown_q_form",
    "training.crown_q_banks", "training.qat_threshold", "training.qat_soft_round", "training.qat_soft_to_hard",
    "training.qat_quantile", "training.validate_every", "training.train_convolutions", "training.muon_coefficients",
    "training.loop_start", "training.muon_row_norm", "training.clip_scope",
    "artifact.rounding", "artifact.prune", "artifact.prune_ones", "artifact.lqer_rank", "artifact.compressor", "artifact.fit",
    "artifact.calibration", "artifact.gptq_embedding",
    "evaluation.published_tail", "evaluation.sliding", "evaluation.top_predictions",
    "evaluation.adaptation.method", "evaluation.adaptation.optimiser", "evaluation.adaptation.byte_weighted",
    "evaluation.adaptation.polyak", "evaluation.adaptation.polyak_in_place", "evaluation.adaptation.untie",
    "evaluation.temperature.method", "evaluation.mixer.published", "evaluation.mixer.honest",
    "evaluation.mixer.online_weights",
)  # fmt: skip
HOLDERS = {
    "settings", "options", "chosen", "training", "artifact", "evaluation", "adaptation", "temperature", "mixer", "model",
    "data",
}  # fmt: skip
UNKNOWN = object()
# for type checkers, and for profilers
NEVER = ("TYPE_CHECKING", "RANGES")
# a script scores code lengths only: published mixtures are for comparison
LOCAL = {"predictors_of": {"published": "none"}}


def known_settings(settings: Settings) -> dict[str, Any]:
    """Field name to value, for those of DECIDED; where sections share a name, the one that agrees on both, or none."""
    known: dict[str, Any] = {}
    for path in DECIDED:
        value: Any = settings
        for part in path.split("."):
            value = getattr(value, part)
        name = path.rpartition(".")[2] if path.count(".") == 1 else path
        known[name] = value
    return known


def facts_of(settings: Settings, device: str) -> dict[str, Any]:
    """What is known, each by its kind and its name: a "setting", a field of the rounding's "form", an "argument" to which all
    callers give one value, an "object" with an attribute that settings decide, a class that is "absent" from the run."""
    facts: dict[str, Any] = {f"setting {name}": value for name, value in known_settings(settings).items()}
    facts["device"] = device
    form = FORMS[settings.artifact.rounding]
    for name in dir(form):
        if getattr(form, name) is None or isinstance(getattr(form, name), bool):
            facts[f"form {name}"] = getattr(form, name)
    training = settings.training
    facts["argument compressor"] = settings.artifact.compressor
    # published mixtures are for comparison: a script scores code lengths only
    facts |= {"absent Published": True, "object self.published": (), "attribute batchwise": None, "object self.validate": None}
    # nor does it follow the plan of an earlier run, or is looked at by another program
    facts |= {"argument replay": None, "argument plan": "", "object dataset.shared": None, "attribute _replay": None}
    facts["object self.cuda"] = device == "cuda"
    if settings.evaluation.adaptation.method != "lora":
        facts["argument adapters"] = facts["object self.adapters"] = None
    if not settings.model.scan_layers:
        facts |= {"absent Mamba2Block": True, "object layer.mamba": False}
        facts |= {f"attribute {bank}": None for bank in ("scan_in_bank", "scan_state_bank", "scan_out_bank")}
    if not training.distillation_share:
        facts["attribute teacher"] = None
    if not training.burst_epochs:
        facts["never name BURST"] = facts["never phase BURST"] = True
        if not training.distillation_share:
            facts |= {"never name TEACHER": True, "never phase TEACHER": True, "attribute is_last": True}
    if not training.complement_alpha:
        facts["attribute complement"] = None
    if not training.qat_threshold:
        facts["argument fake_rounding"] = facts["call FakeRounding.left_on"] = None
        if not training.crown_q:
            facts["attribute terms"] = None
    if device == "cpu":
        # the cores of `best_core` are "dense" and "sdpa" there
        facts["argument core"] = None
        facts |= {f"never core {core}": True for core in ("'triton'", "'cudnn'", "'reference'", "FLASH")}
    return facts


class Fold(ast.NodeTransformer):
    """
    asked      what the fold of a tree has asked of the facts, and what it was told: the same answers give the same tree
    operators  whether the tree is one of operators
    """

    def __init__(self, settings: Settings, device: str, learnt: dict[str, Any] | None = None):
        self.facts = facts_of(settings, device) | (learnt or {})
        self.asked: dict[str, Any] = {}
        self.operators = False
        self.local: list[dict[str, Any]] = []

    def fact(self, name: str) -> Any:
        self.asked[name] = self.facts.get(name, UNKNOWN)
        return self.asked[name]

    def same(self, asked: dict[str, Any]) -> bool:
        """Whether these facts would have answered so; False and 0 are two answers."""
        return all(
            (type(value), value) == (type(fact := self.facts.get(name, UNKNOWN)), fact) for name, value in asked.items()
        )

    # ---- what is known

    def value(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            if node.id in NEVER:
                return False
            return next((scope[node.id] for scope in reversed(self.local) if node.id in scope), UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            value = self.value(node.operand)
            return UNKNOWN if value is UNKNOWN else not value
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compare(node)
        if isinstance(node, ast.BoolOp):
            return self._bool(node)
        if isinstance(node, ast.Tuple):
            return self._tuple(node)
        if isinstance(node, ast.Call) and not node.keywords:
            called = ast.unparse(node.func)
            if called == "FakeRounding.left_on":
                return self.fact(f"call {called}")
            if called == "isinstance" and self.fact(f"absent {ast.unparse(node.args[1])}") is True:
                return False
            if called == "torch.cuda.is_available":
                return self.fact("device") == "cuda"
            if called == "bool" and node.args:
                return self._truth(node.args[0])
        return UNKNOWN

    def _tuple(self, node: ast.Tuple | ast.List) -> Any:
        values = [self.value(item) for item in node.elts]
        return UNKNOWN if UNKNOWN in values else tuple(values)

    def _truth(self, node: ast.AST) -> Any:
        value = self.value(node)
        return UNKNOWN if value is UNKNOWN else bool(value)

    def _attribute(self, node: ast.Attribute) -> Any:
        if node.attr == "is_cuda":
            return self.fact("device") == "cuda"
        if isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value).endswith("FORMS"):
            return self.fact(f"form {node.attr}")
        for value in (self.fact(f"attribute {node.attr}"), self.fact(f"object {ast.unparse(node)}")):
            if value is not UNKNOWN:
                return value
        holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        if holder.strip("_") not in HOLDERS:
            return UNKNOWN
        for section in ("adaptation", "temperature", "mixer"):
            if holder == section and f"evaluation.{section}.{node.attr}" in DECIDED:
                return self.fact(f"setting evaluation.{section}.{node.attr}")
        return self.fact(f"setting {node.attr}")

    def _compare(self, node: ast.Compare) -> Any:
        left, right, operator = node.left, node.comparators[0], node.ops[0]
        if self._never(left, right, operator):
            return isinstance(operator, (ast.NotEq, ast.NotIn))
        if isinstance(left, ast.Attribute) and left.attr == "type" and isinstance(right, ast.Constant):
            if right.value not in ("cuda", "cpu") or not isinstance(operator, (ast.Eq, ast.NotEq)):
                return UNKNOWN
            return (self.fact("device") == right.value) == isinstance(operator, ast.Eq)
        a = self.value(left)
        # a list is known where it is only looked into: another may have grown since
        b = self._tuple(right) if isinstance(right, ast.List) else self.value(right)
        if a is UNKNOWN or b is UNKNOWN:
            return UNKNOWN
        rules = {
            ast.Eq: lambda: a == b, ast.NotEq: lambda: a != b, ast.In: lambda: a in b, ast.NotIn: lambda: a not in b,
            ast.Is: lambda: a is b, ast.IsNot: lambda: a is not b, ast.Gt: lambda: a > b, ast.Lt: lambda: a < b,
        }  # fmt: skip
        return rules[type(operator)]() if type(operator) in rules else UNKNOWN

    def _never(self, left: ast.expr, right: ast.expr, operator: ast.cmpop) -> bool:
        """Whether a comparison with what no run has is one for equality: a core, or numbers of 64 bits in an operator."""
        if not isinstance(operator, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)):
            return False
        if isinstance(left, ast.Name) or isinstance(left, ast.Attribute) and left.attr == "name":
            name = left.attr if isinstance(left, ast.Attribute) else left.id
            what = repr(right.value) if isinstance(right, ast.Constant) else getattr(right, "attr", getattr(right, "id", ""))
            return self.fact(f"never {name} {what}") is True
        sides = [ast.unparse(left), ast.unparse(right)]
        return (
            self.operators
            and "torch.float64" in sides
            and all(side.endswith((".dtype", "float64", "dtype)")) for side in sides)
        )

    def _bool(self, node: ast.BoolOp) -> Any:
        values = [self._truth(part) for part in node.values]
        decisive = isinstance(node.op, ast.Or)
        if any(value is decisive for value in values):
            return decisive
        return UNKNOWN if UNKNOWN in values else not decisive

    # ---- what follows

    def _constant(self, node: Any, field: str = "") -> Any:
        """None, True or False in the place of what is known to be it."""
        value = self.value(node)
        if value is None or isinstance(value, bool):
            return ast.copy_location(ast.Constant(value), node)
        if field:
            return self._with_name(node, field)
        self.generic_visit(node)
        return node

    visit_Compare = _constant

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self._constant(node, "func")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._constant(node) if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return self._constant(node, "value") if isinstance(node.ctx, ast.Load) else self._with_name(node, "value")

    def _with_name(self, node: Any, field: str) -> Any:
        """What is called or looked into stays a name, even where no run comes to: None can be neither."""
        before = getattr(node, field)
        self.generic_visit(node)
        if isinstance(getattr(node, field), ast.Constant):
            setattr(node, field, before)
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        if any(self._truth(part) is False for generator in node.generators for part in generator.ifs):
            return ast.copy_location(ast.List([], ast.Load()), node)
        self.generic_visit(node)
        return node

    def visit_For(self, node: ast.For) -> Any:
        if self.value(node.iter) == ():
            return None
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        """An attribute that is known need not be set."""
        target = node.targets[0]
        self.generic_visit(node)
        known = isinstance(target, ast.Attribute) and self.fact(f"attribute {target.attr}") is not UNKNOWN
        return None if known and len(node.targets) == 1 and isinstance(node.value, ast.Constant) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        stores: dict[str, int] = {}
        arguments: set[str] = set()
        assignments: list[ast.Assign] = []
        for part in walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                stores[part.id] = stores.get(part.id, 0) + 1
            elif isinstance(part, ast.arg):
                arguments.add(part.arg)
            elif isinstance(part, ast.Assign) and len(part.targets) == 1:
                assignments.append(part)
        scope: dict[str, Any] = {name: UNKNOWN for name in [*arguments, *stores]}
        scope |= {name: self.fact(f"argument {name}") for name in sorted(arguments - stores.keys())}
        self.local.append(scope)
        fixed = LOCAL.get(node.name, {})
        for part in assignments:
            pairs = [(part.targets[0], part.value)]
            if isinstance(part.targets[0], ast.Tuple) and isinstance(part.value, ast.Tuple):
                pairs = list(zip(part.targets[0].elts, part.value.elts, strict=False))
            for target, value in pairs:
                if isinstance(target, ast.Name) and stores.get(target.id) == 1 and target.id not in arguments:
                    scope[target.id] = self.value(value)
        scope.update(fixed)
        self.generic_visit(node)
        self.local.pop()
        return node

    def visit_If(self, node: ast.If) -> Any:
        value = self._truth(node.test)
        if value is UNKNOWN:
            node.test = self._simpler(node.test)
            self.generic_visit(node)
            return node
        chosen = node.body if value else node.orelse
        return [part for statement in chosen for part in self._many(self.visit(statement))]

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        value = self._truth(node.test)
        if value is UNKNOWN:
            self.generic_visit(node)
            return node
        return self.visit(node.body if value else node.orelse)

    def visit_Assert(self, node: ast.Assert) -> Any:
        return ast.copy_location(ast.Pass(), node)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        node = self._simpler(node)
        self.generic_visit(node)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        key = self.value(node.slice)
        if isinstance(node.value, ast.Dict) and key is not UNKNOWN:
            for name, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(name, ast.Constant) and name.value == key:
                    return self.visit(value)
        return self._with_name(node, "value")

    def _simpler(self, node: ast.AST) -> Any:
        """Without the parts of an `and` or `or` that decide nothing."""
        if not isinstance(node, ast.BoolOp):
            return node
        neutral = isinstance(node.op, ast.And)
        if self._bool(node) is not UNKNOWN and all(self.value(part) is not UNKNOWN for part in node.values):
            return node
        kept: list[ast.expr] = []
        for part in node.values:
            value = self._truth(part)
            if value is neutral and part is not node.values[-1]:
                continue
            kept.append(part)
            if value is (not neutral):
                break
        return kept[0] if len(kept) == 1 else ast.copy_location(ast.BoolOp(node.op, kept), node)

    @staticmethod
    def _many(folded: Any) -> list[ast.AST]:
        return [] if folded is None else folded if isinstance(folded, list) else [folded]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                block = [part for part in block if not isinstance(part, ast.Pass)]
                block = _until_end(block)
                needs = name == "body" and not isinstance(node, ast.Module)
                setattr(node, name, block or ([ast.Pass()] if needs else []))
        return node


def _until_end(block: list) -> list:
    """Without what follows a return, a raise, a continue or a break."""
    for place, part in enumerate(block):
        if isinstance(part, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
            return block[: place + 1]
    return block
