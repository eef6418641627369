"""The environment names of the challenge's scripts, each with the setting it sets."""

import os
import typing

from pgolf.config.load import from_table
from pgolf.config.settings import Settings
from pgolf.config.types import parsed

ENVIRONMENT = {
    "SEED": "seed",
    "DATA_PATH": "data.path",
    "TOKENIZER_PATH": "data.tokenizer",
    "VOCAB_SIZE": "model.vocab_size",
    "NUM_LAYERS": "model.layers",
    "MODEL_DIM": "model.dim",
    "NUM_HEADS": "model.heads",
    "NUM_KV_HEADS": "model.kv_heads",
    "ROPE_BASE": "model.rope_base",
    "ROPE_DIMS": "model.rotary_dims",
    "QK_GAIN_INIT": "model.q_gain",
    "LOGIT_SOFTCAP": "model.softcap",
    "TIED_EMBED_INIT_STD": "model.embedding_std",
    "BIGRAM_VOCAB_SIZE": "model.bigram_buckets",
    "BIGRAM_DIM": "model.bigram_dim",
    "XSA_LAST_N": "model.xsa_last",
    "VALUE_RESIDUAL": "model.value_residual",
    "GATED_ATTENTION": "model.gated_attention",
    "MTP_NUM_HEADS": "model.mtp_heads",
    "MAX_WALLCLOCK_SECONDS": "training.seconds",
    "ITERATIONS": "training.steps",
    "TRAIN_BATCH_TOKENS": "training.batch_tokens",
    "TRAIN_SEQ_LEN": "training.sequence_length",
    "WARMUP_STEPS": "training.warmup_steps",
    "WARMDOWN_ITERS": "training.warmdown_steps",
    "MATRIX_LR": "training.muon_lr",
    "TIED_EMBED_LR": "training.token_lr",
    "SCALAR_LR": "training.scalar_lr",
    "MUON_MOMENTUM": "training.muon_momentum",
    "MUON_MOMENTUM_WARMUP_START": "training.muon_momentum_start",
    "MUON_MOMENTUM_WARMUP_STEPS": "training.muon_momentum_steps",
    "MUON_WD": "training.muon_weight_decay",
    "MUON_BACKEND_STEPS": "training.muon_iterations",
    "ADAM_WD": "training.adam_weight_decay",
    "GRAD_CLIP_NORM": "training.clip",
    "EMA_DECAY": "training.ema_decay",
    "LATE_QAT_THRESHOLD": "training.qat_threshold",
    "SOFT_ROUND_QAT": "training.qat_soft_round",
    "EVAL_SEQ_LEN": "evaluation.window",
    "EVAL_STRIDE": "evaluation.stride",
    "TTT_LR": "evaluation.adaptation.lr",
    "TTT_EPOCHS": "evaluation.adaptation.epochs",
    "TTT_CHUNK_TOKENS": "evaluation.adaptation.chunk_tokens",
    "TTT_MOMENTUM": "evaluation.adaptation.momentum",
    "TTT_GRAD_CLIP": "evaluation.adaptation.clip",
}


def from_environment(settings: Settings, environment=os.environ) -> Settings:
    """`settings` with the challenge's environment names laid over them."""
    table: dict = {}
    for name, path in ENVIRONMENT.items():
        if not environment.get(name):
            continue
        *sections, key = path.split(".")
        owner = settings
        inner = table
        for section in sections:
            owner = getattr(owner, section)
            inner = inner.setdefault(section, {})
        inner[key] = parsed(environment[name], typing.get_type_hints(type(owner))[key], f"environment variable {name}")
    return from_table(table, settings, "environment")
