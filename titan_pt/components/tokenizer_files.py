"""Files of tokenizers. Imported where a tokenizer has some."""

from pathlib import Path

from titan_pt.config.errors import ConfigError
from titan_pt.run.files import read_bytes


def read_file(file: Path) -> bytes:
    """Read a file of a tokenizer.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return read_bytes(file)
    except OSError as error:
        raise ConfigError(f"tokenizer.name = '{file}': cannot be read: {error.strerror or error}") from None
