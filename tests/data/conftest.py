import pytest

from pgolf.data import build_dataset, builtin_documents, load_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def documents():
    """The built-in corpus: parsed once for all tests of data."""
    return builtin_documents()


@pytest.fixture(scope="session")
def dataset(documents, tmp_path_factory):
    return build_dataset(documents, tmp_path_factory.mktemp("cache") / "builtin", vocab_size=1024, name="builtin")


@pytest.fixture(scope="session")
def lossless(dataset):
    return load_tokenizer(dataset.tokenizer_path)


@pytest.fixture(scope="session")
def lossy_path(documents, tmp_path_factory):
    """A tokenizer that normalises text, made with the challenge's settings."""
    import sentencepiece

    path = tmp_path_factory.mktemp("lossy") / "nfkc.model"
    with open(path, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for text in documents[:60] for line in text.splitlines() if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=400,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            character_coverage=0.999,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tokenizer.model"
    train_tokenizer(documents[:40], 300, path)
    return path
