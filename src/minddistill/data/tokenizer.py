"""Tokenizers of model directories, and a fingerprint by what they do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing

from ..errors import UserError
from ..files import read_json

# Sentences that tell tokenizers apart: case, accents, punctuation, scripts, unknown words, pairs.
_PROBES = (
    ("The Café opened at 9:30, didn't it?", "Ünïcode & emoji \U0001f600 <mask> [MASK]"),
    ("中文分词 и русский", "supercalifragilisticexpialidocious\tTAB  spaces"),
)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a model directory: `tokenizer.json`, WordPiece `vocab.txt`, or byte-level BPE files.

    Returns:
        A tokenizer that adds special tokens and neither pads nor truncates.

    Raises:
        UserError: none of the files is there, or one is damaged.
    """
    directory = Path(directory)
    try:
        if (directory / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        elif (directory / "vocab.txt").is_file():
            tokenizer = _wordpiece(directory)
        elif (directory / "merges.txt").is_file():
            tokenizer = _byte_level(directory)
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


def _options(directory: Path) -> dict:
    path = directory / "tokenizer_config.json"
    return read_json(path, "the tokenizer's options") if path.is_file() else {}


def _wordpiece(directory: Path) -> Tokenizer:
    options = _options(directory)
    lower = options.get("do_lower_case", True)
    inner = BertWordPieceTokenizer(
        str(directory / "vocab.txt"),
        lowercase=lower,
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(inner.to_str())


def _byte_level(directory: Path) -> Tokenizer:
    options = _options(directory)
    space = options.get("add_prefix_space", False)
    tokenizer = Tokenizer(BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=space)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    end, start = tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<s>")
    tokenizer.post_processor = RobertaProcessing(("</s>", end), ("<s>", start), add_prefix_space=space)
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
