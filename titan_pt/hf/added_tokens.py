"""Tokens that the files beside a tokenizer.json add to it or give a role, as transformers reads them.

These are tokenizer_config.json and, where that has no `added_tokens_decoder`, special_tokens_map.json and
added_tokens.json. What releases of transformers read in two ways is refused by its key.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from titan_pt.components.tokenizer_files import read_file
from titan_pt.config.errors import ConfigError, shown
from titan_pt.hf.tokenizer_class import DEFAULT_TOKENS, class_of, warn_of_other_rules
from titan_pt.run.files import decode_text, parse_json

logger = logging.getLogger("titan_pt")

CONFIG, ROLES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
DECODER = "added_tokens_decoder"
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one.

    Raises:
        ConfigError: it holds something else.
    """
    if not file.is_file():
        return {}
    try:
        content = parse_json(decode_text(read_file(file), f"tokenizer.name = '{file}'"))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"tokenizer.name = '{file.parent}': {file.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _problem(file, f"is {shown(content)}; want a JSON object")
    return content


def add_tokens(tokenizer: tokenizers.Tokenizer, folder: Path) -> dict[str, str]:
    """Add the tokens that a folder's files declare to its tokenizer.

    Returns:
        Tokens by their role, such as eos_token.

    Raises:
        ConfigError: a file cannot be read, or declares what cannot be read alike; names file and key.
    """
    config = read_object(folder / CONFIG)
    rules = json.loads(tokenizer.to_str())
    _check_rules(tokenizer, rules, folder, config)
    name = class_of(rules, config, read_object(folder / "config.json"))
    warn_of_other_rules(rules, folder / CONFIG, name, config)
    is_legacy, stated = DECODER not in config, set(config)
    named = dict(_named(folder / CONFIG, config))
    extra = list(_extra(folder / CONFIG, config))
    if is_legacy:
        roles = read_object(folder / ROLES)
        named |= dict(_named(folder / ROLES, roles))
        extra += _extra(folder / ROLES, roles)
        stated |= roles.keys()
    special = {
        token.content for token in [*(named[role] for role in _ROLES if role in named), *(token for _, token in extra)]
    }
    padding = {"pad_token": tokenizer.padding["pad_token"]} if tokenizer.padding else {}
    defaults = {**padding, **DEFAULT_TOKENS.get(name or "", {})}
    named |= {role: AddedToken(token, special=True) for role, token in defaults.items() if role not in stated}
    named = {role: named[role] for role in sorted(named, key=lambda role: (*_ROLES, role).index(role))}
    file = folder / (ADDED if is_legacy else CONFIG)
    declared = dict(_listed(file, special) if is_legacy else _decoded(file, config[DECODER]))

    own = tokenizer.get_added_tokens_decoder()
    every = {**declared, **own} if is_legacy else declared  # tokenizer.json's own flags precede in older folders
    new = [token for _, token in sorted(every.items(), key=lambda item: item[0])]
    held = {token.content for token in [*own.values(), *new]}
    new += _added(folder, [(key, token) for key, token in [*named.items(), *extra] if token.content not in held])
    for token in new:
        token.special = token.special or token.content in {one.content for one in named.values()}
    tokenizer.add_tokens(new)
    for token_id, token in declared.items():
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            raise _problem(file, f"{shown(token.content)} has id {token_id}, and tokenizer.json gives it {found}")
    return {role: token.content for role, token in named.items()}


def _added(folder: Path, tokens: Sequence[tuple[str, AddedToken]]) -> list[AddedToken]:
    """One token for each name among (key, token) of those that no list has."""
    found: dict[str, tuple[str, AddedToken]] = {}
    for key, token in tokens:
        before, first = found.setdefault(token.content, (key, token))
        if token != first:
            raise ConfigError(
                f"tokenizer.name = '{folder}': {shown(token.content)} has other flags as {key} than as {before}: "
                "releases of transformers differ in which they take; make them equal"
            )
    return [token for _, token in found.values()]


