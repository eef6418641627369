"""The stages of a run. Each reads what the last one left in the run folder, and can be run alone."""

import bz2
import contextlib
import json
import lzma
import math
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file, save_file

import pgolf
from pgolf.budget import Budget
from pgolf.cli import AuditOptions, CompareOptions, DataOptions, ExportOptions, HonestyOptions, UsageError
from pgolf.config import ArtifactSettings, Settings, read_toml
from pgolf.data import ByteTable, Dataset, build_dataset, default_dataset, open_dataset, read_documents
from pgolf.distributed import launch
from pgolf.folder import FolderError, RunFolder, write_whole
from pgolf.progress import Display, clock

# of the validation stream, that are looked at while training goes on
VALIDATION_TOKENS = 16_384
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pgolf"


# ---- train


def train(folder: RunFolder, settings: Settings, device: str, *, resume: bool) -> int:
    from pgolf.training.loop import train as train_model

    with launch(chosen_device(device)) as world, contextlib.ExitStack() as stack:
        display = stack.enter_context(Display(folder.log, events=folder.train_log, active=world.is_first))
        stop = stack.enter_context(StopOnSignal())
        dataset = dataset_of(settings, display, world)
        narrator = TrainingNarrator(display, settings)
        display.say(f"run {folder.path}: preset {settings.preset}, seed {settings.seed}")
        display.say(f"corpus {dataset.name} (digest {dataset.digest[:12]}), vocabulary {dataset.vocab_size}")
        result = train_model(
            settings,
            dataset,
            folder=folder.path,
            device=world.device,
            log=narrator,
            resume=resume,
            validate=validation_of(settings, dataset, world.device),
            stop=stop,
        )
        display.settle()
        if result.interrupted:
            display.say(f"stopped at step {result.steps}; continue with: python -m pgolf.run --resume --out {folder.path}")
            return 128 + stop.number
        if world.is_first:
            write_weights(folder.weights, result.exported)
            folder.update_summary(
                preset=settings.preset,
                seed=settings.seed,
                corpus={"name": dataset.name, "digest": dataset.digest},
                parameters=narrator.parameters,
                train={
                    "seconds": result.seconds["total"],
                    "limit": settings.training.seconds,
                    "parts": result.seconds["parts"],
                    "untimed": result.seconds["untimed"],
                    "steps": result.steps,
                    "tokens": result.tokens,
                    "loss": result.loss,
                    "weights": result.weights,
                },
                device=device_name(world.device),
                versions=versions(),
            )
    return 0


def validation_of(settings: Settings, dataset: Dataset, device: torch.device):
    """model -> its loss on the beginning of the validation stream, in sequences side by side. Nothing learns from it."""
    if not settings.training.validate_every:
        return None
    length = settings.training.sequence_length
    tokens = np.asarray(dataset.val_tokens()[: VALIDATION_TOKENS + 1]).astype(np.int64)
    count = (len(tokens) - 1) // length * length
    inputs, targets = (torch.from_numpy(part).reshape(-1, length) for part in (tokens[:count], tokens[1 : count + 1]))

    @torch.no_grad()
    def validate(model) -> dict:
        nats = 0.0
        for row, target in zip(inputs.split(16), targets.split(16), strict=True):
            logits = model.logits(row.to(device)).flatten(0, 1).float()
            nats += float(torch.nn.functional.cross_entropy(logits, target.to(device).flatten(), reduction="sum"))
        return {"loss": nats / count}

    return validate


class StopOnSignal:
    """Turns true once SIGTERM or Ctrl-C has come, so that the step can finish and be saved; a second one does not wait."""

    def __init__(self):
        self.number = 0

    def __call__(self) -> bool:
        return bool(self.number)

    def __enter__(self) -> "StopOnSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


