"""What is believed of a tokenizer that was written elsewhere: its vocabulary, its merges, and rules of known kinds.

All of it is plain JSON in the format of the library ``tokenizers``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from odn.errors import OdnError

_MOST_TOKENS, _MOST_ADDED, _LONGEST_ADDED, _LONGEST_TEMPLATE = 10_000_000, 10_000, 1000, 16
# What is taken over of a tokenizer's rules: kinds whose work grows with the text's length alone, and their flags.
_NORMALIZERS: Mapping[str, tuple[str, ...]] = {
    "BertNormalizer": ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"),
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"), ()),
}
_SPLITTERS: Mapping[str, tuple[str, ...]] = {
    "ByteLevel": ("add_prefix_space", "trim_offsets", "use_regex"),
    "BertPreTokenizer": (),
}
ALLOWED = "BPE of bytes, as in RoBERTa, or WordPiece, as in BERT"
_FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a tokenizer and which of them mean something else than a piece of text.

    Attributes:
        ids: by token, added ones too.
        front: tokens that stand in front of every text.
        back: those behind it.
        padding: the one that fills up a text.
        mask: the one that hides others; None where there is none.
    """

    ids: dict[str, int]
    front: tuple[str, ...]
    back: tuple[str, ...]
    padding: str
    mask: str | None

    def number(self, *tokens: str) -> list[int]:
        """Return the ids of tokens."""
        return [self.ids[token] for token in tokens]


def find_tokens(table: Any, padding: int) -> Tokens:
    """Find the tokens of a tokenizer.

    Args:
        table: its JSON.
        padding: id of the token that fills up a text, where the JSON does not say it.

    Returns:
        Its tokens.

    Raises:
        ValueError: when they contradict each other; KeyError, TypeError and the like where the JSON is another.
        OdnError: when it sets something around texts in a way that is not known.
    """
    ids = _ids(table)
    front, back = _frame(table["post_processor"])
    if table.get("padding") is not None:
        padding = table["padding"]["pad_id"]
    fills = next(token for token, number in ids.items() if number == padding)
    mask = next((token for token in _MASKS if token in ids), None)
    if fills in (mask, *front, *back):
        raise ValueError(f"texts are filled up with '{fills}', which means something else")
    return Tokens(ids=ids, front=front, back=back, padding=fills, mask=mask)


def rebuild(table: Any, tokens: Tokens, alphabet: Sequence[str]) -> dict[str, Any]:
    """Put together the JSON of a tokenizer from what is believed of another.

    Args:
        table: the other's JSON.
        tokens: of it.
        alphabet: tokens of all bytes.

    Returns:
        JSON for the library ``tokenizers``.

    Raises:
        OdnError: when it has a rule that is not known.
    """
    front, back = tokens.front, tokens.back
    template = {
        "type": "TemplateProcessing",
        "single": [_piece(token) for token in (*front, None, *back)],
        "pair": [_piece(None), {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            token: {"id": token, "ids": tokens.number(token), "tokens": [token]} for token in front + back
        },
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": tokens.ids[tokens.padding],
            "pad_type_id": 0,
            "pad_token": tokens.padding,
        },
        "added_tokens": [
            {"id": token["id"], "content": token["content"], **{flag: bool(token[flag]) for flag in _FLAGS}}
            for token in table["added_tokens"]
        ],
        "normalizer": _normalizer(table["normalizer"]),
        "pre_tokenizer": _rule(table["pre_tokenizer"], _SPLITTERS),
        "post_processor": template if front or back else None,
        "decoder": None,
        "model": _model(table["model"], table["pre_tokenizer"]["type"], alphabet),
    }


def _piece(token: str | None) -> dict[str, Any]:
    """Return a piece of a template: a token, or the text."""
    return {"SpecialToken": {"id": token, "type_id": 0}} if token else {"Sequence": {"id": "A", "type_id": 0}}


