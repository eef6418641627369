"""Scales: the same mechanisms at another size."""

import dataclasses

from pgolf.config.checks import SettingsError, nearest
from pgolf.config.settings import Settings


def at_scale(settings: Settings, scale: str) -> Settings:
    """`tiny` keeps every mechanism of a preset and shrinks dimensions, tokens and budgets to fit two CPU cores."""
    if scale == "full":
        return settings
    if scale != "tiny":
        raise SettingsError(f"no scale {scale!r}{nearest(scale, ('full', 'tiny'))}; there are full, tiny")
    model, training, evaluation = settings.model, settings.training, settings.evaluation
    heads = min(model.heads, 4)
    dim = 16 * heads
    kv_heads = max(1, heads * model.kv_heads // model.heads)
    window = min(evaluation.window, 256)
    return dataclasses.replace(
        settings,
        scale=scale,
        data=dataclasses.replace(settings.data, held_out_tokens=min(settings.data.held_out_tokens, 8192)),
        model=dataclasses.replace(
            model,
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            mlp_hidden=dim * model.mlp_hidden // model.dim,
            rotary_dims=max(2, (dim // heads) * model.rotary_dims // model.head_dim // 2 * 2),
            rope_reference_length=model.rope_reference_length // 8,
            bigram_buckets=min(model.bigram_buckets, 1024),
            bigram_dim=min(model.bigram_dim, 32),
            value_embedding_dim=min(model.value_embedding_dim, 32),
            scan_heads=min(model.scan_heads, 4),
        ),
        training=dataclasses.replace(
            training,
            seconds=min(training.seconds, 30.0),
            reserve=min(training.reserve, 5.0),
            batch_tokens=training.micro_batches * 256,
            sequence_length=256,
            warmup_steps=1,
            muon_momentum_steps=100,
            warmdown_steps=0,
            warmdown_share=0.5,
            ema_decay=min(training.ema_decay, 0.97),
            swa_every=min(training.swa_every, 5),
        ),
        artifact=dataclasses.replace(
            settings.artifact,
            small_tensor=512,
            calibration_sequences=min(settings.artifact.calibration_sequences, 16),
        ),
        evaluation=dataclasses.replace(
            evaluation,
            seconds=min(evaluation.seconds, 60.0),
            window=window,
            stride=min(evaluation.stride, 64),
            max_tokens=8 * 2048,
            adaptation=dataclasses.replace(evaluation.adaptation, chunk_tokens=2048, batch_sequences=4),
            lora=dataclasses.replace(
                evaluation.lora, chunk_tokens=64, context_tokens=window, batch_documents=8, minimum_tokens=64
            ),
        ),
    )
