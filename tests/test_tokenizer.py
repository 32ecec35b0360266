"""Tokenizers that trained embeddings came with: rebuilt, held against the original, and carried along by a run."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import odn as library
from conftest import sentences
from odn.config import AugmentConfig, DataConfig
from odn.data import load_data
from odn.errors import OdnError, UsageError
from odn.network import build_network, partition
from odn.tokenizer import Tokenizer, TokenizerSource, check_same, train_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra text: pip install 'optimally-deep[text]'")
transformers = pytest.importorskip("transformers", reason="needs the extra text: pip install 'optimally-deep[text]'")
LINES = [text for text, _ in sentences(300, 7)] + ["Ünïcode and 你好", "under-scores, isn't   it?"]


def of_words():
    """As BERT's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return transformers.BertTokenizer(vocab=tokenizer.get_vocab())


def byte_pairs(special):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def of_roberta():
    """As RoBERTa's: padding has the id 1."""
    model = json.loads(byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def of_modernbert():
    """As ModernBERT's: runs of spaces are tokens, and the special ones stand at the end."""
    tokenizer = byte_pairs([])
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.add_tokens([tokenizers.AddedToken(" " * count, normalized=True) for count in (3, 2)])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    around = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=around
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]", cls_token="[CLS]", sep_token="[SEP]"
    )


MADE = {"bert": of_words, "roberta": of_roberta, "modernbert": of_modernbert}


@pytest.fixture(scope="session", params=list(MADE))
def theirs(request):
    return request.param, MADE[request.param]()


def rebuilt_from(theirs):
    return Tokenizer(theirs.backend_tokenizer.to_str(), padding=theirs.pad_token_id)


# the tokenizer -----------------------------------------------------------------------------------------------------


@given(st.text(max_size=80), st.integers(4, 40))
def test_a_tokenizer_is_rebuilt_as_it_was(theirs, text, tokens):
    theirs = theirs[1]
    ours = rebuilt_from(theirs)
    wanted = theirs(
        text, truncation=True, max_length=tokens, padding="max_length", split_special_tokens=True, return_tensors="np"
    )
    assert np.array_equal(ours.encode([text], tokens), wanted.input_ids)


def test_what_is_rebuilt_is_rebuilt_from_its_own_content(theirs):
    ours = rebuilt_from(theirs[1])
    again = Tokenizer(ours.content)
    theirs = theirs[1]
    around = theirs("").input_ids
    assert again.content == ours.content
    assert (again.padding, again.mask) == (theirs.pad_token_id, theirs.mask_token_id)
    assert (again.prefix, again.suffix, again.vocabulary) == (around[:1], around[1:], len(theirs))


def test_merges_of_older_files_are_read():
    content = of_roberta().backend_tokenizer.to_str()
    table = json.loads(content)
    table["model"]["merges"] = [" ".join(pair) for pair in table["model"]["merges"]]
    assert Tokenizer(json.dumps(table), padding=1).content == Tokenizer(content, padding=1).content


def test_a_text_cannot_say_a_special_token(theirs):
    ours = rebuilt_from(theirs[1])
    text = f"a {theirs[1].sep_token} b {theirs[1].mask_token} c {theirs[1].pad_token}"
    ids = ours.encode([text], 64)[0]
    length = np.count_nonzero(ids != ours.padding)
    assert not np.isin(ids[1 : length - 1], (ours.mask, ours.padding, *ours.prefix, *ours.suffix)).any()


def test_other_tokens_than_the_originals_are_noticed(theirs):
    other = tokenizers.Tokenizer.from_str(theirs[1].backend_tokenizer.to_str())
    other.normalizer = tokenizers.normalizers.Replace("plum", "pear")
    source = TokenizerSource(content=other.to_str(), where="elsewhere", padding=0, vocabulary=1000)
    check_same(rebuilt_from(theirs[1]), source, ["a pear"])
    with pytest.raises(OdnError, match="elsewhere: odn cannot follow all rules .* texts such as 'my plum' would get"):
        check_same(rebuilt_from(theirs[1]), source, ["a pear", "my plum"])


