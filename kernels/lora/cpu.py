"""Adam over the adapters of many documents on a CPU, in numba: every tensor in one call, by its address, as on a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from pgolf.kernels.jit import exact


def _float32_at(typing: Any, address: Any) -> tuple[Any, Callable]:
    """A pointer to the float32 at an address: numba takes no list of arrays without compiling for its length."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


float32_at: Any = intrinsic(_float32_at)


@exact
def adam(addresses, lengths, documents, rates, corrections, beta1, rest1, beta2, rest2, eps, weight_decay):
    """One step of the given documents. addresses (tensors, 4): of parameters, gradients, first moments (0 if there are none)
    and second; lengths (tensors,): of a document's part, in elements; rates (docs,), corrections (docs, 2): 1 - beta^t;
    rest is 1 - beta. All floats are float32."""
    one = np.float32(1)
    for i in range(addresses.shape[0]):
        length = lengths[i]
        for d in documents:
            start = 4 * d * length
            p, g = carray(float32_at(addresses[i, 0] + start), length), carray(float32_at(addresses[i, 1] + start), length)
            v = carray(float32_at(addresses[i, 3] + start), length)
            keep, step, inverse = one - rates[d] * weight_decay, rates[d] / corrections[d, 0], one / corrections[d, 1]
            if addresses[i, 2]:
                m = carray(float32_at(addresses[i, 2] + start), length)
                for e in range(length):
                    m[e] = beta1 * m[e] + rest1 * g[e]
                    v[e] = beta2 * v[e] + rest2 * (g[e] * g[e])
                    p[e] = keep * p[e] - step * m[e] / (np.sqrt(v[e] * inverse) + eps)
            else:
                for e in range(length):
                    v[e] = beta2 * v[e] + rest2 * (g[e] * g[e])
                    p[e] = keep * p[e] - step * g[e] / (np.sqrt(v[e] * inverse) + eps)
