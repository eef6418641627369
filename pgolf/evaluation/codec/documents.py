"""Documents that do not influence each other, coded side by side: one step of the decoder takes a token of each.

This is the scorer of pgolf.evaluation.adaptation.lora, token by token. Within a chunk the network steps with the adapters
that the document's earlier chunks have taught; where a chunk begins, the keys and values that its targets attend to are
computed as the scorer computes them. Learning runs for each document alone, so no bit depends on what is coded beside it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from pgolf.config import EvaluationSettings
from pgolf.evaluation.adaptation.lora import LoraTrainer, chunk_after
from pgolf.evaluation.adaptation.windows import Windows
from pgolf.evaluation.codec.coding import CodecError, Decoder, Encoder, silent
from pgolf.evaluation.codec.stream import Stream
from pgolf.evaluation.codec.token_predictor import History, log_softmax
from pgolf.evaluation.predictors.base import Predictor
from pgolf.evaluation.predictors.temperature import policy
from pgolf.model import Decoder as NetworkDecoder
from pgolf.model import KVCachedNetwork, Network

# documents that are coded side by side
ROWS = 16


@dataclass
class Known:
    """Targets start..stop-1 of a document, as far as they have come."""

    history: History
    start: int
    stop: int

    def inputs(self, start: int, stop: int) -> np.ndarray:
        return self.history.since(start)[: stop - start]


@dataclass
class Document:
    """One in a row of the decoder."""

    number: int
    history: History
    predictor: Predictor
    windows: Windows
    trainer: LoraTrainer | None
    begin: int = 0
    stop: int = 0
    """Where the chunk at hand begins and ends."""
    tokens: list[int] = field(default_factory=list)
    """The targets that have come."""


class DocumentRows:
    """Walks through documents, up to ROWS of them at a time: a row that is done with one takes the next.

    make_predictor   of the distribution that is coded; called for each document, or once where it goes on from one to the next
    plain            numbers of the documents that get no adapters, whatever the settings say
    """

    def __init__(
        self, model: Network, settings: EvaluationSettings, make_predictor: Callable[[], Predictor], *, bos: int,
        plain: Iterable[int] = (),
    ):  # fmt: skip
        self.lora, self.bos = settings.lora, bos
        self.temperature = policy(settings.temperature)
        self.make_predictor = make_predictor
        first = make_predictor()
        self.shared = None if first.document_local else first
        self.rows = ROWS if first.document_local else 1
        self.adapted, self.plain = self.lora.passes > 0, frozenset(plain)
        self.network = KVCachedNetwork(model, settings.window)
        self.decoder = NetworkDecoder(
            model, self.rows, settings.window, keep=self.lora.context_tokens, rank=self.lora.rank if self.adapted else 1
        )

    def run(self, starts: list[int], last_targets: int, code: Callable[[int, int, np.ndarray], int]) -> list[list[int]]:
        """The targets of every document. The first tokens of all are told, and how many targets the last has; the others
        end with BOS. `code` is asked for target `place` of document `number`, given its log-probabilities (V,). Two halves of
        the rows take turns: while one is computed, the other's tokens are coded."""
        done: list[list[int]] = [[] for _ in starts]
        if len(starts) == 1 and not last_targets:
            return done
        waiting = iter(range(len(starts)))

        def taken(active: dict[int, Document], row: int) -> None:
            if (number := next(waiting, None)) is not None:
                active[row] = self._begun(row, number, starts[number])

        halves: tuple[dict[int, Document], ...] = ({}, {})
        for row in range(self.rows):
            taken(halves[row % 2], row)
        with ThreadPoolExecutor(len(halves)) as pool:
            turns = deque((active, pool.submit(self._logits, active)) for active in halves if active)
            while turns:
                active, computed = turns.popleft()
                for (row, document), log_probs in zip(list(active.items()), self._log_probs(computed.result()), strict=True):
                    token = code(document.number, document.history.known, document.predictor.predict(log_probs))
                    document.tokens.append(token)
                    document.history.add(token)
                    document.predictor.observe(token, start=token == self.bos)
                    last = document.number == len(starts) - 1
                    if document.history.known == last_targets if last else token == self.bos:
                        done[document.number] = document.tokens
                        del active[row]
                        taken(active, row)
                    elif document.history.known == document.stop:
                        self._next_chunk(row, document)
                if active:
                    turns.append((active, pool.submit(self._logits, active)))
        return done

    def _begun(self, row: int, number: int, start: int) -> Document:
        if self.shared is None or number == 0:
            predictor = self.shared or self.make_predictor()
            predictor.begin(start)
        else:
            predictor = self.shared
        self.decoder.reset([row])
        self.decoder.adapt(row, None)
        trainer = LoraTrainer(self.network, self.lora, 1) if self.adapted and number not in self.plain else None
        if trainer:
            trainer.reset(1)
        floor = trainer.floor if trainer else len(self.network.layers)
        windows = Windows(self.network, floor, self.lora.context_tokens, self.lora.refresh_tokens)
        document = Document(number, History(start), predictor, windows, trainer)
        document.stop = chunk_after(0, self.lora, trainer is not None)
        return document

    def _logits(self, active: dict[int, Document]) -> np.ndarray:
        """(R, V), of each document's next target."""
        inputs = np.array([document.history.since(document.history.known) for document in active.values()])
        return self.decoder.advance(list(active), inputs)

    def _log_probs(self, logits: np.ndarray) -> np.ndarray:
        return log_softmax(torch.from_numpy(logits), self.temperature)

    def _next_chunk(self, row: int, document: Document) -> None:
        """Learn from the chunk that has come, and set the decoder to where the next one begins."""
        history, windows, trainer = document.history, document.windows, document.trainer
        begin, stop = document.begin, document.stop
        if trainer:
            windows.open([Known(history, begin, stop)], [0], stop)
            targets = torch.from_numpy(history.since(begin)[1 : stop - begin + 1][None].copy())
            for _ in range(self.lora.passes):
                trainer.step(windows, targets)
        document.begin, document.stop = stop, stop + chunk_after(stop, self.lora, trainer is not None)
        self.decoder.first[row] = max(0, document.stop - self.lora.context_tokens)
        if not trainer:  # nothing is ever computed anew
            return
        adapters = trainer.adapters(1)
        past = windows.past([Known(history, stop, stop)], [0], document.stop, adapters)
        self.decoder.adapt(row, adapters)
        kept = {layer: (keys[0], values[0]) for layer, (keys, values) in past.items()}
        self.decoder.load(row, history.since(0)[:stop], stop, kept)