def swap_padding(table):
    vocabulary = table["model"]["vocab"]
    vocabulary["[PAD]"], vocabulary["[MASK]"] = 1, 0
    for token in table["added_tokens"]:
        token["id"] = 1 - token["id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: "{", "is damaged"),
        (lambda table: table["model"].update(type="Unigram"), "odn does not read tokenizers of 'Unigram' with 'Byte"),
        (lambda table: table["model"].update(dropout=0.5), "odn does not read tokenizers of 'BPE' with 'ByteLevel'"),
        (lambda table: table["pre_tokenizer"].update(type="Split"), "odn does not read tokenizers with the rule 'Spl"),
        (lambda table: table.update(pre_tokenizer=None), "odn does not read tokenizers with the rule 'none'; allowed"),
        (lambda table: table.update(normalizer={"type": "Replace"}), "with the rule 'Replace'; allowed: BPE of bytes"),
        (lambda table: table.update(post_processor={"type": "X"}), "odn does not read tokenizers with the rule 'X'"),
        (lambda table: table["normalizer"].update(lowercase="no"), "is damaged .*a flag of 'BertNormalizer'"),
        (swap_padding, r"filled up with '\[MASK\]', which means something else"),
        (lambda table: table["model"]["vocab"].update(extra=7), "is damaged .*two tokens of one id"),
        (lambda table: table["model"]["vocab"].update(extra=10**9), "is damaged .*ids from 0 to 1000000000"),
        (lambda table: table["model"]["vocab"].pop("a"), "is damaged .*without a token for every byte"),
        (lambda table: table["model"]["merges"].append(["never", "seen"]), "is damaged"),
        (lambda table: table["model"]["merges"].append("x"), "is damaged"),
        (lambda table: table["added_tokens"][0].update(id=9), "is damaged .*two ids for '.PAD.'"),
        (lambda table: table["added_tokens"].append({"content": "x" * 2000}), "is damaged .*longer added tokens"),
        (lambda table: table.pop("normalizer"), "is damaged .*copy it again, or export"),
    ],
)
def test_other_tokenizers_are_refused(change, message):
    table = json.loads(train_tokenizer(["a text"] * 3, vocabulary=300, lowercase=True))
    content = change(table)
    with pytest.raises(OdnError, match=f"^tokenizer.json.*{message}") as error:
        Tokenizer(content if isinstance(content, str) else json.dumps(table))
    assert "\n" not in str(error.value)


# encoders ----------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def quick(tmp_path):
    """Flags of a run that does little."""
    (tmp_path / "quick.toml").write_text("[expand]\nsettle_epochs = 4\n[report]\nlatency_seconds = 0.01\n")
    flags = ("--depths", "1,2", "--epochs-per-depth", "2", "--finetune-epochs", "1", "--target", "0.999")
    return (*flags, "--config", tmp_path / "quick.toml")


