"""CUDA without a GPU: fake tensors on the device "cuda", which have shapes, dtypes and strides and no memory.

A torch that was built without CUDA makes such tensors and computes with them, but for two things. autograd asks for the
device's guard, which that build lacks: the CPU's stands in for it. And autograd's engine has no queue for the device, so
`backward` and `grad` walk the graph here, node by node; the nodes are torch's own.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU_TYPE, CUDA_TYPE, DEVICE_TYPES = 0, 1, 22


class Recorder(TorchDispatchMode):
    """Notes the package's operators as the dispatcher calls them, and refuses to move a fake to the host.

    check  compare what an operator returns with what its fake form promises
    """

    def __init__(self, check: bool = False):
        super().__init__()
        self.seen: set[str] = set()
        self.check = check

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.namespace == "pgolf":
            self.seen.add(function._opname)
            if self.check:
                promised = promise(function, args, kwargs)
                assert layouts(result) == promised, f"{function}: {layouts(result)}, but its fake says {promised}"
        elif any(tensor.is_cuda for tensor in tensors_of((args, kwargs))):
            left = [tensor for tensor in tensors_of(result) if not tensor.is_cuda]
            assert not left, f"{function} moves a tensor to the host"
        return result


def promise(function, args, kwargs) -> list[tuple]:
    """The layouts that an operator's fake form gives for the fakes of these arguments."""
    made: dict[int, Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def fake(x):
            return made.setdefault(id(x), mode.from_tensor(x)) if isinstance(x, Tensor) else x

        given, named = torch.utils._pytree.tree_map(fake, (args, kwargs))
        return layouts(function(*given, **named))


def layouts(result) -> list[tuple]:
    """A result's tensors as (shape, strides, dtype); strides of what has one element or none mean nothing."""
    return [(tuple(x.shape), x.stride() if x.numel() > 1 else (), x.dtype) for x in tensors_of(result)]


def tensors_of(tree) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def to_fake_cuda(module: nn.Module) -> None:
    """Give a module parameters and buffers that are fakes on CUDA; call within `fake_cuda`."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, old in table.items():
                if old is not None and id(old) not in made:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device="cuda")
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                if old is not None:
                    table[name] = made[id(old)]


class Captured:
    """A backend for torch.compile that runs what was captured as it is, and notes the package's operators in it."""

    def __init__(self):
        self.graphs = 0
        self.seen: set[str] = set()

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence) -> Callable:
        self.graphs += 1
        names = (getattr(node.target, "_qualified_op_name", "") for node in graph.graph.nodes)
        self.seen |= {name.removeprefix("pgolf::") for name in names if name.startswith("pgolf::")}
        return graph.forward


@contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0), *, capture: bool) -> Iterator[Captured]:
    """Within, new tensors are fakes. torch.compile compiles nothing: it captures graphs, which this gives, or leaves
    functions as they are."""
    captured, compile_ = Captured(), torch.compile

    def compiled(function, *, fullgraph: bool = False, dynamic: bool | None = None, **options):
        return compile_(function, fullgraph=fullgraph, dynamic=dynamic, backend=captured) if capture else function

    with ExitStack() as stack:
        stack.enter_context(_guard())
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", lambda device=None: capability))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", lambda device=None: None))
        stack.enter_context(mock.patch.object(torch, "compile", compiled))
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", _backward))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", _grad))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield captured


@contextmanager
def _guard() -> Iterator[None]:
    """c10's table of device guards, with the CPU's where a CUDA build has its own."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = table[CUDA_TYPE]
    table[CUDA_TYPE] = before or table[CPU_TYPE]
    try:
        yield
    finally:
        table[CUDA_TYPE] = before


def _backward(self: Tensor, gradient: Tensor | None = None, **options) -> None:
    for leaf, grad in _walk(self, gradient).items():
        leaf.grad = grad if leaf.grad is None else leaf.grad + grad


@torch.compiler.allow_in_graph
def _grad(output: Tensor, inputs: Sequence[Tensor], grad_outputs: Tensor | None = None, **options) -> tuple[Tensor, ...]:
    gradients = _walk(output, grad_outputs)
    return tuple(gradients[leaf] for leaf in inputs)


@torch.no_grad()
def _walk(output: Tensor, gradient: Tensor | None) -> dict[Tensor, Tensor]:
    """The gradient of every leaf that `output` depends on."""
    waiting: dict = defaultdict(dict)
    waiting[output.grad_fn][output.output_nr] = torch.ones_like(output) if gradient is None else gradient
    leaves: dict[Tensor, Tensor] = {}
    for node in reversed(_topological(output.grad_fn)):
        grads = waiting.pop(node, {})
        if not grads:
            continue
        if hasattr(node, "variable"):
            leaves[node.variable] = grads[0]
            continue
        given = [grads.get(i) for i in range(len(node._input_metadata))]
        if hasattr(node, "needs_input_grad"):
            results = node.apply(*given)
            results = results if isinstance(results, tuple) else (results,)
            # a node of Python's has edges for its tensors alone, and gradients for all its arguments
            needed = iter([grad for grad, needed in zip(results, node.needs_input_grad, strict=True) if needed])
            results = [next(needed) if edge is not None else None for edge, _ in node.next_functions]
        else:
            results = node(*given)
            results = results if isinstance(results, tuple) else (results,)
        for (edge, place), grad in zip(node.next_functions, results, strict=True):
            if edge is not None and grad is not None:
                # as the engine does: what was broadcast is summed, what was cast is cast back
                wanted = edge._input_metadata[place]
                grad = grad.sum_to_size(wanted.shape).to(wanted.dtype)
                before = waiting[edge].get(place)
                waiting[edge][place] = grad if before is None else before + grad
    return leaves


def _topological(root) -> list:
    """The nodes behind `root`, each after all that it leads to."""
    order: list = []
    seen, stack = {root}, [(root, iter(root.next_functions))]
    while stack:
        node, edges = stack[-1]
        following = next((edge for edge, _ in edges if edge is not None and edge not in seen), None)
        if following is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(following.next_functions)))
    return order
