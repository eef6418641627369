"""The table of parameters: for every tensor its names, how it is trained, rounded, adapted and calibrated.

Code that classifies tensors calls `parameter(name)`, with a name of the network ("blocks.3.attn_scale"), of a checkpoint
("blocks.3.attn.c_q.weight") or of a bank ("qo_bank"). A new matrix or table is one line here; small tensors that only
their own module treats in a special way need none.
"""

import re
from typing import NamedTuple

from pgolf.config import ModelSettings


class Parameter(NamedTuple):
    name: str
    """In a checkpoint, without "blocks.N." before it; N stands for a number."""
    group: str
    """How it is trained: matrix, projection, token, head, convolution or scalar."""
    role: str = "embedding"
    """How the artifact rounds it where it is large: matrix or embedding."""
    shape: tuple[str, str] = ("", "")
    """Of a matrix (outputs, inputs), as keys of `widths`."""
    site: str = ""
    """Of a matrix: what `Network.input_hook` and adapters call its product."""
    moment: str = ""
    """Of a matrix that GPTQ calibrates: the site whose input is its own; products with one input have one moment."""
    bank: str = ""
    """The bank that it is a slice of."""
    rate: str = ""
    """The setting of [evaluation.adaptation] with its factor of the learning rate: output_lr, input_lr or table_lr."""
    feeder: str = ""
    """The matrix whose rows are this one's columns: hidden units of the MLP."""
    scale: bool = False
    """It scales what a sublayer or an embedding adds."""
    packed: bool = True
    """Part of the artifact; heads that only training uses are not."""

    @property
    def mamba(self) -> bool:
        """Whether it belongs to a Mamba-2 layer."""
        return self.name.startswith("mixer.")


def _layer_matrix(name, bank, shape, site, **more) -> Parameter:
    return Parameter(name, "matrix", "matrix", shape, site, bank=bank, **{"moment": site, **more})


# Banks hold their parts in the order of this table, part by part: all layers' queries, then all layers' outputs.
TABLE = (
    _layer_matrix("attn.c_q.weight", "qo_bank", ("dim", "dim"), "q"),
    _layer_matrix("attn.c_k.weight", "kv_bank", ("values", "dim"), "k", moment="q"),
    _layer_matrix("attn.c_v.weight", "kv_bank", ("values", "dim"), "v", moment="q"),
    _layer_matrix("attn.proj.weight", "qo_bank", ("dim", "dim"), "o", rate="output_lr"),
    _layer_matrix("mlp.fc.weight", "mlp_up_bank", ("hidden", "dim"), "up", rate="input_lr"),
    _layer_matrix("mlp.proj.weight", "mlp_down_bank", ("dim", "hidden"), "down", rate="output_lr", feeder="mlp.fc.weight"),
    _layer_matrix("mixer.in_proj.weight", "scan_in_bank", ("two inner", "dim"), "mixer_in"),
    _layer_matrix("mixer.B_proj.weight", "scan_state_bank", ("entries", "dim"), "mixer_b", moment="mixer_in"),
    _layer_matrix("mixer.C_proj.weight", "scan_state_bank", ("entries", "dim"), "mixer_c", moment="mixer_in"),
    _layer_matrix("mixer.out_proj.weight", "scan_out_bank", ("dim", "inner"), "mixer_out", rate="output_lr"),
    # embeddings and output
    Parameter("tok_emb.weight", "token", shape=("vocabulary", "dim"), site="head", moment="head"),
    Parameter("lm_head.weight", "head", shape=("vocabulary", "dim"), site="head", moment="head"),
    Parameter("mtp_heads.N.weight", "head", shape=("vocabulary", "dim"), packed=False),
    Parameter("bigram.embed.weight", "token", rate="table_lr"),
    Parameter("bigram.proj.weight", "projection", "matrix", ("dim", "bigram"), "bigram", "bigram"),
    Parameter("bigram.scale", "scalar", scale=True),
    Parameter("ve_shared.embed.weight", "token", rate="table_lr"),
    Parameter("ve_shared.proj.weight", "projection", "matrix", ("values", "value embedding"), "values", "values"),
    Parameter("ve_shared.scale", "scalar", scale=True),
    Parameter("ve_layer_scales.N", "scalar", scale=True),
    Parameter("attn_scale", "scalar", scale=True),
    Parameter("mlp_scale", "scalar", scale=True),
    Parameter("mixer_scale", "scalar", scale=True),
    Parameter("mixer.conv1d.weight", "convolution", "matrix"),
)
GROUPS = ("matrix", "projection", "token", "scalar", "head", "convolution")
ADAPTED = ("q", "k", "v", "o", "up", "down", "head", "attn_side", "mlp_side")
"""Sites that can have adapters, in the order of their seeds: matrices, and a sublayer as a whole, beside which an adapter
leads from its input to its output."""

