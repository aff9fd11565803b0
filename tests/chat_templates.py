"""Small chat templates with the habits of those in use, and tokenizers that merge where it hurts."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# A header and an end mark around every message; shows tools and calls; writes None for absent content.
HEADERS = """
{%- if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ '<call>' + call | tojson + '</call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# The system message goes inside the first instruction, contents are trimmed, answers end with EOS, roles must
# alternate and there is no generation prompt.
INSTRUCTIONS = """
{%- if messages[0].role == 'system' %}
{%- set system, turns = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n', messages[1:] %}
{%- else %}{% set system, turns = '', messages %}{% endif %}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

# BOS first, the assistant is called model, contents are trimmed, a system message is refused.
TURNS = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{{- m.content | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"""

# Tools stand before the last thing that the user said, calls are a JSON list, tool results have a frame.
TOOLS = """{{ bos_token }}
{%- set said = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set said.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == said.last %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'tool' %}{{ '[RESULT]' + m.content | string + '[/RESULT]' }}
{%- elif m.tool_calls %}{{ '[CALLS]' + m.tool_calls | map(attribute='function') | list | tojson + eos_token }}
{%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
{%- else %}{{ m.content + '\n\n' }}{% endif %}
{%- endfor %}"""

# A default system message; thoughts of answers before the last question are dropped; the generation prompt
# closes the thoughts where thinking is off.
THOUGHTS = """
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}
{%- set said = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set said.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > said.last %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}
{%- endif %}
{{- (m.content or '').split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

TEMPLATES = {
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "turns": TURNS,
    "tools": TOOLS,
    "thoughts": THOUGHTS,
}

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "user assistant system model tools the answer is\n\nyes or no, <think>\n\n</think>\n\n",
    "You are kind.\n\nHuman: hi\n\nAssistant: ok. The quick brown fox, \u201cquoted\u201d;",
    "r\u00e9sum\u00e9, \u05e9\u05dc\u05d5\u05dd, \u4f60\u597d \U0001f642",
] * 9


def byte_bpe(**special):
    """Byte-level BPE: merges letters, spaces and line breaks, across anything but its special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return _wrapped(backend, special)


PIECES = [
    *(letter for letter in map(chr, range(33, 127))),
    *("\u2581", "\n", "\n\n", "\n\n\n", "\u2581\u2581", "]\u2581", "]\u2581The", ":\u2581", "\n\u2581"),
    *(
        "user",
        "assistant",
        "system",
        "model",
        "\u2581The",
        "The",
        "\u2581answer",
        "\u2581is",
        "\nThe",
        "\nyou",
    ),
    *("\u201c", "\u201d", "\u05e9\u05dc", "\u4f60\u597d", "\U0001f469", "\u200d\U0001f469", "e\u0301"),
]


def unigram(**special):
    """A Unigram model over the whole text with bytes to fall back on, as SentencePiece has them."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(token, -20.0) for token in bytes_]
    # The longer a piece, the less it costs for what it covers: it is taken wherever it fits.
    vocabulary += [(piece, -8.0 + 0.1 * len(piece)) for piece in PIECES]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(SPECIAL)
    return _wrapped(backend, special)


def _wrapped(backend, special):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special,
    )