class TrainingNarrator:
    """Training's events as a person reads them."""

    def __init__(self, display: Display, settings: Settings):
        self.display = display
        self.steps = settings.training.steps
        self.parameters = 0

    def __call__(self, event: dict) -> None:
        self.display.event(event)
        getattr(self, "_" + event["kind"])(event)

    def _start(self, event: dict) -> None:
        self.parameters = event["parameters"]
        plan = event["plan"]
        length = f"{plan['steps']:,} steps" if plan["steps"] else f"{plan['seconds']:.0f} s"
        ranks = f" on {plan['ranks']} ranks" if plan["ranks"] > 1 else ""
        self.display.say(f"{self.parameters:,} parameters; {length} of {plan['batch_tokens']:,} tokens a step{ranks}")

    def _phase(self, event: dict) -> None:
        self.display.say(f"step {event['step']}: {event['name']}")

    def _step(self, event: dict) -> None:
        total = event["elapsed"] + event["remaining"]
        done = event["step"] / self.steps if self.steps else event["elapsed"] / max(total, 1e-9)
        self.display.status(
            f"step {event['step']:,}  loss {event['loss']:.4f}  {event['tokens_per_second']:,.0f} tokens/s  "
            f"rate x{event['multiplier']:.2f}  {clock(event['elapsed'])} gone, {clock(event['remaining'])} left",
            done,
        )

    def _validation(self, event: dict) -> None:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in event.items() if isinstance(value, float))
        self.display.say(f"step {event['step']}: validation {figures}")

    def _checkpoint(self, event: dict) -> None:
        """Checkpoints come often; the event file has them."""

    def _end(self, event: dict) -> None:
        self.display.say(f"trained {event['steps']:,} steps, {event['tokens']:,} tokens, last loss {event['loss']:.4f}")


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FolderError(f"{path} cannot be written: {error.strerror or error}") from None


# ---- pack

# parts of packing that are on the training clock
PACKING = ("calibration", "rounding", "chain table")


def pack(folder: RunFolder, device: str = "") -> int:
    from pgolf.artifact.code import code_bytes
    from pgolf.artifact.losses import rounding_losses
    from pgolf.artifact.pack import sections_of, size_of, write_weights
    from pgolf.artifact.weights import Weights, round_weights
    from pgolf.model import build_model, submission_state

    settings = read_toml(folder.config)
    with Display(folder.log) as display:
        if not folder.weights.exists():
            raise FolderError(f"{folder.weights} does not exist: train the run first")
        begun = time.perf_counter()
        place = chosen_device(device)
        model = build_model(settings.model, device=place, dtype=torch.float32)
        model.load_state_dict(load_file(folder.weights))
        state = submission_state(model)
        dataset = dataset_of(settings, display)
        tokenizer = dataset.tokenizer_path.read_bytes()
        code = code_bytes(settings)
        # what reads training data and rounding belong to the training clock; coding does not
        clock = Budget(settings.training.seconds)
        moments = calibration_of(model, settings, dataset, place, clock, display)
        extra = ngram_section(model, settings, dataset, place, clock, display)
        with clock.part("rounding"):
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
        summary = {"artifact": {**size.as_dict(), "seconds": time.perf_counter() - begun}}
        if "train" in folder.read_summary():
            summary["train"] = train = with_packing(folder.read_summary()["train"], clock.parts)
            if train["seconds"] > train["limit"] and not settings.training.steps:
                display.say(
                    f"training and what of packing is on its clock took {train['seconds']:.1f} s of {train['limit']:.0f}: "
                    f"raise training.reserve"
                )
        folder.update_summary(**summary)
    return 0


