"""The published formulas once more, in plain numpy and loops, sharing nothing with what they check."""

import numpy as np
import torch

PERCENTILES = [0.999, 0.9995, 0.9999, 0.99999, 1.0]


def quantile(row, q):
    return torch.quantile(torch.from_numpy(row), q).numpy()


def lite(w, c):
    """Per-row scales of one percentile for the whole matrix, that with the least mean squared error."""
    best = None
    for p in PERCENTILES:
        clip = np.array([np.abs(row).max() if p == 1.0 else quantile(np.abs(row), p) for row in w], np.float32)
        scale = np.maximum(clip / np.float32(c), np.float32(1 / c)).astype(np.float16)
        q = np.clip(np.round(w / scale.astype(np.float32)[:, None]), -c, c)
        error = np.mean((w - q * scale.astype(np.float32)[:, None]).astype(np.float64) ** 2)
        if best is None or error < best[0]:
            best = (error, q.astype(np.int8), scale)
    return best[1], best[2]


def embedding(w):
    clip = np.array([quantile(np.abs(row), 0.9999984) for row in w], np.float32)
    scale = np.maximum(clip / np.float32(127), np.float32(1 / 127))
    clipped = np.clip(w, -clip[:, None], clip[:, None])
    return np.clip(np.round(clipped / scale[:, None]), -127, 127).astype(np.int8), scale.astype(np.float16)


def published(w, h, c, damping=0.01, prune=0.03):
    """#688's GPTQ after its pruning, in float64 apart from the scales, one element after another."""
    w = np.where(np.abs(w) < quantile(np.abs(w).ravel(), prune), 0, w).astype(np.float32)
    scale = np.zeros(len(w), np.float32)
    for r, row in enumerate(w):
        errors = []
        for p in PERCENTILES:
            clip = np.abs(row).max() if p == 1.0 else quantile(np.abs(row), p)
            s = np.maximum(np.float32(clip) / np.float32(c), np.float32(1 / c))
            q = np.clip(np.round(row / s), -c, c)
            errors.append((np.mean((row - q * s) ** 2), s))
        scale[r] = min(errors, key=lambda pair: pair[0])[1]
    h = h.astype(np.float64)
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    order = np.argsort(np.diag(h), kind="stable")
    inverse = np.linalg.inv(h[order][:, order])
    left = w[:, order].astype(np.float64)
    codes = np.zeros(w.shape)
    for j in range(w.shape[1]):
        for r in range(w.shape[0]):
            q = min(max(round(left[r, j] / scale[r]), -c), c)
            codes[r, j] = q
            error = (left[r, j] - q * scale[r]) / max(inverse[j, j], 1e-8)
            for k in range(j + 1, w.shape[1]):
                left[r, k] -= error * inverse[j, k]
    result = np.zeros_like(codes)
    result[:, order] = codes
    return result.astype(np.int8), scale.astype(np.float16)


def sdclip_gptq(w, h, c, k, damping=0.01):
    """#1394's GPTQ in float64 apart from the scales: k sigma of the row, columns by falling activation, the upper Cholesky
    factor of the inverse, one column after another without blocks."""
    scale = np.maximum(k * w.std(1, ddof=1) / c, 1e-10).astype(np.float16).astype(np.float64)
    h, left = h.astype(np.float64), w.astype(np.float64)
    dead = np.diag(h) == 0
    h[dead, dead], left[:, dead] = 1, 0
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    order = np.argsort(-np.diag(h), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(h[order][:, order])).T
    left, codes = left[:, order], np.zeros(w.shape)
    for j in range(w.shape[1]):
        codes[:, j] = np.clip(np.round(left[:, j] / scale), -c, c)
        left[:, j + 1 :] -= np.outer((left[:, j] - codes[:, j] * scale) / upper[j, j], upper[j, j + 1 :])
    result = np.zeros_like(codes)
    result[:, order] = codes
    return result.astype(np.int8), scale.astype(np.float16)


def asymmetric_factors(error, rank, group=64):
    """#1797's: A = U S with one scale and codes -2 to 1, B = V^T in groups of 64 with codes -8 to 7; and A B."""
    # the library's decomposition is taken, as singular vectors have no sign of their own and the codes are not symmetric
    u, s, v = (part.double().numpy() for part in torch.linalg.svd(torch.from_numpy(error), full_matrices=False))
    a, b = u[:, :rank] * s[:rank], v[:rank].reshape(-1, group)
    a_scale = np.float64(np.float16(np.abs(a).max() / 1.5))
    b_scale = (np.abs(b).max(1) / 7.5).astype(np.float16).astype(np.float64)[:, None]
    a, b = np.clip(np.round(a / a_scale), -2, 1), np.clip(np.round(b / b_scale), -8, 7)
    return a, b, (a * a_scale) @ (b * b_scale).reshape(rank, -1)
