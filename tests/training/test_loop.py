import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from pgolf.budget import Budget
from pgolf.config import DataSettings
from pgolf.data import DataError, Dataset, write_shard
from pgolf.distributed import World
from pgolf.model import build_model, parameter_groups
from pgolf.training import checkpoint, train_step
from pgolf.training.errors import TrainingError
from pgolf.training.optimisers import Optimisers
from tests.training.tiny import FakeTime, SlowStream, Stream, assert_same, losses, run, tiny

ROOT = Path(__file__).parents[2]


# ---- what a run computes


def test_it_learns_and_repeats_bit_for_bit(tmp_path):
    first, events = run(tiny(steps=30), tmp_path)
    again, same = run(tiny(steps=30), tmp_path)
    assert losses(events) == losses(same)
    assert_same(first.exported, again.exported)
    assert losses(events)[0] == pytest.approx(math.log(60), abs=0.1)
    assert losses(events)[-1] < losses(events)[0] - 1
    assert first.loss == losses(events)[-1] and first.steps == 30 and first.tokens == 30 * 128
    _, other = run(tiny(seed=8, steps=3), tmp_path)
    assert all(a != b for a, b in zip(losses(other), losses(events), strict=False))


def test_accumulation_equals_one_large_batch(tmp_path):
    def stepped(micro):
        settings = tiny(steps=6, micro_batches=micro, export="raw")

        class Whole(Stream):
            """The same rows, however they are cut."""

            def __init__(self):
                super().__init__(tiny())

            def batch(self, step, part):
                parts = [Stream.batch(self, step, p) for p in range(part * 4 // micro, (part + 1) * 4 // micro)]
                return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

        result, events = run(settings, tmp_path, Whole())
        return losses(events), result.exported

    (curve, weights), (whole, expected) = stepped(4), stepped(1)
    assert curve == pytest.approx(whole, rel=1e-5)
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=2e-4)


def test_a_run_is_the_steps_it_says(tmp_path):
    """The loop against its steps written out: schedule, momentum ramp, gradients, EMA."""
    settings = tiny(steps=4, warmdown_share=0.75)
    result, _ = run(settings, tmp_path)
    model = build_model(settings.model, seed=settings.seed)
    stream = Stream(settings)
    names = {p: name for name, p in model.named_parameters()}
    optimisers = Optimisers(parameter_groups(model), names, settings.training, World())
    average = {name: value.clone() for name, value in model.state_dict().items()}
    ramp = [0.92, 0.934, 0.948, 0.962]
    for step, multiplier in enumerate([1.0, 1.0, 2 / 3, 1 / 3]):
        batches = [stream.batch(step, micro) for micro in range(4)]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimisers.zero_grad()
        model.loss(x, y).backward()
        optimisers.step(multiplier, ramp[step])
        for name, value in model.state_dict().items():
            average[name] = 0.8 * average[name] + 0.2 * value
    assert result.weights == "ema"
    for name, value in average.items():
        torch.testing.assert_close(result.exported[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_warm_up_leaves_no_trace(tmp_path):
    plain, events = run(tiny(qat_threshold=0.6, qat_clip=7), tmp_path / "a")
    warm, same = run(tiny(qat_threshold=0.6, qat_clip=7, warmup_steps=3), tmp_path / "b")
    assert losses(events) == losses(same)
    assert_same(plain.exported, warm.exported)
    kept, again = (checkpoint.read(tmp_path / name / checkpoint.NAME)[0] for name in "ab")
    assert_same(kept, again)
    assert [event["name"] for event in same if event["kind"] == "phase"][0] == "warm-up"


def test_warm_up_takes_real_steps_with_and_without_rounding(tmp_path, monkeypatch):
    steps = []
    real = Optimisers.step

    def step(self, *arguments):
        steps.append(self)
        return real(self, *arguments)

    monkeypatch.setattr(Optimisers, "step", step)
    settings = tiny(steps=1, warmup_steps=3, qat_threshold=0.2)
    stream = Stream(settings)
    run(settings, tmp_path, stream)
    assert len(steps) == 3 + 2 + 1
    assert [step for step, micro in stream.asked if micro == 0] == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"qat_threshold": 0.9, "qat_clip": 7},
        {"qat_threshold": 0.9, "qat_clip": 7, "qat_soft_round": True},
        {"qat_threshold": 0.9, "qat_clip": 7, "qat_banks": True},
        {"distillation_share": 0.4},
        {"complement_alpha": 0.9},
        {"burst_epochs": 1, "warmdown_share": 1.0},
        {"qat_threshold": 0.9, "crown_q": 10.0},
        {"muon_projections": True},
        {"muon_coefficients": "polar_express"},
        {"muon_iterations": 2},
        {"muon_lr": 0.01},
        {"muon_momentum_start": 0.5},
        {"muon_weight_decay": 0.9},
        {"token_lr": 0.01},
        {"scalar_lr": 0.1},
        {"adam_weight_decay": 0.9},
        {"clip": 0.05},
        {"warmdown_share": 0.9},
        {"ema_decay": 0.5},
        {"export": "swa", "swa_every": 1, "swa_threshold": 0.9},
        {"export": "lawa", "lawa_every": 2},
        {"export": "raw"},
    ],
    ids=lambda change: " ".join(change),
)
def test_every_option_reaches_the_weights(tmp_path, change):
    base = {"qat_threshold": 0.9, "qat_clip": 31} if "qat_threshold" in change else {}
    usual, _ = run(tiny(steps=5, **base), tmp_path)
    other, events = run(tiny(steps=5, **{**base, **change}), tmp_path)
    assert any(not torch.equal(usual.exported[name], other.exported[name]) for name in usual.exported)
    assert all(map(math.isfinite, losses(events)))


