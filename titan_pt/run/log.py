"""The console: one logger, coloured on a terminal, silent on ranks that are not asked to speak."""

import hashlib
import logging
import os
import sys
import warnings
from pathlib import Path

logger = logging.getLogger("titan_pt")


def init_logging() -> None:
    """Log to stderr. Ranks not named in LOG_RANK (default 0, or a list such as 0,3) only log errors."""
    rank = os.environ.get("RANK", "0")
    speaking = {part.strip() for part in os.environ.get("LOG_RANK", "0").split(",")}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"[rank{rank}]:[titan] %(asctime)s - %(levelname)s - %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank in speaking else logging.ERROR)
    logger.propagate = False


def quiet_libraries() -> None:
    """Hide notices of other libraries that no user of titan_pt can act on."""
    # torch: FSDP's flat-parameter and inductor's autotune advice, for choices made in this package.
    warnings.filterwarnings("ignore", module=r"torch(\.|$)")
    for name in ("torchao", "torch.utils._pytree"):  # kernels of other machines, and of other versions of torch
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def print_once(text: str) -> None:
    """Print what one rank or several have to say alike, such as the reason of an end: on stderr, once a node."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # torchrun's: one folder a node, in it one a rank
    if error_file:
        said = Path(error_file).parent.parent / f"said-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        try:
            said.touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # better twice than never
            pass
    print(text, file=sys.stderr)


class Color:
    """ANSI colours, or empty strings."""

    def __init__(self, enabled: bool) -> None:
        self.red, self.green, self.yellow, self.blue, self.cyan, self.magenta, self.reset = (
            (f"\033[{code}m" if enabled else "") for code in (31, 32, 33, 34, 36, 35, 0)
        )


def terminal_colors(disabled: bool) -> Color:
    """Colours where stderr is a terminal that wants them."""
    return Color(not disabled and sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