def calibration_of(model, settings: Settings, dataset: Dataset, place: torch.device, clock: Budget, display: Display):
    """Second moments of the matrices' inputs, if the rounding wants them. Reading training data counts as training."""
    options, length = settings.artifact, settings.training.sequence_length
    if not options.rounding.startswith("gptq"):
        return None
    from pgolf.artifact.calibration import generated_batches, hessians, training_batches

    batch = max(1, 32_768 // length) if place.type == "cuda" else max(1, 4096 // length)
    if options.calibration == "generated":
        with clock.outside("calibration"):
            batches = generated_batches(model, options.calibration_sequences, length, batch, seed=settings.seed)
            return hessians(model, batches, head=options.gptq_embedding)
    with clock.part("calibration"):
        batches = training_batches(dataset.train_shards, options.calibration_sequences, length, batch)
        return hessians(model, batches, head=options.gptq_embedding)


def ngram_section(model, settings: Settings, dataset: Dataset, place, clock: Budget, display: Display) -> dict[str, bytes]:
    """The n-gram back-off's weights as a section of the artifact: learnt on the training text that training left out."""
    if "ngram_backoff" not in settings.evaluation.mixer.honest:
        return {}
    tokens = dataset.held_out(settings.data.held_out_tokens)
    if len(tokens) < 2:
        return {}
    from pgolf.evaluation.predictors.ngram_backoff import learnt_to_bytes
    from pgolf.evaluation.predictors.table import learn_ngram_table

    def learn(tokens):
        return learn_ngram_table(model, tokens, settings.evaluation, bos=dataset.tokenizer.bos, device=place)

    with clock.outside("warm-up"):
        learn(tokens[:2])
    with clock.part("chain table"):
        table = learn(tokens)
    display.say(f"chain: weights learnt on {len(tokens):,} tokens that training left out")
    return {"ngram_backoff": learnt_to_bytes(table)}


def with_packing(train: dict, parts: dict) -> dict:
    """Training's seconds with those of packing, which takes the place of what an earlier packing took."""
    before = {name: seconds for name, seconds in train["parts"].items() if name not in PACKING}
    parts = {**before, **parts}
    return {**train, "parts": parts, "seconds": sum(parts.values())}


def size_line(size: dict) -> str:
    share = 100 * size["total_bytes"] / size["limit"]
    return (
        f"artifact: model {size['model_bytes']:,} + code {size['code_bytes']:,} = {size['total_bytes']:,} bytes, "
        f"{share:.1f} % of {size['limit']:,} (tokenizer {size['tokenizer_bytes']:,}, not counted)"
    )


# ---- score


def score(folder: RunFolder, device: str = "", plan: str = "") -> int:
    budget = Budget(read_toml(folder.config).evaluation.seconds)
    from pgolf.artifact.pack import read_artifact
    from pgolf.evaluation.evaluate import evaluate
    from pgolf.evaluation.records import read_plan, results_table, write_traces, write_words
    from pgolf.model.rounding import FakeRounding
    from pgolf.score_log import write_scores

    settings = read_toml(folder.config)
    options = settings.evaluation
    # a fiftieth of the clock, to write down what was found
    budget.reserve = options.seconds / 50
    replay = read_plan(Path(plan)) if plan else None
    with launch(chosen_device(device), "score") as world, Display(folder.log, active=world.is_first) as display:
        with budget.part("loading"):
            artifact = read_artifact(folder.artifact)
            model = artifact.build_model(world.device)
            if settings.training.qat_threshold:
                # training has left it on: whoever adapts in training mode rounds on
                model.rounding = FakeRounding.of(settings.training, world.device)
            dataset = dataset_of(settings, display, world)
            tokens = np.asarray(dataset.val_tokens())
            partial = 0 < options.max_tokens < len(tokens) - 1
            if partial:
                tokens = tokens[: options.max_tokens + 1]
            table = ByteTable(dataset.tokenizer)
        with budget.part("scoring"):
            found = evaluate(
                model,
                tokens,
                table,
                options,
                bos=dataset.tokenizer.bos,
                budget=budget,
                ngram_table=ngram_table(artifact),
                replay=replay,
                device=world.device,
                world=world,
                report=lambda name, share: display.status(f"scoring, {name.replace('_', ' ')}: {share:.0%}", share),
            )
        display.settle()
        if not world.is_first:
            return 0
        with budget.part("writing"):
            per_target = table.count(tokens[:-1], tokens[1:])
            results = results_table(found, tokens, dataset.tokenizer.bos, per_target)
            columns = {name: result.nats[: len(per_target)] for name, result in found.results.items()}
            write_scores(
                folder.scores, tokens, per_target, columns, bos=dataset.tokenizer.bos, pieces=dataset.tokenizer.pieces
            )
            write_words(folder.words, found.words, tokens, per_target, columns, dataset.tokenizer.pieces)
            write_traces(folder.weights_log, found.traces)
            write_whole(folder.plan, json.dumps(found.plan) + "\n")
        spent = budget.report()
        for name, result in results.items():
            display.say(result_line(name, result))
        if found.gave_up:
            display.say(f"given up for the clock: {', '.join(f'{name} {what}' for name, what in found.gave_up.items())}")
        folder.update_summary(
            score={name: {**result, "partial": partial} for name, result in results.items()},
            main=found.main,
            scoring={
                "seconds": spent["total"],
                "limit": options.seconds,
                "parts": spent["parts"],
                "gave_up": found.gave_up,
                "replayed": bool(plan),
                "adaptation_steps": found.adaptation_steps,
            },
            compressors=compressors(
                dataset.tokenizer.decode_bytes(tokens.tolist()), results[found.main], folder.artifact.stat().st_size
            ),
        )
    return 0


def ngram_table(artifact):
    """The n-gram back-off table that the artifact carries, if any."""
    if "ngram_backoff" not in artifact.sections:
        return None
    from pgolf.evaluation.predictors.ngram_backoff import learnt_of

    return learnt_of(artifact.sections)


def result_line(name: str, result: dict) -> str:
    mark = "" if result["legal"] else "  (as published; not a code length)"
    gain = f", {-result['gain']:+.4f} on {result['over'].replace('_', ' ')}" if "over" in result else ""
    return f"{name.replace('_', ' ')}: {result['bpb']:.4f} bits per byte{gain}, {result['seconds']:.1f} s{mark}"


def compressors(text: bytes, score: dict, artifact_bytes: int, limit: int = 20_000_000) -> dict:
    """What general-purpose compressors need for the text that was scored, to hold the score against; and the score with the
    artifact's bytes on top, which whoever decompresses must have."""
    if not text or len(text) > limit:
        return {}

    def entry(size: int) -> dict:
        return {"bytes": size, "bpb": 8 * size / len(text), "of": len(text)}

    found = {
        "xz -9e": entry(len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))),
        "bzip2 -9": entry(len(bz2.compress(text, 9))),
        "zstd --ultra -22": entry(len(zstandard.ZstdCompressor(level=22).compress(text))),
    }
    with contextlib.suppress(ImportError):
        import brotli

        found["brotli -11"] = entry(len(brotli.compress(text, quality=11, lgwin=24)))
    found["pgolf and its artifact"] = entry(math.ceil(score["nats"] / math.log(2) / 8) + artifact_bytes)
    return found