def test_mtp_heads_train(tmp_path):
    result, _ = run(tiny(steps=3, model={"mtp_heads": 2}), tmp_path)
    heads = [value for name, value in result.exported.items() if name.startswith("mtp_heads")]
    assert len(heads) == 2 and all(value.abs().sum() > 0 for value in heads)


def test_embedding_tables_may_be_bfloat16(tmp_path, monkeypatch):
    """As on CUDA: mixed dtypes in clip, averages and checkpoints."""
    monkeypatch.setattr(
        train_step, "build_model", lambda *args, **kwargs: build_model(*args, **kwargs | {"dtype": torch.bfloat16})
    )
    result, events = run(tiny(steps=12, checkpoint_seconds=0.0), tmp_path)
    assert losses(events)[-1] < losses(events)[0] - 0.3
    assert all(value.dtype == torch.float32 for value in result.exported.values())
    assert checkpoint.read(tmp_path / checkpoint.NAME)[0]["model.tok_emb.weight"].dtype == torch.bfloat16
    again, _ = run(tiny(steps=12, checkpoint_seconds=0.0), tmp_path, resume=True)
    assert_same(result.exported, again.exported)


def test_tables_may_be_exported_in_the_submissions_dtype(tmp_path):
    """EMA in float32, then cast to the dtype that the submissions keep embedding tables in; all else stays float32."""
    plain, _ = run(tiny(steps=4), tmp_path)
    cast, _ = run(tiny(steps=4, export_tables="bfloat16"), tmp_path)
    tables = {"tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight"}
    for name, value in plain.exported.items():
        expected = value.bfloat16().float() if name in tables else value
        assert torch.equal(cast.exported[name], expected) and cast.exported[name].dtype == torch.float32, name
    assert any(not torch.equal(plain.exported[name], cast.exported[name]) for name in tables)


@pytest.mark.parametrize("trained", [True, False])
def test_convolutions_may_stay_as_they_began(tmp_path, trained):
    """As in the Mamba hybrid's script, where Muon takes what has two dimensions and Adam what has fewer."""
    scans = {"scan_layers": (0,), "scan_heads": 2, "value_embedding_layers": (1, 2), "value_residual": False}
    settings = tiny(steps=3, export="raw", train_convolutions=trained, model=scans)
    result, events = run(settings, tmp_path)
    began = build_model(settings.model, seed=settings.seed).state_dict()
    moved = {name for name, value in result.exported.items() if not torch.equal(value, began[name])}
    assert ("blocks.0.mixer.conv1d.weight" in moved) == trained
    assert {"blocks.0.mixer.conv1d.bias", "blocks.0.mixer.A_log", "scan_in_bank"} <= moved
    assert ("convolution (adamw)" in events[0]["rates"]) == trained
    matrices = {name for name, value in began.items() if value.dim() == 3 and not name.endswith("_bank")}
    assert matrices == {"blocks.0.mixer.conv1d.weight"}