_BY_NAME = {row.name: row for row in TABLE}
BANKS: dict[str, tuple[Parameter, ...]] = {
    bank: tuple(row for row in TABLE if row.bank == bank)
    for bank in ("qo_bank", "kv_bank", "mlp_up_bank", "mlp_down_bank", "scan_in_bank", "scan_state_bank", "scan_out_bank")
}


def without_layer(name: str) -> str:
    """What layers have in common: "attn.c_q.weight" for "blocks.3.attn.c_q.weight"."""
    return re.sub(r"^blocks\.\d+\.", "", name)


def parameter(name: str) -> Parameter:
    """The table's row for a tensor of that name. Gains, gates and mixes have none: they are scalars; those inside attention
    and mixers are rounded as matrices are, should they ever be large."""
    row = _BY_NAME.get(without_layer(name)) or _BY_NAME.get(re.sub(r"\.\d+\b", ".N", name))
    if row is None and name in BANKS:
        row = BANKS[name][0]
    if row is None:
        own = without_layer(name)
        row = Parameter(own, "scalar", "matrix" if own.startswith(("attn.", "mixer.")) else "embedding")
    return row


def widths(settings: ModelSettings) -> dict[str, int]:
    """What the shapes of the table stand for."""
    return {
        "dim": settings.dim,
        "values": settings.kv_heads * settings.head_dim,
        "hidden": settings.mlp_hidden,
        "vocabulary": settings.vocab_size,
        "bigram": settings.bigram_dim,
        "value embedding": settings.value_embedding_dim,
        "inner": settings.scan_width,
        "two inner": 2 * settings.scan_width,
        "entries": settings.scan_heads * settings.scan_state,
    }


def matrix_shape(row: Parameter, settings: ModelSettings) -> tuple[int, int]:
    outputs, inputs = row.shape
    sizes = widths(settings)
    return sizes[outputs], sizes[inputs]


def adapter_shapes(settings: ModelSettings) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every site that can have an adapter."""
    shapes = {row.site: matrix_shape(row, settings) for row in TABLE if row.site in ADAPTED}
    shapes |= {site: (settings.dim, settings.dim) for site in ("attn_side", "mlp_side")}
    return {site: shapes[site] for site in ADAPTED}


def bank_layers(settings: ModelSettings, bank: str) -> tuple[int, ...]:
    """The physical layers that have a slice in each part of a bank."""
    return tuple(sorted(settings.scan_layers)) if BANKS[bank][0].mamba else settings.attention_layers


def bank_shapes(settings: ModelSettings) -> dict[str, tuple[int, int, int]]:
    """Of every bank that networks of these settings have."""
    return {
        bank: (len(parts) * len(layers), *matrix_shape(parts[0], settings))
        for bank, parts in BANKS.items()
        if (layers := bank_layers(settings, bank))
    }


def slice_names(settings: ModelSettings) -> dict[str, list[str]]:
    """For every bank that networks of these settings have, its slices' per-layer names in order."""
    return {
        bank: [f"blocks.{layer}.{part.name}" for part in BANKS[bank] for layer in bank_layers(settings, bank)]
        for bank in bank_shapes(settings)
    }


def moment_names(site: str, layer: int, tied: bool) -> list[str]:
    """The matrices, by their names in a checkpoint, that are multiplied with the input of this site in this physical
    layer; none where another site shows the same input, or nothing is calibrated."""
    rows = [row for row in TABLE if row.moment == site and not (row.name == ("lm_head.weight" if tied else "tok_emb.weight"))]
    return [f"blocks.{layer}.{row.name}" if row.bank else row.name for row in rows]