def encode_documents(
    rows: DocumentRows, first: int, documents: Sequence[np.ndarray], progress: Callable[[float], None] = silent
) -> tuple[bytes, float]:
    """The code of the documents' targets, and what they cost by their distributions, in nats."""
    coder, total, done = Encoder(), sum(map(len, documents)), 0

    def code(number: int, place: int, log_probs: np.ndarray) -> int:
        nonlocal done
        token = int(documents[number][place])
        coder.put(token, log_probs)
        progress(done / total)
        done += 1
        return token

    rows.run([first, *[rows.bos] * (len(documents) - 1)], len(documents[-1]), code)
    return coder.finished()


def decode_documents(rows: DocumentRows, stream: Stream, progress: Callable[[float], None] = silent) -> np.ndarray:
    """The targets of all documents, in the stream's order."""
    coder = Decoder(stream.code, stream.targets)

    def code(number: int, place: int, log_probs: np.ndarray) -> int:
        token = coder.get(log_probs)
        progress((coder.done - 1) / stream.targets)
        return token

    starts = [stream.first, *[rows.bos] * (stream.documents - 1)]
    documents = rows.run(starts, stream.last_targets, code)
    if coder.done != stream.targets:
        raise CodecError(f"its documents have {coder.done} tokens together, and not {stream.targets}")
    return np.concatenate([np.array(document, np.int64) for document in documents])
