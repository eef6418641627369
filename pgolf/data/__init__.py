"""From text to batches: corpora, the tokenizer and its byte table, token shards, loaders."""

from pgolf.data.build import build_dataset, default_dataset
from pgolf.data.corpus import builtin_documents, corpus_digest, read_documents
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.data.errors import DataError
from pgolf.data.loader import CoprimeStrideLoader, Prefetch, Read, SequentialLoader
from pgolf.data.shards import open_shard, write_shard
from pgolf.data.tokenizer import ByteTable, Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "ByteTable",
    "CoprimeStrideLoader",
    "DataError",
    "Dataset",
    "Prefetch",
    "Read",
    "SequentialLoader",
    "Tokenizer",
    "build_dataset",
    "builtin_documents",
    "corpus_digest",
    "default_dataset",
    "load_tokenizer",
    "open_dataset",
    "open_shard",
    "read_documents",
    "train_tokenizer",
    "write_shard",
]