# ---- the clock


def test_the_clock_ends_the_run_before_it_is_over(tmp_path):
    time = FakeTime()
    settings = tiny(steps=0, seconds=100.0, reserve=9.0, warmup_steps=2, warmdown_share=0.5)
    budget = Budget(100.0, 9.0, now=time)
    validations = []

    def validate(model):
        time.time += 1000
        validations.append(budget.elapsed())
        return {"bpb": 2.0}

    settings = tiny(
        steps=0, seconds=100.0, reserve=9.0, warmup_steps=2, warmdown_share=0.5, validate_every=10, checkpoint_seconds=1e9
    )
    # four batches of a quarter: one second a step, 91 fit
    result, events = run(settings, tmp_path, SlowStream(settings, time, 0.25), budget=budget, validate=validate)
    assert result.steps == 91
    assert result.seconds["total"] == pytest.approx(91)
    assert result.seconds["parts"]["steps"] == pytest.approx(91)
    assert result.seconds["untimed"]["warm-up"] == pytest.approx(2)
    assert result.seconds["untimed"]["validation"] == pytest.approx(10_000)
    assert validations == pytest.approx([10.0 * n for n in range(1, 10)] + [91.0])
    steps = [event for event in events if event["kind"] == "step"]
    assert [step["remaining"] for step in steps] == pytest.approx([91.0 - n for n in range(1, 92)])
    assert [step["multiplier"] for step in steps] == pytest.approx([min(1, (91 - n) / 45.5) for n in range(91)])
    assert steps[-1]["tokens_per_second"] == pytest.approx(128)


def test_a_step_that_would_not_fit_is_not_begun(tmp_path):
    time = FakeTime()
    settings = tiny(steps=0, seconds=10.0, warmdown_steps=4, warmdown_share=0.0)
    result, events = run(settings, tmp_path, SlowStream(settings, time, 0.75), budget=Budget(10.0, now=time))
    assert result.steps == 3 and result.seconds["total"] == pytest.approx(9)
    # the fall lasts four steps of three seconds, so it begins below 1 as soon as there is a pace
    assert [e["multiplier"] for e in events if e["kind"] == "step"] == pytest.approx([1.0, 7 / 12, 4 / 12])


def test_an_empty_clock_trains_nothing(tmp_path):
    time = FakeTime()
    budget = Budget(5.0, now=time)
    time.time = 6.0
    result, _ = run(tiny(steps=0, seconds=5.0), tmp_path, budget=budget)
    assert result.steps == 0 and math.isnan(result.loss)


# ---- what is told


def test_the_events(tmp_path):
    settings = tiny(steps=4, validate_every=3, qat_threshold=0.6)
    seen = []
    result, events = run(settings, tmp_path, validate=lambda model: seen.append(model.training) or {"bpb": 1.5})
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("step") == 4
    start = events[0]
    assert start["parameters"] == sum(value.numel() for value in result.exported.values())
    assert start["plan"] == {"steps": 4, "seconds": 600.0, "batch_tokens": 128, "ranks": 1, "micro_steps": 4}
    assert set(start["versions"]) == {"pgolf", "torch", "python"}
    assert seen == [False, False]
    validations = [(e["step"], e["weights"], e["bpb"]) for e in events if e["kind"] == "validation"]
    assert validations == [(3, "raw", 1.5), (4, "ema", 1.5)]
    assert result.validation == {"bpb": 1.5}
    assert {"kind": "phase", "step": 3, "name": "quantisation-aware"} in events
    assert events[-1]["seconds"] == result.seconds


def test_the_last_validation_sees_the_exported_weights(tmp_path):
    def validate(model):
        return {"sum": float(sum(value.abs().sum() for value in model.state_dict().values()))}

    result, _ = run(tiny(steps=4), tmp_path, validate=validate)
    raw, _ = run(tiny(steps=4, export="raw"), tmp_path, validate=validate)
    assert result.validation["sum"] == float(sum(value.abs().sum() for value in result.exported.values()))
    assert result.validation != raw.validation


