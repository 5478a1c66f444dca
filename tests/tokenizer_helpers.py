"""Small tokenizers for tests, and texts that are hard to encode."""

import base64
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from titan_pt.components.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer
from titan_pt.config.schema.job_config import TokenizerSection as Section

TEXTS = [
    "",
    "Hello, world!\n\n  def f(x):\n\treturn x**2  # ok\n",
    "Größe, naïve café, 北京 and 🤷‍♀️ \u202e\ufeff end",
    "12345 6.789 -0 '' don't we'll I'M",
    f"a{END_OF_TEXT}b<|im_start|>user<|im_end|></s>",
    "\x00\x01\r\n\x7f",
    " " * 50 + "x" * 200,
]


def build(name: object, eos_token: str | None = None) -> Tokenizer:
    return build_tokenizer(Section(name=str(name), eos_token=eos_token))


def rank_file(folder: Path, *, merges: tuple[bytes, ...] = (b"he", b"ll", b"hell"), name: str = "x.tiktoken") -> Path:
    tokens = [*(bytes([b]) for b in range(256)), *merges]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def hugging_face(folder: Path, *special: str) -> Path:
    """A folder with a small byte-level BPE, trained on TEXTS."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": list(special), "show_progress": False}
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=350, **options))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
