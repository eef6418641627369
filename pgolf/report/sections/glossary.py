"""The terms of the page, each in a sentence."""

from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.sections.section import Section, lead

TERMS = {
    "bits per byte": "The code length of the validation text, in bits, over its bytes. Text itself has 8; less is better.",
    "code length": "Bits that a decoder needs to reproduce the text from the artifact. A score is one only if the predictor's "
    "probabilities sum to one over the vocabulary and depend on what was decoded before.",
    "predictor": "A way to give every token a probability: the network on windows, the adapted network, a "
    "mixture with n-grams. Its score is its code length.",
    "non-overlapping windows": "The stream is cut into windows of the context length and each is scored once, so early "
    "tokens of a window have little context.",
    "sliding windows": "Windows overlap by all but the stride; the last stride tokens of each are scored, with long context.",
    "adapted": "The network learns from text that has been scored, before it scores what follows (test-time training).",
    "n-gram back-off": "Counts of the last tokens' successors, in the document or in the stream, mixed with the network's "
    "probabilities; where a long context was not seen, a shorter one is used.",
    "published": "A score computed as a submission published it. It is no code length and does not count.",
    "gain": "How many bits per byte a predictor saves over the one that it builds on; its standard error is over documents.",
    "artifact": "The file with the rounded weights. Together with the code it has to fit into the limit of bytes.",
    "given up for the clock": "Work that the settings ask for and that was left out so that scoring ended in time.",
    "audit": "Tests that try to break the claim that a score is a code length.",
    "GPTQ": "Rounding that corrects the weights not yet rounded for the error made so far (arXiv:2210.17323).",
    "MFU": "Model FLOPs utilisation: the arithmetic that the network needs over what the device can do (arXiv:2204.02311).",
}


def body(run: Run) -> Html:
    entries = [[h("dt", term), h("dd", meaning)] for term, meaning in TERMS.items()]
    return join([lead("The terms of this page."), h("dl", entries, class_="glossary")])


SECTION = Section("glossary", "Glossary", body)
