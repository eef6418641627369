"""Which predictors the settings ask for, and which of them is the run's score."""

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pgolf.config import EvaluationSettings, SettingsError
from pgolf.config.predictors import HONEST_PREDICTORS
from pgolf.evaluation.predictors.base import Predictor
from pgolf.evaluation.predictors.published import PublishedBoost, PublishedHedge, PublishedTail
from pgolf.evaluation.predictors.temperature import Plain, Temperature, Tempered

if TYPE_CHECKING:
    from pgolf.evaluation.predictors.ngram_backoff import Learnt
    from pgolf.evaluation.primer import Primer


def wants_main_pass(settings: EvaluationSettings) -> bool:
    """Whether the settings ask for more than non-overlapping windows."""
    mixing = settings.mixer.honest or settings.mixer.published != "none"
    return bool(settings.sliding or mixing or settings.adaptation.method != "none" or settings.temperature.method != "none")


def predictors_of(
    settings: EvaluationSettings,
    vocab: int,
    targets: int,
    temperature: Temperature | None,
    ngram_table: "Learnt | None" = None,
    device: str = "cpu",
    primer: "Primer | None" = None,
) -> list[Predictor]:
    """Those of the main pass: the network's own first, then those that build on it. `device`: where the Hedge mixer counts."""
    adaptation, published = settings.adaptation.method, settings.mixer.published
    plain = "sliding" if adaptation == "none" else "adapted"
    predictors: list[Predictor] = [Plain(plain)]
    if temperature:
        predictors.append(Tempered(temperature))
    honest = [honest_class(name).create(vocab, settings.mixer, ngram_table) for name in settings.mixer.honest]
    predictors += [predictor.primed_with(primer) if primer else predictor for predictor in honest]
    if adaptation == "lora":
        check_documents(settings, predictors, temperature)
        for predictor in predictors:
            predictor.legal = predictor.legal and not settings.lora.foresees
        return predictors
    predictors += tail_of(plain, settings, vocab, targets)
    windows = published_windows(plain, settings, targets)
    if published == "hedge":
        predictors.append(PublishedHedge(vocab, settings.mixer.eta, device, **windows))
    elif published == "boost":
        predictors.append(PublishedBoost(vocab, settings.mixer.eta, settings.mixer.bias_lr, **windows))
    return predictors


def honest_class(name: str) -> type[Predictor]:
    """Imported only where it is asked for, so that a submission carries no other."""
    entry = HONEST_PREDICTORS[name]
    return getattr(importlib.import_module(f"pgolf.evaluation.predictors.{entry.module}"), entry.cls)


def main_predictor(predictors: Iterable[Predictor]) -> Predictor | None:
    """The run's score: the last code length of the settings' order, so that nothing is picked afterwards. None if none is."""
    return next((predictor for predictor in reversed([*predictors]) if predictor.legal), None)


def published_windows(plain: str, settings: EvaluationSettings, targets: int) -> dict:
    """How the published rules go over the stream. Where submissions adapt, they leave out windows cut below a stride."""
    return {
        "targets": targets,
        "window": settings.window,
        "stride": settings.stride,
        "tail": settings.published_tail,
        "shortest": settings.stride if plain == "adapted" else 1,
        "batch": settings.batch,
        "ranks": settings.mixer.ranks,
    }


def tail_of(plain: str, settings: EvaluationSettings, vocab: int, targets: int) -> list[Predictor]:
    if not settings.published_tail:
        return []
    return [PublishedTail(f"{plain}_published", vocab, **published_windows(plain, settings, targets))]


def check_documents(settings: EvaluationSettings, predictors: Sequence[Predictor], temperature: Temperature | None) -> None:
    """Refuse what needs the stream's order beside adapters for each document, whose documents are scored in any order."""
    if temperature and (temperature.learns or temperature.calibrates):
        raise SettingsError(
            f"evaluation.temperature.method {settings.temperature.method} follows the stream, but documents with adapters "
            "are scored in any order; choose fixed or entropy"
        )
    if settings.mixer.published != "none":
        raise SettingsError("evaluation.mixer.published goes by windows, and adaptation.method lora by documents; choose none")
    for predictor in predictors:
        if predictor.needs_logits or not predictor.local_candidates:
            raise SettingsError(
                f"{predictor.name} follows the stream while it is scored; with lora choose ngram_backoff or ngrams"
            )


def bases_of(predictors: Sequence[Predictor], scored: Iterable[str]) -> dict[str, str]:
    """The result that each one's gain is taken over."""
    plain, names = predictors[0].name, {predictor.name for predictor in predictors}
    ground = "temperature" if "temperature" in names else plain
    below = "sliding" if plain == "adapted" and "sliding" in scored else "non_overlapping"
    return {name: ground for name in names} | {plain: below, "temperature": plain, f"{plain}_published": plain}
