"""The n-gram back-off in plain torch and plain Python: slow, exact, the oracle of every test.

Letters: N tokens, K orders (each with one candidate), V vocabulary.
"""

import torch
from torch import Tensor

# cuts of log p_neural(top symbol), and of a context's number of successors
Q_CUTS = (-9.0, -6.0, -4.0, -2.5, -1.5, -0.8, -0.35, -0.1)
N_CUTS = (1, 2, 4, 8, 16, 64, 256)
Q_CELLS = len(Q_CUTS) + 1
N_CELLS = 4 * (len(N_CUTS) + 1) + 1
FIRST_WEIGHT = 0.05
LEAST_WEIGHT, MOST_WEIGHT = 1e-4, 0.9995


def evidence_cell(total: int, distinct: int) -> int:
    """The column of the weights' table for a context with `total` successors, `distinct` of them different; 0 for none."""
    if total == 0:
        return 0
    size = sum(total > cut for cut in N_CUTS)
    spread = 0 if distinct == 1 else 1 if 4 * distinct <= total else 2 if 2 * distinct <= total else 3
    return 1 + 4 * size + spread


def evidence_reference(
    tokens: Tensor, starts: Tensor, orders: tuple[int, ...], granularity: int, shared: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per token and order (N, K): the context's top symbol (-1 if it is new), its cell, the token's count, all counts.

    tokens (N,), starts (N,) bool: true where a token opens a document.
    """
    ids, opens = tokens.tolist(), starts.tolist()
    shape = (len(ids), len(orders))
    top = torch.full(shape, -1, dtype=torch.int32)
    cell = torch.zeros(shape, dtype=torch.uint8)
    count, total = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    tables: list[dict] = [{} for _ in orders]
    document: list[int] = []
    counted = 0

    def count_document() -> None:
        nonlocal counted
        for position in range(counted, len(document)):
            for order, table in zip(orders, tables, strict=True):
                if position >= order:
                    successors = table.setdefault(tuple(document[position - order : position]), {})
                    successors[document[position]] = successors.get(document[position], 0) + 1
        counted = len(document)

    for t, token in enumerate(ids):
        if len(document) % granularity == 0:
            count_document()
        for k, order in enumerate(orders):
            successors = tables[k].get(tuple(document[len(document) - order :])) if len(document) >= order else None
            if successors:
                most = max(successors.values())
                top[t, k] = [symbol for symbol, c in successors.items() if c == most][-1]
                total[t, k] = sum(successors.values())
                cell[t, k] = evidence_cell(int(total[t, k]), len(successors))
                count[t, k] = successors.get(token, 0)
        if opens[t]:
            count_document()
            if not shared:
                tables = [{} for _ in orders]
            document, counted = [], 0
        document.append(token)
    return top, cell, count, total


def q_cells(candidates: Tensor) -> Tensor:
    """The row of the weights' table for each log-probability of a top symbol."""
    cuts = torch.tensor(Q_CUTS, dtype=candidates.dtype, device=candidates.device)
    return torch.searchsorted(cuts, candidates.contiguous(), right=True)


def weights_reference(candidates: Tensor, cell: Tensor, table: Tensor) -> Tensor:
    """The weight of each order at each token (N, K), 0 where its context is new."""
    orders = torch.arange(cell.shape[1], device=cell.device)
    return torch.where(cell > 0, table[orders, q_cells(candidates), cell.long()].to(candidates.dtype), 0)


def mix_reference(
    target: Tensor, candidates: Tensor, cell: Tensor, count: Tensor, total: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """NLL (N,) of each target under the back-off, and the share (N,) of its probability that is the neural model's.

    target (N,) log p_neural(target); candidates (N, K) log p_neural(top symbol); cell, count, total (N, K) as
    `evidence_reference` gives them; table (K, 9, 33).
    """
    weights = weights_reference(candidates, cell, table)
    neural = target.exp()
    backed = torch.zeros_like(neural)
    left = torch.ones_like(neural)
    for k in range(cell.shape[1]):
        w = weights[:, k]
        q = count[:, k].to(neural.dtype) / total[:, k].clamp_min(1)
        backed = (1 - w) * backed + w * q
        left = (1 - w) * left
    probability = left * neural + backed
    safe = probability > 1e-30
    nll = torch.where(safe, -torch.where(safe, probability, 1).log(), -(target + left.log()))
    return nll, torch.where(safe, left * neural / torch.where(safe, probability, 1), 1)


def mix_dense_reference(
    log_probs: Tensor, candidates: Tensor, cell: Tensor, counts: Tensor, total: Tensor, table: Tensor
) -> Tensor:
    """The back-off's whole distribution (N, V); log_probs (N, V) are the neural ones, counts (N, K, V) of every symbol."""
    weights = weights_reference(candidates, cell, table)
    mixed = log_probs.exp()
    for k in range(cell.shape[1]):
        w = weights[:, k, None]
        mixed = (1 - w) * mixed + w * counts[:, k] / total[:, k, None].clamp_min(1)
    return mixed


def flush_reference(pending: list, table: Tensor, visits: Tensor, floor: float) -> None:
    """Move the table by the pending posteriors, (cell, posterior) pairs, one after another."""
    for cell, posterior in pending:
        rate = max(floor, 1 / (int(visits[cell]) + 20))
        moved = float(table[cell]) + rate * (posterior - float(table[cell]))
        table[cell] = min(max(moved, LEAST_WEIGHT), MOST_WEIGHT)
        visits[cell] += 1
    pending.clear()


def mix_online_reference(
    target: Tensor,
    candidates: Tensor,
    cell: Tensor,
    count: Tensor,
    total: Tensor,
    group_starts: Tensor,
    table: Tensor,
    visits: Tensor,
    pending: list,
    floor: float,
) -> tuple[Tensor, Tensor]:
    """As `mix_reference`, learning the table in place; a row's posteriors are pending until the next group starts."""
    nlls, shares = [], []
    for t in range(len(target)):
        if group_starts[t]:
            flush_reference(pending, table, visits, floor)
        row = slice(t, t + 1)
        nll, share = mix_reference(target[row], candidates[row], cell[row], count[row], total[row], table)
        nlls.append(nll)
        shares.append(share)
        mixed = float(target[t].exp())
        for k in range(cell.shape[1]):
            if cell[t, k]:
                place = (k, int(q_cells(candidates[t, k])), int(cell[t, k]))
                w, q = float(table[place]), int(count[t, k]) / int(total[t, k])
                after = (1 - w) * mixed + w * q
                pending.append((place, w * q / after if after > 0 else w))
                mixed = after
    return torch.cat(nlls), torch.cat(shares)
