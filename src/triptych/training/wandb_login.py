"""Whether W&B has a key to use."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit


def logged_in() -> bool:
    """Whether W&B has a key to use, without asking it (that takes a network)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, netrc.NetrcParseError):
        return False
    names = ("wandb", "coreweave", urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or "wandb")
    return any(name in host for name in names for host in hosts)
