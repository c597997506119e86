"""Tokenizers of model directories, and a fingerprint by what they do."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from ..errors import UserError
from ..files import read_json

# Sentences that tell tokenizers apart: case, accents, punctuation, scripts, unknown words, pairs.
_PROBES = (
    ("The Café opened at 9:30, didn't it?", "Ünïcode & emoji \U0001f600 <mask> [MASK]"),
    ("中文分词 и русский", "supercalifragilisticexpialidocious\tTAB  spaces"),
)
# Of `tokenizer_class`, what the files stand for where no `tokenizer.json` says how they are read: others have the same
# file names and another way to split (BertJapaneseTokenizer, BertweetTokenizer, KoBERT's).
_WORDPIECE_CLASS = (
    r"(Bert|DistilBert|Electra|MobileBert|SqueezeBert|ConvBert|MPNet|LayoutLM|Funnel|PreTrained)Tokenizer(Fast)?"
)
_BYTE_LEVEL_CLASS = r"(Roberta|GPT2|Bart|Longformer|PreTrained)Tokenizer(Fast)?"


def has_tokenizer(directory: Path) -> bool:
    """Whether `load_tokenizer` finds something to read there."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt", "merges.txt"))


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a model directory: `tokenizer.json`, WordPiece `vocab.txt`, or byte-level BPE files.

    Returns:
        A tokenizer that adds special tokens and neither pads nor truncates.

    Raises:
        UserError: none of the files is there, one is damaged, or they are of a tokenizer of another kind.
    """
    directory = Path(directory)
    try:
        if (directory / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        elif (directory / "vocab.txt").is_file():
            options = _options(directory, _WORDPIECE_CLASS)
            tokenizer = _wordpiece(directory, options)
            _add_tokens(tokenizer, directory, options)
        elif (directory / "merges.txt").is_file():
            options = _options(directory, _BYTE_LEVEL_CLASS)
            tokenizer = _byte_level(directory, options)
            _add_tokens(tokenizer, directory, options)
        else:
            raise UserError(
                f"{directory}: no tokenizer in it; expected tokenizer.json, vocab.txt, or vocab.json with merges.txt"
            )
    except UserError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{directory}: its tokenizer cannot be read ({error}); copy the files again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    return read_json(path, "part of the tokenizer") if path.is_file() else {}


def _options(directory: Path, kind: str) -> dict[str, Any]:
    options = _read(directory, "tokenizer_config.json")
    name, words = options.get("tokenizer_class") or "", options.get("word_tokenizer_type") or "basic"
    if (name and not re.fullmatch(kind, name)) or words != "basic":
        raise UserError(
            f"{directory}: its tokenizer is a {name}{f' ({words})' if words != 'basic' else ''}, whose way to split is not in "
            "its files; expected BERT's WordPiece, RoBERTa's byte-level BPE, or a tokenizer.json"
        )
    return options


def _add_tokens(tokenizer: Tokenizer, directory: Path, options: Mapping[str, Any]) -> None:
    """Add what was added to the vocabulary, in the order of the ids, as transformers does."""
    names = _read(directory, "special_tokens_map.json")
    special = {text for values in (options, names) for text in _special(values)}
    added = {
        index: AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in _read(directory, "added_tokens.json").items()
    }
    added |= {int(index): AddedToken(**told) for index, told in options.get("added_tokens_decoder", {}).items()}
    known = tokenizer.get_added_tokens_decoder()
    for index, token in sorted(added.items()):
        if index in known:
            continue
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != index:
            raise UserError(
                f"{directory}: {token.content!r} was added to its vocabulary as {index}, which would be "
                f"{tokenizer.token_to_id(token.content)} here; expected the files of one tokenizer"
            )


def _special(values: Mapping[str, Any]) -> list[str]:
    """The special tokens that a tokenizer's configuration names."""
    found = [value for name, value in values.items() if name.endswith("_token")]
    found += values.get("additional_special_tokens") or []
    found = [value.get("content") if isinstance(value, dict) else value for value in found]
    return [value for value in found if isinstance(value, str)]


def _wordpiece(directory: Path, options: Mapping[str, Any]) -> Tokenizer:
    lower = options.get("do_lower_case", True)
    inner = BertWordPieceTokenizer(
        str(directory / "vocab.txt"),
        lowercase=lower,
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(inner.to_str())


def _byte_level(directory: Path, options: Mapping[str, Any]) -> Tokenizer:
    space = options.get("add_prefix_space", False)
    tokenizer = Tokenizer(BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=space)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    end, start = tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<s>")
    tokenizer.post_processor = RobertaProcessing(("</s>", end), ("<s>", start), add_prefix_space=space)
    return tokenizer


WORD_BEGINS = "\u0120"  # in a byte-level vocabulary: a blank
SPECIAL_WORDS = ("[PAD]", "[UNK]", "[SEP]", "[MASK]")
# Words as the Penn Treebank, and so GloVe, has them, save that hyphens and marks stand alone: does n't, it 's.
_WORD = r"\w+(?=n't)|n't|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]"
_lower = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
_splitter = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)


def split_words(text: str) -> list[str]:
    """The lower-case words of a text, as `word_tokenizer` reads them."""
    return [word for word, _ in _splitter.pre_tokenize_str(_lower.normalize_str(text))]


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer of whole words, whose ids are those of `SPECIAL_WORDS` and then of `words`.

    It adds nothing to a text, and [SEP] between the two of a pair.
    """
    ids = {word: index for index, word in enumerate((*SPECIAL_WORDS, *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _lower, _splitter
    tokenizer.add_special_tokens(list(SPECIAL_WORDS))
    tokenizer.post_processor = TemplateProcessing(
        single="$A:0", pair="$A:0 [SEP]:0 $B:1", special_tokens=[("[SEP]", ids["[SEP]"])]
    )
    return tokenizer


def special_id(tokenizer: Tokenizer, *names: str) -> int:
    """The id of the first of `names` that the vocabulary has.

    Raises:
        UserError: it has none of them.
    """
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return found
    raise UserError(f"the tokenizer's vocabulary has none of {', '.join(names)}; it is not a BERT or RoBERTa tokenizer")


def byte_level(tokenizer: Tokenizer) -> bool:
    """Whether pieces tell by their first mark that a word begins, as RoBERTa's do."""
    return any(piece.startswith(WORD_BEGINS) for piece in tokenizer.get_vocab())


def pad_id(tokenizer: Tokenizer) -> int:
    """The id of padding."""
    return special_id(tokenizer, "[PAD]", "<pad>")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sixteen hexadecimal digits that agree when vocabulary and behaviour on probe texts agree.

    The file format does not matter: a `vocab.txt` and the `tokenizer.json` made of it have one fingerprint. Nor does
    where the tokenizer cuts long texts off.
    """
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    probes = [[tokenizer.encode(*pair).ids, tokenizer.encode(pair[0]).ids] for pair in _PROBES]
    return hashlib.sha256(json.dumps([vocabulary, probes]).encode()).hexdigest()[:16]
