"""The stage pack: weights.safetensors to model.pgolf."""

import json
import time
from dataclasses import replace

import torch
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
from pgolf.files import write_whole
from pgolf.folder import FolderError, RunFolder
from pgolf.model import build_model, submission_state
from pgolf.progress import Display
from pgolf.summary import ArtifactSize, Train

Options = DeviceOptions
# parts of packing that are on the training clock
PACKING = ("calibration", "rounding", "n-gram table")


def main(words: list[str]) -> int:
    options = parse(Options, words, "pack")
    return pack(RunFolder.existing(options.run), options.device)


def pack(folder: RunFolder, device: str = "") -> int:
    settings = read_toml(folder.config)
    with Display(folder.log) as display:
        if not folder.weights.exists():
            raise FolderError(f"{folder.weights} does not exist: train the run first")
        begun = time.perf_counter()
        place = chosen_device(device)
        model = build_model(settings.model, device=place, dtype=torch.float32)
        model.load_state_dict(load_file(folder.weights))
        state = submission_state(model)
        dataset = dataset_of(settings)
        tokenizer = dataset.tokenizer_path.read_bytes()
        code = code_bytes(settings)
        # what reads training data and rounding belong to the training clock; coding does not
        budget = Budget(settings.training.seconds)
        moments = calibration_of(model, settings, dataset, place, budget, display)
        extra = ngram_section(model, settings, dataset, place, budget, display)
        with budget.part("rounding"):
            if settings.artifact.fit:
                from pgolf.artifact.fitting import fit

                def total(weights: Weights, chosen: ArtifactSettings) -> int:
                    found = replace(settings, artifact=chosen)
                    return size_of(sections_of(weights, found, tokenizer, extra), chosen.limit, code).total_bytes

                weights, chosen = fit(state, settings.artifact, moments, total, display.say)
                settings = replace(settings, artifact=chosen)
            else:
                weights = round_weights(state, settings.artifact, moments)
        size = write_weights(folder.artifact, weights, settings, tokenizer, code_bytes=code, extra=extra)
        matrices = rounding_losses(state, weights, settings.artifact)
        write_whole(folder.quantisation, json.dumps({"rounding": settings.artifact.rounding, "matrices": matrices}) + "\n")
        display.say(size_line(size.as_dict()))
        train = folder.read_summary().train
        if train:
            train = with_packing(train, budget.parts)
            if train.seconds > train.limit and not settings.training.steps:
                display.say(
                    f"training and what of packing is on its clock took {train.seconds:.1f} s of {train.limit:.0f}: "
                    f"raise training.reserve"
                )
        artifact = ArtifactSize(**size.as_dict(), seconds=time.perf_counter() - begun)
        folder.update_summary(artifact=artifact, train=train)
    return 0


def calibration_of(model, settings: Settings, dataset: Dataset, place: torch.device, budget: Budget, display: Display):
    """Second moments of the matrices' inputs, if the rounding wants them. Reading training data counts as training."""
    options, length = settings.artifact, settings.training.sequence_length
    if not FORMS[options.rounding].needs_hessians:
        return None
    from pgolf.artifact.calibration import generated_batches, hessians, training_batches

    batch = max(1, 32_768 // length) if place.type == "cuda" else max(1, 4096 // length)
    if options.calibration == "generated":
        with budget.outside("calibration"):
            batches = generated_batches(model, options.calibration_sequences, length, batch, seed=settings.seed)
            return hessians(model, batches, head=options.gptq_embedding)
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
    from pgolf.evaluation.predictors.ngram_backoff import learnt_to_bytes
    from pgolf.evaluation.ngram_table import learn_ngram_table

    def learn(tokens):
        return learn_ngram_table(model, tokens, settings.evaluation, bos=dataset.tokenizer.bos, device=place)

    with budget.outside("warm-up"):
        learn(tokens[:2])
    with budget.part("n-gram table"):
        table = learn(tokens)
    display.say(f"n-gram back-off: weights learnt on {len(tokens):,} tokens that training left out")
    return {"ngram_backoff": learnt_to_bytes(table)}


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