def _ids(table: Any) -> dict[str, int]:
    ids: dict[str, int] = dict(table["model"]["vocab"])
    added = table["added_tokens"]
    if len(added) > _MOST_ADDED or any(len(token["content"]) > _LONGEST_ADDED for token in added):
        raise ValueError("more or longer added tokens than any tokenizer has")
    for token in added:
        if ids.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"two ids for '{token['content']}'")
    numbers = set(ids.values())
    if {*map(type, numbers)} != {int} or len(numbers) != len(ids):
        raise ValueError("ids of tokens are no numbers, or there are two tokens of one id")
    if not 0 <= min(numbers) <= max(numbers) < _MOST_TOKENS:
        raise ValueError(f"ids from {min(numbers)} to {max(numbers)}")
    return ids


def _frame(processor: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens that stand in front of every text, and behind it."""
    kind = processor["type"] if processor is not None else "ByteLevel"
    if kind == "ByteLevel":  # only moves offsets
        return (), ()
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (processor["cls"][0],), (processor["sep"][0],)
    if kind == "Sequence":
        front: tuple[str, ...] = ()
        back: tuple[str, ...] = ()
        for part in processor["processors"]:
            before, behind = _frame(part)
            front, back = before + front, back + behind
        return front, back
    if kind != "TemplateProcessing":
        raise OdnError(f"odn does not read tokenizers with the rule '{kind}'; allowed: {ALLOWED}")
    pieces = [piece.get("SpecialToken") for piece in processor["single"]]
    if pieces.count(None) != 1 or len(pieces) > _LONGEST_TEMPLATE:
        raise ValueError("a template that repeats or leaves out the text")
    place = pieces.index(None)
    names = tuple(piece["id"] for piece in pieces if piece)
    if any(len(processor["special_tokens"][name]["ids"]) != 1 for name in names):
        raise ValueError("a template whose tokens are several")
    return names[:place], names[place:]


def _normalizer(rule: Any) -> dict[str, Any] | None:
    if rule is not None and rule["type"] == "Sequence":
        if len(rule["normalizers"]) > len(_NORMALIZERS):
            raise ValueError("more rules than there are")
        return {"type": "Sequence", "normalizers": [_rule(one, _NORMALIZERS) for one in rule["normalizers"]]}
    return None if rule is None else _rule(rule, _NORMALIZERS)


def _rule(rule: Any, kinds: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    kind = rule["type"] if rule is not None else "none"
    if kind not in kinds:
        raise OdnError(f"odn does not read tokenizers with the rule '{kind}'; allowed: {ALLOWED}")
    flags = {flag: rule[flag] for flag in kinds[kind] if flag in rule}
    if any(value not in (True, False, None) for value in flags.values()):
        raise ValueError(f"a flag of '{kind}' is no true or false")
    return {"type": kind, **flags}


def _model(model: Any, splitter: str, alphabet: Sequence[str]) -> dict[str, Any]:
    kind, vocabulary = model["type"], model["vocab"]
    if (kind, splitter) == ("WordPiece", "BertPreTokenizer"):
        unknown, prefix = model["unk_token"], model["continuing_subword_prefix"]
        longest = model["max_input_chars_per_word"]
        if unknown not in vocabulary or not isinstance(prefix, str) or not 1 <= longest <= 1000:
            raise ValueError("word pieces without a token for unknown words, or of words without end")
        return {"type": kind, "unk_token": unknown, "continuing_subword_prefix": prefix,
                "max_input_chars_per_word": longest, "vocab": vocabulary}  # fmt: skip
    odd = [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback") if model.get(key)
    ]
    if (kind, splitter) != ("BPE", "ByteLevel") or odd:
        raise OdnError(f"odn does not read tokenizers of '{kind}' with '{splitter}'; allowed: {ALLOWED}")
    if not vocabulary.keys() >= {*alphabet}:
        raise ValueError("byte pairs without a token for every byte")
    return {"type": kind, "ignore_merges": bool(model.get("ignore_merges")), "vocab": vocabulary,
            "merges": [[left, right] for left, right in map(_pair, model["merges"])]}  # fmt: skip


def _pair(merge: Any) -> Any:
    """Return the two tokens of a merge, which files of older versions of the library hold as one string."""
    return merge.split(" ") if isinstance(merge, str) else merge