# ---- audit


def audit(options: AuditOptions) -> int:
    from pgolf.artifact.code import make_script
    from pgolf.audit.command import audit_run, audit_scorer, decode_run, publish

    if bool(options.run) == bool(options.scorer):
        raise UsageError("audit needs either the folder of a run or --scorer MODULE:NAME: python -m pgolf.run audit RUN")
    if options.scorer:
        with Display() as display:
            report = audit_scorer(options.scorer, options.tokens, CACHE, options.targets, options.seed, said_by(display))
            display.settle()
            return publish(report, Path(options.out or "."), options.scorer, display.say)
    folder = RunFolder.existing(options.run)
    settings = read_toml(folder.config)
    with Display(folder.log) as display:
        dataset = dataset_of(settings, display)
        report = audit_run(
            folder,
            dataset,
            make_script(settings).encode(),
            device=chosen_device(options.device),
            targets=options.targets,
            seed=options.seed,
            progress=said_by(display),
        )
        if options.decode:
            report.decoded = decode_run(folder, dataset, options.decode, said_by(display))
        display.settle()
        code = publish(report, Path(options.out) if options.out else folder.path, folder.path.name, display.say)
        folder.update_summary(
            audit={
                "passed": report.passed,
                "failed": sorted({one.id for one in report.failed}),
                "tests": len(report.judged),
                "results": report.results,
                "seconds": report.seconds,
                "decoded": report.decoded,
            }
        )
        return code