@pytest.fixture(scope="session")
def encoder(theirs, tmp_path_factory):
    """A whole encoder with its tokenizer, as transformers saves it."""
    family, tokenizer = theirs
    classes = {"bert": "BertModel", "roberta": "RobertaModel", "modernbert": "ModernBertModel"}
    model_class = getattr(transformers, classes[family])
    ends = {"cls_token_id": 0, "sep_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = model_class.config_class(
        **SMALL, **ends, vocab_size=len(tokenizer) + 5, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=40
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(family) / "encoder"
    network = model_class(config)
    network.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, network.eval(), tokenizer


@pytest.mark.parametrize("theirs", ["roberta"], indirect=True)
def test_a_run_starts_from_an_encoder_and_its_tokenizer(encoder, texts, odn, quick, tmp_path):
    path, _, tokenizer = encoder
    run = tmp_path / "run"
    code, _, err = odn("run", texts, "--backbone", path, "--pretrained", *quick, "--run", run)
    assert code in (0, 3), err
    assert all(
        line.startswith(("odn: ", "grow ", "cool down ", "settle ", "fine-tune ")) for line in err.splitlines() if line
    ), err
    start = json.loads((run / "start.json").read_text())
    assert (start["blocks"], len(start["probes"])) == (2, 2)
    spec = json.loads((run / "data.json").read_text())["preprocessing"]
    assert (spec["vocabulary"], spec["padding"]) == (len(tokenizer) + 5, tokenizer.pad_token_id)
    assert spec["mask"] == tokenizer.mask_token_id
    # Neither the encoder nor its tokenizer is needed from here on, save its configuration.
    for name in ("tokenizer.json", "model.safetensors"):
        shutil.move(path / name, tmp_path / name)
    try:
        code, _, err = odn("finetune", run, "--epochs", "2")
        assert code == 0, err
        code, _, err = odn("export", run)
        assert code == 0, err
        code, _, err = odn("run", "--run", run, "--resume")
        assert code in (0, 3), err
    finally:
        for name in ("tokenizer.json", "model.safetensors"):
            shutil.move(tmp_path / name, path / name)
    artifact = library.load(run / "artifact")
    assert artifact.network.stem.padding == tokenizer.pad_token_id
    wanted = tokenizer(["A big plum"], padding="max_length", max_length=spec["tokens"], return_tensors="np").input_ids
    assert np.array_equal(artifact.tokenizer.encode(["A big plum"], spec["tokens"]), wanted)


def test_trained_rows_of_the_embeddings_meet_the_tokens_they_were_trained_for(encoder, texts):
    path, network, tokenizer = encoder
    source = library.tokenizer_of(str(path))
    data = load_data(str(texts), positions=38, tokenizer=source)
    ours = partition(str(path), data.spec, pretrained=True).eval()
    given = ["the plum", "a hammer near my drill"]
    x = torch.from_numpy(Tokenizer(data.spec.tokenizer).encode(given, data.spec.input_shape[0]))
    theirs = tokenizer(given, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = ours.blocks[1](ours.blocks[0](ours.stem(x)))[0]
        if hasattr(network, "final_norm"):
            states = network.final_norm(states)
        wanted = network(input_ids=theirs.input_ids, attention_mask=theirs.attention_mask).last_hidden_state
    seen = theirs.attention_mask.bool()
    assert torch.allclose(states[:, : wanted.shape[1]][seen], wanted[seen], atol=1e-5)
    rebuilt = library.extract(ours, 1)
    assert rebuilt.spec.config["pad_token_id"] == tokenizer.pad_token_id


def test_a_fresh_start_takes_the_padding_of_its_own_tokenizer(encoder, texts):
    path, _, tokenizer = encoder
    data = load_data(str(texts), positions=38)
    with pytest.raises(UsageError, match=f"another tokenizer than the tokenizer of {path}, to which the trained emb"):
        partition(str(path), data.spec, pretrained=True)
    ours = partition(str(path), data.spec)
    assert (ours.stem.padding, ours.spec.config["pad_token_id"]) == (0, 0)
    assert build_network(str(path), (8,), 2, device="meta").stem.padding == tokenizer.pad_token_id
    if tokenizer.pad_token_id:
        with pytest.raises(UsageError, match="texts are padded with the id 1, 'bert_tiny' knows 0; name a directory"):
            build_network("bert_tiny", (8,), 2, vocabulary=300, padding=1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A directory as that of a BERT, to be damaged in copies."""
    path = tmp_path_factory.mktemp("bert") / "encoder"
    tokenizer = of_words()
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=40)
    transformers.BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def narrower(path):
    weights = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:20].clone()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def torn(path):
    (path / "tokenizer.json").write_text("{")


def rule(path):
    table = json.loads((path / "tokenizer.json").read_text())
    table["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
    (path / "tokenizer.json").write_text(json.dumps(table))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (
            lambda path: (path / "tokenizer.json").unlink(),
            "--pretrained",
            "encoder has no tokenizer.json; save_pretrained of the encoder or of its tokenizer writes it",
        ),
        (torn, "--pretrained", "transformers cannot bring the tokenizer of 'transformers/bert' along ("),
        (rule, "--pretrained", "odn does not read tokenizers with the rule 'Replace'; allowed: BPE of bytes"),
        (narrower, "--pretrained", "knows 119 tokens, the trained embeddings 20; give the tokenizer that the weights"),
        (
            lambda path: (path / "tokenizer.json").unlink(),
            "--weights",
            "tokenizer.json, the tokenizer that trained emb",
        ),
        (
            lambda path: None,
            "--weights --max-tokens 2",
            "--max-tokens is 2; allowed: above 2, the tokens that stand ar",
        ),
    ],
)
def test_weights_without_their_tokenizer_are_refused(bert, texts, refused, tmp_path, change, flags, message):
    code = 1 if change in (rule, narrower, torn) else 2
    shutil.copytree(bert, tmp_path / "encoder")
    change(tmp_path / "encoder")
    flags = flags.replace("--weights", f"--weights {tmp_path}/encoder/model.safetensors").split()
    line = refused(
        "run",
        texts,
        "--backbone",
        tmp_path / "encoder",
        *flags,
        "--target",
        "0.9",
        "--run",
        tmp_path / "run",
        code=code,
    )
    assert message in line
    assert not (tmp_path / "run").exists()


def test_settings_of_another_tokenizer_are_refused(texts):
    source = TokenizerSource(content=of_words().backend_tokenizer.to_str(), where="it", padding=0, vocabulary=1000)
    for config, message in (
        (DataConfig(vocabulary=500), "data.vocabulary is 500, which is for a tokenizer of the run's own; leave it out"),
        (DataConfig(lowercase=False), "data.lowercase is false, which is for a tokenizer of the run's own; leave it"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(str(texts), config=config, tokenizer=source)
    content = source.content.replace("[MASK]", "[NONE]")
    source = TokenizerSource(content=content, where="it", padding=0, vocabulary=1000)
    with pytest.raises(UsageError, match="it has no token .MASK. or <mask> to hide others while training; set augment"):
        load_data(str(texts), tokenizer=source)
    spec = load_data(str(texts), tokenizer=source, augment=AugmentConfig(token_dropout=0.0)).spec
    assert (spec.preprocessing.mask, spec.vocabulary) == (0, 1000)


def test_a_run_starts_from_the_artifact_of_another(texts, odn, refused, quick, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, err = odn("run", texts, *quick, "--run", first)
    assert code in (0, 3), err
    (tmp_path / "other").mkdir()
    for name in ("train", "valid", "test"):
        lines = (texts / f"{name}.jsonl").read_text().replace("apple", "melon")  # a tokenizer of its own would differ
        (tmp_path / "other" / f"{name}.jsonl").write_text(lines)
    weights = first / "artifact" / "weights.safetensors"
    code, _, err = odn("run", tmp_path / "other", *quick, "--weights", weights, "--run", second)
    assert code in (0, 3), err
    ours, theirs = (library.load(run / "artifact").tokenizer.content for run in (second, first))
    assert ours == theirs
    line = refused(
        "run", texts, *quick, "--weights", first / "finetuned" / "weights.safetensors", "--run", tmp_path / "x", code=2
    )
    assert "put it beside the weights, or give those of an artifact, RUN/artifact/weights.safetensors" in line