def _check_rules(
    tokenizer: tokenizers.Tokenizer, rules: Mapping[str, Any], folder: Path, config: Mapping[str, Any]
) -> None:
    """Refuse keys of the two files that would give other ids than the tokenizer as it is."""
    file = folder / CONFIG
    for key in ("split_special_tokens", "fix_mistral_regex"):
        if config.get(key):
            raise _problem(file, f"{key} = {shown(config[key])}: is not supported; supported is false")
    if rules["model"].get("dropout"):
        raise _problem(folder / "tokenizer.json", f"model.dropout = {rules['model']['dropout']}: ids would be random")
    wanted = config.get("add_prefix_space")
    for step in _steps(rules["pre_tokenizer"]):
        if isinstance(wanted, bool) and step.get("type") == "ByteLevel" and step["add_prefix_space"] != wanted:
            raise _problem(
                file,
                f"add_prefix_space = {shown(wanted)}, and tokenizer.json has {shown(step['add_prefix_space'])}: "
                "releases of transformers differ in which they take; make them equal",
            )
    roles = {"add_bos_token": "bos_token", "add_eos_token": "eos_token"}
    for key, role in roles.items():
        added = tokenizer.encode("a").ids != tokenizer.encode("a", add_special_tokens=False).ids
        if config.get(key) and not added and config.get(role):
            logger.warning(f"{file}: {key} has no effect, as in transformers 5: tokenizer.json adds no {role}")


def _steps(rules: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer of tokenizer.json as a list of its parts."""
    return rules["pretokenizers"] if rules and rules.get("type") == "Sequence" else [rules or {}]


def _named(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """Yield the tokens that have a role: the standard ones, and those of keys such as image_token."""
    for key, value in content.items():
        is_token = value is not None if key in _ROLES else key.endswith("_token") and isinstance(value, str)
        if is_token:
            yield key, _token(file, key, value)
    extra = content.get(_EXTRA[0])
    for key, value in extra.items() if isinstance(extra, dict) else ():
        yield key, _token(file, f"{_EXTRA[0]}.{key}", value)


def _extra(file: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """Yield (key, token) of the special tokens without a role."""
    key = next((key for key in _EXTRA if content.get(key)), "")
    values = content.get(key) or []
    if isinstance(values, dict) and key == _EXTRA[0]:
        return
    if not isinstance(values, list):
        raise _problem(file, f"{key} is {shown(values)}; want a list of tokens")
    for value in values:
        yield key, _token(file, key, value)


def _listed(file: Path, names: set[str]) -> Iterator[tuple[int, AddedToken]]:
    """Yield (id, token) of an added_tokens.json, in which only `names` are special."""
    for name, token_id in read_object(file).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise _problem(file, f"{shown(name)} has id {shown(token_id)}; want a number")
        special = name in names
        yield token_id, AddedToken(name, normalized=not special, special=special)


def _decoded(file: Path, decoder: Any) -> Iterator[tuple[int, AddedToken]]:
    """Yield (id, token) of `added_tokens_decoder`."""
    if not isinstance(decoder, dict):
        raise _problem(file, f"{DECODER} is {shown(decoder)}; want an object of tokens by their ids")
    for key, value in decoder.items():
        if not key.isdecimal() or not isinstance(value, dict):
            raise _problem(file, f"{DECODER}.{key} is {shown(value)}; want an id, and an object with content and flags")
        yield int(key), _token(file, f"{DECODER}.{key}", value, special=False)


def _token(file: Path, key: str, value: Any, *, special: bool = True) -> AddedToken:
    """The token that a value describes: its name, or an object with its name and flags."""
    fields = {"content": value} if isinstance(value, str) else value
    name = fields.get("content") if isinstance(fields, dict) else None
    if not isinstance(name, str) or not name:
        raise _problem(file, f"{key} is {shown(value)}; want a token, or an object with its content and flags")
    flags = {flag: fields[flag] for flag in _FLAGS if fields.get(flag) is not None}
    unknown = sorted(fields.keys() - {*_FLAGS, "content", "id", "__type"})
    wrong = next(
        (flag for flag, state in flags.items() if not isinstance(state, bool)), unknown[0] if unknown else None
    )
    if wrong is not None:
        raise _problem(
            file, f"{key}.{wrong} = {shown(fields[wrong])}: known are {', '.join(_FLAGS)}, each true or false"
        )
    return AddedToken(name, **{"special": special, **flags})


def _problem(file: Path, what: str) -> ConfigError:
    return ConfigError(f"tokenizer.name = '{file.parent}': {file.name}: {what}")
