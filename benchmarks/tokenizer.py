"""Import and export of a real tokenizer with tokens of every flag: are the ids transformers' on real text?

    python benchmarks/tokenizer.py --vocab encoder.json --merges vocab.bpe --text FILE [FILE ...]

GPT-2's vocabulary gets added tokens with each flag, declared in each file that may declare them, and the text has one
of their names after each 1,000 characters. Compared are the ids of data's text (no name is a token), of the owner's
(each is) with what begins a text, and both after an export. Prints a line for each file that declares.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config.schema.job_config import TokenizerSection
from titan_pt.hf.chat import prompt_tokens
from titan_pt.hf.tokenizer_files import write_tokenizer

END, END_ID = "<|endoftext|>", 50256
FLAGS: dict[str, dict[str, bool]] = {
    "<|lstrip|>": {"lstrip": True},
    "<|rstrip|>": {"rstrip": True},
    "<|single|>": {"single_word": True},
    "<|normal|>": {"normalized": True},
    "<|all|>": {"lstrip": True, "rstrip": True, "single_word": True, "normalized": True},
    "<|plain|>": {},
    "Clara": {"special": False, "normalized": True},
}
ROLES = ("bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PLACES = ("tokenizer.json", "added_tokens_decoder", "added_tokens.json", "special_tokens_map.json")


def write_folder(folder: Path, place: str, vocab: Path, merges: Path) -> None:
    """A tokenizer's folder whose added tokens are declared in one place."""
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]
    pairs = [(one, other) for one, other in (line.split() for line in lines if line.strip())]
    rules = Tokenizer(models.BPE(json.loads(vocab.read_text(encoding="utf-8")), pairs))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([END])
    rules.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, END_ID)])
    flags = {name: {"special": True, "normalized": False, **own} for name, own in FLAGS.items()}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    ids = {name: END_ID + 1 + i for i, name in enumerate(FLAGS)}
    if place == "tokenizer.json":
        rules.add_tokens([AddedToken(name, **own) for name, own in flags.items()])
    elif place == "added_tokens_decoder":
        config[place] = {str(ids[name]): {"content": name, **own} for name, own in flags.items()}
    elif place == "added_tokens.json":
        (folder / place).write_text(json.dumps(ids))
    else:
        named = zip(ROLES, FLAGS, strict=False)
        (folder / place).write_text(json.dumps({role: {"content": name, **FLAGS[name]} for role, name in named}))
    rules.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def compare(place: str, text: str, vocab: Path, merges: Path) -> str:
    """One line of results."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name, "in"), Path(name, "out")
        folder.mkdir()
        out.mkdir()
        write_folder(folder, place, vocab, merges)
        ours, theirs = build_tokenizer(TokenizerSection(name=str(folder))), AutoTokenizer.from_pretrained(folder)
        write_tokenizer(ours, out, 1024)
        again, exported = build_tokenizer(TokenizerSection(name=str(out))), AutoTokenizer.from_pretrained(out)
    start = time.perf_counter()
    data, owner = ours.encode(text), prompt_tokens(ours, text, named=True)
    results = {
        f"{len(data):,} ids of data": data == theirs.encode(text, add_special_tokens=False, split_special_tokens=True),
        f"{len(owner):,} of the owner": owner == (whole := theirs.encode(text)),
        "exported": whole == exported.encode(text) == prompt_tokens(again, text, named=True),
        "fingerprint": ours.fingerprint == again.fingerprint,
    }
    told = ", ".join(f"{what} {'equal' if same else 'DIFFER'}" for what, same in results.items())
    return f"{place}: {len(text.encode()):,} bytes; {told}; {time.perf_counter() - start:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=Path, required=True, help="encoder.json of GPT-2")
    parser.add_argument("--merges", type=Path, required=True, help="vocab.bpe of GPT-2")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files of text")
    parser.add_argument("--characters", type=int, default=5_000_000, help="most of it (default: %(default)s)")
    options = parser.parse_args()
    text = "\n\n".join(file.read_text(encoding="utf-8", errors="replace") for file in options.text)
    pieces = [text[i : i + 1000] for i in range(0, min(len(text), options.characters), 1000)]
    names = sorted(FLAGS)
    text = "".join(piece + names[i % len(names)] for i, piece in enumerate(pieces))
    for place in PLACES:
        print(compare(place, text, options.vocab, options.merges), flush=True)


if __name__ == "__main__":
    main()