def test_swa_that_never_began_is_told(tmp_path):
    result, events = run(tiny(steps=3, export="swa", swa_every=50), tmp_path)
    assert result.weights == "raw" and events[-1]["weights"] == "raw"


def test_ranks_must_divide_the_micro_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "current", staticmethod(lambda device: World(0, 3)))
    with pytest.raises(TrainingError, match="3 ranks do not divide training.micro_batches 4"):
        run(tiny(), tmp_path)


def test_a_dataset_gives_its_own_loader(tmp_path):
    tokens = torch.arange(5000).mul(17).remainder(60).numpy().astype("uint16")
    shards = []
    for number in range(2):
        shards.append(tmp_path / f"text_train_{number:06d}.bin")
        write_shard(shards[-1], tokens[number:])
    dataset = Dataset(tmp_path, "text", tuple(shards), (), tmp_path / "tokenizer.model", 60, "digest")
    curves = []
    for kind in ("sequential", "coprime"):
        settings = tiny(steps=3)
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, loader=kind))
        result, events = run(settings, tmp_path, dataset)
        curves.append(losses(events))
        assert checkpoint.read(tmp_path / checkpoint.NAME)[1]["settings"]["data.digest"] == "digest"
    assert curves[0] != curves[1]


def test_native_precision_is_that_of_the_processor(tmp_path, monkeypatch):
    """bfloat16 where it is multiplied, float32 elsewhere and where it is asked for; the weights are float32 anyway."""
    found = {}
    for able in (True, False):
        monkeypatch.setattr(train_step, "multiplies_bfloat16", lambda able=able: able)
        for precision in ("auto", "native", "float32"):
            result, events = run(tiny(precision=precision, steps=3), tmp_path / f"{able}-{precision}")
            assert all(tensor.dtype == torch.float32 for tensor in result.exported.values())
            found[able, precision] = losses(events)
    assert found[False, "native"] == found[False, "float32"] == found[True, "float32"] != found[True, "native"]
    # a fixed number of steps repeats anywhere
    assert found[True, "auto"] == found[True, "float32"]
    monkeypatch.setattr(train_step, "multiplies_bfloat16", lambda: True)
    by_clock = tiny(precision="auto", steps=0)
    assert train_step.init_model(by_clock.model, by_clock, torch.device("cpu")).activation == torch.bfloat16
    assert found[True, "native"] == pytest.approx(found[True, "float32"], abs=0.02)


@pytest.mark.parametrize("kind", ["sequential", "coprime"])
def test_held_out_text_is_not_trained_on(tmp_path, kind):
    # tokens that no loader hands out unnoticed, where nothing may be read
    tokens = torch.arange(600).mul(17).remainder(60)
    tokens[-50:] = 60
    write_shard(tmp_path / "text_train_000000.bin", tokens.numpy())
    dataset = Dataset(tmp_path, "text", (tmp_path / "text_train_000000.bin",), (), tmp_path / "tokenizer.model", 60, "digest")
    for held_out in (50, 0):
        data = DataSettings(loader=kind, held_out_tokens=held_out)
        with pytest.raises(DataError, match="holds token 60") if not held_out else nullcontext():
            run(dataclasses.replace(tiny(steps=10), data=data), tmp_path, dataset)


@pytest.mark.parametrize("warmup", [0, 2])
def test_loops_begin_at_their_share_of_the_steps(tmp_path, warmup):
    """Before it every layer runs once, as with one pass; afterwards all passes run, in training and for whoever validates."""

    def trained(name, **options):
        model = {"loop_layers": (1,), "loop_passes": options.pop("loop_passes", 3), "unet_skips": False}
        seen = []
        validate = lambda network: seen.append(network.looped) or {"loss": 0.0}
        settings = tiny(model=model, steps=6, warmup_steps=warmup, **options)
        _, events = run(settings, tmp_path / name, validate=validate)
        return losses(events), [event["step"] for event in events if event.get("name") == "loops run all their passes"], seen

    late, began, seen = trained("late", loop_start=0.5)
    once, none, _ = trained("once", loop_passes=1)
    always, _, _ = trained("always")
    assert late[:3] == once[:3] and late[3] != once[3] and always[1] != late[1]
    assert began == [3] and none == [] and seen == [True]
