"""The proof by decoding: text to bits and back, with the very distributions that the score stands for.

What is coded is the run's score: the network, its adaptation (score first), its temperature and its honest mixer, each
token with the whole distribution that the tokens before it leave. So the length of the bitstream is the score.

The scorer computes whole windows; a decoder has to go token by token. Two ways were open. One keeps the scorer's shapes
and computes a whole window anew for every token, with padding where tokens are not known yet; that costs a window's
work a token. The other, taken here, is the network's decoder with its cache: it begins each of the scorer's windows
with the tokens that are known, and steps through those to be scored. The function is the scorer's, window by window and
weight by weight; only the order of sums within it differs, so the length agrees to about one part in a million. A target
costs window / stride steps of the decoder instead of a window.

Both directions walk through the same steps, so on one computer all bits of all distributions agree. On another one
they might not: learning runs in torch, whose sums depend on processor, threads and version. The stream says what
computed it, and is refused where that differs; and its checksum tells should they differ after all.

There is no clock here. What the clock gave up while a run was scored is followed from its plan.json, of which the stream
carries what a decoder must be told (plan.py).
"""

from pgolf.evaluation.codec.codec import Codec, prove
from pgolf.evaluation.codec.coding import CodecError

__all__ = ["Codec", "CodecError", "prove"]
