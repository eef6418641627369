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
