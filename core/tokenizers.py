"""Opening tokenizers, and saying which ones they are."""

import hashlib
import json
from typing import Any

from .errors import ModelError, first_line
from .models import ModelSource


def load_tokenizer(source: ModelSource, *, option: str) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.name, revision=source.revision)
    except Exception as error:
        raise ModelError(
            f"{option} {source.name}: its tokenizer does not load ({type(error).__name__}: "
            f"{first_line(error)}); save it beside the model with tokenizer.save_pretrained"
        ) from error


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """What proves which tokenizer this is: the size and hash of its vocabulary, and of its rules.

    The hashes are of what the tokenizer does, not of its files, which change with every save.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    rules: Any = None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for setting in ("padding", "truncation"):
            rules.pop(setting, None)
    return {
        "vocabulary_size": len(vocabulary),
        "vocabulary_sha256": _sha256(vocabulary),
        "rules_sha256": _sha256(rules) if rules is not None else None,
        "chat_template_sha256": _sha256(tokenizer.chat_template) if tokenizer.chat_template else None,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def first_difference(ours: Any, theirs: Any) -> str | None:
    """Where two tokenizers' vocabularies first differ, in words; None where they do not."""
    a, b = ours.get_vocab(), theirs.get_vocab()
    by_id = {i: t for t, i in b.items()}
    for token, index in sorted(a.items(), key=lambda item: item[1]):
        if by_id.get(index) != token:
            return f"id {index} is {token!r} there and {by_id.get(index)!r} here"
    return None if len(a) == len(b) else f"there are {len(a)} tokens there and {len(b)} here"
