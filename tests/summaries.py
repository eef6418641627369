"""Parts of a summary with figures that a test does not care about."""

from pgolf.summary import ArtifactSize, Score, Scoring, Train


def train(**known) -> Train:
    figures = {"seconds": 10.0, "limit": 600.0, "parts": {"steps": 9.0, "other": 1.0}, "untimed": {}, "steps": 70, "tokens": 9}
    return Train(**figures | {"loss": 3.0, "weights": "ema"} | known)


def artifact(**known) -> ArtifactSize:
    sizes = {"model_bytes": 5000, "code_bytes": 300, "tokenizer_bytes": 50, "limit": 16_000_000, "parts": {"codes": 4000}}
    figures = sizes | {"seconds": 1.0} | known
    total = figures["model_bytes"] + figures["code_bytes"]
    return ArtifactSize(**{"total_bytes": total, "margin": figures["limit"] - total} | figures)


def score(**known) -> Score:
    figures = {"bpb": 1.2, "loss": 2.0, "nats": 200.0, "tokens": 100, "bytes": 240, "seconds": 3.0, "legal": True}
    return Score(**figures | known)


def scoring(**known) -> Scoring:
    figures = {"seconds": 12.0, "limit": 120.0, "parts": {}, "gave_up": {}, "replayed": False, "adaptation_steps": 0}
    return Scoring(**figures | known)
