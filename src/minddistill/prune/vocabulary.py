"""A vocabulary of the word pieces that some rows use: which they are, and the tokenizer that knows them only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..files import read_object, write_json, write_text
from ..models.store import copy_tokenizer


def used(tokenizer: Tokenizer, ids: Iterable[np.ndarray]) -> np.ndarray:
    """The ids, ascending, of the special tokens and of all that occur in arrays of ids.

    Texts that use no others are cut into the same pieces by a tokenizer that knows these only: WordPiece takes the
    longest piece that fits, and this one stays.
    """
    table = _table(tokenizer)
    unknown = tokenizer.token_to_id(table["model"]["unk_token"])
    special = [entry["id"] for entry in table["added_tokens"]] + ([] if unknown is None else [unknown])
    return np.unique(np.concatenate([np.array(special), *(np.unique(part) for part in ids)])).astype(np.int64)


def write_tokenizer(source: Path, target: Path, kept: np.ndarray) -> None:
    """Write the tokenizer of `source` to `target` with the pieces `kept` (ids, ascending), whose place is the new id.

    Raises:
        UserError: it is not a WordPiece tokenizer.
    """
    places = {int(old): new for new, old in enumerate(kept)}
    table = _table(load_tokenizer(source))
    vocabulary = {piece: places[old] for piece, old in table["model"]["vocab"].items() if old in places}
    table["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    for entry in table["added_tokens"]:
        entry["id"] = places[entry["id"]]
    table["post_processor"] = _renumbered(table["post_processor"], places)
    copy_tokenizer(source, target)
    write_json(target / "tokenizer.json", table)
    if (source / "vocab.txt").is_file():
        write_text(target / "vocab.txt", "".join(f"{piece}\n" for piece in table["model"]["vocab"]))
    options = target / "tokenizer_config.json"
    if options.is_file():
        values = read_object(options, "the tokenizer's options")
        known = values.get("added_tokens_decoder", {})
        if known:
            values["added_tokens_decoder"] = {
                str(places[int(old)]): entry for old, entry in known.items() if int(old) in places
            }
        write_json(options, values)
    added = target / "added_tokens.json"
    if added.is_file():
        known = read_object(added, "the tokens added to the vocabulary")
        write_json(added, {text: places[old] for text, old in known.items() if old in places})


def _table(tokenizer: Tokenizer) -> dict[str, Any]:
    table = json.loads(tokenizer.to_str())
    if table["model"]["type"] != "WordPiece":
        raise UserError(
            f"--prune_vocabulary true: a {table['model']['type']} tokenizer; expected WordPiece, whose pieces do not "
            "depend on each other"
        )
    return table


def _renumbered(value: Any, places: dict[int, int]) -> Any:
    """A post-processor with new ids, which stand in "ids" lists or behind a token in pairs such as ["[SEP]", 102]."""
    if isinstance(value, dict):
        return {
            name: [places[old] for old in part] if name == "ids" else _renumbered(part, places)
            for name, part in value.items()
        }
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
        return [value[0], places[value[1]]]
    return [_renumbered(part, places) for part in value] if isinstance(value, list) else value
