"""Keep a second process out of a folder, and name the one that uses it."""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import naming

LOCK_NAME = ".training.lock"


class FolderLock:
    """Lock a folder by a file that names the process using it, visible to other hosts too.

    The lock of a process of this host that no longer runs is taken over, as after a crash or a power cut.

    Args:
        folder: the folder; created if missing.

    Example:
        >>> lock = FolderLock("output/train")  # doctest: +SKIP
        >>> lock.acquire()  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / LOCK_NAME
        self._held = False

    def acquire(self) -> None:
        """Lock the folder.

        Raises:
            ConfigurationError: another process works in it.
            OutputError: the folder can't be written to.
        """
        own = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with naming(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._held:
                try:
                    with self.path.open("x", encoding="utf-8") as file:
                        json.dump(own, file)
                    self._held = True
                except FileExistsError:
                    self._take_over(own)

    def release(self) -> None:
        """Release the folder."""
        if self._held:
            self.path.unlink(missing_ok=True)
            self._held = False

    def _take_over(self, own: dict[str, Any]) -> None:
        """Remove the lock of a process that has ended, or of this process.

        Raises:
            ConfigurationError: the process of the lock is running, or that cannot be determined.
        """
        try:
            holder = dict(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        except (ValueError, TypeError):
            holder = {}
        if holder.get("host") == own["host"] and not _runs_elsewhere(holder.get("process")):
            self.path.unlink(missing_ok=True)
            return
        who = f"process {holder.get('process', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        raise ConfigurationError(
            f"output_dir {self.path.parent}: another training works in it, {who}. Wait for its end, choose another "
            f"folder, or remove {self.path} if that process is gone."
        )


def _runs_elsewhere(process: Any) -> bool:
    """Return whether another process of this host is running."""
    if not isinstance(process, int):
        return True
    if process == os.getpid():
        return False
    if sys.platform == "win32":  # there is no way to ask without ending it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