def honesty(options: HonestyOptions) -> int:
    from pgolf.audit.honesty import SYSTEMS, honest_row, said, table

    place, rows = Path(options.out), []
    with Display() as display:
        for preset in SYSTEMS:
            path = place / preset
            if "score" not in RunFolder(path).read_summary():
                display.say(f"{preset}: training and scoring")
                words = ["--resume"] if RunFolder(path).config.exists() else []
                # with time enough to give nothing up: the table is about what the scores are, not about speed
                words += ["--preset", preset, "--scale", "tiny", "--steps", str(options.steps), "--evaluation.seconds", "3600"]
                done = subprocess.run([sys.executable, "-m", "pgolf.run", *words, "--out", str(path)])
                if done.returncode:
                    return done.returncode
            folder = RunFolder.existing(path)
            display.say(f"{preset}: weighing and decoding")
            rows.append(honest_row(folder, dataset_of(read_toml(folder.config), display), options.decode))
        text = f"{table(rows)}\n\n{said(rows, options.steps)}\n"
        print(text)
        write_whole(place / "honesty.json", json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n")
        write_whole(place / "honesty.md", text)
    return 0


def said_by(display: Display):
    return lambda name, share: display.status(f"audit, {name}: {share:.0%}", share)


# ---- report, compare and show


def report(folder: RunFolder) -> int:
    from pgolf.report.files import read_run
    from pgolf.report.page import page
    from pgolf.report.pictures import draw

    run = read_run(folder.path)
    for picture in draw(run, folder.pictures):
        print(f"picture {picture}")
    write_whole(folder.report, page(run))
    print(f"report {folder.report}")
    return 0


def watch(folder: RunFolder, port: int) -> int:
    from pgolf.report.watch import watch as serve

    serve(folder.path, port)
    return 0


def compare(options: CompareOptions) -> int:
    from pgolf.report.compare import page, tables
    from pgolf.report.files import read_run

    if len(options.runs) < 2:
        raise UsageError("compare needs the folders of two runs or more: python -m pgolf.run compare RUN RUN")
    runs = [read_run(RunFolder.existing(run).path) for run in options.runs]
    write_whole(Path(options.out), page(runs))
    print(tables(runs))
    print(f"report {options.out}")
    return 0


def show(folder: RunFolder, device: str = "") -> int:
    from pgolf.artifact.code import embedded
    from pgolf.report.tables import tables

    if not embedded():
        from pgolf.report.files import read_run
        from pgolf.report.terminal import further_tables

        print(further_tables(read_run(folder.path)) + "\n")
    print(tables(folder.read_summary()))
    return 0


# ---- export


def export(options: ExportOptions) -> int:
    from pgolf.artifact.export import Submission
    from pgolf.artifact.export import export as write_submission

    if not options.runs:
        raise UsageError("export needs the folders of one run or more: python -m pgolf.run export --out FOLDER RUN [RUN RUN]")
    about = Submission(options.name, options.author, options.github_id, options.track)
    write_submission(options.runs, options.out, about, options.baseline)
    return 0


# ---- data


def make_data(options: DataOptions) -> int:
    if bool(options.text) == bool(options.fineweb):
        raise UsageError("data needs either --text with files or folders, or --fineweb with a variant such as sp1024")
    with Display() as display:

        def progress(what: str, done: int, total: int | None) -> None:
            display.status(f"{what}: {done:,}" + (f" of {total:,}" if total else ""), done / total if total else 0.0)

        if options.fineweb:
            from pgolf.data.fineweb import fetch_fineweb

            dataset = fetch_fineweb(options.fineweb, options.shards, options.out, progress=progress)
        else:
            vocab = None if options.tokenizer else options.vocab
            documents = read_documents(options.text)
            tokenizer = options.tokenizer or None
            dataset = build_dataset(
                documents, options.out, vocab_size=vocab, name=options.name, tokenizer=tokenizer, progress=progress
            )
        display.settle()
        counts = f"{len(dataset.train_shards)} training and {len(dataset.val_shards)} validation shards"
        display.say(f"dataset {options.out}: {counts}")
        display.say(f"use it with: python -m pgolf.run --data.path {options.out} --model.vocab-size {dataset.vocab_size}")
    return 0


# ---- what stages share


def dataset_of(settings: Settings, display: Display, world=None) -> Dataset:
    """The run's data; the built-in corpus is made once and kept in a cache."""
    if settings.data.path:
        dataset = open_dataset(settings.data.path, settings.data.tokenizer or None, settings.model.vocab_size)
    else:
        dataset = default_dataset(CACHE, vocab_size=settings.model.vocab_size)
    return dataset


def chosen_device(name: str) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UsageError(f"no device {name!r}; try cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use; leave --device out, or say cpu")
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict:
    found = {"pgolf": pgolf.__version__, "python": platform.python_version(), "torch": torch.__version__}
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    return found
