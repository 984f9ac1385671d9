"""Distribute a slide over the processes that torchrun started, without a connection between them.

Each process segments a part of the shards, and the first one merges them. The processes communicate through small
files in the slide's folder.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nucsam_monai.utils.files import atomic_path
from nucsam_monai.wsi.grid import Shard
from nucsam_monai.wsi.readers import SlideError

_POLL_S = 0.5


@dataclass(frozen=True)
class Ranks:
    """Describe this process among those that torchrun started; without torchrun it is the only one.

    Attributes:
        rank: rank of this process.
        count: number of processes.
        launch: tells one start of torchrun from another.
    """

    rank: int = 0
    count: int = 1
    launch: str = ""

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Return what torchrun says in the environment."""
        value = os.environ.get
        count = int(value("WORLD_SIZE", "1"))
        if count == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
        parts = [value(name, "") for name in names]
        if value("LOCAL_WORLD_SIZE") == value("WORLD_SIZE"):  # all have one parent
            parts.append(str(os.getppid()))
        return cls(int(os.environ["RANK"]), count, "_".join(parts))

    def share(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards that this process segments."""
        return [shard for shard in shards if shard.index % self.count == self.rank]

    def tell(self, folder: Path, word: str, text: str = "") -> None:
        """Tell the others something about the slide in ``folder``."""
        if self.count > 1:
            with atomic_path(self._file(folder, word)) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def wait(self, folder: Path, *words: str, until: Callable[[], bool] = lambda: False) -> None:
        """Wait until another process has told one of ``words`` about the slide in ``folder``.

        Args:
            folder: folder of the slide.
            words: words to wait for.
            until: ends the waiting as well.

        Raises:
            SlideError: another one could not go on.
        """
        while not until():
            told = [self._file(folder, word) for word in words]
            failed = list(folder.glob(self._file(folder, "failed*").name))
            if failed:
                raise SlideError(failed[0].read_text(encoding="utf-8"))
            if any(file.exists() for file in told):
                return
            time.sleep(_POLL_S)

    def _file(self, folder: Path, word: str) -> Path:
        # The journal removes what is called like this when the next run begins.
        return folder / f".ranks-{self.launch}-{word}.txt"
