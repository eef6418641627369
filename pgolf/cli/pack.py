"""The stage pack: weights.safetensors to model.pgolf."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pgolf.artifact.code import code_bytes
from pgolf.artifact.losses import rounding_losses
from pgolf.artifact.pack import sections_of, size_of, write_weights
from pgolf.artifact.rounding import FORMS
from pgolf.artifact.weights import Weights, round_weights
from pgolf.budget import Budget
from pgolf.cli.common import chosen_device, dataset_of
from pgolf.cli.parse import DeviceOptions, parse
from pgolf.config import ArtifactSettings, Settings, read_toml
from pgolf.data import Dataset
from pgolf.data.shards import open_shard
from pgolf.errors import OVER_LIMIT
from pgolf.files import system_error, write_whole
from pgolf.folder import FolderError, RunFolder
from pgolf.model import Network, build_model, submission_state
from pgolf.progress import Display
from pgolf.summary import ArtifactSize, Train

Options = DeviceOptions
# parts of packing that are on the training clock
PACKING = ("calibration", "rounding", "n-gram table", "primer")
# the share of the scoring clock in which context mixing may read training text
READING = 0.5
# tokens that are read in a second or two anywhere
SOON_READ = 20_000


def main(words: list[str]) -> int:
    options = parse(Options, words, "pack")
    return pack(RunFolder.existing(options.run), options.device)


def pack(folder: RunFolder, device: str = "") -> int:
    settings = read_toml(folder.config)
    with folder.writing(), Display(folder.log) as display:
        begun = time.perf_counter()
        place = chosen_device(device)
        model = build_model(settings.model, device=place, dtype=torch.float32)
        load_weights(folder.weights, model)
        state = submission_state(model)
        dataset = dataset_of(settings, display)
        tokenizer = dataset.tokenizer_path.read_bytes()
        code = code_bytes(settings, place.type)
        budget = Budget(settings.training.seconds)
        weights, settings, extra = rounded(model, settings, dataset, place, budget, display, tokenizer, code)
        display.status("coding the weights", 0.5)
        folder.withdraw("pack")
        size = write_weights(folder.artifact, weights, settings, tokenizer, code_bytes=code, extra=extra)
        matrices = rounding_losses(state, weights, settings.artifact)
        write_whole(folder.quantisation, json.dumps({"rounding": settings.artifact.rounding, "matrices": matrices}) + "\n")
        display.settle()
        display.say(size_line(size.as_dict()))
        train = folder.read_summary().train
        if train:
            train = with_packing(train, budget.parts)
            train = replace(train, over_limit=not settings.training.steps and train.seconds > train.limit)
        artifact = ArtifactSize(**size.as_dict(), seconds=time.perf_counter() - begun)
        folder.update_summary(artifact=artifact, train=train)
        if not train or not train.over_limit:
            return 0
        display.say(
            f"over the limit: training, and what of packing is on its clock, took {train.seconds:.1f} s of {train.limit:.0f}; "
            f"raise training.reserve"
        )
        return OVER_LIMIT


def load_weights(path: Path, model: Network) -> None:
    """The weights that training left; names, shapes and values are checked."""
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise FolderError(f"{path} does not exist: train the run first") from None
    except OSError as error:
        raise system_error("read", path, error) from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise FolderError(f"{path} is damaged ({error}); train the run again") from None
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ state.keys()):
        what = "misses" if name in expected else "has an unknown"
        raise FolderError(f"{path} {what} tensor {name}; it belongs to other settings, or is damaged: train the run again")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise FolderError(
                f"{path} has {name} in the shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}: it belongs to "
                f"other settings, or is damaged"
            )
        # small tensors are stored in float16
        if tensor.is_floating_point() and not (tensor.abs() <= torch.finfo(torch.float16).max).all():
            raise FolderError(f"{path} has values in {name} that are not finite in float16; train the run again")
    model.load_state_dict(state)


def rounded(
    model: Network,
    settings: Settings,
    dataset: Dataset,
    place: torch.device,
    budget: Budget,
    display: Display,
    tokenizer: bytes,
    code: int,
) -> tuple[Weights, Settings, dict[str, bytes]]:
    """The rounded weights, the settings as fitted, and further sections. What reads training data and rounding belong to the
    training clock; coding does not."""
    state = submission_state(model)
    moments = calibration_of(model, settings, dataset, place, budget, display)
    extra = ngram_section(model, settings, dataset, place, budget, display)
    extra |= primer_section(settings, dataset, budget, display)
    display.status("rounding", 0.5)
    with budget.part("rounding"):
        if not settings.artifact.fit:
            return round_weights(state, settings.artifact, moments), settings, extra
        from pgolf.artifact.fitting import fit

        def total(weights: Weights, chosen: ArtifactSettings) -> int:
            fitted = replace(settings, artifact=chosen)
            return size_of(sections_of(weights, fitted, tokenizer, extra), chosen.limit, code).total_bytes

        weights, chosen = fit(state, settings.artifact, moments, total, display.say)
        return weights, replace(settings, artifact=chosen), extra


def rehearse(settings: Settings, dataset: Dataset, place: torch.device) -> float:
    """Seconds that packing takes on the training clock, measured on an untrained network."""
    budget = Budget(math.inf)
    generated = settings.artifact.calibration == "generated"
    artifact = replace(settings.artifact, calibration="train")
    model = build_model(settings.model, device=place, dtype=torch.float32)
    tokenizer = dataset.tokenizer_path.read_bytes()
    rounded(model, replace(settings, artifact=artifact), dataset, place, budget, Display(active=False), tokenizer, 0)
    return sum(seconds for name, seconds in budget.parts.items() if not (generated and name == "calibration"))


def calibration_of(model, settings: Settings, dataset: Dataset, place: torch.device, budget: Budget, display: Display):
    """Second moments of the matrices' inputs, if the rounding wants them. Reading training data counts as training."""
    options, length = settings.artifact, settings.training.sequence_length
    if not FORMS[options.rounding].needs_hessians:
        return None
    from pgolf.artifact.calibration import generated_batches, hessians, training_batches

    batch = max(1, 32_768 // length) if place.type == "cuda" else max(1, 4096 // length)
    if options.calibration == "generated":
        display.status("calibration on text that the model writes", 0.1)
        with budget.outside("calibration"):
            batches = generated_batches(model, options.calibration_sequences, length, batch, seed=settings.seed)
            return hessians(model, batches, head=options.gptq_embedding)
    display.status("calibration", 0.1)
    with budget.part("calibration"):
        batches = training_batches(dataset.train_shards, options.calibration_sequences, length, batch)
        return hessians(model, batches, head=options.gptq_embedding)


def ngram_section(model, settings: Settings, dataset: Dataset, place, budget: Budget, display: Display) -> dict[str, bytes]:
    """The n-gram back-off's weights as a section of the artifact: learnt on the training text that training left out."""
    if "ngram_backoff" not in settings.evaluation.mixer.honest:
        return {}
    tokens = dataset.held_out(settings.data.held_out_tokens)
    if len(tokens) < 2:
        return {}
    from pgolf.evaluation.ngram_table import learn_ngram_table
    from pgolf.evaluation.predictors.ngram_backoff import learnt_to_bytes

    def learn(tokens):
        return learn_ngram_table(model, tokens, settings.evaluation, bos=dataset.tokenizer.bos, device=place)

    with budget.outside("warm-up"):
        learn(tokens[:2])
    with budget.part("n-gram table"):
        table = learn(tokens)
    display.say(f"n-gram back-off: weights learnt on {len(tokens):,} tokens that training left out")
    return {"ngram_backoff": learnt_to_bytes(table)}


def primer_section(settings: Settings, dataset: Dataset, budget: Budget, display: Display) -> dict[str, bytes]:
    """The end of the training text, for the context mixing to read before it scores."""
    wanted = settings.evaluation.mixer.primer_tokens
    if "context_mixing" not in settings.evaluation.mixer.honest or not wanted:
        return {}
    from pgolf.evaluation.predictors.context_mixing import seconds_per_token
    from pgolf.evaluation.primer import SECTION, primer_to_bytes

    shards: list[np.ndarray] = []
    for path in sorted(dataset.train_shards, reverse=True):
        if (missing := wanted - sum(map(len, shards))) > 0:
            shards.insert(0, np.asarray(open_shard(path)[-missing:]))
    tokens = np.concatenate(shards) if shards else np.empty(0, np.uint16)
    # reading it is on the scoring clock; of this measure the most is what numba compiles
    affordable = len(tokens)
    if len(tokens) > SOON_READ:
        with budget.outside("warm-up"):
            pace = seconds_per_token(dataset.tokenizer.pieces, tokens)
        affordable = int(settings.evaluation.seconds * READING / pace)
    if affordable < len(tokens):
        display.say(f"context mixing: the scoring clock allows {affordable:,} of {len(tokens):,} tokens of training text")
        tokens = tokens[len(tokens) - affordable :]
    with budget.part("primer"):
        section = primer_to_bytes(tokens)
    display.say(f"context mixing: {len(tokens):,} tokens of training text in {len(section):,} bytes")
    return {SECTION: section}


def with_packing(train: Train, parts: dict[str, float]) -> Train:
    """Training's seconds with those of packing, which takes the place of what an earlier packing took."""
    before = {name: seconds for name, seconds in train.parts.items() if name not in PACKING}
    parts = {**before, **parts}
    return replace(train, parts=parts, seconds=sum(parts.values()))


def size_line(size: dict) -> str:
    share = 100 * size["total_bytes"] / size["limit"]
    return (
        f"artifact: model {size['model_bytes']:,} + code {size['code_bytes']:,} = {size['total_bytes']:,} bytes, "
        f"{share:.1f} % of {size['limit']:,} (tokenizer {size['tokenizer_bytes']:,}, not counted)"
    )
